"""MMA: margins in closed form, a step by hand, the memory, the search, identities, segmentation, passes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.mma import MMA, MMASettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask, SegmentationSettings, SegmentationTask
from tests.defense_toys import toy
from tests.line_classifier import Line, inputs_of, ones, trained_on, two_faced
from tests.linear_classifier import LinearClassifier, problem

TASK = ClassificationTask()


def make(batch: Batch, task: Any = TASK, **settings: Any) -> MMA:
    values = {"eps": 1.0, "unit": "norm", "mineps": 0.25, "start": "clean", **settings}
    mma = MMA(task, MMASettings(**values))
    mma.bind(SampleIds({"train": len(batch.images)}), "cpu")
    return mma


def run(mma: MMA, network: nn.Module, batch: Batch) -> list[float]:
    losses = []
    for part in mma.losses(network, batch):
        part.loss.backward()
        losses.append(part.loss.item())
    return losses


def entropy(*logits: float) -> float:
    """Cross-entropies of class 1 with logits [0, z], added up."""
    return sum(math.log1p(math.exp(-z)) for z in logits)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 3, 4), (1, 2, 3, 2)])
def test_margins_of_a_linear_classifier_are_its_distances(norm: str, shape: tuple[int, ...]) -> None:
    network, images, labels = problem(2, shape)
    batch = Batch(images, labels, torch.arange(len(images)))
    distance = network.distances(images, labels, norm).amin(1)
    eps = float(distance.max()) * 0.9  # the farthest is out of reach
    mma = make(batch, eps=eps, norm=norm, mineps=eps / 2, searches=30)
    run(mma, network, batch)
    torch.testing.assert_close(mma.margins.values.double(), distance.clamp(max=1.05 * eps), rtol=1e-5, atol=1e-6)


def test_a_step_by_hand() -> None:
    """0.375 goes onto the boundary at 0; 3 is farther than eps and left alone; -1 is wrong and trained on as it is."""
    batch, network = ones(0.375, 3.0, -1.0), Line()
    mma = make(batch, searches=40)
    losses = run(mma, network, batch)
    assert losses == pytest.approx([entropy(0.375, 3.0, -1.0) / 9, 2 / 3 * entropy(0.0, -1.0) / 3], rel=1e-6)
    assert mma.margins.values.tolist() == pytest.approx([0.375, 1.05, 0.0], rel=1e-6)
    assert trained_on(make(batch, searches=40), batch) == pytest.approx([0.0, 3.0, -1.0], abs=1e-6)


@pytest.mark.parametrize(("x", "margin"), [(0.375, (0.25 + 1.05) / 2), (0.125, 0.125), (9.0, (0.25 + 1.05) / 2)])
def test_the_search_begins_at_the_radius_of_the_attack(x: float, margin: float) -> None:
    batch = ones(x)
    mma = make(batch, searches=1)
    run(mma, Line(), batch)
    assert float(mma.margins.values) == pytest.approx(margin)


def test_the_memory_is_the_next_radius_and_wrong_samples_lose_it() -> None:
    batch, network = ones(0.5, 0.5, 0.5), Line()
    mma = make(batch, start="surface")
    mma.margins.update(torch.arange(3), torch.tensor([0.1, 0.5, 0.75]))
    starts: list[Tensor] = []
    handle = network.register_forward_pre_hook(
        lambda _, inputs: starts.append(inputs[0].detach()) if inputs[0].requires_grad else None
    )
    run(mma, network, batch)
    handle.remove()
    assert (starts[0] - 0.5).abs()[:, 0].tolist() == pytest.approx([0.25, 0.5, 0.75])  # at least mineps
    run(mma, network, Batch(-batch.images[:1], batch.target[:1], torch.tensor([2])))
    assert mma.margins.values.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.01)


def test_a_sample_that_is_wrong_where_the_boundary_is_searched_is_wrong() -> None:
    """In the training forward both are right; in eval mode, in which MMA searches, the first is wrong.

    It is neither attacked nor moved, and the look at the clean images in eval mode is booked.
    """
    network = two_faced()
    batch = Batch(torch.tensor([[-1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 1]), torch.arange(2))
    mma = make(batch, steps=4, searches=5)
    mma.margins.update(torch.arange(2), torch.full((2,), 0.5))
    noisy = inputs_of(network, mma, batch)[-1]
    assert noisy.tolist() == batch.images.tolist()
    assert float(mma.margins.values[0]) == 0.0
    assert float(mma.margins.values[1]) > 1.0
    assert mma.statistics.passes.forward == 2 + 2 + 4 + 5 + 2
    figures = mma.on_epoch_end()
    assert (figures["clean_right"], figures["attacked"]) == (1.0, 0.5)


def test_right_by_argmax_is_not_enough() -> None:
    """Logits 1, 0.9, 0.9: the largest is the label's, but the log-sum-exp of the others is larger."""
    network = LinearClassifier(3, (1,))
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([1.0, 0.9, 0.9]))
    batch = Batch(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0]), torch.tensor([0]))
    mma = make(batch)
    loss = TASK.training_loss(network(batch.images), batch.target)
    assert run(mma, network, batch) == pytest.approx([loss.item()])  # one part: 1/3 + 2/3 of the clean loss
    assert float(mma.margins.values) == 0.0


def test_radius_0_leaves_the_clean_loss_and_the_wrong_samples() -> None:
    network, images, labels = problem(3, (2, 4))
    labels[:2] = (labels[:2] + 1) % 3
    batch = Batch(images, labels, torch.arange(6))
    mma = make(batch, eps=0.0, mineps=None)
    parts = list(mma.losses(network, batch))
    each = TASK.sample_loss(network(images), labels)
    wrong = torch.tensor([1, 1, 0, 0, 0, 0], dtype=torch.bool) | (TASK.soft_margin(network(images), labels) <= 0)
    assert len(parts) == 1
    assert bool(parts[0].loss == 1 / 3 * each.mean() + (1 - 1 / 3) * (wrong * each).mean())
    assert mma.on_epoch_end()["passes_per_sample"] == 3


def test_search_and_attack_leave_batch_norm_alone() -> None:
    """Two training forwards are all that its statistics see, on the images that are trained on."""
    one = toy("2 classes", "mma")
    batch = one.batch(torch.arange(6))
    with torch.no_grad():
        batch = Batch(batch.images, one.network(batch.images).argmax(1), batch.ids)
    twin = copy.deepcopy(one.network)
    mma = MMA(TASK, MMASettings(eps=0.5))
    mma.bind(SampleIds({"train": 12}), "cpu")
    for images in inputs_of(one.network, mma, batch):
        if images.shape == batch.images.shape:
            twin(images)
    found, expected = one.network.state_dict(), twin.state_dict()
    assert int(found["body.1.num_batches_tracked"]) == 3  # one more before the copy was made
    torch.testing.assert_close(found["body.1.running_var"], expected["body.1.running_var"])


@pytest.mark.parametrize(("clean_weight", "cost"), [(1 / 3, 2 * 4 + 6 + 5), (0.0, 2 * 4 + 4 + 5)])
def test_passes(clean_weight: float, cost: int) -> None:
    """All right: 2K + 6 + searches; OMMA's clean pass has no backward."""
    network, images, labels = problem(2, (2, 4))
    batch = Batch(images, labels, torch.arange(6))
    mma = make(batch, steps=4, searches=5, clean_weight=clean_weight)
    forwards = []
    network.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
    run(mma, network, batch)
    assert sum(forwards) == mma.statistics.passes.forward
    assert mma.on_epoch_end()["passes_per_sample"] == cost


def test_omma_has_no_clean_loss() -> None:
    batch = ones(0.375, -1.0)
    assert run(make(batch, clean_weight=0.0, searches=40), Line(), batch) == pytest.approx([entropy(0.0, -1.0) / 2])


def test_the_box_holds_and_the_boundary_is_found_inside_it() -> None:
    network, images, labels = problem(2, (2, 6))
    images = images.sigmoid()
    labels = network(images).argmax(1).detach()
    batch = Batch(images, labels, torch.arange(6))
    mma = make(batch, eps=4.0, box=(0.0, 1.0), searches=40)
    found = inputs_of(network, mma, batch)[-1]
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    moved = (found != images).flatten(1).any(1)
    assert bool(moved.any())
    torch.testing.assert_close(TASK.soft_margin(network(found), labels)[moved], torch.zeros(int(moved.sum())).double())


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation_is_trained_on_where_its_soft_dice_meets_the_threshold(dims: int) -> None:
    convolution = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 2, 1).double()
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([0.0, 8.0]).view(2, 1, *[1] * dims))
        convolution.bias.copy_(torch.tensor([0.0, -4.0]))  # type: ignore[union-attr]
    target = torch.zeros(3, 1, *[6] * dims, dtype=torch.long)
    target[:2, :, 1:4, 2:5] = 1  # the last one has no foreground: it cannot be scored
    task = SegmentationTask(lambda o, t: nn.functional.cross_entropy(o, t[:, 0]), SegmentationSettings())
    batch = Batch(target.double(), target, torch.arange(3))
    mma = make(batch, task, eps=0.9, norm="linf", searches=30)
    found = inputs_of(convolution, mma, batch)[-1]
    assert task.soft_margin(convolution(found), target)[:2].abs().max().item() < 1e-6
    assert bool((mma.margins.values[:2] > 0.2).all())
    assert bool((found[2] == batch.images[2]).all())
    assert float(mma.margins.values[2]) == 0


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="mineps: received 0.2, allowed is at most eps, here 0.1"):
        MMASettings(eps=0.1, mineps=0.2)
    with pytest.raises(InputError, match="clean_weight"):
        MMASettings(clean_weight=1.0)
    with pytest.raises(InputError, match="ids: received None"):
        list(MMA(TASK).losses(Line(), Batch(torch.ones(1, 1), torch.ones(1, dtype=torch.long))))


def test_a_smaller_eps_cuts_loaded_margins() -> None:
    batch = ones(9.0)
    mma = make(batch)
    run(mma, Line(), batch)
    smaller = make(batch, eps=0.5)
    smaller.load_state_dict(mma.state_dict())
    assert float(smaller.margins.values) == pytest.approx(1.05 * 0.5)

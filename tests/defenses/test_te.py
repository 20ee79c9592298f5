"""TE: the memory by hand, its weight and ramp, the attack on the sum, identities, segmentation, checkpoints."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.defenses.te import PRESETS, TE, TESettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask, SegmentationTask
from tests.defense_toys import toy
from tests.line_classifier import Line, ones, trained_on
from tests.linear_classifier import problem

TASK = ClassificationTask()


def make(count: int, task: Any = TASK, epoch: int = 1, **settings: Any) -> TE:
    """With the whole weight from epoch 1 on."""
    values = {"eps": 0.25, "norm": "linf", "steps": 4, "start": "clean", "ramp_start": 0.0,
              "ramp_end": 1.0, **settings}  # fmt: skip
    te = TE(task, TESettings(**values))
    te.bind(SampleIds({"train": count}), "cpu")
    te.on_epoch_start(epoch)
    return te


def run(te: TE | SAT, network: nn.Module, batch: Batch) -> float:
    (part,) = te.losses(network, batch)
    part.loss.backward()
    return part.loss.item()


def test_the_memory_is_a_bias_corrected_moving_average() -> None:
    network, images, labels = problem(3, (2, 4))
    first, second = Batch(images, labels, torch.arange(6)), Batch(images + 0.5, labels, torch.arange(6))
    te = make(6, momentum=0.75)
    run(te, network, first)
    run(te, network, second)
    p1, p2 = (network(b.images).softmax(1).detach() for b in (first, second))
    table = te.states["soft_labels"].values.double()
    rows = table[torch.arange(6), labels]
    torch.testing.assert_close(rows, 0.75 * 0.25 * p1 + 0.25 * p2, rtol=1e-6, atol=1e-7)
    assert float(table.sum()) == pytest.approx(float(rows.sum()))  # the rows of the other labels are empty
    soft = rows / rows.sum(1, keepdim=True)
    torch.testing.assert_close(soft, (0.75 * p1 + p2) / 1.75, rtol=1e-6, atol=1e-7)


def test_loss_by_hand() -> None:
    """Radius 0: the clean loss plus w times the squared distance, summed over the classes, from the soft label."""
    network, images, labels = problem(3, (2, 4))
    te = make(6, eps=0.0, weight=7.0, momentum=0.75)
    run(te, network, Batch(images + 0.5, labels, torch.arange(6)))
    found = run(te, network, Batch(images, labels, torch.arange(6)))
    p = network(images).softmax(1)
    soft = (0.75 * network(images + 0.5).softmax(1) + p) / 1.75
    expected = F.cross_entropy(network(images), labels) + 7 * (p - soft).square().sum(1).mean()
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_the_soft_labels_carry_no_gradient() -> None:
    network, images, labels = problem(3, (2, 4))
    batch = Batch(images, labels, torch.arange(6))
    te = make(6, eps=0.0)
    run(te, network, batch)  # p^ = p: the distance is 0 and so is its gradient, unless p^ moved along
    found = network.weight.grad
    (expected,) = torch.autograd.grad(F.cross_entropy(network(images), labels), network.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_attack_raises_the_sum() -> None:
    """x is right with p = 0.62, and was remembered with p = 0.95 (0.27): away from that is down (up)."""
    for before, direction in ((3.0, -1), (-1.0, 1)):
        te = make(1, weight=1000.0, momentum=0.99)
        for _ in range(50):
            te._remember(ones(before), Line()(ones(before).images))
        assert trained_on(te, ones(0.5)) == [0.5 + direction * 0.25]
    assert trained_on(make(1, weight=0.0), ones(0.5)) == [0.25]


def test_soft_labels_follow_the_ids() -> None:
    network, images, labels = problem(3, (2, 4))
    te, shuffled = make(6), make(6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for images_now in (images, images + 0.3):
        run(te, network, Batch(images_now, labels, torch.arange(6)))
        run(shuffled, network, Batch(images_now[order], labels[order], order))
    torch.testing.assert_close(te.states["soft_labels"].values, shuffled.states["soft_labels"].values)


@pytest.mark.parametrize("kind", ["9 classes", "segmentation 2D"])
@pytest.mark.parametrize(("settings", "epoch"), [({"weight": 0.0}, 5), ({"ramp_start": 3.0, "ramp_end": 4.0}, 2)])
def test_without_weight_and_before_the_ramp_it_is_sat(kind: str, settings: dict[str, Any], epoch: int) -> None:
    one, other = toy(kind, "te"), toy(kind, "te")
    te = make(12, one.task, epoch, start="ball", **settings)
    sat = SAT(one.task, SATSettings(eps=0.25, norm="linf", steps=4))
    batch = one.batch(torch.arange(6))
    assert run(te, one.network, batch) == run(sat, other.network, batch)
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert bool((mine.grad == theirs.grad).all())
    figures = te.on_epoch_end()
    assert figures["passes_per_sample"] == sat.on_epoch_end()["passes_per_sample"] == 2 * 4 + 3
    assert figures["soft_label_weight"] == 0.0
    assert "soft_labels" not in te.states


def test_passes_and_figures() -> None:
    network, images, labels = problem(3, (2, 4))
    te = make(6)
    run(te, network, Batch(images, labels, torch.arange(6)))
    figures = te.on_epoch_end()
    assert figures["passes_per_sample"] == 2 * 4 + 4
    assert figures["soft_label_weight"] == 30.0


def test_the_ramp() -> None:
    def weights(start: float, end: float, epochs: int = 200) -> list[float]:
        te = TE(TASK, TESettings(ramp_start=start, ramp_end=end))
        found = []
        for epoch in range(epochs):
            te.on_epoch_start(epoch, epochs)
            found.append(te.weight)
        return found

    assert weights(0.45, 0.75) == pytest.approx(weights(90.0, 150.0))
    # The authors: sigmoid_rampup(epoch, 90, 150) * 300 with epochs counted from 1, on the mean over ten classes.
    authors = [0.0 if e < 90 else 30 * math.exp(-5 * max(1 - (e - 90) / 60, 0) ** 2) for e in range(1, 201)]
    for preset in ({}, PRESETS["te_cifar"]):
        settings = TESettings(**preset)
        assert weights(settings.ramp_start, settings.ramp_end) == pytest.approx(authors)
    assert weights(0.5, 0.5, 10) == [0.0] * 5 + [30.0] * 5
    with pytest.raises(InputError, match="both shares below 1, or both epochs"):
        TESettings(ramp_end=150.0)
    with pytest.raises(InputError, match="ramp_start: received 0.445, allowed is a number of epochs .*on_epoch_start"):
        TE(TASK).weight  # noqa: B018  (nobody has said how long the training is)
    with pytest.raises(InputError, match="ramp_end: received 0.2, allowed is at least ramp_start"):
        TESettings(ramp_end=0.2)


def test_the_remembered_prediction_is_that_of_the_deployed_network() -> None:
    """Eval mode: BatchNorm's own statistics, which the pass leaves alone."""
    one = toy("2 classes", "te")
    batch = one.batch(torch.arange(6))
    before = copy.deepcopy(one.network)
    te = make(12)
    run(te, one.network, batch)
    expected = before.eval()(batch.images).softmax(1).detach()
    table = te.states["soft_labels"].values[:6]
    torch.testing.assert_close(table[torch.arange(6), batch.target], 0.1 * expected)
    assert int(one.network.state_dict()["body.1.num_batches_tracked"]) == 1


def segmentation(ignore: int | None = None) -> SegmentationTask:
    return SegmentationTask(lambda o, t: F.cross_entropy(o, t[:, 0].clamp(max=1)), ignore_label=ignore)


def test_segmentation_remembers_the_mean_prediction_for_each_label() -> None:
    """Four voxels: two of class 0, one of class 1, one ignored. Then a crop without class 1: its row stays."""
    p = torch.tensor([0.9, 0.7, 0.4, 0.1], dtype=torch.float64)  # of class 0
    logits = torch.stack([p, 1 - p]).log().view(1, 2, 2, 2)
    target = torch.tensor([0, 0, 1, 7]).view(1, 1, 2, 2)
    task = segmentation(ignore=7)
    te = make(1, task, momentum=0.5)
    batch = Batch(torch.zeros(1, 1, 2, 2), target, torch.tensor([0]))
    soft = te._remember(batch, logits)
    assert soft[0].tolist() == [pytest.approx([0.8, 0.2]), pytest.approx([0.4, 0.6])]
    found = te._apart(soft, logits, target)
    assert found.tolist() == pytest.approx([2 * (0.1**2 + 0.1**2 + 0) / 3])
    crop = Batch(batch.images, torch.zeros_like(target), batch.ids)
    again = te._remember(crop, logits)
    assert again[0].tolist() == [
        pytest.approx([(0.8 + 2 * 0.525) / 3, (0.2 + 2 * 0.475) / 3]),
        pytest.approx([0.4, 0.6]),
    ]


def test_a_label_never_seen_contributes_nothing() -> None:
    logits = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 1, 1]).view(1, 1, 2, 2)
    soft = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    p = logits.softmax(1)[0, 0, 0, 0]
    found = make(1, segmentation())._apart(soft, logits, target)
    torch.testing.assert_close(found, 2 * (p - 0.5).square()[None] / 4)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_memory_of_a_segmentation_does_not_see_augmentation(dims: int) -> None:
    """Mirrored and turned, image and label together, a sample says the same to its memory."""
    torch.manual_seed(0)
    network = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 3, 1)
    images = torch.randn(2, 1, *[4] * dims)
    target = torch.randint(0, 3, images.shape)
    tables = []
    for change in (lambda x: x, lambda x: x.flip(2), lambda x: x.rot90(1, (2, 3))):
        te = make(2, segmentation())
        te._remember(Batch(images, change(target), torch.arange(2)), network(change(images)))
        tables.append(te.states["soft_labels"].values)
    torch.testing.assert_close(tables[1], tables[0])
    torch.testing.assert_close(tables[2], tables[0])


def test_checkpoints_before_and_after_the_first_batch() -> None:
    network, images, labels = problem(3, (2, 4))
    batch = Batch(images, labels, torch.arange(6))
    te, resumed = make(6), make(6)
    resumed.load_state_dict(te.state_dict())  # before the ramp there is nothing to load
    run(te, network, batch)
    resumed.load_state_dict(te.state_dict())
    assert torch.equal(resumed.state_dict()["soft_labels"]["values"], te.states["soft_labels"].values)
    assert run(te, network, batch) == run(resumed, network, batch)


def test_another_network_or_data_set_is_refused() -> None:
    network, images, labels = problem(3, (2, 4))
    te = make(6)
    run(te, network, Batch(images, labels, torch.arange(6)))
    other, images, labels = problem(4, (2, 4))
    with pytest.raises(InputError, match="network: received '4 classes', allowed is 3 classes"):
        run(te, other, Batch(images, labels, torch.arange(6)))
    fewer = make(5)
    with pytest.raises(InputError, match="belongs to 6 other samples"):
        fewer.load_state_dict(te.state_dict())
    assert fewer.states == {}
    with pytest.raises(InputError, match="ids: received None"):
        list(make(6).losses(network, Batch(images, labels)))
    unbound = TE(TASK, TESettings(ramp_start=0.0, ramp_end=1.0))
    with pytest.raises(InputError, match="call the defence's bind"):
        run(unbound, other, Batch(images, labels, torch.arange(6)))


def test_the_sum_over_points_does_not_overflow_under_autocast() -> None:
    """Half precision ends at 65504; 90000 voxels of probability 1 are more."""
    target = torch.zeros(1, 1, 300, 300, dtype=torch.long)
    logits = torch.stack([torch.full((300, 300), 30.0), torch.zeros(300, 300)])[None]
    with torch.autocast("cpu", torch.float16):
        soft = make(1, segmentation())._remember(Batch(torch.zeros(1, 1, 300, 300), target, torch.tensor([0])), logits)
    torch.testing.assert_close(soft[0, 0], torch.tensor([1.0, 0.0]))

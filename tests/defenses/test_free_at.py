"""FreeAT: against the printed algorithm, the perturbation by hand, one backward per update, batches of other sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.free_at import FreeAT, FreeATSettings
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import toy
from tests.line_classifier import Line, inputs_of, ones
from tests.linear_classifier import LinearClassifier, problem

TASK = ClassificationTask()


def make(task: Any = TASK, **settings: Any) -> FreeAT:
    return FreeAT(task, FreeATSettings(**{"eps": 0.25, "norm": "linf", "replays": 3, **settings}))


def train(free: FreeAT, network: nn.Module, batch: Batch, lr: float = 0.1, scale: float = 1.0) -> None:
    """As a host: a scaled loss, gradients unscaled before the update."""
    optimizer = torch.optim.SGD(network.parameters(), lr / scale)
    optimizer.zero_grad()
    for part in free.losses(network, batch):
        (scale * part.loss).backward()
        if part.update:
            optimizer.step()
            optimizer.zero_grad()
    optimizer.step()


def test_the_printed_algorithm() -> None:
    """m updates of the weights per batch, each with the image's gradient at the weights before it."""
    network, images, labels = problem(3, (2, 4))
    other = LinearClassifier(3, (2, 4))
    free = make(relative_step=0.5)
    delta = torch.zeros_like(images)
    for x in (images, images.flip(0)):
        train(free, network, Batch(x, labels))
        for _ in range(3):
            attacked = (x + delta).requires_grad_()
            loss = F.cross_entropy(other(attacked), labels)
            *weights, image = torch.autograd.grad(loss, [*other.parameters(), attacked])
            delta = (delta + 0.125 * image.sign()).clamp(-0.25, 0.25)
            with torch.no_grad():
                for parameter, gradient in zip(other.parameters(), weights, strict=True):
                    parameter -= 0.1 * gradient
    torch.testing.assert_close(network.weight, other.weight)
    torch.testing.assert_close(free.perturbation, delta)


def test_the_perturbation_by_hand() -> None:
    """It is kept from replay to replay and from batch to batch, and ends at the radius."""
    free, network = make(relative_step=0.5), Line()
    assert [x.item() for x in inputs_of(network, free, ones(1.0))] == [1.0, 0.875, 0.75]
    assert [x.item() for x in inputs_of(network, free, ones(2.0))] == [1.75, 1.75, 1.75]


def test_one_forward_and_one_backward_per_update() -> None:
    free, network = make(), Line()
    updates = []
    for part in free.losses(network, ones(1.0, 2.0)):
        part.loss.backward()
        updates.append(part.update)
    assert updates == [True, True, False]
    assert free.statistics.passes.forward == free.statistics.passes.backward_full == 2 * 3
    assert free.statistics.passes.backward_input == 0
    assert free.on_epoch_end()["passes_per_sample"] == 3 * 3


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_scaled_loss_moves_the_images_alike(norm: str) -> None:
    found = []
    for scale in (1.0, 65536.0):
        network, images, labels = problem(3, (2, 4))
        free = make(norm=norm, unit="norm")
        train(free, network, Batch(images, labels), scale=scale)
        found.append((free.perturbation, network.weight))
    torch.testing.assert_close(found[0], found[1])


def test_smaller_larger_and_other_batches() -> None:
    free, network = make(replays=1), Line()
    inputs_of(network, free, ones(1.0, 1.0, 1.0))
    assert free.perturbation is not None
    assert free.perturbation[:, 0].tolist() == [-0.25] * 3
    free.perturbation[1:] = 0.125
    inputs_of(network, free, ones(1.0, 1.0))  # the last batch: the first two move, the third is kept
    assert free.perturbation[:, 0].tolist() == [-0.25, -0.125, 0.125]
    assert [x[:, 0].tolist() for x in inputs_of(network, free, ones(*[1.0] * 4))] == [[0.75, 0.875, 1.125, 1.0]]
    assert free.perturbation.shape == (4, 1)
    network, images, labels = problem(3, (2, 4))
    assert torch.equal(inputs_of(network, free, Batch(images, labels))[0], images)


@pytest.mark.parametrize("kind", ["9 classes", "segmentation 2D", "segmentation 3D"])
def test_one_replay_with_radius_0_is_standard_training(kind: str) -> None:
    one, other = toy(kind, "freeat"), toy(kind, "freeat")
    free = make(one.task, eps=0.0, replays=1)
    batch = one.batch(torch.arange(6))
    (part,) = free.losses(one.network, batch)
    part.loss.backward()
    loss = other.task.training_loss(other.network(batch.images), batch.target)
    loss.backward()
    assert bool(part.loss == loss)
    for mine, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert bool((mine.grad == theirs.grad).all())
    assert free.perturbation is None


@pytest.mark.parametrize("kind", ["segmentation 2D", "segmentation 3D"])
def test_radius_box_and_samples_without_foreground(kind: str) -> None:
    one = toy(kind, "freeat")
    batch = one.batch(torch.arange(6))
    for labels in batch.target:
        labels[0] = 0
    low, high = (float(v) for v in batch.images.aminmax())
    free = make(one.task, norm="l2", eps=0.1, box=(low, high))
    seen: list[Tensor] = []
    one.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    for _ in range(2):
        train(free, one.network, batch)
    delta = seen[-1] - batch.images
    size = free.threat.size(delta) / free.threat.scale(batch.images)
    assert float(size[0]) == 0
    assert float(size[1:].min()) > 0.05
    assert float(size.max()) <= 0.1 * (1 + 1e-5)
    assert low <= float(seen[-1].min()) <= float(seen[-1].max()) <= high


def test_resume_is_bit_for_bit() -> None:
    network, images, labels = problem(3, (2, 4))
    free, resumed = make(), make()
    resumed.load_state_dict(free.state_dict())  # nothing yet
    train(free, network, Batch(images, labels))
    saved = free.state_dict()
    twin = LinearClassifier(3, (2, 4))
    twin.load_state_dict(network.state_dict())
    train(free, network, Batch(images, labels))
    resumed.load_state_dict(saved)
    train(resumed, twin, Batch(images, labels))
    assert torch.equal(network.weight, twin.weight)


def test_losses_must_be_read_as_they_come() -> None:
    network, images, labels = problem(3, (2, 4))
    with pytest.raises(InputError, match="updates the weights several times per batch"):
        make()(network, images, labels)
    with pytest.raises(InputError, match="before backward was called on the one before"):
        make(replays=1)(network, images, labels)

"""LBGAT: loss and both gradients by hand, teacher in optimiser and checkpoint, identities, segmentation, passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.lbgat import LBGAT, LBGATSettings
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import optimizer_of, step, toy
from tests.line_classifier import inputs_of
from tests.linear_classifier import LinearClassifier, problem

TASK = ClassificationTask()


def make(network: nn.Module, teacher: nn.Module | None = None, task: Any = TASK, **settings: Any) -> LBGAT:
    values = {"eps": 0.25, "norm": "linf", "steps": 3, **settings}
    lbgat = LBGAT(task, LBGATSettings(**values), teacher=teacher)
    lbgat.attach(network)
    return lbgat


def weight_gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_loss_and_gradients_by_hand(beta: float) -> None:
    """The gradient of the distance flows into the teacher as well, and no label into the network."""
    network, images, labels = problem(3, (2, 4))
    teacher = LinearClassifier(3, (2, 4), seed=9)
    batch = Batch(images, labels)
    noisy = inputs_of(network, make(network, teacher, beta=beta), batch)[0]
    found = weight_gradients(network), weight_gradients(teacher)
    (part,) = make(network, copy.deepcopy(teacher), beta=beta).losses(network, batch)
    assert not torch.equal(noisy, images)

    twin, twin_teacher = problem(3, (2, 4))[0], LinearClassifier(3, (2, 4), seed=9)
    clean, attacked, taught = twin(images), twin(noisy), twin_teacher(images)
    expected = F.cross_entropy(taught, labels) + F.mse_loss(attacked, taught)
    divergence = (clean.softmax(1) * (clean.log_softmax(1) - attacked.log_softmax(1))).sum(1).mean()
    expected = expected + beta * divergence
    expected.backward()
    assert part.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for module, gradients in zip((twin, twin_teacher), found, strict=True):
        for mine, theirs in zip(gradients, weight_gradients(module), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_network_that_agrees_with_its_teacher_everywhere_learns_nothing() -> None:
    """Constant logits, equal for both: distance and divergence are 0, whatever the labels say."""
    network, images, labels = problem(3, (2, 4))
    with torch.no_grad():
        network.weight.zero_()
    lbgat = make(network)
    (part,) = lbgat.losses(network, Batch(images, labels))
    part.loss.backward()
    assert bool((network.bias.grad == 0).all())
    assert part.loss.item() == pytest.approx(F.cross_entropy(network(images), labels).item())


def test_without_an_attack_only_the_distance_is_left() -> None:
    network, images, labels = problem(3, (2, 4))
    teacher = LinearClassifier(3, (2, 4), seed=9)
    lbgat = make(network, teacher, eps=0.0)
    (part,) = lbgat.losses(network, Batch(images, labels))
    taught = teacher(images)
    assert bool(part.loss == F.cross_entropy(taught, labels) + (network(images) - taught).square().mean(1).mean())
    assert lbgat.on_epoch_end()["passes_per_sample"] == 6


@pytest.mark.parametrize(("beta", "cost"), [(6.0, 2 * 3 + 10), (0.0, 2 * 3 + 7)])
def test_passes(beta: float, cost: int) -> None:
    network, images, labels = problem(3, (2, 4))
    teacher = LinearClassifier(3, (2, 4), seed=9)
    lbgat = make(network, teacher, beta=beta)
    forwards: list[int] = []
    for module in (network, teacher):
        module.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
    for part in lbgat.losses(network, Batch(images, labels)):
        part.loss.backward()
    assert sum(forwards) == lbgat.statistics.passes.forward
    assert lbgat.on_epoch_end()["passes_per_sample"] == cost


def test_the_teacher_sees_clean_images_only() -> None:
    network, images, labels = problem(3, (2, 4))
    teacher = LinearClassifier(3, (2, 4), seed=9)
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    list(make(network, teacher).losses(network, Batch(images, labels)))
    assert len(seen) == 1
    assert torch.equal(seen[0], images)


def test_the_optimiser_trains_the_teacher_which_is_a_copy_of_its_own() -> None:
    one = toy("2 classes", "lbgat")
    optimizer = optimizer_of(one.network)
    count = len(optimizer.param_groups[0]["params"])
    lbgat = one.defense("lbgat")
    before = copy.deepcopy(one.network.state_dict())
    lbgat.attach(one.network, optimizer)
    assert isinstance(lbgat, LBGAT)
    assert lbgat.teacher is not None
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == 2 * count
    assert all(torch.equal(v, before[k]) for k, v in lbgat.teacher.state_dict().items())
    step(lbgat, one.network, optimizer, one.batch(torch.arange(6)))
    student, teacher = dict(one.network.named_parameters()), dict(lbgat.teacher.named_parameters())
    assert not any(torch.equal(teacher[k], before[k]) for k in ("head.weight", "body.0.weight"))
    assert not torch.equal(teacher["head.weight"], student["head.weight"])


def test_resume_is_bit_for_bit() -> None:
    """Two steps, or one, a checkpoint, and another: optimiser and teacher included."""
    states = []
    for resumes in (False, True):
        one = toy("2 classes", "lbgat")
        optimizer = optimizer_of(one.network)
        lbgat = one.defense("lbgat")
        lbgat.attach(one.network, optimizer)
        step(lbgat, one.network, optimizer, one.batch(torch.arange(6)))
        if resumes:
            saved = copy.deepcopy((one.network.state_dict(), optimizer.state_dict(), lbgat.state_dict()))
            one = toy("2 classes", "lbgat")
            optimizer = optimizer_of(one.network)
            lbgat = one.defense("lbgat")
            lbgat.attach(one.network, optimizer)
            one.network.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            lbgat.load_state_dict(saved[2])
        step(lbgat, one.network, optimizer, one.batch(torch.arange(6, 12)))
        states.append({**one.network.state_dict(), **{f"t.{k}": v for k, v in lbgat.state_dict()["teacher"].items()}})
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_a_saved_teacher_does_not_move_on() -> None:
    network, _, _ = problem(3, (2, 4))
    lbgat = make(network)
    saved = lbgat.state_dict()["teacher"]
    with torch.no_grad():
        for parameter in lbgat.teacher.parameters():  # type: ignore[union-attr]
            parameter.add_(1)
    assert torch.equal(saved["weight"], network.weight)


@pytest.mark.parametrize("kind", ["segmentation 2D", "segmentation 3D"])
def test_segmentation_compares_the_logits_of_all_resolutions(kind: str) -> None:
    one = toy(kind, "lbgat")
    teacher = copy.deepcopy(one.network)
    with torch.no_grad():
        teacher.fine.bias.add_(0.5)
        teacher.coarse.bias.add_(1.0)
    lbgat = make(one.network, teacher, one.task, eps=0.0)
    batch = one.batch(torch.arange(6))
    (part,) = lbgat.losses(one.network, batch)
    expected = one.task.training_loss(teacher(batch.images), batch.target) + (2 * 0.5**2 + 1.0**2) / 3
    assert part.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bad_teachers() -> None:
    network, images, labels = problem(3, (2, 4))
    with pytest.raises(InputError, match="teacher: received 'outputs"):
        list(make(network, LinearClassifier(4, (2, 4))).losses(network, Batch(images, labels)))
    with pytest.raises(InputError, match="call attach"):
        list(LBGAT(TASK).losses(network, Batch(images, labels)))
    mine, other = make(network), make(problem(4, (2, 4))[0])
    before = mine.state_dict()["teacher"]
    with pytest.raises(InputError, match="differs in bias, weight"):
        mine.load_state_dict(other.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in mine.state_dict()["teacher"].items())

"""FAB: the projection against solvers, distances in closed form, radius and box."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks import fab as fab_module
from monai_adv.attacks.fab import FAB, TargetedFAB, to_hyperplane
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask, SegmentationTask
from tests.conftest import LinearNetwork, LinearTask
from tests.linear_classifier import LinearClassifier, problem, seeded

TASK = ClassificationTask()
SHAPES = [(8,), (2, 4, 6), (1, 3, 4, 5)]


def random_plane(seed: int, entries: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """A point in [0, 1], a normal with a zero entry, and a gap of either sign that may be out of reach."""
    generator = seeded(seed)
    x = torch.rand(3, entries, generator=generator, dtype=torch.float64)
    x[0, 0], x[1, 1] = 0.0, 1.0
    normal = torch.randn(3, entries, generator=generator, dtype=torch.float64)
    normal[:, 2] = 0
    reach = normal.abs().sum(1)
    return x, normal, (torch.rand(3, generator=generator, dtype=torch.float64) * 2 - 1) * reach


def most_reachable(x: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The largest ``<normal, delta>`` towards the gap inside [0, 1]."""
    ends = torch.where((normal * gap[:, None]) > 0, 1 - x, -x)
    return (normal * ends).sum(1)


@settings(max_examples=60)
@given(st.integers(0, 100_000))
def test_linf_projection_equals_a_linear_program(seed: int) -> None:
    x, normal, gap = random_plane(seed)
    delta = to_hyperplane(x, normal, gap, "linf", (0.0, 1.0))
    limit = most_reachable(x, normal, gap)
    for i in range(len(x)):
        n, point = normal[i].numpy(), x[i].numpy()
        if abs(gap[i]) >= abs(limit[i]):  # out of reach: as near as the box allows
            assert normal[i] @ delta[i] == pytest.approx(limit[i].item())
            continue
        # minimise s with |delta_j| <= s, delta in the box, <n, delta> = gap
        d = len(n)
        bound = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
        solved = linprog(
            np.r_[np.zeros(d), 1], A_ub=bound, b_ub=np.zeros(2 * d), A_eq=[np.r_[n, 0]], b_eq=[gap[i].item()],
            bounds=[*zip(-point, 1 - point, strict=True), (0, None)],
        )  # fmt: skip
        assert normal[i] @ delta[i] == pytest.approx(gap[i].item(), abs=1e-9)
        assert delta[i].abs().max().item() == pytest.approx(solved.fun, abs=1e-8)
    assert ((x + delta) >= -1e-12).all()
    assert ((x + delta) <= 1 + 1e-12).all()
    assert delta[:, 2].eq(0).all()


@settings(max_examples=60)
@given(st.integers(0, 100_000))
def test_l2_projection_equals_the_multiplier_found_by_root_search(seed: int) -> None:
    """KKT: delta = clip(m * n) into the box for the one multiplier m that meets the plane."""
    x, normal, gap = random_plane(seed)
    delta = to_hyperplane(x, normal, gap, "l2", (0.0, 1.0))
    limit = most_reachable(x, normal, gap)
    for i in range(len(x)):
        n, point, need = normal[i].numpy(), x[i].numpy(), gap[i].item()
        if abs(need) >= abs(limit[i]):
            assert normal[i] @ delta[i] == pytest.approx(limit[i].item())
            continue

        def moved(m: float) -> Any:
            return np.clip(m * n, -point, 1 - point)  # noqa: B023

        m = brentq(lambda m: n @ moved(m) - need, -1e6, 1e6, xtol=1e-12)  # noqa: B023
        assert normal[i] @ delta[i] == pytest.approx(need, abs=1e-9)
        np.testing.assert_allclose(delta[i].numpy(), moved(m), atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_box_it_is_the_closed_form_and_a_wide_box_changes_nothing(norm: Any, dtype: torch.dtype) -> None:
    x, normal, gap = (v.to(dtype) for v in random_plane(0))
    expected = (
        normal * (gap / (normal**2).sum(1))[:, None]
        if norm == "l2"
        else normal.sign() * (gap / normal.abs().sum(1))[:, None]
    )
    torch.testing.assert_close(to_hyperplane(x, normal, gap, norm, None), expected)
    torch.testing.assert_close(to_hyperplane(x, normal, gap, norm, (-1e3, 1e3)), expected)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_degenerate_planes(norm: Any, box: Any) -> None:
    x = torch.full((4, 3), 0.5)
    normal = torch.tensor([[0.0, 0, 0], [1, 2, 3], [1e-30, 2e-30, 0], [1e30, 0, 0]])
    gap = torch.tensor([1.0, 0.0, 2e-31, 1e29])
    delta = to_hyperplane(x, normal, gap, norm, box)
    assert delta[:2].eq(0).all()  # no normal; already there
    # Neither underflow nor overflow of the squares.
    expected = [0.04, 0.08, 0.0] if norm == "l2" else [0.2 / 3, 0.2 / 3, 0.0]
    torch.testing.assert_close(delta[2], torch.tensor(expected))
    torch.testing.assert_close(delta[3], torch.tensor([0.1, 0.0, 0.0]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_distance_of_a_linear_classifier(norm: Any, classes: int, shape: tuple[int, ...]) -> None:
    network, images, labels = problem(classes, shape)
    nearest = network.distances(images, labels, norm).amin(1)
    result = FAB(Threat(norm, 100.0, unit="norm"), steps=15, until="lowest")(network, images, labels, TASK)
    torch.testing.assert_close(result.distance, nearest, rtol=2e-4, atol=0)
    assert (result.distance >= nearest * (1 - 1e-9)).all()
    assert result.wrong.all()
    assert not TASK.correct(network(result.images), labels).any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_distance_to_each_rival_of_a_linear_classifier(norm: Any) -> None:
    """The lead of a rival alone is followed, but whatever is wrong on the way counts."""
    network, images, labels = problem(4, (2, 5), 8)
    distances = network.distances(images, labels, norm)
    nearest = distances.argmin(1)
    aimed = FAB(Threat(norm, 100.0, unit="norm"), steps=15, until="lowest")(
        network, images, labels, TASK, rivals=nearest
    )
    torch.testing.assert_close(aimed.distance, distances.amin(1), rtol=2e-4, atol=0)
    all_targets = TargetedFAB(Threat(norm, 100.0, unit="norm"), targets=3, steps=15, until="lowest")(
        network, images, labels, TASK
    )
    torch.testing.assert_close(all_targets.distance, distances.amin(1), rtol=2e-4, atol=0)
    assert all_targets.passes.backward_input == 3 * 15 * 8  # one per step and rival
    assert all_targets.passes.forward <= 8 * (1 + 3 * (2 * 15 + 3))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_distance_within_a_box(norm: Any) -> None:
    """Score <w, x> + b in [0, 1]: the distance is that of the projection onto the plane cut by the box."""
    network = LinearNetwork((3, 4), bias=0.3)
    images = torch.rand(8, 3, 4, generator=seeded(1), dtype=torch.float64)
    score = network(images)[:, 0].detach()
    normal = network.weight.detach().expand_as(images)
    delta = to_hyperplane(images, normal, -score, norm, (0.0, 1.0))
    reached = (score + (normal * delta).flatten(1).sum(1)).abs() < 1e-9
    threat = Threat(norm, 100.0, box=(0.0, 1.0), unit="norm")
    result = FAB(threat, steps=40, until="lowest")(network, images, score.sign(), LinearTask())
    assert reached.any()
    torch.testing.assert_close(result.distance[reached], threat.size(delta)[reached], rtol=3e-3, atol=0)
    assert result.distance[~reached].eq(torch.inf).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1 + 1e-12


def test_only_images_within_the_radius_count() -> None:
    network, images, labels = problem(3, (6,), 6)
    nearest = network.distances(images, labels, "l2").amin(1)
    radius = nearest * torch.tensor([0.9, 1.1, 0.99, 1.01, 0.5, 3.0], dtype=torch.float64)
    result = FAB(Threat("l2", 1.0, unit="norm"), steps=30)(network, images, labels, TASK, radius=radius)
    assert result.wrong.tolist() == [False, True, False, True, False, True]
    moved = (result.images - images).norm(dim=1)
    assert (moved <= radius * (1 + 1e-9)).all()
    assert torch.equal(result.wrong, ~TASK.correct(network(result.images), labels))
    torch.testing.assert_close(result.margin, TASK.margin(network(result.images), labels))
    # Those beyond the radius: their distance is known all the same.
    torch.testing.assert_close(result.distance[~result.wrong], nearest[~result.wrong], rtol=2e-4, atol=0)


@settings(max_examples=25)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(0, 2),
    box=st.booleans(),
    shape=st.sampled_from([(5,), (2, 3, 4)]),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_budget_and_box_hold(
    norm: Any, eps: float, box: bool, shape: tuple[int, ...], restarts: int, seed: int
) -> None:
    network = LinearClassifier(3, shape, seed, torch.float32)
    images = torch.rand(4, *shape, generator=seeded(seed))
    threat = Threat(norm, eps, box=(0, 1) if box else None, unit="norm")
    labels = torch.tensor([0, 1, 2, 0])
    result = FAB(threat, steps=5, restarts=restarts)(network, images, labels, TASK, generator=seeded(seed))
    assert (threat.size(result.images - images) <= eps * (1 + 1e-5) + 1e-6).all()
    if box:
        assert result.images.min() >= 0
        assert result.images.max() <= 1 + 1e-6
    assert (result.distance[result.wrong] <= eps).all()


def test_wrong_on_the_clean_image_is_distance_zero_and_costs_one_forward() -> None:
    network, images, labels = problem(3, (4,), 3)
    result = FAB(Threat("l2", 1.0, unit="norm"), steps=9, until="lowest")(network, images, (labels + 1) % 3, TASK)
    assert result.distance.eq(0).all()
    assert torch.equal(result.images, images)
    assert result.passes == Passes(forward=3)


def test_passes_of_a_full_run() -> None:
    network, images, labels = problem(4, (4,), 2)
    attack = FAB(Threat("l2", 1e-6, unit="norm"), steps=6, restarts=2, classes=4)
    result = attack(network, images, labels, TASK, generator=seeded())
    assert result.passes == Passes(2 * attack.most_passes().forward, 2 * attack.most_passes().backward_input)
    assert attack.most_passes() == Passes(forward=2 * (6 * 2 + 3), backward_input=2 * 6 * 3)


def test_attacked_channels_only() -> None:
    network, images, labels = problem(2, (2, 5), 4)
    threat = Threat("l2", 100.0, channels=(1,), unit="norm")
    result = FAB(threat, steps=15, until="lowest")(network, images, labels, TASK)
    assert torch.equal(result.images[:, 0], images[:, 0])
    gap = network.weight[0, 1] - network.weight[1, 1]
    logits = network(images).detach()
    torch.testing.assert_close(
        result.distance, (logits[:, 0] - logits[:, 1]).abs() / gap.norm().detach(), rtol=2e-4, atol=0
    )


def curved(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, classes)).double()


def test_restarts_only_come_closer_and_seeds_decide_them() -> None:
    network = curved()
    network[0].weight.data *= 6  # many boundaries
    images = torch.randn(12, 6, generator=seeded(2), dtype=torch.float64)
    labels = network(images).argmax(1)
    one = FAB(Threat("linf", 1.0), steps=2, until="lowest")
    three = FAB(Threat("linf", 1.0), steps=2, until="lowest", restarts=3)
    first = one(network, images, labels, TASK).distance
    again, same, other = (three(network, images, labels, TASK, generator=seeded(s)).distance for s in (1, 1, 2))
    assert (again <= first).all()
    assert torch.equal(again, same)
    assert not torch.equal(again, other)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    network = curved()
    images = torch.randn(12, 6, generator=seeded(2), dtype=torch.float64)
    labels = network(images).argmax(1)
    attack = FAB(Threat("l2", 0.4, unit="norm"), steps=20)
    whole = attack(network, images, labels, TASK)
    assert 0 < whole.wrong.sum() < 12
    some = torch.tensor([7, 2, 9])
    part = attack(network, images[some], labels[some], TASK)
    torch.testing.assert_close(part.images, whole.images[some], rtol=0, atol=1e-10)
    torch.testing.assert_close(part.distance, whole.distance[some], rtol=1e-9, atol=0)


def test_when_finished_samples_leave_does_not_change_who_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    network = curved()
    images = torch.randn(12, 6, generator=seeded(2), dtype=torch.float64)
    labels = network(images).argmax(1)
    attack = FAB(Threat("l2", 0.4, unit="norm"), steps=20)
    expected = attack(network, images, labels, TASK)
    monkeypatch.setattr(fab_module, "sync_interval", lambda device: 7)
    result = attack(network, images, labels, TASK)
    assert torch.equal(result.wrong, expected.wrong)
    right = ~result.wrong
    torch.testing.assert_close(result.distance[right], expected.distance[right], rtol=1e-9, atol=0)


def test_segmentation_has_one_boundary_and_reaches_its_threshold() -> None:
    """Voxels cross one by one; the soft slope, spread over all of them, ends within twice the optimum."""
    network = nn.Conv1d(1, 2, 1, bias=False).double()
    network.weight.data = torch.tensor([[[0.0]], [[2.0]]], dtype=torch.float64)
    images = torch.cat([torch.linspace(0.2, 1.0, 10), torch.full((10,), -1.0)]).double().view(1, 1, 20)
    target = (images > 0).long()
    task = SegmentationTask(lambda o, t: o.mean())
    result = FAB(Threat("l2", 100.0, unit="norm"), steps=40, until="lowest")(network, images, target, task)
    assert result.wrong.item()
    assert not task.correct(network(result.images), target).item()
    # Dice 2 TP / (TP + 10) <= 0.6 needs TP <= 4: the six nearest voxels must cross.
    optimum = torch.linspace(0.2, 1.0, 10)[:6].norm().item()
    assert optimum <= result.distance.item() <= 2 * optimum


def test_dead_gradients_are_counted_and_network_left_as_found() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Threshold(100.0, 0.0), nn.Linear(4, 2), nn.Dropout(0.5))
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(3, 4, generator=seeded())
    labels = network.eval()(images).argmax(1)
    network.train()
    result = FAB(Threat("l2", 1.0, unit="norm"), steps=3)(network, images, labels, TASK)
    assert result.dead.all()
    assert torch.equal(result.images, images)
    assert result.distance.eq(torch.inf).all()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("restarts", 0), ("classes", 1), ("alpha_max", 1.5), ("eta", 0.9), ("beta", 1.0),
        ("until", "never"), ("mode", "test"),
    ],
)  # fmt: skip
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(InputError) as error:
        FAB(Threat("l2", 1.0, unit="norm"), **{name: value})
    assert f"{name}: received {value!r}" in str(error.value)


def test_calls_are_checked() -> None:
    network, images, labels = problem(3, (4,), 2)
    with pytest.raises(InputError) as error:
        FAB(Threat("l2", 1.0, unit="norm"), restarts=2)(network, images, labels, TASK)
    assert "generator" in str(error.value)
    with pytest.raises(InputError) as error:
        TargetedFAB(Threat("l2", 1.0, unit="norm"), targets=3)(network, images, labels, TASK)
    assert "targets: received 3, allowed is at most 2" in str(error.value)
    segmentation, network = SegmentationTask(lambda o, t: o.mean()), nn.Conv1d(1, 2, 1)
    network.bias.data = torch.tensor([-9.0, 9.0])
    volume, target = torch.ones(1, 1, 6), torch.ones(1, 1, 6, dtype=torch.long)
    with pytest.raises(InputError) as error:
        FAB(Threat("l2", 1.0, unit="norm"))(network, volume, target, segmentation, rivals=torch.zeros(1, 6).long())
    assert "rivals" in str(error.value)


def test_compiled_network_with_padded_batches_gives_the_same_attack() -> None:
    network = curved()
    images = torch.randn(11, 6, generator=seeded(2), dtype=torch.float64)
    labels = network(images).argmax(1)
    torch._dynamo.reset()
    attack = FAB(Threat("l2", 0.4, unit="norm"), steps=8)
    expected = attack(network, images, labels, TASK)
    result = attack(torch.compile(network, backend="eager"), images, labels, TASK)
    assert 0 < result.wrong.sum() < 11
    torch.testing.assert_close(result.images, expected.images, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.distance, expected.distance, rtol=1e-9, atol=0)

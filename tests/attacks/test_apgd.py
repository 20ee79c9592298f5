"""APGD: closed forms, the step control by hand, budgets, early leaving."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks import apgd as apgd_module
from monai_adv.attacks import losses
from monai_adv.attacks.apgd import APGD, TargetedAPGD, _Search, checkpoints
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask, SegmentationSettings, SegmentationTask
from tests.conftest import LinearNetwork, LinearTask
from tests.linear_classifier import LinearClassifier, problem, seeded

SHAPES = [(8,), (2, 4, 6), (1, 3, 4, 5)]
TASK = ClassificationTask()


def curved(shape: tuple[int, ...] = (12,), classes: int = 5, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    count = int(torch.tensor(shape).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(count, 24), nn.Tanh(), nn.Linear(24, classes)).to(dtype)


def curved_problem(count: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    network = curved()
    images = torch.randn(count, 12, generator=seeded(3), dtype=torch.float64)
    return network, images, network(images).argmax(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", ["clean", "ball", "surface"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_network_has_the_closed_form(shape: tuple[int, ...], start: Any, norm: Any) -> None:
    network = LinearNetwork(shape)
    images = torch.randn(5, *shape, generator=seeded(1), dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    attack = APGD(Threat(norm, 0.3, unit="norm"), steps=40, until="lowest", start=start)
    result = attack(network, images, target, LinearTask(), generator=seeded())
    w = network.weight.detach()
    unit = w / w.norm() if norm == "l2" else w.sign()
    expected = images - 0.3 * target.view(-1, *[1] * len(shape)) * unit
    torch.testing.assert_close(result.images, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.margin, LinearTask().margin(network(result.images), target))


def test_box_cuts_the_linear_optimum_voxel_by_voxel() -> None:
    network = LinearNetwork((2, 5))
    images = torch.rand(6, 2, 5, generator=seeded(1), dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    attack = APGD(Threat("linf", 0.4, box=(0, 1)), steps=10, until="lowest")
    result = attack(network, images, target, LinearTask(), generator=seeded())
    expected = (images - 0.4 * target[:, None, None] * network.weight.sign()).clamp(0, 1)
    torch.testing.assert_close(result.images, expected)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr, None])
def test_nothing_is_lost_below_the_distance_and_two_classes_are_lost_beyond_it(norm: Any, loss: Any) -> None:
    attack = APGD(Threat(norm, 1.0, unit="norm"), loss=loss)
    for classes, factor, lost in ((3, 0.99, False), (2, 0.99, False), (2, 1.01, True)):
        if classes == 2 and loss is losses.dlr:
            continue  # not defined
        network, images, labels = problem(classes, (3, 4), 12)
        radius = factor * network.distances(images, labels, norm).amin(1)
        result = attack(network, images, labels, TASK, radius=radius, generator=seeded())
        assert result.wrong.eq(lost).all()


def test_checkpoints_by_hand() -> None:
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    # 20 steps: the first period is int(4.4) = 4, shortened by int(0.6) -> 1, never below int(1.2) = 1.
    assert checkpoints(20) == {4: 4, 7: 3, 9: 2, 10: 1, **{k: 1 for k in range(11, 21)}}
    assert checkpoints(1) == {1: 1}


def observed(search: _Search, values: list[float]) -> None:
    """Feed the losses of iterates to one sample, its perturbation numbered after the iterate."""
    for value in values:
        search.delta = search.delta + 1
        search.observe(torch.tensor([value]), search.delta * 10)


def one_sample() -> _Search:
    search = _Search.begin(torch.tensor([0]), torch.zeros(1, 1), torch.ones(1), torch.zeros(1, 1), relative_step=2.0)
    search.observe(torch.tensor([0.0]), torch.zeros(1, 1))
    return search


def test_step_is_kept_while_more_than_rho_of_the_steps_raise_the_loss() -> None:
    search = one_sample()
    observed(search, [1.0, 2.0, 1.5, 3.0, 4.0])  # 4 of 5 rose, 0.75 * 5 = 3.75
    search.control_step(5, 0.75)
    assert (search.step.item(), search.halved.item(), search.delta.item()) == (2.0, False, 5.0)


def test_step_is_halved_and_the_search_goes_back_to_the_best_point() -> None:
    search = one_sample()
    observed(search, [1.0, 5.0, 2.0, 3.0])  # exactly 3 = 0.75 * 4 rose: not more
    search.control_step(4, 0.75)
    assert (search.step.item(), search.halved.item()) == (1.0, True)
    assert (search.delta.item(), search.gradient.item()) == (2.0, 20.0)  # x_max and its gradient
    assert search.loss.item() == 3.0  # the next iterate rises above the last one, not above x_max
    assert search.increases.item() == 0


def test_second_condition_asks_for_a_new_best_only_where_the_step_was_not_halved_before() -> None:
    search = one_sample()
    observed(search, [1.0, 9.0, -5.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # 7 of 8 rose: kept
    search.control_step(8, 0.75)
    assert (search.step.item(), search.halved.item()) == (2.0, False)
    observed(search, [6.0, 7.0, 8.0, 8.5])  # all rose, the best is still 9
    search.control_step(4, 0.75)
    assert (search.step.item(), search.halved.item(), search.delta.item()) == (1.0, True, 2.0)
    observed(search, [8.6, 8.7, 8.8, 8.9])  # the same again, but it was halved just now
    search.control_step(4, 0.75)
    assert (search.step.item(), search.halved.item()) == (1.0, False)


def test_first_checkpoint_only_counts_increases() -> None:
    search = one_sample()
    search.best_loss = torch.tensor([100.0])  # a start that is never reached again
    observed(search, [1.0, 2.0, 3.0, 4.0])
    search.control_step(4, 0.75)
    assert search.step.item() == 2.0


def test_move_by_hand() -> None:
    """eta 0.4, momentum 0.75: z = delta + 0.4 sign(g); the rest of the last move is a quarter of it."""
    search = _Search.begin(
        torch.tensor([0]), torch.zeros(1, 2), torch.ones(1), torch.tensor([[0.5, 0.0]]), relative_step=0.4
    )
    search.gradient = torch.tensor([[3.0, -1.0]])
    threat = Threat("linf", 1.0)
    assert not search.move(threat, 1.0).item()
    torch.testing.assert_close(search.delta, torch.tensor([[0.9, -0.4]]))
    search.move(threat, 0.75)
    # z = (1, -0.8) after projection; 0.9 + 0.75 * 0.1 + 0.25 * 0.4 = 1.075 -> 1; -0.4 - 0.75 * 0.4 - 0.25 * 0.4
    torch.testing.assert_close(search.delta, torch.tensor([[1.0, -0.8]]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_surface_start_has_the_full_size_and_a_spread_of_entries(norm: Any) -> None:
    threat = Threat(norm, 0.7, channels=(1,), unit="norm")
    delta = APGD(threat)._start(torch.zeros(4, 2, 9, 7), torch.full((4,), 0.7), seeded())
    torch.testing.assert_close(threat.size(delta), torch.full((4,), 0.7))
    assert delta[:, 0].eq(0).all()
    assert len(delta[0, 1].abs().unique()) == 63  # not corners


@settings(max_examples=40)
@given(
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(0, 3),
    box=st.booleans(),
    start=st.sampled_from(["surface", "ball", "clean"]),
    shape=st.sampled_from([(5,), (2, 3, 4), (1, 2, 3, 2)]),
    until=st.sampled_from(["wrong", "lowest"]),
    seed=st.integers(0, 1000),
)
def test_budget_and_box_hold(
    norm: Any, eps: float, box: bool, start: Any, shape: tuple[int, ...], until: Any, seed: int
) -> None:
    network = LinearClassifier(3, shape, seed, torch.float32)
    images = torch.rand(4, *shape, generator=seeded(seed))
    threat = Threat(norm, eps, box=(0, 1) if box else None, unit="norm")
    attack = APGD(threat, steps=7, until=until, start=start, loss=losses.dlr)
    result = attack(network, images, torch.tensor([0, 1, 2, 0]), TASK, generator=seeded(seed))
    assert (threat.size(result.images - images) <= eps * (1 + 1e-5) + 1e-6).all()
    if box:
        assert result.images.min() >= 0
        assert result.images.max() <= 1 + 1e-6
    assert torch.equal(result.wrong, ~TASK.correct(network(result.images), torch.tensor([0, 1, 2, 0])))


def test_radius_per_sample_and_radius_zero() -> None:
    network, images, labels = problem(3, (7,), 5)
    radius = torch.tensor([0.0, 0.1, 0.2, 0.3, 5.0], dtype=torch.float64)
    attack = APGD(Threat("l2", 1.0, unit="norm"), steps=20, until="lowest")
    result = attack(network, images, labels, TASK, radius=radius, generator=seeded())
    torch.testing.assert_close((result.images - images).norm(dim=1), radius, atol=1e-6, rtol=0)
    assert torch.equal(result.images[0], images[0])


def test_a_given_start_is_projected_and_makes_the_attack_deterministic() -> None:
    network, images, labels = curved_problem(6)
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    attack = APGD(Threat("l2", 0.5, unit="norm"), steps=5, until="lowest")
    start = torch.ones_like(images)
    first = attack(network, images, labels, TASK, start=start)
    torch.testing.assert_close(seen[0] - images, start * 0.5 / 12**0.5)
    assert torch.equal(first.images, attack(network, images, labels, TASK, start=start).images)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    network, images, labels = curved_problem()
    start = torch.randn(images.shape, generator=seeded(5), dtype=torch.float64)
    attack = APGD(Threat("linf", 0.3), steps=30)
    whole = attack(network, images, labels, TASK, start=start)
    assert 0 < whole.wrong.sum() < len(images)
    some = torch.tensor([20, 3, 11, 7])
    part = attack(network, images[some], labels[some], TASK, start=start[some])
    torch.testing.assert_close(part.images, whole.images[some], rtol=0, atol=1e-12)
    assert torch.equal(part.wrong, whole.wrong[some])


@pytest.mark.parametrize("interval", [2, 7])
def test_when_finished_samples_leave_does_not_change_who_is_wrong(
    interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images, labels = curved_problem()
    attack = APGD(Threat("linf", 0.3), steps=30)
    expected = attack(network, images, labels, TASK, generator=seeded())
    monkeypatch.setattr(apgd_module, "sync_interval", lambda device: interval)
    result = attack(network, images, labels, TASK, generator=seeded())
    assert torch.equal(result.wrong, expected.wrong)
    right = ~result.wrong
    assert 0 < right.sum() < len(right)
    torch.testing.assert_close(result.images[right], expected.images[right], rtol=0, atol=1e-12)
    assert result.passes.forward > expected.passes.forward


def test_passes_by_hand() -> None:
    """The start is judged first; who is wrong leaves before any gradient, the last iterate has no gradient."""
    network, images, labels = problem(2, (4,), 3)
    distance = network.distances(images, labels, "l2").amin(1)
    radius = distance * torch.tensor([0.5, 2.0, 0.5], dtype=torch.float64)
    attack = APGD(Threat("l2", 1.0, unit="norm"), steps=10, start="clean", loss=losses.margin)
    result = attack(network, images, labels, TASK, radius=radius)
    assert result.wrong.tolist() == [False, True, False]
    # Clean look at 3, a step of twice the radius: sample 1 is wrong at iterate 1 and leaves with its second gradient.
    assert result.passes == Passes(forward=2 * 11 + 2, backward_input=2 * 10 + 2)
    assert attack.most_passes() == Passes(forward=11, backward_input=10)
    wrong_labels = 1 - labels
    result = attack(network, images, wrong_labels, TASK, radius=radius)
    assert result.passes == Passes(forward=3, backward_input=0)
    assert torch.equal(result.images, images)


def test_stronger_than_one_step_and_the_image_is_the_strongest_seen() -> None:
    network, images, labels = curved_problem()
    margins: list[Tensor] = []
    network.register_forward_hook(lambda m, i, o: margins.append(TASK.margin(o, labels)))
    result = APGD(Threat("l2", 0.6, unit="norm"), steps=25, until="lowest")(
        network, images, labels, TASK, generator=seeded()
    )
    torch.testing.assert_close(result.margin, torch.stack(margins).amin(0))
    assert (result.margin <= margins[1]).all()


def test_same_seed_same_result_and_another_seed_another_start() -> None:
    network, images, labels = curved_problem(6)
    attack = APGD(Threat("l2", 0.3, unit="norm"), steps=1, until="lowest")
    one, again, other = (attack(network, images, labels, TASK, generator=seeded(s)).images for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_network_is_left_as_found() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    network[2].eval()
    network[1].weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    stream = torch.get_rng_state()
    APGD(Threat("l2", 0.5, unit="norm"), steps=3, until="lowest", mode="train")(
        network, torch.randn(4, 12, generator=seeded()), torch.tensor([0, 1, 2, 0]), TASK, generator=seeded()
    )
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert torch.equal(stream, torch.get_rng_state())
    assert [m.training for m in network] == [True, True, False, True, True]
    assert [p.requires_grad for p in network[1].parameters()] == [False, True]
    assert all(p.grad is None for p in network.parameters())


def test_dead_gradients_and_broken_outputs_are_counted() -> None:
    class Planted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x[:, 0] + 5, x[:, 1]], 1)
            steps = torch.stack([logits[0].round(), logits[1]])  # sample 0 has no gradient
            return torch.where(torch.tensor([[True], [False]]), steps.detach() + 0 * x.sum(), logits)

    images = torch.zeros(2, 2)
    result = APGD(Threat("l2", 0.1, unit="norm"), steps=5, loss=losses.margin)(
        Planted(), images, torch.tensor([0, 0]), TASK, generator=seeded()
    )
    assert result.dead.tolist() == [True, False]
    broken = APGD(Threat("l2", 0.1, unit="norm"), steps=5)(
        nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.Threshold(2.0, torch.nan)), images, torch.tensor([0, 0]), TASK,
        generator=seeded(),
    )  # fmt: skip
    assert broken.broken.all()
    assert broken.wrong.all()
    assert broken.margin.eq(-torch.inf).all()


def test_eot_averages_gradients_and_outputs() -> None:
    """A network whose gradient for the first entry is right on average and wrong in every second pass."""

    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            factor = 3.0 if self.calls % 2 == 0 else -1.0  # mean 1
            return torch.stack([torch.zeros_like(x[:, 0]), factor * x[:, 0] - 1.0], 1)

    attack = APGD(Threat("linf", 0.5), steps=3, loss=losses.margin, start="clean", until="lowest", eot=2)
    network = Alternating()
    result = attack(network, torch.zeros(2, 1), torch.tensor([0, 0]), TASK)
    torch.testing.assert_close(result.images, torch.full((2, 1), 0.5))
    torch.testing.assert_close(result.margin, torch.full((2,), 0.5))  # of the mean output, 0 - (0.5 - 1)
    assert result.passes == Passes(forward=2 * 2 * 4, backward_input=2 * 2 * 3)
    assert network.calls == 2 * 4


def test_eot_of_a_fixed_network_changes_nothing() -> None:
    network, images, labels = curved_problem(6)
    attack = APGD(Threat("l2", 0.3, unit="norm"), steps=12)
    once = attack(network, images, labels, TASK, generator=seeded())
    thrice = dataclasses.replace(attack, eot=3)(network, images, labels, TASK, generator=seeded())
    torch.testing.assert_close(once.images, thrice.images, rtol=0, atol=1e-9)


def test_segmentation_with_deep_supervision_and_points_losses() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.full = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, x: Tensor) -> list[Tensor]:
            full = self.full(x)
            return [full, nn.functional.avg_pool2d(full, 2)]

    network = Heads().double()
    images = torch.randn(3, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    labels = network(images)[0].argmax(1, keepdim=True)
    task = SegmentationTask(lambda o, t: o[0].mean(), SegmentationSettings(threshold=0.6))
    targets = [labels, labels[:, :, ::2, ::2]]
    for loss in (None, losses.cross_entropy, losses.margin):
        for eot in (1, 2):
            attack = APGD(Threat("l2", 4.0, unit="norm"), steps=20, loss=loss, until="lowest", eot=eot)
            result = attack(network, images, targets, task, generator=seeded())
            dice = result.margin + 0.6
            torch.testing.assert_close(dice, task.dice(network(result.images), targets).nanmean(1).to(dice))
            assert (dice < 0.8).all()  # 1 on the clean images
            assert (Threat("l2", 4.0, unit="norm").size(result.images - images) <= 4 * (1 + 1e-9)).all()
    per_voxel = TargetedAPGD(Threat("l2", 4.0, unit="norm"), 2, losses.targeted_margin, steps=10, until="lowest")
    assert (per_voxel(network, images, targets, task, generator=seeded()).margin < 0.2).all()


def test_a_finished_segmentation_leaves_at_dice_zero() -> None:
    network = nn.Conv1d(1, 2, 1, bias=False).double()
    network.weight.data = torch.tensor([[[0.0]], [[1.0]]], dtype=torch.float64)
    images = torch.ones(2, 1, 6, dtype=torch.float64)
    task = SegmentationTask(lambda o, t: o.mean())
    radius = torch.tensor([1.5, 0.5], dtype=torch.float64)
    attack = APGD(Threat("linf", 1.0), steps=10, until="lowest", start="clean")
    result = attack(network, images, torch.ones(2, 1, 6, dtype=torch.long), task, radius=radius)
    assert result.wrong.tolist() == [True, False]
    assert result.margin[0].item() == pytest.approx(task.lowest_margin)
    assert result.passes.forward == 2 + 2 + 9  # the first left at iterate 1


def test_targets_are_the_most_likely_wrong_classes_one_after_the_other() -> None:
    """A boundary with one class only lies within the radius: the attack needs exactly that target."""
    network = LinearClassifier(4, (4,))
    network.weight.data = torch.eye(4, dtype=torch.float64)
    network.bias.data.zero_()
    network.weight.data[3] *= 10  # steep: near although its logit is the smallest
    images = torch.tensor([[3.0, 2.0, 1.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0])
    threat = Threat("l2", 0.5, unit="norm")  # distance to class 3: 13 / |(-1, 10)| = 1.29; to class 1: 0.71
    distance = network.distances(images, labels, "l2")[0]
    radius = torch.tensor([1.5], dtype=torch.float64)
    assert distance[3] < 1.5 < distance[2] * 1.5
    aims = []
    real = losses.targeted_margin

    def spy(points: Any, progress: float) -> Tensor:
        aims.append(points.rivals.item())
        return real(points, progress)

    TargetedAPGD(threat, 3, spy, steps=3, until="lowest")(
        network, images, labels, TASK, radius=radius, generator=seeded()
    )
    assert list(dict.fromkeys(aims)) == [1, 2, 3]
    aims.clear()
    result = TargetedAPGD(threat, 3, spy, steps=20)(network, images, labels, TASK, radius=radius, generator=seeded())
    assert result.wrong.item()
    assert set(aims) == {1}  # the first target was enough


def test_targeted_attack_of_a_linear_classifier_finds_its_distance() -> None:
    network, images, labels = problem(5, (3, 4), 10)
    for norm in ("l2", "linf"):
        nearest = network.distances(images, labels, norm).amin(1)
        attack = TargetedAPGD(Threat(norm, 1.0, unit="norm"), targets=4, steps=50)  # type: ignore[arg-type]
        for factor, lost in ((0.99, False), (1.03, True)):
            result = attack(network, images, labels, TASK, radius=factor * nearest, generator=seeded())
            assert result.wrong.eq(lost).all()
        assert result.passes.forward <= 10 * attack.most_passes().forward


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps: received 0"),
        ({"eot": 0}, "eot: received 0"),
        ({"relative_step": 0.0}, "relative_step: received 0.0"),
        ({"momentum": 1.5}, "momentum: received 1.5"),
        ({"rho": 0.0}, "rho: received 0.0"),
        ({"until": "never"}, "until: received 'never'"),
        ({"start": "sphere"}, "start: received 'sphere'"),
        ({"mode": "test"}, "mode: received 'test'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        APGD(Threat("l2", 1.0, unit="norm"), **settings)
    assert says in str(error.value)


def test_calls_are_checked() -> None:
    network, images, labels = problem(3, (4,), 2)
    threat = Threat("l2", 1.0, unit="norm")
    cases: list[tuple[str, Any]] = [
        ("generator", lambda: APGD(threat)(network, images, labels, TASK)),
        ("start", lambda: APGD(threat)(network, images, labels, TASK, start=images[:1])),
        ("rivals", lambda: APGD(threat)(network, images, labels, TASK, generator=seeded(), rivals=labels[:1])),
        ("targets", lambda: TargetedAPGD(threat, 3)(network, images, labels, TASK, generator=seeded())),
        ("targets", lambda: TargetedAPGD(threat, 0)),
        ("targeted_dlr", lambda: TargetedAPGD(threat, 2)(network, images, labels, TASK, generator=seeded())),
    ]
    for name, call in cases:
        with pytest.raises(InputError) as error:
            call()
        assert name in str(error.value)


def test_compiled_network_with_padded_batches_gives_the_same_attack() -> None:
    network, images, labels = curved_problem()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager")
    for attack in (APGD(Threat("linf", 0.3), steps=12), TargetedAPGD(Threat("linf", 0.3), 4, steps=6)):
        expected = attack(network, images, labels, TASK, generator=seeded())
        result = attack(compiled, images, labels, TASK, generator=seeded())
        assert 0 < result.wrong.sum() < len(images)
        torch.testing.assert_close(result.images, expected.images, rtol=0, atol=1e-9)
        assert result.passes.forward >= expected.passes.forward

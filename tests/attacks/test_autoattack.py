"""Ensembles and AutoAttack: survivors, worst case, definitions, few classes."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks import losses
from monai_adv.attacks.apgd import APGD, TargetedAPGD
from monai_adv.attacks.autoattack import AutoAttack
from monai_adv.attacks.base import AttackResult
from monai_adv.attacks.ensemble import Ensemble, Stage, StageSummary, WorstCase
from monai_adv.attacks.fab import FAB, TargetedFAB
from monai_adv.attacks.square import Square
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask, SegmentationTask
from tests.conftest import LinearNetwork, LinearTask
from tests.linear_classifier import LinearClassifier, problem, seeded

TASK = ClassificationTask()


@dataclass(frozen=True)
class Shift:
    """Moves every entry by a fixed amount, and remembers the images that it was given."""

    threat: Threat
    by: float
    seen: list[Tensor]

    def __call__(
        self, network: nn.Module, images: Tensor, target: Any, task: Any, *, radius: Any = None, generator: Any = None
    ) -> AttackResult:
        self.seen.append(images)
        moved = images + self.by * radius.view(-1, *[1] * (images.ndim - 1))
        output = network(moved).detach()
        none = torch.zeros(len(images), dtype=torch.bool)
        return AttackResult(
            moved, ~task.correct(output, target), task.margin(output, target), none, none, Passes(forward=len(images))
        )

    def most_passes(self) -> Passes:
        return Passes(forward=1)


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True)


def shifts(*amounts: float, until: Any = "wrong") -> tuple[Ensemble, list[list[Tensor]]]:
    seen: list[list[Tensor]] = [[] for _ in amounts]
    threat = Threat("linf", 1.0)
    stages = tuple(Stage(f"by {a}", Shift(threat, a, s)) for a, s in zip(amounts, seen, strict=True))
    return Ensemble(stages, until), seen


IMAGES = torch.tensor([[0.5], [1.5], [2.5], [-1.0]])  # scores under Sum; the label is "positive"
TARGET = torch.ones(4)


def test_survivors_go_on_from_the_clean_image_and_the_summary_adds_up() -> None:
    ensemble, seen = shifts(-1.0, 0.5, -2.0)
    result = ensemble(Sum(), IMAGES, TARGET, LinearTask())
    assert [s[0].flatten().tolist() for s in seen] == [[0.5, 1.5, 2.5], [1.5, 2.5], [1.5, 2.5]]
    assert result.wrong.tolist() == [True, True, False, True]
    assert result.stage.tolist() == [1, 3, 3, 0]
    assert result.images.flatten().tolist() == [-0.5, -0.5, 0.5, -1.0]
    assert result.margin.tolist() == [-0.5, -0.5, 0.5, -1.0]
    assert result.summary == (
        StageSummary("clean", 4, 1, Passes(forward=4)),
        StageSummary("by -1.0", 3, 1, Passes(forward=3)),
        StageSummary("by 0.5", 2, 0, Passes(forward=2)),
        StageSummary("by -2.0", 2, 1, Passes(forward=2)),
    )
    assert result.passes == Passes(forward=11)
    assert ensemble.most_passes() == Passes(forward=4)


def test_until_lowest_everyone_goes_on_and_the_strongest_stays() -> None:
    ensemble, seen = shifts(-2.0, -1.0, -3.0, until="lowest")
    result = ensemble(Sum(), IMAGES, TARGET, LinearTask())
    assert all(len(s[0]) == 4 for s in seen)
    assert result.stage.tolist() == [3] * 4
    assert result.margin.tolist() == [-2.5, -1.5, -0.5, -4.0]


def test_radius_of_each_sample_goes_along_and_nothing_left_means_no_call() -> None:
    ensemble, seen = shifts(-1.0, -2.0)
    result = ensemble(Sum(), IMAGES, TARGET, LinearTask(), radius=torch.tensor([1.0, 2.0, 3.0, 1.0]))
    assert result.images.flatten().tolist() == [-0.5, -0.5, -0.5, -1.0]
    assert seen[1] == []
    assert result.summary[2] == StageSummary("by -2.0", 0, 0, Passes())


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=5), st.sampled_from(["wrong", "lowest"]), st.data())
def test_more_stages_are_never_better_for_the_network(amounts: list[float], until: Any, data: st.DataObject) -> None:
    amounts = list(dict.fromkeys(amounts))
    cut = data.draw(st.integers(1, len(amounts)))
    fewer, more = (shifts(*a, until=until)[0](Sum(), IMAGES, TARGET, LinearTask()) for a in (amounts[:cut], amounts))
    assert (more.wrong >= fewer.wrong).all()
    assert ((more.margin <= fewer.margin) | (more.wrong & ~fewer.wrong)).all()
    assert torch.equal(LinearTask().margin(Sum()(more.images), TARGET), more.margin)


@given(st.permutations([-0.7, -1.2, 0.4, -2.6]))
def test_the_order_of_the_stages_does_not_change_who_is_wrong(order: list[float]) -> None:
    result = shifts(*order)[0](Sum(), IMAGES, TARGET, LinearTask())
    assert result.wrong.tolist() == [True, True, True, True]


def test_wrong_beats_right_at_equal_and_at_larger_margin() -> None:
    """At margin 0 an image can be right or wrong, depending on whether the threshold counts."""

    def result(wrong: list[bool], margin: list[float], value: float) -> AttackResult:
        none = torch.zeros(len(wrong), dtype=torch.bool)
        images = torch.full((len(wrong), 1), value)
        return AttackResult(images, torch.tensor(wrong), torch.tensor(margin), none.clone(), none.clone())

    worst = WorstCase(result([False, True, False, True], [0.0, 0.0, 1.0, -2.0], 1.0), LinearTask(), "wrong")
    newly = worst.add(torch.arange(4), result([True, False, False, True], [0.0, -1.0, 1.0, -3.0], 2.0), 1)
    assert newly.tolist() == [True, False, False, False]
    assert worst.result.images.flatten().tolist() == [2, 1, 1, 2]
    assert worst.stage.tolist() == [1, 0, 0, 1]


def test_restarts_are_an_ensemble_of_the_same_attack() -> None:
    attack = APGD(Threat("l2", 0.3, unit="norm"), steps=2, loss=losses.margin)
    ensemble = Ensemble.restarts(attack, 3)
    assert [s.name for s in ensemble.stages] == ["restart 1", "restart 2", "restart 3"]
    network, images, labels = problem(3, (4, 4), 10)
    generator = seeded(4)
    result = ensemble(network, images, labels, TASK, generator=generator)
    again, once = seeded(4), attack(network, images, labels, TASK, generator=seeded(4))
    assert (result.margin <= once.margin)[~once.wrong].all()
    attack(network, images, labels, TASK, generator=again)
    assert torch.equal(result.images, ensemble(network, images, labels, TASK, generator=seeded(4)).images)


def test_ensembles_are_checked() -> None:
    shift = Shift(Threat("linf", 1.0), 1.0, [])
    other = Shift(Threat("linf", 2.0), 1.0, [])
    for stages, says in (
        ((), "stages"),
        ((Stage("a", shift), Stage("a", shift)), "different names"),
        ((Stage("a", shift), Stage("b", other)), "the same threat"),
    ):
        with pytest.raises(InputError) as error:
            Ensemble(stages)
        assert says in str(error.value)
    with pytest.raises(InputError) as error:
        Ensemble((Stage("a", shift),), "never")  # type: ignore[arg-type]
    assert "until" in str(error.value)


THREAT = Threat("linf", 0.1, box=(0, 1))


def test_standard_is_the_reference_definition_from_ten_classes_up() -> None:
    for classes in (10, 100):
        attack = AutoAttack(THREAT, classes)
        assert attack.ensemble.stages == (
            Stage("apgd-ce", APGD(THREAT, 100, losses.cross_entropy)),
            Stage("apgd-t", TargetedAPGD(THREAT, 9, losses.targeted_dlr, 100)),
            Stage("fab-t", TargetedFAB(THREAT, 9, 100)),
            Stage("square", Square(THREAT, 5000)),
        )
        assert attack.deviations == ()
        assert "Deviations" not in attack.describe()
    # Per robust image, 1 clean forward and the rankings included, and what Square may waste by looking ahead.
    assert AutoAttack(THREAT, 10).most_passes() == Passes(
        forward=1 + 101 + (1 + 9 * 101) + (1 + 9 * 203) + (5001 + 500), backward_input=100 + 900 + 900
    )


@pytest.mark.parametrize("classes", range(4, 10))
def test_four_to_nine_classes_take_all_targets(classes: int) -> None:
    attack = AutoAttack(THREAT, classes)
    assert [s.name for s in attack.ensemble.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert attack.ensemble.stages[1].attack == TargetedAPGD(THREAT, classes - 1)
    assert attack.ensemble.stages[2].attack == TargetedFAB(THREAT, classes - 1)
    assert attack.deviations == (f"{classes} classes: {classes - 1} targets, all there are, instead of 9",)


def test_three_and_two_classes_are_substituted_and_said() -> None:
    three = AutoAttack(THREAT, 3)
    assert [s.name for s in three.ensemble.stages] == ["apgd-ce", "apgd-margin-t", "fab-t", "square"]
    assert three.ensemble.stages[1].attack == TargetedAPGD(THREAT, 2, losses.targeted_margin)
    assert "logit margin to each rival" in three.describe()
    two = AutoAttack(THREAT, 2)
    assert two.ensemble.stages[1:3] == (
        Stage("apgd-margin", APGD(THREAT, loss=losses.margin)),
        Stage("fab", FAB(THREAT)),
    )
    assert "DLR losses are not defined" in two.describe()


def test_plus_and_rand_and_quick() -> None:
    plus = AutoAttack(THREAT, 10, "plus")
    names = [s.name for s in plus.ensemble.stages]
    assert names == [
        *(f"apgd-ce {i}" for i in range(1, 6)), *(f"apgd-dlr {i}" for i in range(1, 6)),
        "fab", "square", "apgd-t", "fab-t",
    ]  # fmt: skip
    assert plus.ensemble.stages[10].attack == FAB(THREAT, restarts=5, classes=10)
    assert plus.ensemble.stages[13].attack == TargetedFAB(THREAT, 9, restarts=5)
    assert plus.deviations == ()
    rand = AutoAttack(THREAT, 10, "rand")
    assert rand.ensemble.stages == (
        Stage("apgd-ce", APGD(THREAT, loss=losses.cross_entropy, eot=20)),
        Stage("apgd-dlr", APGD(THREAT, loss=losses.dlr, eot=20)),
    )
    assert "mean output" in rand.describe()
    assert "quick is not AutoAttack" in AutoAttack(THREAT, 10, "quick").describe()
    assert AutoAttack(THREAT, 2, "rand").ensemble.stages[1].name == "apgd-margin"


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("version", ["quick", "standard"])
def test_linear_classifiers_are_lost_exactly_within_their_distance(norm: Any, classes: int, version: Any) -> None:
    network, images, labels = problem(classes, (1, 3, 4), 6)
    labels[-1] = (labels[-1] + 1) % classes  # wrong from the start
    nearest = network.distances(images, labels, norm).amin(1)
    factors = torch.tensor([0.98, 1.02, 0.98, 1.02, 1.5, 1.0], dtype=torch.float64)
    attack = shortened(AutoAttack(Threat(norm, 1.0, unit="norm"), classes, version), steps=50, queries=60)
    radius = (factors * nearest).abs()
    result = attack(network, images, labels, TASK, radius=radius, generator=seeded())
    assert result.wrong.tolist() == [False, True, False, True, True, True]
    assert result.stage[-1].item() == 0
    assert torch.equal(result.images[-1], images[-1])
    size = Threat(norm, 1.0, unit="norm").size(result.images - images)
    assert (size <= radius * (1 + 1e-9)).all()
    assert torch.equal(~TASK.correct(network(result.images), labels), result.wrong)
    assert sum((s.passes for s in result.summary), Passes()) == result.passes
    assert sum(s.newly_wrong for s in result.summary) == 4


def shortened(attack: AutoAttack, steps: int, queries: int) -> Ensemble:
    """The same stages with fewer steps and queries."""
    stages = []
    for stage in attack.ensemble.stages:
        assert isinstance(stage.attack, APGD | TargetedAPGD | FAB | TargetedFAB | Square)
        less = {"queries": queries} if isinstance(stage.attack, Square) else {"steps": steps}
        stages.append(Stage(stage.name, dataclasses.replace(stage.attack, **less)))
    return Ensemble(tuple(stages), attack.until, attack.classes)


@pytest.mark.parametrize("version", ["standard", "plus", "rand", "quick"])
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_run_through_every_stage_also_where_everyone_is_robust(version: Any, classes: int) -> None:
    """A radius of 0: nobody falls, so every stage is reached (the reference crashes here)."""
    network, images, labels = problem(classes, (1, 2, 2), 2)
    queries = 5
    attack = shortened(AutoAttack(Threat("l2", 0.0, unit="norm"), classes, version), steps=4, queries=queries)
    result = attack(network, images, labels, TASK, generator=seeded())
    assert not result.wrong.any()
    assert torch.equal(result.images, images)
    assert all(s.attacked == 2 for s in result.summary)
    most = attack.most_passes()
    assert result.passes.forward == 2 * most.forward  # of 5 queries, none may be wasted
    assert result.passes.backward_input == 2 * most.backward_input


@settings(max_examples=15)
@given(
    classes=st.integers(2, 6),
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.floats(0.01, 1),
    seed=st.integers(0, 100),
)
def test_budget_box_and_claims_hold(classes: int, norm: Any, eps: float, seed: int) -> None:
    network = LinearClassifier(classes, (1, 3, 3), seed, torch.float32)
    images = torch.rand(5, 1, 3, 3, generator=seeded(seed))
    labels = torch.arange(5) % classes
    threat = Threat(norm, eps, box=(0, 1), unit="norm")
    attack = shortened(AutoAttack(threat, classes), steps=8, queries=20)
    result = attack(network, images, labels, TASK, generator=seeded(seed))
    assert (threat.size(result.images - images) <= eps * (1 + 1e-5) + 1e-6).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1 + 1e-6
    assert torch.equal(~TASK.correct(network(result.images), labels), result.wrong)


class SingleLogit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = LinearNetwork((1, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_single_logit_is_attacked_as_two_classes() -> None:
    network = SingleLogit()
    images = torch.randn(4, 1, 3, 4, generator=seeded(1), dtype=torch.float64)
    z = network(images)[:, 0].detach()
    radius = (
        z.abs() / network.inner.weight.norm().detach() * torch.tensor([0.98, 1.02, 0.98, 1.02], dtype=torch.float64)
    )
    result = AutoAttack(Threat("l2", 1.0, unit="norm"), 2, "quick")(
        network, images, (z > 0).long(), TASK, radius=radius, generator=seeded()
    )
    assert result.wrong.tolist() == [False, True, False, True]


def test_same_seed_same_result_and_network_left_as_found() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(9, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
    )
    network[2].running_mean += 0.3
    before, stream = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    images = torch.rand(8, 1, 3, 3, generator=seeded())
    labels = torch.arange(8) % 3
    attack = shortened(AutoAttack(Threat("l2", 0.2, unit="norm"), 3), steps=10, queries=20)
    first, again = (attack(network, images, labels, TASK, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.summary == again.summary
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(stream, torch.get_rng_state())


def test_autoattack_is_checked() -> None:
    network, images, labels = problem(3, (4,), 2)
    for call, says in (
        (lambda: AutoAttack(THREAT, 1), "classes: received 1, allowed is 2 or more"),
        (lambda: AutoAttack(THREAT, 2, "fast"), "version: received 'fast'"),  # type: ignore[arg-type]
        (lambda: AutoAttack(THREAT, 2, until="never"), "until: received 'never'"),  # type: ignore[arg-type]
        (
            lambda: AutoAttack(Threat("l2", 1.0, unit="norm"), 2)(network, images, labels, TASK, generator=seeded()),
            "network: received '3 classes at 1 points', allowed is 2 classes at one point per sample",
        ),
        (
            lambda: AutoAttack(Threat("l2", 1.0, unit="norm"), 2)(
                nn.Conv1d(1, 2, 1),
                torch.ones(1, 1, 6),
                torch.ones(1, 1, 6).long(),
                SegmentationTask(lambda o, t: o.mean()),
            ),
            "network: received '2 classes at 6 points'",
        ),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert says in str(error.value)

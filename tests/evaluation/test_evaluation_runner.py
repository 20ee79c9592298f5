"""The runner: closed forms, monotone worst cases, and the same numbers however often it is interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv.attacks import PGD, AttackResult
from monai_adv.attacks.corruptions import Corruption
from monai_adv.errors import InputError
from monai_adv.evaluation.described import CorruptionEntry, ModelEntry
from monai_adv.evaluation.models.protocol import Model
from monai_adv.evaluation.records import Level, Record
from monai_adv.evaluation.search.blame import Blame, FaultyAttack
from monai_adv.evaluation.search.plan import AttackPlan, Stage, stages
from monai_adv.evaluation.search.runner import _Run, check_threat, reproducible, run_case
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import Store, read_pictures, read_records
from monai_adv.files import write_whole
from monai_adv.random_streams import random_stream
from monai_adv.statistics import Passes
from monai_adv.tasks import Target, Task
from monai_adv.threats import Threat
from tests.evaluation.test_evaluation_store import evaluation
from tests.tiny_models import classifier, other_classifier, segmenter

LINF = EvaluationSettings((Level("linf", 0.02), Level("linf", 0.06)), "quick", batch_size=3)
BOTH = EvaluationSettings((Level("l2", 0.2, "norm"), Level("l2", 0.5, "norm")), "quick", seed=3)


Make = Callable[[Any, Any, Threat, int], list[Stage]]


def plan_of(model: Model, settings: EvaluationSettings, make: Make = stages) -> AttackPlan:
    return AttackPlan(model.kind, len(model.classes), settings, make)


def open_store(folder: Path, *plans: tuple[Model, AttackPlan]) -> Store:
    entries = tuple(
        ModelEntry(
            name=model.name,
            kind=model.kind,
            classes=tuple(model.classes),
            space="",
            unit="",
            cases=tuple(model.cases),
            problems=(),
            corruptions=(CorruptionEntry(name="corruption:gain", severity="3"),),
            stages={key: tuple(stage.entry() for stage in found) for key, found in plan.by_level.items()},
        )
        for model, plan in plans
    )
    return Store.open(folder, evaluation(models=entries))


def run_all(folder: Path, model: Model, settings: EvaluationSettings, make: Make = stages) -> list[Record]:
    plan = plan_of(model, settings, make)
    store = open_store(folder, (model, plan))
    with reproducible(settings.threads):
        for case in model.cases:
            assert run_case(model, case, plan, store)
    return timeless(read_records(folder))


def timeless(records: list[Record]) -> list[Record]:
    return [replace(r, seconds=0.0) for r in records]


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.3), ("linf", 0.1)])
def test_a_linear_network_has_its_closed_form_accuracy(tmp_path: Path, norm: Any, eps: float) -> None:
    """The distance of an image to the boundary is its margin over the dual norm of the weights."""
    model = classifier(classes=2)
    model.box = None
    weight = model.network.network[1].weight.detach().double()  # type: ignore[union-attr, index]
    difference = weight[0] - weight[1]
    margin = (model.images.double().flatten(1) @ difference) * (1 - 2 * model.labels)
    robust = margin > eps * difference.norm(p=2 if norm == "l2" else 1)
    assert 0 < robust.sum() < 19
    records = run_all(tmp_path, model, EvaluationSettings((Level(norm, eps, "norm"),), "quick"))
    last = [s for r in records if r.attack == "PGD-20 from random starts" for s in r.worst]
    assert [s.score for s in last] == robust.double().tolist()


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_worst_scores_never_rise(tmp_path: Path, make: Callable[[], Model]) -> None:
    """Over attacks and radii; they are no better than any attack's own, and within the radius."""
    model = make()
    for case in model.cases:
        records = [r for r in run_all(tmp_path, model, BOTH) if r.case == case]
        for before, after in pairwise(records):
            for low, own, previous in zip(after.worst, after.own, before.worst, strict=True):
                assert low.score <= own.score
                assert low.score <= previous.score
        assert all(r.largest <= 1 + 1e-5 for r in records)


def test_what_is_finished_is_not_attacked_again(tmp_path: Path) -> None:
    """Wrong on the clean image: never. Wrong after an attack: not at this level, but at the next, for its own score."""
    model = classifier()
    records = run_all(tmp_path, model, LINF)
    first = [r for r in records if r.case == model.cases[0]]
    right = sum(s.score for s in first[0].own)
    assert right == 7
    for level in LINF.levels:
        chain = [r for r in first if r.level == level.key]
        assert chain[0].attacked == right  # also those that fell at the level below
        for before, after in pairwise(chain):
            fallen = {s.case for r in chain[: chain.index(after)] for s in r.own if not s.score} - {"0"}
            assert after.attacked == right - len(fallen)
            assert before.attacked >= after.attacked


def test_the_lower_level_is_a_candidate_of_the_higher_one(tmp_path: Path) -> None:
    """An attack that is blind at the larger radius: the own score shows it, the worst score does not suffer."""

    def blind_above(kind: Any, version: Any, threat: Threat, classes: int) -> list[Stage]:
        steps = PGD(threat, 20, until="wrong")
        return [Stage("half blind", steps if float(threat.eps) < 0.1 else _Nothing(threat))]

    settings = EvaluationSettings((Level("linf", 0.06), Level("linf", 0.2)), "quick")
    model = classifier()
    records = run_all(tmp_path, model, settings, blind_above)
    low = [r for r in records if r.level == "linf-0.06"]
    high = [r for r in records if r.level == "linf-0.2"]
    assert sum(s.score for r in low for s in r.worst) < 15
    assert [r.worst for r in high] == [r.worst for r in low]
    assert sum(s.score for r in high for s in r.own) == 19
    assert [r.carried for r in high] == [7 / 8, 1, 1]  # all but the one that was wrong from the start
    assert [r.carried for r in low] == [0, 0, 0]


def interruptions(folder: Path, model: Model, settings: EvaluationSettings) -> int:
    """Die before every write in turn; returns how often."""
    died = 0
    for case in model.cases:
        at = 1
        while True:
            count = 0

            def writes(path: Path, content: bytes, at: int = at) -> None:
                nonlocal count
                count += 1
                if count == at:
                    raise KeyboardInterrupt
                write_whole(path, content)

            try:
                with reproducible(settings.threads):
                    run_case(model, case, plan_of(model, settings), Store(folder, writes))
                break
            except KeyboardInterrupt:
                died += 1
                at = at % 4 + 1  # after none, one, two and three writes of a run
    return died


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_interrupted_at_every_write_it_ends_with_the_same_numbers(tmp_path: Path, make: Callable[[], Model]) -> None:
    model = make()
    expected = run_all(tmp_path / "at once", model, BOTH)
    open_store(tmp_path / "in bits", (model, plan_of(model, BOTH)))
    assert interruptions(tmp_path / "in bits", model, BOTH) > 10
    assert repr(timeless(read_records(tmp_path / "in bits"))) == repr(expected)
    assert not list((tmp_path / "in bits" / "images").rglob("*.npz"))  # only pictures are kept
    shown = [
        [p.attacked.tolist() for p in read_pictures(tmp_path / f, model.name, model.cases[0], "l2-0.5")]
        for f in ("at once", "in bits")
    ]
    assert shown[0] == shown[1] != []


def test_numbers_do_not_depend_on_order_or_company(tmp_path: Path) -> None:
    one, other = classifier(), other_classifier()
    expected = [run_all(tmp_path / str(i), s, LINF) for i, s in enumerate((one, other))]
    plans = [(model, plan_of(model, LINF)) for model in (one, other)]
    store = open_store(tmp_path / "both", *plans)
    for model, plan in reversed(plans):
        for case in reversed(model.cases):
            run_case(model, case, plan, store)
    assert timeless(read_records(store.folder)) == expected[0] + expected[1]


def test_the_seed_is_heard() -> None:
    streams = [
        random_stream(*names, device=torch.device("cpu")).initial_seed()
        for names in [(0, "a", "b"), (1, "a", "b"), (0, "ab", ""), (0, "a", "b", 0)]
    ]
    assert len(set(streams)) == 4
    assert random_stream(0, "a", "b", device=torch.device("cpu")).initial_seed() == streams[0]


@dataclass(frozen=True)
class _Nothing:
    """An attack that moves every image by ``factor`` radii and says that nothing was found."""

    threat: Threat
    factor: float = 0.0

    def __call__(
        self, network: nn.Module, images: Tensor, target: Target, task: Task, *,
        radius: Tensor | None = None, generator: torch.Generator | None = None,
    ) -> AttackResult:  # fmt: skip
        none = torch.zeros(len(images), dtype=torch.bool)
        moved = images + self.factor * float(self.threat.eps)
        return AttackResult(moved, none, torch.ones(len(images)), none, none, Passes())

    def most_passes(self) -> Passes:
        return Passes()


def test_an_attack_that_leaves_its_ball_is_an_error(tmp_path: Path) -> None:
    def cheat(factor: float) -> Make:
        return lambda kind, version, threat, classes: [Stage("cheat", _Nothing(threat, factor))]

    model = classifier()
    model.box = None
    with pytest.raises(RuntimeError, match="cheat on images 0 to 7: the perturbation has the size"):
        run_all(tmp_path, model, LINF, cheat(1.001))
    model.box = (0.0, 1.0)
    with pytest.raises(RuntimeError, match="leaves the box"):
        run_all(tmp_path / "box", model, LINF, cheat(0.9))


def test_an_attack_cannot_claim_success_that_the_score_does_not_show(tmp_path: Path) -> None:
    class Boaster(_Nothing):
        def __call__(self, *args: Any, **kwargs: Any) -> AttackResult:
            result = super().__call__(*args, **kwargs)
            return replace(result, wrong=~result.wrong, margin=-result.margin)

    def twice(kind: Any, version: Any, threat: Threat, classes: int) -> list[Stage]:
        return [Stage(name, Boaster(threat)) for name in ("first", "second")]

    records = [r for r in run_all(tmp_path, classifier(), LINF, twice) if r.level]
    assert [r.attacked for r in records] == [7] * 4 + [8] * 4 + [4] * 4


class _NaNWhenBright(nn.Module):
    def __init__(self, network: nn.Module, limit: float) -> None:
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1, keepdim=True) > self.limit
        return torch.where(bright, torch.nan, self.network(x))


def test_broken_outputs_are_wrong_and_counted(tmp_path: Path) -> None:
    model = classifier()
    brightness = model.images.flatten(1).mean(1)
    limit = float(brightness.median())
    model.network = _NaNWhenBright(model.network, limit)
    records = [r for r in run_all(tmp_path, model, LINF) if not r.level]
    assert sum(r.broken for r in records) == int((brightness > limit).sum()) > 5
    for record in records:
        for score in record.own:
            assert not (brightness[int(score.case)] > limit and score.score)
    assert sum(len(r.own) for r in records) == 20


def test_an_image_without_foreground_is_scored_by_the_stated_policy(tmp_path: Path) -> None:
    model = segmenter()
    model.labels[0].zero_()
    model.images[0].fill_(0.2)
    settings = EvaluationSettings((Level("linf", 0.1), Level("linf", 0.4)), "quick")
    last = {r.level: r.worst[0] for r in run_all(tmp_path, model, settings) if r.case == model.cases[0]}
    assert all(math.isnan(score.score) for score in last.values())  # it has no Dice, before an attack or after it
    found = {level: score.false_positives for level, score in last.items()}
    assert found == {"": (), "linf-0.1": (), "linf-0.4": model.classes}  # nothing can be found in it at first


def test_corruptions_are_a_second_axis(tmp_path: Path) -> None:
    model = segmenter()
    settings = EvaluationSettings((Level("linf", 0.01),), "quick")
    plan = plan_of(model, settings)
    store = open_store(tmp_path, (model, plan))
    run = _Run(model, "0", plan, store, lambda: None)
    clean = run._clean()
    run._corruption(Corruption("gain", 3), clean)
    (record,) = [r for r in read_records(tmp_path) if r.level]
    assert (record.attack, record.level) == ("corruption:gain", "3")
    case = model.load("0")
    low = case.images.min()
    assert record.own == tuple(case.scores(low + (case.images - low) * 1.2))


@pytest.mark.parametrize(
    ("threat", "said"),
    [
        (Threat("linf", 0.1, box=(0.0, 0.5)), "a box that contains the images"),
        (Threat("linf", 1.5, box=(0.0, 1.0)), "eps: received 1.5, allowed is at most 1"),
        (Threat("l2", 4.5, box=(0.0, 1.0), unit="norm"), "eps: received 4.5, allowed is at most 4"),
        (Threat("linf", 1e-8), "a radius that is not lost in the rounding"),
    ],
)
def test_levels_that_make_no_sense_are_refused(threat: Threat, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_threat(threat, classifier().images)


def test_a_case_that_cannot_be_used_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    model = classifier()
    model.images[10] += 1  # leaves the box
    plan = plan_of(model, LINF)
    store = open_store(tmp_path, (model, plan))
    assert [run_case(model, case, plan, store) for case in model.cases] == [True, False, True]
    assert {r.case for r in read_records(tmp_path)} == {model.cases[0], model.cases[2]}
    (problem,) = (tmp_path / "problems" / "tiny").glob("*.json")
    assert "a box that contains the images" in problem.read_text()


def _fails_in_our_code(*_: Any) -> Any:
    return Passes() + None  # type: ignore[operator]


class _FailsWithGradients(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _fails_in_our_code() if x.requires_grad else x.flatten(1)[:, :3]  # type: ignore[no-any-return]


def test_an_error_of_our_own_is_no_fault_of_a_case(tmp_path: Path) -> None:
    def make(kind: Any, version: Any, threat: Threat, classes: int) -> list[Stage]:
        return [Stage("PGD", PGD(threat, 2, loss=_fails_in_our_code))]

    model = classifier()
    plan = plan_of(model, LINF, make)
    with pytest.raises(FaultyAttack, match=r"PGD on images 0 to 7: .*\(statistics.py, line .*Please report this"):
        run_case(model, model.cases[0], plan, open_store(tmp_path / "ours", (model, plan)))

    model.network = _FailsWithGradients()  # the same error in a call of the network is about this network and case
    store = open_store(tmp_path / "network", (model, plan))
    assert not run_case(model, model.cases[0], plan_of(model, LINF), store)


def test_a_copy_of_the_network_that_the_attack_makes_is_asked_as_well() -> None:
    """With ``fuse`` the copy that fails is made while the attack runs."""
    networks: list[nn.Module] = []
    blame = Blame("a", "quick", lambda: networks)
    copy, image = _FailsWithGradients(), torch.zeros(1, 1, requires_grad=True)
    with pytest.raises(FaultyAttack), blame.during("PGD"):
        copy(image)
    networks.append(copy)
    with pytest.raises(AttributeError), blame.during("PGD"):
        copy(image)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"levels": ()}, "at least one radius"),
        ({"levels": (Level("l2", -1.0, "norm"),)}, "received -1.0, allowed is finite radii > 0"),
        ({"levels": (Level("l2", float("nan"), "norm"),)}, "received nan"),
        ({"levels": (Level("l2", 0.0, "norm"),)}, "the clean score is always measured"),
        ({"levels": (Level("l2", 2.0, "norm"), Level("l2", 1.0, "norm"))}, "in ascending order, each once"),
        ({"levels": (Level("l2", 1.0, "norm"), Level("l2", 1.0, "norm"))}, "in ascending order, each once"),
        ({"levels": (Level("linf", 1.0, "rms"),)}, "unit: received 'rms'"),
        ({"box": (1.0, 0.0)}, "LOW < HIGH"),
        ({"batch_size": 0}, "batch_size: received 0"),
        ({"attacks": "fast"}, "attacks: received 'fast', allowed is one of quick, standard, full"),
        ({"cases": 0}, "cases: received 0"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EvaluationSettings(**{"levels": (Level("l2", 1.0, "norm"),), **arguments})


def test_stages_have_names_of_their_own() -> None:
    for kind in ("classification", "segmentation"):
        for version in ("quick", "standard", "full"):
            for classes in (2, 3, 10):
                plan = stages(kind, version, Threat("l2", 1.0, unit="norm"), classes)  # type: ignore[arg-type]
                assert plan[0].name == "white noise"
                assert len({stage.name for stage in plan}) == len(plan)
                if version != "quick":
                    assert {stage.family for stage in plan} == {"random", "white-box", "black-box"}

"""The user's own attacks take part: plans as values and by name, their identity, and what is refused."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import own_plan
import pytest
import torch
from torch import Tensor, nn

import monai_adv
from monai_adv.attacks import FGSM, PGD
from monai_adv.attacks.ensemble import Stage
from monai_adv.cli import main
from monai_adv.errors import AttackError, InputError
from monai_adv.evaluation.plans import Plan
from monai_adv.evaluation.run.workers import Dask
from monai_adv.evaluation.settings import attacks_of
from monai_adv.evaluation.store import read_evaluation
from monai_adv.threats import Threat
from tests.linear_classifier import problem
from tests.places import TESTS

EPS = 0.12
FILE = TESTS / "own_plan.py"


@pytest.fixture(scope="module")
def linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear network of two classes, images, labels, and which of these stay right within L-inf EPS: closed form."""
    network, images, labels = problem(2, (1, 3, 3), count=12, dtype=torch.float32)
    return network, images, labels, network.distances(images, labels, "linf").amin(1) > EPS


def evaluate(linear: Any, attacks: Any, **settings: Any) -> Any:
    return monai_adv.evaluate(*linear[:3], norm="linf", eps=EPS, unit="norm", attacks=attacks, **settings)


def named(function: str) -> str:
    return f"{FILE}:{function}"


def command(folder: Path, attacks: str, *more: str) -> int:
    words = ["evaluate", "--factory", f"{TESTS / 'tiny_models.py'}:classifier", "--norm", "linf", "--eps", "0.05"]
    return main([*words, "--unit", "norm", "--attacks", attacks, "-o", str(folder), "-y", *more])


def test_a_plan_of_ones_own_finds_the_optimum_of_a_linear_network(linear: Any, tmp_path: Path) -> None:
    results = evaluate(linear, own_plan.exact)
    frame = results.frame()
    own = frame[(frame.attack == "my step") & (frame.measure == "score")].set_index("case").value
    assert 0 < linear[3].sum() < 12
    assert [own[str(i)] for i in range(12)] == linear[3].double().tolist()
    stages = next(iter(read_evaluation(results.folder).models[0].stages.values()))
    assert [(s.name, s.family) for s in stages] == [("white noise", "random"), ("my step", "white-box")]
    assert read_evaluation(results.folder).settings.attacks == "own_plan:exact"
    assert "the plan own_plan:exact" in results.report(tmp_path / "page").read_text()


def test_a_changed_plan_never_goes_on_with_the_records_of_the_old_one(linear: Any, tmp_path: Path) -> None:
    file = tmp_path / "plan.py"
    shutil.copy(FILE, file)
    results = [evaluate(linear, f"{file}:exact", folder=tmp_path / "store", cases=1) for _ in range(2)]
    assert results[0].frame().equals(results[1].frame())
    file.write_text(FILE.read_text().replace("eps * gradient.sign()", "0.9 * eps * gradient.sign()"))
    with pytest.raises(InputError, match="it differs in settings.attacks_code"):
        evaluate(linear, f"{file}:exact", folder=tmp_path / "store", cases=1)


def test_what_makes_two_plans_differ() -> None:
    def make(steps: int) -> Callable[[Threat, int], list[Stage]]:
        return lambda threat, classes: [Stage("a", PGD(threat, steps))]

    def with_option(threat: Threat, classes: int, steps: int = 3) -> list[Stage]:
        return [Stage("a", PGD(threat, steps))]

    def other(threat: Threat, classes: int) -> list[Stage]:
        return [Stage("a", FGSM(threat))]

    plans = [make(3), make(4), with_option, partial(with_option, steps=3), partial(with_option, steps=4), other]
    assert len({Plan.of(plan).code for plan in plans}) == len(plans)
    assert Plan.of(make(3)) == Plan.of(make(3))


def test_of_an_installed_package_all_files_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "installed_attacks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "plan.py").write_text("def plan(threat, classes):\n    from installed_attacks import parts\n")
    (package / "parts.py").write_text("STEPS = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("monai_adv.evaluation.models.fingerprint._own", lambda name, file: False)  # as if installed
    before = Plan.named("installed_attacks.plan:plan")
    (package / "parts.py").write_text("STEPS = 2\n")
    assert Plan.named("installed_attacks.plan:plan") != before


def test_another_process_finds_it_or_says_that_it_has_another_version(tmp_path: Path) -> None:
    file = tmp_path / "plan.py"
    file.write_text(FILE.read_text())
    sent = pickle.dumps(Plan.named(f"{file}:exact"))
    assert pickle.loads(sent) == Plan.named(f"{file}:exact")
    file.write_text(FILE.read_text() + "\nMORE = 1\n")
    with pytest.raises(AttackError, match="a worker has another version of the plan plan.py:exact"):
        pickle.loads(sent)
    with pytest.raises(AttackError, match="a worker does not find the plan test_own_plan:"):
        pickle.loads(pickle.dumps(Plan.of(lambda threat, classes: [])))


def test_an_attack_need_not_be_a_dataclass(linear: Any, tmp_path: Path) -> None:
    """Its public attributes are its settings: with others a folder is not gone on with."""
    evaluate(linear, own_plan.by_hand, folder=tmp_path, cases=1)
    (_, stage) = next(iter(read_evaluation(tmp_path).models[0].stages.values()))
    assert stage.settings == {"attack": "ByHand", "draws": 3}


def test_workers_find_it() -> None:
    pool = Dask("local", 1)
    try:
        plan = Plan.named(named("exact"))
        assert next(pool.run(names, [(plan,)])) == (0, ["my step"])
    finally:
        pool.close()


def names(plan: Plan) -> list[str]:
    return [stage.name for stage in plan(Threat("linf", 0.1), 2)]


def test_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    assert command(tmp_path / "store", named("exact"), "--cases", "4") in (0, 3)
    assert read_evaluation(tmp_path / "store").settings.attacks == "own_plan.py:exact"
    assert "attacks: " + named("exact") in read_evaluation(tmp_path / "store").run_file
    assert "my step" in (tmp_path / "store" / "report.html").read_text()


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            "standart",
            "attacks: received 'standart', allowed is quick, standard, full, or a plan as package.module:func",
        ),
        ("no_such_module:plan", "No module named 'no_such_module'"),
        ("no_such_file.py:plan", "no file "),
        (named("exactt"), "did you mean 'exact'?"),
        (named("nothing"), "the plan own_plan.py:nothing returned nothing; return a list of Stage(name, attack)."),
        (named("other_radius"), "attacks within L-inf radius 0.1, no box, allowed is L-inf radius 0.05, no box; give"),
        (named("other_norm"), "'wrong norm' of the plan own_plan.py:other_norm attacks within L2 radius 0.05"),
        (named("other_box"), "attacks within L-inf radius 0.05, box [-9, 9], allowed is L-inf radius 0.05, no box"),
        (named("no_attack"), "'bare' of the plan own_plan.py:no_attack is no attack, it lacks threat, most_passes;"),
        (named("no_stage"), "returned a FGSM, allowed is Stage(name, attack)"),
        (named("twice"), "has two stages 'a', allowed is one of a name"),
        (named("fails"), "the plan own_plan.py:fails failed: KeyError: 'steps'"),
        (named("one_argument"), "1 positional argument but 2 were given."),
        (named("one_stage"), "own_plan.py:one_stage returned a Stage, allowed is a list of Stage(name, attack)."),
        (named("wrong_setting"), "(own_plan.py, line "),
        (named("loss_fails"), "'mine' of the plan own_plan.py:loss_fails, on images 0 to 3: AttributeError: 'Points' "),
        (named("beyond_budget"), "the perturbation has the size 0.075"),
        (named("other_shape"), "it returned float32 (3, 1, 3, 4), allowed is what it got, float32 (3, 1, 4, 4)"),
        (named("other_dtype"), "it returned float64 (3, 1, 4, 4), allowed is what it got, float32 (3, 1, 4, 4)"),
        (named("not_a_number"), "an image has voxels that are NaN or infinite"),
        (named("a_tensor"), "it returned Tensor, allowed is an AttackResult"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(plan: str, said: str, tmp_path: Path, capsys: Any) -> None:
    assert command(tmp_path / "store", plan, "--cases", "4") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("monai-adv: attacks: ")
    assert said in last


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(InputError, match="attacks: received 'FGSM', allowed is a function"):
        attacks_of(FGSM(Threat("linf", 0.1)))

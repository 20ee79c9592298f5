"""The command: exit codes, refusals, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from monai_adv import optional
from monai_adv.cli import main
from monai_adv.cli.models import cases
from monai_adv.evaluation.models import hosts
from monai_adv.evaluation.records import Record
from monai_adv.evaluation.store import Store, read_cost, read_evaluation, read_probes, read_problems, read_records
from tests import processes, tiny_evaluate
from tests.tiny_evaluate import SUBJECTS, evaluate, figures_only
from tests.tiny_models import KILL_AT


def numbers(folder: Path) -> list[Record]:
    return [replace(r, seconds=0.0) for r in read_records(folder)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert evaluate(folder) == 0
    return folder


def test_all_well_is_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / "out", "--cases", "8") == 0
    said = capsys.readouterr().out
    assert "1 model, 8 images, 2 levels: at most" in said
    assert "Predicted from 8 images: " in said
    assert "Measured: " in said
    assert re.search(r"tiny +clean +87\.5 +8\n", said)
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in said


def test_the_folder_tells_what_was_done(finished: Path) -> None:
    evaluation = read_evaluation(finished)
    assert [level.key for level in evaluation.levels] == ["linf-0.02", "linf-0.06"]
    assert evaluation.settings.attacks == "quick"
    assert evaluation.versions["torch"] == metadata.version("torch")
    (model,) = evaluation.models
    assert model.cases == ("images 0 to 7", "images 8 to 15", "images 16 to 19")
    stages = model.stages["linf-0.02"]
    assert [stage.family for stage in stages] == ["random", *["white-box"] * 3]
    assert stages[2].settings["steps"] == 20
    assert {r.attack for r in read_records(finished)} == {"clean", *(stage.name for stage in stages)}
    assert read_probes(finished)["tiny"].cases == model.cases
    cost = read_cost(finished)
    assert cost.measured.forward == sum(r.forward for r in read_records(finished)) <= cost.bound.forward
    assert cost.predicted.cases == 16  # images, in two groups
    assert cost.sizes == {"tiny": {"images 0 to 7": (8, 128), "images 8 to 15": (8, 128), "images 16 to 19": (4, 64)}}


def test_a_file_that_cannot_be_used_is_1_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, models=["half_readable"]) == 1
    assert "not used: tiny, images 16 to 19: images 16 to 19: the file <b>last.nii.gz</b>" in capsys.readouterr().out
    assert {r.case for r in read_records(tmp_path)} == {"images 0 to 7", "images 8 to 15"}
    assert len(read_problems(tmp_path)) == 1


def test_a_red_flag_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, "--cases", "1", parts=figures_only("not reliable")) == 3
    assert "tiny: figures not reliable (a reason)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eps", "1", "1"], "in ascending order, each once"),
        (["--eps", "0.1", "--unit", "raw"], "unit: received 'raw'"),
        (["--norm", "linf", "--eps", "1.5"], "allowed is at most 1"),
        (["--box", "0", "0.5"], "box: received (0.0, 0.5), allowed is the box (0.0, 1.0) of tiny"),
        (["--cases", "lung_7"], "cases: received 'lung_7', allowed is names among images 0 to 7"),
    ],
)
def test_bad_input_is_2_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """What this model does not take; what no model does is in ``test_bad_input.py``."""
    assert evaluate(tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("records"))


def test_a_model_that_does_not_load_is_2_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, models=["classifier", "failing"]) == 2
    assert "FileNotFoundError: weights.pt is not there" in capsys.readouterr().err
    assert main(["evaluate", "--eps", "1", "-o", str(tmp_path)]) == 2
    assert "models: none were given" in capsys.readouterr().err


def test_models_that_cannot_be_compared_are_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, models=["classifier", "classifier"]) == 2
    assert "a name of its own for each; the host says how to name a model" in capsys.readouterr().err
    assert evaluate(tmp_path, models=["classifier", "segmenter"]) == 2
    assert "only classifiers or only segmentation models" in capsys.readouterr().err


def test_several_models_are_one_comparison(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, models=["classifier", "other_classifier"]) == 0
    assert [r for r in numbers(tmp_path) if r.model == "tiny"] == numbers(finished)
    assert "../Ä b" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_2_before_a_model_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert evaluate(tmp_path / "file" / "out", models=["failing"]) == 2
    assert "-o: received" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "models", "said"),
    [
        (["--seed", "1"], ["classifier"], "settings.seed: 0 there, 1 now"),
        (["--eps", "0.5"], ["classifier"], "levels"),
        ([], ["other_classifier"], 'models[tiny]: "tiny" there, "../Ä b" now'),
    ],
)
def test_a_folder_of_another_evaluation_is_2_and_says_what_differs(
    finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], models: list[str], said: str
) -> None:
    before = numbers(finished)
    assert evaluate(finished, *words, models=models) == 2
    assert said in capsys.readouterr().err
    assert numbers(finished) == before


def test_a_dry_run_predicts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path / "out", "--dry-run", "--norm", "l2", "--eps", "1/8") == 0
    said = capsys.readouterr().out
    assert "forward" in said
    # 4 x 4 voxels: 0.125 * sqrt(16)
    assert "Radii, for an input of tiny: L2, 1/8 RMS is L2, 0.125 RMS per voxel (= L2 radius 0.5)." in said
    assert not list(tmp_path.iterdir())


def test_interrupted_is_130_and_the_same_command_goes_on(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0

    class Interrupted(Store):
        def commit(self, *args: Any) -> Any:
            nonlocal count
            count += 1
            if count == 11:
                raise KeyboardInterrupt
            return super().commit(*args)

    assert evaluate(tmp_path / "my out", parts=figures_only(store=Interrupted)) == 130
    said = capsys.readouterr().err
    assert "go on with\n  monai-adv evaluate --factory" in said
    assert f"-o '{tmp_path / 'my out'}'" in said
    assert 0 < len(numbers(tmp_path / "my out")) < len(numbers(finished))
    assert evaluate(tmp_path / "my out") == 0
    assert numbers(tmp_path / "my out") == numbers(finished)
    assert evaluate(tmp_path / "my out") == 0  # and once more, with nothing left to do


def test_killed_at_any_pass_it_goes_on(tmp_path: Path, finished: Path) -> None:
    """The process dies in the middle of an attack, as with kill -9."""
    command = [sys.executable, tiny_evaluate.__file__, str(tmp_path)]
    environment = {**os.environ, KILL_AT: "150"}
    killed = processes.run(command, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 0 < len(numbers(tmp_path)) < len(numbers(finished))
    threads = str(read_evaluation(finished).settings.threads)
    assert json.loads((tmp_path / "evaluation.json").read_text())["settings"]["threads"] == int(threads)
    assert evaluate(tmp_path) == 0
    assert numbers(tmp_path) == numbers(finished)


def test_dask_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = optional.find_spec  # what is installed where the test runs is no argument of the command
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "distributed" else here(name))
    for words in (["--workers", "2"], ["--dask", "local"]):
        assert evaluate(tmp_path, *words) == 2
        assert "run 'pip install \"monai-adv[dask]\"'" in capsys.readouterr().err


def test_a_broken_host_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = metadata.EntryPoint("broken", "no_such_package.evaluation", hosts.ENTRY_POINTS)
    monkeypatch.setattr(hosts.metadata, "entry_points", lambda group: [broken])
    assert evaluate(tmp_path / "out", "--dry-run") == 0
    assert "models of broken cannot be opened here (ModuleNotFoundError" in capsys.readouterr().err


def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = capsys.readouterr().out
    assert "130  interrupted; the same command goes on" in said
    assert "--factory" in said


def test_fuse_is_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--fuse", "--cases", "8"], ["--run", str(tmp_path / "again.yaml")]):
        assert evaluate(tmp_path / "out", *words, models=["batch_normed"] if "--fuse" in words else []) == 0
        kept = read_evaluation(tmp_path / "out")
        assert kept.settings.fuse
        (tmp_path / "again.yaml").write_text(kept.run_file)
    assert "fuse: true\n" in kept.run_file
    assert evaluate(tmp_path / "out", "--cases", "8", models=["batch_normed"]) == 2
    assert "it differs in settings.fuse" in capsys.readouterr().err
    assert evaluate(tmp_path / "other", "--fuse") == 2
    assert "tiny: fuse: received 'no BatchNorm right after a convolution'" in capsys.readouterr().err
    assert not list((tmp_path / "other").rglob("records"))
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "a copy of each network with BatchNorm folded into its convolutions: a pass takes half" in said
    assert "scores are the network's own" in said


def test_file_names_that_look_like_numbers_are_names() -> None:
    assert cases(["5"]) == 5
    assert cases(["007"]) == ("007",)
    assert cases(["5", "6"]) == ("5", "6")
    assert SUBJECTS.exists()

"""Results in the trackers themselves: what comes out of their files is what was measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from monai_adv import optional
from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation.outcome import Results
from monai_adv.evaluation.report import curves, pictures
from monai_adv.evaluation.report.loggers import logger_of, metrics_of
from monai_adv.evaluation.run.parts import Finished
from monai_adv.exit_codes import ExitCode
from monai_adv.optional import MissingPackageError
from tests.places import ROOT, TESTS
from tests.planted_evaluation import dice_score, folder_of, plant

NAME = "IMA (2d): α"
EXPECTED = {
    "IMA _2d__ α/clean": 80.0,
    "IMA _2d__ α/l2-5/white noise": 70.0,
    "IMA _2d__ α/l2-5/APGD-CE": 40.0,
    "IMA _2d__ α/l2-5/worst case": 40.0,
}


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (curves, pictures):
        monkeypatch.setattr(module, "DPI", 30)


def planted(folder: Path, names: tuple[str, ...] = (NAME,)) -> Results:
    table = {
        ("l2-5", attack): [dice_score(n, v) for n in "ab"] for attack, v in (("white noise", 0.7), ("APGD-CE", 0.4))
    }
    records = [r for name in names for r in plant(name, [dice_score(n, 0.8) for n in "ab"], table)]
    return Results(folder_of(folder, records))


def test_names_and_values(tmp_path: Path) -> None:
    assert metrics_of(planted(tmp_path / "a").numbers) == pytest.approx(EXPECTED)
    with pytest.raises(InputError, match="models: received 'a:b and a;b', allowed is names that differ in letters"):
        metrics_of(planted(tmp_path / "b", ("a:b", "a;b")).numbers)


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = planted(tmp_path / "store")
    with SummaryWriter(tmp_path / "mine") as writer:
        results.log_to(writer)
        writer.add_scalar("after", 1.0)  # it is still open
    monkeypatch.chdir(tmp_path)
    results.log_to("tensorboard")
    (own,) = (tmp_path / "runs").iterdir()
    for folder in (tmp_path / "mine", own):
        read = EventAccumulator(str(folder)).Reload()
        found = {tag: read.Scalars(tag)[0].value for tag in read.Tags()["scalars"] if tag != "after"}
        assert found == {
            name.replace(" ", "_").replace("α", "_"): pytest.approx(v) for name, v in EXPECTED.items()
        } or (found == pytest.approx(EXPECTED))
        assert read.Tags()["images"] == ["robustness l2"]
        text = read.Tensors("robustness/text_summary")[0].tensor_proto.string_val[0].decode()
        assert f"{NAME} keeps 50 % of its Dice at L2 5" in text


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    results = planted(tmp_path / "store")
    with mlflow.start_run() as begun:
        results.log_to("mlflow")
        assert mlflow.active_run().info.run_id == begun.info.run_id
    results.log_to(mlflow)
    assert mlflow.active_run() is None
    runs = mlflow.search_runs(output_format="list")
    assert len(runs) == 2
    for run in runs:
        assert run.data.metrics == pytest.approx(EXPECTED)
        assert "keeps 50 % of its Dice" in run.data.tags["robustness"]
        stored = {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
        assert stored == {"report.html", "robustness l2.png"}


WANDB = """
import json, sys, wandb
sys.path[:0] = {paths}
from tests.evaluation.report.test_loggers import planted
from pathlib import Path
results = planted(Path("store"))
run = wandb.init(project="mine")
results.log_to("wandb")
summary = dict(run.summary)
results.log_to(run)
again = wandb.run is run
run.finish()
results.log_to(wandb)
print("FOUND" + json.dumps([{{k: v for k, v in summary.items() if isinstance(v, (int, float))}}, summary["robustness"],
    sorted(k for k, v in summary.items() if not isinstance(v, (int, float))), again, wandb.run is None]))
"""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb(tmp_path: Path) -> None:
    """Offline, in a process of its own: it starts a service."""
    code = WANDB.format(paths=repr([str(ROOT), *sys.path]))
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    metrics, text, others, again, closed = json.loads(ran.stdout.split("FOUND", 1)[1])
    assert {k: v for k, v in metrics.items() if k in EXPECTED} == pytest.approx(EXPECTED)
    assert "keeps 50 % of its Dice" in text
    assert {"report", "robustness", "robustness l2"} <= set(others)
    assert again
    assert closed
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_what_is_no_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="logger: received 'tensorbord', .*; did you mean 'tensorboard'?"):
        logger_of("tensorbord")
    with pytest.raises(InputError, match="logger: received 'int', allowed is one of 'tensorboard'"):
        logger_of(3)
    here = optional.find_spec  # what is installed where the test runs is no argument of the command
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "wandb" else here(name))
    with pytest.raises(MissingPackageError, match="the package wandb is missing; run .*tracking"):
        logger_of("wandb")
    factory = f"{TESTS / 'tiny_models.py'}:classifier"
    words = ["--factory", factory, "--eps", "1", "--log", "wandb", "-y", "-o", str(tmp_path / "out")]
    assert main(["evaluate", *words]) == 2
    assert "monai-adv[tracking]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("monai_adv.evaluation.outcome.Results.log_to", lambda self, name: given.append((self, name)))
    results = planted(tmp_path / "out")
    ended = Finished(ExitCode.FINISHED, results.numbers)
    monkeypatch.setattr("monai_adv.evaluation.run.measure.measure", lambda *args, **more: ended)
    factory = f"{TESTS / 'tiny_models.py'}:classifier"
    words = ["--eps", "1", "--log", "tensorboard", "-y", "-o", str(tmp_path / "out")]
    assert main(["evaluate", "--factory", factory, *words]) == 0
    assert [(results.folder, name) for results, name in given] == [(tmp_path / "out", "tensorboard")]

"""Cross-validations and sweeps: commands for a shell, and what comes of them in one table."""

from __future__ import annotations

import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from monai_adv.bundles.folds import main as folds
from monai_adv.bundles.folds import table
from monai_adv.bundles.sweep import main as sweep
from tests import processes
from tests.bundle_runs import BundleRun


def test_folds_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"ours": [0.5, 0.6, 0.7, 0.8, 0.9], "theirs": [0.1, 0.2, 0.3, 0.4, 0.45]}
    files = {}
    for method, column in values.items():
        files[method] = [str(tmp_path / f"{method}{i}.csv") for i in range(5)]
        for file, value in zip(files[method], column, strict=True):
            Path(file).write_text(f"clean_f1,{value}\nfull_cw_f1,0.25\n")
    assert folds([*files["ours"], "--against", *files["theirs"]]) == 0
    found = capsys.readouterr().out.splitlines()
    assert found[0] == "| figure | mean (std) | against | p |"
    # Ours are all above theirs: 2 of the 252 ways to share out ten places are as extreme. std: sqrt(0.1 / 4).
    assert found[2] == "| clean_f1 | 0.700 (0.158) | 0.290 (0.143) | 0.008 |"
    assert found[3] == "| full_cw_f1 | 0.250 (0.000) | 0.250 (0.000) | 1.000 |"

    (tmp_path / "nan.csv").write_text("clean_f1,nan\n")
    (tmp_path / "other.csv").write_text("auc,0.5\n")
    (tmp_path / "text.csv").write_text("hello\n")
    for second, words in {
        "nan.csv": "clean_f1 is nan", "other.csv": "only one of them has", "text.csv": "a metrics.csv of evaluate.json",
        "absent.csv": "a metrics.csv of evaluate.json", "ours0.csv": "each once",
    }.items():  # fmt: skip
        assert folds([files["ours"][0], str(tmp_path / second)]) == 2
        assert words in capsys.readouterr().err
    assert folds(files["ours"][:1]) == 2


def test_mann_whitney_by_hand() -> None:
    """U of 2 against 2: of 6 orders, one is as extreme as A A B B; A B A B has U = 1, which 2 of 6 reach on a side."""
    p = [table({"f1": ours}, {"f1": theirs}).split("|")[-2].strip() for ours, theirs in (
        ([1.0, 2.0], [3.0, 4.0]), ([1.0, 3.0], [2.0, 4.0]), ([3.0, 4.0], [1.0, 2.0]),
    )]  # fmt: skip
    assert p == ["0.333", "0.667", "0.333"]


def test_sweep_prints_a_training_and_an_evaluation_per_fold(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--folds", "0", "1", "--dataset_dir", "my data", "--configs", "vgg16_bn"]
    assert sweep(["r", "--values", "0", "0.5", "1", *options]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "set -e"
    assert len(lines) == 3 * 2 * 2 + 3
    train, evaluate = (shlex.split(line) for line in lines[:2])
    assert train[5] == "['configs/train.json', 'configs/vgg16_bn.json']"
    assert evaluate[5] == "['configs/train.json', 'configs/vgg16_bn.json', 'configs/evaluate.json']"
    assert train[6:] == evaluate[6:]
    given = {option: value for option, value in pairwise(train) if option.startswith("--")}
    assert given["--dataset_dir"] == "my data"
    assert (given["--r"], given["--fold"]) == ("0", "0")
    places = [shlex.split(line)[shlex.split(line).index("--ckpt_dir") + 1] for line in lines[:12:2]]
    assert len(set(places)) == 6


def test_sweep_without_folds_or_without_a_hyper_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(["train#trainer#settings#delta", "--values", "2"]) == 0
    _, train, _ = capsys.readouterr().out.splitlines()
    assert "--fold" not in train
    assert shlex.split(train)[-2:] == ["--train#trainer#settings#delta", "2"]
    assert "models/robust/delta_2" in train
    assert sweep(["--folds", "0", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    with pytest.raises(SystemExit):
        sweep(["--values", "1"])
    assert "give both or none" in capsys.readouterr().err


def test_sweeps_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real entry point: a shell's words reach the defence."""
    run = BundleRun("mammography_arfl", tmp_path)
    sweep(["r", "--values", "0.25", "--folds", "1", "--configs", "phantom", "--epochs", "1"])
    command = shlex.split(capsys.readouterr().out.splitlines()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = processes.run([sys.executable, *command[1:]], cwd=run.root, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "ARFLTrainer settings" in done.stdout + done.stderr
    saved = torch.load(next((run.root / "models/phantom/r_0.25/fold1").glob("last_*.pt")), weights_only=True)
    assert (saved["defense"]["settings"]["r"], saved["defense"]["method"]) == (0.25, "ARFL")

"""One table of what users get wrong, tried at every entry: nnU-Net, bundle and factory on the command line, and Python.

Everywhere the same holds: one sentence that names the argument and what is allowed, exit code 2 (in Python an
InputError), no traceback, nothing written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_adv.cli import main
from monai_adv.cli.bundle import copy_bundle
from monai_adv.errors import InputError
from monai_adv.evaluation import live_bundle
from monai_adv.evaluation.models.bundle.opened import OpenBundle
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.factory import FactorySource
from monai_adv.evaluation.models.plain import usable_device
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import read_evaluation
from monai_adv.threats import Threat
from nnunet_trainers.evaluation.source import NNUNetSource
from tests import bad_models
from tests.evaluation.models.test_bundle_evaluation import _classification
from tests.tiny_evaluate import evaluate
from tests.tiny_nnunet import write_case, write_model

LEVELS = (Level("linf", 0.1),)

WORDS: list[tuple[str, str]] = [
    ("--eps -1", "eps: received -1.0, allowed is finite radii > 0"),
    ("--eps 0", "eps: received 0.0"),
    ("--eps nan", "eps: received nan"),
    ("--unit norm --eps inf", "eps: received inf"),
    ("--unit norm --eps 1e300", "eps: received 1e+300, allowed is radii from 1e-12 to 1e+12"),
    ("--eps 1e-300", "eps: received 1e-300, allowed is radii from 1e-12 to 1e+12"),
    ("--unit norm --eps 2 1", "in ascending order, each once"),
    ("--norm l2 --norm linf --eps 1", "1 lists of radii for 2 norms"),
    ("--eps 2", "eps: received 2.0, allowed is at most 1 where no unit is given: an L2 radius is RMS change per voxel"),
    ("--eps 8/0", "8/0', allowed is a number such as 0.03 or 8/255; nothing can be divided by 0."),
    ("--eps 1/2/3", "1/2/3', allowed is a number such as 0.03 or 8/255; a quotient has two numbers and one stroke."),
    ("--eps a/b", "a/b', allowed is a number such as 0.03 or 8/255."),
    ("--norm l2 --eps 1 --norm l2 --eps 2", "norm: received ['l2', 'l2'], allowed is each norm once"),
    ("--norm linf --eps 0.1 --unit rms", "unit: received 'rms'"),
    ("--box 1 0", "box: received '1, 0', allowed is two numbers, lowest and highest, such as 0, 1, LOW < HIGH"),
    ("--box nan 1", "box: received 'nan, 1'"),
    ("--threads 0", "threads: received 0, allowed is a whole number from 1 to 512"),
    ("--threads 100000", "threads: received 100000"),
    ("--cases 0", "cases: received 0, allowed is a number >= 1"),
    ("--cases -3", "cases: received -3"),
    ("--cases=--3", "cases: received '--3', allowed is names among"),
    ("--cases ²", "cases: received '²', allowed is names among"),
    ("--cases 99999999999999999999", "cases: received '99999999999999999999', allowed is names among"),
    ("--cases nobody", "cases: received 'nobody', allowed is names among"),
    ("--seed -1", "seed: received -1"),
    ("--batch-size 0", "batch-size: received 0"),
    ("--workers 0", "workers: received 0"),
    ("--workers 2 --dask tcp://here:1", "the scheduler has its own"),
    ("--device gpu", "device: received 'gpu', allowed is cpu, cuda"),
    (
        "--device meta",
        "device: received 'meta', allowed is cpu, cuda, cuda:1, ...; a meta device has shapes and no numb",
    ),
    ("-o /dev/null/out", "-o: received '/dev/null/out', allowed is a folder that can be written"),
    ("-o LOOP", "allowed is the path of a folder; the system says: Symlink loop"),
    ("-o /proc/nowhere", "-o: received '/proc/nowhere', allowed is a folder that can be written"),
    ("-o " + 300 * "x", "allowed is the path of a folder; the system says: File name too long"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The words that name a model of each host."""
    folder = tmp_path_factory.mktemp("models")
    write_case(folder, name="a")
    write_model(folder / "model")
    _classification(folder / "zoo")
    data = ["-i", str(folder / "imagesTr"), "-gt", str(folder / "labelsTr")]
    return {
        "nnU-Net": ["-m", str(folder / "model"), *data],
        "bundle": ["--bundle", str(folder / "zoo")],
        "factory": ["--factory", f"{bad_models.__file__}:without_graph"],
    }


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one sentence."""
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    (message,) = (line for line in said.splitlines() if line.startswith("monai-adv: "))
    assert message.endswith((".", "?"))
    assert not re.search(r"[^.]\.\.$|\.{4}$|\?\.$", message)
    return message


@pytest.mark.parametrize(("words", "said"), WORDS)
@pytest.mark.parametrize("host", ["nnU-Net", "bundle", "factory"])
def test_words_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    models: dict[str, list[str]],
    host: str,
    words: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LOOP").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "LOOP")
    code = evaluate(tmp_path / "out", *models[host], *words.split(), models=())
    assert said in refused(capsys, code)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["LOOP", "back"]


# -------------------------------------------------------------------- what names a model


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-m nowhere -i x -gt y", "nowhere"),
        ("-m nowhere", "-m: received ['nowhere'], allowed is a folder together with -i IMAGES -gt LABELS"),
        ("-m a a -i x -gt y", "each folder once"),
        ("-d 4 -m nowhere", "-d and -m"),
        ("-f ² -d 4 -c 2d", "-f: received '²', allowed is the number of a fold, or all"),
        ("--bundle nowhere", "bundle: received '"),
        ("--bundle-override x", "--bundle-override: received ['x'], allowed is an addition to --bundle FOLDER"),
        ("--bundle . --bundle-override x", "bundle-override: received 'x', allowed is KEY=VALUE"),
        ("--factory nowhere", "factory: received 'nowhere', allowed is package.module:function or path/to/file.py:fun"),
        ("--factory nowhere.py:f", "no file "),
        ("--factory no.such.module:f", "No module named 'no'"),
        ("--factory math:sqroot", "allowed is a function in math; "),
        ("--factory math:sqrt", "it raised TypeError"),
        ("--factory tempfile:gettempdir", "a function that returns a model; this one's lacks name, kind"),
        ("", "models: none were given"),
    ],
)
def test_words_that_name_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, evaluate(tmp_path / "out", *words.split(), models=()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bundle nothing here", "bundle: received 'nothing'"),
        ("bundle covid_ct_ima /proc/x", "folder: received '/proc/x', allowed is a folder that can be made ("),
        (
            "bundle covid_ct_ima /dev/null/x",
            "folder: received '/dev/null/x', allowed is a folder that can be made (",
        ),
        ("bundle covid_ct_ima .", "folder: received '.', allowed is a new folder"),
        ("bundle covid_ct_ima " + 300 * "x", "allowed is a folder that can be made (File name too long)"),
        ("report nowhere", "nowhere: not the folder of an evaluation"),
        ("report .", ".: not the folder of an evaluation"),
        ("methods nothing", "received 'nothing'"),
    ],
)
def test_the_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, main(words.split()))
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------- parts of a bundle


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset=null", "dataset: received None, allowed is a data set of items with the keys image and label"),
        ("dataset=5", "dataset: received 5, allowed is a data set"),
        ("dataset=true", "dataset: received True"),
        ("dataset={}", "bundle: received 'no data', allowed is at least one case"),
        ("network_def=null", "network: received 'NoneType', allowed is a torch.nn.Module"),
        ("inferer=5", "inferer: received 5, allowed is a MONAI inferer, or no such key"),
    ],
)
def test_parts_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, said: str) -> None:
    _classification(tmp_path / "zoo", inferer={"_target_": "SimpleInferer"})
    words = ("--bundle", str(tmp_path / "zoo"), "--bundle-override", override)
    assert said in refused(capsys, evaluate(tmp_path / "out", *words, models=()))
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------- Python

IMAGES, LABELS = torch.rand(4, 1, 2, 2), torch.zeros(4)
NETWORK = bad_models.Wrapped()
MAP = torch.zeros(4, 4)


def classify(*images: Any, **more: Any) -> Any:
    return Classifier("name", NETWORK, *images, **{"classes": "ab", **more})


def segment(images: Any, labels: Any, **more: Any) -> Any:
    return Segmenter("name", bad_models.EvenOnly(), images, labels, ("lesion",), **more)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: EvaluationSettings(()), "eps"),
        (lambda: EvaluationSettings((Level("linf", 1e300),)), "eps"),
        (lambda: EvaluationSettings(LEVELS, "slow"), "attacks"),  # type: ignore[arg-type]
        (lambda: EvaluationSettings(LEVELS, threads=10**6), "threads"),
        (lambda: EvaluationSettings(LEVELS, cases=()), "cases"),
        (lambda: EvaluationSettings(LEVELS, seed=2**70), "seed"),
        (lambda: EvaluationSettings(LEVELS, batch_size=0), "batch_size"),
        (lambda: EvaluationSettings(LEVELS, box=(1.0, 1.0)), "box"),
        (lambda: Threat("l2", -1.0, unit="norm"), "eps"),
        (lambda: usable_device("meta"), "device"),
        (lambda: usable_device("gpu"), "device"),
        (lambda: classify(IMAGES.long(), LABELS), "images"),
        (lambda: classify(IMAGES / 0, LABELS), "images"),
        (lambda: classify(IMAGES[:0], LABELS[:0]), "images"),
        (lambda: classify(IMAGES, LABELS[:3]), "labels"),
        (lambda: classify(IMAGES, LABELS + 7), "target"),
        (lambda: classify(IMAGES, LABELS, classes="abc"), "classes"),
        (lambda: classify(IMAGES, LABELS, names="abca"), "names"),
        (lambda: classify(IMAGES, LABELS, box=(1.0, 0.0)), "box"),
        (lambda: classify(IMAGES, LABELS, group=0), "group"),
        (lambda: classify([]), "images"),
        (lambda: classify(None), "labels"),
        (lambda: segment([], []), "images"),
        (lambda: segment([MAP[None]], [MAP, MAP]), "images"),
        (lambda: segment([MAP[None]], [MAP[:2]]), "labels"),
        (lambda: segment([MAP[None]], [MAP + 3]), "labels"),
        (lambda: segment([MAP[None]], [MAP], box=(0.0, 0.0)), "box"),
        (lambda: FactorySource("nowhere").open(), "factory"),
        (lambda: FactorySource(f"{bad_models.__file__}:in_place", device="meta").open(), "device"),
        (lambda: BundleSource("nowhere").open(), "nowhere: bundle"),
        (lambda: BundleSource(".", overrides=("x",)), "bundle-override"),
        (lambda: OpenBundle("name", NETWORK, lambda x, f: f(x), None), "dataset"),
        (lambda: OpenBundle("name", NETWORK, lambda x, f: f(x), 5), "dataset"),
        (lambda: OpenBundle("name", NETWORK, None, []), "inferer"),  # type: ignore[arg-type]
        (lambda: OpenBundle("name", 5, lambda x, f: f(x), []), "network"),
        (lambda: live_bundle.evaluate(".", nn.Identity(), lambda x, f: f(x), None, "out", [1.0]), "dataset"),
        (lambda: NNUNetSource("nowhere", "x", "y").open(), ""),
        (lambda: NNUNetSource("nowhere", "x", "y", folds=()), "folds"),
        (lambda: NNUNetSource("nowhere", "x", "y", mode="both"), "mode"),  # type: ignore[arg-type]
        (lambda: NNUNetSource("nowhere", "x", "y", box=(1.0, 0.0)), "box"),
        (lambda: copy_bundle("nothing", "here"), "bundle"),
        (lambda: copy_bundle("covid_ct_ima", "/proc/x"), "folder"),
        (lambda: read_evaluation("nowhere"), "nowhere"),
        (lambda: write_report("nowhere"), "nowhere"),
    ],
)
def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(said)
    assert str(error.value).endswith((".", "?"))
    assert not list(tmp_path.iterdir())

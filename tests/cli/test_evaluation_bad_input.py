"""What a user may get wrong: the message says what to do, the exit code is the stated one, nothing is half written."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from monai_adv.cli import main
from monai_adv.evaluation.checks.probes import probe
from monai_adv.evaluation.records import Level, Record
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.store import read_problems, read_records
from nnunet_trainers.evaluation.source import NNUNetSource
from tests.tiny_evaluate import evaluate
from tests.tiny_nnunet import write_case, write_model

PLAIN = '''
import torch
from torch import nn
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.segmenter import Segmenter

class Fragile(nn.Module):
    """NaN for a sample with any intensity outside [0, 1]."""
    def __init__(self, network):
        super().__init__()
        self.network = network
    def forward(self, x):
        output = self.network(x)
        bad = ((x < 0) | (x > 1)).flatten(1).any(1)
        return torch.where(bad.view(-1, *[1] * (output.ndim - 1)), torch.nan, output)

def odd_names():
    """Right by a margin that no small attack crosses; four of six images leave [0, 1] at the least push."""
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        linear.bias.zero_()
    x = torch.full((6, 1, 2, 2), 0.5)
    x[:4, 0, 0, 0] = 0.999
    names = [f"<script>alert({i})</script>.png" for i in range(6)]
    return Classifier("<b>mine & yours</b>", Fragile(nn.Sequential(nn.Flatten(), linear)), x,
                                 torch.zeros(6), ("<i>ill</i>", "it's & \\"well\\""), names=names)

def fragile_segmenter():
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 4.0]).view(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -2.0]))
    image = torch.full((1, 4, 4), 0.1)
    image[0, 1:3, 1:3] = 0.999
    return Segmenter("fragile", Fragile(network), [image], [(image[0] > 0.5).long()], ("lesion",))
'''


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    for name in ("a", "b", "c"):
        write_case(folder, name=name)
    write_model(folder / "model")
    return folder


@pytest.fixture
def trained(tmp_path: Path, template: Path) -> Path:
    """A folder with a trained nnU-Net, ``model``, and three cases."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def nnunet(folder: Path, *words: str, model: str = "model") -> int:
    """The exit code of ``monai-adv evaluate -m``; it writes to ``out``."""
    data = ("-i", str(folder / "imagesTr"), "-gt", str(folder / "labelsTr"))
    if "--eps" not in words:
        words = ("--norm", "linf", "--eps", "0.1", *words)
    return evaluate(folder / "out", "-m", str(folder / model), *data, *words, models=())


def refused(capsys: pytest.CaptureFixture[str], code: int, folder: Path) -> str:
    """What was said: one sentence or two; the exit code is 2 and nothing was written."""
    said = capsys.readouterr().err
    assert code == 2, said
    assert not (folder / "out").exists()
    assert "Traceback" not in said
    (message,) = (line for line in said.splitlines() if line.startswith("monai-adv: "))
    assert message.endswith((".", "?"))
    assert not message.endswith(("..", "?."))
    return message


def rewrite(file: Path, change: Callable[[Any], Any], spacing: tuple[float, ...] | None = None) -> None:
    """Other voxels in the same geometry, or another spacing."""
    image = SimpleITK.ReadImage(str(file))
    changed = SimpleITK.GetImageFromArray(change(SimpleITK.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    changed.SetSpacing(spacing or image.GetSpacing())
    SimpleITK.WriteImage(changed, str(file))


def page(folder: Path) -> str:
    """The report, as of an evaluation without probes: those of :func:`evaluate` are empty."""
    shutil.rmtree(folder / "probes")
    return write_report(folder).read_text(encoding="utf-8")


def records(folder: Path) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in read_records(folder / "out"):
        found.setdefault(record.case, []).append(record)
    return found


# -------------------------------------------------------------------- models that do not load


def _cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _edit_checkpoint(file: Path, **changes: Any) -> None:
    torch.save({**torch.load(file, weights_only=False), **changes}, file)


def _other_stages(file: Path) -> None:
    plan = json.loads(file.read_text())
    plan["configurations"]["2d"]["architecture"]["arch_kwargs"]["n_stages"] = 2
    file.write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("fold_0/checkpoint_final.pth", Path.unlink, "has no checkpoint yet; checkpoint_final.pth is written when"),
        ("fold_0/checkpoint_final.pth", _cut, "checkpoint_final.pth', allowed is a whole nnU-Net checkpoint; .*train"),
        ("fold_0/checkpoint_final.pth", lambda f: f.write_bytes(b""), "EOFError: the file is empty; copy or train it"),
        (
            "fold_0/checkpoint_final.pth",
            lambda f: _edit_checkpoint(f, trainer_name="NoSuchTrainer"),
            "trainer: received 'NoSuchTrainer', allowed is a trainer class that nnU-Net finds; install the package",
        ),
        (
            "fold_0/checkpoint_final.pth",
            lambda f: _edit_checkpoint(f, network_weights={}),
            "checkpoint: .*allowed is weights that fit the plans beside them",
        ),
        ("plans.json", Path.unlink, "model', allowed is a folder with plans.json in it; name the folder that holds"),
        ("plans.json", lambda f: f.write_text("{"), "dataset.json and checkpoint_final.pth do not fit together .*JSON"),
        ("plans.json", _other_stages, "do not fit together .*AssertionError: n_conv_per_stage"),
        ("dataset.json", lambda f: f.write_text("{}"), "model_folder: received .*do not fit together"),
    ],
)
def test_a_model_that_does_not_load(
    trained: Path, capsys: pytest.CaptureFixture[str], file: str, change: Any, said: str
) -> None:
    change(trained / "model" / file)
    assert re.search(said, refused(capsys, nnunet(trained), trained))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-f", "3"), "fold: received 3, allowed is one of 0."),
        (("-f", "0", "1"), "fold: received 1, allowed is one of 0."),
        (("-f", "0", "0"), "allowed is at least one fold, each once"),
        (("-chk", "checkpoint_latest.pth"), "checkpoint: received 'checkpoint_latest.pth', allowed is one of checkp"),
        (("-c", "2d"), "-c: received '2d', allowed is an addition to -d DATASET; -m names all of it."),
        (("--cases", "patient_1"), "cases: received 'patient_1', allowed is names among a, b, c."),
        (("--bundle-weights", "x.pt"), "--bundle-weights: received 'x.pt', allowed is an addition to --bundle FOLDER."),
    ],
)
def test_words_that_do_not_fit_the_model(
    trained: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, nnunet(trained, *words), trained)


@pytest.mark.parametrize(
    ("variable", "value", "words", "said"),
    [
        ("nnUNet_results", None, "-d 4 -c 2d", "nnUNet_results: received None, allowed is the path of an existing f"),
        ("nnUNet_results", "nowhere", "-d 4 -c 2d", "nnUNet_results: received 'nowhere', .*export it as for nnUNetv2"),
        ("nnUNet_raw", None, "-d 999 -c 2d -p P -tr T", "nnUNet_raw: received None.*or name the model with -m FOLDER"),
        ("nnUNet_raw", ".", "-d 4 -c 2d", "-d: received '4', allowed is one data set in .*there are Dataset999_Tiny."),
        ("nnUNet_raw", ".", "-d 999 -c 2d -p P -tr U", "allowed is a model in .*did you mean 'T__P__2d'.$"),
    ],
)
def test_data_sets_that_are_not_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str | None,
    words: str,
    said: str,
) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / "Dataset999_Tiny").mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "results" / "Dataset999_Tiny" / "T__P__2d").mkdir()
    splits = [{"train": ["a"], "val": ["b"]}]
    (tmp_path / "preprocessed" / "Dataset999_Tiny" / "splits_final.json").write_text(json.dumps(splits))
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    code = evaluate(tmp_path / "out", *words.split(), models=())
    assert re.search(said, refused(capsys, code, tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "device: received 'cuda', allowed is a device that PyTorch can use here; PyTorch says: "
    message = refused(capsys, nnunet(trained, "--device", "cuda"), trained)
    assert said in message
    assert message.endswith("; --device cpu always works.")
    assert said in refused(capsys, evaluate(trained / "out", "--device", "cuda"), trained)
    (trained / "bundle" / "configs").mkdir(parents=True)
    (trained / "bundle" / "configs" / "train.json").write_text("{}")
    words = ("--bundle", str(trained / "bundle"), "--device", "cuda")
    assert said in refused(capsys, evaluate(trained / "out", *words, models=()), trained)


# -------------------------------------------------------------------- files that cannot be used


def test_files_that_cannot_be_used_are_named_and_the_others_go_on(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nnunet(trained, "--cases", "a") == 0
    alone = records(trained)["a"]
    (trained / "out").rename(trained / "alone")
    for name in ("channels", "damaged", "empty", "mismatch", "nolabel", "spacing", "unknown"):
        write_case(trained, name=name)
    images, labels = trained / "imagesTr", trained / "labelsTr"
    _cut(images / "damaged_0000.nii.gz")
    (images / "empty_0000.nii.gz").write_bytes(b"")
    write_case(trained / "model", (9, 9, 9), "other")
    (labels / "mismatch.nii.gz").write_bytes((trained / "model" / "labelsTr" / "other.nii.gz").read_bytes())
    (labels / "nolabel.nii.gz").unlink()
    rewrite(labels / "unknown.nii.gz", lambda values: np.where(values == 2, 7, values))
    (images / "channels_0001.nii.gz").write_bytes((images / "channels_0000.nii.gz").read_bytes())
    rewrite(labels / "spacing.nii.gz", lambda values: values, spacing=(1.0, 1.0, 1.25))
    (images / "CASE.nii.gz").write_bytes(b"")
    (images / "notes.txt").write_text("no image")
    capsys.readouterr()
    assert nnunet(trained) == 1
    said = capsys.readouterr().out
    for text in (
        "model: CASE.nii.gz: not called CASE_0000.nii.gz",
        f"model: nolabel: there is no {labels / 'nolabel.nii.gz'}",
        f"model: empty: {images / 'empty_0000.nii.gz'} is empty",
        f"model, damaged: image_files: received '{images / 'damaged_0000.nii.gz'}', allowed is a whole gzip file; ",
        "model, mismatch: image_files: received [",
        f"model: channels: {images / 'channels_0001.nii.gz'} is one channel more than the 1 of the model",
        f"model, spacing: ground_truth_file: received 'voxels of 1.25 × 1 × 1 mm in {labels / 'spacing.nii.gz'}', "
        f"allowed is the spacing of its image, 1.25 × 1 × 0.8 mm in {images / 'spacing_0000.nii.gz'}; the arrays have",
        f"model, unknown: ground_truth_file: received '{labels / 'unknown.nii.gz'} with the values 7', allowed is the "
        "model's labels [0, 1, 2].",
    ):
        assert f"not used: {text}" in said
    assert said.count("not used: ") == len(read_problems(trained / "out")) == 8
    assert "notes.txt" not in said
    found = records(trained)
    assert set(found) == {"a", "b", "c"}
    # What is wrong with the others changes nothing.
    assert [(r.attack, r.own, r.worst) for r in found["a"]] == [(r.attack, r.own, r.worst) for r in alone]


def test_a_case_that_becomes_unreadable_on_the_way(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its content is not what the evaluation began with: named, and the same command goes on when it is back."""
    assert nnunet(trained, "--cases", "a", "b") == 0
    label = trained / "labelsTr" / "b.nii.gz"
    content = label.read_bytes()
    for file in (trained / "out" / "records").rglob("*.json"):
        if file.parent.name == "b" and file.stem != "clean":
            file.unlink()
    label.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    assert nnunet(trained, "--cases", "a", "b") == 2
    assert f"models[model].files: the contents of {label}" in capsys.readouterr().err
    label.write_bytes(content)
    assert nnunet(trained, "--cases", "a", "b") == 0
    assert not read_problems(trained / "out")


def test_words_of_nnunet_without_a_model_of_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that was given is passed over in silence."""
    for words in (["-f", "1"], ["-chk", "x.pth"], ["--mirroring"], ["--patches"], ["-p", "nnUNetPlans"]):
        message = refused(capsys, evaluate(trained / "out", *words), trained)
        assert f"{words[0]}: received" in message
        assert message.endswith("allowed is an addition to -d DATASET or -m FOLDER.")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("nowhere", "images_folder: received .*nowhere', allowed is an existing folder; check the path."),
        ("labelsTr", "allowed is a folder with files like CASE_0000.nii.gz; it holds a.nii.gz, b.nii.gz, c.nii.gz."),
        ("model", "allowed is a folder with files like CASE_0000.nii.gz; it holds dataset.json, plans.json."),
    ],
)
def test_folders_without_images(trained: Path, capsys: pytest.CaptureFixture[str], images: str, said: str) -> None:
    words = ("-m", str(trained / "model"), "-i", str(trained / images), "-gt", str(trained / "labelsTr"))
    assert re.search(said, refused(capsys, evaluate(trained / "out", *words, models=()), trained))


def test_no_case_at_all(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (trained / "labelsTr").iterdir():
        rewrite(file, lambda values: values + 5)
    message = refused(capsys, nnunet(trained), trained)
    assert "model: no case can be used. a: ground_truth_file: received" in message


# -------------------------------------------------------------------- radii, boxes, units


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--norm linf --eps -0.1", "eps: received -0.1, allowed is finite radii > 0; the clean score is always measu"),
        ("--norm linf --eps 0", "eps: received 0.0, allowed is finite radii > 0"),
        (
            "--norm l2 --unit norm --eps 3 1",
            "eps: received [3.0, 1.0], allowed is radii of l2 in ascending order, each",
        ),
        ("--norm linf --eps 0.1 --box 0 1", "box: received (0.0, 1.0), allowed is a box that contains the images, her"),
        ("--norm linf --eps 50 --box -10 10", "eps: received 50.0, allowed is at most 20, where the ball is larger t"),
        (
            "--norm linf --eps 0.1 --box 10 -10",
            "box: received '10, -10', allowed is two numbers, lowest and highest",
        ),
        ("--norm linf --eps 0.1 --unit rms", "unit: received 'rms', allowed is 'norm' or 'raw' for linf"),
        ("--norm linf --eps 1e-12", "allowed is a radius that is not lost in the rounding of these images"),
    ],
)
def test_radii_and_boxes_that_make_no_sense(
    trained: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    assert said in refused(capsys, nnunet(trained, *words.split(), "--cases", "1"), trained)


def test_a_refusal_leaves_the_way_free(trained: Path) -> None:
    assert nnunet(trained, "--cases", "1", "--eps", "0.1", "--norm", "linf", "--box", "0", "1") == 2
    assert nnunet(trained, "--cases", "1", "--eps", "0.1", "--norm", "linf") == 0


def test_raw_units_of_channels_that_differ(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that a case is read from tells its unit: it is refused case by case."""
    folder = trained / "model"
    described, plan = (json.loads((folder / f"{name}.json").read_text()) for name in ("dataset", "plans"))
    described["channel_names"] = {"0": "T1", "1": "T2"}
    plan["configurations"]["2d"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    plan["configurations"]["2d"]["use_mask_for_norm"] = [False] * 2
    intensities = plan["foreground_intensity_properties_per_channel"]
    intensities["1"] = intensities["0"]
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / "plans.json").write_text(json.dumps(plan))
    file = folder / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(file, weights_only=False)["network_weights"]
    first = next(w for w in weights.values() if w.ndim == 4 and w.shape[1] == 1)
    wide = {k: w.repeat(1, 2, 1, 1) if w.shape == first.shape else w for k, w in weights.items()}
    _edit_checkpoint(file, network_weights=wide)
    for name in ("a", "b", "c"):
        second = trained / "imagesTr" / f"{name}_0001.nii.gz"
        second.write_bytes((trained / "imagesTr" / f"{name}_0000.nii.gz").read_bytes())
        rewrite(second, lambda values: 3 * values)
    message = refused(capsys, nnunet(trained, "--norm", "linf", "--eps", "5", "--unit", "raw"), trained)
    assert (
        "unit: received 'raw', allowed is 'norm' or 'rms' for channels of different scales; a: one unit is T1"
        in message
    )
    (trained / "imagesTr" / "c_0001.nii.gz").unlink()
    assert nnunet(trained, "--cases", "1") == 1
    assert f"not used: model: c: there is no {trained / 'imagesTr' / 'c_0001.nii.gz'}" in capsys.readouterr().out


# -------------------------------------------------------------------- where it is written


def test_a_place_that_cannot_be_written(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "file").write_text("")
    places = [trained / "file" / "out", trained / "file"]
    if os.name == "posix" and os.geteuid() != 0:
        (trained / "locked").mkdir(mode=0o500)
        places.append(trained / "locked" / "out")
    for place in places:
        code = evaluate(place)
        assert f"-o: received '{place}', allowed is a folder that can be written (" in refused(capsys, code, trained)
    assert "this one holds imagesTr, labelsTr and no evaluation.json" in refused(
        capsys, evaluate(trained / "model" / ".."), trained
    ).replace("file, ", "")


def test_a_folder_of_another_model_or_other_settings(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nnunet(trained, "--cases", "1") == 0
    before = {f: f.read_bytes() for f in (trained / "out").rglob("*") if f.is_file()}
    capsys.readouterr()

    def differs(*words: str) -> str:
        assert nnunet(trained, *words) == 2
        (said,) = re.findall("holds another evaluation; it differs in (.*). Give its own", capsys.readouterr().err)
        return str(said)

    assert differs("--cases", "2") == 'settings.cases: 1 there, 2 now; models[model].cases: ["a"] there, ["a", "b"] now'
    assert differs("--cases", "1", "--seed", "5") == "settings.seed: 0 there, 5 now"
    assert differs("--cases", "1", "--norm", "l2", "--eps", "1") == 'levels[linf-0.1]: "linf-0.1" there, "l2-1-rms" now'
    levels = 'levels: ["linf-0.1"] there, ["linf-0.1", "linf-0.2"] now'
    assert differs("--cases", "1", "--norm", "linf", "--eps", "0.1", "0.2") == levels
    assert "models[model].fingerprint: other weights, other data, or d" in differs("--cases", "1", "--mirroring")
    file = trained / "model" / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(file, weights_only=False)["network_weights"]
    _edit_checkpoint(file, network_weights={name: 0.5 * values for name, values in weights.items()})
    assert differs("--cases", "1").startswith(f"models[model].files: the contents of {file}; models[model].computes: ")
    assert before == {f: f.read_bytes() for f in (trained / "out").rglob("*") if f.is_file()}


# -------------------------------------------------------------------- odd models, odd data


def test_broken_outputs_are_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN under attack is wrong: 4 of 6 images can be pushed out of [0, 1], where the model breaks; no other can."""
    (tmp_path / "plain.py").write_text(PLAIN)
    words = ("--factory", f"{tmp_path / 'plain.py'}:odd_names", "--norm", "linf", "--eps", "0.01")
    assert evaluate(tmp_path / "out", *words, models=()) == 0
    assert re.search(r"L-inf 0.01 +33\.3 +6\n", capsys.readouterr().out)
    (clean,), attacked = (
        [r for r in read_records(tmp_path / "out") if (r.level == "") == first] for first in (True, False)
    )
    assert clean.broken == 0
    assert [s.score for s in clean.worst] == [1] * 6
    assert [s.score for s in attacked[-1].worst] == [0, 0, 0, 0, 1, 1]
    broken = sum(r.broken for r in attacked)
    assert broken >= 4
    text = page(tmp_path / "out")
    assert f"NaN or infinite outputs on {broken} attacked inputs (they count as wrong, with the lowest score)" in text


def test_broken_outputs_of_a_segmentation_are_wrong_everywhere(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    words = ("--factory", f"{tmp_path / 'plain.py'}:fragile_segmenter", "--norm", "linf", "--eps", "0.01")
    assert evaluate(tmp_path / "out", *words, models=()) == 0
    found = read_records(tmp_path / "out")
    assert [found[0].worst[0].score, found[-1].worst[0].score] == [1, 0]
    assert sum(r.broken for r in found) >= 1


def test_odd_names_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    case = "<img src=x onerror=alert(7)>&\"'é"
    write_case(tmp_path, name=case)
    write_model(tmp_path / "<u>")
    assert nnunet(tmp_path, model="<u>") == 0
    text = page(tmp_path / "out")
    assert "<img src=x" not in text
    assert "<u>" not in text
    assert html.escape(case) in text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    words = ("--factory", f"{tmp_path / 'plain.py'}:odd_names", "--norm", "linf", "--eps", "0.01")
    assert evaluate(tmp_path / "other", *words, models=()) == 0
    text = page(tmp_path / "other")
    for odd in ("<script>alert", "<b>mine", "<i>ill"):
        assert odd not in text
        assert html.escape(odd) in text


def test_an_empty_ground_truth_has_a_stated_score_and_raises_no_flag(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No class is there, so there is no Dice that an attack could push down, and its flat loss is no red flag."""
    rewrite(trained / "labelsTr" / "b.nii.gz", np.zeros_like)
    assert nnunet(trained, "--cases", "a", "b") == 0
    found = records(trained)
    assert all(math.isnan(r.worst[0].score) for r in found["b"])
    assert {r.attacked for r in found["b"]} == {0}
    assert all(math.isnan(v) for r in found["b"] for v in r.worst[0].hd95.values())
    mean = 100 * found["a"][-1].worst[0].score
    assert re.search(rf"L-inf 0.1 +{mean:.1f} +1\n", capsys.readouterr().out)
    source = NNUNetSource(str(trained / "model"), str(trained / "imagesTr"), str(trained / "labelsTr"))
    probed = probe(source.open(), [Level("linf", 0.1)], 0, ["b"], 5)
    assert (probed.zero_samples, probed.zero_voxels) == (0, 0)


def test_the_exit_codes_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--norm", "linf", "--eps", "much", "-o", "out"]) == 2
    assert "eps: received 'much', allowed is a number such as 0.03 or 8/255." in capsys.readouterr().err

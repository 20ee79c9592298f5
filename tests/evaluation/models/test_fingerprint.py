"""What has changed since an evaluation began is noticed by its content: data, weights, code, and what is computed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models import fingerprint as module
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.factory import FactorySource
from monai_adv.evaluation.models.fingerprint import changed, code_files, computed, contents, marks_of, same_computed
from monai_adv.evaluation.models.protocol import Source
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.run.session import Session
from monai_adv.evaluation.run.workers import ThisProcess
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import read_evaluation
from nnunet_trainers.evaluation.source import NNUNetSource
from tests.evaluation.models.test_bundle_evaluation import _classification, _segmentation
from tests.places import TESTS
from tests.tiny_evaluate import evaluate
from tests.tiny_nnunet import write_case, write_model

SETTINGS = EvaluationSettings((Level("linf", 0.01),), "quick")


def prepare(source: Source, folder: Path) -> None:
    """Begin an evaluation, or go on with it."""
    session = Session([source], SETTINGS, folder, ThisProcess(), say=lambda line: None)
    session.prepare()
    session._open()  # without the attacks
    session.close()


def data_hash(source: Source, folder: Path) -> str:
    prepare(source, folder)
    found: str = read_evaluation(folder).models[0].data
    return found


def same_size_and_dates(file: Path, content: bytes) -> None:
    """Correct a file in place, as a careful tool does."""
    before = file.stat()
    assert len(content) == before.st_size
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_label(file: Path) -> None:
    """One voxel of an uncompressed NIfTI file."""
    values = bytearray(file.read_bytes())
    values[-1] ^= 1
    same_size_and_dates(file, bytes(values))


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# -------------------------------------------------------------------- nnU-Net


@pytest.fixture
def nnunet(tmp_path: Path) -> NNUNetSource:
    """With uncompressed files."""
    model = write_model(tmp_path / "model")
    described = json.loads((model / "dataset.json").read_text()) | {"file_ending": ".nii"}
    (model / "dataset.json").write_text(json.dumps(described))
    for file in (*write_case(tmp_path).image_files, tmp_path / "labelsTr" / "case.nii.gz"):
        nib.save(nib.load(file), file.with_suffix(""))
        file.unlink()
    return NNUNetSource(str(model), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"))


@pytest.mark.parametrize("what", ["label", "image", "weights"])
def test_an_nnunets_files_are_compared_by_content(nnunet: NNUNetSource, tmp_path: Path, what: str) -> None:
    store = tmp_path / "store"
    prepare(nnunet, store)
    prepare(nnunet, store)  # nothing has changed
    if what == "weights":
        file = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
        torch.save(torch.load(file, weights_only=False) | {"_best_ema": 0.25}, file)
    else:
        file = tmp_path / ("labelsTr/case.nii" if what == "label" else "imagesTr/case_0000.nii")
        flip_label(file)
    with pytest.raises(InputError) as error:
        prepare(nnunet, store)
    same = data_hash(nnunet, tmp_path / "other") == read_evaluation(store).models[0].data
    assert same == (what == "weights")  # two versions of a model can be told to have the same data
    assert f"models[model].files: the contents of {file}" in str(error.value)
    assert str(error.value).count("models[model]") in (1, 2)  # the image of the probed case may show it as well


def test_a_data_set_that_moved_is_the_same(nnunet: NNUNetSource, tmp_path: Path) -> None:
    prepare(nnunet, tmp_path / "store")
    kept = (tmp_path / "store" / "evaluation.json").read_text()
    shutil.move(tmp_path / "imagesTr", tmp_path / "elsewhere")
    moved = NNUNetSource(nnunet.model_folder, str(tmp_path / "elsewhere"), nnunet.labels_folder)
    prepare(moved, tmp_path / "store")
    assert (tmp_path / "store" / "evaluation.json").read_text() == kept


# -------------------------------------------------------------------- bundles

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 2, 1)
    def forward(self, x):
        return 2.0 * self.layer(x)
"""


def scripted(folder: Path) -> BundleSource:
    """A bundle with a network of its own and a transform of its own."""
    source = _segmentation(folder, 2)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "net.py").write_text(NET)
    (folder / "scripts" / "shift.py").write_text("def shift(x):\n    return x + 1.0\n")
    config = folder / "configs" / "train.json"
    train = json.loads(config.read_text())
    train["network_def"] = {"_target_": "scripts.net.Net"}
    train["validate"]["dataset"]["transform"]["transforms"].append(
        {"_target_": "Lambdad", "keys": "image", "func": "$__import__('scripts.shift', fromlist=['shift']).shift"}
    )
    config.write_text(json.dumps(train))
    torch.manual_seed(0)
    weights = {f"layer.{name}": value for name, value in nn.Conv2d(1, 2, 1).state_dict().items()}
    torch.save(weights, folder / "models" / "model.pt")
    return source


def overlap(folder: Path) -> None:
    rewrite(folder / "configs" / "evaluate.json", '"overlap": 0.5', '"overlap": 0.25')


def relabel(folder: Path) -> None:
    image = nib.load(folder / "data" / "label1.nii.gz")
    nib.save(nib.Nifti1Image(1 - np.asarray(image.dataobj), image.affine), folder / "data" / "label1.nii.gz")


EDITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "network": (lambda f: rewrite(f / "scripts" / "net.py", "2.0", "2.5"), "scripts/net.py"),
    "network, a little": (lambda f: rewrite(f / "scripts" / "net.py", "2.0", "2.0000001"), "scripts/net.py"),
    "transform": (lambda f: rewrite(f / "scripts" / "shift.py", "1.0", "1.5"), "scripts/shift.py"),
    "window": (overlap, "configs/evaluate.json"),
    "label": (relabel, "data/label1.nii.gz"),
}


@pytest.mark.parametrize(("edit", "file"), EDITS.values(), ids=EDITS.keys())
def test_an_edited_bundle_is_another_one(tmp_path: Path, edit: Callable[[Path], Any], file: str) -> None:
    source = scripted(tmp_path / "b")
    prepare(source, tmp_path / "store")
    prepare(source, tmp_path / "store")
    edit(tmp_path / "b")
    with pytest.raises(InputError, match=f"the contents of .*{file}"):
        prepare(source, tmp_path / "store")


def test_what_a_bundle_takes_from_elsewhere_shows_in_what_it_computes(tmp_path: Path) -> None:
    """No file of the bundle changes, nor its weights: only what its network does."""
    source = _segmentation(tmp_path / "b", 2)
    before = computed(source.open())
    assert same_computed(before, computed(source.open()))
    model = source.open()
    model.bundle.network.network.register_forward_hook(lambda _, __, y: 1.01 * y)
    assert not same_computed(before, computed(model))


def test_data_that_come_from_no_file_are_compared(tmp_path: Path) -> None:
    first, second = (_classification(tmp_path / n).open() for n in "ab")
    assert first.fingerprint == second.fingerprint
    second.labels[3] = 2
    assert first.fingerprint != second.fingerprint


# -------------------------------------------------------------------- factories

FACTORY = """
import torch
from silent_helper import double
from monai_adv.evaluation.models.classifier import Classifier

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 1.0
        self.layer = torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.scale * double(self.layer(x.flatten(1)))

def make():
    torch.manual_seed(0)
    return Classifier("m", Net(), torch.rand(6, 1, 2, 2), torch.arange(6) % 2, ("a", "b"))
"""


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("silent_helper.py", "2 *", "3 *"),
        ("silent_helper.py", "2 *", "2.0001 *"),
        ("factory.py", "scale = 1.0", "scale = 0.5"),
        ("factory.py", "torch.rand(6", "0.5 * torch.rand(6"),
    ],
)
def test_a_factorys_code_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str
) -> None:
    (tmp_path / "factory.py").write_text(FACTORY)
    (tmp_path / "silent_helper.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = FactorySource(f"{tmp_path / 'factory.py'}:make")
    for _ in range(2):
        prepare(source, tmp_path / "store")
        sys.modules.pop("silent_helper")
    rewrite(tmp_path / file, old, new)
    with pytest.raises(InputError, match=f"the contents of {tmp_path / file}"):
        prepare(source, tmp_path / "store")
    sys.modules.pop("silent_helper")


def test_installed_packages_are_no_code_of_the_user() -> None:
    assert code_files(["torch", "json", "monai_adv.threats", "nowhere"]) == []
    assert Path(__file__) in code_files([__name__])
    assert TESTS / "tiny_nnunet.py" in code_files([__name__])


def test_a_number_that_no_weight_holds_shows_in_the_output() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale, self.layer = scale, nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * self.layer(x.flatten(1))

    def numbers(scale: float) -> dict[str, list[float]]:
        torch.manual_seed(0)
        return computed(Classifier("m", Scaled(scale), torch.rand(4, 1, 2, 2), torch.arange(4) % 2, "ab"))

    assert same_computed(numbers(1.0), numbers(1.0 + 1e-5))  # as two machines differ
    assert not same_computed(numbers(1.0), numbers(1.01))
    assert numbers(2.0)["image"] == numbers(1.0)["image"]


def test_a_model_that_is_random_has_no_output_to_compare() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            noise = torch.from_numpy(np.random.default_rng().normal(size=(len(x), 2)))
            return x.flatten(1)[:, :2] + noise.float()

    model = Classifier("m", Noisy(), torch.rand(4, 1, 2, 2), torch.arange(4) % 2, "ab")
    assert set(computed(model)) == {"image", "target"}


# -------------------------------------------------------------------- cheap


def test_a_file_is_read_once_while_nothing_tells_that_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(b"content of " + file.name.encode())
    first = marks_of(files)
    read: list[str] = []
    content = module._content
    monkeypatch.setattr(module, "_content", lambda path: read.append(path.name) or content(path))
    assert marks_of(files, first) == first
    assert read == []
    same_size_and_dates(files[1], b"Content of b")  # the time of the change itself cannot be set back
    second = marks_of(files, first)
    assert read == ["b"]
    assert changed(first, second) == [str(files[1].resolve())]
    assert contents(first) != contents(second)
    files[0].unlink()
    assert changed(second, marks_of(files[1:], second)) == [str(files[0])]


def test_two_files_that_change_places_are_noticed(tmp_path: Path) -> None:
    files = [tmp_path / name / "image.nii" for name in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(file.parent.name.encode())
    before = contents(marks_of(files))
    files[0].write_bytes(b"b"), files[1].write_bytes(b"a")
    assert contents(marks_of(files)) != before


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    """A DICOM series is a folder."""
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "slice.dcm").write_bytes(b"1")
    before = contents(marks_of([tmp_path / "series"]))
    (tmp_path / "series" / "slice.dcm").write_bytes(b"2")
    assert contents(marks_of([tmp_path / "series"])) != before


def test_hashes_that_were_tampered_with_are_no_shortcut(tmp_path: Path) -> None:
    assert evaluate(tmp_path / "store", "--dry-run") == 0
    assert not (tmp_path / "store").exists()
    assert evaluate(tmp_path / "store") == 0
    file = tmp_path / "store" / "files.json"
    file.write_text(file.read_text().replace('"tiny"', '"other"'))
    assert evaluate(tmp_path / "store") == 0

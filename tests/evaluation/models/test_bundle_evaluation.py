"""MONAI bundles as a host of the evaluation: small bundles written here, with known answers."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.scripts import init_bundle
from monai.inferers.inferer import SlidingWindowInferer
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.unet import UNet
from PIL import Image
from torch import Tensor, nn

from monai_adv.attacks import PGD
from monai_adv.errors import InputError
from monai_adv.evaluation.models.bundle import arguments as bundle
from monai_adv.evaluation.models.bundle.models import BundleClassifier, BundleSegmenter
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.models.fingerprint import contents, marks_of
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.store import read_records
from monai_adv.networks.inferer import BundleNetwork
from tests.malicious import Malicious
from tests.tiny_evaluate import evaluate

AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])
DENSENET = {"_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_features": 4,
            "growth_rate": 4, "block_config": [2, 2]}  # fmt: skip
Config = dict[str, Any]


def _unet(dims: int, heads: int) -> Config:
    return {"_target_": "UNet", "spatial_dims": dims, "in_channels": 1, "out_channels": heads, "channels": [4, 8],
            "strides": [2]}  # fmt: skip


def _window(size: int, dims: int) -> Config:
    return {"_target_": "SlidingWindowInferer", "roi_size": [size] * dims, "sw_batch_size": 2, "overlap": 0.5,
            "mode": "gaussian"}  # fmt: skip


def _transforms(keys: list[str]) -> Config:
    """Of a Model Zoo bundle: read, channel first, HU from -100 to 300 to [0, 1]."""
    return {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": keys},
            {"_target_": "EnsureChannelFirstd", "keys": keys},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -100, "a_max": 300, "b_min": 0, "b_max": 1},
        ],
    }


def write_bundle(
    folder: Path, train: Config, evaluate: Config, network: nn.Module, channels: dict[str, str] | None = None
) -> Path:
    """A bundle in the Model Zoo's layout: evaluate.json overrides train.json."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    train = {"imports": ["$import glob"], "bundle_root": "nowhere", "device": "$torch.device('cuda:7')", **train}
    (folder / "configs" / "train.json").write_text(json.dumps(train))
    (folder / "configs" / "evaluate.json").write_text(json.dumps(evaluate))
    if channels:
        outputs = {"pred": {"channel_def": channels}}
        (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": {"outputs": outputs}}))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def write_volumes(
    folder: Path, shape: tuple[int, ...], count: int = 2, labels: Callable[..., Any] | None = None
) -> None:
    """Bright cubes in noise; the label is the cube."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        truth = np.zeros(shape, np.uint8)
        truth[tuple(slice(n // 4, n // 2 + 1) for n in shape)] = 1
        values = generator.normal(0, 30, shape) + 200 * truth
        nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), folder / "data" / f"image{i}.nii.gz")
        nib.save(nib.Nifti1Image((labels or (lambda t: t))(truth), AFFINE), folder / "data" / f"label{i}.nii.gz")


LISTS: Config = {
    "images": "$sorted(glob.glob(@bundle_root + '/data/image*.nii.gz'))",
    "labels": "$sorted(glob.glob(@bundle_root + '/data/label*.nii.gz'))",
}
VALIDATION: Config = {
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
        "transform": _transforms(["image", "label"]),
    }
}


def _segmentation(folder: Path, dims: int, heads: int = 2, size: int = 20, **more: Any) -> BundleSource:
    torch.manual_seed(0)
    network = UNet(dims, 1, heads, (4, 8), (2,))
    write_volumes(folder, (size,) * dims, **more)
    train = {
        **LISTS, "network_def": _unet(dims, heads), "network": "$@network_def.to(@device)",
        "validate": {**VALIDATION, "inferer": {"_target_": "SimpleInferer"}},
    }  # fmt: skip
    write_bundle(folder, train, {"validate#inferer": _window(8, dims)}, network, {"0": "background", "1": "cube"})
    return BundleSource(str(folder))


def _items(folder: Path, count: int = 5) -> str:
    """A Python package of the bundle: images in memory, their class is their quarter."""
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "data.py").write_text(
        "import torch\n"
        "class Items(torch.utils.data.Dataset):\n"
        f"    def __len__(self): return {count}\n"
        "    def __getitem__(self, i):\n"
        "        generator = torch.Generator().manual_seed(i)\n"
        "        return {'image': torch.rand(1, 16, 16, generator=generator), 'label': i % 3}\n"
    )
    return "$__import__('scripts.data', fromlist=['data']).Items()"


def _classification(folder: Path, **changes: Any) -> BundleSource:
    torch.manual_seed(0)
    network = DenseNet(2, 1, 3, 4, 4, (2, 2))
    train = {"network_def": DENSENET, "dataset": _items(folder), **changes}
    write_bundle(folder, train, {}, network, {"0": "cat", "1": "dog", "2": "owl"})
    return BundleSource(str(folder))


# -------------------------------------------------------------------- segmentation


@pytest.mark.parametrize("dims", [2, 3])
def test_a_segmenting_bundle(tmp_path: Path, dims: int) -> None:
    source = _segmentation(tmp_path / "spleen", dims, size=20 if dims == 2 else 12)
    model = pickle.loads(pickle.dumps(source)).open()
    assert isinstance(model, BundleSegmenter)
    assert (model.name, model.kind, model.classes, model.problems) == ("spleen", "segmentation", ("cube",), ())
    assert model.cases == ("image0.nii.gz", "image1.nii.gz")
    assert "SlidingWindowInferer, windows" in model.space
    assert model.unit == "units of the bundle's preprocessed image, 1 = 400 in the files"

    case = model.load("image1.nii.gz")
    raw = nib.load(tmp_path / "spleen" / "data" / "image1.nii.gz").get_fdata()
    np.testing.assert_allclose(case.images[0, 0], (raw + 100) / 400, atol=1e-5)
    network = UNet(dims, 1, 2, (4, 8), (2,)).eval()
    network.load_state_dict(torch.load(tmp_path / "spleen" / "models" / "model.pt"))
    with torch.no_grad():
        expected = SlidingWindowInferer([8] * dims, 2, 0.5, mode="gaussian")(case.images, network)
        torch.testing.assert_close(case.network(case.images), expected)

    threat = case.threat(Level("l2", 2.0, "norm"))
    attacked = PGD(threat, 5)(case.network, case.images, case.target, case.task).images
    clean, worst = case.scores(case.images)[0], case.scores(attacked)[0]
    assert worst.score < clean.score
    assert set(clean.hd95) == {"cube"}
    assert case.threat(Level("linf", 20.0, "raw")).eps == pytest.approx(20 / 400)


def test_hd95_is_in_the_files_millimetres(tmp_path: Path) -> None:
    model = _segmentation(tmp_path / "b", 3, size=12).open()
    assert isinstance(model, BundleSegmenter)
    case = model.load(model.cases[0])
    assert case.spacing == pytest.approx((2.0, 1.0, 1.0))


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 2, 3, padding=1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).sigmoid()  # its backward needs the output that MONAI weights in place


def test_gradient_through_the_sliding_window() -> None:
    window = BundleNetwork(Smooth(), SlidingWindowInferer((4, 4), 3, 0.5, mode="gaussian")).eval()
    images = torch.rand(2, 1, 7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(window, (images,))


def test_regions_and_single_outputs(tmp_path: Path) -> None:
    one = _segmentation(tmp_path / "one", 2, heads=1).open()
    assert isinstance(one, BundleSegmenter)
    assert one.regions
    assert one.classes == ("region 1",)
    case = one.load("image0.nii.gz")
    with torch.no_grad():
        found = (case.network(case.images) > 0).numpy()[0, 0]
    truth = nib.load(tmp_path / "one" / "data" / "label0.nii.gz").get_fdata() > 0
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert case.scores(case.images)[0].score == pytest.approx(expected)


def test_one_hot_labels_are_classes_and_others_regions(tmp_path: Path) -> None:
    for name, background in (("hot", "1 - x"), ("multi", "0 * x")):
        source = _segmentation(tmp_path / name, 2)
        file = tmp_path / name / "configs" / "evaluate.json"
        stack = {"_target_": "Lambdad", "keys": "label", "func": f"$lambda x: torch.cat([{background}, x])"}
        dataset = json.loads((tmp_path / name / "configs" / "train.json").read_text())["validate"]["dataset"]
        dataset["transform"]["transforms"].append(stack)
        file.write_text(json.dumps({"validate#dataset": dataset}))
        model = source.open()
        assert isinstance(model, BundleSegmenter)
        assert (model.regions, model.layout.classes) == (name == "multi", 2 if name == "hot" else 0)
        assert model.classes == (("cube",) if name == "hot" else ("background", "cube"))
        case = model.load("image0.nii.gz")
        assert case.target.shape[1] == (1 if name == "hot" else 2)  # type: ignore[union-attr]
        # What happens to the label says nothing about the image.
        assert case.threat(Level("linf", 20.0, "raw")).eps == pytest.approx(20 / 400)


def test_a_bundle_whose_intensities_an_unknown_function_changes_has_no_raw_radius(tmp_path: Path) -> None:
    """After the window a division by a standard deviation of 0.25: 400 HU are no unit of the network any more."""
    source = _segmentation(tmp_path / "b", 2)
    dataset = json.loads((tmp_path / "b" / "configs" / "train.json").read_text())["validate"]["dataset"]
    normal = {"_target_": "TorchVisiond", "keys": "image", "name": "Normalize", "mean": [0.5], "std": [0.25]}
    dataset["transform"]["transforms"].append(normal)
    (tmp_path / "b" / "configs" / "evaluate.json").write_text(json.dumps({"validate#dataset": dataset}))
    model = source.open()
    assert isinstance(model, BundleSegmenter)
    assert model.unit == "units of the bundle's preprocessed image"
    with pytest.raises(InputError, match="only where ScaleIntensityRange is all that changes the intensities"):
        model.load("image0.nii.gz").threat(Level("linf", 22.0, "raw"))


# -------------------------------------------------------------------- classification


def test_a_classifying_bundle(tmp_path: Path) -> None:
    source = _classification(tmp_path / "zoo")
    model = source.open()
    assert isinstance(model, BundleClassifier)
    assert (model.kind, model.classes, model.problems) == ("classification", ("cat", "dog", "owl"), ())
    assert model.cases == ("images 0 to 4",)
    case = model.load(model.cases[0])
    assert case.target.tolist() == [0, 1, 2, 0, 1]
    network = DenseNet(2, 1, 3, 4, 4, (2, 2)).eval()
    network.load_state_dict(torch.load(tmp_path / "zoo" / "models" / "model.pt"))
    with torch.no_grad():
        expected = network(case.images)
    scores = case.scores(case.images)
    assert [s.score for s in scores] == (expected.argmax(1) == case.target).float().tolist()
    torch.testing.assert_close(torch.tensor([s.probabilities for s in scores]), expected.softmax(1))
    attack = PGD(case.threat(Level("linf", 0.3)), 10)
    found = attack(case.network, case.images, case.target, case.task)
    assert (found.margin < case.task.margin(expected, case.target)).all()


def test_two_bundles_do_not_share_their_scripts(tmp_path: Path) -> None:
    first, second = _classification(tmp_path / "a"), _classification(tmp_path / "b")
    data = tmp_path / "b" / "scripts" / "data.py"
    data.write_text(data.read_text().replace("return 5", "return 3"))
    assert [len(source.open().load(case).images) for source, case in
            ((first, "images 0 to 4"), (second, "images 0 to 2"))] == [5, 3]  # fmt: skip


def test_items_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    source = _classification(tmp_path / "zoo")
    data = tmp_path / "zoo" / "scripts" / "data.py"
    text = data.read_text().replace(
        "        generator", "        if i in (0, 3): raise OSError('bad disk')\n        generator"
    )
    data.write_text(text)
    model = source.open()
    assert model.problems == (
        "case: received '0', allowed is a case that the bundle can read; OSError: bad disk.",
        "case: received '3', allowed is a case that the bundle can read; OSError: bad disk.",
    )
    assert [score.case for score in model.load("images 0 to 2").scores(model.load("images 0 to 2").images)] == [
        "1", "2", "4",
    ]  # fmt: skip


# -------------------------------------------------------------------- what is refused


def test_files_that_are_missing_are_problems(tmp_path: Path) -> None:
    source = _segmentation(tmp_path / "b", 2)
    file = tmp_path / "b" / "configs" / "train.json"
    text = file.read_text().replace("$sorted(glob.glob(@bundle_root + '/data/label*.nii.gz'))",
                                    "$[@bundle_root + f'/data/label{i}.nii.gz' for i in range(2)]")  # fmt: skip
    file.write_text(text)
    (tmp_path / "b" / "data" / "label0.nii.gz").unlink()
    model = source.open()
    assert model.cases == ("image1.nii.gz",)
    assert model.problems == (f"image0.nii.gz: there is no {tmp_path / 'b' / 'data' / 'label0.nii.gz'}",)


def test_a_case_that_cannot_be_read_or_has_other_labels_is_named(tmp_path: Path) -> None:
    source = _segmentation(tmp_path / "b", 2, labels=lambda truth: truth)
    model = source.open()
    data = tmp_path / "b" / "data"
    nib.save(nib.Nifti1Image(np.full((20, 20), 5, np.uint8), AFFINE), data / "label1.nii.gz")
    with pytest.raises(InputError, match=r"labels of image1.nii.gz: received \[5\]"):
        model.load("image1.nii.gz")
    (data / "image1.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError, match="case: received 'image1.nii.gz', allowed is a case that the bundle can read"):
        model.load("image1.nii.gz")
    assert model.load("image0.nii.gz").name == "image0.nii.gz"


def _rewrite(folder: Path, **changes: Any) -> None:
    file = folder / "configs" / "train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _without(folder: Path, *keys: str) -> None:
    file = folder / "configs" / "train.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in keys}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: _without(f, "network_def"), "a config with one of the keys network_def, network; it has .*dataset"),
        (lambda f: _without(f, "dataset"), "one of the keys validate#dataset, .*dataset, validate#dataloader"),
        (lambda f: _rewrite(f, network_def={**DENSENET, "spatial": 2}), "key network_def', allowed is .*unexpected"),
        (lambda f: _rewrite(f, dataset="$@nothing + 1"), "key dataset', allowed is a part that loads"),
        (lambda f: _rewrite(f, network_def="$3"), "network: received 'int', allowed is a torch.nn.Module"),
        (lambda f: _rewrite(f, network_def={**DENSENET, "out_channels": 4}), "weights that fit the network.*mismatch"),
        (lambda f: (f / "models" / "model.pt").unlink(), "model.pt', allowed is an existing file; in .*there is noth"),
        (lambda f: (f / "models" / "model.pt").write_bytes(b""), "allowed is a state dict of tensors"),
        (lambda f: (f / "configs" / "train.json").write_text("{"), "bundle-config: .*JSONDecodeError"),
        (lambda f: _rewrite(f, dataset="$[{'image': torch.rand(1, 16, 16), 'y': 1}]"), "with the keys image and label"),
        (lambda f: _rewrite(f, dataset="$[]"), "bundle: received 'no data', allowed is at least one case"),
        (lambda f: _rewrite(f, dataset=[{"image": 0, "label": 0}]), "preprocessed images that fit it"),
        (
            lambda f: _rewrite(
                f,
                imports=["$import torch"],
                dataset={
                    "_target_": "Dataset",
                    "data": "$[{'image': torch.ones(1, 16, 16), 'label': 1}]",
                    "transform": {"_target_": "RandGaussianNoised", "keys": "image", "prob": 1.0},
                },
            ),
            "preprocessing that is random",
        ),
    ],
)  # fmt: skip
def test_bundles_that_do_not_load_say_why(tmp_path: Path, change: Any, message: str) -> None:
    source = _classification(tmp_path / "b")
    _rewrite(tmp_path / "b", imports=["$import torch"])
    change(tmp_path / "b")
    with pytest.raises(InputError, match=message):
        source.open()


def test_weights_that_run_code_are_refused_unread(tmp_path: Path) -> None:
    source = _classification(tmp_path / "b")
    torch.save({"state_dict": Malicious(tmp_path / "ran")}, tmp_path / "b" / "models" / "model.pt")
    with pytest.raises(InputError, match="allowed is a state dict of tensors, text and numbers"):
        source.open()
    assert not (tmp_path / "ran").exists()


def test_checkpoints_with_more_in_them(tmp_path: Path) -> None:
    source = _classification(tmp_path / "b")
    file = tmp_path / "b" / "models" / "model.pt"
    weights = torch.load(file)
    before = contents(marks_of(source.open().files))
    torch.save({"epoch": 3, "model": {f"module.{name}": value for name, value in weights.items()}}, file)
    model = source.open()
    assert contents(marks_of(model.files)) != before
    loaded = model.load(model.cases[0]).network.network.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


# -------------------------------------------------------------------- as in the Model Zoo


def _zoo_segmentation(folder: Path, data: Path, count: int = 3) -> Path:
    """The configs of a Model Zoo segmentation: nested sections, macros, a cache, data that lie elsewhere."""
    both = ["image", "label"]
    deterministic = [
        {"_target_": "LoadImaged", "keys": both},
        {"_target_": "EnsureChannelFirstd", "keys": both},
        {"_target_": "Orientationd", "keys": both, "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": both, "pixdim": [2.0, 1.0, 1.0], "mode": ["bilinear", "nearest"]},
        {"_target_": "NormalizeIntensityd", "keys": "image"},
        {"_target_": "EnsureTyped", "keys": both},
    ]
    write_volumes(data, (12, 12, 12), count)
    train = {
        "imports": ["$import glob", "$import os", "$import ignite"],
        "ckpt_dir": "$@bundle_root + '/models'",
        "dataset_dir": "/workspace/data/Task09_Cubes",
        "images": "$list(sorted(glob.glob(@dataset_dir + '/image*.nii.gz')))",
        "labels": "$list(sorted(glob.glob(@dataset_dir + '/label*.nii.gz')))",
        "network_def": _unet(3, 2),
        "network": "$@network_def.to(@device)",
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 1e-4},
        "train": {
            "deterministic_transforms": deterministic,
            "random_transforms": [{"_target_": "RandFlipd", "keys": both, "prob": 0.5}],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "postprocessing": {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
                "transform": "@validate#preprocessing",
                "cache_rate": 1.0,
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": 1, "num_workers": 4},
            "inferer": _window(8, 3),
            "postprocessing": "%train#postprocessing",
            "evaluator": {
                "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@validate#dataloader",
                "network": "@network", "inferer": "@validate#inferer", "amp": True,
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@validate#evaluator.run()"],
    }  # fmt: skip
    evaluate = {
        "validate#handlers": [{"_target_": "CheckpointLoader", "load_path": "$@ckpt_dir + '/model.pt'",
                               "load_dict": {"model": "@network"}}],
        "run": ["$@validate#evaluator.run()"],
    }  # fmt: skip
    torch.manual_seed(0)
    write_bundle(folder, train, evaluate, UNet(3, 1, 2, (4, 8), (2,)), {"0": "background", "1": "cube"})
    return folder


def _zoo_classification(folder: Path) -> Path:
    """The layout of the Model Zoo's classification template: YAML, flat keys, a JSON list, image files."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "data").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for i in range(6):
        file = folder / "data" / f"scan {i}.png"
        Image.fromarray(generator.integers(0, 255, (16, 12), np.uint8)).save(file)
        rows.append({"image": str(file), "label": i % 3})
    (folder / "data" / "samples.json").write_text(json.dumps(rows))
    (folder / "configs" / "train.yaml").write_text(
        """
imports:
- $import json
image: $monai.utils.CommonKeys.IMAGE
label: $monai.utils.CommonKeys.LABEL
num_classes: 4
device: $torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')
bundle_root: .
dataset_dir: $@bundle_root + '/data'
network_def:
  _target_: DenseNet
  spatial_dims: 2
  in_channels: 1
  out_channels: '@num_classes'
  init_features: 4
  growth_rate: 4
  block_config: [2, 2]
data_fp: "$open(@dataset_dir + '/samples.json', 'r', encoding='utf8')"
data_dict: "$json.load(@data_fp)"
partitions: '$monai.data.partition_dataset(@data_dict, (1, 5), shuffle=False)'
base_transforms:
- _target_: LoadImaged
  keys: '@image'
- _target_: EnsureChannelFirstd
  keys: '@image'
val_transforms:
- _target_: ScaleIntensityRanged
  keys: '@image'
  a_min: 0
  a_max: 255
  b_min: 0
  b_max: 1
- _target_: Resized
  keys: '@image'
  spatial_size: [16, 16]
val_preprocessing:
  _target_: Compose
  transforms: $@base_transforms + @val_transforms
val_dataset:
  _target_: Dataset
  data: '$@partitions[1]'
  transform: '@val_preprocessing'
inferer:
  _target_: SimpleInferer
"""
    )
    (folder / "configs" / "evaluate.yaml").write_text("num_classes: 3\n")
    torch.manual_seed(0)
    torch.save({"model": DenseNet(2, 1, 3, 4, 4, (2, 2)).state_dict()}, folder / "models" / "model.pt")
    return folder


def test_a_zoo_segmentation_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its data are named on the command line; a damaged file is named, in spite of the cache, and the others go on."""
    folder = _zoo_segmentation(tmp_path / "spleen", tmp_path / "elsewhere")
    words = ["--bundle", str(folder), "--norm", "linf", "--eps", "0.5"]
    assert evaluate(tmp_path / "out", *words, models=()) == 2
    assert (
        "bundle: received 'no data', allowed is at least one case that can be read; dataset_dir is "
        "'/workspace/data/Task09_Cubes', which is not here: name yours, --bundle-override dataset_dir=PATH, "
        "in Python options={'overrides': ['dataset_dir=PATH']}."
    ) in capsys.readouterr().err
    data = tmp_path / "elsewhere" / "data"
    (data / "image1.nii.gz").write_bytes((data / "image1.nii.gz").read_bytes()[:500])
    words += ["--bundle-override", f"dataset_dir={data}"]
    assert evaluate(tmp_path / "out", *words, models=()) == 1
    said = capsys.readouterr().out
    assert "not used: spleen, image1.nii.gz: case: received 'image1.nii.gz', allowed is a case that the bundle" in said
    records = read_records(tmp_path / "out")
    assert {r.case for r in records} == {"image0.nii.gz", "image2.nii.gz"}
    for case in ("image0.nii.gz", "image2.nii.gz"):
        clean, *attacked = [r.worst[0].score for r in records if r.case == case]
        assert attacked[-1] < clean
    # The same command goes on; another overlap is another model.
    assert evaluate(tmp_path / "out", *words, models=()) == 1
    assert evaluate(tmp_path / "out", *words, "validate#inferer#overlap=0.25", models=()) == 2
    assert "models[spleen].fingerprint: other weights, other data, or deployed in" in capsys.readouterr().err


def test_overrides(tmp_path: Path) -> None:
    folder = str(_zoo_segmentation(tmp_path / "b", tmp_path / "d", 2))
    data = f"dataset_dir={tmp_path / 'd' / 'data'}"

    def opened(*more: str) -> BundleSegmenter:
        model = BundleSource(folder, overrides=(data, *more)).open()
        assert isinstance(model, BundleSegmenter)
        return model

    inferer = opened("validate#inferer#overlap=0.25", "validate::inferer::roi_size=[4, 4, 4]").bundle.network.inferer
    assert isinstance(inferer, SlidingWindowInferer)
    assert (inferer.overlap, inferer.roi_size) == (0.25, [4, 4, 4])
    assert opened().cases == ("image0.nii.gz", "image1.nii.gz")
    half = opened("validate#dataset#data=$[{'image': @images[1], 'label': @labels[1]}]")
    assert half.cases == ("image1.nii.gz",)
    # An argument that the config leaves to MONAI's default may be given.
    assert opened("validate#inferer#sigma_scale=0.5").bundle.network.inferer.sigma_scale == 0.5  # type: ignore[union-attr]
    # As in `monai.bundle run`: new keys, and + for more of a dictionary; + also for a new key that looks like a typo.
    new = opened("mine=0.25", "validate#inferer#overlap=@mine").bundle.network.inferer
    assert new.overlap == 0.25  # type: ignore[union-attr]
    merged = opened('+validate#inferer={"overlap": 0.75}').bundle.network.inferer
    assert (merged.overlap, merged.mode) == (0.75, inferer.mode)  # type: ignore[union-attr]
    opened("+datasetdir=/x")
    # An argument that the config leaves to its default may look like another one (cache_rate).
    opened("validate#dataset#cache_num=1")
    for word, message in (
        (
            "datasetdir=/x",
            "bundle-override: received 'datasetdir=/x', allowed is a key of the bundle's config; did you",
        ),
        ("validation#dataset=1", "allowed is a key of the bundle's config; there is no 'validation'"),
        ("+dataset_dir=[1]", "a list or a dictionary, as the str there"),
        ("dataset_dir", "allowed is KEY=VALUE, such as dataset_dir=/data/spleen"),
        ("=3", "allowed is KEY=VALUE"),
    ):
        with pytest.raises(InputError, match=message):
            opened(word)


def test_a_zoo_classification_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _zoo_classification(tmp_path / "cells")
    model = BundleSource(str(folder)).open()
    assert isinstance(model, BundleClassifier)
    assert model.names == tuple(f"scan {i}.png" for i in range(1, 6))
    assert model.labels.tolist() == [1, 2, 0, 1, 2]
    assert model.classes == ("class 0", "class 1", "class 2")
    assert model.unit == "units of the bundle's preprocessed image, 1 = 255 in the files"
    network = DenseNet(2, 1, 3, 4, 4, (2, 2)).eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt")["model"])
    with torch.no_grad():
        right = (network(model.images).argmax(1) == model.labels).double().mean()
    # A radius of 2 grey levels of the files.
    words = ["--bundle", str(folder), "--norm", "linf", "--eps", "2", "--unit", "raw", "--box", "0", "1"]
    assert evaluate(tmp_path / "out", *words, models=()) == 0
    assert re.search(rf"cells +clean +{100 * right:.1f} +5\n", capsys.readouterr().out)
    (case,) = model.cases
    assert model.load(case).threat(Level("linf", 2.0, "raw")).eps == pytest.approx(2 / 255)


def test_bundles_that_are_not_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``monai.bundle init_bundle`` leaves it; with configs but without weights; with images but without labels."""

    def refused(*words: str) -> str:
        code = evaluate(tmp_path / "out", "--bundle", str(tmp_path / "b"), *words, models=())
        assert code == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    with redirect_stdout(io.StringIO()):
        init_bundle(str(tmp_path / "b"))
    assert "or name its config with --bundle-config; in configs there is inference.json, metadata.json." in refused()
    assert "key network_def', allowed is a part that loads; ModuleNotFoundError" in refused(
        "--bundle-config", "configs/inference.json"
    )
    shutil.rmtree(tmp_path / "b")
    _zoo_segmentation(tmp_path / "b", tmp_path / "d")
    data = ["--bundle-override", f"dataset_dir={tmp_path / 'd' / 'data'}"]
    weights = tmp_path / "b" / "models" / "model.pt"
    weights.rename(weights.with_name("model_final.pt"))
    said = refused(*data)
    assert f"bundle-weights: received '{weights}', allowed is an existing file; in {weights.parent} there is" in said
    assert "there is model_final.pt; train the bundle, download its weights, or name them" in said
    data = ["--bundle-weights", "models/model_final.pt", *data]
    no_labels = "validate#dataset#data=$[{'image': i} for i in @images]"
    loads = 'validate#preprocessing={"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": true}'
    said = refused(*data, no_labels, loads)
    assert said.startswith("monai-adv: b: no case can be read. dataset: received")
    assert said.endswith("items with the keys image and label, or pairs of them; an attack needs the truth.\n")


# -------------------------------------------------------------------- the command line


def _sources(*words: str, **more: Any) -> list[BundleSource]:
    parser = argparse.ArgumentParser()
    bundle.add_arguments(parser)
    return bundle.sources(argparse.Namespace(**vars(parser.parse_args(words)), **more))


def test_arguments(tmp_path: Path) -> None:
    assert _sources() == []
    (tmp_path / "one" / "m").mkdir(parents=True)
    found = _sources("--bundle", f"{tmp_path}/one/m", f"{tmp_path}/two/m", device="cpu", box=[0, 1])
    assert [source.name for source in found] == ["one/m", "two/m"]
    assert found[0].box == (0.0, 1.0)
    assert found[0].configs is None
    (named,) = _sources("--bundle", "x", "--bundle-config", "a.json", "b.yaml", "--bundle-weights", "w.pt")
    assert (named.configs, named.weights, named.name) == (("a.json", "b.yaml"), "w.pt", "x")
    with pytest.raises(InputError, match="--bundle: .*each folder once"):
        _sources("--bundle", "x", "x")
    with pytest.raises(InputError, match="--bundle-config: .*an addition to --bundle FOLDER"):
        _sources("--bundle-config", "a.json")
    with pytest.raises(InputError, match="bundle: received .*nowhere', allowed is an existing folder"):
        BundleSource(str(tmp_path / "nowhere")).open()
    with pytest.raises(InputError, match="or name its config with --bundle-config"):
        found[0].open()
    with pytest.raises(InputError, match="a.json', allowed is an existing file; in configs there is nothing"):
        BundleSource(found[0].folder, ("a.json",)).open()

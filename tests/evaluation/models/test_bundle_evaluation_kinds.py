"""Bundles whose labels, caches, channels and configs the evaluation must not take for something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, PersistentDataset
from torch import nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.bundle.item import item_of
from monai_adv.evaluation.models.bundle.models import BundleClassifier, BundleSegmenter, as_model
from monai_adv.evaluation.models.bundle.opened import OpenBundle
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.records import Level
from tests.evaluation.models.test_bundle_evaluation import (
    LISTS,
    VALIDATION,
    _classification,
    _segmentation,
    _sources,
    _unet,
    write_bundle,
    write_volumes,
)

Config = dict[str, Any]
DICE: Config = {"_target_": "DiceLoss", "sigmoid": True, "to_onehot_y": True, "include_background": False}
THRESHOLD: Config = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": ["pred", "label"], "threshold": [0.5, None]},
    ],
}


class Constant(nn.Module):
    """Logits (9, 1, -1) where the image is bright, otherwise (9, -1, -1): argmax never finds the class, sigmoids do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = torch.where(x > 0.5, 1.0, -1.0) + 0 * x
        return torch.cat([9 + 0 * x, bright, 0 * x - 1], 1)


def items(shape: tuple[int, ...] = (1, 4, 4)) -> list[Config]:
    image = torch.zeros(shape)
    image[:, :2] = 1
    return [{"image": image, "label": (image > 0).float()} for _ in range(2)]


def segmentation(**more: Any) -> BundleSegmenter:
    model = as_model(OpenBundle("b", Constant(), _simple, _Items(items()), **more))
    assert isinstance(model, BundleSegmenter)
    return model


def _simple(images: torch.Tensor, network: Any) -> Any:
    return network(images)


class _Items(torch.utils.data.Dataset[Config]):
    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return self.data[i]


# -------------------------------------------------------------------- softmax or sigmoid


def test_sigmoid_classes_are_measured_as_the_bundle_decides() -> None:
    """The network finds class 1 exactly and class 2 nowhere: 1.0; argmax would say 0."""
    by_sigmoid, by_argmax = segmentation(rule="sigmoid"), segmentation(rule="softmax")
    assert by_sigmoid.classes == by_argmax.classes == ("class 1", "class 2")
    case = by_sigmoid.load("0")
    assert case.scores(case.images)[0].score == 1.0
    assert case.target.shape == (1, 2, 4, 4)  # type: ignore[union-attr]
    assert "decided is each channel by its sigmoid above 0.5, the background left out" in by_sigmoid.space
    plain = by_argmax.load("0")
    assert plain.scores(plain.images)[0].score == 0.0
    assert "because the bundle does not say how" in segmentation().space
    assert by_sigmoid.fingerprint != by_argmax.fingerprint


def test_sigmoid_classes_do_not_swallow_label_values() -> None:
    model = segmentation(rule="sigmoid")
    model.bundle.dataset.data[1]["label"] = torch.full((1, 4, 4), 3.0)
    with pytest.raises(InputError, match="labels of 1.*whole numbers from 0 to 2"):
        model.load("1")


@pytest.mark.parametrize(
    ("more", "given", "sigmoid"),
    [
        ({"loss": DICE}, None, True),
        ({"loss": {"_target_": "DiceLoss", "softmax": True, "to_onehot_y": True}}, None, False),
        ({"train#postprocessing": THRESHOLD}, None, True),
        # What is deployed decides, and what the user says before everything.
        ({"loss": {"_target_": "torch.nn.CrossEntropyLoss"}, "validate#postprocessing": THRESHOLD}, None, True),
        ({"loss": DICE}, "softmax", False),
        ({}, "sigmoid", True),
        ({}, None, False),
        ({"postprocessing": {"_target_": "no.such.thing"}, "loss": DICE}, None, True),
    ],
)
def test_the_config_says_it(tmp_path: Path, more: Config, given: Any, sigmoid: bool) -> None:
    _segmentation(tmp_path / "b", 2, heads=3)
    (tmp_path / "b" / "configs" / "evaluate.json").write_text(json.dumps({"train": {}, **more}))
    model = BundleSource(str(tmp_path / "b"), activation=given).open()
    assert isinstance(model, BundleSegmenter)
    assert model.layout.sigmoid == sigmoid


def test_a_third_rule_is_refused(tmp_path: Path) -> None:
    _segmentation(tmp_path / "b", 2, heads=3)
    low = json.loads(json.dumps(THRESHOLD).replace("0.5", "0.3"))
    (tmp_path / "b" / "configs" / "evaluate.json").write_text(json.dumps({"validate#postprocessing": low}))
    with pytest.raises(InputError, match="a threshold of 0.3 after sigmoid"):
        BundleSource(str(tmp_path / "b")).open()
    BundleSource(str(tmp_path / "b"), activation="sigmoid").open()


# -------------------------------------------------------------------- classifiers of patches


class Split(_Items):
    """As GridSplitd: every item is a list of four patches, whose label keeps its axes of size 1."""

    def __getitem__(self, i: int) -> Any:
        return [
            {"image": torch.full((1, 4, 4), 0.1 * k + i), "label": torch.full((1, 1, 1), float(k % 2))}
            for k in range(4)
        ]


class Pooled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True) - 0.5  # (B, 1, 1, 1)


def test_items_that_a_transform_splits() -> None:
    model = as_model(OpenBundle("b", Pooled(), _simple, Split([{}] * 2)))
    assert isinstance(model, BundleClassifier)
    assert model.names == tuple(f"{i} part {k}" for i in range(2) for k in range(1, 5))
    assert model.labels.tolist() == [0, 1, 0, 1] * 2
    (case,) = model.cases
    loaded = model.load(case)
    # Means 0, .1, .2, .3 are below 0.5 and so class 0; those above 1 are class 1.
    assert [score.score for score in loaded.scores(loaded.images)] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_a_segmentation_must_not_be_split() -> None:
    class Halves(_Items):
        def __getitem__(self, i: int) -> Any:
            return items()

    model = as_model(OpenBundle("b", Constant(), _simple, Halves([{}])))
    with pytest.raises(InputError, match="2 patches of 0.*leave the splitting to the inferer"):
        model.load("0")


# -------------------------------------------------------------------- caches and spacing


def test_a_cache_on_disk_is_neither_read_nor_written(tmp_path: Path) -> None:
    """A stale cache of an older config, and one that MONAI would fill: the spacing is that of the files, (2, 1, 1)."""
    folder = tmp_path / "b"
    write_volumes(folder, (12, 12, 12))
    dataset = {**VALIDATION["dataset"], "_target_": "PersistentDataset", "cache_dir": "$@bundle_root + '/cache'"}
    train = {
        **LISTS,
        "network_def": _unet(3, 2),
        "validate": {"dataset": dataset, "inferer": {"_target_": "SimpleInferer"}},
    }
    from monai.networks.nets.unet import UNet

    write_bundle(folder, train, {}, UNet(3, 1, 2, (4, 8), (2,)))
    for _ in range(2):
        model = BundleSource(str(folder)).open()
        assert isinstance(model, BundleSegmenter)
        assert model.load(model.cases[0]).spacing == pytest.approx((2.0, 1.0, 1.0))
    assert not (folder / "cache").exists()


def test_nor_that_of_a_data_set_that_is_made_already(tmp_path: Path) -> None:
    cached = PersistentDataset(items(), [], cache_dir=tmp_path / "cache")
    as_model(OpenBundle("b", Constant(), _simple, torch.utils.data.Subset(cached, [0])))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_header_whose_voxels_have_no_size_is_refused() -> None:
    affine = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    image, label = (MetaTensor(torch.ones(1, 2, 2, 2), affine, {"filename_or_obj": "a.nii"}) for _ in range(2))
    with pytest.raises(InputError, match=r"spacing: received .*, allowed is 3 numbers > 0"):
        item_of({"image": image, "label": label}, "a")


def test_spacing_comes_from_the_label_where_a_transform_makes_a_new_image(tmp_path: Path) -> None:
    """As renalStructures_CECT_segmentation, which concatenates its phases."""
    source = _segmentation(tmp_path / "b", 3, size=12)
    file = tmp_path / "b" / "configs" / "train.json"
    config = json.loads(file.read_text())
    for keys, spacing, said in (("image", (2.0, 1.0, 1.0), False), (["image", "label"], (1.0, 1.0, 1.0), True)):
        func = "$lambda x: torch.as_tensor(__import__('numpy').concatenate([x]))"
        config["validate"]["dataset"]["transform"]["transforms"].append(
            {"_target_": "Lambdad", "keys": keys, "func": func}
        )
        file.write_text(json.dumps(config))
        model = source.open()
        assert model.load(model.cases[0]).spacing == pytest.approx(spacing)  # type: ignore[union-attr]
        assert ("HD95 in voxels because their size is not known" in model.space) == said


# -------------------------------------------------------------------- channels, keys, files


def test_channels(tmp_path: Path) -> None:
    data = items((2, 4, 4))
    for item in data:
        item["image"][0] += torch.rand(4, 4)
        item["label"] = item["label"][:1]

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :1], 1 - x[:, :1]], 1)

    def opened(**more: Any) -> Any:
        return as_model(OpenBundle("b", Two(), _simple, _Items(data), **more))

    with pytest.warns(UserWarning, match=r"channels \[1\] of the images hold only 0 and 1"):
        everything = opened()
    first = opened(channels=(0,))
    assert first.load("0").threat(Level("l2", 1.0, "norm")).channels == (0,)
    assert everything.load("0").threat(Level("l2", 1.0, "norm")).channels is None
    assert "preprocessed images (channels 0 of 2)" in first.space
    assert "preprocessed images (all 2 channels)" in everything.space
    assert first.fingerprint != everything.fingerprint
    with pytest.raises(InputError, match=r"channels: received \[2\], allowed is numbers from 0 to 1"):
        opened(channels=(2,))


def test_a_part_under_another_key(tmp_path: Path) -> None:
    """As the templates: `eval_dataset`."""
    source = _classification(tmp_path / "b")
    file = tmp_path / "b" / "configs" / "train.json"
    config = json.loads(file.read_text())
    config["eval_dataset"] = config.pop("dataset")
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="a config with one of the keys"):
        source.open()
    (named,) = _sources(
        "--bundle", source.folder, "--bundle-key", "data=eval_dataset", "--bundle-channels", "0",
        "--bundle-activation", "softmax",
    )  # fmt: skip
    assert (named.keys, named.channels, named.activation) == (("data=eval_dataset",), (0,), "softmax")
    assert len(named.open().cases) == 1
    for words, message in (
        (("data",), "PART=KEY with PART one of network, data, inferer, loss, postprocessing"),
        (("date=x",), "PART=KEY"),
        (("data=eval_datset",), "did you mean 'eval_dataset'"),
    ):
        with pytest.raises(InputError, match=message):
            BundleSource(source.folder, keys=words).open()


def test_files_of_other_keys_belong_to_the_data(tmp_path: Path) -> None:
    """A file for each phase: a change of one of them is another evaluation."""
    file = tmp_path / "vein.npy"
    np.save(file, np.zeros(3))
    data = _Items([{**item, "vein": str(file)} for item in items()])
    before = OpenBundle("b", Constant(), _simple, data)
    assert [found for found in before.files if found.suffix == ".npy"] == [file, file]

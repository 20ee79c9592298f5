"""nnU-Net as a host of the evaluation: known worst cases, units, scores by hand, and the command's vocabulary."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from torch import Tensor, nn

from monai_adv.attacks import PGD
from monai_adv.errors import InputError
from monai_adv.evaluation.models.fingerprint import contents, marks_of
from monai_adv.evaluation.records import Level
from monai_adv.metrics.segmentation import dice, hausdorff95, volume_score
from monai_adv.tasks.volume_slices import VolumeSlicesTask
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation import arguments
from nnunet_trainers.evaluation.case import NNUNetCase, NNUNetPatch
from nnunet_trainers.evaluation.case_files import CaseFiles, find_cases
from nnunet_trainers.evaluation.slice_choice import worst_slices
from nnunet_trainers.evaluation.source import NNUNetSource
from nnunet_trainers.volume_dice import class_masks, class_names, dice_per_class, mean_dice
from tests.places import SHARED
from tests.tiny_nnunet import CLASSES, REGIONS, write_case, write_model, write_planned

HIPPOCAMPUS = SHARED / "Dataset004_Hippocampus"
SIZE = (6, 8, 8)


class WholeImage(nn.Module):
    """Calls every voxel foreground if ``<w, x> + bias > 0``: the L2 distance to its boundary is ``|<w, x> + bias|``."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight / weight.norm())
        self.bias = 0.0

    def score(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        logits = self.score(x).view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])
        return torch.cat([torch.zeros_like(logits), logits], 1)


WholeImageCase = Callable[..., tuple[NNUNetCase, Tensor]]


@pytest.fixture
def whole_image(tmp_path: Path) -> WholeImageCase:
    def make(kind: str = "2d", foreground: bool = True) -> tuple[NNUNetCase, Tensor]:
        """A case whose every window is a whole input, and which the model gets right, and the distance of each input.

        With ``foreground`` every voxel is; otherwise none is.
        """
        files = write_case(tmp_path, SIZE, rim=0)
        _rewrite(files.ground_truth_file, np.full(SIZE, foreground, np.uint8))
        labels = {"background": 0, "organ": 1}
        probe = DeployedModel.from_folder(
            write_model(tmp_path / "probe", (8, 8) if kind == "2d" else (8, 8, 8), labels)
        )
        inputs = probe.to_inputs(probe.preprocess(files.image_files)[0])
        folder = write_model(tmp_path / "model", tuple(inputs.shape[2:]), labels)
        model = DeployedModel.from_folder(folder, name="whole image")
        network = WholeImage(inputs.shape[1:])
        scores = network.score(inputs).detach()
        # All inputs on the right side, the nearest at distance 1.
        network.bias = float(1 - scores.min()) if foreground else float(-1 - scores.max())
        model.network = network
        return NNUNetCase(model, files, model.as_network()), network.score(inputs).detach().abs()

    return make


def _rewrite(file: Path, values: np.ndarray[Any, Any]) -> None:
    """Other values in the same geometry."""
    image = SimpleITK.GetImageFromArray(values)
    image.CopyInformation(SimpleITK.ReadImage(str(file)))
    SimpleITK.WriteImage(image, str(file))


def _case(folder: Path, files: CaseFiles, patch_size: tuple[int, ...] = (16, 12), **model: Any) -> NNUNetCase:
    deployed = DeployedModel.from_folder(write_model(folder, patch_size, **model))
    return NNUNetCase(deployed, files, deployed.as_network())


def _attack(case: NNUNetCase, eps: float, steps: int = 20) -> Tensor:
    attack = PGD(case.threat(Level("l2", eps, "norm")), steps)
    return attack(case.network, case.images, case.target, case.task).images


# -------------------------------------------------------------------- attacked


def test_attacks_find_the_known_worst_case_per_slice(whole_image: WholeImageCase) -> None:
    case, distances = whole_image()
    ordered, total = distances.sort().values, len(distances)
    assert case.scores(case.images)[0].score == 1
    # No slice in reach; the nearest two; all.
    for radius, flipped in ((0.98, 0), (float(ordered[1] + ordered[2]) / 2, 2), (float(ordered[-1]) * 1.02, total)):
        attacked = _attack(case, radius)
        (score,) = case.scores(attacked)
        # Slices are as many in the original geometry: 2D models resample within slices only.
        right = total - flipped
        assert score.score == pytest.approx(2 * right / (2 * right + flipped))
        assert score.dice == {"organ": score.score}
        assert score.case == "case"
        assert (attacked - case.images).flatten(1).norm(dim=1).max() <= radius * (1 + 1e-5)


def test_the_radius_of_a_3d_model_is_per_volume(whole_image: WholeImageCase) -> None:
    case, distances = whole_image("3d")
    assert distances.tolist() == pytest.approx([1.0])
    assert [case.scores(_attack(case, radius))[0].score for radius in (0.98, 1.02)] == [1.0, 0.0]
    assert not isinstance(case.task, VolumeSlicesTask)


def test_slices_without_foreground_are_attacked(whole_image: WholeImageCase) -> None:
    """A class that nobody has yet is worth finding."""
    case, _ = whole_image(foreground=False)
    assert math.isnan(case.scores(case.images)[0].score)  # nobody has the class
    assert case.scores(_attack(case, 0.98))[0].false_positives == ()
    attacked = _attack(case, 1.02)
    (score,) = case.scores(attacked)
    assert score.false_positives == score.absent == ("organ",)  # the nearest slice is called foreground
    assert math.isnan(score.score)  # and still it has no Dice: it would be in one mean and not in the other
    for pair in ((attacked, case.images), (case.images, attacked)):
        assert case.scores(case.combine(*pair))[0].false_positives == ("organ",)


def test_slices_go_on_falling_after_their_own_dice_is_zero(tmp_path: Path) -> None:
    """False positives in slices whose own Dice is 0, or that have no foreground, lower the Dice of the volume."""
    case = _case(tmp_path / "model", write_case(tmp_path))
    empty = (case.labels == 0).flatten(1).all(1)
    assert empty.any()
    assert isinstance(case.task, VolumeSlicesTask)
    assert case.task.lowest_margin == -torch.inf
    before, after = case.logits(case.images), case.logits(_attack(case, 3.0))
    false_positives = [(case.task.masks(x, case.target)[0])[empty].sum() for x in (before, after)]
    assert false_positives[1] > false_positives[0]


def test_broken_outputs_count_as_wrong(tmp_path: Path) -> None:
    for labels in (CLASSES, REGIONS):
        case = _case(tmp_path / f"model{len(labels)}", write_case(tmp_path), labels=labels)
        broken = case.images.clone()
        broken[1] = torch.nan
        logits = case.logits(broken)
        assert logits.isfinite().all()
        found, there = (mask[1] for mask in case.task.masks(logits, case.target))
        assert not (found & there).any()
        assert case.scores(torch.full_like(case.images, torch.nan))[0].score < 0.02  # interpolated at the edges


def test_regions_and_ignored_voxels_reach_the_attack(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(files.ground_truth_file)))
    values[:, :, -2:] = 3
    _rewrite(files.ground_truth_file, values)
    case = _case(tmp_path / "model", files, labels=REGIONS)
    flat = case.labels.flatten().tolist()
    maps = case.target.transpose(0, 1).flatten(1).tolist()  # type: ignore[union-attr]
    expected = {0: (0, 0, 0), 1: (1, 0, 0), 2: (1, 1, 0), 3: (0, 0, 1)}
    assert {0, 1, 2, 3} == set(flat)
    assert [tuple(column) for column in zip(*maps, strict=True)] == [expected[value] for value in flat]
    clean, attacked = case.scores(case.images)[0], case.scores(_attack(case, 2.0, 5))[0]
    assert set(clean.dice) == {"whole", "core"}
    assert attacked.score < clean.score


# -------------------------------------------------------------------- mixtures


counts = st.lists(
    st.tuples(*[st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))] * 2),
    min_size=1,
    max_size=6,
)


@given(counts, st.integers(1, 2))
def test_worst_slices(slices: list[Any], classes: int) -> None:
    """One class: the optimum over all mixtures. Two: never above either version. Absent classes included."""
    # From (true positive, false positive, false negative, false positive of the other version) per slice and class.
    true_positive = torch.zeros(2, len(slices), classes, dtype=torch.long)
    size = torch.zeros_like(true_positive)
    for i, row in enumerate(slices):
        for c in range(classes):
            hit, false, missed, other = row[c]
            there = hit + missed
            for version, (positive, extra) in enumerate(((hit, false), (max(0, hit - other), other))):
                true_positive[version, i, c] = positive
                size[version, i, c] = positive + extra + there

    def value(choice: tuple[bool, ...]) -> float:
        pick = torch.tensor(choice)[:, None]
        tp, s = (torch.where(pick, v[1], v[0]).sum(0).tolist() for v in (true_positive, size))
        known = [2 * t / n for t, n in zip(tp, s, strict=True) if n]
        return sum(known) / len(known) if known else math.inf

    found = value(tuple(worst_slices(true_positive, size).tolist()))
    every = list(itertools.product((False, True), repeat=len(slices)))
    assert found <= min(value(every[0]), value(every[-1])) + 1e-9
    if classes == 1:
        assert found == pytest.approx(min(map(value, every))) or found == min(map(value, every))


def test_combining_slices_beats_both_versions(whole_image: WholeImageCase) -> None:
    case, distances = whole_image()
    attacked = _attack(case, float(distances.max()) * 1.02)  # all slices wrong
    even, odd = case.images.clone(), case.images.clone()
    even[::2], odd[1::2] = attacked[::2], attacked[1::2]
    mixed = case.combine(even, odd)
    assert case.scores(mixed)[0].score == 0
    assert torch.equal(mixed, attacked)
    assert torch.equal(case.combine(case.images, even), even)


def test_a_3d_model_takes_the_worse_volume(whole_image: WholeImageCase) -> None:
    case, _ = whole_image("3d")
    attacked = _attack(case, 1.02)
    for pair in ((attacked, case.images), (case.images, attacked)):
        assert case.combine(*pair) is attacked


# -------------------------------------------------------------------- scores


def test_dice_of_classes_regions_and_ignored_voxels() -> None:
    truth, found = np.array([0, 1, 1, 2, 2, 3]), np.array([0, 1, 2, 2, 0, 1])
    assert dice_per_class(found, truth, {"background": 0, "one": 1, "two": 2, "ignore": 3}) == {
        "one": pytest.approx(2 / 3),
        "two": 0.5,
    }
    assert dice_per_class(found, truth, {"background": 0, "all": [1, 2], "ignore": 3}) == {"all": pytest.approx(6 / 7)}
    assert mean_dice({"a": 0.5, "b": math.nan, "c": 1.0}) == 0.75
    assert math.isnan(mean_dice({"a": math.nan}))
    assert class_names({"background": 0, "one": 1, "ignore": 3}) == ("one",)


def test_policy_for_what_is_empty() -> None:
    some, none = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    score = volume_score(
        "x",
        {"both": (some, some), "neither": (none, none), "only found": (some, none), "missed": (none, some)},
        (1,) * 3,
    )
    assert score.dice["both"] == 1
    assert math.isnan(score.dice["neither"])
    assert score.dice["only found"] == score.dice["missed"] == 0
    assert score.score == pytest.approx(1 / 3)  # the mean over those that are defined
    assert (score.absent, score.false_positives) == (("neither", "only found"), ("only found",))
    assert [name for name, value in score.hd95.items() if math.isnan(value)] == ["neither", "only found", "missed"]
    assert score.hd95["both"] == 0
    assert math.isnan(dice(none, none))


def test_hd95_is_in_millimetres_of_the_image() -> None:
    one, other = np.zeros((2, 12, 9, 9), bool)
    one[2:5, 3:6, 3:6] = True
    other[5:8, 3:6, 3:6] = True  # three voxels along the first axis
    assert hausdorff95(one, other, (2.5, 1, 1)) == pytest.approx(7.5)
    assert hausdorff95(one.transpose(1, 0, 2), other.transpose(1, 0, 2), (1, 2.5, 1)) == pytest.approx(7.5)
    # An image is no volume of one slice: the shift within it is what counts.
    image, shifted = np.zeros((2, 1, 9, 9), bool)
    image[0, 2:6, 2:6], shifted[0, 3:7, 2:6] = True, True
    assert hausdorff95(image, shifted, (999, 2, 2)) == pytest.approx(2)


def test_scores_are_of_the_original_geometry(tmp_path: Path) -> None:
    """Anisotropic, transposed, cropped, resampled: a segmentation is compared with the file, in the file's mm."""
    case = _case(tmp_path / "model", write_case(tmp_path))
    truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "labelsTr" / "case.nii.gz")))
    np.testing.assert_array_equal(case.truth, truth)
    assert case.spacing == pytest.approx((1.25, 1.0, 0.8))
    labels = case.segment(case.logits(case.images))
    assert labels.shape == truth.shape
    (score,) = case.scores(case.images)
    for name, (found, there) in class_masks(labels, truth, CLASSES).items():
        assert score.dice[name] == dice(found, there)
        assert score.hd95[name] == pytest.approx(hausdorff95(found, there, case.spacing), nan_ok=True)


# -------------------------------------------------------------------- patches


@pytest.mark.parametrize("patch_size", [(8, 4), (4, 8, 4)], ids=["2d", "3d"])
def test_patches_are_around_the_foreground(tmp_path: Path, patch_size: tuple[int, ...]) -> None:
    files = write_case(tmp_path)
    model = DeployedModel.from_folder(write_model(tmp_path / "model", patch_size))
    case = NNUNetPatch(model, files, model.as_network())
    assert tuple(case.images.shape) == (1, 1, *patch_size)
    assert case.truth.shape == ((1,) if len(patch_size) == 2 else ()) + patch_size
    assert (case.truth > 0).any()
    (score,) = case.scores(case.images)
    found = case.network(case.images).argmax(1)
    assert score.dice == pytest.approx(dice_per_class(found.numpy(), case.labels[0].numpy(), CLASSES), nan_ok=True)
    (picture,) = case.picture(case.images + 1)
    assert picture.caption.startswith("patch, slice ")
    assert picture.clean.shape == picture.truth.shape == picture.on_attacked.shape == patch_size[-2:]


# -------------------------------------------------------------------- pictures


def test_pictures(whole_image: WholeImageCase) -> None:
    case, distances = whole_image()
    nearest = int(distances.argmin())
    attacked = case.images.clone()
    attacked[nearest] = _attack(case, 1.02)[nearest]
    (picture,) = case.picture(attacked)
    assert picture.case == "case"
    assert picture.caption == f"slice {nearest + 1} of {len(distances)}"  # all have equally much foreground
    assert (picture.truth == 1).all()
    assert (picture.on_clean == 1).all()
    assert (picture.on_attacked == 0).all()
    assert isinstance(case.model.network, WholeImage)
    np.testing.assert_allclose(
        picture.attacked - picture.clean, -1.02 * case.model.network.weight.detach().numpy()[0], atol=1e-5
    )


# -------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("scheme", "masked"),
    [("CTNormalization", False), ("ZScoreNormalization", False), ("ZScoreNormalization", True),
     ("RescaleTo01Normalization", False), ("NoNormalization", False), ("RGBTo01Normalization", False)],
)  # fmt: skip
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_raw_radii_by_changing_the_file(tmp_path: Path, scheme: str, masked: bool, norm: Any) -> None:
    """A change of the file by d inside the body is one of d / unit in the network's image."""
    files = write_case(tmp_path, (10, 12, 11), rim=0 if scheme != "ZScoreNormalization" else 1)
    model = DeployedModel.from_folder(write_planned(tmp_path, [scheme], masked))
    case = NNUNetCase(model, files, model.as_network())
    raw = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(files.image_files[0])))
    body = raw[1:-1, 1:-1, 1:-1] if scheme == "ZScoreNormalization" else raw
    unit = {
        "CTNormalization": 40.0,
        "ZScoreNormalization": float(body.std()),
        "RescaleTo01Normalization": float(body.max() - body.min()),
        "NoNormalization": 1.0,
        "RGBTo01Normalization": 255.0,
    }[scheme]
    threat = case.threat(Level(norm, 3.0, "raw"))
    assert threat.eps == pytest.approx(3.0 / unit, rel=1e-4)
    assert (threat.norm, threat.unit) == (norm, "rms" if norm == "l2" else "norm")
    assert case.threat(Level(norm, 3.0, "norm")).eps == 3.0
    # What no file can hold is out of bounds: here the plan clips at 0 and 500.
    box = {"CTNormalization": (-90 / 40, 410 / 40), "RGBTo01Normalization": (0.0, 1.0)}.get(scheme)
    assert threat.box == (None if box is None else pytest.approx(box))


def test_units_that_cannot_be_converted(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    second = tmp_path / "imagesTr" / "case_0001.nii.gz"
    values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(files.image_files[0])))
    second.write_bytes(files.image_files[0].read_bytes())
    _rewrite(second, values * 3)
    files = dataclasses.replace(files, image_files=(*files.image_files, second))
    folder = write_planned(tmp_path, ["ZScoreNormalization"] * 2, channels=2)
    model = DeployedModel.from_folder(folder)
    case = NNUNetCase(model, files, model.as_network())
    with pytest.raises(InputError, match="channels of different scales; case: one unit is channel 0"):
        case.threat(Level("linf", 1.0, "raw"))
    assert case.threat(Level("l2", 0.1, "rms")).unit == "rms"
    case.properties["raw_units"] = [None, 1.0]
    with pytest.raises(InputError, match="normalisation is not one of nnU-Net's"):
        case.threat(Level("linf", 1.0, "raw"))


# -------------------------------------------------------------------- source and model


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, NNUNetSource]:
    for name in ("a", "b"):
        write_case(tmp_path, name=name)
    folder = write_model(tmp_path / "model")
    return tmp_path, NNUNetSource(str(folder), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"))


def test_subject(data: tuple[Path, NNUNetSource]) -> None:
    _, source = data
    model = pickle.loads(pickle.dumps(source)).open()
    assert (model.name, model.kind, model.classes) == ("model", "segmentation", ("front", "back"))
    assert (model.cases, model.problems) == (("a", "b"), ())
    assert "whole volumes through nnU-Net's sliding window (Gaussian weighting" in model.space
    assert "mirroring off" in model.space
    assert "each slice has a radius of its own" in model.space
    assert model.unit == "standard deviations of the normalised image (MRI ZScoreNormalization)"
    assert model.load("b").name == "b"
    with pytest.raises(InputError, match="case: received 'c', allowed is one of a, b"):
        model.load("c")
    boxed = dataclasses.replace(source, box=(-9.0, 9.0)).open().load("a")
    assert boxed.threat(Level("linf", 0.1)).box == (-9.0, 9.0)


def test_what_is_said_about_other_modes(data: tuple[Path, NNUNetSource], tmp_path: Path) -> None:
    _, source = data
    model = dataclasses.replace(source, mode="patch", mirroring=True, note="held out").open()
    assert "one patch (16 × 12) per volume" in model.space
    assert "faster, and not the deployed measure; mirroring on; held out" in model.space
    assert isinstance(model.load("a"), NNUNetPatch)
    ct = dataclasses.replace(source, model_folder=str(write_planned(tmp_path / "ct", ["CTNormalization"]))).open()
    assert ct.unit == "units of the normalised image, 1 = 40 in the files (channel 0 CTNormalization)"


def test_fingerprint(data: tuple[Path, NNUNetSource]) -> None:
    root, source = data
    first = source.open().fingerprint
    assert source.open().fingerprint == first
    others = [
        dataclasses.replace(source, mirroring=True),
        dataclasses.replace(source, mode="patch"),
        dataclasses.replace(source, cases=("a",)),
        dataclasses.replace(source, box=(-9.0, 9.0)),
    ]
    seen = {first, *(other.open().fingerprint for other in others)}
    assert len(seen) == 5
    assert dataclasses.replace(source, device="cpu", name="other", note="x").open().fingerprint == first
    file = root / "model" / "fold_0" / "checkpoint_final.pth"
    before = contents(marks_of(source.open().files))
    content = torch.load(file, weights_only=False)
    next(iter(content["network_weights"].values())).view(-1)[0] += 1e-3
    torch.save(content, file)
    assert contents(marks_of(source.open().files)) != before


def test_folds_are_averaged(data: tuple[Path, NNUNetSource], tmp_path: Path) -> None:
    root, source = data
    single = source.open().load("a")
    second = root / "model" / "fold_1"
    second.mkdir()
    content = torch.load(root / "model" / "fold_0" / "checkpoint_final.pth", weights_only=False)
    content["network_weights"] = {k: v + 0.05 for k, v in content["network_weights"].items()}
    torch.save(content, second / "checkpoint_final.pth")
    other = dataclasses.replace(source, folds=(1,)).open().load("a")
    model = dataclasses.replace(source, folds=(0, 1)).open()
    both = model.load("a")
    mean = (single.logits(single.images) + other.logits(single.images)) / 2
    torch.testing.assert_close(both.logits(single.images), mean, atol=1e-5, rtol=1e-5)
    assert "mean of the folds 0, 1" in model.space
    assert model.fingerprint != source.open().fingerprint
    volume, _ = both.model.preprocess([root / "imagesTr" / "a_0000.nii.gz"])
    host = both.model.predictor.predict_logits_from_preprocessed_data(volume).float()
    ours = both.model.to_volume(both.logits(both.images))
    assert (ours.argmax(0) == host.argmax(0)).float().mean() > 0.98
    weights = {k: v for k, v in content["network_weights"].items() if "seg_layers" not in k}
    torch.save({**content, "network_weights": weights}, second / "checkpoint_final.pth")
    with pytest.raises(InputError, match="folds of one architecture; PyTorch says"):
        dataclasses.replace(source, folds=(0, 1)).open()


def test_problems_are_collected_and_named(data: tuple[Path, NNUNetSource]) -> None:
    root, source = data
    (root / "labelsTr" / "a.nii.gz").unlink()
    (root / "imagesTr" / "empty_0000.nii.gz").touch()
    model = source.open()
    assert model.cases == ("b",)
    assert len(model.problems) == 2
    assert model.problems[0].startswith(f"a: there is no {root / 'labelsTr' / 'a.nii.gz'}")
    assert model.problems[1].startswith("empty: ")
    assert "empty_0000.nii.gz is empty" in model.problems[1]
    with pytest.raises(InputError, match="at least one case with all its files; images are called CASE_0000.nii.gz"):
        dataclasses.replace(source, cases=("a", "x")).open()


def test_files_that_cannot_be_used_are_named(data: tuple[Path, NNUNetSource], monkeypatch: pytest.MonkeyPatch) -> None:
    root, source = data
    image, truth = root / "imagesTr" / "a_0000.nii.gz", root / "labelsTr" / "a.nii.gz"
    model = source.open()
    good = truth.read_bytes(), image.read_bytes()
    _rewrite(truth, np.full((14, 11, 9), 7, np.uint8))
    with pytest.raises(InputError, match=r"labelsTr/a.nii.gz with the values 7', allowed is the model's labels"):
        model.load("a")
    truth.write_bytes(b"no image")
    with pytest.raises(InputError, match=f"ground_truth_file: received '{truth}', allowed is a whole gzip file"):
        model.load("a")
    write_case(root, (9, 9, 9), "other")
    truth.write_bytes((root / "labelsTr" / "other.nii.gz").read_bytes())
    with pytest.raises(InputError, match="a_0000.nii.gz.*readable images of one shape; nnU-Net says: Shape mismatch"):
        model.load("a")
    truth.write_bytes(good[0])
    image.write_bytes(good[1][:200])
    with pytest.raises(InputError, match="a_0000.nii.gz', allowed is a whole gzip file; .*copy it again"):
        model.load("a")
    image.write_bytes(good[1])
    read = SimpleITKIO.read_images

    def with_nan(reader: SimpleITKIO, files: Any) -> Any:  # NIfTI files lose NaN on their way through ITK
        values, properties = read(reader, files)
        if str(image) in files:
            values[:, 3, 3, 3] = np.nan
        return values, properties

    monkeypatch.setattr(SimpleITKIO, "read_images", with_nan)
    with pytest.raises(InputError, match="a_0000.nii.gz.*there is NaN or infinity"):
        model.load("a")
    monkeypatch.undo()
    assert model.load("b").name == "b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "all"}, "mode: received 'all', allowed is 'whole' or 'patch'"),
        ({"folds": ()}, "at least one fold, each once"),
        ({"folds": (0, 0)}, "at least one fold, each once"),
        ({"patches_per_pass": 0}, "patches_per_pass: received 0"),
        ({"box": (1.0, 1.0)}, "lowest < highest"),
    ],
)
def test_sources_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NNUNetSource("m", "i", "l", **change)


def test_cascades_are_refused(data: tuple[Path, NNUNetSource]) -> None:
    root, source = data
    file = root / "model" / "plans.json"
    plan = json.loads(file.read_text())
    plan["configurations"]["2d"]["previous_stage"] = "3d_lowres"
    plan["configurations"]["3d_lowres"] = plan["configurations"]["2d"] | {"previous_stage": None}
    file.write_text(json.dumps(plan))
    with pytest.raises(InputError):
        source.open()


def test_find_cases(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, name=name) for name in ("a", "b")]
    folders = (tmp_path / "imagesTr", tmp_path / "labelsTr", ".nii.gz")
    assert find_cases(*folders) == (cases, [])
    assert find_cases(*folders, ["b"]) == (cases[1:], [])
    found, problems = find_cases(*folders, files=2)
    assert found == []
    assert "a_0001.nii.gz" in problems[0]
    with pytest.raises(InputError, match="images_folder: received .*, allowed is an existing folder"):
        find_cases(tmp_path / "nowhere", *folders[1:])
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="a folder with files like CASE_0000.nii.gz"):
        find_cases(tmp_path / "none", *folders[1:])


# -------------------------------------------------------------------- the command's vocabulary


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of a user with two trainers and two cases of which one was held out."""
    for variable in ("raw", "preprocessed", "results"):
        (tmp_path / variable / "Dataset999_Tiny").mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    for name in ("a", "b"):
        write_case(tmp_path / "raw" / "Dataset999_Tiny", name=name)
    (tmp_path / "raw" / "Dataset999_Tiny" / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    for trainer in ("nnUNetTrainer", "IMATrainer"):
        write_model(tmp_path / "results" / "Dataset999_Tiny" / f"{trainer}__tinyPlans__2d")
    splits = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (tmp_path / "preprocessed" / "Dataset999_Tiny" / "splits_final.json").write_text(json.dumps(splits))
    return tmp_path


def _parsed(*words: str, **more: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(words)), **more)


def _sources(*words: str, **more: Any) -> list[NNUNetSource]:
    return arguments.sources(_parsed(*words, **more))


def test_by_data_set(nnunet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-d", "999", "-c", "2d", "-tr", "nnUNetTrainer", "IMATrainer", "-p", "tinyPlans", "--mirroring"]
    plain, ima = _sources(*words, device="cpu", box=None)
    assert (plain.name, ima.name) == ("nnUNetTrainer", "IMATrainer")
    assert Path(ima.model_folder).name == "IMATrainer__tinyPlans__2d"
    assert (plain.cases, plain.folds, plain.mirroring, plain.mode) == (("b",), (0,), True, "whole")
    assert "1 validation cases of fold 0 of Dataset999_Tiny" in capsys.readouterr().err
    model = plain.open()
    assert model.cases == ("b",)
    assert "; 1 validation cases of fold 0 of Dataset999_Tiny" in model.space
    (patches,) = _sources("-d", "Dataset999_Tiny", "-c", "2d", "-p", "tinyPlans", "-f", "1", "--patches", box=[0, 1])
    assert (patches.cases, patches.mode, patches.box) == (("a",), "patch", (0.0, 1.0))
    assert _sources() == []


def test_by_folder(nnunet: Path) -> None:
    raw, results = nnunet / "raw" / "Dataset999_Tiny", nnunet / "results" / "Dataset999_Tiny"
    data = ["-i", str(raw / "imagesTr"), "-gt", str(raw / "labelsTr")]
    folders = [str(results / f"{t}__tinyPlans__2d") for t in ("nnUNetTrainer", "IMATrainer")]
    found = _sources("-m", *folders, *data, device="cpu")
    assert [source.name for source in found] == ["nnUNetTrainer__tinyPlans__2d", "IMATrainer__tinyPlans__2d"]
    assert [source.cases for source in found] == [None, None]
    several = _sources("-d", "999", "-c", "2d", "-p", "tinyPlans", "-f", "0", "1", *data)
    assert several[0].folds == (0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-d 999", "-c: received None, allowed is a configuration"),
        ("-d 998 -c 2d", "-d: received '998', allowed is one data set in .*; there are Dataset999_Tiny"),
        ("-d 999 -c 3d -p tinyPlans", "did you mean 'nnUNetTrainer__tinyPlans__2d'"),
        ("-d 999 -c 2d -p tinyPlans -f x", "-f: received 'x', allowed is the number of a fold, or all"),
        ("-d 999 -c 2d -p tinyPlans -f 0 7", "-f: received '. and 7, which both hold . out'.*measure them one by one"),
        ("-d 999 -c 2d -p tinyPlans -f all 0", "-f: received 'all 0', allowed is folds, or all"),
        ("-d 999 -c 2d -m x", "-d and -m: .*one of the two"),
        ("-d 999 -c 2d -i x", "an attack needs the truth"),
        ("-m x", "-m: .*together with -i IMAGES -gt LABELS"),
        ("-m x -c 2d -i x -gt y", "-c: received '2d', allowed is an addition to -d DATASET"),
        ("-m x x -i x -gt y", "-m: .*each folder once"),
        ("-c 2d", "-c: received '2d', allowed is an addition to -d DATASET or -m FOLDER"),
    ],
)
@pytest.mark.usefixtures("nnunet")
def test_words_that_do_not_go_together(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _sources(*words.split())


def test_missing_variables(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_preprocessed", "nnUNet_raw", "nnUNet_results"):
        monkeypatch.delenv(variable)
        with pytest.raises(InputError, match=f"{variable}: received None, allowed is the path of an existing folder"):
            _sources("-d", "999", "-c", "2d", "-p", "tinyPlans")


def test_the_parser_is_built_without_torch() -> None:
    code = (
        "import sys, argparse; from nnunet_trainers.evaluation import arguments; "
        "arguments.add_arguments(argparse.ArgumentParser()); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai', 'nnunetv2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the shared Hippocampus data are not here")
@pytest.mark.parametrize("patch_size", [(56, 40), (40, 56, 40)], ids=["2d", "3d"])
def test_on_a_patient(tmp_path: Path, patch_size: tuple[int, ...]) -> None:
    folders = (str(HIPPOCAMPUS / "imagesTr"), str(HIPPOCAMPUS / "labelsTr"))
    model = write_model(tmp_path / "model", patch_size)
    case = NNUNetSource(str(model), *folders, cases=("hippocampus_033",)).open().load("hippocampus_033")
    clean, attacked = case.scores(case.images)[0], case.scores(_attack(case, 3.0, 3))[0]
    assert set(clean.dice) == set(clean.hd95) == {"front", "back"}
    assert attacked.score < clean.score

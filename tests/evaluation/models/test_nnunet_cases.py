"""Which files and cases an evaluation of nnU-Net takes: colour images, listed paths, folds, cross-validation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from skimage import io

from monai_adv.errors import InputError
from monai_adv.evaluation.records import Level
from nnunet_trainers import NNUNetModel
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.arguments import _random_split
from nnunet_trainers.evaluation.case_files import listed_cases
from nnunet_trainers.evaluation.source import NNUNetSource
from tests.evaluation.models.test_nnunet_evaluation import _sources, nnunet
from tests.tiny_nnunet import write_case, write_model, write_planned

__all__ = ["nnunet"]
WORDS = ("-d", "999", "-c", "2d", "-p", "tinyPlans")


# -------------------------------------------------------------------- colour images


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A model for three channels, and one colour image, in one file."""
    folder = write_planned(tmp_path, ["RGBTo01Normalization"] * 3, channels=3)
    for name, changes in (
        ("plans.json", {"image_reader_writer": "NaturalImage2DIO", "transpose_forward": [0, 1, 2],
                        "transpose_backward": [0, 1, 2]}),
        ("dataset.json", {"file_ending": ".png"}),
    ):  # fmt: skip
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))
    generator = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    image = generator.integers(1, 255, (20, 18, 3), dtype=np.uint8)
    label = np.zeros((20, 18), np.uint8)
    label[5:15, 5:10], label[5:15, 10:14] = 1, 2
    io.imsave(tmp_path / "imagesTr" / "case_0000.png", image, check_contrast=False)
    io.imsave(tmp_path / "labelsTr" / "case.png", label, check_contrast=False)
    return tmp_path


def test_a_colour_image_is_one_file_with_three_channels(colours: Path) -> None:
    image = io.imread(colours / "imagesTr" / "case_0000.png").transpose(2, 0, 1) / np.float32(255)
    source = NNUNetSource(str(colours / "model"), str(colours / "imagesTr"), str(colours / "labelsTr"))
    model = source.open()
    assert (model.cases, model.problems) == (("case",), ())
    case = model.load("case")
    np.testing.assert_array_equal(case.images[0].numpy(), image)
    threat = case.threat(Level("linf", 8.0, "raw"))
    assert threat.eps == pytest.approx(8 / 255)
    assert (threat.box, threat.beyond) == ((0.0, 1.0), "keep")
    assert "attacked images keep to the range of the files, 0 to 255" in model.space
    model = NNUNetModel(colours / "model")
    loaded = model.preprocess([colours / "imagesTr" / "case_0000.png"])
    np.testing.assert_array_equal(loaded[0, :, 0].numpy(), image)
    assert model.predict(colours / "imagesTr" / "case_0000.png").shape == (1, 20, 18)


def test_other_numbers_of_channels_are_said(colours: Path) -> None:
    file = colours / "imagesTr" / "case_0000.png"
    model = DeployedModel.from_folder(colours / "model")
    with pytest.raises(InputError, match="one file per channel"):
        model.preprocess([file, file])
    io.imsave(file, np.full((20, 18, 4), 7, np.uint8), check_contrast=False)
    with pytest.raises(InputError, match=r"with 4 channels', allowed is the channels \['channel 0', "):
        model.preprocess([file])
    io.imsave(file, np.full((20, 18), 7, np.uint8), check_contrast=False)  # grey: one channel of three
    with pytest.raises(InputError, match="one file per channel"):
        model.preprocess([file])


# -------------------------------------------------------------------- listed paths


def test_cases_that_a_dataset_json_lists(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to its folder, absolute, and with variables, as nnU-Net has them."""
    raw = nnunet / "raw" / "Dataset999_Tiny"
    monkeypatch.setenv("ELSEWHERE", str(nnunet / "elsewhere"))
    (nnunet / "elsewhere").mkdir()
    write_case(nnunet / "elsewhere", name="b")
    listed = {
        "a": {"images": ["imagesTr/a_0000.nii.gz"], "label": str(raw / "labelsTr" / "a.nii.gz")},
        "b": {"images": ["$ELSEWHERE/imagesTr/b_0000.nii.gz"], "label": "$ELSEWHERE/labelsTr/b.nii.gz"},
        "c": {"images": ["imagesTr/c_0000.nii.gz"], "label": "labelsTr/c.nii.gz"},
    }
    path = raw / "dataset.json"
    path.write_text(json.dumps({"dataset": listed, "file_ending": ".nii.gz"}))
    cases, problems = listed_cases(path)
    assert [case.name for case in cases] == ["a", "b"]
    assert cases[1].image_files == (nnunet / "elsewhere" / "imagesTr" / "b_0000.nii.gz",)
    assert problems[0].startswith("c: there is no ")
    (source,) = _sources(*WORDS)
    model = source.open()
    assert model.cases == ("b",)
    assert model.load("b").name == "b"
    path.write_text(json.dumps({"dataset": {"a": {"label": "x"}}}))
    with pytest.raises(InputError, match='where "dataset" has "images" and "label" for each case; KeyError'):
        _sources(*WORDS)


# -------------------------------------------------------------------- folds


def test_the_fold_all_says_that_it_has_seen_its_cases(nnunet: Path) -> None:
    (nnunet / "results" / "Dataset999_Tiny" / "nnUNetTrainer__tinyPlans__2d" / "fold_0").rename(
        nnunet / "results" / "Dataset999_Tiny" / "nnUNetTrainer__tinyPlans__2d" / "fold_all"
    )
    (source,) = _sources(*WORDS, "-f", "all")
    model = source.open()
    assert model.cases == ("a", "b")
    assert "on which fold all was trained: the figures flatter it" in model.space


@pytest.mark.parametrize("fold", [5, 6, 40])
def test_random_folds_are_nnunets(fold: int, tmp_path: Path) -> None:
    """The host's own do_split, on data and a splits_final.json that know five folds."""
    names = [f"case_{i:02d}" for i in range(13)]
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": [], "val": []}] * 5))
    trainer = SimpleNamespace(
        dataset_class=lambda *args, **kwargs: SimpleNamespace(identifiers=names[::-1]),
        fold=fold, preprocessed_dataset_folder="", preprocessed_dataset_folder_base=str(tmp_path),
        folder_with_segs_from_previous_stage=None, print_to_log_file=lambda *args: None,
    )  # fmt: skip
    _, held_out = nnUNetTrainer.do_split(trainer)
    assert list(_random_split(names[::-1], fold)) == [str(name) for name in held_out]


def test_random_folds_by_data_set(nnunet: Path) -> None:
    (source,) = _sources(*WORDS, "-f", "7")
    assert source.cases == _random_split(["a", "b"], 7) == ("b",)
    assert "validation cases of fold 7 of Dataset999_Tiny, by nnU-Net's random 80:20 split" in source.note


def test_cross_validation(nnunet: Path) -> None:
    """Each case is measured on the fold that has not seen it."""
    folder = nnunet / "results" / "Dataset999_Tiny" / "nnUNetTrainer__tinyPlans__2d"
    (folder / "fold_1").mkdir()
    content: dict[str, Any] = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    content["network_weights"] = {k: v + 0.05 for k, v in content["network_weights"].items()}
    torch.save(content, folder / "fold_1" / "checkpoint_final.pth")
    (source,) = _sources(*WORDS, "-f", "0", "1")
    assert (source.folds, source.held_out) == ((0, 1), (("b",), ("a",)))
    model = source.open()
    assert model.cases == ("b", "a")
    assert "cross-validation: folds 0, 1, each on its own validation cases" in model.space
    for case, fold in (("b", 0), ("a", 1), ("b", 0)):
        loaded = model.load(case)
        alone = dataclasses.replace(source, folds=(fold,), held_out=None, cases=(case,)).open().load(case)
        assert torch.equal(loaded.logits(loaded.images), alone.logits(alone.images))
    with pytest.raises(InputError, match="one list for each fold, each case in one of them"):
        dataclasses.replace(source, held_out=(("a",), ("a",)))


# -------------------------------------------------------------------- messages


def test_one_of_several_models_is_named(nnunet: Path) -> None:
    results = nnunet / "results" / "Dataset999_Tiny"
    (results / "IMATrainer__tinyPlans__2d" / "fold_0" / "checkpoint_final.pth").unlink()
    plain, ima = _sources(*WORDS, "-tr", "nnUNetTrainer", "IMATrainer")
    plain.open()
    with pytest.raises(InputError, match="^IMATrainer: checkpoint: received 'checkpoint_final.pth'"):
        ima.open()


def test_clean_figures_that_differ_from_nnunets_are_explained(tmp_path: Path) -> None:
    write_case(tmp_path)
    folder = write_model(tmp_path / "model")
    source = NNUNetSource(str(folder), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"))
    said = "nnU-Net's own validation (summary.json) averages over mirrored images"
    assert said in source.open().space
    assert said not in dataclasses.replace(source, mirroring=True).open().space

"""The bundle robust_organ_segmentation: nnU-Net's cases, training, label maps, both hosts, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.utils.misc import set_determinism
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.crossval_split import generate_crossval_split

from monai_adv.bundles.folds import read_metrics
from monai_adv.bundles.volume_index import nnunet_split, read_volumes
from monai_adv.bundles.volume_phantom import CASES, write_volume_phantom
from monai_adv.cli.bundle import bundles
from monai_adv.errors import InputError
from nnunet_trainers import NNUNetModel
from nnunet_trainers.discovery import discovery_folder
from nnunet_trainers.monai_cases import NNUNetCases
from tests.bundle_runs import BundleRun
from tests.places import SHARED

NAME = "robust_organ_segmentation"
HIPPOCAMPUS = SHARED / "Dataset004_Hippocampus"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of MONAI, about optional readers


@pytest.fixture(autouse=True)
def _found_by_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", discovery_folder())  # as our .pth file does where we are installed


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_volume_phantom(tmp_path_factory.mktemp("data") / "phantom"))


@pytest.fixture
def run(tmp_path: Path, forget_seed: None) -> BundleRun:
    return BundleRun(NAME, tmp_path)


def volume(file: Path) -> Any:
    """Values of a NIfTI file."""
    return np.asanyarray(nib.load(file).dataobj)  # type: ignore[attr-defined]


def dice(first: Any, second: Any) -> float:
    """Mean over the classes 1 and 2."""
    return float(np.mean([2 * ((first == k) & (second == k)).sum() / ((first == k).sum() + (second == k).sum())
                          for k in (1, 2)]))  # fmt: skip


# -------------------------------------------------------------------- the same cases as nnU-Net


@pytest.mark.parametrize("count", [5, 23, 220])
def test_folds_are_nnunets(count: int) -> None:
    names = [f"case_{i:03}" for i in range(count)]
    theirs = generate_crossval_split(names)
    for fold, split in enumerate(theirs):
        assert nnunet_split(names[::-1], fold) == (split["train"], split["val"])
    assert len(theirs) == 5


def test_data_list_follows_the_fold_or_the_file(phantom: Path, tmp_path: Path) -> None:
    names = [f"phantom_{i:02}" for i in range(CASES)]
    train, val = nnunet_split(names, 3)
    index = read_volumes(phantom, 3, fold=3)
    for part, cases in (("train", train), ("val", val)):
        assert index.part(part) == [  # type: ignore[arg-type]
            {
                "image": str(phantom / "imagesTr" / f"{case}_0000.nii.gz"),
                "label": str(phantom / "labelsTr" / f"{case}.nii.gz"),
                "index": i,
            }
            for i, case in enumerate(cases)
        ]
    own = tmp_path / "splits_final.json"
    own.write_text(json.dumps([{"train": names[4:], "val": names[:2]}]))
    index = read_volumes(phantom, 3, splits_file=own)
    assert [Path(item["label"]).name[:10] for item in index.part("val")] == names[:2]
    assert [item["index"] for item in index.part("train")] == list(range(16))


# -------------------------------------------------------------------- MONAI's own loop


@dataclass(frozen=True)
class Trained:
    """A copy of the bundle after training on the phantom."""

    run: BundleRun
    robust_dice: float
    mean_dice: float


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    run = BundleRun(NAME, tmp_path_factory.mktemp("trained"))
    workflow = run.run("train", "phantom", epochs=8, val_interval=8)
    metrics = workflow.parser.get_parsed_content("validate#evaluator").state.metrics
    yield Trained(run, metrics["robust_dice"], metrics["mean_dice"])
    set_determinism(None)


SMALL = {
    "network_def#channels": [8, 16, 32], "network_def#strides": [2, 2], "network_def#num_res_units": 0,
    "patch_size": [24, 28, 20],
}  # fmt: skip


def test_phantom_is_learnt_and_measured_again(trained: Trained) -> None:
    """One class everywhere has a mean Dice below 0.2."""
    assert 0.5 < trained.robust_dice < trained.mean_dice
    workflow = trained.run.run("train", "evaluate", "phantom")
    metrics = workflow.parser.get_parsed_content("validate#evaluator").state.metrics
    assert metrics["mean_dice"] == pytest.approx(trained.mean_dice, abs=1e-5)
    assert metrics["mean_dice"] > metrics["pgd20_rms_0_05"] > metrics["pgd20_rms_0_1"] > trained.robust_dice
    assert metrics["noise_rms_0_1"] > metrics["pgd20_rms_0_1"]
    rows = (trained.run.root / "eval" / "mean_dice_raw.csv").read_text().splitlines()
    assert len(rows) == 1 + CASES // 5


def test_label_maps_lie_on_their_images(trained: Trained, phantom: Path, tmp_path: Path) -> None:
    """The same scan stored along other axes gets the same labels in the same places."""
    val = read_volumes(phantom, 3).part("val")[0]
    images = tmp_path / "images"
    images.mkdir()
    scan: Any = nib.load(val["image"])
    turn = ornt_transform(io_orientation(scan.affine), axcodes2ornt(("P", "S", "L")))
    turned = scan.as_reoriented(turn)
    nib.save(scan, images / "straight.nii.gz")
    nib.save(turned, images / "turned.nii.gz")
    trained.run.run("inference", dataset_dir=str(images), output_dir=str(tmp_path / "out"), **SMALL)
    found: dict[str, Any] = {name: nib.load(tmp_path / "out" / f"{name}_seg.nii.gz") for name in ("straight", "turned")}
    for name, image in (("straight", scan), ("turned", turned)):
        assert found[name].shape == image.shape
        np.testing.assert_allclose(found[name].affine, image.affine, atol=1e-5)
        assert found[name].get_data_dtype() == np.uint8
        assert set(np.unique(found[name].dataobj)) == {0, 1, 2}
    np.testing.assert_array_equal(found["straight"].as_reoriented(turn).dataobj, found["turned"].dataobj)
    assert dice(np.asanyarray(found["straight"].dataobj), volume(val["label"])) > 0.6


def test_label_maps_of_other_spacings(trained: Trained, tmp_path: Path) -> None:
    """Resampled on the way in, and back on the way out."""
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(13, 17, 9)), np.diag([2.0, -1.5, 1.7, 1.0]))
    (tmp_path / "images").mkdir()
    nib.save(image, tmp_path / "images" / "coarse.nii.gz")
    trained.run.run("inference", dataset_dir=str(tmp_path / "images"), output_dir=str(tmp_path / "out"), **SMALL)
    found: Any = nib.load(tmp_path / "out" / "coarse_seg.nii.gz")
    assert found.shape == image.shape
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    assert set(np.unique(found.dataobj)) <= {0, 1, 2}


def test_switched_off_it_trains_what_clean_trains_bit_for_bit(run: BundleRun, trained: Trained) -> None:
    """From given weights, which both files take."""
    start = trained.run.root / "models" / "model.pt"
    common = {"epochs": 2, "val_interval": 2, "val_steps": 1, "initial_weights": str(start), "learning_rate": 0.01}
    ends = []
    for configs, more in (
        (("train", "phantom", "clean"), {}),
        (("train", "phantom"), {"train#trainer#settings": {"eps": 0, "delta": 0}}),
    ):
        workflow = run.run(*configs, **common, **more)
        ends.append(workflow.parser.get_parsed_content("network_def").state_dict())
    before = torch.load(start, weights_only=True)
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in before)
    assert not all(torch.equal(ends[0][key], before[key]) for key in before)
    assert {file.name for file in (run.root / "models").glob("*.pt")} == {
        "model.pt", "model_clean.pt", "last_checkpoint_epoch=2.pt", "last_clean_checkpoint_epoch=2.pt",
    }  # fmt: skip


def test_resume_goes_on_with_the_margins(trained: Trained) -> None:
    """One epoch more: each case is visited once, so no margin grows by more than delta."""
    saved = torch.load(trained.run.root / "models" / "last_checkpoint_epoch=8.pt", weights_only=True)
    before = saved["defense"]["defense"]["margins"]["values"]
    assert before.mean() > 0.1  # they began with delta
    workflow = trained.run.run("train", "phantom", "resume", epochs=1, ckpt_dir=str(trained.run.root / "models"))
    moved = workflow.parser.get_parsed_content("train#trainer").defense.margins.values - before
    assert (moved <= 0.05 + 1e-6).all()
    assert (moved != 0).any()


def test_crops_have_the_index_of_their_case(run: BundleRun) -> None:
    workflow = run.workflow("train", "phantom", crops_per_image=3, patch_size=[16, 16, 12])
    workflow.initialize()
    items = workflow.parser.get_parsed_content("train#dataset").data
    seen = []
    for batch in workflow.parser.get_parsed_content("train#dataloader"):
        files = batch["image"].meta["filename_or_obj"]
        assert batch["image"].shape[1:] == batch["label"].shape[1:] == (1, 16, 16, 12)
        assert [items[i]["image"] for i in batch["index"].tolist()] == files
        seen += batch["index"].tolist()
    assert sorted(seen) == sorted(3 * list(range(len(items))))


# -------------------------------------------------------------------- nnU-Net's model


def nnunets_own(run: BundleRun, model: str, image: str, folder: Path) -> Any:
    """What nnU-Net's predictor makes of an image, mirroring included."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(run.root / "models" / model), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential([[image]], [str(folder / "host")])
    return nib.load(folder / "host.nii.gz")


@pytest.mark.skipif(not list(bundles()[NAME].glob("models/*.pt")), reason="weights are in the repository alone")
@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("nnunet_clean", "phantom"),
        ("nnunet_robust", "phantom"),
        pytest.param(
            "nnunet_robust", "hippocampus", marks=pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="no data")
        ),
    ],
)
def test_bundle_segments_as_nnunet(model: str, data: str, run: BundleRun, phantom: Path, tmp_path: Path) -> None:
    folder = phantom if data == "phantom" else HIPPOCAMPUS
    case = read_volumes(folder, 3).part("val")[0]
    name = Path(case["image"]).name
    run.run(
        "nnunet_inference", dataset_dir=str(folder / "imagesTr"), pattern=name, output_dir=str(tmp_path), model=model
    )
    ours: Any = nib.load(tmp_path / name.replace("_0000", "_0000_seg"))
    theirs = nnunets_own(run, model, case["image"], tmp_path)
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    ours, theirs = np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj)
    assert len(np.unique(theirs)) > 1
    assert (ours != theirs).mean() < 1e-4  # nnU-Net adds its windows up in half precision
    if data == "hippocampus":
        assert dice(ours, volume(Path(case["label"]))) > 0.75


def report(folder: Path) -> dict[str, dict[str, float]]:
    """The score of each case at each level, clean under an empty name."""
    content = json.loads((folder / "results.json").read_text())
    scores: dict[str, dict[str, float]] = {}
    for record in content["records"]:
        (worst,) = record["worst"]
        scores.setdefault(record["level"], {})[record["case"]] = worst["score"]
    return scores


def test_reports_of_both_hosts(run: BundleRun, trained: Trained, tmp_path: Path) -> None:
    """Where the truth is what nnU-Net finds, its Dice is 1; a radius is that of the volume.

    But for one voxel of a phantom whose best two logits are 0.003 apart: nnU-Net adds its windows up in half precision.
    """
    data = Path(write_volume_phantom(tmp_path / "own_labels"))
    network = NNUNetModel(run.root / "models" / "nnunet_robust")
    for item in read_volumes(data, 3).part("val"):
        network.predict([item["image"]], item["label"])
    given = {"dataset_dir": str(data), "attacks": "quick", "eps": [0.1]}
    run.run("nnunet_robustness", attacked_cases=1, **given)
    scores = report(run.root / "eval" / "robustness_nnunet_robust")
    assert list(scores[""].values()) == pytest.approx([1.0], abs=5e-3)
    worst = min(scores["l2-0.1-rms"].values())
    assert worst < 0.8
    run.run("nnunet_robustness", "nnunet_evaluate", dataset_dir=str(data), attacked_cases=1)
    figures = read_metrics(run.root / "eval" / "nnunet_robust" / "metrics.csv")
    assert figures["mean_dice"] == pytest.approx(1.0, abs=5e-3)
    assert figures["mean_dice"] >= figures["pgd20_rms_0_05"] >= figures["pgd20_rms_0_1"]
    assert worst - 0.05 < figures["pgd20_rms_0_1"] < 0.8  # a relay of attacks, and one attack, in the same ball
    trained.run.run("train", "evaluate", "phantom", "robustness", cases=1, **given)
    other = report(trained.run.root / "eval" / "robustness")
    assert {level: list(cases) for level, cases in other.items()} == {level: list(c) for level, c in scores.items()}


def test_network_space_keeps_spacing_and_file(run: BundleRun, tmp_path: Path) -> None:
    network = NNUNetModel(run.root / "models" / "nnunet_robust")
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 18, 6)), np.diag([0.5, 1.0, 3.0, 1.0]))
    nib.save(image, tmp_path / "scan.nii.gz")
    found = NNUNetCases(network).preprocess({"image": tmp_path / "scan.nii.gz"})["image"]
    assert found.shape == (1, 6, 18, 10)  # a 2D plan: slices as they are, 1 mm in them
    assert found.pixdim.tolist() == [3.0, 1.0, 1.0]
    assert found.meta["filename_or_obj"] == str(tmp_path / "scan.nii.gz")


# -------------------------------------------------------------------- bad input


def break_data(folder: Path, how: str) -> None:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    described = json.loads((folder / "dataset.json").read_text())
    if how == "no labelsTr":
        labels.rename(folder / "labels")
    elif how == "label missing":
        (labels / "phantom_07.nii.gz").unlink()
    elif how == "image missing":
        (images / "phantom_07_0000.nii.gz").unlink()
    elif how == "unreadable":
        file = images / "phantom_03_0000.nii.gz"
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "two channels":
        described["channel_names"]["1"] = "T2"
    elif how == "four labels":
        described["labels"]["third"] = 3
    elif how == "unknown value":
        truth: Any = nib.load(labels / "phantom_02.nii.gz")
        nib.save(nib.Nifti1Image(np.asanyarray(truth.dataobj) * 2, truth.affine), labels / "phantom_02.nii.gz")
    elif how == "other shape":
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), labels / "phantom_02.nii.gz")
    elif how == "4D":
        nib.save(nib.Nifti1Image(np.zeros((24, 28, 20, 2)), np.eye(4)), images / "phantom_02_0000.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no labelsTr", "imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz; labelsTr is not in it; data: Medical"),
        ("label missing", "received 'case phantom_07 without its label map'"),
        ("image missing", "received 'case phantom_07 without its image'"),
        ("unreadable", "phantom_03_0000.nii.gz', allowed is a NIfTI volume that can be read"),
        ("two channels", "received {'0': 'phantom', '1': 'T2'}, allowed is 1, the input channels of the network"),
        ("four labels", "allowed is the numbers 0 to 2, the output channels of the network"),
        ("unknown value", "phantom_02.nii.gz with the values 4', allowed is 0 to 2"),
        ("other shape", "of shape (4, 5, 6)', allowed is the same shape and affine matrix"),
        ("4D", "of shape (24, 28, 20, 2)', allowed is one volume with three axes"),
    ],
)
def test_broken_data_are_refused_before_training(how: str, said: str, run: BundleRun, tmp_path: Path) -> None:
    data = Path(write_volume_phantom(tmp_path / "broken"))
    break_data(data, how)
    message = run.refusal("train", "phantom", dataset_dir=str(data))
    assert message.startswith("InputError: ")
    assert said in message
    assert not list(run.root.glob("models/last*"))


def test_a_fold_that_does_not_exist(run: BundleRun, phantom: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantom)}
    assert "fold: received 5, allowed is a whole number from 0 to 4" in run.refusal("train", "phantom", fold=5, **given)
    own = tmp_path / "splits_final.json"
    own.write_text(json.dumps([{"train": ["phantom_00"], "val": ["phantom_99"]}]))
    given["splits_file"] = str(own)
    assert "the folds of splits_final.json" in run.refusal("train", "phantom", fold=1, **given)
    assert "splits_final.json with phantom_99', allowed is the 20 cases" in run.refusal("train", "phantom", **given)
    own.write_text("{}")
    assert "splits_file: received" in run.refusal("train", "phantom", **given)
    with pytest.raises(InputError, match="at least 5 for 5 folds"):
        nnunet_split(["a", "b"], 0)


def test_weights_of_another_network(run: BundleRun, trained: Trained, phantom: Path) -> None:
    weights = str(trained.run.root / "models" / "model.pt")
    images = str(phantom / "imagesTr")
    for said in (
        run.refusal("train", "evaluate", dataset_dir=str(phantom), weights=weights),
        run.refusal("inference", dataset_dir=images, weights=weights),
        run.refusal(
            "train", "phantom", initial_weights=str(run.root / "models/nnunet_robust/fold_0/checkpoint_final.pth")
        ),
    ):
        assert "allowed is weights that fit the network" in said
    assert "model_folder: received" in run.refusal("nnunet_inference", dataset_dir=images, model="nnunet_other")
    said = run.refusal("nnunet_robustness", dataset_dir=str(phantom), fold=1)
    assert "fold: received 1, allowed is one of 0" in said


def test_inference_input_and_keys(run: BundleRun, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    torch.save(run.workflow("inference").parser.get_parsed_content("network_def").state_dict(), weights)
    configs: dict[str, dict[str, Any]] = {"inference": {"weights": str(weights)}, "nnunet_inference": {}}
    for config, more in configs.items():
        assert "dataset_dir: received ''" in run.refusal(config, **more)
        assert "a folder with NIfTI volumes that fit" in run.refusal(
            config, dataset_dir=str(run.root / "configs"), **more
        )
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.nii.gz").write_bytes(b"no image")
    for config, more in configs.items():
        said = run.refusal(config, dataset_dir=str(tmp_path / "images"), **more)
        assert "broken.nii.gz', allowed is a NIfTI volume that can be read" in said
        assert not (run.root / "eval").exists()
    said = run.refusal("nnunet_inference", dataset_dir=str(tmp_path / "images"), modell="nnunet_clean")
    assert "did you mean 'model'" in said


def test_export_needs_its_own_preprocessing(run: BundleRun, phantom: Path, tmp_path: Path) -> None:
    network = NNUNetModel(run.root / "models" / "nnunet_robust")
    item = NNUNetCases(network).preprocess(read_volumes(phantom, 3).part("val")[0])
    item["pred"] = torch.zeros(3, *item["image"].shape[1:])
    with pytest.raises(InputError, match="item: received 'no output_dir'"):
        NNUNetCases(network).export(item)
    with pytest.raises(InputError, match="preprocessed elsewhere"):
        NNUNetCases(network, tmp_path / "out").export(item)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="network: received 'Linear'"):
        NNUNetCases(torch.nn.Linear(1, 1))  # type: ignore[arg-type]

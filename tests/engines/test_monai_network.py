"""A trained nnU-Net inside MONAI: same logits, same segmentation, loaded without running code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from monai.bundle import ConfigParser
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SimpleInferer

from monai_adv.attacks import PGD
from monai_adv.certificates import NO_CLASS, SmoothedModel
from monai_adv.errors import InputError
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import SegmentationTask
from monai_adv.threats import Threat
from nnunet_trainers.discovery import discovery_folder
from nnunet_trainers.monai_network import NNUNetModel
from tests.tiny_nnunet import CLASSES, REGIONS, dataset_json, plans, write_case, write_model

PATCHES = {"2d": (16, 12), "3d": (8, 12, 8)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, size) for name, size in PATCHES.items()}


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_logits_of_volumes_are_the_deployed_ones(folders: dict[str, Path], kind: str) -> None:
    network = NNUNetModel(folders[kind])
    model = network.deployed
    volumes = torch.randn(2, 1, 5, 20, 13, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(volumes)
        each = [model.to_volume(model.as_network()(model.to_inputs(volume))) for volume in volumes]
    assert logits.shape == (2, 3, 5, 20, 13)
    torch.testing.assert_close(logits, torch.stack(each), atol=1e-5, rtol=1e-5)
    if kind == "2d":
        torch.testing.assert_close(network(volumes[:, :, 3]), logits[:, :, 3], atol=1e-5, rtol=1e-5)


def test_metadata_go_through_and_gradients_come_back(folders: dict[str, Path]) -> None:
    network = NNUNetModel(folders["2d"], mirroring=True)
    values = torch.randn(1, 1, 4, 16, 12)
    image = MetaTensor(values, affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])), meta={"filename_or_obj": "a.nii"})
    image.requires_grad_()
    logits = network(image)
    assert isinstance(logits, MetaTensor)
    assert logits.meta["filename_or_obj"] == "a.nii"
    assert torch.equal(logits.affine, image.affine)
    assert torch.equal(logits.as_tensor(), network(values))
    assert not isinstance(network(values), MetaTensor)
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    assert gradient.shape == image.shape
    assert bool(gradient.abs().sum() > 0)


def test_in_a_bundle_config(folders: dict[str, Path]) -> None:
    parser = ConfigParser(
        {
            "network": {"_target_": "nnunet_trainers.monai_network.NNUNetModel", "model_folder": str(folders["3d"])},
            "inferer": {"_target_": "SimpleInferer"},
        }
    )
    network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    assert isinstance(inferer, SimpleInferer)
    assert not network.training
    assert inferer(torch.randn(1, 1, 6, 6, 6), network).shape == (1, 3, 6, 6, 6)


def test_can_be_attacked(folders: dict[str, Path]) -> None:
    network = NNUNetModel(folders["2d"])
    images, target = torch.randn(2, 1, 16, 12), torch.ones(2, 1, 16, 12).long()
    task = SegmentationTask(lambda output, target: output.sum())
    attacked = PGD(Threat("l2", 3.0, unit="norm"), steps=3)(network, images, target, task).images
    assert bool((task.sample_loss(network(attacked), target) > task.sample_loss(network(images), target)).all())


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_predicts_nnunets_file_to_the_voxel(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    case = write_case(tmp_path)
    network = NNUNetModel(folders[kind])
    (tmp_path / "host").mkdir()
    files = [[str(f) for f in case.image_files]]
    network.deployed.predictor.predict_from_files_sequential(files, [str(tmp_path / "host" / "case")])
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "host" / "case.nii.gz")))
    ours = network.predict(case.image_files, tmp_path / "ours.nii.gz")
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "ours.nii.gz")), theirs)
    image = network.preprocess(case.image_files)
    assert network(image).shape == (1, 3, *image.shape[2:])


def test_wrong_shapes(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"image: received 'shape \(1, 2, 8, 8\)', allowed is \(B, 1, \*spatial\)"):
        NNUNetModel(folders["2d"])(torch.zeros(1, 2, 8, 8))
    with pytest.raises(InputError, match="a tensor with B, C and 3 spatial axes"):
        NNUNetModel(folders["3d"])(torch.zeros(1, 1, 8, 8))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An IMATrainer that could start: its checkpoint is what a training leaves."""
    from nnunet_trainers import IMATrainer

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_extTrainer", discovery_folder())  # as our .pth file does where we are installed
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    stored = tmp_path / "preprocessed" / "Dataset999_Tiny" / "tiny_2d" / "case.b2nd"  # only its name is looked at
    stored.parent.mkdir(parents=True)
    stored.touch()
    trainer = IMATrainer({**plans(), "continue_training": False}, "2d", 0, dataset_json(CLASSES), torch.device("cpu"))
    trainer.initialize()
    trainer.sample_ids = SampleIds({"case": 5})
    trainer._bind()
    trainer._best_ema = np.float32(0.5)  # as the host leaves it
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
    folder = Path(trainer.output_folder).parent
    (folder / "plans.json").write_text(json.dumps(plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(CLASSES)))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return trainer


def test_checkpoints_of_our_trainers_load_with_weights_only(trained: Any) -> None:
    file = Path(trained.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    assert {"network_weights", "init_args", "trainer_name", "monai_adv"} <= set(checkpoint)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(file) == []
    network = NNUNetModel(file.parents[1])
    assert network.deployed.name == "IMATrainer__tinyPlans__2d"
    images = torch.randn(2, 1, 16, 12)
    trained.network.eval()
    torch.testing.assert_close(network(images), trained.network(images)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_smoothed_it_is_the_vote_of_the_window_slice_by_slice(folders: dict[str, Path], kind: str) -> None:
    network = NNUNetModel(folders[kind], smooth=0.5, draws=16, seed=3)
    volume = torch.randn(1, 1, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    model = network.deployed
    voted = SmoothedModel(model.as_network(64), 0.5, 16, seed=3, inputs_per_pass=64 if kind == "2d" else 1)
    with torch.no_grad():
        expected = model.to_volume(voted(model.to_inputs(volume[0])))
        logits = network(volume)[0]
    assert torch.equal(logits, expected)
    assert torch.equal(network(volume)[0], logits)  # the same each time
    decided = network.decide(volume, alpha=0.4)
    sure = decided[0] != NO_CLASS
    assert 0 < int(sure.sum()) < sure.numel()
    assert torch.equal(decided[0][sure], logits.argmax(0)[sure])


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_abstentions_are_a_map_beside_the_segmentation(tmp_path: Path, labels: dict[str, Any]) -> None:
    """In the file's own geometry; resampling is the identity here, so that it is the map of :meth:`decide`."""
    folder = write_model(tmp_path / "model", labels=labels)
    files = write_case(tmp_path, rim=0).image_files
    image = SimpleITK.ReadImage(str(files[0]))
    image.SetSpacing((1.0, 1.0, 1.0))
    SimpleITK.WriteImage(image, str(files[0]))
    network = NNUNetModel(folder, smooth=0.5, draws=16)
    segmentation = network.predict(files, tmp_path / "case.nii.gz")
    abstained = network.abstentions(files, tmp_path / "abstained.nii.gz", alpha=0.4)
    assert segmentation.shape == abstained.shape
    decided = network.decide(network.preprocess(files), alpha=0.4)[0] == NO_CLASS
    expected = decided.any(0) if "whole" in labels else decided
    backward = network.deployed.plans_manager.transpose_backward
    np.testing.assert_array_equal(abstained, expected.permute(*backward).numpy())
    assert 0 < abstained.sum() < abstained.size
    for name, found in (("case", segmentation), ("abstained", abstained)):
        written = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / f"{name}.nii.gz")))
        np.testing.assert_array_equal(written, found)


def test_only_a_smoothed_model_abstains(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="smooth: received None, allowed is a standard deviation"):
        NNUNetModel(folders["2d"]).decide(torch.zeros(1, 1, 16, 12))
    with pytest.raises(InputError, match="sigma: received 0.0"):
        NNUNetModel(folders["2d"], smooth=0.0)

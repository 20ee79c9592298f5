"""A deployed model computes what nnU-Net's own predictor computes, and is differentiable."""

from __future__ import annotations

import gzip
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.sliding_window import SlidingWindow
from tests.malicious import Malicious
from tests.tiny_nnunet import CLASSES, REGIONS, write_case, write_model

PATCHES = {"2d": (16, 12), "3d": (8, 12, 8)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    folders = {name: write_model(root / name, size) for name, size in PATCHES.items()}
    folders["regions"] = write_model(root / "regions", PATCHES["2d"], REGIONS)
    return folders


@pytest.mark.parametrize("mirroring", [False, True])
@pytest.mark.parametrize("size", [(5, 7, 6), (9, 30, 17), (11, 12, 8)], ids=["smaller", "larger", "mixed"])
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_equals_the_hosts_predictor(
    folders: dict[str, Path], kind: str, size: tuple[int, ...], mirroring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DeployedModel.from_folder(folders[kind], mirroring=mirroring)
    volume = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.to_volume(model.as_network()(model.to_inputs(volume)))
    as_deployed = model.predictor.predict_sliding_window_return_logits(volume).float()
    # Not everywhere: at the corners of the image the window's weights are so small that the host's half precision
    # leaves a few steps only.
    assert ((ours - as_deployed).abs() / (1 + ours.abs())).quantile(0.8) < 1e-3
    assert (ours.argmax(0) == as_deployed.argmax(0)).float().mean() > 0.98
    monkeypatch.setattr(torch, "half", torch.float32)  # the type in which the host adds the windows up
    exact = model.predictor.predict_sliding_window_return_logits(volume)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)


class Smooth(nn.Module):
    """A network whose gradient is not constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 2, 3, padding=1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).sin()


@pytest.mark.parametrize("patches_per_pass", [1, 64], ids=["recomputed", "in one pass"])
def test_gradient_through_windows_and_mirroring(patches_per_pass: int) -> None:
    window = SlidingWindow(Smooth(), (4, 4), 2, mirror_axes=(0, 1), patches_per_pass=patches_per_pass)
    images = torch.rand(2, 1, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(window, (images,))


def test_number_of_passes_changes_nothing(folders: dict[str, Path]) -> None:
    model = DeployedModel.from_folder(folders["2d"], mirroring=True)
    images = torch.randn(5, 1, 30, 20, requires_grad=True)
    outcomes = []
    for patches_per_pass in (64, 7, 2):
        logits = model.as_network(patches_per_pass)(images)
        outcomes.append((logits, *torch.autograd.grad(logits.square().sum(), images)))
    for one, other in pairwise(outcomes):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_recomputing_bounds_the_memory_for_gradients(folders: dict[str, Path]) -> None:
    """Only the windows themselves are kept for the backward, not what the network made of them."""
    model = DeployedModel.from_folder(folders["2d"])
    images = torch.randn(1, 1, 64, 60, requires_grad=True)

    def kept(patches_per_pass: int) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model.as_network(patches_per_pass)(images)
        assert output.requires_grad
        return sum(seen.values())

    assert kept(4) < kept(1000) / 4


@pytest.mark.parametrize("kind", ["2d", "3d", "regions"])
def test_segmentation_is_nnunets_file_to_the_voxel(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    case = write_case(tmp_path)
    model = DeployedModel.from_folder(folders[kind])
    (tmp_path / "out").mkdir()
    files = [[str(f) for f in case.image_files]]
    model.predictor.predict_from_files_sequential(files, [str(tmp_path / "out" / "host")])
    host = SimpleITK.ReadImage(str(tmp_path / "out" / "host.nii.gz"))
    theirs = SimpleITK.GetArrayFromImage(host)
    assert theirs.shape == (14, 11, 9)
    assert len(np.unique(theirs)) > 1

    labels = model.predict(case.image_files, tmp_path / "ours.nii.gz")
    ours = SimpleITK.ReadImage(str(tmp_path / "ours.nii.gz"))
    np.testing.assert_array_equal(labels, theirs)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), theirs)
    assert ours.GetSpacing() == host.GetSpacing()

    data, properties = model.preprocess(case.image_files)
    with torch.no_grad():
        logits = model.to_volume(model.as_network()(model.to_inputs(data)))
    assert (model.segmentation(logits, properties) == theirs).mean() > 0.995


def test_ground_truth_is_background_outside_the_body(tmp_path: Path, folders: dict[str, Path]) -> None:
    """The host marks what lies outside with -1."""
    case = write_case(tmp_path)
    model = DeployedModel.from_folder(folders["2d"])
    volume, truth, _ = model.preprocess_labelled(case.image_files, case.ground_truth_file)
    torch.testing.assert_close(volume, model.preprocess(case.image_files)[0])
    assert truth.shape == volume.shape
    assert truth.unique().tolist() == [0, 1, 2]


def test_attributes(folders: dict[str, Path]) -> None:
    two, three = (DeployedModel.from_folder(folders[kind]) for kind in ("2d", "3d"))
    assert (two.name, two.is_2d, two.patch_size, two.mirror_axes) == ("2d", True, (16, 12), ())
    assert (three.is_2d, three.patch_size) == (False, (8, 12, 8))
    assert DeployedModel.from_folder(folders["3d"], mirroring=True, name="mine").mirror_axes == (0, 1, 2)
    assert not two.network.training
    assert isinstance(two.network(torch.zeros(1, 1, 16, 12)), Tensor)  # deep supervision is off
    volume = torch.randn(1, 5, 6, 7)
    for model in (two, three):
        assert torch.equal(model.to_volume(model.to_inputs(volume)), volume)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda f: None, {"model_folder": "nowhere"}, "model_folder: received 'nowhere', allowed is an existing"),
        (lambda f: (f / "plans.json").unlink(), {}, "a folder with plans.json in it; name the folder that holds"),
        (lambda f: (f / "plans.json").write_text("{"), {}, "do not fit together (JSONDecodeError"),
        (lambda f: None, {"fold": 3}, "fold: received 3, allowed is one of 0."),
        (lambda f: None, {"checkpoint": "best.pth"}, "checkpoint: received 'best.pth', allowed is one of checkpoint_f"),
        (lambda f: None, {"device": "cuda:99"}, "device: received 'cuda:99', allowed is a device that PyTorch can use"),
        (lambda f: _cut(f), {}, "a whole nnU-Net checkpoint"),
        (lambda f: (f / "fold_0" / "checkpoint_final.pth").write_bytes(b""), {}, "nnU-Net checkpoint; EOFError"),
        (lambda f: torch.save({"a": 1}, f / "fold_0" / "checkpoint_final.pth"), {}, "a whole nnU-Net checkpoint; KeyE"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, change: Any, arguments: dict[str, Any], message: str) -> None:
    folder = write_model(tmp_path / "model")
    change(folder)
    with pytest.raises(InputError) as refused:
        DeployedModel.from_folder(**{"model_folder": folder, **arguments})
    assert message in str(refused.value)


def _cut(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:1000])


def test_weights_of_other_plans_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    other = write_model(tmp_path / "b", labels={**CLASSES, "third": 3})
    (other / "fold_0" / "checkpoint_final.pth").replace(folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(InputError, match="weights that fit the plans beside them; PyTorch says: .*size mismatch"):
        DeployedModel.from_folder(folder)


def test_a_checkpoint_that_runs_code_is_refused_unread(tmp_path: Path) -> None:
    trap = Malicious(tmp_path / "ran")
    folder = write_model(tmp_path / "model", logging=trap)  # pickled as a call, not made
    with pytest.raises(InputError, match="with a Python object .*mkdir.*can run code when it is read"):
        DeployedModel.from_folder(folder)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(trap))  # it would have
    assert (tmp_path / "ran").exists()


OLD_SIGNATURE = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

class OldTrainer(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        return get_network_from_plans(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                      num_input_channels, num_output_channels, allow_init=True,
                                      deep_supervision=enable_deep_supervision)
"""


def test_trainers_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model", trainer="OldTrainer")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))
    with pytest.raises(InputError, match="trainer: received 'OldTrainer'.*name its folder in nnUNet_extTrainer"):
        DeployedModel.from_folder(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old.py").write_text(OLD_SIGNATURE)
    assert DeployedModel.from_folder(folder).is_2d


def test_images_that_cannot_be_used(folders: dict[str, Path], tmp_path: Path) -> None:
    case = write_case(tmp_path)
    model = DeployedModel.from_folder(folders["2d"])
    with pytest.raises(InputError, match=r"one file per channel, here \['MRI'\]"):
        model.preprocess([*case.image_files, *case.image_files])
    with pytest.raises(InputError, match="nowhere.nii.gz', allowed is an existing image"):
        model.preprocess(["nowhere.nii.gz"])
    (tmp_path / "broken.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputError, match="broken.nii.gz', allowed is a whole gzip file; Not a gzipped file"):
        model.preprocess([tmp_path / "broken.nii.gz"])
    with gzip.open(tmp_path / "broken.nii.gz", "wb") as file:
        file.write(b"not an image")
    with pytest.raises(InputError, match="readable images of one shape; nnU-Net says"):
        model.preprocess([tmp_path / "broken.nii.gz"])
    other = write_case(tmp_path, (9, 9, 9), "other")
    with pytest.raises(InputError, match="readable images of one shape; nnU-Net says: Shape mismatch"):
        model.preprocess_labelled(case.image_files, other.ground_truth_file)
    with pytest.raises(InputError, match="a file that ends in .nii.gz, in an existing folder"):
        model.predict(case.image_files, tmp_path / "out.png")
    with pytest.raises(InputError, match="a tensor with B, C and 2 spatial axes"):
        model.as_network()(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(InputError, match="patches_per_pass: received 0"):
        model.as_network(0)

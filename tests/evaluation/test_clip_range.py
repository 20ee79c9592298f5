"""Attacked CT keeps to the range to which the plan clips it: what is found is an image that a file can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from torch import Tensor

from monai_adv.attacks import APGD, FGSM, PGD, SegPGD, Square, WhiteNoise
from monai_adv.attacks.cw import CWL2
from monai_adv.errors import InputError
from monai_adv.evaluation.checks.probes import _outside
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.search.runner import check_threat
from monai_adv.threats import Norm, Threat
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.case import NNUNetCase, bounds_of
from tests.tiny_nnunet import write_case, write_planned

MEAN, SD, LOW, HIGH = 90.0, 40.0, 0.0, 500.0


@pytest.fixture
def ct(tmp_path: Path) -> NNUNetCase:
    """Voxels of the plan's size, so that a voxel of the network is one of the file; a third lies below the range."""
    files = write_case(tmp_path, rim=0)
    generator = np.random.default_rng(0)
    for file in (*files.image_files, files.ground_truth_file):
        image = SimpleITK.ReadImage(str(file))
        values = SimpleITK.GetArrayFromImage(image)
        if file in files.image_files:
            values = generator.choice([-1000.0, 20.0, 150.0], values.shape).astype(np.float32)
        image = SimpleITK.GetImageFromArray(values)
        SimpleITK.WriteImage(image, str(file))
    model = DeployedModel.from_folder(write_planned(tmp_path, ["CTNormalization"]))
    return NNUNetCase(model, files, model.as_network())


def _in_file(case: NNUNetCase, attacked: Tensor, folder: Path) -> Tensor:
    """Write the attacked image into the file, where the file was not beyond the range, and read it as nnU-Net does."""
    file = str(folder / "imagesTr" / "case_0000.nii.gz")
    image = SimpleITK.ReadImage(file)
    values = SimpleITK.GetArrayFromImage(image)
    back = np.transpose(case.model.to_volume(attacked)[0].numpy(), case.model.plans_manager.transpose_backward)
    free = (values > LOW) & (values < HIGH)
    changed = np.where(free, back * SD + MEAN, values).astype(np.float32)
    copy = SimpleITK.GetImageFromArray(changed)
    copy.CopyInformation(image)
    SimpleITK.WriteImage(copy, file)
    return case.model.to_inputs(case.model.preprocess([file])[0])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_file_can_hold_what_is_found(ct: NNUNetCase, norm: Norm, tmp_path: Path) -> None:
    threat = ct.threat(Level(norm, 60.0, "raw"))
    assert threat.box == pytest.approx(((LOW - MEAN) / SD, (HIGH - MEAN) / SD))
    assert threat.beyond == "keep_ends"
    check_threat(threat, ct.images)
    generator = torch.Generator().manual_seed(0)
    attack = PGD(threat, 3, start="ball")
    attacked = attack(ct.network, ct.images, ct.target, ct.task, generator=generator).images
    assert not torch.equal(attacked, ct.images)
    torch.testing.assert_close(_in_file(ct, attacked, tmp_path), attacked, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", ["PGD", "FGSM", "APGD", "surface", "SegPGD", "Square", "noise"])
def test_no_attack_changes_what_is_beyond(ct: NNUNetCase, name: str, norm: Norm) -> None:
    threat = ct.threat(Level(norm, 3.0, "norm"))
    attacks = {
        "PGD": PGD(threat, 3, start="ball"),
        "FGSM": FGSM(threat, start="ball"),
        "APGD": APGD(threat, 4, until="lowest", start="ball"),
        "surface": APGD(threat, 4, until="lowest", start="surface"),
        "SegPGD": SegPGD(threat, 2),
        "Square": Square(threat, 3, until="lowest"),
        "noise": WhiteNoise(threat, 2),
    }
    images, target = ct.images.clone()[:3], ct.target[:3]  # type: ignore[index]
    images[0] = images.min()  # a slice of air: nothing in it is free
    task = type(ct).aim(ct, ct.images)
    result = attacks[name](ct.network, images, target, task, generator=torch.Generator().manual_seed(0))
    assert result.images.isfinite().all()
    fixed = images == images.min()
    assert torch.equal(result.images[fixed], images[fixed])
    assert float(result.images.min()) >= float(images.min())
    assert bool((threat.size(result.images - images) <= 3.0 * (1 + 1e-5)).all())


def test_the_direction_is_that_of_the_free_voxels() -> None:
    """By hand: of the gradient (3, 4, 12) the last voxel is at the end of the box, and 3-4-5 remains."""
    threat = Threat("l2", 1.0, box=(0.0, 1.0), beyond="keep_ends", unit="norm")
    images, gradient = torch.tensor([[[0.5, 0.5, 1.0]]]), torch.tensor([[[3.0, 4.0, 12.0]]])
    assert threat.direction(gradient, images).flatten().tolist() == pytest.approx([0.6, 0.8, 0.0])
    far = torch.full_like(images, 9.0)
    assert threat.project(far, images, torch.tensor([9.0])).flatten().tolist() == pytest.approx([0.5, 0.5, 0.0])
    # At its end a voxel may go back inside; beyond it stays.
    keep = Threat("l2", 1.0, box=(0.0, 1.0), beyond="keep", unit="norm")
    images = torch.tensor([[[1.0, 1.2]]])
    assert keep.project(-images, images, torch.tensor([9.0])).flatten().tolist() == pytest.approx([-1.0, 0.0])


def test_boxes_are_written_with_seven_digits() -> None:
    images = torch.tensor([[[-2.2500001, 10.250001]]])
    Threat("linf", 0.1, box=(-2.25, 10.25)).check(images)
    assert _outside(images, Threat("linf", 0.1, box=(-2.25, 10.25))) == 0
    with pytest.raises(InputError, match="a box that contains the images"):
        Threat("linf", 0.1, box=(-2.249, 10.25)).check(images)


def test_the_plans_own_range_as_a_box(ct: NNUNetCase) -> None:
    assert bounds_of(ct.model, (-2.25, 10.25001)) == ((-2.25, 10.25), "keep_ends", None)
    assert bounds_of(ct.model, (-100.0, 100.0)) == ((-100.0, 100.0), "refuse", None)


def test_attacks_that_go_by_the_distance_to_the_box_say_so() -> None:
    with pytest.raises(InputError, match="it takes every voxel to be free"):
        CWL2(Threat("l2", 1.0, box=(0.0, 1.0), beyond="keep", unit="norm"))


def test_ct_beside_another_channel(tmp_path: Path) -> None:
    """The box is for the CT alone; by hand: the other channel moves by the whole radius, and past the box."""
    model = DeployedModel.from_folder(write_planned(tmp_path, ["ZScoreNormalization", "CTNormalization"], channels=2))
    assert bounds_of(model, None) == ((-2.25, 10.25), "keep_ends", (1,))
    threat = Threat("linf", 1.0, box=(0.0, 2.0), beyond="keep_ends", boxed=(1,))
    images = torch.tensor([[[1.5, 5.0], [1.5, 2.0]]])
    threat.check(images)
    moved = threat.project(torch.ones_like(images), images, torch.tensor([1.0]))
    assert moved.tolist() == [[[1.0, 1.0], [0.5, 0.0]]]
    square = Square(threat, 5, until="lowest")
    assert square.threat.clip(images + moved, images).tolist() == (images + moved).tolist()

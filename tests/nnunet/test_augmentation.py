"""Mirroring alone: what is left of nnU-Net's transforms, and that nothing else was touched."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from monai_adv import InputError
from nnunet_trainers import IMATrainer, SATTrainer
from nnunet_trainers.augmentation import mirrored_only
from nnunet_trainers.run_settings import FEW_VISITS
from tests.nnunet_host import datasets, host, started  # noqa: F401  (fixtures)


def transforms(patch: tuple[int, ...], **more: Any) -> Any:
    """nnU-Net's, as its loaders call for them; with `axes` that are mirrored, and `dummy` 2D for thick slices."""
    axes = more.pop("axes", tuple(range(len(patch))))
    return nnUNetTrainer.get_training_transforms(patch, (-0.5, 0.5), None, axes, more.pop("dummy", False), **more)


def names(of: Any) -> list[str]:
    return [type(getattr(t, "transform", t)).__name__ for t in of.transforms]


@pytest.mark.parametrize(("patch", "dummy"), [((6, 8), False), ((4, 6, 8), False), ((4, 6, 8), True)])
def test_an_image_is_itself_or_one_of_its_mirror_images(patch: tuple[int, ...], dummy: bool) -> None:
    """Each of the 2^d appears, with its labels, and nothing else: voxels are numbered, so that any mixing shows."""
    image = torch.arange(float(np.prod(patch))).reshape(1, *patch)
    labels = (image % 3).short()
    axes = range(1, len(patch) + 1)
    flips = [f for n in range(len(patch) + 1) for f in itertools.combinations(axes, n)]
    allowed = {tuple(image.flip(f).flatten().tolist()): labels.flip(f) for f in flips}
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (the stream that the host's transforms draw from)
    seen = set()
    left = mirrored_only(transforms(patch, dummy=dummy))
    for _ in range(100):
        done = left(image=image.clone(), segmentation=labels.clone())
        key = tuple(done["image"].flatten().tolist())
        assert torch.equal(done["segmentation"], allowed[key])
        seen.add(key)
    assert seen == set(allowed)


def test_a_larger_patch_is_cut_to_its_middle() -> None:
    """nnU-Net reads more than the patch, to turn it: without turning the middle of it is left."""
    image = torch.rand(1, 10, 12)
    left = mirrored_only(transforms((6, 8), axes=()))
    done = left(image=image, segmentation=torch.zeros(1, 10, 12, dtype=torch.int16))
    assert torch.equal(done["image"], image[:, 2:8, 2:10])


def test_masks_regions_and_a_cascades_labels_are_made_as_before() -> None:
    given = {"use_mask_for_norm": [True], "is_cascaded": True, "foreground_labels": [1, 2], "regions": [(1, 2), 2]}
    before = transforms((8, 8), **given)
    count, first = len(before.transforms), before.transforms[0]
    left = mirrored_only(before)
    assert names(left) == [
        "SpatialTransform", "MirrorTransform", "MaskImageTransform", "RemoveLabelTransform",
        "MoveSegAsOneHotToDataTransform", "ApplyRandomBinaryOperatorTransform",
        "RemoveRandomConnectedComponentFromOneHotEncodingTransform", "ConvertSegmentationToRegionsTransform",
    ]  # fmt: skip
    assert (len(before.transforms), first.p_rotation, first.p_scaling) == (count, 0.2, 0.2)  # the host's are untouched


def test_an_augmentation_that_ends_elsewhere_is_not_guessed_at() -> None:
    unknown = ComposeTransforms([t for t in transforms((8, 8)).transforms if isinstance(t, RandomTransform)])
    with pytest.raises(InputError, match="host with this version of nnU-Net, whose transforms are RandomTransform"):
        mirrored_only(unknown)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_training_loader_has_them_and_goes_on_with_them(host: Any, tmp_path: Path, configuration: str) -> None:
    def of(trainer: Any) -> list[str]:
        return names(trainer.dataloader_train.data_loader.transforms)

    own = started(host(SATTrainer, configuration))
    assert "GammaTransform" in of(own)
    trainer = started(host(SATTrainer, configuration, augmentation="mirroring"))
    assert of(trainer) == [n for n in of(own) if n not in intensities(own)]
    file = str(tmp_path / "saved.pth")
    trainer.save_checkpoint(file)
    going_on = host(SATTrainer, configuration)
    going_on.load_checkpoint(file)
    assert of(started(going_on)) == of(trainer)


def intensities(trainer: Any) -> set[str]:
    steps = trainer.dataloader_train.data_loader.transforms.transforms
    return {type(t.transform).__name__ for t in steps if isinstance(t, RandomTransform)}


@pytest.mark.parametrize(
    ("configuration", "epochs", "visits", "image"),
    # 2 steps an epoch; 2D: 4 slices of 4 cases with 5 each; 3D: 2 patches of 4 cases. 23 by hand, and an epoch more.
    [
        ("2d", 58, 23.2, "slice"),
        ("2d", 59, 23.6, "slice"),
        ("3d_fullres", 23, 23, "case"),
        ("3d_fullres", 24, 24, "case"),
    ],
)
def test_auto_counts_visits(host: Any, configuration: str, epochs: int, visits: float, image: str) -> None:
    trainer = started(host(SATTrainer, configuration, augmentation="auto", epochs=epochs))
    mirroring = round(visits) <= FEW_VISITS == 23
    assert ("GammaTransform" in names(trainer.dataloader_train.data_loader.transforms)) is not mirroring
    which = "mirroring alone, as each" if mirroring else "nnU-Net's own, as each"
    (said,) = re.findall("Augmentation: .*", log(trainer))
    assert said.startswith(f"Augmentation: {which} {image} is seen about {visits:.0f} times (`augmentation: auto`: ")


def test_the_split_is_asked_for_once(host: Any) -> None:
    trainer = started(host(SATTrainer, augmentation="auto"))
    assert log(trainer).count("Desired fold for training") == 1
    assert trainer.do_split() == nnUNetTrainer.do_split(trainer)


def log(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


class OwnAugmentation(IMATrainer):
    """A user's."""

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_training_transforms(*args, **kwargs)


@pytest.mark.parametrize(
    ("cls", "whose"),
    [(type("Mixed", (nnUNetTrainerDA5, IMATrainer), {}), "nnUNetTrainerDA5"), (OwnAugmentation, "OwnAugmentation")],
)
def test_an_augmentation_of_ones_own_is_not_thinned_out(host: Any, tmp_path: Path, cls: type, whose: str) -> None:
    with pytest.raises(InputError, match=f"augmentation: received .mirroring., allowed is host with {whose}"):
        host(cls, augmentation="mirroring")
    assert not (tmp_path / "results").exists()
    trainer = started(host(cls, augmentation="auto"))
    assert f"Augmentation: that of {whose} (`augmentation: auto`)." in log(trainer)
    assert any(isinstance(t, RandomTransform) for t in trainer.dataloader_train.data_loader.transforms.transforms)

"""Pictures of nnU-Net cases: of volumes and of regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.case import NNUNetCase
from tests.tiny_nnunet import REGIONS, write_case, write_model


def test_a_picture_of_a_volume_is_its_slice_with_most_foreground(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    model = DeployedModel.from_folder(write_model(tmp_path / "model", (8, 8, 8)))
    case = NNUNetCase(model, files, model.as_network())
    attacked = case.images + 0.1 * np.arange(case.images.shape[2]).reshape(-1, 1, 1)  # tells the slices apart
    (picture,) = case.picture(attacked.float())
    most = int((case.labels[0, 0] > 0).flatten(1).sum(1).argmax())
    assert most > 0
    assert picture.caption == f"slice {most + 1} of {case.images.shape[2]}"
    np.testing.assert_array_equal(picture.clean, case.images[0, 0, most])
    np.testing.assert_allclose(picture.attacked - picture.clean, 0.1 * most, atol=1e-5)
    np.testing.assert_array_equal(picture.truth, case.labels[0, 0, most])
    np.testing.assert_array_equal(picture.on_clean, case.network(case.images)[0, :, most].argmax(0))


def test_a_picture_of_regions_shows_labels(tmp_path: Path) -> None:
    """Channels are nested regions; the map has the label of the innermost one."""
    model = DeployedModel.from_folder(write_model(tmp_path / "model", labels=REGIONS))
    case = NNUNetCase(model, write_case(tmp_path), model.as_network())
    (picture,) = case.picture(case.images)
    index = int(picture.caption.split()[1]) - 1
    whole, core = (case.logits(case.images)[index] > 0).numpy()
    np.testing.assert_array_equal(picture.on_clean, np.where(core, 2, np.where(whole, 1, 0)))

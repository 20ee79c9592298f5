"""Where a label map lies: what nnU-Net's verification of data sets refuses is refused, what it warns of listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from monai_adv.errors import InputError
from monai_adv.evaluation.models.geometry import Geometry, compare
from nnunet_trainers.deployed import DeployedModel, _geometry
from nnunet_trainers.evaluation.case import NNUNetCase
from nnunet_trainers.evaluation.case_files import CaseFiles
from tests.tiny_nnunet import write_case, write_model

Change = Callable[[SimpleITK.Image], None]
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
TURNED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize(
    ("which", "change", "listed"),
    [
        ("label", lambda image: None, ""),
        ("label", lambda image: image.SetOrigin((0.0, 100.0, 0.0)), "the origin in "),
        ("label", lambda image: image.SetDirection(FLIPPED), "the direction in "),
        ("image", lambda image: image.SetDirection(TURNED), "the direction in "),
        ("label", lambda image: image.SetSpacing((1.0, 1.0, 1.0)), "refused"),
        ("image", lambda image: image.SetSpacing((0.8, 1.0, 1.2501)), "refused"),
    ],
    ids=["same", "origin", "flipped", "turned", "spacing", "nearly"],
)
def test_as_nnunets_verification(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], which: str, change: Change, listed: str, reader: str
) -> None:
    files = write_case(tmp_path)
    path = files.image_files[0] if which == "image" else files.ground_truth_file
    image = SimpleITK.ReadImage(str(path))
    change(image)
    SimpleITK.WriteImage(image, str(path))
    pair = [str(f) for f in files.image_files], str(files.ground_truth_file)
    accepted = check_cases(*pair, 1, {"SimpleITKIO": SimpleITKIO, "NibabelIO": NibabelIO}[reader])
    warned = "mismatch" in capfd.readouterr().out
    assert accepted == (listed != "refused")
    assert (accepted and warned) == listed.startswith("the ")
    model = _model(tmp_path, reader)
    if not accepted:
        with pytest.raises(InputError, match="one of these two files is wrong: correct its spacing, do not resample"):
            NNUNetCase(model, files, model.as_network())
        return
    notes = NNUNetCase(model, files, model.as_network()).notes
    assert len(notes) == (0 if not listed else len(notes))
    assert any(note.startswith(listed) for note in notes) == bool(listed)


def _model(folder: Path, reader: str) -> DeployedModel:
    path = write_model(folder / "model")
    plan = json.loads((path / "plans.json").read_text())
    plan["image_reader_writer"] = reader
    (path / "plans.json").write_text(json.dumps(plan))
    return DeployedModel.from_folder(path)


def test_the_file_that_says_so_is_named(tmp_path: Path) -> None:
    """TIFF has no header for it: nnU-Net's reader takes the spacing from a JSON file beside it, or 1."""
    (tmp_path / "a.json").write_text("{}")
    image = _geometry(tmp_path / "a_0000.tif", {"spacing": (2.0, 1.0, 1.0)}, channel="_0000")
    label = _geometry(tmp_path / "labels_a.tif", {"spacing": (1, 1, 1)}, channel="")
    with pytest.raises(InputError, match=r"labels_a.tif', allowed is .*2 × 1 × 1 mm in .*a.json; the arrays have the"):
        compare(image, label)
    assert len(compare(image, label, refuse=False)) == 1


def test_from_an_affine() -> None:
    affine = np.array([[0.0, -2.0, 0.0, 5.0], [3.0, 0.0, 0.0, 6.0], [0.0, 0.0, 4.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
    found = Geometry.from_affine("a", affine)
    assert (found.spacing, found.origin) == ((3.0, 2.0, 4.0), (5.0, 6.0, 7.0))
    assert found.direction == TURNED
    assert compare(found, found) == ()


def test_labels_for_monai_are_looked_at_too(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    image = SimpleITK.ReadImage(str(files.ground_truth_file))
    image.SetSpacing((1.0, 1.0, 1.0))
    SimpleITK.WriteImage(image, str(files.ground_truth_file))
    model = _model(tmp_path, "SimpleITKIO")
    case = CaseFiles("case", files.image_files, files.ground_truth_file)
    with pytest.raises(InputError, match="do not resample"):
        model.preprocess_labelled(case.image_files, case.ground_truth_file)

"""A robust model handed on: nnU-Net alone, in a Python without this package, predicts the same from it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

from monai_adv import InputError
from monai_adv.cli import main
from nnunet_trainers import DSBNTrainer, IMATrainer, deployed
from nnunet_trainers.export import export
from tests import tiny_nnunet as tiny

PREDICT = """
import sys
import nnunetv2
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
assert not [m for m in sys.modules if m.startswith(("monai_adv", "nnunet_trainers"))]
import torch
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[1], ("0",), "checkpoint_final.pth")
predictor.predict_from_files_sequential([[sys.argv[2]]], [sys.argv[3]])
"""


def predicted_by_nnunet_alone(model: Path, image: Path, output: Path) -> np.ndarray:
    """In a folder and with variables from which Python cannot find this package."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "nnUNet_extTrainer")}
    environment.update(MONAI_ADV_NO_DISCOVERY="1", nnUNet_results=str(output.parent))
    command = [sys.executable, "-c", PREDICT, str(model), str(image), str(output)]
    subprocess.run(command, cwd=output.parent, env=environment, check=True, capture_output=True)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f"{output}.nii.gz"))


def test_nnunet_alone_predicts_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = tiny.write_case(tmp_path)
    section = {"defense": {"margins": {}}, "threat": {"norm": "l2", "eps": 0.1, "unit": "rms"}}
    model = tiny.write_model(tmp_path / "IMATrainer__tinyPlans__2d", trainer="IMATrainer", monai_adv=section)
    ours = deployed.DeployedModel.from_folder(model).predict(case.image_files)
    assert main(["export", str(model), str(tmp_path / "plain")]) == 0
    folder = tmp_path / "plain" / "Dataset999_Tiny" / "nnUNetTrainer__tinyPlans__2d"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[1].endswith(f"-m {folder}")
    assert np.array_equal(predicted_by_nnunet_alone(folder, case.image_files[0], tmp_path / "found"), ours)

    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["monai_adv"] == {"threat": section["threat"]}  # margins are keyed by the names of cases
    with pytest.raises(InputError, match="^output: received .*allowed is a new path"):
        export(model, tmp_path / "plain")


def test_a_zip_unpacks_to_the_same_folder(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", trainer="SATTrainer")
    written, inside = export(model, tmp_path / "plain.zip")
    folder, _ = export(model, tmp_path / "plain")
    with zipfile.ZipFile(written) as archive:
        archive.extractall(tmp_path / "results")
    unpacked = tmp_path / "results" / inside
    assert sorted(p.relative_to(unpacked) for p in unpacked.rglob("*")) == sorted(
        p.relative_to(folder) for p in folder.rglob("*")
    )
    one, two = (torch.load(f / "fold_0" / "checkpoint_final.pth", weights_only=True) for f in (unpacked, folder))
    assert all(torch.equal(one["network_weights"][k], v) for k, v in two["network_weights"].items())


def with_network(folder: Path, trainer: Any, name: str) -> Path:
    """The tiny model with the network that this trainer builds."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    tiny.write_model(folder, trainer=name)
    manager = PlansManager(tiny.plans())
    network = trainer.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3, False)
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save({**checkpoint, "network_weights": network.state_dict()}, file)
    return folder


def test_two_branches_cannot_be_handed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_network(tmp_path / "model", DSBNTrainer, "DSBNTrainer")
    assert main(["export", str(model), str(tmp_path / "plain.zip")]) == 2
    said = capsys.readouterr().err
    assert "a model of DSBNTrainer with normalisation layers with two branches" in said
    assert "pip install monai-adv" in said
    assert not (tmp_path / "plain.zip").exists()


def test_a_variant_of_nnunets_own_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RobustBN(IMATrainer, nnUNetTrainerBN):
        pass

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "robust_bn.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN\n"
        "from nnunet_trainers import IMATrainer\n\n\n"
        "class RobustBN(IMATrainer, nnUNetTrainerBN):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "mine"))
    model = with_network(tmp_path / "model", RobustBN, "RobustBN")
    written, inside = export(model, tmp_path / "plain")
    assert inside.name == "nnUNetTrainerBN__tinyPlans__2d"
    assert (
        torch.load(written / "fold_0" / "checkpoint_final.pth", weights_only=True)["trainer_name"] == "nnUNetTrainerBN"
    )


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.write_model(tmp_path / "model")
    assert main(["export", str(model), str(tmp_path / "plain"), "-f", "3"]) == 2
    assert "fold: received 3, allowed is one of 0" in capsys.readouterr().err
    assert main(["export", str(model), str(tmp_path / "plain"), "-chk", "best.pth"]) == 2
    assert "checkpoint: received 'best.pth'" in capsys.readouterr().err

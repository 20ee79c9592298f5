"""As a user: nnU-Net's own commands from raw images to a prediction on another machine, each in its own process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.apps.nnunet import nnUNetV2Runner

from nnunet_trainers import NNUNetModel
from nnunet_trainers.discovery import discovery_folder
from tests import processes

NAME = "Dataset778_EndToEnd"
SETTINGS = (
    "eps: 0.2\ndelta: 0.05\nepochs: 3\niterations: 6\nvalidation_iterations: 1\nrobust_validation_batches: 1\n"
    "save_every: 1\ninitial_lr: 0.05\nsteps: 3\n"
)


def write_raw(folder: Path) -> None:
    """Six cases of two bright blocks, as NIfTI."""
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for number in range(6):
        generator = np.random.default_rng(number)
        labels = np.zeros((32, 32, 5), np.uint8)
        row, column = generator.integers(4, 10, 2)
        labels[row : row + 14, column : column + 8] = 1
        labels[row : row + 14, column + 8 : column + 16] = 2
        image = labels * 80.0 + generator.normal(100, 8, labels.shape)
        for array, file in (
            (image.astype(np.float32), f"imagesTr/case_{number}_0000"),
            (labels, f"labelsTr/case_{number}"),
        ):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{file}.nii.gz")
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


class User:
    """Runs nnU-Net's commands with the variables of one machine."""

    def __init__(self, root: Path, **variables: str) -> None:
        self.root = root
        self.variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MONAI_ADV_", "nnUNet_"))},
            **{f"nnUNet_{n}": str(root / n) for n in ("raw", "preprocessed", "results")},
            "nnUNet_extTrainer": discovery_folder(),  # what the .pth of an installation does; see test_discovery.py
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            **variables,
        }

    def run(self, command: str, forked: bool = processes.FORKED, **variables: str) -> str:
        name, *arguments = command.split()
        words = [str(Path(sys.executable).parent / name), *arguments]
        done = processes.run(words, env={**self.variables, **variables}, timeout=600, forked=forked)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    @property
    def model(self) -> Path:
        return self.root / "results" / NAME / "IMATrainer__nnUNetPlans__2d"


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """A machine on which a training of three epochs has run."""
    root = tmp_path_factory.mktemp("user")
    write_raw(root / "raw" / NAME)
    (root / "ima.yaml").write_text(SETTINGS)
    user = User(root, MONAI_ADV_SETTINGS=str(root / "ima.yaml"))
    user.run("nnUNetv2_plan_and_preprocess -d 778 -c 2d -np 1 -npfp 1")
    plans_file = root / "preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["2d"]["batch_size"] = 8
    network = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [4 * 2**i for i in range(network["n_stages"])]
    plans_file.write_text(json.dumps(plans))
    user.run("nnUNetv2_train 778 2d 0 -tr IMATrainer -device cpu", nnUNet_n_proc_DA="0")
    return user


def test_training_wrote_everything(user: User) -> None:
    names = {p.name for p in (user.model / "fold_0").iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_best_robust.pth", "robustness.json",
            "robustness.png", "progress.png", "validation"} <= names  # fmt: skip
    summary = json.loads((user.model / "fold_0" / "validation" / "summary.json").read_text())
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1


def test_continue_validate_and_export_to_another_machine(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = user.run(
        "nnUNetv2_train 778 2d 0 -tr IMATrainer -device cpu --c", nnUNet_n_proc_DA="0", MONAI_ADV_EPOCHS="4"
    )
    assert "epochs: 3 in the checkpoint, 4 now" in said
    assert [line.split()[-1] for line in said.splitlines() if ": Epoch " in line and line[-1].isdigit()] == ["3"]
    final = torch.load(user.model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == 4
    assert len(final["monai_adv"]["defense"]["margins"]["values"]) == 4 * 5
    user.run("nnUNetv2_train 778 2d 0 -tr IMATrainer -device cpu --val --val_best")

    archive = tmp_path / "model.zip"
    user.run(f"nnUNetv2_export_model_to_zip -d 778 -o {archive} -c 2d -tr IMATrainer -f 0")
    other = User(tmp_path / "other")
    other.run(f"nnUNetv2_install_pretrained_model_from_zip {archive}")
    images = user.root / "raw" / NAME / "imagesTr"
    one = tmp_path / "one"
    one.mkdir()
    (one / "case_4_0000.nii.gz").symlink_to(images / "case_4_0000.nii.gz")
    other.run(
        f"nnUNetv2_predict -d 778 -i {one} -o {tmp_path / 'out'} -c 2d -tr IMATrainer -f 0 -device cpu -npp 1 -nps 1"
    )
    predicted = np.asarray(nibabel.load(tmp_path / "out" / "case_4.nii.gz").dataobj)  # type: ignore[attr-defined]
    assert predicted.shape == (32, 32, 5)

    # The MONAI loader computes what nnU-Net's command computes (mirroring on, as there).
    monkeypatch.setenv("nnUNet_extTrainer", discovery_folder())
    loaded = NNUNetModel(other.model, mirroring=True)
    ours = loaded.predict([one / "case_4_0000.nii.gz"])
    assert np.array_equal(ours.transpose(2, 1, 0), predicted)


def test_predict_from_the_model_folder_with_the_robust_checkpoint(user: User, tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    (images / "case_5_0000.nii.gz").symlink_to(user.root / "raw" / NAME / "imagesTr" / "case_5_0000.nii.gz")
    user.run(
        f"nnUNetv2_predict_from_modelfolder -m {user.model} -i {images} -o {tmp_path / 'out'} -f 0 -device cpu -npp 1 "
        "-nps 1 -chk checkpoint_best_robust.pth"
    )
    assert (tmp_path / "out" / "case_5.nii.gz").is_file()


def test_a_mistake_ends_with_one_sentence(user: User) -> None:
    with pytest.raises(AssertionError) as error:
        user.run("nnUNetv2_train 778 2d 0 -tr IMATrainer -device cpu", forked=False, MONAI_ADV_EPS="-3")
    last = str(error.value).strip().splitlines()
    assert "eps: received -3.0, allowed is a finite number > 0" in last[-1]
    assert not any("Traceback" in line for line in last)


def test_monais_runner_starts_our_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs nnUNetv2_train as a child with our variables; that command finds the trainer, see above."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the runner overwrites them
    monkeypatch.setenv("nnUNet_extTrainer", discovery_folder())
    monkeypatch.chdir(tmp_path)
    runner = nnUNetV2Runner({"dataset_name_or_id": 778}, trainer_class_name="IMATrainer", work_dir=str(tmp_path))
    command, variables = runner.train_single_model_command("2d", 0, 0, {})
    assert " ".join(command).startswith("nnUNetv2_train 778 2d 0 -tr IMATrainer")
    assert variables["nnUNet_extTrainer"] == discovery_folder()

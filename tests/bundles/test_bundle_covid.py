"""The COVID-19 bundle on its phantom: train, go on, evaluate, report, predict; files of three formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_adv.attacks import PGD, AutoAttack
from monai_adv.bundles import load_weights
from monai_adv.bundles.folds import read_metrics
from monai_adv.networks import instance_norm_resnet18
from monai_adv.tasks import ClassificationTask
from monai_adv.threats import Threat
from tests.bundle_runs import BundleRun
from tests.bundles.test_image_index import write_dicom

NAME = "covid_ct_ima"
SMALL = {"epochs": 2, "val_interval": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> BundleRun:
    """Trained on the phantom as the README says."""
    run = BundleRun(NAME, tmp_path_factory.mktemp("covid"))
    workflow = run.run("train", "phantom")
    trainer = workflow.parser.get_parsed_content("train#trainer")
    run.margins = trainer.defense.margins.values.clone()  # type: ignore[attr-defined]
    run.robust = workflow.parser.get_parsed_content("validate#evaluator").state.best_metric  # type: ignore[attr-defined]
    return run


def test_phantom_is_learnt(trained: BundleRun, forget_seed: None) -> None:
    """A network that always says one class has a geometric mean of 0."""
    assert trained.robust > 0.5  # type: ignore[attr-defined]
    margins = trained.margins  # type: ignore[attr-defined]
    assert margins.shape == (48,)
    assert 0.25 < float(margins.mean()) <= 1.0  # delta and eps_train at 64 pixels


def test_tensorboard_has_the_curves_of_defence_and_robust_validation(trained: BundleRun) -> None:
    curves: dict[str, list[float]] = {}
    for file in (trained.root / "eval").glob("events.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    assert len(curves["robust_g_mean"]) == len(curves["defense/margin_mean"]) == 6
    assert max(curves["robust_g_mean"]) == pytest.approx(trained.robust)  # type: ignore[attr-defined]
    assert curves["defense/margin_mean"][-1] == pytest.approx(float(trained.margins.mean()))  # type: ignore[attr-defined]


def test_evaluation_says_what_the_attack_on_the_saved_weights_says(trained: BundleRun, forget_seed: None) -> None:
    workflow = trained.run("train", "phantom", "evaluate", output_dir=str(trained.root / "eval" / "test"))
    found = read_metrics(trained.root / "eval" / "test" / "metrics.csv")
    items = [workflow.parser.get_parsed_content("validate#dataset")[i] for i in range(20)]
    images = torch.stack([item["image"].as_tensor() for item in items])
    labels = torch.tensor([int(item["label"]) for item in items])
    network = load_weights(instance_norm_resnet18(), trained.root / "models" / "model.pt").eval()
    task = ClassificationTask()
    with torch.no_grad():
        assert found["clean_accuracy"] == pytest.approx(float(task.correct(network(images), labels).float().mean()))
    attack = PGD(Threat("l2", 64 / 224, box=(0.0, 1.0), unit="norm"), steps=20)
    wrong = attack(network, images, labels, task).wrong
    assert found["pgd20_l2_1_accuracy"] == pytest.approx(1 - float(wrong.float().mean()))
    assert found["clean_accuracy"] >= found["pgd20_l2_1_accuracy"] >= found["pgd20_l2_3_accuracy"]
    assert found["noise_l2_9_accuracy"] >= found["pgd20_l2_3_accuracy"]


@pytest.mark.parametrize("size", [224, 112])
def test_radii_are_the_papers_per_pixel(tmp_path: Path, size: int) -> None:
    """An L2 radius R on n x n pixels is a root mean square change of R / n."""
    workflow = BundleRun(NAME, tmp_path).workflow("train", "evaluate", image_size=size)
    settings = workflow.parser.get_parsed_content("train#trainer#settings")
    assert (settings["eps"], settings["delta"]) == pytest.approx((12 * size / 224, 2 * size / 224))
    noise = workflow.parser.get_parsed_content("validate#evaluator#additional_metrics#noise_l2_27#attack")
    image = torch.full((1, 1, size, size), 0.5)
    change = noise.draw(image, torch.Generator().manual_seed(0)) - image
    assert float(change.square().mean().sqrt()) == pytest.approx(27 / 224, rel=1e-4)


def test_autoattack_is_the_papers_table(trained: BundleRun) -> None:
    workflow = trained.workflow("train", "phantom", "evaluate", "autoattack", every=4)
    attack = workflow.parser.get_parsed_content("validate#evaluator#additional_metrics#autoattack_l2_3#attack")
    threat = Threat("l2", 3 * 64 / 224, box=(0.0, 1.0), unit="norm")
    assert attack == AutoAttack(threat, classes=2)
    everyone = trained.workflow("train", "phantom", "evaluate").parser.get_parsed_content("validate#dataset").data
    assert workflow.parser.get_parsed_content("validate#dataset").data == everyone[::4]
    assert len(everyone) == 20


def test_report_is_written_from_inside_the_bundle(trained: BundleRun, forget_seed: None) -> None:
    folder = trained.root / "eval" / "report"
    trained.run(
        "train", "phantom", "evaluate", "robustness", report_dir=str(folder), attacks="quick", eps=[1.0], cases=1
    )
    results = json.loads((folder / "results.json").read_text())
    assert "L2 1 at 224 x 224" in (folder / "report.html").read_text()  # though the phantom's images are smaller
    (model,) = results["models"]
    assert model["name"] == NAME
    assert model["classes"] == ["no COVID-19", "COVID-19"]


def test_training_goes_on_with_margins_and_momentum(trained: BundleRun, forget_seed: None) -> None:
    workflow = trained.workflow("train", "phantom", "resume", epochs=1)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    last = torch.load(trained.root / "models" / "last_checkpoint_epoch=6.pt", weights_only=True)
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, last["model"][key]), key
    momenta = trainer.optimizer.state_dict()["state"]
    assert all(
        torch.equal(momenta[i]["momentum_buffer"], s["momentum_buffer"]) for i, s in last["optimizer"]["state"].items()
    )
    assert torch.equal(trainer.defense.margins.values, trained.margins)  # type: ignore[attr-defined]


def test_clean_training_attacks_nothing(tmp_path: Path, forget_seed: None) -> None:
    run = BundleRun(NAME, tmp_path)
    workflow = run.run("train", "phantom", "clean", **SMALL)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert type(trainer).__name__ == "StandardTrainer"
    assert trainer.state.metrics["defense/passes_per_sample"] == pytest.approx(3)
    key = workflow.parser.get_parsed_content("validate#evaluator").state.key_metric_name
    assert key == "accuracy"


def test_prediction_reads_png_nifti_and_dicom(trained: BundleRun, tmp_path: Path, forget_seed: None) -> None:
    """The same slice in three formats has the same probabilities."""
    values = np.arange(12, dtype=np.uint8).reshape(4, 3)
    write_dicom(tmp_path / "a.dcm")
    nib.save(nib.Nifti1Image(values.T.astype(np.float32)[..., None], np.eye(4)), tmp_path / "b.nii.gz")
    Image.fromarray(values).save(tmp_path / "c.png")
    trained.run(
        "inference", dataset_dir=str(tmp_path), image_size=64, intensity_high=12, output_dir=str(tmp_path / "out")
    )
    with (tmp_path / "out" / "predictions.csv").open(newline="") as lines:
        rows = {Path(row[0]).name: [float(p) for p in row[1:]] for row in csv.reader(lines)}
    assert set(rows) == {"a.dcm", "b.nii.gz", "c.png"}
    assert sum(rows["c.png"]) == pytest.approx(1)
    assert rows["a.dcm"] == pytest.approx(rows["c.png"], abs=1e-5)
    assert rows["b.nii.gz"] == pytest.approx(rows["c.png"], abs=1e-5)


def test_wrong_weights_and_wrong_images_are_refused(trained: BundleRun, tmp_path: Path, forget_seed: None) -> None:
    other = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), other)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(images / "a.png")
    assert "allowed is weights that fit the network" in trained.refusal(
        "inference", dataset_dir=str(images), weights=str(other)
    )
    assert "allowed is an existing file" in trained.refusal("inference", dataset_dir=str(images), weights="none.pt")
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 5), np.float32), np.eye(4)), images / "volume.nii.gz")
    assert "volume.nii.gz', allowed is one grey slice" in trained.refusal("inference", dataset_dir=str(images))

"""Three bundles of the Model Zoo that we did not write become robust by one file of docs/existing_bundle.md.

Their configs are in tests/foreign_bundles; data in their layout, and all that is smaller here, come from outside.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.utils import set_determinism
from PIL import Image
from torch import Tensor, nn

from monai_adv.attacks import PGD
from monai_adv.engines.bundle_task import loss_of_each_sample
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.records import Level
from tests.places import ROOT, TESTS

ZOO = TESTS / "foreign_bundles"
Config = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of MONAI: trust the config, and no CUDA for amp


# -------------------------------------------------------------------- data, as each bundle wants them


def write_frames(bundle: Path, data: Path) -> Config:
    """RGB PNG files of stripes, and lists of them in the bundle's label folder; the class is the stripes' direction."""
    generator = np.random.default_rng(0)
    wave = 60 * np.sin(np.arange(40) / 40 * 8 * np.pi)
    (bundle / "label").mkdir()
    for split, count in (("train", 12), ("val", 6)):
        items = []
        for i in range(count):
            grey = 128 + (wave[:, None] if i % 2 else wave) + generator.normal(0, 30, (40, 40))
            rgb = (grey[..., None] * np.array([1, 0.8, 0.6])).clip(0, 255).astype(np.uint8)
            Image.fromarray(rgb).save(data / f"{split}_{i}.png")
            items.append({"image": str(data / f"{split}_{i}.png"), "label": i % 2})
        (bundle / "label" / f"{split}_samples.json").write_text(json.dumps(items))
    return {}


def write_ct(bundle: Path, data: Path) -> Config:
    """Task09_Spleen: volumes in HU that are neither in the bundle's orientation nor in its spacing."""
    generator = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir()
    for i in range(12):
        truth = np.zeros((12, 12, 12), np.uint8)
        x, y, z = generator.integers(1, 6, 3)
        truth[x : x + 6, y : y + 6, z : z + 6] = 1
        volume = (-20.0 + 130 * truth + generator.normal(0, 25, truth.shape)).astype(np.float32)
        affine = np.diag([-2.0, -1.5, 2.0, 1.0])
        nib.save(nib.Nifti1Image(volume, affine), data / "imagesTr" / f"spleen_{i:02}.nii.gz")
        nib.save(nib.Nifti1Image(truth, affine), data / "labelsTr" / f"spleen_{i:02}.nii.gz")
    return {"dataset_dir": str(data)}


def write_mri(bundle: Path, data: Path) -> Config:
    """BraTS: four files of each case, labels 0, 1, 2, 4; a list of them in the bundle's configs."""
    generator = np.random.default_rng(0)
    lists: dict[str, list[Config]] = {"training": [], "validation": []}
    for i in range(6):
        case = f"Brats18_{i}"
        (data / case).mkdir()
        centre = generator.integers(6, 10, 3)
        distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1) - centre, axis=-1)
        truth = np.select([distance < 2.5, distance < 4, distance < 5.5], [4, 1, 2], 0).astype(np.uint8)
        files = []
        for modality, seen in (("t1ce", 4), ("t1", 1), ("t2", 2), ("flair", 2)):
            volume = 100 + 60 * (truth == seen) + 20 * (truth > 0) + generator.normal(0, 10, truth.shape)
            files.append(f"{case}/{case}_{modality}.nii.gz")
            nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), data / files[-1])
        nib.save(nib.Nifti1Image(truth, np.eye(4)), data / case / f"{case}_seg.nii.gz")
        lists["training" if i < 4 else "validation"].append({"image": files, "label": f"{case}/{case}_seg.nii.gz"})
    (bundle / "configs" / "datalist.json").write_text(json.dumps(lists))
    return {"dataset_dir": str(data)}


# -------------------------------------------------------------------- the bundles


@dataclass(frozen=True)
class Zoo:
    """What a test must know of a bundle: its data, and what to make smaller, all of it from outside."""

    name: str
    write: Callable[[Path, Path], Config]
    small: Config
    """Sizes, for training and evaluation alike."""
    epochs: str
    """The key of their number."""
    quick: Config
    """Of the training."""
    clean: str
    """The bundle's own metric of clean images."""
    eps: float
    images: list[str]
    """The training images, as their memory names them."""
    box: tuple[float, float] | None = None


BUNDLES = [
    Zoo(
        "endoscopic_inbody_classification", write_frames,
        {
            "network_def#layers": [1, 1, 1, 1], "network_def#inplanes": 16,
            "train#deterministic_transforms#3#spatial_size": [24, 24],
        },
        "train#trainer#max_epochs", {"train#dataloader#batch_size": 4}, "val_accu", 0.1,
        [f"train_{i}.png" for i in range(12)],
    ),
    Zoo(
        "spleen_ct_segmentation", write_ct,
        {"network_def#channels": [4, 8], "network_def#strides": [2], "validate#inferer#roi_size": [12, 12, 12]},
        "epochs",
        {
            "optimizer#lr": 0.05, "train#random_transforms#0#spatial_size": [8, 8, 8], "train#dataset#num_workers": 0,
            "lr_scheduler#step_size": 1,
        },
        "val_mean_dice", 0.05, [f"spleen_{i:02}.nii.gz" for i in range(3)], (0.0, 1.0),
    ),
    Zoo(
        "brats_mri_segmentation", write_mri,
        {
            "network_def#init_filters": 8, "network_def#blocks_down": [1, 1], "network_def#blocks_up": [1],
            "validate#inferer#roi_size": [16, 16, 12],
        },
        "epochs", {"learning_rate": 0.01, "train#random_transforms#0#roi_size": [12, 12, 12]}, "val_mean_dice", 0.3,
        [f"Brats18_{i}/Brats18_{i}_t1ce.nii.gz" for i in range(4)],
    ),
]  # fmt: skip


def doc_files(folder: Path) -> list[Path]:
    """The page's own config files."""
    page = (ROOT / "docs" / "existing_bundle.md").read_text()
    files = [folder / f"{name}.json" for name in ("robust", "from_published", "cpu", "float_labels")]
    for file, text in zip(files, re.findall(r"```json\n(.*?)```", page, re.DOTALL), strict=True):
        file.write_text(text)
    return files


def copied(zoo: Zoo, folder: Path) -> tuple[Path, Config]:
    """The bundle as it is, with data, and what has to be said about them."""
    bundle, data = folder / zoo.name, folder / "data"
    shutil.copytree(ZOO / zoo.name, bundle)
    shutil.copy(ZOO / "logging.conf", bundle / "configs")
    data.mkdir()
    return bundle, zoo.write(bundle, data)


def files_of(bundle: Path) -> dict[str, bytes]:
    """All but what a training writes."""
    return {
        str(file.relative_to(bundle)): file.read_bytes()
        for file in sorted(bundle.rglob("*"))
        if file.is_file() and file.relative_to(bundle).parts[0] not in ("models", "eval")
    }


def overrides(zoo: Zoo) -> Config:
    """A CPU, no workers, and a recorder of the curves, because TensorBoard may not be installed."""
    recorder = {"_target_": "unittest.mock.MagicMock"}
    handlers = json.loads((ZOO / zoo.name / "configs" / "train.json").read_text())["train"]["handlers"]
    return {
        "device": "cpu", "train#dataloader#num_workers": 0, "validate#dataloader#num_workers": 0,
        f"train#handlers#{len(handlers) - 1}#summary_writer": recorder, "validate#handlers#1#summary_writer": recorder,
        **zoo.small, **zoo.quick,
    }  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a training left behind."""

    weights: dict[str, Tensor]
    train: list[dict[str, float]]
    """The curves of the trainer, a dictionary per epoch."""
    validate: list[dict[str, float]]
    best: float
    key: str


def run(bundle: Path, *more: Path, **given: Any) -> Run:
    """What ``python -m monai.bundle run`` does, with the parts kept to be looked at."""
    configs = [str(bundle / "configs" / "train.json"), *map(str, more)]
    workflow = monai.bundle.create_workflow(config_file=configs, bundle_root=str(bundle), logging_file=False, **given)
    try:
        workflow.run()
        workflow.finalize()
    finally:
        set_determinism(seed=None)
    part = workflow.parser.get_parsed_content
    state = part("validate#evaluator").state
    return Run(
        weights={key: value.detach().clone() for key, value in part("network_def").state_dict().items()},
        train=curves(part("train#handlers")),
        validate=curves(part("validate#handlers")),
        best=state.best_metric,
        key=state.key_metric_name,
    )


def curves(handlers: list[Any]) -> list[dict[str, float]]:
    """What TensorBoard was told, a dictionary per epoch; losses of iterations are left out."""
    (board,) = (h for h in handlers if type(h).__name__ == "TensorBoardStatsHandler")
    found: dict[int, dict[str, float]] = {}
    for call in board._writer.add_scalar.call_args_list:
        name, value, epoch = call.args
        if name != "train_loss":
            found.setdefault(epoch, {})[name] = value
    return [found[epoch] for epoch in sorted(found)]


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)


@dataclass(frozen=True)
class Trained:
    """One bundle: as published, two epochs more as it is, switched off, and robust."""

    zoo: Zoo
    folder: Path
    bundle: Path
    before: dict[str, bytes]
    given: Config
    published: dict[str, Tensor]
    plain: Run
    off: Run
    robust: Run


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda zoo: zoo.name)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    zoo: Zoo = request.param
    folder = tmp_path_factory.mktemp(zoo.name)
    bundle, data = copied(zoo, folder)
    robust, published, _, cast = doc_files(folder)
    repaired = [cast] if zoo.name == "brats_mri_segmentation" else []  # MONAI 1.5 and later
    before = files_of(bundle)
    given = {**overrides(zoo), **data, zoo.epochs: 10}
    run(bundle, *repaired, **given, val_interval=10)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    given[zoo.epochs] = 2
    box = {} if zoo.box is None else {"robust_settings#box": list(zoo.box)}
    robust_given = box | {"robust_settings#steps": 5}
    off = {"robust_settings#eps": 0, "robust_settings#delta": 0, "ckpt_dir": str(folder / "off")}
    return Trained(
        zoo, folder, bundle, before, given, weights,
        run(bundle, *repaired, published, **given, ckpt_dir=str(folder / "plain")),
        run(bundle, *repaired, robust, published, **given, **robust_given, **off),
        run(bundle, *repaired, robust, published, **given, **robust_given, **{"robust_settings#eps": zoo.eps}),
    )  # fmt: skip


# -------------------------------------------------------------------- the recipe


def test_nothing_in_the_bundle_changes(trained: Trained) -> None:
    """The published weights neither: what is trained goes into folders of its own."""
    assert files_of(trained.bundle) == trained.before
    assert same(torch.load(trained.bundle / "models" / "model.pt", weights_only=True), trained.published)
    new = {file.name for file in (trained.bundle / "models" / "robust").iterdir()}
    assert new == {"model.pt", "robust_state.pt"}


def test_switched_off_it_trains_what_the_bundle_trains_bit_for_bit(trained: Trained) -> None:
    assert same(trained.off.weights, trained.plain.weights)
    assert not same(trained.plain.weights, trained.published)
    clean = trained.zoo.clean
    for theirs, ours in zip(trained.plain.validate, trained.off.validate, strict=True):
        assert ours == {"robust": pytest.approx(ours[clean], abs=1e-6), **theirs}


def test_robust_training(trained: Trained) -> None:
    found, zoo = trained.robust, trained.zoo
    assert not same(found.weights, trained.plain.weights)
    theirs = set(trained.plain.train[0])
    for curve in found.train:
        assert theirs < set(curve)
        assert {name for name in set(curve) - theirs if not name.startswith("defense/")} == set()
        assert curve["defense/attacked"] > 0
        assert curve["defense/dead_gradient"] == 0
        assert 0 < curve["defense/margin_mean"] <= zoo.eps
    for curve in found.validate:
        assert curve["robust"] <= curve[zoo.clean]
    assert any(curve["robust"] < curve[zoo.clean] for curve in found.validate)

    state = torch.load(trained.bundle / "models" / "robust" / "robust_state.pt", weights_only=True)
    assert state["epoch"] == 2
    margins = state["state"]["defense"]["margins"]
    assert sorted(margins["groups"]) == sorted(zoo.images)
    assert (margins["values"] != zoo.eps / 5).any()


def test_the_most_robust_epoch_is_kept_and_its_figures_can_be_measured_again(trained: Trained) -> None:
    found, zoo = trained.robust, trained.zoo
    assert found.key == "robust"
    robust = [curve["robust"] for curve in found.validate]
    best = robust.index(max(robust))
    assert found.best == robust[best]
    words = tuple(f"{key}={json.dumps(value)}" for key, value in evaluated(trained).items())
    model: Any = BundleSource(
        str(trained.bundle), overrides=words, weights="models/robust/model.pt", box=zoo.box
    ).open()
    assert model.problems == ()
    assert model.kind == ("classification" if zoo.clean == "val_accu" else "segmentation")
    for eps, expected in ((0.0, found.validate[best][zoo.clean]), (zoo.eps, robust[best])):
        scores = []
        for case in map(model.load, model.cases):
            lowest = model.kind == "segmentation"
            attack = PGD(case.threat(Level("linf", eps)), 5, until="lowest" if lowest else "wrong")
            images = attack(case.network, case.images, case.target, case.task).images
            assert (images - case.images).abs().max() <= eps + 1e-6
            scores += [score.score for score in case.scores(images)]
        assert np.mean(scores) == pytest.approx(expected, abs=1e-5)


def evaluated(trained: Trained) -> Config:
    """What ``monai-adv evaluate`` must be told."""
    return {**trained.zoo.small, **{k: v for k, v in trained.given.items() if k == "dataset_dir"}}


only_frames = pytest.mark.parametrize("trained", BUNDLES[:1], indirect=True, ids=lambda zoo: zoo.name)


@only_frames
def test_training_starts_with_the_published_weights(trained: Trained) -> None:
    """A learning rate of 0 leaves them as they are."""
    robust, published, *_ = doc_files(trained.folder)
    given = {**trained.given, "optimizer#lr": 0.0, trained.zoo.epochs: 1, "ckpt_dir": str(trained.folder / "start")}
    found = run(trained.bundle, robust, published, **given).weights
    parameters = [key for key in found if "running" not in key and "num_batches" not in key]
    assert len(parameters) > 50
    assert all(torch.equal(found[key], trained.published[key]) for key in parameters)


@pytest.mark.slow
@only_frames
def test_two_processes(trained: Trained) -> None:
    """The bundle's own multi_gpu_train.json, on two CPUs: published weights and memory are the same on both."""
    robust, published, cpu, _ = doc_files(trained.folder)
    smaller, last = trained.folder / "smaller.json", trained.folder / "last.json"
    smaller.write_text(json.dumps({**trained.given, "train#trainer#max_epochs": 1}))
    save = "$torch.save(@network_def.state_dict(), @ckpt_dir + f'/rank{dist.get_rank()}.pt')"
    last.write_text(json.dumps({"ckpt_dir": str(trained.folder / "two"), "+run": [save]}))
    configs = [trained.bundle / "configs" / f"{name}.json" for name in ("train", "multi_gpu_train")]
    files = [*configs, smaller, cpu, robust, published, last]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         "-m", "monai.bundle", "run", "--config_file", str([str(f) for f in files]),
         "--bundle_root", str(trained.bundle)],
        capture_output=True, text=True, timeout=300, cwd=trained.folder, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Sample ids: positions in the data list, 12 samples in 12 files." in done.stdout
    assert "Got new best metric of robust" in done.stdout
    first, second, best, state = (
        torch.load(trained.folder / "two" / f"{name}.pt", weights_only=True)
        for name in ("rank0", "rank1", "model", "robust_state")
    )
    parameters = [key for key in first if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(first[key], second[key]) for key in parameters)
    assert same(first, best)
    assert not all(torch.equal(first[key], trained.published[key]) for key in parameters)
    margins = state["state"]["defense"]["margins"]["values"]
    assert (margins != 0.1 / 5).sum() > 6  # a rank has drawn six of the twelve images
    assert files_of(trained.bundle) == trained.before


# -------------------------------------------------------------------- what such bundles need


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_bundles_loss_weighs_classes_for_single_samples_too(reduction: str) -> None:
    """However the bundle adds them up."""
    weight = torch.tensor([1.0, 5.0])
    sample_loss = loss_of_each_sample(nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=0.1))
    assert sample_loss is not None
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    expected = nn.functional.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(sample_loss(logits, labels), expected)

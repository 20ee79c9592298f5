"""The bundle breast_ultrasound_mirst_dm: two stages that leave out one test part, figures that say what they are."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.bundle.config_parser import ConfigParser
from monai.bundle.workflows import ConfigWorkflow
from monai.utils.misc import set_determinism
from PIL import Image
from torch import Tensor, nn

from monai_adv.bundles import read_index
from monai_adv.bundles.folds import read_metrics
from monai_adv.bundles.phantoms import write_phantom
from monai_adv.defenses.mirst import MIRST
from monai_adv.networks import DropMaxPool2d, drop_max_resnet18
from monai_adv.tasks import ClassificationTask
from tests import processes
from tests.bundle_runs import BundleRun
from tests.places import ROOT, SHARED

NAME = "breast_ultrasound_mirst_dm"
EPS = 5 / 255
BUSI = SHARED / "busi_224"


@dataclass(frozen=True)
class Chain:
    """Both stages, on the phantom, and what they left."""

    run: BundleRun
    first: ConfigWorkflow
    second: ConfigWorkflow
    start: dict[str, Tensor]
    """Weights that stage 2 began with."""

    @property
    def simclr(self) -> Path:
        return self.run.root / "models" / "simclr.pt"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    run = BundleRun(NAME, tmp_path_factory.mktemp("chain"))
    first = run.run("train", "pretrain", "phantom", pretrain_epochs=2)
    second = run.workflow("train", "phantom", pretrained=str(run.root / "models" / "simclr.pt"))
    second.initialize()
    start = {k: v.clone() for k, v in part(second, "network").state_dict().items()}
    second.run()
    yield Chain(run, first, second, start)
    set_determinism(None)


def part(workflow: ConfigWorkflow, key: str) -> Any:
    """What the config made of a key."""
    return workflow.parser.get_parsed_content(key)


def trained() -> nn.Module:
    """The network of the phantom, made without the bundle."""
    return drop_max_resnet18(widen_factor=0.25).eval()


# -------------------------------------------------------------------- two stages


def test_phantom_is_learned_robustly(chain: Chain) -> None:
    """A network that always says one class has 0, one that guesses less than half."""
    state = part(chain.second, "validate#evaluator").state
    assert state.key_metric_name == "robust"
    assert state.best_metric > 0.6
    assert isinstance(part(chain.second, "train#trainer").defense, MIRST)


def test_stage_two_starts_from_the_encoder_of_stage_one(chain: Chain) -> None:
    encoder = torch.load(chain.simclr, weights_only=True)["encoder"]
    assert {key for key in chain.start if key not in encoder} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(chain.start[key], value) for key, value in encoder.items())
    assert part(chain.second, "train#trainer").network is part(chain.second, "network")
    # Stage 1 has trained them, and stage 2 after it.
    untrained = part(chain.first, "network_def").state_dict()
    assert not torch.equal(untrained["conv1.weight"], encoder["conv1.weight"])
    last = part(chain.second, "network").state_dict()
    assert not torch.equal(last["conv1.weight"], encoder["conv1.weight"])


def test_no_stage_reads_the_test_part(chain: Chain) -> None:
    with (chain.run.root / "phantom" / "index.csv").open() as table:
        rows = {row["image"]: row for row in csv.DictReader(table)}
    test = {name for name, row in rows.items() if row["fold"] == "0" and row["label"] != "normal"}
    assert len(test) == 16

    def names(items: Any) -> set[str]:
        return {str(Path(item["image"]).relative_to(chain.run.root / "phantom")) for item in items}

    parts = {
        "simclr": names(part(chain.first, "pretrain_images").data.data),
        "train": names(part(chain.second, "train#dataset").data),
        "val": names(part(chain.second, "validate#dataset").data),
    }
    assert parts["simclr"] == parts["train"]
    assert json.loads((chain.run.root / "models" / "simclr_images.json").read_text()) == sorted(parts["simclr"])
    assert {name: len(part) for name, part in parts.items()} == {"simclr": 56, "train": 56, "val": 8}
    assert not parts["train"] & parts["val"]
    used = parts["train"] | parts["val"]
    assert used | test == {name for name, row in rows.items() if row["label"] != "normal"}
    assert not used & test
    groups = [{rows[name]["near_duplicate_group"] for name in part} for part in (parts["train"], parts["val"], test)]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_weights_that_have_seen_a_test_image_are_refused(chain: Chain, forget_seed: None) -> None:
    before = chain.simclr.read_bytes()
    said = chain.run.refusal("train", "phantom", pretrained=str(chain.simclr), fold=1)
    assert "pretrained: received" in said
    assert "weights that have not seen the test images" in said
    assert "pre-train for this fold" in said
    said = chain.run.refusal("train", "pretrain", "phantom", pretrain_epochs=2, fold=1)
    assert "a file of a run on these images" in said
    assert "ckpt_dir" in said
    assert chain.simclr.read_bytes() == before


def test_stage_one_goes_on_where_it_ended(chain: Chain, forget_seed: None) -> None:
    """With as many epochs as before nothing is left to do."""
    before = torch.load(chain.simclr, weights_only=True)
    chain.run.run("train", "pretrain", "phantom", pretrain_epochs=2)
    after = torch.load(chain.simclr, weights_only=True)
    assert after["losses"] == before["losses"]
    assert len(after["losses"]) == 2
    assert all(torch.equal(after["encoder"][key], value) for key, value in before["encoder"].items())


def test_resuming_needs_no_file_of_stage_one(chain: Chain, forget_seed: None, tmp_path: Path) -> None:
    last = chain.run.root / "models" / "last_checkpoint_epoch=5.pt"
    shutil.copy(last, tmp_path)
    data = {"dataset_dir": str(chain.run.root / "phantom"), "image_size": 32, "network_def#widen_factor": 0.25}
    workflow = chain.run.workflow("train", "resume", ckpt_dir=str(tmp_path), output_dir=str(tmp_path), **data)
    workflow.initialize()
    found, expected = part(workflow, "network").state_dict(), part(chain.second, "network").state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


# -------------------------------------------------------------------- figures


def test_attacks_are_those_that_their_names_say(chain: Chain, forget_seed: None) -> None:
    """How far each goes from the clean image: on a linear network every step goes all the way."""
    workflow = chain.run.workflow("train", "phantom", "evaluate")
    metrics = part(workflow, "validate#additional_metrics")
    assert list(metrics) == ["clean", "paper_fgsm", "paper_pgd", "paper_cw", "full_cw"]
    assert all(metric.key == "f1" for metric in metrics.values())
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images, labels = torch.full((6, 1, 8, 8), 0.5), torch.tensor([0, 1] * 3)
    images[:, :, :2] = 0.999  # near the end of the box
    reached = {}
    for name, metric in metrics.items():
        if name != "clean":
            found = metric.attack(network, images, labels, ClassificationTask()).images
            assert found.min() >= 0
            assert found.max() <= 1
            reached[name] = float((found - images).abs().max())
    assert reached["paper_fgsm"] == pytest.approx(EPS, abs=1e-6)
    assert reached["paper_pgd"] == pytest.approx(EPS, abs=1e-6)  # 20 steps of 0.001 are 0.020, the radius 0.0196
    assert reached["paper_cw"] == pytest.approx(0.010, abs=1e-6)
    assert reached["full_cw"] == pytest.approx(EPS, abs=1e-6)


def test_figures_are_those_of_the_saved_weights(chain: Chain, forget_seed: None, tmp_path: Path) -> None:
    """Each attack written anew. A larger radius and step, because nothing fools this network within 5/255."""
    eps, step = 0.05, 0.004
    shorter = {"validate#additional_metrics#full_cw#attack#steps": 20}
    chain.run.run("train", "phantom", "evaluate", eps=eps, paper_step=step, output_dir=str(tmp_path), **shorter)
    found = read_metrics(tmp_path / "metrics.csv")
    network = trained()
    network.load_state_dict(torch.load(chain.run.root / "models" / "model.pt", weights_only=True))
    workflow = chain.run.workflow("train", "phantom", "evaluate")
    items = list(part(workflow, "validate#dataset"))
    images = torch.stack([item["image"].as_tensor() for item in items])
    labels = torch.tensor([int(item["label"]) for item in items])
    assert images.shape == (16, 1, 64, 64)

    def logits_of(steps: int, size: float, margin: bool) -> list[Tensor]:
        """Of all iterates, the clean image first."""
        x, seen = images, []
        for _ in range(steps):
            x = x.detach().requires_grad_()
            logits = network(x)
            seen.append(logits.detach())
            rows = torch.arange(len(x))
            loss = (logits[rows, 1 - labels] - logits[rows, labels]) if margin else F.cross_entropy(
                logits, labels, reduction="none"
            )  # fmt: skip
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            x = (images + (x + size * gradient.sign() - images).clamp(-eps, eps)).clamp(0, 1)
        return [*seen, network(x).detach()]

    def right(logits: Tensor) -> Tensor:
        return logits.argmax(1) == labels

    expected = {
        "clean": right(logits_of(0, 0, False)[-1]),
        "paper_fgsm": right(logits_of(1, eps, False)[-1]),
        "paper_pgd": right(logits_of(20, step, False)[-1]),
        "paper_cw": torch.stack([right(z) for z in logits_of(10, step, True)]).all(0),
        "full_cw": torch.stack([right(z) for z in logits_of(20, 4 / 20 * eps, True)]).all(0),
    }
    for name, correct in expected.items():
        hits, misses = int((correct & (labels == 1)).sum()), int((~correct & (labels == 1)).sum())
        false = int((~correct & (labels == 0)).sum())
        f1 = 2 * hits / (2 * hits + misses + false)
        assert found[name] == pytest.approx(f1, abs=1e-6), name
        assert found[f"{name}_f1"] == pytest.approx(f1, abs=1e-6)
        assert found[f"{name}_sensitivity"] == pytest.approx(hits / (hits + misses), abs=1e-6)
        assert found[f"{name}_accuracy"] == pytest.approx(correct.float().mean().item(), abs=1e-6)
    # What the README says of the half radius shows here, too.
    assert found["clean"] > found["paper_cw"] > found["full_cw"]


def test_inference_gives_the_probabilities_of_the_network(chain: Chain, forget_seed: None, tmp_path: Path) -> None:
    """The same picture as PNG and NIfTI; one that is not square has its longest side resized and is zero-padded."""
    original = np.asarray(Image.open(chain.run.root / "phantom" / "images" / "malignant_001.png"))
    small = np.asarray(Image.fromarray(original).resize((64, 64)))
    wide = small[16:48]
    (tmp_path / "in").mkdir()
    Image.fromarray(small).save(tmp_path / "in" / "a.png")
    nib.save(nib.Nifti1Image(small.T.astype(np.float32), np.eye(4)), tmp_path / "in" / "b.nii.gz")
    Image.fromarray(wide).save(tmp_path / "in" / "c.png")
    chain.run.run("inference", "phantom", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    with (tmp_path / "out" / "predictions.csv").open() as lines:
        found = {Path(row[0]).name: [float(value) for value in row[1:]] for row in csv.reader(lines)}
    assert list(found) == ["a.png", "b.nii.gz", "c.png"]
    network = trained()
    network.load_state_dict(torch.load(chain.run.root / "models" / "model.pt", weights_only=True))
    padded = np.pad(wide, ((16, 16), (0, 0)))
    images = torch.stack([torch.from_numpy(x.T.copy()).float()[None] / 255 for x in (small, small, padded)])
    expected = network(images).softmax(1)
    assert torch.allclose(torch.tensor(list(found.values())), expected, atol=1e-5)


# -------------------------------------------------------------------- networks and methods


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_phantom("breast_ultrasound", tmp_path_factory.mktemp("data") / "phantom"))


def network_of(run: BundleRun, *configs: str, **overrides: Any) -> nn.Module:
    parser = ConfigParser()
    parser.read_config([str(run.root / "configs" / f"{name}.json") for name in configs])
    parser.update(overrides)
    network: nn.Module = parser.get_parsed_content("network_def")
    return network


@pytest.mark.parametrize("stand", ["train", "inference"])
def test_networks(stand: str, tmp_path: Path) -> None:
    run = BundleRun(NAME, tmp_path)
    found = {name: network_of(run, stand, *more) for name, more in
             {"18": (), "50": ("resnet50",), "max": ("max_pool",)}.items()}  # fmt: skip
    assert isinstance(found["18"].maxpool, DropMaxPool2d)
    assert isinstance(found["50"].maxpool, DropMaxPool2d)
    assert isinstance(found["max"].maxpool, nn.MaxPool2d)
    weights = {name: sum(p.numel() for p in network.parameters()) for name, network in found.items()}
    # Those of torchvision's networks with 1000 classes and 3 channels, less the rest of the head and of the stem.
    assert weights["18"] == 11_689_512 - 513 * 998 - 2 * 49 * 64
    assert weights["50"] == 25_557_032 - 2049 * 998 - 2 * 49 * 64
    ours, theirs = found["18"].state_dict(), found["max"].state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    # Nothing but the pooling differs.
    found["max"].load_state_dict(ours)
    found["max"].maxpool = found["18"].maxpool
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(found["18"].eval()(images), found["max"].eval()(images))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("train", {"instances": "2,4,6,8", "betas": "0.34,0.28,0.22,0.16", "alpha": 1.0}),
        ("rst", {"steps": 10, "weight_noisy": 1.0}),
        ("trades", {"steps": 10, "beta": 1.0}),
        ("sat", {"steps": 10, "relative_step": 0.25}),
        ("gr", {"lam": 1.0}),
        ("clean", {}),
    ],
)
def test_methods(config: str, expected: dict[str, Any], tmp_path: Path, phantom: Path, forget_seed: None) -> None:
    """What the paper compares, within the same radius and box."""
    run = BundleRun(NAME, tmp_path)
    workflow = run.workflow("train", "phantom", config, dataset_dir=str(phantom), pretrained=None, image_size=32)
    trainer = part(workflow, "train#trainer")
    wanted = {"train": "MIRST", "clean": "Standard"}.get(config, config.upper())
    assert type(trainer).__name__ == f"{wanted}Trainer"
    settings = vars(trainer.defense.settings)
    assert {name: settings[name] for name in expected} == expected
    if config != "clean":
        same = {"norm": "linf", "eps": EPS, "box": (0.0, 1.0)}
        assert {name: settings[name] for name in same} == same
    chooses = part(workflow, "validate#evaluator").state.key_metric_name
    assert chooses == ("clean" if config == "clean" else "robust")


# -------------------------------------------------------------------- bad input


def broken(phantom: Path, folder: Path, **changes: str) -> Path:
    """A copy of the table, with other values in the row of the first malignant image; images stay where they are."""
    with (phantom / "index.csv").open() as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        row["image"] = str(phantom / row["image"])
    next(row for row in rows if row["label"] == "malignant").update(changes)
    return written(folder, rows)


def written(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir()
    with (folder / "index.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": ""}, ["index.csv, line 3, label: received '', allowed is a value"]),
        ({"label": "malignent"}, ["index.csv, line 3, label: received 'malignent'", "did you mean 'malignant'?"]),
        ({"fold": "2"}, ["near_duplicate_group 1", "allowed is all images of it in one part"]),
        ({"image": "red.png"}, ["image: received", "red.png", "in colours (mode RGB)"]),
        ({"image": "cut.png"}, ["image: received", "cut.png", "an image that can be read"]),
        ({"image": "none.png"}, ["image: received", "none.png", "an existing file"]),
    ],
    ids=["no label", "unknown label", "group in two folds", "colours", "unreadable", "absent"],
)
def test_bad_data(changes: dict[str, str], words: list[str], phantom: Path, tmp_path: Path, forget_seed: None) -> None:
    data = broken(phantom, tmp_path / "data", **changes)
    Image.new("RGB", (64, 64)).save(data / "red.png")
    (data / "cut.png").write_bytes((phantom / "images" / "benign_000.png").read_bytes()[:500])
    run = BundleRun(NAME, tmp_path)
    for stage in ("pretrain", "scratch"):
        said = run.refusal("train", stage, dataset_dir=str(data), image_size=32)
        assert said.startswith("InputError: "), said
        assert [word for word in words if word not in said] == [], said
    assert_nothing_written(run)


def test_folds_that_cannot_be(phantom: Path, tmp_path: Path, forget_seed: None) -> None:
    with (phantom / "index.csv").open() as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        row["image"] = str(phantom / row["image"])
    benign = [row for row in rows if not (row["label"] == "malignant" and row["fold"] == "0")]
    run = BundleRun(NAME, tmp_path)
    said = run.refusal("train", "scratch", dataset_dir=str(written(tmp_path / "benign", benign)))
    assert "received 'no image of malignant in test', allowed is images of every class in every part" in said
    said = run.refusal("train", "scratch", dataset_dir=str(phantom), fold=5)
    assert "fold: received 5, allowed is one of 0, 1, 2, 3, 4" in said
    unlabelled = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    said = run.refusal("train", "scratch", dataset_dir=str(written(tmp_path / "unlabelled", unlabelled)))
    assert "index.csv, columns: received" in said
    assert_nothing_written(run)


def test_weights_of_stage_one_that_are_missing_or_of_another_network(
    chain: Chain, phantom: Path, tmp_path: Path, forget_seed: None
) -> None:
    run = BundleRun(NAME, tmp_path)
    said = run.refusal("train", dataset_dir=str(phantom))
    assert "simclr.pt', allowed is an existing file" in said
    assert "configs/pretrain.json" in said
    assert "configs/scratch.json" in said
    said = run.refusal("train", "resnet50", dataset_dir=str(phantom), pretrained=str(chain.simclr))
    assert "the weights of the encoder of this ResNet" in said
    assert "missing" in said
    assert_nothing_written(run)
    # The deployed network is not of the size that was trained.
    weights = str(chain.run.root / "models" / "model.pt")
    for configs in (("train", "evaluate"), ("inference",)):
        said = run.refusal(*configs, dataset_dir=str(phantom), weights=weights, image_size=32)
        assert "bundle-weights: received" in said
        assert "allowed is weights that fit the network" in said


def test_weights_from_elsewhere_are_named_as_such(
    chain: Chain, phantom: Path, tmp_path: Path, forget_seed: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows which images they have seen; they are loaded, and the log says so."""
    weights = tmp_path / "other.pt"
    torch.save(torch.load(chain.simclr, weights_only=True)["encoder"], weights)
    run = BundleRun(NAME, tmp_path)
    workflow = run.workflow("train", "phantom", dataset_dir=str(phantom), pretrained=str(weights))
    with caplog.at_level("INFO"):
        workflow.initialize()
    assert "which images they were trained with is not known" in caplog.text
    assert torch.equal(part(workflow, "network").conv1.weight, chain.start["conv1.weight"])


def assert_nothing_written(run: BundleRun) -> None:
    written = [file for folder in ("models", "eval") for file in (run.root / folder).glob("**/*.*")]
    assert written == [run.root / "models" / "README.md"]  # which the bundle brings


# -------------------------------------------------------------------- data and folds


def test_published_folder_is_converted(tmp_path: Path) -> None:
    """Two images are nearly the same, one has two masks, all have colours, none is square."""
    source = tmp_path / "BUSI"
    random = np.random.RandomState(0)
    for label in ("benign", "malignant", "normal"):
        (source / label).mkdir(parents=True)
        for number in range(1, 8):
            grey = np.kron(random.randint(0, 256, (4, 6)), np.ones((10, 10))).astype(np.uint8)
            Image.fromarray(np.stack([grey] * 3, -1)).save(source / label / f"{label} ({number}).png")
            mask = np.zeros_like(grey)
            mask[5:10, 5:10] = 255
            Image.fromarray(mask).save(source / label / f"{label} ({number})_mask.png")
    twin = np.asarray(Image.open(source / "benign" / "benign (1).png"))
    Image.fromarray((0.9 * twin).astype(np.uint8)).save(source / "malignant" / "malignant (3).png")
    Image.fromarray(mask[:, ::-1]).save(source / "benign" / "benign (2)_mask_1.png")

    script = ROOT / "bundles" / NAME / "scripts" / "prepare_busi.py"
    command = [sys.executable, str(script), str(source), str(tmp_path / "out"), "--size", "60"]
    done = processes.run(command)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "index.csv").open() as table:
        rows = {row["image"]: row for row in csv.DictReader(table)}
    assert len(rows) == 21
    groups = {name: row["near_duplicate_group"] for name, row in rows.items()}
    assert len(set(groups.values())) == 20
    one, other = "images/benign/benign_001.png", "images/malignant/malignant_003.png"
    assert groups[one] == groups[other]
    assert rows[one]["fold"] == rows[other]["fold"]
    image, masks = (np.asarray(Image.open(tmp_path / "out" / rows["images/benign/benign_002.png"][key]))
                    for key in ("image", "mask"))  # fmt: skip
    original = np.asarray(Image.open(source / "benign" / "benign (2).png").convert("L"))
    assert np.array_equal(image, np.pad(original, ((10, 10), (0, 0))))
    assert masks.sum() == 2 * 25 * 255
    for fold in range(5):
        read_index(tmp_path / "out", "label", {"benign": 0, "malignant": 1}, fold=fold, group="near_duplicate_group",
                   mask="mask", leave_out=["normal"])  # fmt: skip

    again = processes.run(command)
    assert again.returncode == 2
    assert "allowed is a new folder" in again.stderr
    command[2:4] = [str(tmp_path), str(tmp_path / "new")]
    wrong = processes.run(command)
    assert wrong.returncode == 2
    assert "source: received" in wrong.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not BUSI.is_dir(), reason="BUSI is not here")
def test_real_index(tmp_path: Path) -> None:
    """Every image with a lesion is tested in exactly one of the five folds."""
    parser = ConfigParser()
    parser.read_config([str(BundleRun(NAME, tmp_path).root / "configs" / "train.json")])
    with (BUSI / "index.csv").open() as table:
        rows = {row["image"]: row for row in csv.DictReader(table)}
    tested: list[str] = []
    for fold in range(5):
        parser.update({"dataset_dir": str(BUSI), "fold": fold})
        parser.parse(reset=True)
        index = parser.get_parsed_content("index")
        names = {name: [str(Path(item["image"]).relative_to(BUSI)) for item in index.part(name)]
                 for name in ("train", "val", "test")}  # fmt: skip
        assert sum(map(len, names.values())) == 379 + 176
        groups = [{rows[name]["near_duplicate_group"] for name in part} for part in names.values()]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 461
        assert {rows[name]["fold"] for name in names["test"]} == {str(fold)}
        assert len(groups[1]) == pytest.approx(0.125 * (len(groups[0]) + len(groups[1])), abs=1)
        for name, part in names.items():
            positives = sum(item["label"] for item in index.part(name))
            assert positives == sum(rows[file]["label"] == "malignant" for file in part)
            assert 0 < positives < len(part)
        tested += names["test"]
    assert sorted(tested) == sorted(name for name, row in rows.items() if row["label"] != "normal")
    assert math.isclose(len(tested), 555)

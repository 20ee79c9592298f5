"""The bundle mammography_arfl: what its configs, its scripts and the modules that it alone uses do."""

from __future__ import annotations

import csv
import logging
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from monai.networks.nets.classifier import Classifier
from monai.utils.misc import set_determinism
from PIL import Image
from torch import nn

from monai_adv.bundles.fine_tuning import MEAN, STD, prepared
from monai_adv.bundles.folds import read_metrics
from monai_adv.bundles.image_index import read_index
from monai_adv.bundles.parts import Parts
from monai_adv.bundles.saliency import COLOURS, METHODS, saliency_map, write_saliency
from monai_adv.cli.bundle import bundles
from monai_adv.errors import InputError
from monai_adv.networks import vgg16, vgg16_bn
from tests.bundle_runs import BundleRun
from tests.places import SHARED

NAME = "mammography_arfl"
MINI_MIAS = SHARED / "mini_mias_224"
CLASSES = {"0": 0, "1": 1}
OTHERS = ("inference", "saliency")


def phantom_network() -> Classifier:
    return Classifier([1, 64, 64], 2, [8, 16, 32, 32], [2, 2, 2, 2], num_res_units=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> BundleRun:
    """Trained and evaluated on the phantom."""
    run = BundleRun(NAME, tmp_path_factory.mktemp("bundle"))
    run.run("train", "phantom")
    run.run("train", "phantom", "evaluate")
    set_determinism(None)
    return run


def figures(run: BundleRun) -> dict[str, float]:
    return read_metrics(run.root / "eval" / "metrics.csv")


# ---------------------------------------------------------------- train, evaluate, infer, explain


def test_phantom_is_learnt(trained: BundleRun) -> None:
    found = figures(trained)
    assert found["clean"] == found["clean_auc"] >= 0.9
    assert found["pgd7_linf_1e-4"] >= 0.9
    assert found["pgd20_linf_1e-2"] > 0.6
    names = ("clean", "pgd7_linf_1e-4", "pgd20_linf_1e-3", "pgd20_linf_1e-2")
    assert {f"{name}_{measure}" for name in names for measure in ("accuracy", "f1")} <= set(found)


def test_auc_is_that_of_patients(trained: BundleRun) -> None:
    """Counted directly: pairs of a malignant and another patient in the right order."""
    parser = trained.workflow("train", "phantom", "evaluate").parser
    network = phantom_network().eval()
    network.load_state_dict(torch.load(trained.root / "models" / "model.pt"))
    patients: dict[tuple[int, int], list[float]] = defaultdict(list)
    for item in parser.get_parsed_content("validate#dataset"):
        with torch.no_grad():
            probability = network(item["image"].as_tensor()[None]).softmax(1)[0, 1]
        patients[int(item["group"]), int(item["label"])].append(float(probability))
    assert [len(images) for images in patients.values()] == [2] * 6
    means = {patient: float(np.mean(images)) for patient, images in patients.items()}
    ill = [value for (_, label), value in means.items() if label]
    others = [value for (_, label), value in means.items() if not label]
    direct = np.mean([(a > b) + 0.5 * (a == b) for a in ill for b in others])
    assert figures(trained)["clean"] == pytest.approx(direct)
    right = [(value > 0.5) == bool(label) for (_, label), value in means.items()]
    assert figures(trained)["clean_accuracy"] == pytest.approx(np.mean(right))


def test_inference_writes_the_networks_probabilities(trained: BundleRun, forget_seed: None) -> None:
    trained.run("inference", "phantom")
    with (trained.root / "eval" / "predictions.csv").open() as text:
        rows = {Path(row[0]).name: [float(value) for value in row[1:]] for row in csv.reader(text)}
    assert len(rows) == 60
    network = phantom_network().eval()
    network.load_state_dict(torch.load(trained.root / "models" / "model.pt"))
    parser = trained.workflow("train", "phantom").parser
    item = parser.get_parsed_content("train#dataset")[0]
    with torch.no_grad():
        expected = network(item["image"].as_tensor()[None]).softmax(1)[0].tolist()
    name = Path(item["image"].meta["filename_or_obj"]).name
    assert rows[name] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_saliency_maps_of_two_models_lie_side_by_side(
    method: str, trained: BundleRun, tmp_path: Path, forget_seed: None
) -> None:
    torch.manual_seed(1)
    torch.save(phantom_network().state_dict(), tmp_path / "other.pt")
    images = tmp_path / "images" / "sub"
    images.mkdir(parents=True)
    shutil.copy(trained.root / "phantom" / "patient_00_0.png", images)
    common = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "maps"), "method": method}
    trained.run("saliency", "phantom", other_weights=str(tmp_path / "other.pt"), **common)
    (written,) = (tmp_path / "maps").rglob("*.png")
    assert written == tmp_path / "maps" / "sub" / f"patient_00_0.png_{method}.png"
    picture = np.asarray(Image.open(written))
    assert picture.shape == (64, 3 * 64 + 2 * 4, 3)
    grey, own, other = picture[:, :64], picture[:, 68:132], picture[:, 136:]
    original = np.asarray(Image.open(images / "patient_00_0.png").resize((64, 64), Image.Resampling.BILINEAR))
    assert np.corrcoef(grey[..., 0].ravel(), original.ravel())[0, 1] > 0.99
    lightest = (255 * np.array(COLOURS(1.0)[:3])).round()
    assert all((part == lightest).all(2).any() for part in (own, other))  # each map reaches its own maximum
    assert not np.array_equal(own, other)
    trained.run("saliency", "phantom", other_weights=str(trained.root / "models" / "model.pt"), **common)
    again = np.asarray(Image.open(written))
    np.testing.assert_array_equal(again[:, 68:132], own)
    np.testing.assert_array_equal(again[:, 136:], own)


def test_saliency_follows_the_image_and_leaves_networks_alone(tmp_path: Path) -> None:
    """A network that sees one pixel, the second from the left in the first row."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False))
    nn.init.zeros_(network[1].weight)
    network[1].weight.data[1, 2] = 1.0  # (W, H) = (3, 2): column 1, row 0
    files = [tmp_path / "a.png"]
    (place,) = write_saliency([network], [{"image": torch.rand(1, 3, 2)}], files, tmp_path, tmp_path, "VanillaGrad")
    found = np.asarray(Image.open(place))[:, 3 + 4 :]
    light = (255 * np.array(COLOURS(1.0)[:3])).round()
    assert [(row, column) for row in range(2) for column in range(3) if (found[row, column] == light).all()] == [(0, 1)]
    assert network[1].weight.grad is None
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())


def test_grad_cam_takes_vggs_last_convolution() -> None:
    """Behind it is an activation in place, on which MONAI's hook would fail."""
    network = vgg16(1, 2).eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        expected = network(image)
    found = saliency_map(network, image, "GradCAM")
    assert found.shape == (32, 32)
    torch.testing.assert_close(found, saliency_map(network, image, "GradCAM", "features.28"))
    torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "GradCam"}, "did you mean 'GradCAM'"),
        ({"method": "GradCAM", "target_layer": "2"}, "target_layer: received '2'"),
        ({"class_index": 2}, "class_index: received 2, allowed is 0 to 1"),
    ],
)
def test_bad_saliency_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError) as caught:
        write_saliency([network], [{"image": torch.zeros(1, 2, 2)}], [tmp_path / "a"], tmp_path, tmp_path, **options)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- settings reach the defence


def test_keys_reach_the_defence(tmp_path: Path, forget_seed: None) -> None:
    run = BundleRun(NAME, tmp_path)

    def trainer(*configs: str, **overrides: Any) -> Any:
        return run.workflow("train", "phantom", *configs, **overrides).parser.get_parsed_content("train#trainer")

    given = {"r": 0.25, "lam": 3.0, "eps1": 0.02}
    arfl = trainer(**given)
    found = arfl.defense.settings
    assert (type(arfl).__name__, found.r, found.lam, found.eps, found.steps) == ("ARFLTrainer", 0.25, 3.0, 0.02, 7)
    assert (found.norm, found.box, found.correlation) == ("linf", (0.0, 1.0), "paper")
    aware = trainer("label_aware", **given).defense.settings
    assert (aware.correlation, aware.r, aware.lam) == ("label_aware", 0.25, 3.0)
    dual, sat = trainer("dual", **given), trainer("sat", **given)
    assert [type(each).__name__ for each in (dual, sat, trainer("clean"))] == ["DualTrainer"] * 2 + ["StandardTrainer"]
    assert (dual.defense.settings.r, dual.defense.settings.eps) == (0.25, 0.02)
    assert (sat.defense.settings.r, sat.defense.settings.eps) == (0.0, 0.02)


def test_defaults_are_the_papers() -> None:
    parser = ConfigParser()
    parser.read_config(str(bundles()[NAME] / "configs" / "train.json"))
    assert [parser[key] for key in ("r", "lam", "eps1", "epochs", "image_size")] == [0.5, 10.0, 0.01, 100, 224]
    with torch.device("meta"):
        plain = parser.get_parsed_content("network_def")
        parser.read_config([str(bundles()[NAME] / "configs" / f"{name}.json") for name in ("train", "vgg16_bn")])
        norm = parser.get_parsed_content("network_def")
    assert plain.features[28].out_channels == norm.features[40].out_channels == 512
    assert isinstance(norm.features[41], nn.BatchNorm2d)


def test_evaluation_takes_the_papers_radius_and_larger_ones() -> None:
    parser = ConfigParser()
    parser.read_config([str(bundles()[NAME] / "configs" / f"{name}.json") for name in ("train", "evaluate")])
    metrics = parser["validate#evaluator#additional_metrics"]
    assert [metric["eps"] for metric in metrics.values()] == [0.0, 1e-4, 1e-3, 1e-2]
    assert {(m["key"], m["group_key"], m["norm"]) for m in metrics.values()} == {("auc", "group", "linf")}


# ---------------------------------------------------------------- fine-tuning


def test_frozen_layers_do_not_change(trained: BundleRun, tmp_path: Path, forget_seed: None) -> None:
    run = BundleRun(NAME, tmp_path)
    start = torch.load(trained.root / "models" / "model.pt")
    weights = str(trained.root / "models" / "model.pt")
    workflow = run.run("train", "phantom", pretrained=weights, trainable="last", epochs=2, learning_rate=0.01)
    network = workflow.parser.get_parsed_content("network")
    end = network.state_dict()
    changed = {name for name, value in end.items() if not torch.equal(value, start[name])}
    last = {"net.layer_3.conv.weight", "net.layer_3.conv.bias", "final.1.weight", "final.1.bias"}
    assert changed == last
    optimizer = workflow.parser.get_parsed_content("optimizer")
    trainable = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert {id(weight) for weight in trainable} == {id(w) for name, w in network.named_parameters() if name in last}


def test_last_is_the_last_convolution_and_the_dense_layers() -> None:
    with torch.device("meta"):
        plain, norm = prepared(vgg16(), trainable="last"), prepared(vgg16_bn(), trainable="last")
    heads = ["classifier.0", "classifier.3", "classifier.6"]
    for network, convolution in ((plain, ["features.28"]), (norm, ["features.40", "features.41"])):
        names = {name.rpartition(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}
        assert names == {*convolution, *heads}


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    prepared(network, trainable="last").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(3 + torch.randn(4, 1, 5, 5)).sum().backward()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}
    assert [layer.training for layer in network] == [True, False, True, True]


def layers(channels: int, classes: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, 4, 3, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def test_imagenet_weights_compute_the_same_from_grey_images(tmp_path: Path) -> None:
    colour, grey = layers(3, 1000), layers(1, 2)
    head = grey[4].weight.clone()
    torch.save(colour.state_dict(), tmp_path / "imagenet.pth")
    prepared(grey, tmp_path / "imagenet.pth")
    images = torch.rand(2, 1, 8, 8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    expected, found = colour[0]((images.expand(-1, 3, -1, -1) - mean) / std), grey[0](images)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    assert torch.equal(grey[4].weight, head)
    assert grey[0].in_channels == 1


def test_weights_of_another_network_leave_it_as_it_was(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), *layers(1, 2)[1:4], nn.Linear(5, 1000))
    torch.save(other.state_dict(), tmp_path / "other.pth")
    network = layers(1, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=r"0.weight \(5, 3, 3, 3\) instead of \(4, 3, 3, 3\)"):
        prepared(network, tmp_path / "other.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_random_frozen_layers_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepared(layers(1, 2), trainable="last")
    assert "keep random weights" in caplog.text
    with pytest.raises(InputError, match="trainable: received 'lst'"):
        prepared(layers(1, 2), trainable="lst")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a network with a convolution"):
        prepared(nn.Linear(2, 2), trainable="last")


# ---------------------------------------------------------------- bad input, through MONAI


def change_index(folder: Path, change: Any) -> None:
    with (folder / "index.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    rows = [row for row in map(change, rows) if row]
    with (folder / "index.csv").open("w", newline="") as text:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def with_fold(row: dict[str, str]) -> dict[str, str]:
    return {**row, "fold": "1"} if row["image"] == "patient_00_0.png" else row


def benign_fold(row: dict[str, str]) -> dict[str, str]:
    return {**row, "malignant": "0"} if row["fold"] == "0" else row


def unlabelled(row: dict[str, str]) -> dict[str, str]:
    return {**row, "malignant": ""} if row["image"] == "patient_05_1.png" else row


def no_labels(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key != "malignant"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_fold, "patient 0: received 'images in"),
        (benign_fold, "no image of 1 in test"),
        (unlabelled, "malignant: received '', allowed is a value"),
        (no_labels, "columns: received ['image', 'patient', 'fold']"),
    ],
)
def test_bad_index_is_refused_before_the_training(
    change: Any, message: str, trained: BundleRun, tmp_path: Path, forget_seed: None
) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.root / "phantom", data)
    change_index(data, change)
    run = BundleRun(NAME, tmp_path)
    assert message in run.refusal("train", "phantom", dataset_dir=str(data))
    assert not list(run.root.glob("models/*.pt"))


def test_unreadable_dicom_and_too_bright_image_are_named(trained: BundleRun, tmp_path: Path, forget_seed: None) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.root / "phantom", data)
    run = BundleRun(NAME, tmp_path)
    said = run.refusal("train", "phantom", dataset_dir=str(data), intensity_high=15)
    assert re.search(r"patient_\d\d_\d.png with intensities from \d+ to \d+', allowed is 0 to 15; give --inten", said)
    (data / "bad.dcm").write_text("no image")
    change_index(data, lambda row: {**row, "image": "bad.dcm"} if row["image"] == "patient_05_1.png" else row)
    said = run.refusal("train", "phantom", dataset_dir=str(data))
    assert f"image: received '{data / 'bad.dcm'}', allowed is an image that can be read" in said
    assert not list(run.root.glob("models/*.pt"))


@pytest.mark.parametrize(
    ("configs", "overrides", "message"),
    [
        (("train", "phantom"), {"lamda": 1.0}, "did you mean 'lam'?"),
        (("train", "phantom"), {"lam": -1.0}, "lam: received -1.0"),
        (("train", "phantom"), {"r": 1.5}, "r: received 1.5"),
        (("train", "phantom"), {"fold": 5}, "fold: received 5, allowed is one of 0, 1, 2, 3, 4"),
        (("train", "phantom"), {"pretrained": "none.pth"}, "file: received 'none.pth', allowed is an existing file"),
        (("train", "phantom", "evaluate"), {}, "bundle-weights: received"),
    ],
)
def test_bad_keys_are_refused_before_the_training(
    configs: tuple[str, ...], overrides: dict[str, Any], message: str, tmp_path: Path, forget_seed: None
) -> None:
    run = BundleRun(NAME, tmp_path)
    assert message in run.refusal(*configs, **overrides)
    assert not list(run.root.glob("models/*.pt"))


@pytest.mark.parametrize("configs", [("train", "phantom", "evaluate"), *((name, "phantom") for name in OTHERS)])
def test_weights_of_another_network_are_refused(
    configs: tuple[str, ...], trained: BundleRun, tmp_path: Path, forget_seed: None
) -> None:
    torch.save(layers(1, 2).state_dict(), tmp_path / "other.pt")
    options = {"weights": str(tmp_path / "other.pt"), "output_dir": str(tmp_path / "eval")}
    assert "state_dict" in trained.refusal(*configs, **options)
    assert not (tmp_path / "eval").exists()


# ---------------------------------------------------------------- real data


@pytest.mark.skipif(not (MINI_MIAS / "index.csv").is_file(), reason="mini-MIAS is not here")
def test_mini_mias_patients_are_never_split() -> None:
    tested: list[int] = []
    for fold in range(5):
        index: Parts = read_index(MINI_MIAS, "malignant", CLASSES, fold=fold, group="patient", validation=0.125)
        parts = {name: index.part(name) for name in ("train", "val", "test")}
        images = {name: {item["image"] for item in part} for name, part in parts.items()}
        # mdb001 and mdb002 are of one patient, and so on.
        patients = {name: {(int(Path(file).stem[3:]) - 1) // 2 for file in part} for name, part in images.items()}
        assert sum(map(len, patients.values())) == len(set().union(*patients.values())) == 161
        assert sum(map(len, images.values())) == 322
        shares = [len(patients[name]) / 161 for name in ("train", "val", "test")]
        assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
        tested += [item["label"] for item in parts["test"]]
    assert (len(tested), sum(tested)) == (322, 52)

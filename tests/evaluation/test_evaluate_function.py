"""``monai_adv.evaluate``: known answers, what it takes, what it leaves, what it refuses."""

from __future__ import annotations

import gc
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import monai_adv
from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation.store import read_evaluation
from tests.linear_classifier import LinearClassifier, problem
from tests.places import ROOT, TESTS

RADII = [0.1, 0.3]


@pytest.fixture(scope="module")
def linear() -> tuple[LinearClassifier, Tensor, Tensor]:
    network, images, labels = problem(3, (1, 4, 4), count=24, dtype=torch.float32)
    labels[0] = (labels[0] + 1) % 3  # one is wrong from the start
    return network, images, labels


def quick(*args: Any, **settings: Any) -> Any:
    return monai_adv.evaluate(*args, **{"norm": "linf", "eps": RADII, "attacks": "quick", **settings})


@pytest.fixture(scope="module")
def results(linear: tuple[LinearClassifier, Tensor, Tensor]) -> Any:
    return quick(*linear)


def robust(linear: tuple[LinearClassifier, Tensor, Tensor], eps: float) -> Tensor:
    """By the closed form of a linear classifier: right, and its nearest boundary is further away than eps."""
    network, images, labels = linear
    return (network(images).argmax(1) == labels) & (network.distances(images, labels, "linf").amin(1) > eps)


def test_the_robust_accuracy_of_a_linear_classifier(results: Any, linear: Any) -> None:
    frame = results.frame()
    worst = frame[(frame.attack == "worst case") & (frame.measure == "score")]
    for eps in RADII:
        found = worst[worst.eps == eps].set_index("case").value
        expected = robust(linear, eps)
        assert 0 < expected.sum() < 24
        assert [found[str(i)] for i in range(24)] == expected.double().tolist()
    clean = frame[(frame.attack == "clean") & (frame.measure == "score")]
    assert clean.value.mean() == pytest.approx(23 / 24)
    share = 100 * float(robust(linear, RADII[1]).double().mean())
    assert f"{share:.1f}" in repr(results)


def test_the_columns(results: Any) -> None:
    frame = results.frame()
    assert list(frame.columns) == ["model", "case", "level", "norm", "eps", "unit", "attack", "measure", "value"]
    assert set(frame.measure) == {"score", *(f"probability class {i}" for i in range(3))}
    assert set(frame.model) == {"LinearClassifier"}
    assert not frame.duplicated(["model", "case", "level", "attack", "measure"]).any()


def test_what_a_notebook_shows(results: Any, linear: Any, tmp_path: Path) -> None:
    axes = results.plot().axes[0]
    line = axes.lines[0].get_ydata()
    assert line == pytest.approx([100 * 23 / 24, *(100 * float(robust(linear, e).double().mean()) for e in RADII)])
    assert results.verdict.keys() == {"LinearClassifier"}
    assert results.report(tmp_path / "page").read_text().startswith("<!DOCTYPE html>")
    lost = int((robust(linear, 0.0) & ~robust(linear, RADII[0])).nonzero()[0])
    worst = results.worst(str(lost), eps=RADII[0])
    assert "100.0 before and 0.0 after" in repr(worst)
    assert np.abs(worst.picture.attacked - worst.picture.clean).max() <= RADII[0] * (1 + 1e-5)
    assert worst._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="case: received '77'"):
        results.worst("77")


def test_numbers_of_numpy_and_torch_are_numbers(linear: Any) -> None:
    given = {"eps": 0.3, "seed": 3, "batch_size": 5, "cases": 6}
    expected = quick(*linear, **given).frame()
    assert quick(*linear, **{word: np.array(value)[()] for word, value in given.items()}).frame().equals(expected)
    assert quick(*linear, **given | {"eps": torch.tensor(0.3, dtype=torch.float64)}).frame().equals(expected)


def test_a_radius_is_asked_for_as_it_was_given(linear: Any) -> None:
    found = quick(*linear, eps=["1/10", "3/10"], cases=2)
    assert found.worst("1", eps="1/10").level == found.worst("1", eps=0.1).level == found.numbers.levels[0]
    with pytest.raises(InputError, match="eps: received '0.2', allowed is one of 2"):
        found.worst("1", eps="2/10")


def test_both_norms_in_one_measurement(linear: Any) -> None:
    found = quick(*linear, norm=None, eps={"l2": 0.1, "linf": RADII}, cases=2)
    assert [level.key for level in found.numbers.levels] == ["l2-0.1-rms", *(f"linf-{radius:g}" for radius in RADII)]
    lone = quick(*linear, cases=2).frame()
    both = found.frame()
    assert both[both.norm == "linf"].reset_index(drop=True).equals(lone[lone.norm == "linf"].reset_index(drop=True))


def test_nothing_is_left(linear: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    network = linear[0].train()
    found = quick(*linear, eps=0.1, cases=3)
    assert network.training
    assert [p.name for p in tmp_path.iterdir()] == [found.folder.name]
    assert capsys.readouterr() == ("", "")
    del found
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="cases"):
        quick(*linear, cases=["nobody"])
    assert not list(tmp_path.iterdir())


def test_loaders_and_data_sets_are_the_same(linear: Any, results: Any) -> None:
    network, images, labels = linear
    items = TensorDataset(images, labels)
    dictionaries = [{"image": i.numpy().astype(float), "label": int(k)} for i, k in zip(images, labels, strict=True)]
    for data in (DataLoader(items, 7), items, dictionaries):
        assert quick(network, data).frame().equals(results.frame())
    with pytest.raises(InputError, match="shuffles"):
        quick(network, DataLoader(items, 7, shuffle=True))
    with pytest.raises(InputError, match="drops its last"):
        quick(network, DataLoader(items, 7, drop_last=True))


def test_two_networks_and_a_folder(linear: Any, tmp_path: Path) -> None:
    network, images, labels = linear
    found = quick({"a": network, "b": nn.Sequential(network)}, images, labels, folder=tmp_path / "out", cases=10)
    scores = found.frame().query("attack == 'worst case' and measure == 'score'").groupby(["model", "eps"]).value.mean()
    assert list(scores["a"]) == list(scores["b"]) == [float(robust(linear, e)[:10].double().mean()) for e in RADII]
    assert read_evaluation(tmp_path / "out").models[0].cases == ("images 0 to 9",)
    again = quick({"a": network, "b": nn.Sequential(network)}, images, labels, folder=tmp_path / "out", cases=10)
    assert again.frame().equals(found.frame())
    with pytest.raises(InputError, match="holds another evaluation; it differs in settings.seed"):
        quick({"a": network, "b": nn.Sequential(network)}, images, labels, folder=tmp_path / "out", cases=10, seed=1)


def test_a_segmentation() -> None:
    """The bright half is the object: a threshold at 0.5, and voxels that are 0.2 away from it."""
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 20.0]).reshape(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -10.0]))
    labels = torch.zeros(2, 1, 8, 8, dtype=torch.long)
    labels[..., :4] = 1
    images = 0.3 + 0.4 * labels.float()
    found = quick(network, images, labels, eps=[0.1, 0.25], spacing=(2.0, 1.0)).frame()
    worst = found[(found.attack == "worst case") & (found.measure == "dice class 1")].groupby("eps").value.mean()
    assert worst[0.1] == 1.0
    assert worst[0.25] == 0.0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": torch.zeros(5)}, "labels: received '5 labels', allowed is one per image, here 24"),
        ({"attacks": "standrd"}, "attacks: received 'standrd', allowed is quick, standard, full, or a plan as"),
        ({"norm": "l1"}, "norm: received 'l1', allowed is 'l2' or 'linf'"),
        ({"unit": "HU"}, "unit: received 'HU', allowed is one of norm, rms, raw"),
        ({"eps": "much"}, "eps: received 'much'"),
        ({"box": 1}, "box: received 1, allowed is two numbers, lowest and highest"),
        ({"images": None, "labels": None}, "images: received None"),
        ({"images": torch.zeros(24, 1, 5, 5)}, "images: received 'images such as (1, 5, 5)', allowed is what Lin"),
        ({"classes": "ab"}, "classes: received '2 names', allowed is one per class of the network, here 3"),
        ({"model": "no_such_folder"}, "there is no such folder"),
        ({"model": 3}, "model: received 'int'"),
        ({"options": {"folds": 1}}, "options: received ['folds']"),
        ({"device": "cuda"}, "move it first"),
        ({"device": "gpu"}, "device: received 'gpu', allowed is a device of PyTorch's"),
        ({"name": ""}, "name: received ['']"),
        ({"classes": {"a": 0, "b": 1, "c": 2}}, "classes: received {'a': 0, 'b': 1, 'c': 2}, allowed is texts"),
        ({"classes": [0, 1, 2]}, "classes: received [0, 1, 2], allowed is texts"),
        ({"seed": None}, "seed: received None, allowed is a whole number >= 0"),
        ({"seed": 1.5}, "seed: received 1.5"),
        ({"batch_size": 2.5}, "batch_size: received 2.5, allowed is a whole number >= 1"),
        ({"folder": __file__}, f"folder: received '{__file__}', allowed is a folder that can be written"),
        ({"eps": {"linf": [0.1]}}, "norm: received 'linf', allowed is none where eps names norms; leave norm out"),
        ({"norm": None, "eps": {"l1": 0.1}}, "norm: received 'l1', allowed is 'l2' or 'linf'"),
        ({"threads": "2"}, "threads: received '2', allowed is a whole number from 1 to 512"),
        ({"cases": True}, "cases: received True, allowed is a number >= 1, names of cases"),
        ({"cases": 2.0}, "cases: received 2.0"),
        ({"smooth": "much"}, "smooth: received 'much'"),
        ({"labels": ["benign"] * 24}, "labels: received 'benign', allowed is numbers"),
    ],
)
def test_refused(linear: Any, changed: dict[str, Any], said: str) -> None:
    given = dict(zip(("model", "images", "labels"), linear, strict=True)) | changed
    with pytest.raises(InputError) as error:
        quick(**given)
    assert said in str(error.value)


def test_a_bundles_folder_brings_its_data(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with pytest.raises(InputError, match="a bundle's config names its data"):
        quick(tmp_path, torch.zeros(2, 1, 4, 4), torch.zeros(2))
    with pytest.raises(InputError, match=r"overide: unknown option of this model; did you mean 'overrides'\?"):
        quick(tmp_path, options={"overide": []})


def test_the_import_is_light() -> None:
    code = "import sys, monai_adv; assert 'torch' not in sys.modules and callable(monai_adv.evaluate)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cases_of_a_classifier_are_images(tmp_path: Path) -> None:
    factory = f"{TESTS / 'tiny_models.py'}:classifier"
    words = ["--norm", "linf", "--eps", "0.02", "--attacks", "quick", "--device", "cpu", "-y"]
    assert main(["evaluate", "--factory", factory, *words, "--cases", "10", "-o", str(tmp_path / "out")]) in (0, 3)
    assert read_evaluation(tmp_path / "out").models[0].cases == ("images 0 to 7", "images 8 to 9")


def test_the_three_lines_of_the_docs(linear: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """As they stand, on images between 0 and 1; only the attacks are the quick ones."""
    page = (ROOT / "docs" / "measuring.md").read_text()
    lines = page.split("```python\n", 1)[1].split("```", 1)[0]
    assert page.index("```python") < 200
    assert len(lines.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    network, images, _ = linear
    images = images.sigmoid()
    names: dict[str, Any] = {"network": network, "images": images, "labels": network(images).argmax(1)}
    names["monai_adv"] = SimpleNamespace(evaluate=partial(monai_adv.evaluate, attacks="quick"))
    exec(lines, names)
    assert [level.eps for level in names["results"].numbers.levels] == [0.01, 0.03]
    assert (tmp_path / "report" / "report.html").exists()

"""A plain network, a DataLoader, a MONAI bundle and an nnU-Net folder: known answers through :func:`evaluate`, and the
same figures, bit for bit, from the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pandas
import pytest
import SimpleITK
import torch
from torch.utils.data import DataLoader, TensorDataset

import monai_adv
from monai_adv.cli import main
from monai_adv.evaluation import api
from monai_adv.evaluation.outcome import Results
from tests.linear_classifier import problem
from tests.tiny_evaluate import figures_only
from tests.tiny_nnunet import write_case, write_model

RADII = (0.1, 0.25)
FACTORY = """
import torch
from monai_adv.evaluation.models.classifier import Classifier
from tests.linear_classifier import problem

def model():
    network, images, labels = problem(3, (1, 4, 4), count=24, dtype=torch.float32)
    return Classifier("linear", network, images, labels, ("class 0", "class 1", "class 2"))
"""


def by_command(folder: Path, *words: str) -> pandas.DataFrame:
    radii = ["--norm", "linf", "--eps", *map(str, RADII)]
    words = ("evaluate", *words, *radii, "--attacks", "quick", "--device", "cpu", "-y", "-o", str(folder))
    assert main(words, parts=figures_only()) == 0
    return Results(folder).frame()


def from_python(*data: Any, **settings: Any) -> pandas.DataFrame:
    # Whoever calls the function gets a whole report: it has no argument that leaves the probes out.
    with patch.object(api, "measure", partial(api.measure, parts=figures_only())):
        return monai_adv.evaluate(*data, norm="linf", eps=RADII, attacks="quick", **settings).frame()


def worst(frame: pandas.DataFrame, measure: str = "score") -> list[list[float]]:
    """By radius, of every case."""
    found = frame[(frame.attack == "worst case") & (frame.measure == measure)]
    return [found[found.eps == eps].value.tolist() for eps in RADII]


def test_a_network_and_a_loader(tmp_path: Path) -> None:
    """Closed form: an image falls if its nearest boundary, in L1 of the weights' difference, is within eps."""
    network, images, labels = problem(3, (1, 4, 4), count=24, dtype=torch.float32)
    frame = from_python(network, images, labels, name="linear")
    right, distance = network(images).argmax(1) == labels, network.distances(images, labels, "linf").amin(1)
    expected = [(right & (distance > eps)).double().tolist() for eps in RADII]
    assert 0 < sum(expected[1]) < sum(expected[0])
    assert worst(frame) == expected
    assert from_python(network, DataLoader(TensorDataset(images, labels), 5), name="linear").equals(frame)
    (tmp_path / "linear_factory.py").write_text(FACTORY)
    assert by_command(tmp_path / "out", "--factory", f"{tmp_path / 'linear_factory.py'}:model").equals(frame)


def test_a_bundle(tmp_path: Path) -> None:
    """A threshold at 0.5 and voxels at 0.3 and 0.7: all is right below a change of 0.2, nothing above it."""
    bundle = tmp_path / "threshold"
    for part in ("configs", "models", "data"):
        (bundle / part).mkdir(parents=True)
    truth = np.zeros((6, 6, 4), np.uint8)
    truth[:3] = 1
    for name, values in (("image", np.float32(0.3 + 0.4 * truth)), ("label", truth)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), bundle / "data" / f"{name}.nii.gz")
    items = [{"image": str(bundle / "data" / "image.nii.gz"), "label": str(bundle / "data" / "label.nii.gz")}]
    keys = ["image", "label"]
    read = [{"_target_": "LoadImaged", "keys": keys}, {"_target_": "EnsureChannelFirstd", "keys": keys}]
    layer = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    transform = {"_target_": "Compose", "transforms": read}
    validate = {
        "dataset": {"_target_": "Dataset", "data": items, "transform": transform},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    }
    (bundle / "configs" / "train.json").write_text(json.dumps({"network_def": layer, "validate": validate}))
    weights = {"weight": torch.tensor([0.0, 20.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([0.0, -10.0])}
    torch.save(weights, bundle / "models" / "model.pt")
    frame = from_python(bundle, device="cpu")
    assert worst(frame) == [[1.0], [0.0]]
    assert by_command(tmp_path / "out", "--bundle", str(bundle)).equals(frame)


def test_an_nnunet(tmp_path: Path) -> None:
    """It calls every voxel "front", whatever it is shown: Dice 2 |front| / (|front| + |all|), and 0 of "back"."""
    model = write_model(tmp_path / "constant")
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    last = [name for name, weights in content["network_weights"].items() if weights.shape[0] == 3][-2:]
    for name in last:  # the last layer's weights and its bias
        content["network_weights"][name].zero_()
    content["network_weights"][last[-1]][1] = 1.0
    torch.save(content, file)
    write_case(tmp_path, rim=0)
    folders = str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr")
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(next((tmp_path / "labelsTr").iterdir()))))
    front = 2 * int((labels == 1).sum()) / (int((labels == 1).sum()) + labels.size)
    frame = from_python(model, *folders, device="cpu")
    assert worst(frame, "dice front") == [[pytest.approx(front, abs=1e-12)]] * 2
    assert worst(frame, "dice back") == [[0.0]] * 2
    told = by_command(tmp_path / "out", "-m", str(model), "-i", folders[0], "-gt", folders[1])
    assert told.equals(frame)

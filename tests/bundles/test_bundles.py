"""All bundles: the checks that the Model Zoo makes, as far as they need no network, and what the zoo does not check."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import ckpt_export, onnx_export, verify_metadata, verify_net_in_out

from monai_adv.cli import main
from monai_adv.cli.bundle import bundles
from tests import processes
from tests.bundle_runs import BundleRun
from tests.places import TESTS

NAMES = sorted(bundles())
SCHEMA = TESTS / "data" / "meta_schema.json"
FILES = (
    "LICENSE", "configs/metadata.json", "configs/logging.conf", "configs/train.json", "configs/clean.json",
    "configs/evaluate.json", "configs/robustness.json", "configs/inference.json", "configs/multi_gpu_train.json",
    "configs/resume.json", "configs/phantom.json", "docs/README.md", "docs/data_license.txt",
)  # fmt: skip
HEADINGS = (
    "### **Authors**", "### **Tags**", "## **Model Description**", "## **Data**", "#### **Preprocessing**",
    "## **Performance**", "## **System Configuration**", "## **Limitations**", "## **Citation Info**",
    "## **References**",
)  # fmt: skip
each_bundle = pytest.mark.parametrize("name", NAMES)


def _metadata(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundles()[name] / "configs" / "metadata.json").read_text())
    return found


def _network(name: str) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(bundles()[name] / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundles()[name])
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network


def test_four_bundles_are_there() -> None:
    assert NAMES == ["breast_ultrasound_mirst_dm", "covid_ct_ima", "mammography_arfl", "robust_organ_segmentation"]


@each_bundle
def test_has_the_files_and_headings_of_the_zoo(name: str) -> None:
    folder = bundles()[name]
    assert [file for file in FILES if not (folder / file).is_file() or not (folder / file).stat().st_size] == []
    readme = (folder / "docs" / "README.md").read_text()
    assert readme.startswith("# ")
    assert [heading for heading in HEADINGS if heading not in readme] == []


@each_bundle
def test_metadata_fit_the_schema_and_name_their_version(name: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(SCHEMA.read_text())
    verify_metadata(meta_file=str(bundles()[name] / "configs" / "metadata.json"), filepath=str(schema))
    metadata = _metadata(name)
    assert metadata["version"] in metadata["changelog"]
    assert metadata["schema"].endswith("meta_schema_20240725.json")


@each_bundle
def test_network_has_the_shapes_of_the_metadata(name: str) -> None:
    configs = bundles()[name] / "configs"
    verify_net_in_out(
        net_id="network_def", meta_file=str(configs / "metadata.json"), config_file=str(configs / "inference.json"),
        bundle_root=str(bundles()[name]), device="cpu",
    )  # fmt: skip
    data = _metadata(name)["network_data_format"]
    image, classes = data["inputs"]["image"], data["outputs"]["pred"]["channel_def"]
    with torch.no_grad():
        output = _network(name).eval()(torch.rand(2, image["num_channels"], *image["spatial_shape"]))
    assert output.shape[:2] == (2, len(classes))  # a name for every channel


@each_bundle
def test_every_rank_goes_on_from_the_checkpoint(name: str) -> None:
    """multi_gpu_train.json leaves out the last handlers on all ranks but the first, so no handler may load."""
    resume = json.loads((bundles()[name] / "configs" / "resume.json").read_text())
    assert not [key for key in resume if "handlers" in key]
    assert ["CheckpointLoader(@resume_from, @checkpoint" in step for step in resume["+initialize"]] == [True]


@each_bundle
def test_exports_compute_what_the_network_computes(name: str, tmp_path: Path) -> None:
    """TorchScript by the zoo's check, ONNX by onnxruntime; logits within 1e-5 of their size."""
    torch.manual_seed(0)
    network = _network(name).eval()
    weights = tmp_path / "model.pt"
    torch.save(network.state_dict(), weights)
    image = _metadata(name)["network_data_format"]["inputs"]["image"]
    images = torch.rand(2, image["num_channels"], *image["spatial_shape"])
    with torch.no_grad():
        expected = network(images)
    scale = 1e-5 * max(1.0, float(expected.abs().max()))
    configs = bundles()[name] / "configs"
    common = {
        "net_id": "network_def", "ckpt_file": str(weights), "meta_file": str(configs / "metadata.json"),
        "config_file": str(configs / "inference.json"), "bundle_root": str(bundles()[name]),
    }  # fmt: skip
    ckpt_export(filepath=str(tmp_path / "model.ts"), **common)
    with torch.no_grad():
        assert float((torch.jit.load(str(tmp_path / "model.ts"))(images) - expected).abs().max()) <= scale
    onnx_export(
        filepath=str(tmp_path / "model.onnx"), input_shape=list(images.shape), use_trace=True,
        converter_kwargs={"dynamo": False}, **common,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert float(np.abs(found - expected.numpy()).max()) <= scale


@each_bundle
def test_two_processes_train_the_same_weights(name: str, tmp_path: Path) -> None:
    """What multi_gpu_train.json starts, with gloo on the CPU: one model, written by rank 0, and no rank left behind."""
    run = BundleRun(name, tmp_path)
    configs = [f"configs/{config}.json" for config in ("train", "phantom", "multi_gpu_train")]
    words = ["--config_file", str(configs), "--backend", "gloo", "--device_name", "cpu", "--epochs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = processes.torchrun(["-m", "monai.bundle", "run", *words], cwd=run.root, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (run.root / "models" / "model.pt").is_file()
    epochs = re.findall(r"Trainer - INFO - Epoch\[1\] Complete", done.stdout)
    assert len(epochs) == 2, done.stdout[-3000:]


@each_bundle
def test_misspelt_key_and_absent_gpu_are_refused(name: str, tmp_path: Path, forget_seed: None) -> None:
    run = BundleRun(name, tmp_path)
    assert "config: received 'epoch', allowed is a key that the bundle has; did you mean 'epochs'?" in run.refusal(
        "train", "phantom", epoch=1
    )
    if not torch.cuda.is_available():
        assert "device: received 'cuda:7'" in run.refusal("train", "phantom", device_name="cuda:7")
    assert not list(run.root.glob("models/*epoch*"))


@each_bundle
def test_missing_data_folder_is_explained(name: str, tmp_path: Path, forget_seed: None) -> None:
    run = BundleRun(name, tmp_path)
    for folder in ("", "nowhere"):
        said = run.refusal("train", dataset_dir=folder)
        assert said.startswith(f"InputError: dataset_dir: received {folder!r}"), said
        assert "http" in said or "www" in said, said  # where the data can be had
    assert not list(run.root.glob("models/*epoch*"))


def test_weights_are_there_or_the_command_says_how_they_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        assert main(["bundle", name]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Weights: none yet. ")]
        weights = [file for file in Path(name, "models").rglob("*") if file.suffix in (".pt", ".pth")]
        assert len(said) == (not weights)
        assert all("docs/README.md" in line and "seed 0" in line for line in said)
        if weights:
            assert "SPDX-License-Identifier: CC-BY-SA-4.0" in Path(name, "LICENSE-weights").read_text()


def test_command_lists_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    copy = tmp_path / "mine"
    assert main(["bundle", "covid_ct_ima", str(copy)]) == 0
    assert {str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file()} >= set(FILES)
    assert main(["bundle", "covid_ct_ima", str(copy)]) == 2
    assert "folder: received" in capsys.readouterr().err
    assert main(["bundle", "covid_ct", str(tmp_path / "new")]) == 2
    assert "did you mean 'covid_ct_ima'?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()

"""benchmarks/gpu.py on the CPU: its logic, and that a device is equal to itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from monai_adv.attacks import PGD
from monai_adv.defenses import METHODS
from monai_adv.threats import Threat

CPU = torch.device("cpu")


def arguments(tmp_path: Path, **given: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"device": "cpu", "tiny": True, "plans": None, "seconds": 100.0, "output": tmp_path / "gpu.json", **given}
    )


def test_a_section_that_fails_or_has_no_time_costs_no_other(tmp_path: Path) -> None:
    """Of 100 s the first takes 30, the second 45; 25 are left, and a section needs 25 (at most 30)."""
    ticks = iter([0.0, 0.0, 30.0, 30.0, 75.0, 75.5])
    given = arguments(tmp_path)

    def broken(_: Any) -> None:
        raise ValueError("no card")

    found = gpu.run(given, {"one": lambda _: {"a": 1}, "two": broken, "three": broken}, lambda: next(ticks))
    assert found["one"] == {"result": {"a": 1}, "seconds": 30.0}
    assert found["two"] == {"failed": "ValueError: no card", "seconds": 45.0}
    assert found["three"] == {"left out": "24 s were left"}
    assert json.loads(given.output.read_text()) == found


def test_the_same_device_has_parity() -> None:
    """Bit for bit; and another attack is not the same."""
    for attack in gpu.attacks():
        assert gpu.apart(gpu.attacked(attack, 2, CPU), gpu.attacked(attack, 2, CPU)) == 0
    clean, _ = gpu.batch_of((4, 1, 16, 16))
    attacked = gpu.attacked(PGD(Threat("l2", 0.1, unit="rms"), steps=10, start="clean", until="lowest"), 2, CPU)
    rms = (attacked - clean).pow(2).mean((1, 2, 3)).sqrt()
    assert rms == pytest.approx(0.1, rel=0.01)  # the network gets something right, so the search uses its radius


ABLE = [key for key, method in METHODS.items() if "segmentation" not in method.not_for]


@pytest.mark.parametrize("key", ABLE)
def test_a_step_of_every_method_is_repeated_bit_for_bit(key: str) -> None:
    one, again, other = (gpu.stepped(key, 2, CPU, seed) for seed in (0, 0, 1))
    assert gpu.apart(one, again) == 0
    if key in ("sat", "ima", "gaussian", "fgsmrs"):
        assert (gpu.apart(one, other) > 0) == (key in ("gaussian", "fgsmrs"))  # these draw random numbers


def test_half_precision_is_measured_against_single(tmp_path: Path) -> None:
    found = gpu.precision(arguments(tmp_path))
    for dims in ("2d", "3d"):
        row = found[f"bfloat16 {dims}"]
        assert 0 < row["loss"] < 0.05
        assert 0.9 < row["direction"] <= 1
        assert row["zero gradients"]["float32"] == 0
        # Our scale is there for what underflows without it.
        half = found[f"float16 {dims}"]["zero gradients"]
        assert half["float16"] <= half["float16, without our scale"]


def test_every_step_has_its_price(tmp_path: Path) -> None:
    found = gpu.steps(arguments(tmp_path))
    assert set(found) == {"2d", "3d"}
    for rows in found.values():
        assert {"plain", "IMA", "FAT", "SAT"} < set(rows)
        assert rows["plain"]["times plain"] == 1
        for name in ("plain", "SAT"):
            assert rows[name]["F"] == pytest.approx(rows[name]["seconds"] / rows["F in seconds"])


def test_the_networks_are_those_of_the_plan(tmp_path: Path) -> None:
    part = {
        "batch_size": 3, "patch_size": [32, 16],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv2d",
                "kernel_sizes": [[3, 3]] * 2, "strides": [[1, 1], [2, 2]], "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1], "conv_bias": True, "nonlin": "torch.nn.LeakyReLU",
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d", "norm_op_kwargs": {"affine": True},
                "dropout_op": None, "dropout_op_kwargs": None, "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    plans = {"configurations": {"2d": part}, "foreground_intensity_properties_per_channel": {"0": {}, "1": {}}}
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(plans))
    made = gpu.planned(arguments(tmp_path, tiny=False, plans=file))
    ((network, shape),) = made.values()
    assert shape == (3, 2, 32, 16)
    assert network(torch.zeros(shape)).shape == (3, 3, 32, 16)


def test_bad_words(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--tiny", "--plans", "x"]):
        with pytest.raises(SystemExit):
            gpu.main(words)
        assert "give --plans FILE, or --tiny" in capsys.readouterr().err

"""The noise report on networks whose worst case is known, and its Dice and tables by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from tiny_nnunet import REGIONS, write_case, write_model
from torch import Tensor, nn

from monai_adv.errors import InputError
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.noise_case import PreparedCase
from nnunet_trainers.noise_example import example
from nnunet_trainers.noise_report import Case, Row, evaluate, find_cases
from nnunet_trainers.noise_table import from_json, table, table_per_class, to_json
from nnunet_trainers.volume_dice import dice_per_class, mean_dice

HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "Dataset004_Hippocampus"
SIZE = (6, 8, 8)


class WholeImage(nn.Module):
    """Calls every voxel foreground if ``<w, x> + bias > 0``: the L2 distance to its boundary is ``|<w, x> + bias|``."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight / weight.norm())
        self.bias = 0.0

    def score(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        logits = self.score(x).view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])
        return torch.cat([torch.zeros_like(logits), logits], 1)


@pytest.fixture
def whole_image(tmp_path: Path) -> Callable[..., tuple[DeployedModel, Case, Tensor]]:
    def make(kind: str = "2d", foreground: bool = True) -> tuple[DeployedModel, Case, Tensor]:
        """A model whose every window is a whole input, a case that it gets right, and the distance of each input.

        With ``foreground`` every voxel is; otherwise none is.
        """
        case = write_case(tmp_path, SIZE, rim=0)
        truth = SimpleITK.ReadImage(str(case.ground_truth_file))
        ones = SimpleITK.GetImageFromArray(np.full(SIZE, foreground, np.uint8))
        ones.CopyInformation(truth)
        SimpleITK.WriteImage(ones, str(case.ground_truth_file))
        labels = {"background": 0, "organ": 1}
        probe = DeployedModel.from_folder(
            write_model(tmp_path / "probe", (8, 8) if kind == "2d" else (8, 8, 8), labels)
        )
        inputs = probe.to_inputs(probe.preprocess(case.image_files)[0])
        folder = write_model(tmp_path / "model", tuple(inputs.shape[2:]), labels)
        model = DeployedModel.from_folder(folder, name="whole image")
        network = WholeImage(inputs.shape[1:])
        scores = network.score(inputs).detach()
        # All inputs on the right side, the nearest at distance 1.
        network.bias = float(1 - scores.min()) if foreground else float(-1 - scores.max())
        model.network = network
        return model, case, network.score(inputs).detach().abs()

    return make


def test_pgd_finds_the_known_worst_case_per_slice(
    whole_image: Callable[..., tuple[DeployedModel, Case, Tensor]],
) -> None:
    model, case, distances = whole_image()
    ordered = distances.sort().values
    # No slice in reach; the nearest two; all.
    radii = [0.98, float(ordered[1] + ordered[2]) / 2, float(ordered[-1]) * 1.02]
    rows = evaluate([model], [case], radii, progress=False)
    total = len(distances)
    assert [(r.condition, r.radius) for r in rows] == [
        ("clean", 0.0),
        *(("white noise", r) for r in radii),
        *(("PGD-20", r) for r in radii),
    ]
    assert rows[0].dice == 1
    for row, flipped in zip(rows[4:], [0, 2, total], strict=True):
        # Slices are as many in the original geometry: 2D models resample within slices only.
        right = total - flipped
        expected = 2 * right / (2 * right + flipped)
        assert row.dice == pytest.approx(expected)
        assert row.dice_per_class == {"organ": row.dice}
        assert row.dice_per_loss == {"dice": row.dice, "ce": row.dice}
        assert row.largest_norm == pytest.approx(row.radius)
        assert row.dead_gradient == 0
    for row in rows[1:4]:
        assert row.largest_norm == pytest.approx(row.radius)


def test_the_radius_of_a_3d_model_is_per_volume(
    whole_image: Callable[..., tuple[DeployedModel, Case, Tensor]],
) -> None:
    model, case, distances = whole_image("3d")
    assert distances.tolist() == pytest.approx([1.0])
    rows = evaluate([model], [case], [0.98, 1.02], progress=False)
    assert [r.dice for r in rows if r.condition == "PGD-20"] == [1.0, 0.0]


def test_slices_without_foreground_are_attacked(
    whole_image: Callable[..., tuple[DeployedModel, Case, Tensor]],
) -> None:
    model, case, _ = whole_image(foreground=False)
    clean, _, _, near, far = evaluate([model], [case], [0.98, 1.02], progress=False)
    assert math.isnan(clean.dice)  # nobody has the class
    assert math.isnan(near.dice)
    assert far.dice == 0  # the nearest slice is called foreground


def test_example_is_the_known_direction(whole_image: Callable[..., tuple[DeployedModel, Case, Tensor]]) -> None:
    model, case, distances = whole_image()
    index = int(distances.argmin())
    (shown,) = example([model], case, 1.02, index)
    assert isinstance(model.network, WholeImage)
    np.testing.assert_allclose(shown.noise, -1.02 * model.network.weight.detach().numpy(), atol=1e-5)
    assert np.linalg.norm(shown.white_noise - shown.image) == pytest.approx(1.02)
    assert (shown.on_image == 1).all()
    assert (shown.on_adversarial == 0).all()
    assert shown.dice["image"] == 1
    assert shown.dice["adversarial"] == 0
    assert shown.image.shape[1:] == shown.ground_truth.shape == shown.on_image.shape

    assert example([model], case, 0.5)[0].slice == 0  # all have equally much foreground
    with pytest.raises(
        InputError, match=f"slice: received 99, allowed is a whole number from 0 to {len(distances) - 1}"
    ):
        example([model], case, 1.0, 99)


def test_example_of_a_3d_model_and_of_regions(
    whole_image: Callable[..., tuple[DeployedModel, Case, Tensor]], tmp_path: Path
) -> None:
    model, case, _ = whole_image("3d")
    (shown,) = example([model], case, 1.02, 1)
    assert isinstance(model.network, WholeImage)
    np.testing.assert_allclose(shown.noise, -1.02 * model.network.weight.detach().numpy()[:, 1], atol=1e-5)
    case = write_case(tmp_path, name="regions")
    regions = DeployedModel.from_folder(write_model(tmp_path / "regions", labels=REGIONS))
    (shown,) = example([regions], case, 1.0, steps=2)
    assert set(np.unique(shown.on_image)) <= {0, 1, 2}


def test_regions_and_ignored_voxels_reach_the_attack(tmp_path: Path) -> None:
    model = DeployedModel.from_folder(write_model(tmp_path / "model", labels=REGIONS))
    prepared = PreparedCase(model, write_case(tmp_path))
    labels = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)
    assert prepared.target(labels)[0].flatten(1).tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    clean, _, attacked = evaluate([model], [prepared.case], [2.0], steps=5, progress=False)
    assert set(clean.dice_per_class) == {"whole", "core"}
    assert attacked.dice < clean.dice


def test_a_case_counts_with_the_worse_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DeployedModel.from_folder(write_model(tmp_path / "model"))
    found = {"dice": {"dice": 0.5, "dice_per_class": {"a": 0.5}}, "ce": {"dice": 0.3, "dice_per_class": {"a": 0.3}}}
    monkeypatch.setattr(PreparedCase, "attacked", lambda self, radius, loss, steps: (loss, 0.25))
    monkeypatch.setattr(PreparedCase, "largest_norm", lambda self, inputs, radius: radius)
    monkeypatch.setattr(PreparedCase, "score", lambda self, inputs: found.get(inputs, found["dice"])
                        if isinstance(inputs, str) else found["dice"])  # fmt: skip
    row = evaluate([model], [write_case(tmp_path)], [2.0], progress=False)[-1]
    assert (row.dice, row.dice_per_class, row.dead_gradient) == (0.3, {"a": 0.3}, 0.25)
    assert row.dice_per_loss == {"dice": 0.5, "ce": 0.3}


def test_a_perturbation_outside_the_ball_is_an_error(tmp_path: Path) -> None:
    prepared = PreparedCase(DeployedModel.from_folder(write_model(tmp_path / "model")), write_case(tmp_path))
    outside = prepared.inputs.clone()
    outside[0, 0, 0, 0] += 1.001
    with pytest.raises(RuntimeError, match="left the ball of radius 1"):
        prepared.largest_norm(outside, 1.0)


def test_white_noise_is_the_same_for_every_model_and_radius(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    noise = []
    for name in ("a", "b"):
        prepared = PreparedCase(DeployedModel.from_folder(write_model(tmp_path / name)), case)
        noise += [(prepared.with_white_noise(r, seed=3) - prepared.inputs) / r for r in (1.0, 10.0)]
    for other in noise[1:]:
        torch.testing.assert_close(noise[0], other, atol=1e-5, rtol=1e-4)


def test_dice_by_hand() -> None:
    truth = np.array([1, 1, 1, 0, 2, 3])
    found = np.array([1, 1, 0, 1, 0, 1])
    labels = {"background": 0, "one": 1, "two": 2, "four": 4, "both": [1, 2], "ignore": 3}
    dice = dice_per_class(found, truth, labels)
    assert dice["one"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))  # the voxel of label 3 counts nowhere
    assert dice["two"] == 0
    assert math.isnan(dice["four"])
    assert dice["both"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert list(dice) == ["one", "two", "four", "both"]
    assert dice_per_class(np.array([4]), np.array([0]), {"four": 4}) == {"four": 0.0}
    assert mean_dice({"a": 0.5, "b": math.nan, "c": 1.0}) == 0.75
    assert math.isnan(mean_dice({"a": math.nan}))


def test_tables_and_json_by_hand(tmp_path: Path) -> None:
    rows = [
        Row("A", "x", "clean", 0.0, 0.8, {"one": 0.8, "two": math.nan}),
        Row("A", "y", "clean", 0.0, 0.6, {"one": 0.7, "two": 0.5}),
        Row("B", "x", "clean", 0.0, math.nan, {"one": math.nan, "two": math.nan}),
        Row("A", "x", "PGD-20", 2.5, 0.25, {"one": 0.25, "two": math.nan}, {"dice": 0.25, "ce": 0.5}, 2.5, 0.1),
    ]
    assert table(rows).splitlines() == [
        "| condition | L2 radius | A | B |",
        "|---|---:|---:|---:|",
        "| clean |  | 70.0 ± 14.1 |  |",
        "| PGD-20 | 2.5 | 25.0 |  |",
    ]
    per_class = table_per_class(rows)
    assert per_class.index("**one**") < per_class.index("| clean |  | 75.0 ± 7.1 |  |") < per_class.index("**two**")
    assert "| clean |  | 50.0 |  |" in per_class[per_class.index("**two**") :]
    text = to_json(rows, tmp_path / "rows.json")
    assert "NaN" not in text
    assert (tmp_path / "rows.json").read_text().strip() == text
    assert str(from_json(text)) == str(rows)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    model = DeployedModel.from_folder(write_model(tmp_path / "model"))
    with pytest.raises(InputError, match="models and cases: received '1 and 0', allowed is at least one of each"):
        evaluate([model], [], [1.0])
    with pytest.raises(InputError, match="models with different names"):
        evaluate([model, model], [case], [1.0])
    for radius in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="radii: received .*, allowed is finite numbers > 0"):
            evaluate([model], [case], [radius])


def test_find_cases(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, name=name) for name in ("a", "b")]
    folders = (tmp_path / "imagesTr", tmp_path / "labelsTr", ".nii.gz")
    assert find_cases(*folders) == cases
    assert find_cases(*folders, ["b"]) == cases[1:]
    with pytest.raises(InputError, match="cases: received 'c'.*there is no .*c_0000.nii.gz"):
        find_cases(*folders, ["c"])
    cases[0].ground_truth_file.unlink()
    with pytest.raises(InputError, match="cases: received 'a'.*there is no .*labelsTr.a.nii.gz"):
        find_cases(*folders)
    with pytest.raises(InputError, match="images_folder: received .*, allowed is an existing folder"):
        find_cases(tmp_path / "nowhere", *folders[1:])


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the shared Hippocampus data are not here")
@pytest.mark.parametrize("patch_size", [(56, 40), (40, 56, 40)], ids=["2d", "3d"])
def test_on_a_patient(tmp_path: Path, patch_size: tuple[int, ...]) -> None:
    model = DeployedModel.from_folder(write_model(tmp_path / "model", patch_size))
    case = find_cases(HIPPOCAMPUS / "imagesTr", HIPPOCAMPUS / "labelsTr", ".nii.gz", ["hippocampus_033"])
    clean, noisy, attacked = evaluate([model], case, [3.0], steps=3, progress=False)
    assert set(clean.dice_per_class) == {"front", "back"}
    assert attacked.dice < clean.dice
    for row in (noisy, attacked):
        assert 0 < row.largest_norm <= 3.0 * (1 + 1e-5)

"""``monai-adv try``: what it measures is known where the network is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_adv import cli
from monai_adv.first_look.look import PLAIN, ROBUST, Recipe, first_look, look_at, new_network, patient
from monai_adv.first_look.phantom import LABELS, Phantom

SMALL = Phantom(shape=(16, 16, 9), objects=3, largest_radius=4, smallest_radius=2)


class Nearest(nn.Module):
    """Gives each voxel the class whose intensity is nearest: 0, 2, 4 for the classes 0, 1, 2."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, images: Tensor) -> Tensor:
        return -self.gain * (images - torch.tensor([0.0, 2.0, 4.0])[:, None, None]).square()


@pytest.fixture
def steps() -> tuple[Tensor, Tensor]:
    """Two slices in which class k has the intensity 2k: boundaries are 1 away from every voxel."""
    labels = torch.arange(3).repeat(2, 1, 6, 2)
    return 2.0 * labels, labels


def test_what_cannot_reach_a_boundary_changes_nothing(steps: tuple[Tensor, Tensor]) -> None:
    # 6 x 6 voxels: within RMS 0.1 a single voxel changes by 0.6 at most, and a boundary is 1 away.
    look = look_at(Nearest().eval(), *steps, eps=0.1, seed=0)
    assert (look.clean, look.noise, look.attacked) == (1.0, 1.0, 1.0)


def test_what_can_reach_boundaries_finds_them_within_the_radius(steps: tuple[Tensor, Tensor]) -> None:
    # RMS 0.5 is an L2 norm of 3: at most 9 voxels of a slice can be moved by 1. Gradients say to move all of them by
    # 0.5, which changes none; noise moves some far enough, and the worst case is never milder than the noise.
    look = look_at(Nearest().eval(), *steps, eps=0.5, seed=0)
    assert look.attacked <= look.noise < look.clean == 1
    change = np.asarray(look.picture.attacked) - np.asarray(look.picture.clean)
    assert np.sqrt(np.mean(change**2)) == pytest.approx(0.5, rel=1e-5)
    assert 1 <= (np.asarray(look.picture.on_attacked) != np.asarray(look.picture.truth)).sum() <= 9


def test_radius_zero_is_the_clean_scan() -> None:
    look = look_at(new_network(0).eval(), *patient(SMALL, 0), eps=0.0, seed=0)
    assert look.clean == look.noise == look.attacked
    assert np.array_equal(look.picture.attacked, look.picture.clean)


def test_a_patient_is_its_phantom_standardised() -> None:
    scan, labels = patient(SMALL, 3)
    assert scan.shape == labels.shape == (9, 1, 16, 16)
    assert float(scan.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scan.std()) == pytest.approx(1, abs=1e-5)
    assert set(labels.unique().tolist()) <= set(LABELS.values())


def test_everything_follows_from_the_seed_and_leaves_torchs_own_numbers() -> None:
    recipe = Recipe(SMALL, patients=1, plain_steps=2, robust_steps=1)
    state = torch.random.get_rng_state()
    once, again = first_look(recipe), first_look(recipe)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in (PLAIN, ROBUST):
        assert np.array_equal(once[name].picture.attacked, again[name].picture.attacked)
    assert not np.array_equal(once[PLAIN].picture.attacked, once[ROBUST].picture.attacked)


@pytest.mark.parametrize("name", ["look.jpg", "missing/look.png", "folder.png"])
def test_a_bad_file_is_refused_before_the_work(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.png").mkdir()
    assert cli.main(["try", "-o", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "a file that ends in .png, in a folder that exists" in err.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.nightly
def test_the_command_shows_what_the_readme_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["try", "-o", str(tmp_path / "look.png")]) == 0
    found = re.findall(
        rf"^(?:{PLAIN}|{re.escape(ROBUST)}) +([\d.]+) +([\d.]+) +([\d.]+)$", capsys.readouterr().out, re.M
    )
    (clean, noise, attacked), robust = ([float(v) for v in row] for row in found)
    assert min(clean, robust[0]) > 80
    assert abs(clean - noise) < 3
    assert attacked < 50 < robust[2]
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")

"""What the authors' own code gave on the same counts, votes and noise, run beside ours on 2026-11-29.

Cohen et al.: github.com/locuslab/smoothing at 78a4d94, ``Smooth.certify`` and ``Smooth.predict`` with counts in place
of draws. Fischer et al.: github.com/eth-sri/segmentation-smoothing at 937d8f6, ``multiclassify_utils.certify``; 300
random runs agreed in every voxel. Salman et al.: github.com/Hadisalman/smoothing-adversarial at cff781d,
``attacks.PGD_L2`` with two noise vectors, where the box is not reached. Where it is they differ: theirs clamps and then
shrinks to the ball, ours projects onto the ball and then clamps, as all attacks here do.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_adv import Threat
from monai_adv.attacks.ascent import Ascent
from monai_adv.certificates.bounds import agree, differ, lower_bound, radius
from monai_adv.defenses.smoothadv import _Smoothed
from monai_adv.tasks import ClassificationTask


@pytest.mark.parametrize(
    ("count", "n", "alpha", "sigma", "expected"),
    [
        (60, 100, 0.001, 0.25, 0.0),  # they abstain
        (990, 1000, 0.001, 0.5, 0.9890047910705997),
        (1000, 1000, 0.001, 0.12, 0.29559151377369736),
        (99_500, 100_000, 0.001, 0.25, 0.6321153891641361),
        (51, 100, 0.05, 1.0, 0.0),
    ],
)
def test_radius_of_cohens_certify(count: int, n: int, alpha: float, sigma: float, expected: float) -> None:
    found = float(radius(lower_bound(np.array(count), n, alpha), sigma))
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


def test_abstentions_of_cohens_predict() -> None:
    most, following = np.array([60, 60, 550, 560, 10, 11]), np.array([30, 20, 450, 440, 0, 0])
    found = [bool(differ(a[None], b[None], 0.001)[0]) for a, b in zip(most, following, strict=True)]
    assert found == [False, True, False, True, False, True]


@pytest.mark.parametrize(
    ("tau", "alpha", "certified"),
    [(0.75, 0.001, [10, 11]), (0.75, 0.05, [5, 8, 9, 10, 11]), (0.6, 0.05, [5, 6, 7, 8, 9, 10, 11]), (0.9, 0.1, [11])],
)
def test_voxels_of_segcertify(tau: float, alpha: float, certified: list[int]) -> None:
    """Twelve voxels of 60 draws; which of them they do not abstain from."""
    count = np.array([32, 13, 26, 45, 41, 54, 47, 52, 56, 56, 58, 60])
    assert agree(count, 60, tau, alpha).nonzero()[0].tolist() == certified


def _network(hidden: bool) -> nn.Module:
    """Weights sin(1), sin(2), ..., biases cos(1), cos(2), ..."""
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)] if hidden else [nn.Linear(4, 3)]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.sin(torch.arange(layer.weight.numel()) + 1.0).view_as(layer.weight))
                layer.bias.copy_(torch.cos(torch.arange(layer.bias.numel()) + 1.0))
    return nn.Sequential(nn.Flatten(), *layers)


def _attacked(hidden: bool, steps: int, eps: float) -> Tensor:
    """Of two images, two draws of noise and steps of 2 / K, as the authors' training has them."""
    images = torch.tensor([[0.5, 0.4, 0.6, 0.5], [0.3, 0.7, 0.5, 0.6]]).view(2, 1, 2, 2)
    noise = 0.25 * torch.sin(7 * torch.arange(16.0)).view(2, 2, 1, 2, 2)
    attack = Ascent(Threat("l2", eps, unit="norm", box=(0.0, 1.0)), steps=steps, relative_step=2 / steps, start="clean")
    smoothed = _Smoothed(_network(hidden), noise, regions=False)
    return attack(smoothed, images, torch.tensor([2, 0]), ClassificationTask()).images.flatten(1)


@pytest.mark.parametrize(
    ("hidden", "steps", "expected"),
    [
        (False, 1, [0.47680196, 0.51940095, 0.75222331, 0.54509223, 0.17582497, 0.59602344, 0.51181751, 0.71674663]),
        (False, 4, [0.47493681, 0.51795149, 0.75252211, 0.54686457, 0.17495069, 0.59947610, 0.51642275, 0.71827042]),
        (True, 1, [0.62056637, 0.42404521, 0.50541699, 0.37374789, 0.30629864, 0.83842373, 0.64328277, 0.61640823]),
        (True, 4, [0.59365565, 0.36184505, 0.46511394, 0.39239633, 0.31992126, 0.84477007, 0.63651800, 0.60275197]),
    ],
)
def test_attack_of_smoothadv(hidden: bool, steps: int, expected: list[float]) -> None:
    """One step and four, of a linear network and of one that bends; to the rounding of single precision."""
    assert torch.allclose(_attacked(hidden, steps, 0.2).flatten(), torch.tensor(expected), rtol=0, atol=2e-7)

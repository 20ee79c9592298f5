"""White noise: its size, its mean, and what it does on networks where that is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks.white_noise import WhiteNoise
from tests.conftest import LinearNetwork, LinearTask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_has_exactly_the_stated_size_and_is_replayable() -> None:
    images = torch.randn(3, 1, 9, 8, generator=seeded())
    noise = WhiteNoise(Threat("l2", 2.0, unit="norm"))
    first = noise.draw(images, seeded(5))
    torch.testing.assert_close((first - images).flatten(1).norm(dim=1), torch.full((3,), 2.0))
    assert torch.equal(first, noise.draw(images, seeded(5)))
    linf = WhiteNoise(Threat("linf", 0.1)).draw(images, seeded(5)) - images
    assert linf.abs().max() <= 0.1 * (1 + 1e-5)
    assert linf.std() == pytest.approx(0.1 / 3**0.5, rel=0.1)  # uniform in [-0.1, 0.1]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_both_sides_have_mean_zero_and_one_side_is_a_brightness_shift(norm: str) -> None:
    images = torch.zeros(1, 1, 100, 100, dtype=torch.float64)
    threat = Threat(norm, 2.0, unit="norm")
    both = WhiteNoise(threat).draw(images, seeded())
    assert abs(float(both.mean() / both.std())) < 5 / 100  # 5 standard errors
    positive = WhiteNoise(threat, sided="positive").draw(images, seeded())
    assert positive.min() >= 0
    # The cosine of U[0, 1] with ones: mean / root mean square = (1 / 2) / sqrt(1 / 3).
    assert float(positive.mean() / positive.square().mean().sqrt()) == pytest.approx(math.sqrt(3) / 2, rel=0.01)
    if norm == "l2":
        assert float(positive.norm()) == pytest.approx(2.0)
    else:
        assert float(positive.max()) == pytest.approx(2.0, rel=1e-3)


def test_one_side_respects_box_channels_and_radius_per_sample() -> None:
    images = torch.full((2, 2, 6, 6), 0.5)
    threat = Threat("l2", 1.0, box=(0.0, 1.0), channels=(1,), unit="norm")
    noisy = WhiteNoise(threat, sided="positive").draw(images, seeded(), torch.tensor([0.5, 100.0]))
    assert torch.equal(noisy[:, 0], images[:, 0])
    assert noisy.max() <= 1
    assert float((noisy - images)[0].norm()) == pytest.approx(0.5, rel=1e-5)
    assert (noisy[1, 1] > 0.5).all()


class Recorder(nn.Module):
    """Scores the first voxel, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x.flatten(1)[:, :1]


def test_worst_mean_and_share_are_those_of_all_draws() -> None:
    images, target = torch.full((5, 1, 4), 0.05, dtype=torch.float64), torch.ones(5).double()
    network = Recorder()
    attack = WhiteNoise(Threat("linf", 0.2), draws=30)
    result = attack(network, images, target, LinearTask(), generator=seeded())
    scores = torch.stack(network.seen)[:, :, 0, 0]  # (draws, B)
    assert scores.shape == (30, 5)
    torch.testing.assert_close(result.margin, scores.amin(0))
    torch.testing.assert_close(result.images[:, 0, 0], scores.amin(0))
    torch.testing.assert_close(result.mean_margin, scores.mean(0))
    torch.testing.assert_close(result.share_wrong, (scores <= 0).double().mean(0))
    assert torch.equal(result.wrong, scores.amin(0) <= 0)
    assert 0 < result.share_wrong.min() < result.share_wrong.max() < 1
    assert result.passes.forward == 5 * attack.most_passes().forward == 150


def test_keep_first_returns_a_draw_that_nobody_chose() -> None:
    images, target = torch.full((5, 1, 4), 0.05, dtype=torch.float64), torch.ones(5).double()
    first = WhiteNoise(Threat("linf", 0.2), draws=10, keep="first")
    result = first(Recorder(), images, target, LinearTask(), generator=seeded())
    alone = WhiteNoise(Threat("linf", 0.2))(Recorder(), images, target, LinearTask(), generator=seeded())
    assert torch.equal(result.images, alone.images)
    assert torch.equal(result.margin, alone.margin)
    worst = WhiteNoise(Threat("linf", 0.2), draws=10)(Recorder(), images, target, LinearTask(), generator=seeded())
    assert torch.equal(result.mean_margin, worst.mean_margin)
    assert (worst.margin < result.margin).any()


def test_noise_hardly_moves_a_linear_network_in_many_dimensions() -> None:
    """Along the weights, L2 noise of size eps is of order eps / sqrt(d): the attack's eps is d times stronger."""
    network = LinearNetwork((1, 40, 40))
    images, target = torch.zeros(1, 1, 40, 40).double(), torch.ones(1).double()
    result = WhiteNoise(Threat("l2", 1.0, unit="norm"), draws=200)(
        network, images, target, LinearTask(), generator=seeded()
    )
    moved = abs(float(result.margin / network.weight.detach().norm()))
    assert 1 / 40 < moved < 5 / 40
    assert float(result.share_wrong) == pytest.approx(0.5, abs=5 * 0.5 / 200**0.5)  # a coin


def test_a_network_that_breaks_on_one_draw_is_reported() -> None:
    class Breaks(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            score = torch.ones(len(x), 1).double()
            if self.calls == 2:
                score[1] = torch.nan
            return score

    images = torch.zeros(3, 1, 4).double()
    attack = WhiteNoise(Threat("linf", 0.2), draws=4)
    result = attack(Breaks(), images, torch.ones(3).double(), LinearTask(), generator=seeded())
    assert result.broken.tolist() == [False, True, False]
    assert result.wrong.tolist() == [False, True, False]
    assert result.share_wrong.tolist() == [0, 0.25, 0]


@pytest.mark.parametrize("settings", [{"draws": 0}, {"sided": "negative"}, {"keep": "mean"}, {"mode": "x"}])
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: received"):
        WhiteNoise(Threat("l2", 1.0, unit="norm"), **settings)


def test_a_generator_is_needed() -> None:
    with pytest.raises(InputError, match="^generator: received None"):
        WhiteNoise(Threat("l2", 1.0, unit="norm"))(Recorder(), torch.zeros(1, 1, 4), torch.ones(1), LinearTask())

"""Gaussian: identities, the noise that is drawn, the price of a plain step."""

from __future__ import annotations

import pytest
import torch

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.gaussian import GaussianSettings
from tests.conftest import LinearTask
from tests.loss_parts import KINDS, gradients, line, make, problem, run, seen_images

BATCH = Batch(torch.zeros(4000, 1, dtype=torch.float64), torch.ones(4000, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("off", [{"sigma": 0.0}, {"sigma": 0.5, "clean_share": 1.0}])
def test_off_is_standard(kind: str, off: dict[str, float]) -> None:
    """Bit for bit."""
    values, clean = gradients("standard", kind)
    found, noisy = gradients("gaussian", kind, **off)
    assert found == values
    assert all(torch.equal(a, b) for a, b in zip(clean, noisy, strict=True))


def test_noise_has_the_sigma_that_was_asked_for_and_a_share_has_none() -> None:
    [seen] = seen_images(make("gaussian", LinearTask(), sigma=0.5, clean_share=0.25), line(), BATCH)
    values = torch.tensor(seen)
    assert abs(float((values == 0).double().mean()) - 0.25) < 0.03
    assert abs(float(values[values != 0].std()) - 0.5) < 0.03
    assert abs(float(values.mean())) < 0.03


def test_each_step_draws_anew_and_a_seed_draws_the_same() -> None:
    one, other = (make("gaussian", LinearTask(), sigma=0.5, seed=7) for _ in range(2))
    first, second, again = (seen_images(d, line(), BATCH)[0] for d in (one, one, other))
    assert first != second
    assert first == again


def test_cost_is_that_of_a_plain_step() -> None:
    one, batch = problem("segmentation 2D")
    gaussian = make("gaussian", one.task, sigma=0.3)
    run(gaussian, one.network, batch)
    assert gaussian.statistics.passes.in_forwards() == 3 * len(batch.images)


def test_a_share_is_from_0_to_1() -> None:
    with pytest.raises(InputError, match="clean_share: received 1.5, allowed is a number from 0 to 1"):
        GaussianSettings(clean_share=1.5)

"""Natural corruptions: what each one does to images where that is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_adv import InputError
from monai_adv.attacks.corruptions import CORRUPTIONS, Corruption


def phantom(*shape: int, count: int = 2) -> Tensor:
    """A smooth z-scored blob on a dark background, with a bright corner."""
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    blob = torch.exp(-3 * sum(g.square() for g in grids)) + 0.3 * (grids[0] > 0.2)
    image = (blob - blob.mean()) / blob.std()
    return torch.stack([image, 2 * image + 1])[None].repeat(count, 1, *[1] * len(shape))


def shape_for(name: str) -> tuple[int, ...]:
    return (24, 26) if 2 in CORRUPTIONS[name].axes else (40,)


def each(axes: int) -> list[str]:
    return [name for name, kind in CORRUPTIONS.items() if axes in kind.axes]


def size(name: str, severity: int, images: Tensor, seed: int = 0) -> float:
    return float((Corruption(name, severity)(images, seed) - images).square().mean().sqrt())


@pytest.mark.parametrize(
    ("name", "shape"),
    [(n, s) for s in ((40,), (24, 26), (12, 14, 16)) for n in each(len(s))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_corruption_grows_with_its_severity(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = phantom(*shape).to(dtype)
    sizes = [size(name, severity, images) for severity in range(1, 6)]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1]
    assert Corruption(name, 1)(images, 0).dtype == dtype


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_depends_on_the_seed_of_its_sample_alone(name: str) -> None:
    images = phantom(*shape_for(name), count=3)
    stream = torch.get_rng_state()
    corrupted = Corruption(name, 4)(images, [7, 3, 7])
    assert torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(99)
    assert torch.equal(corrupted[1:], Corruption(name, 4)(images[1:], [3, 7]))
    assert torch.equal(corrupted[0], corrupted[2])
    assert torch.equal(Corruption(name, 4)(images, 5), Corruption(name, 4)(images, [5, 6, 7]))
    random = name in ("gaussian_noise", "rician_noise", "bias_field", "k_space_spike")
    assert torch.equal(corrupted[0], corrupted[1]) != random


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_zero_and_the_unit_of_an_image_do_not_matter(name: str) -> None:
    """Corrupting a * x + b is a * (the corrupted x) + b: z-scored, raw and HU images suffer alike."""
    images = phantom(*shape_for(name))
    corruption = Corruption(name, 3)
    torch.testing.assert_close(
        corruption(1000 * images - 500, 1), 1000 * corruption(images, 1) - 500, rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_other_channels_and_the_input_stay_as_they_are(name: str) -> None:
    images = phantom(*shape_for(name))
    before = images.clone()
    corrupted = Corruption(name, 5, channels=(1,))(images, 0)
    assert torch.equal(images, before)
    assert torch.equal(corrupted[:, 0], images[:, 0])
    assert not torch.equal(corrupted[:, 1], images[:, 1])
    assert type(corrupted) is Tensor


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_channel_without_contrast_stays_as_it_is(name: str) -> None:
    images = torch.full((1, 1, *shape_for(name)), -0.7)
    assert torch.equal(Corruption(name, 5)(images, 0), images)


def test_gain_and_contrast_by_hand() -> None:
    """Unit image 0, 1/4, 1: gain 1.3 gives 0, 0.325, 1.3; gamma 2 gives 0, 1/16, 1. The range is 4, the minimum -1."""
    images = torch.tensor([[[-1.0, 0.0, 3.0]]], dtype=torch.float64)
    expected = torch.tensor([[[-1.0, 0.3, 4.2]]], dtype=torch.float64)
    torch.testing.assert_close(Corruption("gain", 4)(images, 0), expected)
    expected = torch.tensor([[[-1.0, -0.75, 3.0]]], dtype=torch.float64)
    torch.testing.assert_close(Corruption("contrast", 5)(images, 0), expected, rtol=0, atol=1e-5)


def test_noise_has_the_stated_standard_deviation() -> None:
    images = torch.zeros(1, 1, 100, 100, dtype=torch.float64)
    images[..., :50] = 10.0  # range 10, so 0.1 of it is 1
    change = Corruption("gaussian_noise", 4)(images, 0) - images
    assert float(change.std()) == pytest.approx(1.0, rel=5 / 100)
    assert abs(float(change.mean())) < 5 / 100


def test_rician_noise_lifts_the_background_and_not_the_tissue() -> None:
    """On zero signal it is Rayleigh with mean sigma * sqrt(pi / 2); far above the noise it is nearly zero-mean."""
    images = torch.zeros(1, 1, 100, 100, dtype=torch.float64)
    images[..., :50] = 10.0
    change = Corruption("rician_noise", 4)(images, 0) - images
    assert float(change[..., 50:].mean()) == pytest.approx((torch.pi / 2) ** 0.5, rel=0.05)
    assert abs(float(change[..., :50].mean()) - 0.05) < 5 / 5000**0.5  # sigma^2 / (2 * signal)


def test_a_bias_field_multiplies_smoothly() -> None:
    images = phantom(24, 26, count=1)
    low = images.amin((2, 3), keepdim=True)
    ratio = ((Corruption("bias_field", 5)(images, 0) - low) / (images - low))[0]
    field = ratio[0][torch.isfinite(ratio[0]) & (images[0, 0] > low[0, 0])]
    assert (field > 0).all()
    torch.testing.assert_close(ratio[0].nan_to_num(), ratio[1].nan_to_num())  # one field for all channels
    inner = ratio[0, 4:-4, 4:-4]
    assert inner.diff(dim=0).abs().max() < 0.2 * inner.max()


def test_blur_and_ringing_keep_a_wave_that_they_let_pass() -> None:
    """A blur of s voxels scales a wave of frequency w by exp(-(s w)^2 / 2)."""
    x = torch.arange(64, dtype=torch.float64)
    frequency = 2 * torch.pi * 4 / 64
    images = torch.cos(frequency * x).repeat(64, 1)[None, None]
    middle = (..., slice(16, 48), slice(16, 48))
    factor = float(torch.exp(torch.tensor(-((1.0 * frequency) ** 2) / 2)))
    blurred = Corruption("blur", 3)(images, 0)
    torch.testing.assert_close(blurred[middle], factor * images[middle], rtol=0, atol=0.02)
    # Gibbs at severity 5 keeps 0.2 of the radius of 45 entries: a wave of 4 passes, one of 24 is gone.
    torch.testing.assert_close(Corruption("gibbs_ringing", 5)(images, 0), images, rtol=0, atol=1e-5)
    fast = torch.cos(2 * torch.pi * 24 / 64 * x).repeat(64, 1)[None, None]
    assert Corruption("gibbs_ringing", 5)(fast, 0).std() < 1e-5


@pytest.mark.parametrize("shape", [(24, 26), (12, 14, 16)])
def test_a_spike_is_one_wave_of_the_stated_amplitude(shape: tuple[int, ...]) -> None:
    images = phantom(*shape, count=1)[:, :1]
    span = float(images.max() - images.min())
    for seed in range(4):
        change = (Corruption("k_space_spike", 5)(images, seed) - images) / span
        spectrum = torch.fft.fftn(change[0, 0]).abs() / change.numel()
        strong = spectrum > 0.01
        assert strong.sum() <= 2  # a frequency and its mirror
        assert float(spectrum[strong].sum()) == pytest.approx(0.5, abs=0.12)


def test_low_resolution_loses_fine_detail_only() -> None:
    coarse, fine = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    coarse[..., 16:] = 1
    fine[..., ::2] = 1
    changes = [float((Corruption("low_resolution", 5)(x, 0) - x).abs().mean()) for x in (coarse, fine)]
    assert changes[0] < 0.1
    assert changes[1] > 0.3


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="^name: received 'gausian_noise'.*did you mean 'gaussian_noise'"):
        Corruption("gausian_noise", 1)
    with pytest.raises(InputError, match="^severity: received 6"):
        Corruption("blur", 6)
    with pytest.raises(InputError, match="^seed: received '1 seeds', allowed is one per image, here 2"):
        Corruption("blur", 1)(torch.zeros(2, 1, 4, 4), [1])
    with pytest.raises(InputError, match=r"^images: received.*2D or 3D, for bias_field"):
        Corruption("bias_field", 1)(torch.zeros(2, 1, 4), 0)
    with pytest.raises(InputError, match="^images: received 'torch.int64"):
        Corruption("blur", 1)(torch.zeros(2, 1, 4, 4, dtype=torch.long), 0)
    with pytest.raises(InputError, match=r"^channels: received \(1,\)"):
        Corruption("blur", 1, channels=(1,))(torch.zeros(2, 1, 4, 4), 0)

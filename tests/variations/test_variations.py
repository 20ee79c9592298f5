"""Natural variations: what each one does to an image where that is known."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from torch import Tensor

from monai_adv import InputError
from monai_adv.variations import NOT_OFFERED, VARIATIONS, NotApplicable, Scan, Variation, checked_words, steps
from monai_adv.variations.ct import CT, NOISE, WATER, thick_slices
from monai_adv.variations.mri import MRI
from monai_adv.variations.projections import back_project, coarse, fine, project, reconstruct
from monai_adv.variations.scan import changed, full_scale
from monai_adv.variations.ultrasound import RANGE, ULTRASOUND
from monai_adv.variations.xray import XRAY

EVERY = [*CT, *MRI, *ULTRASOUND, *XRAY]


def named(name: str) -> Variation:
    return next(v for v in EVERY if v.name == name)


def disc(size: int, radius: float, inside: float, outside: float) -> Tensor:
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.where(x[:, None].square() + x.square() < radius**2, inside, outside)


def body(slices: int = 1) -> Scan:
    """Water with two bones, in air."""
    hu = disc(64, 26, 0.0, -1000.0)
    hu[28:36, 16:22] = hu[28:36, 42:48] = 1000.0
    return Scan(hu.repeat(1, slices, 1, 1), (1.0, 5.0, 5.0))


def grey(*shape: int, value: float = 100.0) -> Scan:
    return Scan(torch.full(shape, value, dtype=torch.float64), (1.0, 1.0, 1.0), (0.0, 255.0))


def example(variation: Variation) -> Scan:
    if variation.modality == "ct":
        if variation.name == "slice_thickness":
            waves = torch.sin(torch.arange(48, dtype=torch.float64) / 3)
            return Scan((500 * waves - 400).view(1, 48, 1, 1).repeat(1, 1, 2, 2), (1.0, 1.0, 1.0))
        return body(3)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64)
    blob = torch.exp(-3 * (x[:, None] - 0.2).square() - 2 * x.square()) * 200
    return Scan(blob.repeat(1, 6 if variation.modality == "mri" else 1, 1, 1), (1.0, 1.0, 1.0), (0.0, 255.0))


@pytest.mark.parametrize("variation", EVERY, ids=lambda v: v.key)
def test_zero_is_the_identity_and_severities_grow(variation: Variation) -> None:
    scan = example(variation)
    before = scan.voxels.clone()
    assert torch.equal(variation(scan, 0, 3), before)
    sizes = [float((variation(scan, s, 3) - before).square().mean()) for s in range(1, len(variation.levels) + 1)]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1]
    assert torch.equal(scan.voxels, before)
    assert 3 <= len(variation.levels) <= 5


@pytest.mark.parametrize("variation", EVERY, ids=lambda v: v.key)
def test_a_seed_and_nothing_else_decides(variation: Variation) -> None:
    scan = example(variation)
    stream = torch.get_rng_state()
    first = variation(scan, 2, 7)
    assert torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(99)
    assert torch.equal(variation(scan, 2, 7), first)
    drawn = {"quantum_noise", "rician_noise", "bias_field", "motion", "spike", "speckle", "shadow"}
    others = [torch.equal(variation(scan, 2, seed), first) for seed in range(8, 12)]
    assert not all(others) if variation.name in drawn or variation.name == "ghosting" else all(others)
    assert variation(Scan(scan.voxels.float(), scan.spacing, scan.limits), 2, 7).dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------------ CT


def test_a_disc_is_projected_to_its_chords_and_reconstructed() -> None:
    """The chord at a distance s from the centre is 2 sqrt(r² - s²); filtered back projection gives the disc again."""
    slices = disc(64, 20, 1.0, 0.0)[None]
    lines = project(slices)
    place = torch.arange(lines.shape[-1], dtype=torch.float64) - (lines.shape[-1] - 1) / 2
    chords = 2 * (20**2 - place.square()).clamp(min=0).sqrt()
    inner = place.abs() < 18
    assert float((lines[0].mean(0) - chords)[inner].abs().max()) < 0.5
    found = reconstruct(lines, 64, 64)[0]
    assert float(found[24:40, 24:40].mean()) == pytest.approx(1.0, abs=0.01)
    assert abs(float(found[:6, :6].mean())) < 0.02
    torch.testing.assert_close(back_project(torch.ones_like(lines), 64, 64), torch.ones_like(slices))


def test_coarse_and_back_keep_what_is_smooth() -> None:
    slices = torch.full((2, 300, 250), 3.0)
    small, factor = coarse(slices)
    assert max(small.shape[-2:]) <= 128
    assert factor == 3
    assert torch.equal(fine(small, factor, 300, 250), slices)


@pytest.mark.parametrize(("severity", "dose"), enumerate(named("quantum_noise").levels, 1))
def test_quantum_noise_has_the_variance_of_its_dose(severity: int, dose: float) -> None:
    """sigma² (1 / dose - 1) over the body, and more in its middle: exp(attenuation) is larger there."""
    scan = Scan(disc(96, 40, 0.0, -1000.0).repeat(1, 6, 1, 1), (1.0, 3.0, 3.0))
    noise = named("quantum_noise")(scan, severity, 0) - scan.voxels
    inside = scan.voxels > -500
    variance = float(noise[inside].square().mean())
    assert variance == pytest.approx(NOISE**2 * (1 / dose - 1), rel=0.06)
    assert abs(float(noise.mean())) < 0.02 * variance**0.5  # a ramp spectrum has no mean
    middle, edge = noise[..., 40:56, 40:56], noise[..., 44:52, 8:18]
    # Through the centre each ray crosses 240 mm of water; at the edge they cross less in all directions but one.
    assert float(middle.square().mean()) > 1.5 * float(edge.square().mean())
    assert float(middle.square().mean()) < math.exp(240 * WATER) * float(edge.square().mean())


def test_the_grain_of_quantum_noise_is_that_of_a_ramp() -> None:
    noise = (named("quantum_noise")(body(8), 2, 0) - body(8).voxels)[0]
    power = torch.fft.fft2(noise).abs().square().mean(0)
    radius = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(64), torch.fft.fftfreq(64), indexing="ij"))
    slow, middle, fast = (
        float(power[(radius > a) & (radius < b)].mean()) for a, b in ((0, 0.05), (0.2, 0.3), (0.45, 1))
    )
    assert middle > 5 * slow
    assert middle > 5 * fast


def test_streaks_are_dark_between_bones_by_the_stated_depth() -> None:
    scan = body()
    change = (named("streaks")(scan, 2, 0) - scan.voxels)[0, 0]
    soft = (scan.voxels > -500)[0, 0] & (scan.voxels < 200)[0, 0]
    assert float(change[soft].min()) == pytest.approx(-50.0)
    assert float(change[31, 28:36].mean()) < -10  # between them
    assert float(change[12:18, 30:34].abs().mean()) < 5  # beside
    assert not bool(change[scan.voxels[0, 0] >= 200].any())
    with pytest.raises(NotApplicable, match="denser than 200 HU"):
        named("streaks")(Scan(disc(32, 12, 0.0, -1000.0)[None, None], (1.0, 5.0, 5.0)), 1, 0)


def test_thick_slices_are_means_and_keep_the_mean() -> None:
    matrix = thick_slices(12, 1.0, 3.0)
    values = torch.randn(12, dtype=torch.float64)
    thick = values.view(4, 3).mean(1)
    torch.testing.assert_close((matrix @ values)[1::3], thick)  # in the middle of a thick slice
    torch.testing.assert_close((matrix @ values).mean(), values.mean())
    torch.testing.assert_close(thick_slices(7, 0.8, 2.5).sum(1), torch.ones(7, dtype=torch.float64))
    scan = body(12)
    scan.voxels[:, ::2] += 50
    found = named("slice_thickness")(scan, 4, 0)  # 10 mm of twelve slices: two boxes, the second of 2 mm
    torch.testing.assert_close(found[:, :5], scan.voxels[:, :10].mean(1, keepdim=True).expand(-1, 5, -1, -1))


def test_thicker_slices_than_asked_for_are_not_made_thinner() -> None:
    scan = Scan(body(4).voxels, (5.0, 1.0, 1.0))
    with pytest.raises(NotApplicable, match="its slices are 5 mm apart already"):
        named("slice_thickness")(scan, 2, 0)
    with pytest.raises(NotApplicable, match="a single slice"):
        named("slice_thickness")(body(1), 2, 0)
    with pytest.raises(NotApplicable, match="mm is not known"):
        named("slice_thickness")(Scan(scan.voxels), 2, 0)


@pytest.mark.parametrize("variation", CT, ids=lambda v: v.name)
def test_what_is_not_in_hu_is_no_ct(variation: Variation) -> None:
    with pytest.raises(NotApplicable, match="0 to 255, are no HU"):
        variation(Scan(torch.arange(256.0).view(1, 1, 16, 16), (1.0, 1.0, 1.0)), 1, 0)


# ----------------------------------------------------------------------------------------------------------------- MRI


def test_rician_noise_has_the_moments_of_its_distribution() -> None:
    """E x² = A² + 2 sigma² for any A; far above the noise the mean is A + sigma² / (2 A), the variance sigma²."""
    scan, ratio = grey(1, 32, 64, 64), 20.0
    sigma = 100.0 * 10 ** (-ratio / 20)
    found = named("rician_noise").at(scan, ratio, 0)
    count = found.numel()
    expected = 100.0**2 + 2 * sigma**2
    assert float(found.square().mean()) == pytest.approx(expected, abs=5 * 2 * 100 * sigma / count**0.5)
    assert float(found.mean()) == pytest.approx(100.0 + sigma**2 / 200, abs=5 * sigma / count**0.5)
    assert float(found.var()) == pytest.approx(sigma**2, rel=0.02)


def test_rician_noise_without_signal_is_rayleigh() -> None:
    scan = grey(1, 8, 64, 64)
    scan.voxels[..., 32:] = 0
    sigma = 10.0  # the signal is the mean of the bright half
    dark = named("rician_noise").at(scan, 20.0, 0)[..., 32:]
    assert float(dark.mean()) == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)
    assert float(dark.var()) == pytest.approx(sigma**2 * (2 - math.pi / 2), rel=0.03)


@pytest.mark.parametrize("slices", [1, 8])
@given(seed=some.integers(0, 2**31))
def test_a_bias_field_reaches_its_gain_and_no_more(slices: int, seed: int) -> None:
    ratio = named("bias_field")(grey(2, slices, 12, 14), 4, seed) / 100
    assert float(ratio.log().abs().max()) == pytest.approx(math.log(1.8))
    torch.testing.assert_close(ratio[0], ratio[1])  # one field for all channels
    assert float(ratio.log().diff(dim=2).abs().max()) < 1.2  # smooth


def test_motion_leaves_the_shape_of_the_organ_in_place() -> None:
    """The centre of k-space is that of the image at rest: slow waves along the phase axis stay as they are."""
    scan = example(named("motion"))
    image, moved = scan.voxels, named("motion")(scan, 4, 3)
    kept = [float((moved.sum(a) - image.sum(a)).abs().max() / image.sum(a).max()) for a in (2, 3)]
    assert min(kept) < 0.03  # the magnitude of what is no longer real costs a little
    y = torch.arange(24, dtype=torch.float64)[:, None]
    centre = [float((v[0, 0] * y).sum() / v[0, 0].sum()) for v in (image, moved)]
    assert centre[1] == pytest.approx(centre[0], abs=0.5)  # voxels of 1 mm, and it moved by up to 8 mm


def test_motion_of_a_constant_image_is_not_seen() -> None:
    scan = grey(1, 4, 16, 16)
    torch.testing.assert_close(named("motion")(scan, 4, 0), scan.voxels)


@pytest.mark.parametrize("level", named("ghosting").levels)
def test_a_ghost_has_its_intensity_half_the_field_of_view_away(level: float) -> None:
    scan = grey(1, 1, 16, 16, value=0.0)
    scan.voxels[..., 5, 6] = 90.0
    found = named("ghosting").at(scan, level, 0)
    ghost = found[0, 0, 13, 6] + found[0, 0, 5, 14]  # along rows or columns
    assert float(ghost / found[0, 0, 5, 6]) == pytest.approx(level)
    assert float(found.sum()) == pytest.approx(90.0)


def test_a_spike_is_one_wave_under_the_magnitude() -> None:
    found = named("spike").at(grey(1, 1, 32, 32), 0.4, 5)
    # |A + w e^(i phase)|² = A² + w² + 2 A w cos(phase), whose mean is A² + w².
    wave = (found.square() - 100.0**2 - 40.0**2) / (2 * 100.0 * 40.0)
    spectrum = torch.fft.fft2(wave[0, 0]).abs() / wave.numel()
    assert int((spectrum > 1e-6).sum()) == 2  # a frequency and its mirror
    assert float(spectrum.max()) == pytest.approx(0.5)


@pytest.mark.parametrize("variation", MRI, ids=lambda v: v.name)
def test_z_scored_images_are_no_magnitudes(variation: Variation) -> None:
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotApplicable, match="are no magnitudes"):
        variation(Scan(image, (1.0, 1.0, 1.0)), 1, 0)


# ---------------------------------------------------------------------------------------------------------- ultrasound


@pytest.mark.parametrize(("name", "sign"), [("high_gain", 1), ("low_gain", -1)])
def test_a_gain_is_exact_in_decibels(name: str, sign: int) -> None:
    scan = grey(1, 1, 4, 4, value=100.0)
    scan.voxels[..., 0] = 0.0  # outside the fan
    found = named(name)(scan, 2, 0)
    assert float(found[0, 0, 0, 1]) == pytest.approx(100.0 + sign * 6.0 / RANGE * 255)
    assert not bool(found[..., 0].any())
    assert float(named("high_gain")(grey(1, 1, 2, 2, value=250.0), 4, 0).max()) == 255.0  # white is white


def test_speckle_multiplies_the_intensity_by_a_mean_of_looks() -> None:
    """Of mean 1 and variance 1 / looks."""
    scan = grey(1, 1, 256, 256, value=120.0)
    for severity, looks in enumerate(named("speckle").levels, 1):
        found = named("speckle")(scan, severity, 1)
        factor = 10 ** ((found - 120.0) / 255 * RANGE / 10)
        assert float(factor.mean()) == pytest.approx(1.0, abs=5 / (looks * factor.numel()) ** 0.5)
        assert float(factor.var()) == pytest.approx(1 / looks, rel=0.1)


def test_a_shadow_reaches_the_lower_edge_with_its_attenuation_and_width() -> None:
    loss = (200.0 - named("shadow")(grey(1, 1, 100, 100, value=200.0), 2, 4)) / 255 * RANGE
    assert float(loss.max()) == pytest.approx(12.0)
    assert float((loss[0, 0, -1] > 6.0).double().mean()) == pytest.approx(0.2, abs=0.015)
    assert not bool(loss[0, 0, :20].any())
    assert bool((loss[0, 0].diff(dim=0) >= 0).all())


# --------------------------------------------------------------------------------------------------------------- X-ray


def test_exposure_is_a_power_of_the_share_of_white() -> None:
    scan = grey(1, 1, 2, 2, value=63.75)  # a quarter of white
    assert float(named("overexposure")(scan, 3, 0).max()) == pytest.approx(255 / 16)
    assert float(named("underexposure")(scan, 3, 0).max()) == pytest.approx(255 / 2)


@pytest.mark.parametrize("width", named("blur").levels)
def test_blur_of_an_impulse_has_its_width_and_keeps_the_mean(width: float) -> None:
    scan = grey(1, 1, 65, 65, value=0.0)
    scan.voxels[..., 32, 32] = 255.0
    found = named("blur").at(scan, width, 0)[0, 0]
    assert float(found.sum()) == pytest.approx(255.0)
    # Of a Gaussian exp(-x² / (2 s²)) the width at half maximum is 2.355 s; s² is the variance along a line.
    x = torch.arange(65, dtype=torch.float64) - 32
    deviation = math.sqrt(float((found.sum(0) * x.square()).sum() / 255.0))
    assert 2.3548 * deviation == pytest.approx(width, rel=0.01)
    noise = Scan(torch.rand(1, 1, 20, 30, dtype=torch.float64), None, (0.0, 1.0))
    assert float(named("blur")(noise, 4, 0).mean()) == pytest.approx(float(noise.voxels.mean()))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "quality"), enumerate((80, 50, 25, 10), 1))
def test_jpeg_is_that_of_pil(channels: int, severity: int, quality: int) -> None:
    values = torch.randint(0, 256, (channels, 1, 24, 16), generator=torch.Generator().manual_seed(0))
    plane = values[:, 0].permute(1, 2, 0).squeeze(-1).to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer)).reshape(24, 16, channels)
    found = named("jpeg")(Scan(values.float(), None, (0.0, 255.0)), severity, 0)
    np.testing.assert_allclose(found[:, 0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("variation", [*ULTRASOUND, XRAY[0]], ids=lambda v: v.name)
def test_without_black_and_white_nothing_is_guessed(variation: Variation) -> None:
    image = torch.full((1, 1, 4, 4), 3.5)
    with pytest.raises(NotApplicable, match="do not tell what black and white are"):
        variation(Scan(image), 1, 0)
    with pytest.raises(NotApplicable, match="leave the range from black to white"):
        variation(Scan(image, None, (0.0, 1.0)), 1, 0)


# ----------------------------------------------------------------------------------------------------- layout and words


@pytest.mark.parametrize("x_first", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_the_layout_goes_there_and_back(shape: tuple[int, ...], x_first: bool) -> None:
    image = torch.rand(2, *shape)
    assert torch.equal(changed(image, lambda scan, number: scan.voxels, x_first=x_first), image)
    seen: list[Scan] = []
    changed(image, lambda scan, number: seen.append(scan) or scan.voxels, x_first=x_first)
    assert tuple(seen[0].voxels.shape[1:]) == (1,) * (len(shape) == 2) + (shape[::-1] if x_first else shape)


def test_slices_lie_along_the_longest_side_of_a_voxel() -> None:
    seen: list[Scan] = []
    image = torch.rand(1, 4, 5, 6)
    changed(image, lambda s, n: seen.append(s) or s.voxels, spacing=(0.8, 3.0, 0.8))
    changed(image, lambda s, n: seen.append(s) or s.voxels, spacing=(0.5, 0.8, 0.8))  # thin slices, as CT has them
    changed(image, lambda s, n: seen.append(s) or s.voxels, spacing=(0.8, 0.9, 2.0), x_first=True)
    assert [tuple(s.voxels.shape[1:]) for s in seen] == [(5, 4, 6), (4, 5, 6), (6, 5, 4)]
    assert [s.spacing for s in seen] == [(3.0, 0.8, 0.8), (0.5, 0.8, 0.8), (2.0, 0.9, 0.8)]


def test_black_and_white_by_the_values() -> None:
    assert full_scale(torch.tensor([0.0, 300.0])) == (0.0, 4095.0)
    assert full_scale(torch.tensor([0.0, 5000.0])) == (0.0, 65535.0)
    assert full_scale(torch.tensor([0.0, 1.5])) is None
    assert full_scale(torch.tensor([0.0, 70000.0])) is None


def test_channels_of_another_modality_are_refused_and_of_several_only_its_own_are_varied() -> None:
    with pytest.raises(
        InputError, match="^variations: received 'ct', allowed is mri; the channels are called T1, FLAIR"
    ):
        steps(["ct"], ["T1", "FLAIR"])
    assert {step.channels for step in steps(["mri"], ["T1", "PET"])} == {(0,)}
    assert {step.channels for step in steps(["mri"], ["T1", "T2"])} == {None}
    assert {step.channels for step in steps(["mri"], ["noNorm"])} == {None}
    assert len(steps(["auto"], ["CT"])) == sum(len(v.levels) for v in CT)
    with pytest.raises(InputError, match="^variations: received 'auto'.*called image, which is not plain"):
        steps(["auto"], ["image"])
    with pytest.raises(InputError, match="^variations: received 'auto'.*called CT, MRI"):
        steps(["auto"], ["CT", "MRI"])


def test_only_the_chosen_channels_change() -> None:
    scan = grey(3, 1, 8, 8)
    step = steps(["mri:spike=4"], ["FLAIR", "PET", "T2"])[0]
    found = step.change(lambda number: number)(scan, 5)
    assert torch.equal(found[1], scan.voxels[1])
    assert torch.equal(found[[0, 2]], step.variation(grey(2, 1, 8, 8), 4, 5))


def test_words_choose() -> None:
    assert [(s.variation.name, s.severity) for s in steps(["mri:motion=3,1"], [])] == [("motion", 1), ("motion", 3)]
    assert {s.severity for s in steps(["xray=2"], [])} == {2}
    for words, message in (
        ("mr", "received 'mr', allowed is MODALITY.*did you mean 'mri'"),
        ("mri:moton", "a variation of mri; did you mean 'motion'"),
        ("mri=0", "severities from 1 to 4"),
        ("mri=5", "severities from 1 to 4"),
        ("mri=1,1", "each once"),
        (["ct", "mri"], "variations of one modality"),
        (["mri", "mri:motion"], "each variation once; mri:motion comes twice"),
        (["auto", "mri"], "'auto' alone"),
    ):
        with pytest.raises(InputError, match=f"^variations: .*{message}"):
            checked_words(words)


def test_every_modality_says_what_it_does_not_offer() -> None:
    assert VARIATIONS.keys() == NOT_OFFERED.keys()
    assert all(NOT_OFFERED.values())
    assert len({v.key for v in EVERY}) == len(EVERY)

"""Threat: projection, directions, random points, units, box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_adv import InputError, Threat

SHAPES = [(3, 2, 7), (3, 1, 6, 5), (2, 2, 4, 5, 3)]
cases = st.tuples(
    st.sampled_from(["l2", "linf"]),
    st.sampled_from(SHAPES),
    st.floats(0, 20),
    st.floats(0.01, 50),
    st.integers(0, 2**16),
    st.sampled_from([None, (0,)]),
    st.booleans(),
)


def make(case: tuple) -> tuple[Threat, torch.Tensor, torch.Tensor, torch.Tensor]:
    norm, shape, eps, size, seed, channels, boxed = case
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    delta = torch.randn(shape, generator=generator, dtype=torch.float64) * size
    threat = Threat(norm, eps, box=(-1.0, 1.0) if boxed else None, channels=channels, unit="norm")
    return threat, images, delta, threat.radius(images)


@given(cases)
def test_projection_is_inside_and_idempotent(case: tuple) -> None:
    threat, images, delta, radius = make(case)
    once = threat.project(delta, images, radius)
    assert (threat.size(once) <= radius * (1 + 1e-5) + 1e-12).all()
    torch.testing.assert_close(threat.project(once, images, radius), once)
    if threat.box is not None:
        assert (images + once).abs().max() <= 1
    if threat.channels is not None and images.shape[1] > 1:
        assert (once[:, 1:] == 0).all()


@given(cases)
def test_projection_is_the_nearest_point(case: tuple) -> None:
    """Without a box, no random point of the ball is nearer to delta than its projection."""
    norm, shape, eps, size, seed, _, _ = case
    threat, images, delta, radius = make((norm, shape, eps, size, seed, None, False))
    generator = torch.Generator().manual_seed(seed + 1)
    nearest = (threat.project(delta, images, radius) - delta).flatten(1).norm(dim=1)
    other = (threat.random(images, radius, generator) - delta).flatten(1).norm(dim=1)
    assert (nearest <= other + 1e-9).all()


@given(cases)
def test_inside_the_ball_nothing_changes(case: tuple) -> None:
    norm, shape, eps, _, seed, _, _ = case
    threat, images, delta, radius = make((norm, shape, eps + 0.1, 1.0, seed, None, False))
    small = delta / threat.size(delta).max() * radius.min() * 0.999
    assert torch.equal(threat.project(small, images, radius), small)


def test_projection_by_hand() -> None:
    images = torch.zeros(2, 1, 2)
    delta = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]])
    l2, linf = Threat("l2", 1.0, unit="norm"), Threat("linf", 0.35)
    torch.testing.assert_close(l2.project(delta, images, l2.radius(images)), torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]]]))
    torch.testing.assert_close(
        linf.project(delta, images, linf.radius(images)), torch.tensor([[[0.35, 0.35]], [[0.3, 0.35]]])
    )


def test_radius_per_sample() -> None:
    threat = Threat("l2", 3.0, unit="norm")
    images = torch.zeros(2, 1, 4)
    delta = threat.project(torch.full((2, 1, 4), 5.0), images, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(threat.size(delta), torch.tensor([1.0, 2.0]))


def test_direction_has_unit_size_and_survives_tiny_and_zero_gradients() -> None:
    gradient = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]])[:, None]
    l2 = Threat("l2", 1.0, unit="norm").direction(gradient)
    torch.testing.assert_close(l2[:, 0], torch.tensor([[0.6, 0.8], [0.6, 0.8], [0, 0], [0, 0], [0, 0]]))
    linf = Threat("linf", 1.0).direction(-gradient)
    torch.testing.assert_close(linf[:3, 0], torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_surface_has_full_size_and_zero_mean(norm: str) -> None:
    images = torch.zeros(4, 1, 40, 40)
    threat = Threat(norm, 3.0, unit="norm")
    noise = threat.random(images, threat.radius(images), torch.Generator().manual_seed(0), surface=True)
    torch.testing.assert_close(threat.size(noise), torch.full((4,), 3.0))
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(noise.numel())


def test_random_ball_is_uniform_in_volume() -> None:
    """In d dimensions the share of points within half the radius is 2**-d."""
    images = torch.zeros(20000, 1, 2)
    threat = Threat("l2", 1.0, unit="norm")
    size = threat.size(threat.random(images, threat.radius(images), torch.Generator().manual_seed(0)))
    assert float((size < 0.5).double().mean()) == pytest.approx(0.25, abs=0.01)


def test_without_a_unit_l2_is_rms_and_linf_the_largest_change() -> None:
    images = torch.zeros(1, 1, 4, 4)
    assert Threat("l2", 0.5) == Threat("l2", 0.5, unit="rms")
    assert Threat("linf", 0.5) == Threat("linf", 0.5, unit="norm")
    assert float(Threat("l2", 0.5).radius(images)) == 2.0  # 0.5 * sqrt(16)
    assert float(Threat("l2", 0.5, unit="norm").radius(images)) == 0.5
    assert Threat("linf", "8/255").eps == 8 / 255  # type: ignore[arg-type]


def test_an_l2_radius_that_may_be_a_norm_needs_its_unit() -> None:
    with pytest.raises(InputError) as error:
        Threat("l2", 15.0)
    assert str(error.value) == (
        "eps: received 15.0, allowed is at most 1 where no unit is given: an L2 radius is RMS change per voxel then; "
        "say unit norm if it is the L2 norm itself, or unit rms."
    )
    assert Threat("l2", 15.0, unit="rms").unit == "rms"


def test_rms_unit_does_not_depend_on_the_image_size() -> None:
    threat = Threat("l2", 0.317, unit="rms")
    assert float(threat.radius(torch.zeros(1, 1, 56, 40))) == pytest.approx(15.0, abs=0.01)  # the paper's Hippocampus
    for shape in ((1, 1, 10, 10), (1, 2, 30, 20), (1, 1, 8, 8, 8)):
        delta = threat.project(torch.full(shape, 9.0), torch.zeros(shape), threat.radius(torch.zeros(shape)))
        assert float(delta.square().mean().sqrt()) == pytest.approx(0.317)


def test_one_hot_channels_are_never_changed_and_do_not_count() -> None:
    threat = Threat("l2", 1.0, unit="rms", channels=(0,))
    images = torch.zeros(1, 3, 10, 10)
    assert float(threat.radius(images)) == pytest.approx(10.0)  # sqrt(100), not sqrt(300)
    noise = threat.random(images, threat.radius(images), torch.Generator().manual_seed(0), surface=True)
    assert (noise[:, 1:] == 0).all()
    assert float(threat.size(noise)) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("l3", 1.0), "norm"),
        (("l2", -1.0), "eps"),
        (("l2", math.nan), "eps"),
        (("l2", math.inf), "eps"),
        (("l2", torch.tensor([1.0, 1.0])), "eps"),
        (("l2", 15.0), "eps"),
        (("l2", "8/0"), "eps"),
        (("l2", 1.0, (1.0, 0.0)), "box"),
        (("linf", 1.0, None, "rms"), "unit"),
        (("l2", 1.0, None, "hu"), "unit"),
    ],
)
def test_bad_threats_are_refused(arguments: tuple, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: received"):
        Threat(*arguments)


def test_a_box_must_contain_the_image() -> None:
    z_scored = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    with pytest.raises(InputError, match=r"box: received \(0.0, 1.0\).*contains the images"):
        Threat("l2", 1.0, box=(0, 1), unit="norm").check(z_scored)
    with pytest.raises(InputError, match="images: received"):
        Threat("l2", 1.0, unit="norm").check(torch.zeros(1, 1, 4, dtype=torch.int64))


def test_a_radius_is_said_in_all_its_units() -> None:
    """By hand: 0.1 RMS on 400 voxels is an L2 norm of 2, and 21 where a unit is 210 in the files."""
    images = torch.zeros(1, 1, 20, 20)
    rms, norm, linf = Threat("l2", 0.1), Threat("l2", 2.0, unit="norm"), Threat("linf", 0.1, box=(0, 1))
    assert rms.describe() == "L2, 0.1 RMS per voxel, no box"
    assert rms.describe(images) == "L2, 0.1 RMS per voxel (= L2 radius 2), no box"
    assert rms.describe(images, 210.0) == "L2, 0.1 RMS per voxel (= L2 radius 2, 21 RMS in the files), no box"
    assert norm.describe(images, 210.0) == "L2 radius 2 (= 0.1 RMS per voxel, 21 RMS in the files), no box"
    said = "L-inf radius 0.1 (= the largest change of a voxel, 21 in the files), box [0, 1]"
    assert linf.describe(images, 210.0) == said

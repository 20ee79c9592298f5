"""MIRST: which iterates are taken, weights, one attack for all, identities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_adv import InputError
from monai_adv.attacks import Ascent
from monai_adv.defenses import Batch
from monai_adv.defenses.mirst import MIRSTSettings
from tests.conftest import LinearTask
from tests.loss_parts import KINDS, gradients, line, make, problem, run, seen_images

X = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
LINE = {"norm": "linf", "eps": 4.0, "relative_step": 1 / 16}  # steps of 0.25


def test_the_instances_are_the_images_after_2_4_6_8_steps() -> None:
    """The off-by-one trap: with step g the instances are 2g, 4g, 6g and 8g away, x_3, x_5, x_7, x_9 with x_1 = x."""
    seen = seen_images(make("mirst", LinearTask(), **LINE), line(), Batch(X, torch.ones(2)))
    assert seen == [[0.5, 2.0], [0.0, 1.5], [-0.5, 1.0], [-1.0, 0.5], [-1.5, 0.0]]


def test_a_step_by_hand() -> None:
    """Loss -mean f = -1.25 on clean images and 0.5 more after each pair of steps; the weakest weighs most."""
    network = line()
    losses = run(make("mirst", LinearTask(), alpha=0.5, **LINE), network, Batch(X, torch.ones(2)))
    expected = [-1.25, *(0.5 * b * (-1.25 + 0.5 * j) for j, b in enumerate((0.34, 0.28, 0.22, 0.16), start=1))]
    assert losses == pytest.approx(expected)
    assert float(network.weight.grad) == pytest.approx(sum(expected))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_one_instance_is_rst_bit_for_bit(kind: str) -> None:
    attack = {"eps": 0.2, "relative_step": 0.25}
    rst_values, rst = gradients("rst", kind, steps=3, start="clean", weight_noisy=0.5, **attack)
    values, mirst = gradients("mirst", kind, instances=3, betas="1", alpha=0.5, **attack)
    assert values == rst_values
    assert all(torch.equal(a, b) for a, b in zip(mirst, rst, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_each_instance_is_what_an_attack_of_so_many_steps_returns(kind: str, norm: str) -> None:
    one, batch = problem(kind)
    mirst = make("mirst", one.task, eps=0.3, norm=norm, relative_step=0.2, instances="1,3,4", betas="1,1,1")
    for steps, images in zip((1, 3, 4), mirst.instances(one.network, batch), strict=True):
        alone = Ascent(mirst.threat, steps=steps, relative_step=0.2, check_last=False)
        expected = alone(one.network, batch.images, batch.target, one.task).images
        assert torch.equal(images, expected)
        assert not images.requires_grad


def test_samples_that_cannot_be_attacked_stay_clean_in_every_instance() -> None:
    """A patch without foreground."""
    one, batch = problem("segmentation 2D")
    target = [t.clone() for t in batch.target]
    for t in target:
        t[[0, 3]] = 0
    mirst = make("mirst", one.task, eps=0.2, instances="1,2", betas="0.5,0.5")
    moved = [
        (images != batch.images).flatten(1).any(1).tolist()
        for images in mirst.instances(one.network, Batch(batch.images, target))
    ]
    assert moved == [[False, True, True, False, True, True]] * 2
    nothing = [torch.zeros_like(t) for t in target]
    clean = mirst.instances(one.network, Batch(batch.images, nothing))
    assert len(clean) == 2
    assert all(torch.equal(images, batch.images) for images in clean)


@pytest.mark.parametrize("kind", KINDS)
def test_radius_zero_is_1_plus_alpha_times_standard(kind: str) -> None:
    (clean,), clean_gradients = gradients("standard", kind)
    values, found = gradients("mirst", kind, eps=0, alpha=2.0)
    assert sum(values) == pytest.approx(3 * clean, rel=1e-6)
    for one, two in zip(found, clean_gradients, strict=True):
        torch.testing.assert_close(one, 3 * two)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_zero_is_standard_bit_for_bit(kind: str) -> None:
    values, expected = gradients("standard", kind)
    found_values, found = gradients("mirst", kind, alpha=0)
    assert found_values == values
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_cost_is_one_attack_and_a_clean_step_per_version() -> None:
    one, batch = problem("segmentation 3D")
    mirst = make("mirst", one.task, eps=0.2)
    run(mirst, one.network, batch)
    assert mirst.statistics.passes.in_forwards() == (2 * 8 + 3 + 3 * 4) * len(batch.images)


def test_the_strongest_instance_is_the_attacked_output() -> None:
    parts = list(make("mirst", LinearTask(), **LINE).losses(line(), Batch(X, torch.ones(2))))
    assert [p.noisy_output is None for p in parts] == [True, True, True, True, False]
    strongest = parts[-1].noisy_output
    assert isinstance(strongest, Tensor)
    assert strongest[:, 0].tolist() == [-1.5, 0.0]
    assert parts[0].output is not None


def test_there_is_no_random_start() -> None:
    one, batch = problem("2 classes")
    first, second = (make("mirst", one.task, seed=seed).instances(one.network, batch) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instances": "2,2"}, "instances: received '2,2', allowed is increasing whole numbers >= 1"),
        ({"instances": "0,2"}, "instances: received '0,2', allowed is increasing whole numbers >= 1"),
        ({"instances": "2;4"}, "instances: received '2;4', allowed is whole numbers between commas"),
        ({"instances": ""}, "instances: received '', allowed is whole numbers between commas"),
        ({"betas": "0.5,half"}, "betas: received '0.5,half', allowed is numbers between commas"),
        ({"betas": "0.5,0,0.3,0.2"}, "betas: received '0.5,0,0.3,0.2', allowed is numbers > 0"),
        ({"betas": "nan,1,1,1"}, "betas: received 'nan,1,1,1', allowed is numbers > 0"),
        ({"betas": "0.5,0.5"}, "betas: received '0.5,0.5', allowed is 4 numbers, one for each of instances '2,4,6,8'"),
        ({"instances": 5}, "betas: received '0.34,0.28,0.22,0.16', allowed is 1 numbers"),
    ],
)
def test_lists_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        MIRSTSettings(**settings)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_numbers_of_a_settings_file() -> None:
    """YAML reads a single number as a number."""
    settings = MIRSTSettings(instances=5, betas=1)
    assert (settings.after, settings.weights) == ((5,), (1.0,))

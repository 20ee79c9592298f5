"""DAT: the stationary condition in closed form, the stop, its scale, schedule, identities, segmentation, passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.dat import DAT, DATSettings, fosc
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.tasks import ClassificationTask
from monai_adv.threats import Norm, Threat
from tests.defense_toys import toy
from tests.line_classifier import Line, inputs_of, ones, trained_on
from tests.linear_classifier import problem, seeded


def make(task: Any = None, **settings: Any) -> DAT:
    given = {"eps": 0.5, "unit": "norm", "norm": "linf", "steps": 10, "relative_step": 0.25}
    return DAT(task or ClassificationTask(), DATSettings(**{**given, "c_epochs": 100, **settings}))


def steps_of(dat: DAT, network: torch.nn.Module, batch: Batch) -> float:
    """Mean number of attack steps, from the log."""
    inputs_of(network, dat, batch)
    return dat.on_epoch_end()["attack_steps"]


@pytest.mark.parametrize(
    ("norm", "c_max", "steps"),
    [
        ("linf", 1.5, 1),  # above all values: the first step is always made
        ("linf", 0.8, 1),  # 1 - 1/4 after one step
        ("linf", 0.7, 2),
        ("linf", 0.5, 2),  # equal to the criterion is enough
        ("linf", 0.3, 3),
        ("linf", 0.1, 4),
        ("l2", 0.8, 1),
        ("l2", 0.7, 2),
        ("l2", 0.3, 3),
        ("l2", 0.1, 4),
    ],
)
def test_on_a_linear_network_each_step_of_a_quarter_leaves_a_quarter_less(norm: str, c_max: float, steps: int) -> None:
    """c(x_k) = (1 - k a / eps) eps |g|_dual: with two classes the gradient keeps its direction."""
    network, images, labels = problem(2, (3, 4), count=5)
    dat = make(norm=norm, c_max=c_max, relative=True)
    assert steps_of(dat, network, Batch(images, labels)) == steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("batch_size", [1, 6])
def test_the_gradient_is_that_of_the_sample_alone(norm: Norm, batch_size: int) -> None:
    """A batch mean would make c smaller by the batch size, and the attack stop at once."""
    network, images, labels = problem(2, (3, 4), count=1)
    dual = 1 if norm == "linf" else 2

    def c(k: int) -> float:
        x = images.clone().requires_grad_()
        (g,) = torch.autograd.grad(ClassificationTask().sample_loss(network(x), labels).sum(), x)
        moved = images + 0.125 * k * (g.sign() if norm == "linf" else g / g.norm())
        y = moved.clone().requires_grad_()
        (g,) = torch.autograd.grad(ClassificationTask().sample_loss(network(y), labels).sum(), y)
        return float(0.5 * g.flatten().norm(dual) - ((moved - images) * g).sum())

    assert 0 < c(3) < c(2) < c(1)
    batch = Batch(images.expand(batch_size, -1, -1).clone(), labels.expand(batch_size))
    between = (c(2) + c(3)) / 2
    assert steps_of(make(norm=norm, c_max=between), network, batch) == 3
    assert steps_of(make(norm=norm, c_max=1.01 * c(1)), network, batch) == 1
    assert steps_of(make(norm=norm, c_max=0.99 * c(1)), network, batch) == 2


@pytest.mark.parametrize(("kind", "relative"), [("2 classes", False), ("9 classes", False), ("segmentation 2D", True)])
def test_the_criterion_is_relative_for_segmentation_unless_somebody_says_otherwise(kind: str, relative: bool) -> None:
    one = toy(kind, "dat")
    one.network.eval()
    batch = one.batch(torch.arange(6))
    settings = {"norm": "linf", "eps": 0.3, "c_max": 0.5}
    steps = [
        steps_of(make(one.task, relative=r, **settings), one.network, batch) for r in (None, relative, not relative)
    ]
    assert steps[0] == steps[1] != steps[2]


def test_the_relative_criterion_does_not_depend_on_the_scale_of_the_loss() -> None:
    class Scaled(ClassificationTask):
        def sample_loss(self, output: Any, target: Any) -> Tensor:
            return 1000 * super().sample_loss(output, target)

    network, images, labels = problem(3, (5,))
    batch = Batch(images, labels)
    small, large = (steps_of(make(t, c_max=0.4, relative=True), network, batch) for t in (None, Scaled()))
    assert small == large
    small, large = (steps_of(make(t, c_max=2.0), network, batch) for t in (None, Scaled()))
    assert small < large


def test_nor_on_the_size_of_the_image() -> None:
    """Each pixel repeated four times: L-infinity steps are the same, the condition four times as large."""
    network, images, labels = problem(2, (4,))
    larger, _, _ = problem(2, (16,))
    larger.weight.data = network.weight.data.repeat_interleave(4, 1) / 4
    larger.bias.data = network.bias.data
    batch, large = Batch(images, labels), Batch(images.repeat_interleave(4, 1), labels)
    assert steps_of(make(c_max=0.6, relative=True), network, batch) == 2
    assert steps_of(make(c_max=0.6, relative=True), larger, large) == 2


@given(st.integers(0, 2**31), st.sampled_from(["l2", "linf"]), st.floats(0.01, 10))
def test_never_negative_inside_the_ball_and_at_most_twice_the_clean_value(seed: int, norm: Norm, eps: float) -> None:
    generator, threat = seeded(seed), Threat(norm, eps, unit="norm")
    images = torch.zeros(4, 2, 3, dtype=torch.float64)
    radius = threat.radius(images)
    delta = threat.random(images, radius, generator)
    gradient = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    left, most = fosc(threat, radius, delta, gradient)
    assert bool((left >= 0).all())
    assert bool((left <= 2 * most * (1 + 1e-9)).all())
    dual = gradient.flatten(1).norm(1 if norm == "linf" else 2, dim=1) * eps
    torch.testing.assert_close(most, dual)
    torch.testing.assert_close(left, dual - (delta * gradient).flatten(1).sum(1))


def test_the_attacked_channels_alone_count() -> None:
    threat = Threat("linf", 0.5, channels=(0,))
    gradient = torch.tensor([[[1.0, -2.0], [100.0, 100.0]]])
    left, most = fosc(threat, torch.tensor([0.5]), torch.zeros_like(gradient), gradient)
    assert (left.item(), most.item()) == (1.5, 1.5)


@pytest.mark.parametrize(("norm", "c_max"), [("linf", 0.0), ("l2", 0.0), ("linf", 1e-30)])
def test_criterion_zero_is_standard_adversarial_training_bit_for_bit(norm: str, c_max: float) -> None:
    """Under L-infinity a sample of c = 0 is a fixed point of the step, so that leaving then changes nothing."""
    network, images, labels = problem(2, (2, 3), count=7)
    dat = make(norm=norm, c_max=c_max)
    sat = SAT(
        ClassificationTask(),
        SATSettings(norm=norm, eps=0.5, unit="norm", steps=10, relative_step=0.25, start="clean"),  # type: ignore[arg-type]
    )
    assert bool(dat(network, images, labels) == sat(network, images, labels))
    saved = 10 - 5 if c_max else 0  # four steps of a quarter, and the look that tells
    assert dat.on_epoch_end()["passes_per_sample"] == 2 * (10 - saved) + 3


def test_radius_zero_is_standard_training_bit_for_bit() -> None:
    network, images, labels = problem(3, (4,))
    dat = DAT(ClassificationTask(), DATSettings(eps=0, c_epochs=100))
    assert bool(dat(network, images, labels) == ClassificationTask().training_loss(network(images), labels))
    assert dat.on_epoch_end()["passes_per_sample"] == 3


def test_the_criterion_falls_with_the_epochs_and_attacks_grow() -> None:
    network, images, labels = problem(2, (3, 4))
    dat = make(c_max=0.8, c_epochs=10, relative=True)
    steps = []
    for epoch in (0, 2, 4, 8, 10, 50):
        dat.on_epoch_start(epoch)
        steps.append(steps_of(dat, network, Batch(images, labels)))
    assert steps == [1, 2, 3, 4, 10, 10]
    assert dat.criterion == 0


def test_the_official_condition_is_measured_around_the_first_point() -> None:
    """On the line the attack of class 1 goes down: from its start u to u - k / 4, but not below -1."""
    batch, criterion = ones(*([0.0] * 50)), 0.6
    settings = {"eps": 1.0, "start": "ball", "c_max": criterion, "relative": True, "steps": 6}
    network = Line()
    first: list[Tensor] = []
    handle = network.register_forward_pre_hook(lambda module, inputs: first.append(inputs[0].detach().clone()))
    official = torch.tensor(trained_on(make(fosc_around="start", **settings), batch, network), dtype=torch.float64)
    handle.remove()
    start = first[0][:, 0]
    assert float(start.abs().max()) <= 1
    # Two steps leave 0.5; where the ball ends before, all six are made, and the image stands at its end.
    torch.testing.assert_close(official, (start - 0.5).clamp(min=-1))
    clean = torch.tensor(trained_on(make(fosc_around="clean", **settings), batch), dtype=torch.float64)
    # Around the clean image c is 1 + delta: at least one step, and on until the image is at -0.4 or below.
    expected = start - 0.25
    for _ in range(5):
        expected = torch.where(expected > -0.4, expected - 0.25, expected)
    torch.testing.assert_close(clean, expected.clamp(min=-1))
    assert not torch.allclose(official, clean)


@pytest.mark.parametrize("dims", [2, 3])
def test_segmentation_stops_at_the_criterion(dims: int) -> None:
    problem_ = toy(f"segmentation {dims}D", "dat", torch.float64)
    problem_.network.eval()
    batch = problem_.batch(torch.arange(4))
    settings = {"norm": "linf", "eps": 0.3, "steps": 10, "relative_step": 0.25, "c_max": 0.5, "relative": True}
    dat = problem_.defense("dat", **settings)
    (noisy,) = inputs_of(problem_.network, dat, batch)
    assert 2 <= dat.statistics.summary()["attack_steps"] < 10
    x = noisy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem_.task.sample_loss(problem_.network(x), batch.target).sum(), x)
    left, most = fosc(dat.threat, dat.threat.radius(noisy), noisy - batch.images, gradient)
    assert bool((left <= 0.5 * most).all())


@pytest.mark.parametrize(("name", "value"), [("c_max", -0.1), ("c_epochs", 0), ("fosc_around", "random")])
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}: received"):
        DATSettings(**{name: value})

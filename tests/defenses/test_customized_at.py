"""Customized AT: radii by hand, soft labels, mix, the attack's loss, identities, memory, segmentation, passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.customized_at import CustomizedAT, CustomizedATSettings
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import toy
from tests.line_classifier import Line, inputs_of, ones, trained_on, two_faced
from tests.linear_classifier import problem

TASK = ClassificationTask()


def make(count: int = 3, task: Any = None, **settings: Any) -> CustomizedAT:
    given = {"eps": 1.0, "unit": "norm", "eta": 0.25, "steps": 4, "relative_step": 0.5}
    method = CustomizedAT(task or TASK, CustomizedATSettings(**{**given, **settings}))
    method.bind(SampleIds({"train": count}), "cpu")
    return method


def dirichlet(batch: int, classes: int, seed: int = 0) -> Tensor:
    """The random labels of a method's first batch: from a clean start nothing is drawn before them."""
    draws = torch.empty(batch, classes).exponential_(generator=torch.Generator().manual_seed(seed))
    return draws / draws.sum(1, keepdim=True)


# ------------------------------------------------------------------ radii


def test_radii_by_hand() -> None:
    """On the line the attack of a radius r moves an image by r: 0.375 falls at 0.5, 2.0 never, -1.0 at once.

    A sample is attacked with the radius that it tries; it keeps the one it had where that is too much.
    """
    method, batch = make(smoothing=0.0), ones(0.375, 2.0, -1.0)
    assert trained_on(method, batch) == [0.125, 1.75, -1.25]
    assert method.radii.values.tolist() == [0.25, 0.25, 0.0]
    assert trained_on(method, batch) == [-0.125, 1.5, -1.25]
    assert method.radii.values.tolist() == [0.25, 0.5, 0.0]  # the sign of the paper: wrong samples do not grow
    for _ in range(3):
        trained_on(method, batch)
    assert method.radii.values.tolist() == [0.25, 1.0, 0.0]  # no further than eps
    assert trained_on(method, batch) == [-0.125, 1.0, -1.25]


def test_a_full_radius_stays_when_it_becomes_too_much() -> None:
    method = make(1, smoothing=0.0, eps_first=1.0)
    assert trained_on(method, ones(0.5)) == [-0.5]
    assert method.radii.values.tolist() == [1.0]


def test_radii_are_judged_in_the_mode_of_the_attack() -> None:
    """Both samples stay right in the training forward, where BatchNorm sets their mean to 0; in eval mode one is wrong.

    The extra look at the attacked image is booked.
    """
    network = two_faced()
    images = torch.tensor([[-1.0], [3.0]], dtype=torch.float64)
    batch = Batch(images, torch.tensor([0, 1]), torch.arange(2))
    assert TASK.correct(network(images), batch.target).tolist() == [True, True]
    method = make(2, smoothing=0.0)
    (part,) = method.losses(network, batch)
    assert TASK.correct(part.noisy_output, batch.target).tolist() == [True, True]
    assert method.radii.values.tolist() == [0.0, 0.25]
    assert method.statistics.passes.forward == 2 * 4 + 2 + 2


def test_radii_belong_to_samples_not_to_places() -> None:
    method, batch = make(smoothing=0.0), ones(0.375, 2.0, -1.0)
    order = torch.tensor([2, 0, 1])
    moved = Batch(batch.images[order], batch.target[order], order)  # type: ignore[index]
    trained_on(method, moved)
    trained_on(method, moved)
    assert method.radii.values.tolist() == [0.25, 0.5, 0.0]


def test_radii_above_a_smaller_eps_are_cut_on_resume() -> None:
    method = make(eps_first=1.0)
    smaller = make(eps=0.5)
    smaller.load_state_dict(method.state_dict())
    assert smaller.radii.values.tolist() == [0.5] * 3


# ------------------------------------------------------------------ soft labels


@pytest.mark.parametrize("classes", [2, 5])
def test_the_loss_is_that_of_a_soft_label_with_the_new_radius(classes: int) -> None:
    network, images, labels = problem(classes, (4,))
    method = make(len(images), smoothing=0.6, eta=0.25, eps_first=0.25)
    batch = Batch(images, labels, torch.arange(len(images)))
    (noisy,) = inputs_of(network, method, batch)
    again = make(len(images), smoothing=0.6, eta=0.25, eps_first=0.25)
    (part,) = again.losses(network, batch)
    output = network(noisy)
    right = output.argmax(1) == labels
    share = 0.6 * torch.where(right, 0.5, 0.25).double()[:, None]
    assert again.radii.values.tolist() == (share[:, 0] / 0.6).tolist()
    label = (1 - share) * nn.functional.one_hot(labels, classes) + share * dirichlet(len(images), classes).double()
    assert float(label.min()) >= 0
    torch.testing.assert_close(label.sum(1), torch.ones(len(images), dtype=torch.float64))
    torch.testing.assert_close(part.loss, -(label * output.log_softmax(1)).sum(1).mean())


def test_a_large_l2_radius_does_not_make_labels_negative() -> None:
    """c = 10 times a radius of 12 would be a share of 120; here it is 0.3 at the largest radius, whatever its unit."""
    network, images, labels = problem(3, (4,))
    method = make(len(images), eps=12.0, eta=2.0, eps_first=12.0)
    batch = Batch(images, labels, torch.arange(len(images)))
    (noisy,) = inputs_of(network, method, batch)
    (part,) = make(len(images), eps=12.0, eta=2.0, eps_first=12.0).losses(network, batch)
    label = 0.7 * nn.functional.one_hot(labels, 3) + 0.3 * dirichlet(len(images), 3).double()
    torch.testing.assert_close(part.loss, -(label * network(noisy).log_softmax(1)).sum(1).mean())


def test_the_attack_raises_the_loss_of_the_soft_label() -> None:
    """With the random label alone, y plays no part: the attack flees from u, to the side that u is not on."""
    batch = ones(*[0.0] * 6)
    method = make(6, smoothing=1.0, eps_first=1.0)
    moved = torch.tensor(trained_on(method, batch))
    toward_1 = dirichlet(6, 2)[:, 1] > 0.5  # at x = 0 both classes have probability 1/2
    assert torch.equal(moved < 0, toward_1)
    assert 0 < int(toward_1.sum()) < 6


def test_mix_by_hand() -> None:
    """+ w (eps_i / eps) relu(max_{k != y} z_k - z_y + kappa), with the new radius."""
    network, images, labels = problem(4, (5,))
    settings: dict[str, Any] = {"smoothing": 0.0, "loss": "mix", "margin_weight": 0.5, "kappa": 0.5, "eps_first": 0.5}
    method = make(len(images), **settings)
    batch = Batch(images, labels, torch.arange(len(images)))
    (noisy,) = inputs_of(network, method, batch)
    (part,) = make(len(images), **settings).losses(network, batch)
    output = network(noisy)
    rows = torch.arange(len(images))
    others = output.masked_fill(nn.functional.one_hot(labels, 4).bool(), -torch.inf).amax(1)
    margin = (others - output[rows, labels] + 0.5).clamp(min=0)
    assert bool((margin == 0).any())
    share = torch.where(output.argmax(1) == labels, 0.75, 0.5)
    ce = nn.functional.cross_entropy(output, labels, reduction="none")
    torch.testing.assert_close(part.loss, (ce + 0.5 * share * margin).mean())


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_without_growth_and_smoothing_it_is_standard_adversarial_training_bit_for_bit(norm: str) -> None:
    network, images, labels = problem(3, (2, 3), count=7)
    settings: dict[str, Any] = {"norm": norm, "eps": 0.5, "unit": "norm", "steps": 4, "relative_step": 0.5}
    method = make(7, **settings, eps_first=0.5, eta=0.0, smoothing=0.0)
    sat = SAT(TASK, SATSettings(**settings, start="clean"))
    assert bool(method(network, images, labels, torch.arange(7)) == sat(network, images, labels))
    assert method.on_epoch_end()["passes_per_sample"] == 2 * 4 + 3
    assert method.radii.values.tolist() == [0.5] * 7


@pytest.mark.parametrize("loss", ["xent", "mix"])
def test_radius_zero_is_standard_training_bit_for_bit(loss: str) -> None:
    network, images, labels = problem(3, (4,))
    method = make(len(images), eps=0.0, eta=None, loss=loss)
    found = method(network, images, labels, torch.arange(len(images)))
    assert bool(found == TASK.training_loss(network(images), labels))
    assert method.on_epoch_end()["passes_per_sample"] == 3


def test_passes_are_those_of_the_registry() -> None:
    method = make()
    trained_on(method, ones(0.375, 2.0, -1.0))
    figures = method.on_epoch_end()
    assert figures["passes_per_sample"] == 2 * 4 + 3
    assert figures["radius_mean"] == pytest.approx(0.5 / 3)
    assert figures["radius_std"] == pytest.approx(math.sqrt(2) / 12)


# ------------------------------------------------------------------ segmentation, input


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("background", [0.0, 50.0])
def test_segmentation_has_one_random_label_for_all_voxels(dims: int, background: float) -> None:
    """Also with a network that finds nothing, and so is right on the sample without foreground."""
    problem_ = toy(f"segmentation {dims}D", "customizedat", torch.float64)
    problem_.network.eval()
    for module in problem_.network.modules():
        if getattr(module, "out_channels", 0) == 3:
            module.bias.data[0] += background  # type: ignore[union-attr, operator]
    for target in problem_.target:
        target[1] = 0  # without foreground: not attacked, no radius
    batch = problem_.batch(torch.arange(4))
    settings: dict[str, Any] = {"eps": 0.25, "eps_first": 0.125, "eta": 0.125, "smoothing": 0.5}
    (noisy,) = inputs_of(problem_.network, problem_.defense("customizedat", **settings), batch)
    assert torch.equal(noisy[1], batch.images[1])
    method = problem_.defense("customizedat", **settings)
    (part,) = method.losses(problem_.network, batch)
    output = problem_.network(noisy)
    right = problem_.task.correct(output, batch.target)
    assert bool(right[1]) == (background > 0)
    radius = torch.where(right, 0.25, 0.125)
    radius[1] = 0.125
    assert method.states["radii"].values[:4].tolist() == radius.tolist()
    label, share = dirichlet(4, 3).double(), 0.5 * radius.double() / 0.25
    random = torch.zeros(4, dtype=torch.float64)
    for weight, logits in zip((2 / 3, 1 / 3), output, strict=True):
        random += weight * -(label[:, :, None] * logits.log_softmax(1).flatten(2)).sum(1).mean(1)
    hard = problem_.task.sample_training_loss(output, batch.target)
    torch.testing.assert_close(part.loss, ((1 - share) * hard + share * random).mean())


def test_a_single_logit_has_two_random_classes() -> None:
    class Single(Line):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 1:]

    batch = ones(0.375, 2.0, -1.0)
    (two,) = make().losses(Line(), batch)
    (one,) = make().losses(Single(), batch)
    torch.testing.assert_close(one.loss, two.loss)


def test_samples_must_be_announced() -> None:
    method = CustomizedAT(TASK, CustomizedATSettings())
    batch = ones(1.0)
    with pytest.raises(InputError, match="CustomizedAT: no samples are known"):
        next(method.losses(Line(), batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 0.2}, "eta: received 0.2, allowed is at most eps, here 0.1"),
        ({"eps_first": 0.2}, "eps_first: received 0.2, allowed is at most eps"),
        ({"eta": 0.0}, "eta: received 0.0, allowed is a number > 0 where eps_first is 0"),
        ({"smoothing": 1.5}, "smoothing: received 1.5"),
        ({"kappa": -1.0}, "kappa: received -1.0"),
        ({"loss": "ce"}, "loss: received 'ce', allowed is one of 'xent', 'mix'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CustomizedATSettings(**settings)

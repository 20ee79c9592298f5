"""FGSMSDI: the two steps by hand, the generator's own step, soft labels, checkpoints, channels, passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.fgsm_sdi import FGSMSDI, FGSMSDISettings, Initializer
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import toy
from tests.line_classifier import inputs_of
from tests.linear_classifier import problem

TASK = ClassificationTask()


def make(task: Any = TASK, channels: tuple[int, ...] | None = None, **settings: Any) -> FGSMSDI:
    return FGSMSDI(task, FGSMSDISettings(**{"eps": 0.25, "norm": "linf", **settings}), channels)


def run(sdi: FGSMSDI, network: nn.Module, batch: Batch) -> float:
    (part,) = sdi.losses(network, batch)
    part.loss.backward()
    return part.loss.item()


class Constant(nn.Module):
    """A generator that always says the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x), x.shape[1] // 2, *x.shape[2:])


@pytest.mark.parametrize(("value", "step"), [(0.5, 0.25), (-0.5, 1.0), (1.0, 1.0)])
def test_a_step_by_hand(value: float, step: float) -> None:
    """``clip(value * eps + step * eps * sign(g))``; the gradient's sign of two linear classes is w_other - w_y."""
    network, images, labels = problem(2, (1, 3, 4))
    sdi = make(relative_step=step)
    sdi._ready(images)
    sdi.initializer, sdi._steps = Constant(value), 1  # type: ignore[assignment]  # not its turn to learn
    sign = (network.weight[1 - labels] - network.weight[labels]).sign().detach()
    expected = images + (value * 0.25 + step * 0.25 * sign).clamp(-0.25, 0.25)
    torch.testing.assert_close(inputs_of(network, sdi, Batch(images, labels))[0], expected)


def test_ten_classes_get_the_labels_of_the_authors() -> None:
    """Half for the label, the rest spread over the nine others."""
    network, images, labels = problem(10, (1, 3, 4))
    soft = torch.full((6, 10), 0.5 / 9, dtype=torch.float64).scatter(1, labels[:, None], 0.5)
    found = run(make(eps=0.0), network, Batch(images, labels))
    assert found == pytest.approx(F.cross_entropy(network(images), soft).item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["2 classes", "segmentation 2D"])
def test_the_label_stays_ahead_for_few_classes(kind: str) -> None:
    """The authors' split would leave 1/2 and 1/2 to two classes: then this gradient would be 0 at equal logits."""
    one = toy(kind, "fgsmsdi")
    batch = one.batch(torch.arange(6))
    for parameter in one.network.parameters():
        nn.init.zeros_(parameter)
    run(make(one.task, eps=0.0), one.network, batch)
    biases = [m.bias for n, m in one.network.named_modules() if n in ("head", "fine", "coarse")]
    target = batch.target if isinstance(batch.target, list) else [batch.target]
    for bias, labels in zip(biases, target, strict=True):
        share = torch.stack([(labels == k).double().mean() for k in range(len(bias))])
        towards = share - share.mean()
        assert bool((bias.grad.double() * towards <= 1e-9).all())
        assert bias.grad.abs().max() > 0 or float(towards.abs().max()) < 1e-9


def test_without_soft_labels_and_attack_it_is_the_clean_loss() -> None:
    network, images, labels = problem(3, (1, 3, 4))
    sdi = make(eps=0.0, label_smoothing=0.0)
    assert run(sdi, network, Batch(images, labels)) == F.cross_entropy(network(images), labels).item()
    assert sdi.on_epoch_end()["passes_per_sample"] == 3
    assert sdi.initializer is None


def test_the_generator_is_that_of_the_authors() -> None:
    """One_Layer_Attacker(input_channel=6), written out: 79,174 weights with a scalar that it never uses."""
    generator = Initializer(6, 3, axes=2)
    assert sum(p.numel() for p in generator.parameters()) == 79_173
    w = [p.detach() for p in generator.parameters()]
    first, gain, shift, slope1, w1, b1, slope2, w2, b2, w3, b3 = w
    assert (gain.tolist(), shift.tolist()) == ([1.0] * 64, [0.0] * 64)
    assert float(slope1) == float(slope2) == 0.25
    assert max(float(v.abs().max()) for v in (w1, w2)) == pytest.approx((2 * 6 / (64 * 9 + 64 * 9)) ** 0.5, rel=1e-3)

    def norm(x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.batch_norm(x, None, None, training=True, eps=eps)

    x = torch.randn(4, 6, 7, 7, generator=torch.Generator().manual_seed(0))
    h = norm(F.conv2d(x, first, padding=1), 1e-3).relu()
    r = F.conv2d(F.prelu(norm(h), slope1), w1, b1, padding=1)
    r = F.conv2d(F.prelu(norm(r), slope2), w2, b2, padding=1)
    torch.testing.assert_close(generator(x), F.conv2d(norm(h + r), w3, b3, padding=1).tanh())


def test_the_generator_goes_up_where_the_network_goes_down() -> None:
    """With next to no second step, a fixed network's loss grows as the generator learns."""
    network, images, labels = problem(3, (1, 3, 4))
    sdi = make(relative_step=1e-6, generator_every=1, generator_lr=0.01, label_smoothing=0.0)
    losses = [run(sdi, network, Batch(images, labels)) for _ in range(25)]
    strongest = (
        images
        + 0.25
        * torch.autograd.grad(F.cross_entropy(network(x := images.clone().requires_grad_()), labels), x)[0].sign()
    )
    most = F.cross_entropy(network(strongest), labels).item()
    clean = F.cross_entropy(network(images), labels).item()
    assert losses[-1] > clean + 0.9 * (most - clean)
    assert losses[0] < clean + 0.8 * (most - clean)


def test_the_gradient_reaches_the_generator_through_the_first_point_alone() -> None:
    """Two linear classes: d eta / d value is eps where the clip is open, so the step is known up to Adam's scale.

    With value 0.5 and step 1 the clip is open where the gradient's sign is negative: the loss falls with the value
    there, and Adam, whose first step has the size of its rate, lowers it.
    """
    network, images, labels = problem(2, (1, 3, 4))
    sdi = make(relative_step=1.0)
    sdi._ready(images)
    constant = Constant(0.5)
    optimizer = torch.optim.Adam(constant.parameters(), 1e-3)
    sdi._improve(constant, optimizer, network, Batch(images, labels), torch.zeros_like(images))  # type: ignore[arg-type]
    assert float(constant.value.detach()) == pytest.approx(0.5 - 1e-3)
    assert network.weight.grad is None
    assert network.weight.requires_grad


@pytest.mark.parametrize("every", [1, 2, 20])
def test_passes_and_turns(every: int) -> None:
    """7 forwards a step, 4 more when the generator learns, which is at the first batch and every so many."""
    network, images, labels = problem(3, (1, 3, 4))
    sdi = make(generator_every=every)
    forwards: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
    for _ in range(4):
        run(sdi, network, Batch(images, labels))
    turns = len(range(0, 4, every))
    assert sum(forwards) == sdi.statistics.passes.forward
    assert int(sdi.initializer.entry[1].num_batches_tracked) == turns  # type: ignore[union-attr, arg-type]
    assert sdi.on_epoch_end()["passes_per_sample"] == 7 + 4 * turns / 4


def test_making_the_generator_touches_no_random_stream() -> None:
    network, images, labels = problem(3, (1, 3, 4))
    before = torch.get_rng_state()
    first = make()
    run(first, network, Batch(images, labels))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = make()
    assert run(second, network, Batch(images, labels)) == run(make(), network, Batch(images, labels))


def test_a_checkpoint_waits_for_the_first_batch() -> None:
    network, images, labels = problem(3, (1, 3, 4))
    batch = Batch(images, labels)
    sdi, resumed = make(generator_every=2), make(generator_every=2)
    fresh = sdi.state_dict()
    for _ in range(3):
        run(sdi, network, batch)
    saved = sdi.state_dict()
    resumed.load_state_dict(saved)
    waiting = resumed.state_dict()  # saved again before it met a batch
    for loaded in (saved, waiting):
        other = make(generator_every=2)
        other.load_state_dict(copy.deepcopy(loaded))
        mine = copy.deepcopy(sdi)
        assert [run(mine, network, batch) for _ in range(3)] == [run(other, network, batch) for _ in range(3)]
        a, b = mine.state_dict()["initializer"]["weights"], other.state_dict()["initializer"]["weights"]
        assert all(torch.equal(v, b[k]) for k, v in a.items())
    sdi.load_state_dict(fresh)
    assert run(sdi, network, batch) == run(make(generator_every=2), network, batch)


def test_a_checkpoint_for_other_images_is_refused() -> None:
    network, images, labels = problem(3, (1, 3, 4))
    sdi = make()
    run(sdi, network, Batch(images, labels))
    other = make()
    other.load_state_dict(sdi.state_dict())
    network, images, labels = problem(3, (2, 3, 4))
    with pytest.raises(InputError, match="the channels and axes that the checkpoint's generator was trained on"):
        run(other, network, Batch(images, labels))


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 4, 5, 2)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_radius_holds_and_other_channels_stay(shape: tuple[int, ...], norm: str) -> None:
    network, images, labels = problem(3, shape)
    sdi = make(norm=norm, unit="norm", channels=(0, 2), generator_every=1)
    for _ in range(3):
        delta = inputs_of(network, sdi, Batch(images, labels))[-1] - images
    assert float(sdi.threat.size(delta).max()) <= 0.25 * (1 + 1e-9)
    assert float(sdi.threat.size(delta).min()) > 0.1
    assert bool((delta[:, 1] == 0).all())


@pytest.mark.parametrize("kind", ["segmentation 2D", "segmentation 3D"])
def test_a_sample_without_foreground_is_not_attacked(kind: str) -> None:
    one = toy(kind, "fgsmsdi")
    batch = one.batch(torch.arange(6))
    for labels in batch.target:
        labels[0] = 0
    sdi = make(one.task)
    noisy = inputs_of(one.network, sdi, batch)[0]
    assert bool((noisy[0] == batch.images[0]).all())
    assert bool((noisy[1:] != batch.images[1:]).flatten(1).any(1).all())
    assert sdi.on_epoch_end()["attacked"] == pytest.approx(5 / 6)


def test_images_without_spatial_axes_are_refused() -> None:
    network, images, labels = problem(3, (4,))
    with pytest.raises(InputError, match="images: received '0 spatial axes', allowed is 1 to 3"):
        run(make(), network, Batch(images, labels))

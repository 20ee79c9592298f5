"""What every attack owes its callers, checked on one table of all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks.apgd import APGD, TargetedAPGD
from monai_adv.attacks.base import Attack, AttackResult
from monai_adv.attacks.cospgd import CosPGD
from monai_adv.attacks.cw import CW, CWL2
from monai_adv.attacks.ensemble import Ensemble, Stage
from monai_adv.attacks.fab import FAB, TargetedFAB
from monai_adv.attacks.fgsm import FGSM
from monai_adv.attacks.foreign import Foreign
from monai_adv.attacks.losses import targeted_margin
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.sea import SEA
from monai_adv.attacks.segpgd import SegPGD
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.attacks.square import Square
from monai_adv.attacks.transfer import Transfer
from monai_adv.attacks.white_noise import WhiteNoise
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask, SegmentationTask, Task
from monai_adv.threats import per_sample
from tests.conftest import LinearNetwork, LinearTask


@dataclass(frozen=True)
class Entry:
    """One attack.

    Attributes:
        make: with few steps, for a threat and the network under attack (which a transfer takes as its surrogate).
        norms: it has.
        exact: finds the optimum of a linear network.
        segments: attacks segmentations.
    """

    make: Callable[[Threat, nn.Module], Attack]
    norms: tuple[str, ...] = ("l2", "linf")
    exact: bool = True
    segments: bool = True


def one_step(norm: str, model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The exact attack on a linear network, as another library might have it."""
    x = inputs.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="none").reshape(len(x), -1).mean(1).sum()
    (g,) = torch.autograd.grad(loss, x)
    direction = g.sign() if norm == "linf" else g / per_sample(g.flatten(1).norm(dim=1).clamp(min=1e-30), g)
    return (inputs + eps * direction).detach()


# A new attack is one line here.
ATTACKS = {
    "PGD": Entry(lambda t, n: PGD(t)),
    "PGD from random starts": Entry(lambda t, n: PGD(t, 12, 0.5, "ball", until="wrong")),
    "FGSM": Entry(lambda t, n: FGSM(t)),
    "CW": Entry(lambda t, n: CW(t, steps=12)),
    "CWL2": Entry(lambda t, n: CWL2(t, steps=40, search_steps=4, learning_rate=0.02, initial_c=1.0), norms=("l2",)),
    "APGD": Entry(lambda t, n: APGD(t, steps=12)),
    "targeted APGD": Entry(lambda t, n: TargetedAPGD(t, targets=1, loss=targeted_margin, steps=12)),
    "FAB": Entry(lambda t, n: FAB(t, steps=12, classes=3)),
    "targeted FAB": Entry(lambda t, n: TargetedFAB(t, targets=1, steps=12), segments=False),
    "Square": Entry(lambda t, n: Square(t, queries=25), exact=False),
    "SegPGD": Entry(lambda t, n: SegPGD(t, steps=12)),
    "CosPGD": Entry(lambda t, n: CosPGD(t, steps=12)),
    "SEA": Entry(lambda t, n: SEA(t, steps=20, until="wrong")),
    "sharp Dice": Entry(lambda t, n: SharpDice(t, steps=12, decay=False)),
    "white noise": Entry(lambda t, n: WhiteNoise(t, draws=3), exact=False),
    # It knows nothing of channels that may not change, so what it finds is projected.
    "foreign": Entry(
        lambda t, n: Foreign(t, partial(one_step, t.norm), most=Passes(1, 1), oversteps="project", until="wrong"),
        exact=False,
    ),
    "transfer": Entry(lambda t, n: Transfer(copy.deepcopy(n), PGD(t, 8, 0.5))),
}
EACH = [(name, norm) for name, entry in ATTACKS.items() for norm in entry.norms]
EXACT = [(name, norm) for name, norm in EACH if ATTACKS[name].exact]
SHAPES = [(2, 9), (2, 5, 7), (2, 3, 4, 5)]
EPS = {"l2": 0.8, "linf": 0.15}
RADII = (0.0, 0.3, 1.0, 2.0)  # of the four samples, times EPS
BOX = (-1.5, 1.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Classifier(nn.Module):
    """Three classes; layers with buffers and dropout, for any number of axes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        entries = torch.Size(shape).numel()
        self.body = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(entries), nn.Linear(entries, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


class Segmenter(nn.Module):
    """Three classes per voxel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 2]
        self.body = nn.Sequential(conv(shape[0], 6, 3, padding=1), norm(6), nn.ReLU(), nn.Dropout(), conv(6, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


@dataclass(frozen=True)
class Run:
    """An attack on four samples, each with a radius of its own, the first with radius 0."""

    entry: Entry
    attack: Attack
    network: nn.Module
    before: dict[str, Tensor]
    images: Tensor
    originals: Tensor
    target: Tensor
    task: Task
    radius: Tensor
    result: AttackResult
    random_state: tuple[Tensor, Tensor]

    def again(self) -> AttackResult:
        return self.attack(self.network, self.images, self.target, self.task, radius=self.radius, generator=seeded())


@cache
def run(
    name: str,
    norm: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    box: tuple[float, float] | None,
    kind: str = "classification",
) -> Run:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = (Classifier if kind == "classification" else Segmenter)(shape).to(dtype).train()
        if kind == "segmentation":  # an untrained network is hardly sure of anything
            network.body[-1].weight.data *= 5
    network.body[1].eval()  # a user who froze the statistics
    next(network.parameters()).requires_grad_(False)
    images = torch.randn(len(RADII), *shape, generator=seeded(1), dtype=torch.float64).to(dtype)
    if box is not None:
        images = images.clamp(*box)  # many voxels lie on its edges
    task: Task
    with torch.no_grad():
        network.eval()
        output = network(images)
        network.train()
        network.body[1].eval()
    if kind == "classification":
        task, target = ClassificationTask(), output.argmax(1)
    else:
        task, target = SegmentationTask(lambda output, target: output.mean()), output.argmax(1, keepdim=True)
    network(images).sum().backward()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    before |= {f"{k}.grad": p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
    radius = EPS[norm] * torch.tensor(RADII, dtype=dtype)
    attack = ATTACKS[name].make(Threat(norm, EPS[norm], box=box, channels=(1,), unit="norm"), network)  # type: ignore[arg-type]
    originals = images.clone()
    stream = torch.get_rng_state()
    result = attack(network, images, target, task, radius=radius, generator=seeded())
    streams = stream, torch.get_rng_state()
    return Run(ATTACKS[name], attack, network, before, images, originals, target, task, radius, result, streams)


def runs(name: str, norm: str) -> list[Run]:
    """Every number of axes, both precisions, with and without a box, both tasks."""
    found = [
        run(name, norm, shape, dtype, box)
        for shape in SHAPES
        for dtype in (torch.float32, torch.float64)
        for box in (None, BOX)
    ]
    if ATTACKS[name].segments:
        found += [run(name, norm, shape, torch.float32, None, "segmentation") for shape in SHAPES]
    return found


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_the_budget_holds_in_double_precision(name: str, norm: str) -> None:
    """For each sample its own radius, the box, and the channels that may change."""
    for r in runs(name, norm):
        delta = r.result.images.double() - r.images.double()
        assert (r.attack.threat.size(delta) <= r.radius.double() * (1 + 1e-5)).all()
        if r.attack.threat.box is not None:
            low, high = r.result.images.aminmax()
            assert low >= BOX[0]
            assert high <= BOX[1]
        assert torch.equal(r.result.images[:, 0], r.images[:, 0])  # channels=(1,)
        assert torch.equal(r.images, r.originals)


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_radius_zero_returns_the_clean_image_bit_for_bit(name: str, norm: str) -> None:
    for r in runs(name, norm):
        assert r.radius[0] == 0
        assert torch.equal(r.result.images[0], r.images[0])


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_larger_radii_are_used(name: str, norm: str) -> None:
    """Or the budget would hold for want of an attack. (A search for the nearest wrong image may find none within.)"""
    found = runs(name, norm)
    moved = [bool((r.attack.threat.size(r.result.images - r.images) > 0)[1:].any()) for r in found]
    assert sum(moved) >= 0.75 * len(found)


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_margin_and_wrong_are_what_the_network_says_of_the_images(name: str, norm: str) -> None:
    for r in runs(name, norm):
        network = copy.deepcopy(r.network).eval()
        with torch.no_grad():
            output = network(r.result.images)
        margin = r.task.margin(output, r.target).to(r.result.margin)
        tolerance = 1e-4 if r.images.dtype == torch.float32 else 1e-10
        torch.testing.assert_close(r.result.margin, margin, rtol=0, atol=tolerance)
        sure = margin.abs() > tolerance
        assert torch.equal(r.result.wrong[sure], ~r.task.correct(output, r.target)[sure])
        assert not r.result.broken.any()


@pytest.mark.parametrize("name", [name for name, norm in EACH if norm == "l2" and ATTACKS[name].segments])
def test_an_ensemble_keeps_what_its_only_stage_finds(name: str) -> None:
    """All are right before, so both attack the same batch with the same random numbers."""
    r = run(name, "l2", SHAPES[1], torch.float32, None, "segmentation")
    ensemble = Ensemble((Stage(name, r.attack),), until="lowest")
    found = ensemble(r.network, r.images, r.target, r.task, radius=r.radius, generator=seeded())
    network = copy.deepcopy(r.network).eval()
    with torch.no_grad():
        clean = r.task.margin(network(r.images), r.target)
    torch.testing.assert_close(found.margin, torch.minimum(clean, r.result.margin), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_a_radius_that_is_no_number_for_each_sample_is_refused(name: str, norm: str) -> None:
    r = run(name, norm, SHAPES[1], torch.float32, None)
    with pytest.raises(InputError, match=r"^radius: received \(3,\)"):
        r.attack(r.network, r.images, r.target, r.task, radius=r.radius[:3], generator=seeded())


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_the_network_and_the_random_streams_are_left_as_found(name: str, norm: str) -> None:
    for r in runs(name, norm):
        after = dict(r.network.state_dict())
        after |= {f"{k}.grad": p.grad for k, p in r.network.named_parameters() if p.grad is not None}
        assert after.keys() == r.before.keys()
        assert all(torch.equal(value, after[key]) for key, value in r.before.items())
        assert [m.training for m in r.network.body] == [i != 1 for i in range(len(r.network.body))]
        assert [p.requires_grad for p in r.network.parameters()] == [
            i != 0 for i, _ in enumerate(r.network.parameters())
        ]
        assert torch.equal(*r.random_state)


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_the_result_fits_the_batch_and_its_price(name: str, norm: str) -> None:
    for r in runs(name, norm):
        result, most, count = r.result, r.attack.most_passes(), len(r.images)
        assert result.images.shape == r.images.shape
        assert result.images.dtype == r.images.dtype
        assert not result.images.requires_grad
        assert all(len(v) == count for v in (result.wrong, result.margin, result.dead, result.broken))
        assert 0 < result.passes.forward <= count * most.forward
        assert result.passes.backward_input <= count * most.backward_input
        assert result.passes.backward_full == 0


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_the_same_generator_gives_the_same_result(name: str, norm: str) -> None:
    """Whatever the default stream has done, and under no_grad, as nnU-Net validates."""
    r = run(name, norm, SHAPES[1], torch.float32, None)
    torch.manual_seed(12345)
    with torch.no_grad():
        again = r.again()
    assert torch.equal(again.images, r.result.images)
    assert torch.equal(again.margin, r.result.margin)
    assert again.passes == r.result.passes


def linear(shape: tuple[int, ...], norm: str) -> tuple[LinearNetwork, Tensor, Tensor, Tensor]:
    """A linear network and samples on its right side at known distances under the norm."""
    network = LinearNetwork(shape)
    images = torch.randn(5, *shape, generator=seeded(1), dtype=torch.float64)
    score = network(images)[:, 0].detach()
    weight = network.weight.detach()
    return network, images, score.sign(), score.abs() / (weight.norm() if norm == "l2" else weight.abs().sum())


@pytest.mark.parametrize(("name", "norm"), EXACT)
def test_a_linear_network_is_lost_exactly_when_its_distance_is_within_the_radius(name: str, norm: str) -> None:
    for shape in SHAPES:
        network, images, target, distance = linear(shape, norm)
        radius = distance * torch.tensor([0.5, 0.97, 1.03, 1.5, 0.1]).double()
        attack = ATTACKS[name].make(Threat(norm, 1.0, unit="norm"), network)  # type: ignore[arg-type]
        result = attack(network, images, target, LinearTask(), radius=radius, generator=seeded())
        assert result.wrong.tolist() == [False, False, True, True, False]
        assert not result.dead.any()


@pytest.mark.parametrize(("name", "norm"), [pair for pair in EACH if pair not in EXACT])
def test_an_attack_without_a_gradient_never_claims_more_than_there_is(name: str, norm: str) -> None:
    for shape in SHAPES:
        network, images, target, distance = linear(shape, norm)
        attack = ATTACKS[name].make(Threat(norm, 1.0, unit="norm"), network)  # type: ignore[arg-type]
        result = attack(network, images, target, LinearTask(), radius=0.999 * distance, generator=seeded())
        assert not result.wrong.any()
        assert not result.dead.any()


@pytest.mark.parametrize("name", [name for name, norm in EXACT if norm == "linf"])
def test_in_a_box_the_l_inf_optimum_of_a_linear_network_is_known(name: str) -> None:
    """Each voxel goes as far as radius and box let it; the score there tells who can be lost."""
    for shape in SHAPES:
        network, images, _, _ = linear(shape, "linf")
        images = images.clamp(-1, 1)
        score = network(images)[:, 0].detach()
        target, weight = score.sign(), network.weight.detach()
        eps = torch.linspace(0.02, 0.3, 60).double()
        # (60, 5) margins at the optimum for each radius.
        wanted = -per_sample(target, images) * weight.sign()
        optimum = torch.stack([(images + e * wanted).clamp(-1, 1) for e in eps])
        margin = torch.stack([network(o)[:, 0].detach() * target for o in optimum])
        for k in range(0, 60, 12):
            if margin[k].abs().min() < 0.02 * weight.abs().sum() * eps[k]:
                continue  # too near to the boundary to ask for
            attack = ATTACKS[name].make(Threat("linf", float(eps[k]), box=(-1.0, 1.0)), network)
            result = attack(network, images, target, LinearTask(), generator=seeded())
            assert torch.equal(result.wrong, margin[k] <= 0)


class NoPath(nn.Module):
    """A forward without a gradient: masking at its plainest."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_a_network_without_a_gradient_stops_no_attack_and_is_told(name: str, norm: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NoPath(nn.Sequential(nn.Flatten(), nn.Linear(20, 3)).double())
    images = torch.randn(3, 1, 4, 5, generator=seeded(1), dtype=torch.float64)
    target = network(images).argmax(1)
    attack = ATTACKS[name].make(Threat(norm, 1e-3, unit="norm"), network)  # type: ignore[arg-type]
    result = attack(network, images, target, ClassificationTask(), generator=seeded())
    assert not result.wrong.any()
    if name not in ("Square", "white noise", "transfer"):
        assert result.dead.all()


class BreaksOnBright(nn.Module):
    """NaN for images above 50."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return torch.where((x.flatten(1).mean(1) > 50)[:, None], torch.nan, logits)


@pytest.mark.parametrize(("name", "norm"), EACH)
def test_an_output_that_is_not_finite_counts_as_wrong_and_is_told(name: str, norm: str) -> None:
    shape = (1, 4, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BreaksOnBright(nn.Sequential(nn.Flatten(), nn.Linear(20, 3)).double())
    images = torch.randn(3, *shape, generator=seeded(1), dtype=torch.float64)
    target = network(images).argmax(1)
    images[1] += 100
    attack = ATTACKS[name].make(Threat(norm, 1e-3, unit="norm"), network)  # type: ignore[arg-type]
    result = attack(network, images, target, ClassificationTask(), generator=seeded())
    assert result.broken.tolist() == [False, True, False]
    assert result.wrong.tolist() == [False, True, False]
    assert result.margin[1] == -torch.inf
    assert result.margin[[0, 2]].isfinite().all()
    assert result.images.isfinite().all()

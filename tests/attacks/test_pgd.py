"""PGD and bisection: closed forms, early finish, side effects."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from monai_adv import InputError, Threat
from monai_adv.attacks import PGD, Ascent, Ensemble, Stage, ascent, bisect
from monai_adv.attacks.losses import cross_entropy
from monai_adv.network_state import frozen, padded
from monai_adv.tasks import ClassificationTask, SegmentationTask
from monai_adv.tasks.base import Points
from tests.conftest import LinearNetwork, LinearTask

SHAPES = [(8,), (2, 4, 6), (1, 3, 4, 5)]


def setup(shape: tuple[int, ...], count: int = 5) -> tuple[LinearNetwork, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear network and samples on its right side at known distances."""
    network = LinearNetwork(shape)
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    distance = (network(images)[:, 0].abs() / network.weight.norm()).detach()
    return network, images, target, distance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", ["clean", "ball", "surface"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_network_has_the_closed_form(shape: tuple[int, ...], start: str, norm: str) -> None:
    """The optimum on a linear network moves by eps against the weights, in the norm's own geometry."""
    network, images, target, _ = setup(shape)
    attack = PGD(Threat(norm, 0.7, unit="norm"), steps=40, relative_step=0.5, start=start)
    result = attack(network, images, target, LinearTask(), generator=torch.Generator().manual_seed(0))
    w = network.weight.detach()
    unit = w / w.norm() if norm == "l2" else w.sign()
    expected = images - 0.7 * target.view(-1, *[1] * len(shape)) * unit
    torch.testing.assert_close(result.images, expected, atol=2e-3, rtol=0)
    assert (Threat(norm, 0.7, unit="norm").size(result.images - images) <= 0.7 * (1 + 1e-5)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_is_lost_exactly_when_its_distance_is_within_the_radius(shape: tuple[int, ...]) -> None:
    network, images, target, distance = setup(shape, 9)
    eps = float(distance.median()) + 1e-3
    result = PGD(Threat("l2", eps, unit="norm"), steps=30)(network, images, target, LinearTask())
    assert torch.equal(result.wrong, distance < eps)


def test_radius_per_sample_gives_each_its_own_ball() -> None:
    network, images, target, distance = setup((2, 4, 6))
    radius = distance * torch.tensor([0.5, 0.99, 1.01, 1.5, 0.1], dtype=torch.float64)
    result = PGD(Threat("l2", 1.0, unit="norm"), steps=20)(network, images, target, LinearTask(), radius=radius)
    torch.testing.assert_close((result.images - images).flatten(1).norm(dim=1), radius)
    assert result.wrong.tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("attack", [PGD, Ascent])
def test_a_loss_is_told_how_far_the_attack_has_come(attack: type[PGD | Ascent]) -> None:
    """``progress`` of step k of K is k/K: 0, 0.25, 0.5, 0.75."""
    seen = []

    def loss(points: Points, progress: float) -> torch.Tensor:
        seen.append(progress)
        return cross_entropy(points, progress)

    images, target = torch.randn(3, 2), torch.tensor([0, 1, 2])
    attack(Threat("l2", 0.7, unit="norm"), steps=4, loss=loss)(nn.Linear(2, 3), images, target, ClassificationTask())
    assert seen[:4] == [0.0, 0.25, 0.5, 0.75]


def test_an_ascent_goes_on_where_a_sample_is_wrong_unless_it_is_told_to_stop() -> None:
    """Twice the distance to the boundary: the last iterate lies at the radius, not at the first wrong one."""
    network, images, target, distance = setup((8,))
    went = Ascent(Threat("l2", 1.0, unit="norm"), steps=20)(network, images, target, LinearTask(), radius=2 * distance)
    torch.testing.assert_close((went.images - images).flatten(1).norm(dim=1), 2 * distance)


def test_first_wrong_brackets_the_boundary_and_saves_passes() -> None:
    network, images, target, distance = setup((6, 7), 4)
    radius = distance * torch.tensor([2.0, 5.0, 0.5, 1.2], dtype=torch.float64)
    attack = Ascent(Threat("l2", 1.0, unit="norm"), steps=20, first_wrong=True)
    result = attack(network, images, target, LinearTask(), radius=radius)
    task = LinearTask()
    assert result.wrong.tolist() == [True, True, False, True]
    assert torch.equal(task.correct(network(result.images), target), ~result.wrong)
    assert task.correct(network(result.previous), target).all()
    # Iterate k is at 0.2 * k * radius until the sphere: first beyond the boundary at k = 3, 2, -, 5.
    moved = (result.images - images).flatten(1).norm(dim=1) / radius
    torch.testing.assert_close(moved, torch.tensor([0.6, 0.4, 1.0, 1.0], dtype=torch.float64))
    assert result.steps.tolist() == [3, 2, 20, 5]
    assert result.passes.forward == 4 + 3 + 6 + 21  # k + 1 forwards each; the uncrossed one 20 steps and the last check
    assert result.passes.backward_input == 4 + 3 + 6 + 20


@pytest.mark.parametrize("interval", [1, 2, 7])
def test_when_finished_samples_leave_does_not_change_the_result(interval: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, target, distance = setup((6, 7), 8)
    radius = distance * torch.linspace(0.5, 4, 8, dtype=torch.float64)
    attack = Ascent(Threat("l2", 1.0, unit="norm"), steps=12, first_wrong=True)
    expected = attack(network, images, target, LinearTask(), radius=radius)
    monkeypatch.setattr(ascent, "sync_interval", lambda device: interval)
    result = attack(network, images, target, LinearTask(), radius=radius)
    for name in ("images", "previous", "wrong"):
        assert torch.equal(getattr(result, name), getattr(expected, name))


def test_batches_for_compiled_networks_come_in_few_sizes() -> None:
    compiled = torch.compile(nn.Identity())
    sizes = set()
    for count in range(1, 367):
        index = torch.randperm(400)[:count]
        longer = padded(index, compiled)
        assert torch.equal(longer[:count], index)
        assert set(longer.tolist()) == set(index.tolist())
        assert len(longer) <= max(2, 1.5 * count if count < 8 else 1.25 * count)
        sizes.add(len(longer))
        assert torch.equal(padded(index, nn.Identity()), index)  # exact on the CPU
        elsewhere = padded(index.to("meta"), nn.Identity())  # where it is not, only a single sample stays alone
        assert len(elsewhere) == (1 if count == 1 else len(longer))
    assert len(sizes) <= 26
    assert min(sizes) == 2  # size 1 would be a graph of its own


def test_compiled_network_gives_the_same_attack_with_few_graphs() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 1)).double()
    images = torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    graphs = []

    def count(graph, inputs):  # type: ignore[no-untyped-def]
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(network, backend=count)
    attack = Ascent(Threat("l2", 0.5, unit="norm"), steps=6, first_wrong=True)
    for size in (12, 7, 1, 5, 12, 3):  # as the number of attacked samples changes
        some, labels = images[:size], target[:size]
        compiled(images).sum().backward()
        result = attack(compiled, some, labels, LinearTask())
        torch.testing.assert_close(result.images, attack(network, some, labels, LinearTask()).images)
        bisect(compiled, some, result.images, labels, LinearTask())
    assert len(graphs) == 3  # training, attack, and search with last check


def test_the_strongest_iterate_is_never_weaker_than_the_last() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    images = torch.randn(16, 3, 4, dtype=torch.float64)
    target = network(images)[:, 0].sign().detach()
    task = LinearTask()
    coarse = {"steps": 4, "relative_step": 2.0}  # overshoots, so the last iterate is often not the best
    last = Ascent(Threat("l2", 0.8, unit="norm"), **coarse)(network, images, target, task)
    best = PGD(Threat("l2", 0.8, unit="norm"), **coarse)(network, images, target, task)
    assert (task.margin(network(best.images), target) <= task.margin(network(last.images), target) + 1e-9).all()
    assert torch.equal(best.wrong, ~task.correct(network(best.images), target))


class Threshold(nn.Module):
    """Foreground where the image is positive."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-x, x], 1)


def test_an_ensemble_keeps_what_plain_pgd_finds() -> None:
    """By hand: three of twenty voxels of the lesion and three beside it lie within 0.1 of 0: Dice 34 / 40 = 0.85."""
    values = [1.0] * 17 + [0.05] * 3 + [-0.05] * 3 + [-1.0] * 13
    images = torch.tensor(values, dtype=torch.float64).view(1, 1, 6, 6)
    target = (images > 0).long()
    task = SegmentationTask(lambda output, target: output.mean())
    pgd = PGD(Threat("linf", 0.1), steps=10)
    alone = pgd(Threshold(), images, target, task)
    ensemble = Ensemble((Stage("pgd", pgd),), until="lowest")(Threshold(), images, target, task)
    for result in (alone, ensemble):
        assert float(result.margin) + task.settings.threshold == pytest.approx(0.85)
        assert float(task.dice(Threshold()(result.images), target)) == pytest.approx(0.85)
    assert ensemble.stage.tolist() == [1]


def test_an_attack_derives_its_own_step() -> None:
    """Steps of 4 / 2 ** k tenths of the radius on a linear network: 0.4 + 0.2 + 0.1 along the weights."""

    class Halving(PGD):
        def _length(self, radius: torch.Tensor, number: int) -> torch.Tensor:
            return 0.4 * radius / 2**number

    network, images, target, _ = setup((6, 7))
    result = Halving(Threat("l2", 0.5, unit="norm"), steps=3)(network, images, target, LinearTask())
    weight = network.weight.detach()
    expected = images - 0.35 * target.view(-1, 1, 1) * weight / weight.norm()
    torch.testing.assert_close(result.images, expected)


def test_batch_split_and_order_do_not_matter() -> None:
    network, images, target, _ = setup((1, 3, 4, 5), 6)
    attack = PGD(Threat("l2", 0.9, unit="norm"), steps=7, until="wrong")
    whole = attack(network, images, target, LinearTask()).images
    halves = torch.cat([attack(network, images[i : i + 3], target[i : i + 3], LinearTask()).images for i in (0, 3)])
    assert torch.equal(whole, halves)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.equal(whole[order], attack(network, images[order], target[order], LinearTask()).images)


def test_radius_zero_changes_nothing() -> None:
    network, images, target, _ = setup((6, 7))
    for norm in ("l2", "linf"):
        result = PGD(Threat(norm, 0.0, unit="norm"), steps=3)(network, images, target, LinearTask())
        assert torch.equal(result.images, images)


def test_dead_gradients_are_reported() -> None:
    network, images, target, _ = setup((6, 7))
    with torch.no_grad():
        network.weight.zero_()
    result = PGD(Threat("l2", 1.0, unit="norm"), steps=3)(network, images, target, LinearTask())
    assert result.dead.all()
    assert torch.equal(result.images, images)


class Everything(nn.Module):
    """Layers with buffers, dropout and mixed modes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_network_is_left_exactly_as_found(mode: str) -> None:
    torch.manual_seed(0)
    network = Everything().train()
    network.body[1].eval()  # a user who froze the statistics
    network.body[0].weight.requires_grad_(False)
    images, target = torch.randn(4, 1, 6, 6), torch.ones(4)
    network(images).sum().backward()
    before = copy.deepcopy(network.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    modes, flags = [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]
    stream = torch.get_rng_state()

    PGD(Threat("l2", 1.0, unit="norm"), steps=3, mode=mode)(network, images, target, LinearTask())
    bisect(network, images, images + 1, target, LinearTask(), mode=mode)

    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(
        (p.grad is None and g is None) or torch.equal(p.grad, g)
        for p, g in zip(network.parameters(), gradients, strict=True)
    )
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), stream)


def test_the_network_is_restored_after_an_error() -> None:
    network = Everything().train()
    with pytest.raises(RuntimeError), frozen(network):
        raise RuntimeError
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())


def test_inside_no_grad_the_attack_still_works() -> None:
    """nnU-Net validates under no_grad."""
    network, images, target, _ = setup((6, 7))
    attack = PGD(Threat("l2", 0.5, unit="norm"), steps=5)
    with torch.no_grad():
        inside = attack(network, images, target, LinearTask()).images
    assert torch.equal(inside, attack(network, images, target, LinearTask()).images)


@pytest.mark.parametrize("keep", ["midpoint", "last_right"])
def test_bisection_finds_the_boundary(keep: str) -> None:
    network, images, target, distance = setup((2, 4, 6))
    unit = (network.weight / network.weight.norm()).detach()
    far = images - (2.5 * distance * target).view(-1, 1, 1, 1) * unit
    result = bisect(network, images, far, target, LinearTask(), halvings=12, keep=keep)
    found = (result.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(found, distance, atol=0, rtol=2.5 * 2**-11)
    assert torch.equal(result.wrong, ~LinearTask().correct(network(result.images), target))
    assert result.passes.forward == (13 if keep == "midpoint" else 12) * 5  # the midpoint is looked at
    if keep == "last_right":
        assert not result.wrong.any()
    unseen = bisect(network, images, far, target, LinearTask(), halvings=12, keep=keep, judge=False)
    assert torch.equal(unseen.images, result.images)
    assert unseen.passes.forward == 12 * 5
    assert (unseen.wrong is None) == (keep == "midpoint")


@pytest.mark.parametrize(("halvings", "midpoint"), [(0, 0.5), (1, 0.75), (2, 0.625), (10, 0.60009765625)])
def test_the_midpoint_is_that_of_the_segment_which_is_left(halvings: int, midpoint: float) -> None:
    """A boundary at 0.6 between 0 (right) and 1: the numbers of refine_onto_boundary in the IMA authors' code."""
    network = LinearNetwork((1,), bias=0.6)
    with torch.no_grad():
        network.weight.fill_(-1.0)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    label = torch.ones(1, dtype=torch.float64)
    found = bisect(network, ends[:1], ends[1:], label, LinearTask(), halvings=halvings)
    assert found.images.item() == midpoint
    assert found.wrong.item() == (midpoint >= 0.6)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"relative_step": 0.0}, {"start": "here"}, {"until": "late"}, {"momentum": 1.0}, {"mode": "off"}],
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: received"):
        PGD(Threat("l2", 1.0, unit="norm"), **settings)


@pytest.mark.parametrize("lesion", [1, 8, 512])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_blind_the_attack(lesion: int, kind: torch.dtype) -> None:
    """Neither a large volume (gradients of order 1 / voxels) nor a small lesion (of order 1 / lesion) stops it."""
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight.mul_(20)
    images = 0.1 * torch.randn(1, 1, 64, 64, 64)
    target = torch.zeros(1, 1, 64, 64, 64, dtype=torch.long)
    target.flatten()[:lesion] = 1
    task = SegmentationTask(lambda o, t: o.mean())
    attack = PGD(Threat("l2", 5.0, unit="norm"), steps=3)
    exact = attack(network, images, target, task)
    with torch.autocast("cpu", dtype=kind):
        half = attack(network, images, target, task)
    assert not half.dead.any()
    one, two = (half.images - images).flatten(), (exact.images - images).flatten()
    assert float(torch.nn.functional.cosine_similarity(one, two, dim=0)) > 0.99


@pytest.mark.parametrize("kind", [PGD, Ascent])
def test_a_random_start_needs_a_generator(kind: type) -> None:
    network, images, target, _ = setup((6, 7))
    with pytest.raises(InputError, match="^generator"):
        kind(Threat("l2", 1.0, unit="norm"), start="ball")(network, images, target, LinearTask())

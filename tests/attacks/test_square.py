"""Square attack: its windows by hand, its search, and what it finds where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks import square as module
from monai_adv.attacks.base import Verdict
from monai_adv.attacks.square import WASTE, Square, share, strongest_of_each
from monai_adv.attacks.square_windows import Window, eta, moved, redrawn, stripes, tiles
from monai_adv.tasks import ClassificationTask, SegmentationSettings, SegmentationTask
from tests.conftest import LinearNetwork, LinearTask

SHAPES = [(2, 9), (2, 5, 12), (1, 4, 6, 5)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def test_the_share_is_halved_at_the_thresholds_of_the_paper() -> None:
    halvings = [k for k in range(1, 12000) if share(0.8, k) < share(0.8, k - 1)]
    assert halvings == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert share(0.8, 11000) == 0.8 / 512


@pytest.mark.parametrize(
    ("shape", "norm", "expected"),
    [
        ((10, 10), "linf", (9, 9)),  # sqrt(80) = 8.94
        ((10, 10), "l2", (9, 9)),
        ((11, 11), "l2", (11, 11)),  # 9.84 -> 10 -> 11
        ((4, 100), "linf", (4, 18)),  # sqrt(320) = 17.9, cut to the axis
        ((7, 8, 9), "linf", (7, 7, 7)),  # 403.2 ** (1/3) = 7.39
        ((100,), "linf", (80,)),
    ],
)
def test_the_window_holds_its_share_of_the_voxels(shape: tuple, norm: str, expected: tuple) -> None:
    assert Square(Threat(norm, 1.0, unit="norm"))._sides(torch.zeros(1, 1, *shape), 0) == expected


def test_windows_are_never_empty_and_those_of_l2_have_a_centre() -> None:
    images = torch.zeros(1, 1, 6, 6)
    assert Square(Threat("linf", 1.0))._sides(images, 9000) == (1, 1)
    assert Square(Threat("l2", 1.0, unit="norm"))._sides(images, 9000) == (3, 3)
    assert Square(Threat("l2", 1.0, unit="norm"))._sides(torch.zeros(1, 1, 2, 6), 9000) == (2, 3)


def test_a_window_is_the_box_of_voxels_at_its_corner() -> None:
    images = torch.arange(2 * 3 * 4 * 5).view(1, 2, 3, 4, 5).double()
    window = Window(images, None, (2, 1, 3))
    found = images.flatten(1).gather(1, window.entries(torch.tensor([[1, 2, 1]])).flatten(1))
    assert torch.equal(found.view(2, 2, 1, 3), images[0, :, 1:3, 2:3, 1:4])
    only = Window(images, (1,), (2, 1, 3)).entries(torch.tensor([[1, 2, 1]]))
    assert torch.equal(images.flatten()[only.flatten()].view(2, 1, 3), images[0, 1, 1:3, 2:3, 1:4])


def test_windows_reach_every_place_equally_often() -> None:
    window = Window(torch.zeros(1, 1, 4, 6), None, (3, 2))
    corner = window.corner(torch.rand(60000, 2, generator=seeded()))
    counts = torch.bincount(corner[:, 0] * 5 + corner[:, 1], minlength=10)
    assert len(counts) == 2 * 5
    assert (counts - 6000).abs().max() < 5 * 6000**0.5


def test_the_l2_window_is_that_of_the_paper() -> None:
    """Side 5: a 2 x 5 peak of height 1 + 1/4 + 1/9 falling with the distance, and a negative one of 3 x 5."""
    one, two, three = 1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9
    # 2 x 5, centre (1, 2): the row of the centre and the one before it.
    upper = [[three, two, two, two, three], [three, two, one, two, three]]
    lower = [[three, two, two, two, three], [three, two, one, two, three], [three, two, two, two, three]]
    expected = torch.tensor([*upper, *[[-v for v in row] for row in lower]], dtype=torch.float64)
    expected = expected / expected.norm()
    like = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(eta((5, 5), 0, like).view(5, 5), expected)
    torch.testing.assert_close(eta((5, 5), 1, like).view(5, 5), expected.T)
    assert float(eta((3, 4, 5), 2, like).norm()) == pytest.approx(1)


def test_stripes_are_constant_along_all_axes_but_the_last() -> None:
    images = torch.zeros(3, 2, 4, 5, 6)
    start = stripes(Threat("linf", 0.5), images, torch.full((3,), 0.5), seeded())
    assert (start.abs() == 0.5).all()
    assert (start == start[:, :, :1, :1]).all()
    assert 0 < (start > 0).double().mean() < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_an_l_inf_proposal_redraws_one_window_only(shape: tuple[int, ...]) -> None:
    images, threat, radius = noise(4, *shape), Threat("linf", 0.3), torch.tensor([0.1, 0.2, 0.3, 0.0]).double()
    current = stripes(threat, images, radius, seeded())
    sides = tuple(max(1, n // 2) for n in shape[1:])
    window = Window(images, None, sides)
    draws = torch.rand(4, 2 * len(sides) + 1 + shape[0], generator=seeded(3))
    entries, values = redrawn(threat, images, radius, torch.arange(4), window, draws)
    new = current.flatten(1).scatter(1, entries, values).view_as(current)
    sizes = (new - images).abs()
    torch.testing.assert_close(sizes, radius.view(-1, *[1] * len(shape)).expand_as(sizes))
    for i in range(4):
        corner = (draws[i, : len(sides)] * (torch.tensor(shape[1:]) - torch.tensor(sides) + 1)).long()
        inside = torch.zeros(shape[1:], dtype=torch.bool)
        inside[tuple(slice(int(c), int(c) + s) for c, s in zip(corner, sides, strict=True))] = True
        assert torch.equal(new[i][:, ~inside], current[i][:, ~inside])
        for channel in range(shape[0]):
            assert len((new - images)[i, channel][inside].sign().unique()) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_an_l2_proposal_moves_mass_and_fills_the_ball(shape: tuple[int, ...]) -> None:
    """Outside both windows nothing changes, one window is wiped, and each channel keeps its mass in the windows."""
    images, threat, radius = noise(1, *shape), Threat("l2", 2.0, unit="norm"), torch.tensor([2.0]).double()
    current = tiles(threat, images, radius, seeded())
    torch.testing.assert_close(threat.size(current - images), radius)
    sides = tuple(min(3, n) for n in shape[1:])
    window = Window(images, None, sides)
    axes = len(sides)
    for seed in range(8):
        draws = torch.rand(1, 2 * axes + 1 + shape[0], generator=seeded(seed))
        new = moved(threat, images, current, radius, window, draws)
        torch.testing.assert_close(threat.size(new - images), radius)
        to, wiped = torch.zeros(shape[1:], dtype=torch.bool), torch.zeros(shape[1:], dtype=torch.bool)
        for mask, corner in (
            (to, window.corner(draws[:, :axes])),
            (wiped, window.corner(draws[:, axes : 2 * axes])),
        ):
            mask[tuple(slice(int(c), int(c) + s) for c, s in zip(corner[0], sides, strict=True))] = True
        before, after = (current - images)[0], (new - images)[0]
        torch.testing.assert_close(after[:, ~(to | wiped)], before[:, ~(to | wiped)])
        assert after[:, wiped & ~to].abs().max() < 1e-12 if (wiped & ~to).any() else True
        for channel in range(shape[0]):
            mass, was = after[channel][to | wiped].norm(), before[channel][to | wiped].norm()
            torch.testing.assert_close(mass, was)


def test_the_l2_window_adds_the_pattern_to_the_direction_that_is_there() -> None:
    """Algorithm 3 by hand: one axis, window of 3 at 0, nothing to wipe at 3, all mass in the window."""
    images, threat, radius = torch.zeros(1, 1, 6).double(), Threat("l2", 5.0, unit="norm"), torch.tensor([5.0]).double()
    current = torch.tensor([[[3.0, 4.0, 0.0, 0.0, 0.0, 0.0]]]).double()
    window = Window(images, None, (3,))
    draws = torch.tensor([[0.0, 0.99, 0.0, 0.9]])  # places 0 and 3, axis 0, sign +1
    # Peaks: length 1 (radius of the peak 0): [1]; length 2 with its centre at 1: [-(1/4), -(1 + 1/4)].
    eta = torch.tensor([1.0, -0.25, -1.25]).double()
    mixed = eta / eta.norm() + torch.tensor([0.6, 0.8, 0.0]).double()
    expected = torch.zeros(6).double()
    expected[:3] = 5 * mixed / mixed.norm()
    torch.testing.assert_close(moved(threat, images, current, radius, window, draws)[0, 0], expected)


def test_mass_that_the_box_cut_off_is_used_again() -> None:
    images, threat = torch.zeros(1, 1, 6).double(), Threat("l2", 5.0, box=(-3.0, 3.0), unit="norm")
    current = torch.zeros(1, 1, 6).double()
    window = Window(images, None, (3,))
    new = moved(threat, images, current, torch.tensor([2.0]).double(), window, torch.tensor([[0.0, 0.0, 0.0, 0.9]]))
    assert float(new.norm()) == pytest.approx(2.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_network_loses_what_it_must_and_nothing_else(shape: tuple[int, ...], norm: str) -> None:
    """Never beyond the known distance, and for L-inf everything clearly within it."""
    network = LinearNetwork(shape)
    images = noise(12, *shape)
    target = network(images)[:, 0].sign().detach()
    weight = network.weight.detach()
    distance = network(images)[:, 0].detach().abs() / (weight.norm() if norm == "l2" else weight.abs().sum())
    far = Square(Threat(norm, 1.0, unit="norm"), queries=60)
    result = far(network, images, target, LinearTask(), radius=0.999 * distance, generator=seeded())
    assert not result.wrong.any()
    near = Square(Threat(norm, 1.0, unit="norm"), queries=4000)
    factor = 1.25 if norm == "linf" else 4.0
    result = near(network, images, target, LinearTask(), radius=factor * distance, generator=seeded())
    assert result.wrong.all()
    torch.testing.assert_close(result.margin, LinearTask().margin(network(result.images), target))


def test_one_voxel_windows_find_the_exact_optimum_of_a_linear_network() -> None:
    """With windows of one voxel, random search on a linear loss ends with the sign of the gradient."""
    network = LinearNetwork((1, 12))
    images = noise(3, 1, 12)
    target = torch.full((3,), 1.0).double()
    with torch.no_grad():
        network.bias.fill_(1000.0)  # never wrong
    attack = Square(Threat("linf", 0.5), queries=400, p_init=1 / 12)
    result = attack(network, images, target, LinearTask(), generator=seeded())
    torch.testing.assert_close(result.images, images - 0.5 * network.weight.detach().sign())
    # The optimum and its 12 neighbours, each once; on the way there at most 12 others from each of 12 images.
    assert 13 <= result.passes.forward / 3 <= 13 + 12 * 12


def test_finished_samples_leave_and_do_not_change_the_others() -> None:
    network = LinearNetwork((1, 5, 6))
    images = noise(6, 1, 5, 6)
    target = network(images)[:, 0].sign().detach()
    distance = network(images)[:, 0].detach().abs() / network.weight.detach().abs().sum()
    radius = distance * torch.tensor([0.5, 1.3, 1.5, 0.9, 4.0, 2.0]).double()
    attack = Square(Threat("linf", 1.0), queries=150)
    result = attack(network, images, target, LinearTask(), radius=radius, generator=seeded())
    assert not result.wrong[[0, 3]].any()
    assert result.passes.forward < 6 * 151
    # The same two samples beside others that never finish: the same images.
    radius = torch.where(result.wrong, torch.zeros_like(radius), radius)
    again = attack(network, images, target, LinearTask(), radius=radius, generator=seeded())
    assert torch.equal(again.images[[0, 3]], result.images[[0, 3]])
    lost = int(result.wrong.sum())
    assert again.passes.forward <= lost + (6 - lost) * 151  # within radius 0 no proposal changes anything


@pytest.mark.parametrize("interval", [1, 3, 10])
def test_when_finished_samples_leave_does_not_change_who_is_lost(
    interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = LinearNetwork((1, 5, 6))
    images = noise(6, 1, 5, 6)
    target = network(images)[:, 0].sign().detach()
    attack = Square(Threat("l2", 0.6, unit="norm"), queries=60)
    expected = attack(network, images, target, LinearTask(), generator=seeded())
    monkeypatch.setattr(module, "sync_interval", lambda device: interval)
    result = attack(network, images, target, LinearTask(), generator=seeded())
    assert torch.equal(result.wrong, expected.wrong)
    assert torch.equal(result.images[~result.wrong], expected.images[~expected.wrong])


class Voxelwise(nn.Module):
    """Two classes; the second wins where the image is above 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x], 1)


@pytest.mark.parametrize("shape", [(1, 9, 14), (1, 5, 6, 7)])
def test_a_segmentation_falls_to_dice_zero(shape: tuple[int, ...]) -> None:
    images = torch.full((2, *shape), -1.0)
    images[0, 0, 2:4, 2:5] = 1.0
    images[1, 0, 1:3, :2] = 1.0
    target = (images > 0).long()
    task = SegmentationTask(lambda output, target: output.mean())
    attack = Square(Threat("linf", 1.5), queries=800, until="lowest")
    result = attack(Voxelwise(), images, target, task, generator=seeded())
    torch.testing.assert_close(result.margin, torch.full((2,), -0.6))
    assert result.passes.forward < 2 * 801
    assert not Square(Threat("linf", 0.9), queries=50)(
        Voxelwise(), images, target, task, generator=seeded()
    ).wrong.any()  # no voxel can change its class


def test_the_default_loss_of_one_point_is_the_logit_margin() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    images = noise(5, 1, 5, 6)
    target = network(images).argmax(1)
    task = ClassificationTask()
    threat = Threat("linf", 0.05)
    one = Square(threat, queries=30)(network, images, target, task, generator=seeded())
    other = Square(threat, queries=30, loss=lambda points, progress: -points_margin(points))(
        network, images, target, task, generator=seeded()
    )
    assert torch.equal(one.images, other.images)


def points_margin(points) -> Tensor:  # type: ignore[no-untyped-def]
    logits, labels = points.logits[..., 0], points.labels
    others = logits.masked_fill(torch.nn.functional.one_hot(labels[:, 0], 3).bool(), -math.inf)
    return logits.gather(1, labels)[:, 0] - others.amax(1)


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    channels=st.integers(1, 3),
    norm=st.sampled_from(["l2", "linf"]),
    seed=st.integers(0, 99),
)
def test_any_shape_stays_within_its_budget(shape: list[int], channels: int, norm: str, seed: int) -> None:
    images = torch.rand(2, channels, *shape, generator=seeded(seed))
    attacked = (channels - 1,)
    network = LinearNetwork((channels, *shape), dtype=torch.float32, bias=1000.0)
    threat = Threat(norm, 0.4, box=(0.0, 1.0), channels=attacked, unit="norm")
    result = Square(threat, queries=6)(network, images, torch.ones(2), LinearTask(), generator=seeded(seed))
    delta = result.images.double() - images.double()
    assert (threat.size(delta) <= 0.4 * (1 + 1e-5)).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert torch.equal(result.images[:, :-1], images[:, :-1])


@pytest.mark.parametrize(
    "settings", [{"queries": 0}, {"together": 0}, {"p_init": 0.0}, {"p_init": 1.5}, {"until": "x"}, {"mode": "x"}]
)
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))}: received"):
        Square(Threat("linf", 1.0), **settings)


def test_a_generator_and_a_spatial_axis_are_needed() -> None:
    network, attack = LinearNetwork((4,)), Square(Threat("linf", 1.0), queries=1)
    with pytest.raises(InputError, match="^generator: received None"):
        attack(network, torch.zeros(1, 1, 4), torch.ones(1), LinearTask())
    with pytest.raises(InputError, match=r"^images: received \(1, 4\)"):
        attack(network, torch.zeros(1, 4), torch.ones(1), LinearTask(), generator=seeded())


class Exact(nn.Module):
    """Whole numbers on images in eighths: no batch size changes a bit. Two classes, with many ties and local optima."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        weight = torch.randint(-3, 4, (6, entries), generator=seeded(5)).double()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (8 * x.flatten(1) @ self.weight.T).round()
        return torch.stack([hidden[:, :3].abs().sum(1), hidden[:, 3:].abs().sum(1)], 1)


class ExactVoxels(nn.Module):
    """The same for a segmentation with two classes: a voxel's sum with its neighbours on the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        summed = x + x.roll(1, -1) + 2 * x.roll(2, -1)
        return torch.cat([torch.zeros_like(x), summed.round(decimals=1)], 1)


def one_after_the_other(
    attack: Square, network: nn.Module, images: Tensor, target: Tensor, task: ClassificationTask | SegmentationTask
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 as the paper writes it: every proposal judged, one query and one sample after the other."""
    threat, radius, stream = attack.threat, attack.threat.radius(images), seeded()
    start = (stripes if threat.norm == "linf" else tiles)(threat, images, radius, stream)
    draws = torch.stack(
        [torch.rand(len(images), 2 * (images.ndim - 2) + 2, generator=stream) for _ in range(attack.queries)]
    )
    kept, kept_margin = [], []
    for i in range(len(images)):
        row, clean, label = slice(i, i + 1), images[i : i + 1], target[i : i + 1]
        current, highest, strongest, worst = start[row], -math.inf, clean, (True, math.inf, math.inf)
        for query in range(attack.queries + 1):
            proposal = current
            if query:
                window = Window(images, threat.channels, attack._sides(images, query - 1))
                if threat.norm == "linf":
                    entries, values = redrawn(threat, images, radius, torch.tensor([i]), window, draws[query - 1, row])
                    proposal = current.flatten(1).scatter(1, entries, values).view_as(current)
                else:
                    proposal = moved(threat, clean, current, radius[row], window, draws[query - 1, row])
            output = network(proposal)
            loss, margin = float(attack._loss(task, output, label)), float(task.margin(output, label))
            right = bool(task.correct(output, label))
            if loss > highest or (not right and worst[0]):
                highest, current = loss, proposal
            if (right, margin, -loss) < worst:
                strongest, worst = proposal, (right, margin, -loss)
            if not right and (attack.until == "wrong" or margin <= task.lowest_margin):
                break
        kept.append(strongest)
        kept_margin.append(worst[1])
    return torch.cat(kept), torch.tensor(kept_margin).double()


@pytest.mark.parametrize(("until", "count"), [("wrong", 3), ("lowest", 2)])
@pytest.mark.parametrize(
    "threat",
    [
        Threat("linf", 0.125, unit="norm"),
        Threat("linf", 0.25, box=(0.0, 1.0), unit="norm"),
        Threat("l2", 0.5, unit="norm"),
    ],
    ids=["linf", "linf box", "l2"],
)
def test_looking_ahead_and_leaving_out_change_no_bit(threat: Threat, until: str, count: int) -> None:
    """Against the paper's algorithm, one query after the other; in L-inf far fewer proposals have to be judged."""
    network, task = Exact(36), ClassificationTask()
    images = torch.randint(0, 9, (count, 1, 6, 6), generator=seeded(3)).double() / 8
    target = network(images).argmax(1)
    expected, margin = one_after_the_other(Square(threat, 120, until=until), network, images, target, task)
    judged = []
    for together in (1, 8, 64):
        attack = Square(threat, 120, until=until, together=together)
        result = attack(network, images, target, task, generator=seeded())
        assert torch.equal(result.images, expected)
        assert torch.equal(result.margin, margin)
        judged.append(result.passes.forward)
        assert result.passes.forward <= count * attack.most_passes().forward
    if until == "lowest":
        assert judged[0] < 0.6 * count * 121 if threat.norm == "linf" else judged[0] == count * 121


@pytest.mark.parametrize("until", ["wrong", "lowest"])
@pytest.mark.parametrize("shape", [(1, 6, 8), (1, 4, 4, 5)])
def test_a_segmentation_keeps_its_result(shape: tuple[int, ...], until: str) -> None:
    """Its loss may fall at the first wrong image, and its lowest Dice need not have the largest loss."""
    images = torch.randint(-8, 9, (3, *shape), generator=seeded(4)).double() / 8
    network = ExactVoxels()
    target = network(images).argmax(1, keepdim=True)
    task = SegmentationTask(lambda output, target: output.mean(), SegmentationSettings(threshold=0.7))
    threat = Threat("linf", 0.25, unit="norm")
    expected, margin = one_after_the_other(Square(threat, 120, until=until), network, images, target, task)
    for together in (1, 64):
        attack = Square(threat, 120, until=until, together=together)
        result = attack(network, images, target, task, generator=seeded())
        assert torch.equal(result.images, expected)
        torch.testing.assert_close(result.margin, margin)


class Stubborn(nn.Module):
    """Always the same answer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


def test_what_a_search_without_success_judges() -> None:
    """By hand: 4 voxels, windows of one. The start, and its 4 neighbours with one sign changed; in L2 all proposals."""
    images, target, task = torch.zeros(3, 1, 4), torch.zeros(3).long(), ClassificationTask()
    for norm, passes in (("linf", 3 * (1 + 4)), ("l2", 3 * (1 + 200))):
        attack = Square(Threat(norm, 0.5, unit="norm"), 200, p_init=1 / 4, together=1)
        result = attack(Stubborn(), images, target, task, generator=seeded())
        assert result.passes.forward == passes
    # Nothing is accepted, so nothing is made again, however far it looks ahead.
    result = Square(Threat("l2", 0.5, unit="norm"), 200, p_init=1 / 4)(
        Stubborn(), images, target, task, generator=seeded()
    )
    assert result.passes.forward == 3 * (1 + 200)


class Yielding(nn.Module):
    """Every image is worse than all before it, also than those before it in its batch, so each proposal is accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.judged = 0
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        lead = 1e6 - torch.arange(self.judged, self.judged + len(x)).double()
        self.judged += len(x)
        self.batches.append(len(x))
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def test_looking_ahead_wastes_no_more_than_it_may() -> None:
    """The worst case, in which every proposal is accepted and all that were made ahead are made again."""
    network, attack = Yielding(), Square(Threat("l2", 0.5, unit="norm"), 200)
    images = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    result = attack(network, images, torch.zeros(1).long(), ClassificationTask(), generator=seeded())
    assert 201 < result.passes.forward <= attack.most_passes().forward == 201 + 200 // WASTE
    assert max(network.batches) == 2  # it looks ahead by two at least, and soon not at all


def test_in_train_mode_there_is_no_looking_ahead() -> None:
    attack = Square(Threat("linf", 0.5, unit="norm"), 200, mode="train")
    network = Yielding()
    attack(network, torch.zeros(2, 1, 6, 6).double(), torch.zeros(2).long(), ClassificationTask(), generator=seeded())
    assert network.batches == [2] * 201
    assert attack.most_passes().forward == 201


def test_between_equals_the_first_proposal_is_the_strongest() -> None:
    rows = torch.tensor([1, 0, 1, 0, 1, 0])
    wrong = torch.tensor([False, True, False, True, False, False])
    margin = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, -5.0])
    loss = torch.tensor([9.0, 3.0, 4.0, 3.0, 4.0, 9.0])
    found = strongest_of_each(rows, Verdict(wrong, margin, torch.zeros(6).bool()), loss)
    assert found.tolist() == [1, 2]

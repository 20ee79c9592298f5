"""Square attack: random search over windows of the image, without a gradient.

Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV
2020: Algorithm 1 (search), 2 (L-inf windows), 3 and equation 2 (L2 windows), section 3.2 (schedule, starts). Written
there for square images; here for any number of axes of any lengths, with a window of its own for every sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from monai_adv.attacks.base import (
    AttackResult,
    BaseAttack,
    Loss,
    Problem,
    Strongest,
    Until,
    Verdict,
    one_of,
    sample_loss,
    sync_interval,
)
from monai_adv.attacks.losses import margin
from monai_adv.attacks.square_windows import Window, moved, redrawn, stripes, tiles
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Output, Target, Task, take
from monai_adv.threats import per_sample

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these iterations the share of voxels in a window is halved (section 3.2, not rescaled to ``queries``)."""

WASTE = 10
"""Looking ahead may add one pass in vain to so many queries."""

TOGETHER_ENTRIES = 2**15
"""Entries (channels times voxels) of all images in a forward that looks ahead: a larger one costs as much per image."""


@dataclass(frozen=True)
class Square(BaseAttack[AttackResult]):
    """Random search: a window of the perturbation is redrawn, and kept where that raises the loss.

    Args:
        threat: norm, radius, box, channels.
        queries: redrawn windows, each one forward; the start is one forward more.
        p_init: share of the voxels in the first windows, in (0, 1].
        until: a sample leaves when it is ``"wrong"``, or when its score cannot fall further (``"lowest"``).
        loss: what must rise, of the task's points; ``None``: for one point per sample (classification) the negative
            logit margin, as in the paper; otherwise ``task.sample_loss``.
        together: where fewer samples are left than this, proposals of several queries go through the network together
            (never more than 2^15 voxels, as 8 images of 64 x 64); 1: one query after the other. It saves time and
            changes nothing; in train mode, where the images of a batch may see each other, it is not done.
        mode: network mode during the attack, restored afterwards.

    In L-inf on a CPU a proposal is left out if it changes nothing, or if its image was judged before: a network that
    answers alike each time would not accept it, so the result is the same. A window has ``round((p * voxels) ** (1 /
    d))`` voxels along each of d axes, cut to the axis: for a square image the paper's. The L-inf start is constant
    along all axes but the last (the paper's vertical stripes).

    Example:
        Without a box every L-inf perturbation is at its bound everywhere:

        >>> from monai_adv.tasks import ClassificationTask
        >>> from monai_adv.threats import Threat
        >>> threat = Threat("linf", 0.5, unit="norm")
        >>> attack, network = Square(threat, queries=20), nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
        >>> images, seed = torch.zeros(2, 1, 4, 6), torch.Generator().manual_seed(0)
        >>> result = attack(network, images, torch.tensor([0, 1]), ClassificationTask(), generator=seed)
        >>> result.images.abs().unique()
        tensor([0.5000])
    """

    queries: int = 5000
    p_init: float = 0.8
    until: Until = "wrong"
    loss: Loss | None = None
    together: int = 64
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        for name, whole in (("queries", self.queries), ("together", self.together)):
            if whole < 1:
                raise InputError.of(name, whole, "a whole number >= 1")
        if not 0 < self.p_init <= 1:
            raise InputError.of("p_init", self.p_init, "a number in (0, 1]", "it is the share of voxels in a window")
        one_of("until", self.until, get_args(Until))
        one_of("mode", self.mode, get_args(Mode))

    @property
    def random(self) -> bool:
        """Always."""
        return True

    @torch.no_grad()
    def run(self, problem: Problem) -> AttackResult:
        """The search; ``dead`` stays false: there is no gradient.

        Raises:
            InputError: images without a spatial axis.
        """
        shape = tuple(problem.images.shape)
        if len(shape) < 3:
            raise InputError.of("images", shape, "(B, C, *spatial) with at least one spatial axis")
        with frozen(problem.network, self.mode) as model:
            search = _Search(self, model, problem)
            search.run()
        best = search.best
        dead = torch.zeros_like(best.wrong)
        return AttackResult(best.images, best.wrong, best.margin, dead, best.broken, search.passes)

    def most_passes(self) -> Passes:
        """One forward per query, one for the start, and what looking ahead may waste."""
        return Passes(forward=self.queries + 1 + self._most_wasted())

    def _most_wasted(self) -> int:
        return self.queries // WASTE if self.together > 1 and self.mode == "eval" else 0

    def _sides(self, images: Tensor, iteration: int) -> tuple[int, ...]:
        shape = images.shape[2:]
        side = max(1, round((share(self.p_init, iteration) * math.prod(shape)) ** (1 / len(shape))))
        if self.threat.norm == "l2":  # the two peaks of its windows need a centre
            side = max(side + 1 - side % 2, 3)
        return tuple(min(side, length) for length in shape)

    def _loss(self, task: Task, output: Output, target: Target) -> Tensor:
        if self.loss is None:
            points = task.points(output, target)
            if points.labels.shape[1] == 1:
                return margin(points, 0.0)
        return sample_loss(task, self.loss, output, target)


class _Search:
    """The search of a batch.

    The random numbers of a query do not depend on what came before it, so proposals of several queries can be made from
    one image and judged in one forward. Up to the first that is accepted they are what one query after the other would
    have made; those after it are made again, from the new image.

    Attributes:
        best: strongest image of each sample.
        current, losses: the image of each sample whose windows are redrawn, and its loss.
        judged: which images the network has judged already.
        passes: made so far.
        wasted: those of them whose proposals were made again.
        worth, rises: running shares of the proposals that had to be judged, and of those that were accepted.
    """

    def __init__(self, attack: Square, network: nn.Module, problem: Problem) -> None:
        images, radius, generator = problem.images, problem.radius, problem.generator
        assert generator is not None
        self.attack, self.network, self.images = attack, network, images
        self.target, self.task = problem.target, problem.task
        self.threat, self.radius, self.generator = attack.threat, radius, generator
        linf = self.threat.norm == "linf"
        self.best = Strongest(images, problem.task, attack.until)
        self.current = (stripes if linf else tiles)(self.threat, images, radius, generator)
        self.losses = torch.full_like(self.best.margin, -torch.inf)
        # To leave proposals out makes a GPU wait; in train mode they change what the others of the batch get.
        leaves_out = linf and images.device.type == "cpu" and attack.mode == "eval"
        self.judged = Judged(images, attack.queries) if leaves_out else None
        self.passes = Passes()
        self.wasted = 0
        self.worth, self.rises = 1.0, 0.5

    def run(self) -> None:
        """All queries, a few at a time, for those that are not finished."""
        attack, images = self.attack, self.images
        active = padded(torch.arange(len(images), device=images.device), self.network)
        window = Window(images, self.threat.channels, attack._sides(images, 0))
        self._judge(active, active, torch.zeros_like(active), self.current[active], 1, None)
        interval = sync_interval(images.device)
        query, next_look = 0, 0
        while query < attack.queries:
            if query >= next_look:
                active, next_look = padded(self.best.running(), self.network), query + interval
                if len(active) == 0:
                    return
            sides = attack._sides(images, query)
            if sides != window.sides:
                window = Window(images, self.threat.channels, sides)
            ahead = self._ahead(query, len(active))
            self._queries(window, active, ahead)
            query += ahead

    def _ahead(self, query: int, active: int) -> int:
        """How many queries to take together: enough to fill a forward, few enough that hardly any is made again."""
        attack, images = self.attack, self.images
        room = min(attack.together, TOGETHER_ENTRIES // images[0].numel()) / (active * self.worth)
        # Were each of n accepted, n - 1 would be made again, then n - 2, ...
        left = max(0, len(images) * attack._most_wasted() - self.wasted) / active  # 0 in train mode: one at a time
        affordable = (1 + math.sqrt(1 + 8 * left)) / 2
        ahead = int(min(room, max(2.0, 1 / self.rises), affordable, attack.together, attack.queries - query))
        sides = attack._sides(images, query)
        while ahead > 1 and attack._sides(images, query + ahead - 1) != sides:
            ahead -= 1
        return max(1, ahead)

    def _queries(self, window: Window, active: Tensor, ahead: int) -> None:
        """The next queries of the active samples."""
        images = self.images
        # Two places, an axis, and a sign per attacked channel; drawn also for samples that have left: what a sample
        # gets must not depend on its neighbours.
        shape = len(images), 2 * (images.ndim - 2) + 1 + len(window.channels)
        draws = torch.stack([torch.rand(shape, generator=self.generator, device=images.device) for _ in range(ahead)])
        number = torch.arange(ahead, device=images.device)[:, None]
        settled = torch.zeros_like(active)
        query, which = settled, torch.arange(len(active), device=images.device)
        rises = 0
        while True:
            if ahead > 1:
                query, which = (number >= settled).nonzero(as_tuple=True)
                if len(which) == 0:
                    break
            accepted = self._propose(window, active, which, query, draws)
            if ahead == 1:
                break
            rises += int((accepted < ahead).sum())
            settled = torch.where(self.best.finished()[active], ahead, accepted + 1)
        if ahead > 1:
            self.rises = 0.8 * self.rises + 0.2 * max(rises / (ahead * len(active)), 1e-3)

    def _propose(self, window: Window, active: Tensor, which: Tensor, query: Tensor, draws: Tensor) -> Tensor:
        """Make proposals of the samples ``active[which]`` for these queries, and judge them; see :meth:`_judge`."""
        ahead, rows = len(draws), active[which]
        worth, key = torch.arange(len(rows), device=rows.device), None
        if self.threat.norm == "linf":
            entries, values = redrawn(self.threat, self.images, self.radius, rows, window, draws[query, rows])
            if self.judged is not None:
                key = self.judged.keys(rows, entries, self.current.flatten(1)[rows[:, None], entries], values)
                worth = (~self.judged.knows(rows, key)).nonzero()[:, 0]
                self.worth = 0.95 * self.worth + 0.05 * max(len(worth) / len(rows), 1e-3)
                if len(worth) == 0:
                    return torch.full_like(active, ahead)
        if ahead > 1 or len(worth) < len(rows):
            worth = padded(worth, self.network)
        rows, which, query = rows[worth], which[worth], query[worth]
        if self.threat.norm == "linf":
            current = self.current[rows]
            proposal = current.flatten(1).scatter_(1, entries[worth], values[worth]).view_as(current)
        else:
            images, current, radius = self.images[rows], self.current[rows], self.radius[rows]
            proposal = moved(self.threat, images, current, radius, window, draws[query, rows])
        return self._judge(active, which, query, proposal, ahead, None if key is None else key[worth])

    def _judge(
        self, active: Tensor, which: Tensor, query: Tensor, proposal: Tensor, ahead: int, key: Tensor | None
    ) -> Tensor:
        """Judge proposals of the samples ``active[which]``, query by query, and take the first of each that is better.

        Returns:
            ``(len(active),)`` its query; ``ahead`` where there is none.
        """
        best, rows = self.best, active[which]
        labels = take(self.target, rows)
        output = self.network(any_batch_size(proposal, self.network))
        if self.passes.forward == 0:
            self.task.check(output, labels)
        self.passes.forward += len(proposal)
        loss = self.attack._loss(self.task, output, labels).to(self.losses)
        verdict = best.judge(output, labels)
        accepted = (loss > self.losses[rows]) | (verdict.wrong & ~best.wrong[rows])
        first = query
        if ahead > 1:
            stop = torch.where(accepted | best.ends(verdict), query, ahead)
            first = torch.full_like(active, ahead).scatter_reduce(0, which, stop, "amin")
            # What comes after it would not have been proposed.
            valid = (query <= first[which]).nonzero()[:, 0]
            self.wasted += len(rows) - len(valid)
            one = valid[strongest_of_each(rows[valid], verdict.of(valid), loss[valid])]
            best.keep(rows[one], proposal[one], verdict.of(one), loss[one])
            if self.judged is not None and key is not None:
                self.judged.add(rows[valid], key[valid])
            taken = (accepted & (query == first[which])).nonzero()[:, 0]
            rows, proposal, loss, accepted = rows[taken], proposal[taken], loss[taken], accepted[taken]
            key = None if key is None else key[taken]
        else:
            best.keep(rows, proposal, verdict, loss)
            if self.judged is not None and key is not None:
                self.judged.add(rows, key)
        before = self.losses[rows]
        self.losses[rows] = torch.where(accepted, loss, before)
        self.current[rows] = torch.where(per_sample(accepted, proposal), proposal, self.current[rows])
        if self.judged is not None and key is not None:
            self.judged.move(rows[accepted], key[accepted])
            # The first wrong image is taken whatever its loss: what was rejected before may now be better.
            self.judged.forget(rows[accepted & ~(loss >= before)])
        return first


class Judged:
    """Which images the network has judged, of each sample: they cannot be accepted again, because losses only rise.

    An image is known by 64 bits: every voxel that is raised adds a random number of its own, so that two images are
    taken for each other with a chance of 2^-64. What shares a slot with a later image is forgotten, and judged again.

    Args:
        images: clean ones.
        queries: for how many there must be slots.
    """

    def __init__(self, images: Tensor, queries: int) -> None:
        low, high = -(2**63), 2**63 - 1
        entries = images[0].numel()
        self.values = torch.randint(low, high, (entries,), generator=torch.Generator().manual_seed(0))
        self.slots = torch.full((len(images), 2 ** (2 * queries).bit_length()), low)
        self.now = torch.zeros(len(images), dtype=torch.long)  # keys of the images whose windows are redrawn
        self.add(torch.arange(len(images)), self.now)

    def keys(self, rows: Tensor, entries: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """``(b,)`` keys of the current images of these samples with other values at some entries.

        Args:
            rows: ``(b,)`` samples.
            entries: ``(b, n)`` indices into the flattened sample.
            old, new: ``(b, n)`` values there, each at one of its two bounds.
        """
        change = (new > old).to(torch.int8) - (new < old).to(torch.int8)
        return self.now[rows] + self.values[entries].mul_(change).sum(1)

    def knows(self, rows: Tensor, keys: Tensor) -> Tensor:
        """``(b,)`` bool: judged before."""
        return self.slots[rows, self._slot(keys)] == keys

    def add(self, rows: Tensor, keys: Tensor) -> None:
        """These were judged."""
        self.slots[rows, self._slot(keys)] = keys

    def move(self, rows: Tensor, keys: Tensor) -> None:
        """These are the current images now."""
        self.now[rows] = keys

    def forget(self, rows: Tensor) -> None:
        """Nothing of these samples was judged, but their current image."""
        self.slots[rows] = -(2**63)
        self.add(rows, self.now[rows])

    def _slot(self, keys: Tensor) -> Tensor:
        return keys & (self.slots.shape[1] - 1)


def strongest_of_each(rows: Tensor, verdict: Verdict, loss: Tensor) -> Tensor:
    """One index for each sample in ``rows``: wrong before right, the smallest margin, the largest loss, the first.

    Example:
        >>> rows = torch.tensor([0, 1, 0])
        >>> verdict = Verdict(torch.tensor([False, False, True]), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3).bool())
        >>> strongest_of_each(rows, verdict, torch.zeros(3))
        tensor([2, 1])
    """
    order = torch.arange(len(rows), device=rows.device)
    for key in (-loss, verdict.margin, (~verdict.wrong).long(), rows):
        order = order[key[order].argsort(stable=True)]
    ordered = rows[order]
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return order[begins]


def share(p_init: float, iteration: int) -> float:
    """Share of the voxels in a window.

    Example:
        >>> [share(0.8, i) for i in (0, 10, 11, 51)]
        [0.8, 0.8, 0.4, 0.2]
    """
    return float(p_init / 2 ** sum(iteration > h for h in HALVINGS))

"""The runner: one case through all levels and attacks, stage by stage, each kept in the store before the next begins.

A stage attacks the inputs that the stages before it have not finished, from the clean image or, to polish it, from the
worst one so far. The worst image of each input is kept; the worst of the next lower radius of the same norm takes part
as well, because it lies inside the larger ball, so that worst scores never rise with the radius. What an input gets
depends on the seed, its case, level and attack, and on nothing else: not on other cases, models, workers, or
interruptions.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from monai_adv.attacks import budget
from monai_adv.attacks.base import AttackResult, Until, continued, is_finished, judged, not_finite
from monai_adv.attacks.corruptions import CORRUPTIONS, Corruption
from monai_adv.errors import AttackError, InputError, PlaceError, in_a_sentence
from monai_adv.evaluation.certify import both_bounds
from monai_adv.evaluation.certify.kept import is_certified
from monai_adv.evaluation.checks.probes import consistency
from monai_adv.evaluation.models.protocol import Case, Model
from monai_adv.evaluation.models.smoothed import SmoothedVersion
from monai_adv.evaluation.records import CLEAN, Level, Record
from monai_adv.evaluation.search.blame import Blame, FaultyAttack
from monai_adv.evaluation.search.plan import AttackPlan, Stage, corruption_entry
from monai_adv.evaluation.search.variations import measured, steps_of, variation_entry
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import Saved, State, Store
from monai_adv.metrics.score import Score
from monai_adv.network_state import device_of, frozen
from monai_adv.networks.fused import fused
from monai_adv.random_streams import random_stream, seed_of
from monai_adv.tasks import Task, take, to_device
from monai_adv.threats import Threat, per_sample
from monai_adv.variations import Step

INCONSISTENT = 1e-4
"""From what share of the outputs' standard deviation on a model answers differently from call to call."""


def run_case(
    model: Model,
    name: str,
    plan: AttackPlan,
    store: Store,
    tell: Callable[[], None] = lambda: None,
) -> bool:
    """Do all that the store does not have yet for one case. Whatever it raises is a fault of this case alone.

    Args:
        model: the model with its data.
        name: of the case.
        plan: of the attacks on this model.
        store: what is finished is read from it and written to it.
        tell: called after every record, also for those that the store had.

    Returns:
        whether the case could be used; if not, the reason is in the store.

    Raises:
        PlaceError: the store cannot be written.
        FaultyAttack: an error of ours, which no case is to blame for.
        AttackError: one of a plan of the user's own.
    """
    todo = _Run(model, name, plan, store, tell)
    try:
        todo.all_levels()
    except (PlaceError, FaultyAttack, AttackError):
        raise
    except Exception as error:  # of the model's own code, for this one image
        lines = "" if isinstance(error, InputError) else traceback.format_exc()
        store.add_problem(model.name, name, in_a_sentence(error), lines)
        return False
    store.clear_problem(model.name, name)
    return True


def check_threat(threat: Threat, images: Tensor) -> None:
    """Refuse a level that makes no sense for these images.

    Raises:
        InputError: a box that does not contain them, a radius larger than the box, or one that single precision
            cannot resolve.
    """
    threat.check(images)
    radius = float(threat.radius(images).max())
    if threat.box is not None and threat.boxed is None:
        widest = threat.box[1] - threat.box[0]
        if threat.norm == "l2":
            widest *= math.sqrt(_entries(threat, images))
        if radius > widest:
            raise InputError.of("eps", radius, f"at most {widest:.6g}, where the ball is larger than the box")
    if float(_rounding(threat, images).max()) > 0.01 * radius:
        raise InputError.of(
            "eps", radius, "a radius that is not lost in the rounding of these images",
            f"their largest value is {float(images.abs().max()):.4g}; give a larger radius or float64 images",
        )  # fmt: skip


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Fix what else decides the last digits: the number of CPU threads, and which kernels a GPU uses."""
    before, cudnn = torch.get_num_threads(), torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cudnn.deterministic, cudnn.benchmark = flags


@dataclass
class _Run:
    """One case on its way through the levels; it is loaded when something is left to do."""

    model: Model
    name: str
    plan: AttackPlan
    store: Store
    tell: Callable[[], None]
    until: Until = field(init=False)
    _case: Case | None = None
    _fused: nn.Module | None = None
    _load_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.until = "wrong" if self.model.kind == "classification" else "lowest"

    @property
    def settings(self) -> EvaluationSettings:
        return self.plan.settings

    @property
    def case(self) -> Case:
        if self._case is None:
            start = time.perf_counter()
            self._case = self.model.load(self.name)
            for level in self.settings.levels:
                check_threat(self._case.threat(level), self._case.images)
            self._load_seconds = time.perf_counter() - start
        return self._case

    @property
    def searched(self) -> nn.Module:
        """With ``fuse``, the copy that attacks see; all that is reported comes from the case's own network."""
        if self._fused is None:
            self._fused = fused(self.case.network, self.case.images[: self.settings.batch_size])
        return self._fused

    @property
    def blame(self) -> Blame:
        """For what its attacks do."""
        return Blame(self.name, self.settings.attacks, self._networks)

    def _networks(self) -> list[nn.Module]:
        return [self.case.network, *([self._fused] if self._fused is not None else [])]

    def all_levels(self) -> None:
        if isinstance(self.model, SmoothedVersion) and not is_certified(self.store, self.model.name, self.name):
            both_bounds.certify(self.model, self.case, self.store)
        clean = self._saved("", CLEAN) or self._clean()
        self.tell()
        for corruption in self.plan.corruptions:
            self._corruption(corruption, clean)
        for step in steps_of(self.settings.variations, self.model):
            self._variation(step, clean)
        for chain in self.settings.ascending():
            lower: Saved | None = None
            for level in chain:
                lower = self._level(level, clean, lower)
            self.store.drop_images(lower)
        self.store.drop_all_images(self.model.name, self.name)

    def _saved(self, level: str, stage: str) -> Saved | None:
        return self.store.saved(self.model.name, self.name, level, stage)

    def _clean(self) -> Saved:
        """The clean record; an input that is finished here is never attacked."""
        case, start = self.case, time.perf_counter()
        lowest = case.task.lowest_margin
        finished, broken = [], []
        device = device_of(case.network)
        with frozen(case.network) as network, torch.no_grad():
            for chosen in self._batches(torch.arange(len(case.images))):
                output = network(case.images[chosen].to(device))
                target = to_device(take(case.target, chosen), device)
                margin, right = case.task.margin(output, target), case.task.correct(output, target)
                bad = not_finite(output)
                margin, wrong = torch.where(bad, lowest, margin), bad | ~right
                done = is_finished(wrong, margin, lowest, self.until)
                finished.append((done | ~case.task.scorable(target)).cpu())
                broken.append(bad.cpu())
        scores = tuple(case.scores(case.images))
        done, notes = torch.cat(finished), getattr(case, "notes", ())
        record = Record(
            self.model.name, self.name, "", CLEAN, scores, scores,
            forward=len(case.images), seconds=time.perf_counter() - start + self._load_seconds,
            broken=int(torch.cat(broken).sum()), settings={"notes": list(notes)} if notes else {},
        )  # fmt: skip
        return self.store.commit_record(record, done)

    def _corruption(self, corruption: Corruption, clean: Saved) -> None:
        """The record of a natural corruption, unless there is one or it does not exist for these axes."""
        entry = corruption_entry(corruption)
        name, severity = entry.name, entry.severity
        if self._saved(severity, name) is None:
            case, start = self.case, time.perf_counter()
            if case.images.ndim - 2 not in CORRUPTIONS[corruption.name].axes:
                return
            threat = case.threat(self.settings.levels[0])
            seeds = [seed_of(self.settings.seed, self.name, i) >> 32 for i in range(len(case.images))]
            corrupted = replace(corruption, channels=threat.channels)(case.images, seeds)
            if threat.beyond != "refuse":  # what scanners do is clipped like any other file
                corrupted = case.images + threat.only_free(
                    threat.clip(corrupted, case.images) - case.images, case.images
                )
            scores = tuple(case.scores(corrupted))
            record = Record(
                self.model.name, self.name, severity, name, scores, scores,
                forward=len(case.images), seconds=time.perf_counter() - start,
                settings={"meaning": CORRUPTIONS[corruption.name].meaning,
                          "level": CORRUPTIONS[corruption.name].levels[corruption.severity - 1]},
            )  # fmt: skip
            self.store.commit_record(record, torch.tensor(clean.finished))
        self.tell()

    def _variation(self, step: Step, clean: Saved) -> None:
        """The record of a variation, unless there is one; with pictures of the first case."""
        entry = variation_entry(step)
        attack, severity = entry.name, entry.severity
        if self._saved(severity, attack) is None:
            record, pictures = measured(self.model, self.name, step, self.settings.seed)
            if self.name == self.settings.select(self.model.cases)[0]:
                self.store.add_pictures(self.model.name, self.name, f"{severity}.{attack}", pictures)
            self.store.commit_record(record, torch.tensor(clean.finished))
        self.tell()

    def _level(self, level: Level, clean: Saved, lower: Saved | None) -> Saved:
        """All stages of one level; returns the last one."""
        names = self.plan.names(level)
        done: Saved | None = None
        for name in names:
            if (saved := self._saved(level.key, name)) is None:
                break
            done = saved
            self.tell()
        count = names.index(done.record.attack) + 1 if done else 0
        if done is not None and count == len(names) and self.store.has_pictures(*self._place(level)):
            return done
        state = self.store.state(done) if done else self._start(clean, lower)
        threat = self.case.threat(level)
        before = done or lower
        stages = self.plan.against(level, threat)
        for number, stage in enumerate(stages[count:], count):
            # A score that inputs share is attacked best if it is known how low it can get.
            known = any(earlier.family == "white-box" for earlier in stages[:number])
            record, state, changed = self._stage(level, threat, stage, state, known)
            done = self.store.commit(record, state, None if changed or done is None else done.images)
            if before is not None and before.images != done.images:
                self.store.drop_images(before)
            before = done
            self.tell()
        assert done is not None
        if isinstance(self.model, SmoothedVersion):
            both_bounds.judge(self.model, self.case, level, state.images, self.store)
        self.store.add_pictures(*self._place(level), self.case.picture(state.images))
        return done

    def _place(self, level: Level) -> tuple[str, str, str]:
        return self.model.name, self.name, level.key

    def _start(self, clean: Saved, lower: Saved | None) -> State:
        """A level starts from the clean image, or from the worst one of the next lower level."""
        finished = torch.tensor(clean.finished)
        if lower is None:
            return State(self.case.images.clone(), finished, torch.zeros_like(finished), clean.record.worst)
        images = self.store.state(lower).images
        carried = (images != self.case.images).flatten(1).any(1)
        return State(images, finished | _at_bottom(lower.record.worst, len(finished)), carried, lower.record.worst)

    def _stage(
        self, level: Level, threat: Threat, stage: Stage, state: State, known: bool
    ) -> tuple[Record, State, bool]:
        """One attack on the inputs that are not finished.

        Returns:
            its record, the state after it, and whether any worst image changed.
        """
        case, start = self.case, time.perf_counter()
        task = case.aim(state.images) if known else case.task
        attack = partial(self._attack, level, threat, stage, state, task)
        attacked = state.images.clone()
        finished = state.finished.clone()
        forward = backward = dead = broken = 0
        largest = 0.0
        chosen_total = 0
        for chosen in self._batches((~state.finished).nonzero()[:, 0]):
            clean = case.images[chosen]
            with self.blame.during(stage.name):
                result = self._confirmed(attack, task, chosen) if self.settings.fuse else attack(case.network, chosen)
            images = result.images.detach().cpu()
            share, faults = budget.used(threat, clean, images)
            self.blame.refuse(stage.name, faults)
            largest = max(largest, share)
            attacked[chosen] = images
            low = is_finished(result.wrong, result.margin, task.lowest_margin, self.until)
            finished[chosen] |= low.cpu()
            chosen_total += len(chosen)
            forward += result.passes.forward
            backward += result.passes.backward_input
            dead += int(result.dead.sum())
            broken += int(result.broken.sum())
        if chosen_total:
            own = tuple(case.scores(attacked))
            images = case.combine(state.images, attacked)
            worst = self._lowest(stage, images, tuple(case.scores(images)), own, state.scores)
            if len(own) == len(finished):  # an attack's success counts only where the score confirms it
                finished &= state.finished | torch.tensor([s.remaining == 0 for s in own])
            finished |= _at_bottom(worst, len(finished))
        else:
            images, own, worst = state.images, state.scores, state.scores
        changed = (images != state.images).flatten(1).any(1)
        carried = state.carried & ~changed
        record = Record(
            self.model.name, self.name, level.key, stage.name, own, worst,
            carried=float(carried.double().mean()), forward=forward, backward=backward,
            seconds=time.perf_counter() - start, attacked=chosen_total, dead=dead, broken=broken, largest=largest,
            settings=stage.settings(),
        )  # fmt: skip
        return record, State(images, finished, carried, worst), bool(changed.any())

    def _attack(
        self, level: Level, threat: Threat, stage: Stage, state: State, task: Task, network: nn.Module, chosen: Tensor
    ) -> AttackResult:
        """Of ``(b,)`` inputs of one batch; what is random depends on the batch, and not on who of it is chosen."""
        case, device, clean = self.case, device_of(self.case.network), self.case.images[chosen]
        radius = threat.radius(clean) - _rounding(threat, clean)
        result = continued(
            stage.attack, network, clean.to(device), to_device(take(case.target, chosen), device), task,
            worst=state.images[chosen].to(device), radius=radius.to(device),
            generator=random_stream(
                self.settings.seed, self.name, level.key, stage.name, int(chosen[0]) // self.settings.batch_size,
                device=device,
            ),
        )  # fmt: skip
        self.blame.refuse(stage.name, budget.shape_faults(result, clean))
        return result

    def _confirmed(
        self, attack: Callable[[nn.Module, Tensor], AttackResult], task: Task, chosen: Tensor
    ) -> AttackResult:
        """What an attack finds on the fused copy, repeated on the network itself where that does not confirm it.

        A claim ends the search for its input. One that only the last digits of the copy make must not, or the input
        would pass for robust though nobody has looked further.
        """
        network, result = self.case.network, attack(self.searched, chosen)
        rows = is_finished(result.wrong, result.margin, task.lowest_margin, self.until).nonzero()[:, 0].cpu()
        if len(rows):
            device = device_of(network)
            images, target = result.images.detach().cpu()[rows], take(self.case.target, chosen[rows])
            seen, _ = judged(network, images.to(device), to_device(target, device), task, self.until)
            rows = rows[~is_finished(seen.wrong, seen.margin, task.lowest_margin, self.until).cpu()]
        if not len(rows):
            return result
        again, parts = attack(network, chosen[rows]), {}
        for part in ("images", "wrong", "margin", "dead", "broken"):
            values = getattr(result, part).detach().cpu()
            parts[part] = values.index_copy(0, rows, getattr(again, part).detach().to(values))
        return AttackResult(**parts, passes=result.passes + again.passes)

    def _batches(self, chosen: Tensor) -> Iterator[Tensor]:
        """Those of the ``chosen`` inputs that lie in each batch; its boundaries do not depend on who is chosen."""
        for number in range(math.ceil(len(self.case.images) / self.settings.batch_size)):
            batch = chosen[torch.div(chosen, self.settings.batch_size, rounding_mode="floor") == number]
            if len(batch):
                yield batch

    def _lowest(
        self, stage: Stage, images: Tensor, worst: tuple[Score, ...], own: Sequence[Score], before: Sequence[Score]
    ) -> tuple[Score, ...]:
        """The scores of the worst images, which are no better than those of this attack, nor than those before it.

        A model that is random, or mixes the images of a batch, may score the same image better the next time: then the
        lowest score that was seen counts, and the red flags tell.

        Raises:
            FaultyAttack: an error of ours.
        """
        seen = list(zip(worst, own, before, strict=True))
        broken = next((low for low, *others in seen if any(low.remaining > o.remaining + 1e-6 for o in others)), None)
        if broken is None:
            return worst
        found = consistency(self.case, images.to(device_of(self.case.network)))
        if found.repeat <= INCONSISTENT and found.batch <= INCONSISTENT:
            raise FaultyAttack(f"{stage.name} on {broken.case}: the worst score {broken.score} is not the worst.")
        return tuple(min(scores, key=lambda s: s.remaining) for scores in seen)


def _at_bottom(worst: Sequence[Score], count: int) -> Tensor:
    """``(count,)`` bool: the inputs share one score, and it is 0 already."""
    return torch.full((count,), len(worst) == 1 and worst[0].remaining == 0)


def _rounding(threat: Threat, images: Tensor) -> Tensor:
    """``(B,)`` bound on what rounding ``images + perturbation`` adds to the perturbation's size.

    Attacks get a radius that is smaller by it: what is stored lies in the ball exactly, not nearly.
    """
    unit = torch.finfo(images.dtype).eps  # twice the error of one rounding
    radius = per_sample(threat.radius(images), images)
    largest = images.abs() + radius if threat.norm == "linf" else images
    return unit * (threat.size(largest) + threat.radius(images))


def _entries(threat: Threat, images: Tensor) -> int:
    channels = images.shape[1] if threat.channels is None else len(threat.channels)
    return channels * images[0, 0].numel()

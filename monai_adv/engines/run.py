"""What surrounds the defence in a training: where it starts, how long it lasts, its learning rate, price and end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from monai.handlers.lr_schedule_handler import LrScheduleHandler
from torch import Tensor, nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.method import CLEAN_PASSES, Method
from monai_adv.defenses.nothing_attacked import least_dice
from monai_adv.defenses.ranks import largest_of_ranks, on_any_rank
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.engines.best_robust import BestRobust, validator_of
from monai_adv.engines.robust_metric import RobustMetric
from monai_adv.engines.run_settings import RunSettings
from monai_adv.engines.starting_weights import attached, start_from
from monai_adv.errors import InputError
from monai_adv.network_state import frozen
from monai_adv.price import Clock, cheaper_way, dearer_later, forecast, price_line, refuse_another_price, whole_epochs
from monai_adv.tasks import SegmentationTask, Target

if TYPE_CHECKING:
    from monai_adv.engines.robust_trainer import RobustTrainer

LOOKED_AT = 8
"""Batches within which a model that is worth attacking shows it in one sample."""
CHEAPER = "From trained weights `preset: finetune` gets there for the price of one plain training."


def epochs_within(budget: float, plain_epochs: int, forwards: float) -> int:
    """How many epochs cost no more than a share of the plain training, on the same batches.

    Args:
        budget: 1: as many network passes as the plain training took.
        plain_epochs: of that training.
        forwards: passes per sample and step of ours, at most.

    Raises:
        InputError: it does not suffice for one epoch; says what does.

    Example:
        20 epochs at 3 forwards a sample pay for 6 at 10:

        >>> epochs_within(1.0, 20, 10)
        6
    """
    epochs = whole_epochs(budget * plain_epochs * CLEAN_PASSES / forwards)
    if epochs < 1:
        least = math.ceil(1000 * forwards / (plain_epochs * CLEAN_PASSES)) / 1000
        raise InputError.of(
            "budget", budget, f"at least {least:g}: one epoch at {forwards:.3g} forwards a sample",
            f"the plain training had {plain_epochs} epochs at {CLEAN_PASSES:g}; give a larger budget or fewer attack "
            "`steps`, or say `plain_epochs` if that training was longer than the config's max_epochs",
        )  # fmt: skip
    return epochs


class Run:
    """Asked by the trainer at each of its events, so that the order stands in one place, there.

    Args:
        settings: of the run.
        price: the method and its settings; None for a ready defence, whose cost nobody knows.
        now: a clock.
    """

    def __init__(
        self,
        settings: RunSettings,
        price: tuple[Method, DefenseSettings] | None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.settings, self._price, self._now = settings, price, now
        self.start: str | None = None
        self.best: BestRobust | None = None
        self.finished = 0
        self.figures: Mapping[str, float] = {}
        """Of the defence in the last epoch."""
        self._handlers: list[Any] = []
        self._rates: list[float] = []
        self._left_out = 0
        self._batches = self._judged = 0
        self._worth_it = False
        self._began: tuple[int, float] | None = None
        self._spent = 0.0  # seconds of the epochs that are done, validation included
        self._spent_before = 0.0  # those before a break

    @property
    def owns_schedule(self) -> bool:
        """Whether the learning rate or the length follows from the number of the epoch, so that it must be restored."""
        return self.settings.schedule != "bundle" or self.settings.budget is not None

    def kept(self, handlers: Sequence[Any]) -> list[Any]:
        """The bundle's handlers, without those that would change the learning rate beside our schedule."""
        self._handlers = list(handlers)
        if self.settings.schedule != "bundle":
            self._handlers = [h for h in handlers if not isinstance(h, LrScheduleHandler)]
        self._left_out = len(handlers) - len(self._handlers)
        return self._handlers

    def prepare(self, trainer: RobustTrainer, metric: Callable[[float | None, int, int | None], RobustMetric]) -> None:
        """Once the trainer exists: weights, number of epochs, learning rates, validation under attack.

        Args:
            trainer: whose handlers are attached.
            metric: makes the metric of another radius (None: that of the training), with steps and batches.

        Raises:
            InputError: weights, budget or validator that cannot be used.
        """
        run = self.settings
        if run.budget is not None and run.hours is None and self._price is not None:
            method, settings = self._price
            plain = run.plain_epochs or trainer.state.max_epochs
            self._plain_epochs = plain
            trainer.state.max_epochs = epochs_within(float(run.budget), plain, method.most(settings))
        groups = trainer.optimizer.param_groups
        # A scheduler with a warm-up has lowered `lr` already.
        self._rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
        if run.initial_lr is not None:
            self._rates = [rate * run.initial_lr / self._rates[0] for rate in self._rates]
        if run.final_weights == "best_robust":
            added = metric(run.robust_validation_eps, run.robust_validation_steps, run.robust_validation_batches)
            self.best = BestRobust(self._handlers, trainer.network, added)
            if self.best.replaced is None:
                self._refuse_settings_of_the_metric(self.best.name)
        if run.initial_weights is not None:
            validator = validator_of(self._handlers)
            validating = [] if validator is None else attached(validator)
            self.start = start_from(run.initial_weights, trainer.network, [*self._handlers, *validating])

    def _refuse_settings_of_the_metric(self, name: str) -> None:
        """Of the metric that would have been added."""
        default = RunSettings()
        for setting in ("robust_validation_batches", "robust_validation_steps", "robust_validation_eps"):
            given = getattr(self.settings, setting)
            if given != getattr(default, setting):
                raise InputError.of(
                    setting, given, f"none beside the bundle's own RobustMetric `{name}`",
                    "that one chooses the epoch: change its batches, steps and eps",
                )  # fmt: skip

    @torch.no_grad()
    def look(self, defense: Defense, network: nn.Module, images: Tensor, target: Target) -> None:
        """Refuse weights of which the first batches show that next to nothing would be attacked.

        Right is enough for every method; those that attack wrong samples too ask for less of a segmentation.

        Raises:
            InputError: says so.
        """
        task = defense.task
        threshold = task.settings.threshold if isinstance(task, SegmentationTask) else 0.0  # not asked elsewhere
        least = least_dice(type(defense), defense.settings, threshold)
        if self.start is None or self._worth_it or least is None:
            return
        judge = task
        if isinstance(task, SegmentationTask):
            judge = replace(task, settings=replace(task.settings, threshold=least))
        with frozen(network) as model:
            right = judge.correct(model(images), target)
        judged = task.scorable(target)
        self._batches += 1
        self._judged += int(judged.sum())
        self._worth_it = on_any_rank(bool((right & judged).any()), images.device)
        # Ranks must agree: one that stopped alone would leave the others waiting.
        if not self._worth_it and self._batches >= LOOKED_AT and on_any_rank(self._judged > 0, images.device):
            name = type(defense).__name__
            found, why = "is right", "there is next to nothing to attack; train it longer"
            if isinstance(task, SegmentationTask):
                found = f"has a Dice above {least:g}"
            if defense.attacks_right_only(defense.settings):
                why = f"{name} attacks samples that are right, and none would be; train it longer"
                why += ", or lower `threshold`" if isinstance(task, SegmentationTask) else ""
            raise InputError.of(
                "initial_weights", f"{self.start}: none of the first {self._judged} training samples {found}",
                "a trained model", why,
            )  # fmt: skip

    # ---------------------------------------------------------------- events

    def started(self, trainer: Any) -> None:
        """What it costs, and what was chosen."""
        self._clock = Clock(trainer.state.epoch_length or 0, self._now)
        self._began = None
        if trainer.state.rank != 0:
            return
        say, run = trainer.logger.info, self.settings
        if self._price is not None:
            say(price_line(*self._price))
            known = self.start is None and run.hours is None
            dear = cheaper_way(*self._price, trainer.state.max_epochs, CHEAPER) if known else None
            if dear is not None:
                trainer.logger.warning(dear)
        if self.start is not None:
            say(f"Fine-tuning from {self.start}.")
        if run.hours is not None:
            say(f"Budget {run.budget}: how many epochs that is follows from the time that they take, not max_epochs.")
        elif run.budget is not None:
            said = "plain_epochs" if run.plain_epochs else "the config's max_epochs; plain_epochs says another number"
            say(
                f"Budget {run.budget:g}: {trainer.state.max_epochs} epochs, for a plain training of "
                f"{self._plain_epochs} ({said})."
            )
        if run.schedule != "bundle":
            over = f"{trainer.state.max_epochs} epochs" if run.hours is None else "these epochs"
            say(
                f"Learning rate: {self._rates[0]:g} to 0 along half a cosine over {over}; "
                f"LrScheduleHandlers of the bundle left out: {self._left_out}."
            )
        if self.best is not None:
            own = "the bundle's own RobustMetric (robust_validation_* do not count)"
            instead = own if self.best.replaced is None else f"under attack, not {self.best.replaced}"
            say(f"Chosen by the bundle's validation is now `{self.best.name}`, {instead}.")

    def epoch_started(self, trainer: Any) -> None:
        """The number of the epoch after a break, the learning rate, the hours left."""
        state = trainer.state
        if self.finished and self.settings.hours is not None:
            state.max_epochs = self._epochs_in(self.settings.hours)
        if self.finished and self.owns_schedule and state.epoch <= self.finished:
            self._go_on(state)
        if self._began is None:
            self._began = state.epoch, self._now()
        elif state.rank == 0:
            first, start = self._began
            seconds = (self._now() - start) / (state.epoch - first)
            trainer.logger.info(
                forecast(seconds, state.max_epochs - state.epoch + 1) + self._dearer_later(self.figures)
            )
        if self.settings.schedule == "cosine":
            share = (1 + math.cos(math.pi * (state.epoch - 1) / state.max_epochs)) / 2
            self._set = [rate * share for rate in self._rates]
            for group, rate in zip(trainer.optimizer.param_groups, self._set, strict=True):
                group["lr"] = rate

    def _go_on(self, state: Any) -> None:
        """MONAI's bundles do not restore the number of the epoch: the schedule would begin anew."""
        if self.finished >= state.max_epochs:
            raise InputError.of(
                "state", f"that of a training whose {state.max_epochs} epochs are done", "an unfinished one",
                "its weights are the result; start anew for another training",
            )  # fmt: skip
        state.epoch = self.finished + 1
        state.iteration = self.finished * (state.epoch_length or 0)

    def iteration_completed(self, trainer: Any) -> None:
        """What the first steps say about the rest."""
        told = self._clock.step(trainer.state.max_epochs - trainer.state.epoch + 1)
        if told is None or not trainer.state.epoch_length:
            return
        if self.settings.hours is not None and not self.finished:
            told = self._refuse_less_than_an_epoch(self.settings.hours, trainer.state.device)
        if trainer.state.rank == 0:
            trainer.logger.info(told + self._dearer_later(trainer.defense.statistics.so_far()))

    def _refuse_less_than_an_epoch(self, hours: float, device: torch.device) -> str:
        """From the first steps of the first epoch; what they say where hours suffice."""
        seconds = largest_of_ranks(self._clock.seconds, device)
        if seconds > 3600 * hours:
            raise InputError.of(
                "budget", self.settings.budget, f"at least {math.ceil(seconds / 36) / 100:g}h: one epoch takes about "
                f"{seconds:.3g} s here", "give more hours, fewer attack `steps`, or shorter epochs",
            )  # fmt: skip
        epochs = whole_epochs(3600 * hours / seconds)
        return (
            f"About {seconds:.3g} s of training per epoch: at most {epochs} in {hours:g} hours, with validation fewer."
        )

    def _epochs_in(self, hours: float) -> int:
        """Those that are done and as many as the rest of the hours pays for, at their mean price."""
        left = max(0.0, 3600 * hours - self._spent)
        return self.finished + whole_epochs(left * self.finished / self._spent)

    def _dearer_later(self, figures: Mapping[str, float]) -> str:
        return "" if self._price is None else dearer_later(*self._price, figures)

    def epoch_completed(self, trainer: Any) -> None:
        """Remember how far the training is."""
        self.finished = trainer.state.epoch
        self._count_seconds(trainer)  # now too, for the bundle's own checkpoints
        if self.settings.schedule == "cosine":
            rates = [float(group["lr"]) for group in trainer.optimizer.param_groups]
            if rates != self._set:
                raise InputError.of(
                    "schedule", "cosine beside a handler that sets the learning rate itself", "one schedule",
                    "give schedule: bundle, or take that handler out",
                )  # fmt: skip

    def epoch_validated(self, trainer: Any) -> None:
        """How many epochs the hours of a budget are, as far as it can be known."""
        self._count_seconds(trainer)
        if self.settings.hours is not None:
            trainer.state.max_epochs = self._epochs_in(self.settings.hours)

    def _count_seconds(self, trainer: Any) -> None:
        if self.settings.hours is not None and self._began is not None:
            passed = largest_of_ranks(self._now() - self._began[1], trainer.state.device)
            self._spent = self._spent_before + passed

    def completed(self, trainer: Any) -> None:
        """The best weights, where they are wanted."""
        if self.settings.hours is not None and trainer.state.rank == 0:
            hours = self._spent / 3600
            trainer.logger.info(f"Budget {self.settings.budget}: {self.finished} epochs in {hours:.3g} hours.")
        if self.best is not None:
            said = self.best.take(trainer.state.epoch)
            if trainer.state.rank == 0:
                trainer.logger.info(said)

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: plain tensors and numbers."""
        return {
            "epoch": self.finished,
            "seconds": self._spent,
            "best": None if self.best is None else self.best.state_dict(),
        }

    def check_budget(self, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse another budget than that of a checkpoint, and another price of what it pays for.

        Args:
            saved, now: settings.

        Raises:
            InputError: names both.
        """
        if self._price is not None and (saved.get("budget") or now.get("budget")):
            todo = "go on with it, or start anew without the state"
            refuse_another_price(self._price[0], saved, now, ("budget", "plain_epochs"), todo)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on after the epoch that was saved."""
        self.finished = saved["epoch"]
        self._spent = self._spent_before = saved["seconds"]
        if self.best is not None and saved["best"] is not None:
            self.best.load_state_dict(cast(Mapping[str, Any], saved["best"]))

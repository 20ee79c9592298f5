"""Validation under attack: robust accuracy or robust Dice as a metric of a MONAI evaluator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.inferers.inferer import SimpleInferer
from monai.utils.enums import CommonKeys
from torch import Tensor, nn

from monai_adv.attacks import PGD
from monai_adv.attacks.base import Attack, AttackResult, Until
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.engines.bundle_rule import Rule, check_rule, postprocessing_of, rule_of
from monai_adv.engines.bundle_task import KINDS, Kind, Layout, kind_of_batch, layout_of
from monai_adv.engines.raw_unit import WHY_NOT, dataset_raw_unit
from monai_adv.errors import InputError
from monai_adv.given import Box
from monai_adv.network_state import unwrap_ddp
from monai_adv.networks.inferer import BundleNetwork
from monai_adv.statistics import wide_dtype
from monai_adv.tasks import ClassificationTask, SegmentationTask, Target, Task
from monai_adv.tasks.base import plain
from monai_adv.threats import Norm, RadiusUnit, Threat


class RobustMetric:
    """Accuracy, or mean Dice, of a SupervisedEvaluator's network under attack.

    For ``key_val_metric`` or ``additional_metrics``: the validation images are attacked after the clean forward of each
    batch, and the mean over all samples and ranks is put into ``engine.state.metrics``, where CheckpointSaver finds it.
    The Dice of a sample is the mean over the foreground classes it has; a sample without foreground counts 1 if nothing
    is found in it, otherwise 0. Attacked is what the evaluator deploys: the network behind the evaluator's inferer, so
    that an attack on a volume under a sliding window costs ``steps + 1`` inferences of it, and ``steps`` backwards.

    A short attack is for choosing a checkpoint; ``monai-adv evaluate`` measures robustness.

    Args:
        eps: radius of the attack.
        unit: ``"rms"`` (RMS change per voxel) or ``"norm"``; default: rms for l2, norm for linf. ``"raw"``: the default
            in the intensities of the files, where the evaluator's transforms scale all images alike.
        norm: ``"l2"`` or ``"linf"``.
        box: lowest and highest intensity of an attacked image; default: no bounds.
        steps: gradient steps of PGD; the strongest image on the way counts.
        channels: input channels that may be attacked; default: all.
        attack: another attack instead of all of the above.
        task: ``"classification"``, ``"segmentation"``, or ``"auto"``: what the shapes of output and label say.
        regions, activation, ignore_label: as in :class:`~monai_adv.engines.RobustTrainer`; an evaluator has no loss to
            ask.
        batches: only the first batches of an epoch are attacked; default: all.
        seed: of attacks that draw random numbers; every epoch draws the same.

    Raises:
        InputError: a radius, unit or attack that is not allowed.
    """

    until: ClassVar[Until] = "wrong"
    """When PGD may leave a classified image alone: wrong is wrong."""

    def __init__(
        self,
        eps: float | None = None,
        unit: RadiusUnit | None = None,
        norm: Norm = "l2",
        box: Box | None = None,
        steps: int = 10,
        channels: Sequence[int] | None = None,
        attack: Attack | None = None,
        task: Literal["auto"] | Kind = "auto",
        regions: bool | None = None,
        activation: Rule | None = None,
        ignore_label: int | None = None,
        batches: int | None = None,
        seed: int = 0,
    ) -> None:
        if (eps is None) == (attack is None):
            raise InputError.of("eps and attack", (eps, attack), "one of them")
        if task not in ("auto", *KINDS):
            raise InputError.of("task", task, f"one of auto, {', '.join(KINDS)}")
        check_rule(activation)
        if batches is not None and batches < 1:
            raise InputError.of("batches", batches, "a whole number >= 1 or None")
        self.attack = attack
        self.steps, self.batches, self.seed = steps, batches, seed
        self._attacker: DefenseSettings | None = None
        self._threat: Threat | None = None
        self._raw_unit: float | None = None
        self._channels = None if channels is None else tuple(channels)
        if eps is not None:
            PGD(Threat(norm, 0.0), steps=steps)  # refuse bad steps now
            self._attacker = DefenseSettings(eps=eps, unit=unit, norm=norm, box=box)
        self._kind: Literal["auto"] | Kind = task
        self._regions, self._rule, self._ignore_label = regions, activation, ignore_label
        self._task: Task | None = None
        self._layout = Layout()

    def attach(self, engine: Engine, name: str) -> None:
        """Called by the evaluator."""
        self.name = name
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._attack_batch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def join(self, engine: Engine, name: str) -> None:
        """Attach to an evaluator that has its handlers already, which shall find the metric at the end of its epoch.

        Raises:
            InputError: its data loader does not say how many batches it has.
        """
        length = getattr(engine.state, "epoch_length", None)
        if length is None:
            raise InputError.of(
                "validator", "a data loader without a length", "one with a length",
                f"or give it a RobustMetric as `{name}` in its key_val_metric",
            )  # fmt: skip
        self.name = name
        last = Events.ITERATION_COMPLETED(event_filter=lambda e, _: e.state.iteration % e.state.epoch_length == 0)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._attack_batch)
        engine.add_event_handler(last, self._finish)

    def _start(self, engine: Any) -> None:
        if not (hasattr(engine, "network") and hasattr(engine, "inferer")):
            raise InputError.of("engine", type(engine).__name__, "a SupervisedEvaluator", "it attacks one network")
        if self._attacker is not None and self._threat is None:
            self._raw_unit = dataset_raw_unit(getattr(getattr(engine, "data_loader", None), "dataset", None))
            self._threat = self._attacker.in_network_units(self._raw_unit, WHY_NOT).threat(self._channels)
        self._sum: Tensor | None = None
        self._generator: torch.Generator | None = None
        self._attacked = 0

    def _attack_batch(self, engine: Any) -> None:
        """On FORWARD_COMPLETED: post-processing takes batches apart later."""
        if self.batches is not None and self._attacked >= self.batches:
            return
        self._attacked += 1
        images, label, output = (
            plain(engine.state.output.get(key)) for key in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
        )
        if not isinstance(label, Tensor):
            raise InputError.of("label", type(label).__name__, "a tensor", f"{self.name} compares outputs with labels")
        if self._task is None:
            self._task = self._make_task(engine, output[0] if isinstance(output, list | tuple) else output, label)
            if self._threat is not None and self._threat.eps > 0 and hasattr(engine, "logger"):
                engine.logger.info(f"{self.name}: {self._threat.describe(images, self._raw_unit)}")
        if self._generator is None:
            self._generator = torch.Generator(images.device).manual_seed(self.seed + engine.state.rank)
        target = self._layout.to_task(label) if isinstance(self._task, SegmentationTask) else label
        with torch.autocast("cuda", **engine.amp_kwargs) if engine.amp else nullcontext():
            network = _deployed(engine)
            result = self._the_attack()(network, images, target, self._task, generator=self._generator)
            self._record(engine, network, result, target)

    def _record(self, engine: Any, network: nn.Module, result: AttackResult, target: Target) -> None:
        """Keep what the attack on a batch left."""
        if isinstance(self._task, SegmentationTask):
            # Without a voxel that counts there is nothing to score.
            scores = (result.margin + self._task.settings.threshold)[self._task.scorable(target)]
        else:
            scores = (~result.wrong).float()
        device = result.images.device
        wide = wide_dtype(device)
        total = torch.stack([scores.to(wide).sum(), torch.tensor(len(scores), dtype=wide, device=device)])
        self._sum = total if self._sum is None else self._sum + total

    def _make_task(self, engine: Any, output: Tensor, label: Tensor) -> Task:
        kind = kind_of_batch(output, label)
        if self._kind not in ("auto", kind):
            raise InputError.of("task", self._kind, f"{kind}, because of the shapes of output and label")
        if kind == "classification":
            task = ClassificationTask()
            task.check(output, label)
            return task
        rule = rule_of(self._rule, postprocessing_of(engine), None)
        self._layout = layout_of(output, label, self._regions, self._ignore_label, rule)
        return SegmentationTask.for_evaluation(
            regions=self._layout.regions, ignore_label=self._ignore_label, sigmoid=self._layout.sigmoid
        )

    def _the_attack(self) -> Attack:
        if self.attack is not None:
            return self.attack
        assert self._threat is not None
        until = "lowest" if isinstance(self._task, SegmentationTask) else self.until
        return PGD(self._threat, steps=self.steps, until=until)

    def _finish(self, engine: Any) -> None:
        device = engine.state.device or torch.device("cpu")
        total = torch.zeros(2, dtype=wide_dtype(device), device=device) if self._sum is None else self._sum
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        right, count = total.tolist()
        engine.state.metrics[self.name] = right / count if count else math.nan


def _deployed(engine: Any) -> nn.Module:
    """The function that the evaluator deploys, as a module."""
    network: nn.Module = unwrap_ddp(engine.network)
    if type(engine.inferer) is SimpleInferer:
        return network
    return BundleNetwork(network, engine.inferer)

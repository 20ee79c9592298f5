"""What every defence offers to every host.

A training step of a host reads, whatever the method::

    optimizer.zero_grad()
    for part in defense.losses(network, batch):
        part.loss.backward()          # at once: its graph is freed before the next part is built
        if part.update:
            optimizer.step(); optimizer.zero_grad()
    optimizer.step()

Handing out the loss in parts is what keeps the peak memory of adversarial training at that of a clean step: the clean
graph is gone before the attack starts. See docs/engine.md for how each kind of method fits in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monai_adv.attacks.ascent import Ascended, Ascent
from monai_adv.defenses.batch import Batch, LossPart, check_layout, layout, whole
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.network_state import Mode, any_batch_size, computes_as_in, detached, frozen
from monai_adv.sample_state import SampleIds, SampleState
from monai_adv.statistics import Statistics
from monai_adv.tasks.base import Output, Target, Task, TrainingTask, take
from monai_adv.tasks.first_look import FirstLook


class Defense(ABC):
    """Base of all defences.

    A defence knows neither its host nor whether it runs in 2D or 3D, on one GPU or many. Under ``torch.distributed`` it
    yields the same number of parts on every rank.

    Args:
        task: what is right; see :class:`~monai_adv.tasks.base.TrainingTask`.
        settings: of :attr:`settings_class`; default: its defaults.
        channels: input channels that are intensities; ``None`` means all.
    """

    settings_class: ClassVar[type[DefenseSettings]] = DefenseSettings
    needs_ids: ClassVar[bool] = False
    """Whether the method remembers something about each sample, so that batches must say which samples they hold."""
    attacks: ClassVar[bool] = True
    """Whether it trains on attacked images; if not, its radius is for validation alone."""
    eager_only: ClassVar[str | None] = None
    """Why the network must not be compiled; None if it may."""

    def __init__(
        self, task: TrainingTask, settings: DefenseSettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        self.task = task
        self.settings = self.settings_class() if settings is None else settings
        if not isinstance(self.settings, self.settings_class):
            raise InputError.of("settings", type(settings).__name__, self.settings_class.__name__)
        self.channels = channels
        self.threat = self.settings.threat(channels)
        self.statistics = Statistics()
        self.states: dict[str, SampleState] = {}
        """The memory of samples, by its name in the checkpoint; subclasses fill it."""
        self.epoch = 0
        self.epochs: int | None = None
        self._generator: torch.Generator | None = None
        self._bound: tuple[SampleIds, torch.device] | None = None
        self._ids_checked = False
        self._labels_checked = False

    # ------------------------------------------------------------------ the loss

    @abstractmethod
    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """Yield the parts of the training loss.

        The first forward of a part goes through ``network`` as given (DDP wrapper), further forwards of the same part
        through ``unwrap_ddp(network)``: the wrapper would broadcast buffers that the first graph still needs.
        """

    def __call__(self, network: nn.Module, images: Tensor, target: Target, ids: Tensor | None = None) -> Tensor:
        """The whole loss at once, for a loop of one's own: simple, but it keeps all graphs in memory.

        Raises:
            InputError: a method with several weight updates per batch, whose losses cannot be added up.

        Example:
            ``defense(network, images, target, ids).backward()``
        """
        losses = []
        for part in self.losses(network, Batch(images, target, ids)):
            if part.update:
                raise InputError(
                    f"{type(self).__name__} updates the weights several times per batch, so that its loss is not one "
                    "number; loop over defense.losses(network, Batch(images, target)) and step where part.update says."
                )
            losses.append(part.loss)
        return torch.stack(losses).sum()

    # ------------------------------------------------------------------ set-up

    @classmethod
    def attacks_right_only(cls, settings: Any) -> bool:
        """Whether samples that are wrong without an attack are left alone, with settings of :attr:`settings_class`."""
        return False

    @classmethod
    def prepare(cls, network: nn.Module) -> nn.Module:
        """The network to train, before it is given to an optimiser, DDP or a compiler; most methods change nothing."""
        return network

    def attach(self, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:  # noqa: B027
        """Called once, before training and before a checkpoint is loaded (extra modules, restoring weights)."""

    def bind(self, ids: SampleIds, device: torch.device | str) -> None:
        """Announce the training samples before the first step; optional where :attr:`needs_ids` is false.

        Args:
            ids: of all training samples.
            device: where the images will be.
        """
        device = torch.empty(0, device=device).device  # "cuda" means cuda:0, which is what images say
        self._bound = ids, device
        for state in self.states.values():
            state.bind(ids, device)
        self._generator = torch.Generator(device).manual_seed(self.settings.seed)

    def on_epoch_start(self, epoch: int, epochs: int | None = None) -> None:
        """Called before the first step of an epoch (ramps, burn-in).

        Args:
            epoch: counted from 0.
            epochs: of the whole training; methods need it whose settings are shares of the training.
        """
        self.epoch, self.epochs = epoch, epochs

    def on_epoch_end(self) -> dict[str, float]:
        """Called after the last step of an epoch on every rank; returns the epoch's figures for the log."""
        return self.statistics.summary()

    # ------------------------------------------------------------------ checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, strings and numbers: memory of samples with ids and unit, the random stream."""
        stream = None if self._generator is None else self._generator.get_state()
        memory = {name: state.state_dict() for name, state in self.states.items()}
        return {"unit": self._unit(), "generator": stream, **memory}

    def trained_against(self) -> dict[str, Any] | None:
        """``norm``, ``eps`` and ``unit`` of the attack in training, for the checkpoint; None without one."""
        if not self.attacks or self.threat.eps == 0:
            return None
        return {"norm": self.threat.norm, "eps": self.threat.eps, "unit": self.threat.unit}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore bit for bit.

        On another kind of device (CPU instead of CUDA) the random stream begins anew.

        Raises:
            InputError: the memory belongs to other samples, is in another unit, or has NaN in it; nothing is changed
                then.
        """
        _refuse_nan(saved, type(self).__name__)
        if self.states and saved["unit"] != self._unit():
            raise InputError.of(
                "norm and unit", self._unit(), f"those of the checkpoint ({saved['unit']})",
                "keep them, or start a new training from the checkpoint's weights with initial_weights",
            )  # fmt: skip
        for name, state in self.states.items():
            state.check(saved[name])
        for name, state in self.states.items():
            state.load_state_dict(saved[name])
        stream = saved["generator"]
        if stream is None:
            return
        if self._generator is None:
            self._generator = torch.Generator()
        if len(stream) == len(self._generator.get_state()):
            self._generator.set_state(stream.cpu())

    def _unit(self) -> str:
        return f"{self.threat.norm}, {self.threat.unit}"

    # ------------------------------------------------------------------ for subclasses

    def epochs_of(self, name: str, value: float) -> float:
        """A setting that counts epochs as a number of epochs: below 1 it is a share of the training.

        Raises:
            InputError: a share, and nobody said how long the training is.
        """
        if value >= 1 or value == 0:
            return value
        if self.epochs is None:
            raise InputError.of(
                name, value, "a number of epochs (1 or more), as the length of the training is not known",
                "or call defense.on_epoch_start(epoch, epochs) before every epoch",
            )  # fmt: skip
        return round(value * self.epochs, 6)  # 0.07 of 100 is 7, not 7.000000000000001, which begins an epoch later

    def clean_part(self, network: nn.Module, batch: Batch, weight: float = 1.0) -> LossPart:
        """``weight`` times the loss on clean images: standard training, and what methods become when they are off."""
        output = network(batch.images)
        return self.part(batch, weight * self.task.training_loss(output, batch.target), output)

    def clean_output(self, network: nn.Module, batch: Batch, output: Output, mode: Mode) -> Output:
        """What the network says about the clean images in the mode of the attack, detached.

        Where BatchNorm or dropout make the modes disagree, a sample can be right in the training forward and wrong,
        without an attack, where the attack looks. To an attack such a sample is wrong: nothing needs to be crossed.

        Args:
            network: as the host gave it.
            batch: the clean batch.
            output: of the training forward; it is the answer where the modes agree. Otherwise a pass is made.
            mode: of the attack.
        """
        if computes_as_in(network, mode):
            return detached(output)
        with frozen(network, mode) as model, torch.no_grad():
            output = model(any_batch_size(batch.images, model))
        self.count(batch, forward=1)
        return output

    def noisy_part(self, network: nn.Module, batch: Batch, images: Tensor, weight: float = 1.0) -> LossPart:
        """``weight`` times the loss on attacked ``images``."""
        output = network(images)
        return self.part(batch, weight * self.task.training_loss(output, batch.target), noisy=output)

    def spread(self, name: str, state: SampleState) -> dict[str, float]:
        """Figures of a memory of radii: mean, standard deviation, share at eps; in the unit of eps."""
        values = state.values.cpu().double()
        return {
            f"{name}_mean": float(values.mean()),
            f"{name}_std": float(values.std(correction=0)),
            f"{name}_at_eps": float((values >= self.settings.eps).double().mean()),
        }

    def ids(self, batch: Batch) -> Tensor:
        """``(B,)`` int64 ids of the batch's samples, where the images are.

        Raises:
            InputError: there are none, or not one for each image.
        """
        if batch.ids is None:
            raise InputError.of(
                "ids", None, f"(B,) indices of the batch's samples: {type(self).__name__} remembers every sample",
                "give each training sample a fixed index and pass the batch's indices",
            )  # fmt: skip
        size = len(batch.images)
        if not isinstance(batch.ids, Tensor) or batch.ids.shape != (size,) or not whole(batch.ids):
            raise InputError.of("ids", layout(batch.ids), f"a tensor ({size},) of whole numbers, one for each image")
        return batch.ids.to(batch.images.device, torch.long)

    def generator(self, device: torch.device) -> torch.Generator:
        """The stream of random starts and noise; one of its own, so that nobody else's is touched."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.settings.seed)
        return self._generator

    def attack(
        self,
        network: nn.Module,
        batch: Batch,
        ascent: Ascent,
        *,
        task: Task | None = None,
        target: Target | None = None,
        radius: Tensor | None = None,
        start_radius: Tensor | None = None,
        only: Tensor | None = None,
    ) -> tuple[Tensor, Ascended, Tensor]:
        """Attack the samples of a batch that can be attacked, and book the passes and dead gradients.

        Args:
            network: as the host gave it.
            batch: the clean batch.
            ascent: the attack.
            task: what is attacked; default: the defence's task.
            target: what that task compares with; default: the batch's target.
            radius: ``(B,)`` radius of each sample in the unit of eps; default: eps for all.
            start_radius: ``(B,)`` radius of the random start in the unit of eps; default: the radius.
            only: ``(B,)`` bool: attack only these; default: all that are scorable. Samples of radius 0 are left out.

        Returns:
            the batch's images with the attacked ones replaced, the attack's result for these, and their positions.
        """
        chosen = self.task.scorable(batch.target) if only is None else only
        index = torch.empty(0, dtype=torch.long, device=batch.images.device)
        if self.settings.eps > 0:
            index = (chosen if radius is None else chosen & (radius > 0)).nonzero()[:, 0]
        if len(index) == 0:
            self.count_no_attack(batch)
            return batch.images, Ascended.of_nothing(batch.images), index
        self.statistics.add("attacked", torch.ones_like(index, dtype=torch.float), of=len(batch.images))
        images = batch.images[index]
        scale = self.threat.scale(images)
        result = ascent(
            network,
            images,
            take(batch.target if target is None else target, index),
            self.task if task is None else task,
            radius=None if radius is None else radius[index] * scale,
            start_radius=None if start_radius is None else start_radius[index] * scale,
            generator=self.generator(images.device),
        )
        self.statistics.passes += result.passes
        self.statistics.add("dead_gradient", result.dead.float(), of=len(batch.images))
        return batch.images.index_copy(0, index, result.images), result, index

    def count(self, batch: Batch, *, forward: int = 0, backward_input: int = 0, full: int = 0) -> None:
        """Book passes of the whole batch."""
        size = len(batch.images)
        self.statistics.passes.forward += forward * size
        self.statistics.passes.backward_input += backward_input * size
        self.statistics.passes.backward_full += full * size

    def count_no_attack(self, batch: Batch, *more: str) -> None:
        """Book a batch of which nothing is attacked; ``more`` are a method's own figures of attacked samples."""
        none = torch.zeros(0, device=batch.images.device)
        for name in ("attacked", "dead_gradient", *more):
            self.statistics.add(name, none, of=len(batch.images))

    def part(
        self,
        batch: Batch,
        loss: Tensor,
        output: Output | None = None,
        noisy: Output | None = None,
        *,
        forward: int | None = None,
        backward_input: int = 0,
        full: int | None = None,
        update: bool = False,
    ) -> LossPart:
        """A part of the loss, with what it cost and which samples were right booked.

        Args:
            batch: the clean batch.
            loss: of this part, already weighted.
            output: the network's output on the clean images, if this part (or a pass before it) made one.
            noisy: the same on attacked images.
            forward, full: passes of the whole batch, forward and backward to the weights; default: one for each output.
            backward_input: backward passes to the images.
            update: see :class:`LossPart`.
        """
        made = (output is not None) + (noisy is not None)
        self.count(
            batch,
            forward=made if forward is None else forward,
            backward_input=backward_input,
            full=made if full is None else full,
        )
        return LossPart(
            loss, self._seen("clean_right", batch, output), self._seen("noisy_right", batch, noisy), update=update
        )

    def _seen(self, name: str, batch: Batch, output: Output | None) -> Output | None:
        """Book which samples are right; the output without its graph."""
        if output is None:
            return None
        output = detached(output)
        self.statistics.add(name, self.task.correct(output, batch.target).float())
        return output

    def begin(self, batch: Batch) -> None:
        """Check the layout of a batch, and book its samples; every method calls it once per batch.

        The values of labels are checked as soon as there is an output: on the CPU in every batch, elsewhere in the
        first one only, because that makes a GPU wait.

        Raises:
            InputError: images, target or ids that are no batch, or ids that were not announced.
        """
        check_layout(batch)
        images = batch.images
        if self.needs_ids:
            self._check_ids(batch)
        if not self._labels_checked or images.device.type == "cpu":
            self._look_at_labels()
        self.statistics.samples += len(images)

    def _look_at_labels(self) -> None:
        """Whatever the method asks its task first in this batch."""
        task = self.task.task if isinstance(self.task, FirstLook) else self.task

        def done() -> None:
            self.task, self._labels_checked = task, True

        self.task = FirstLook(task, done)

    def _check_ids(self, batch: Batch) -> None:
        ids = self.ids(batch)
        if self._bound is None:
            raise InputError(
                f"{type(self).__name__}: no samples are known; call the defence's bind(SampleIds({{'train': number of "
                "training samples}), device) before its first step."
            )
        announced, device = self._bound
        if device != ids.device:
            raise InputError.of("images", f"a tensor on {ids.device}", f"on {device}, as bind(ids, device) was told")
        assert batch.ids is not None
        if self._ids_checked and batch.ids.device.type != "cpu":
            return
        unknown = batch.ids[(batch.ids < 0) | (batch.ids >= len(announced))]
        if len(unknown) > 0:
            raise InputError.of(
                "ids", unknown.tolist()[:5], f"indices from 0 to {len(announced) - 1}",
                f"{len(announced)} samples were announced with bind(ids, device)",
            )  # fmt: skip
        self._ids_checked = True


def _refuse_nan(saved: Any, name: str) -> None:
    """NaN and infinity in a memory would go on for ever: no comparison with them ever holds."""
    if isinstance(saved, Mapping):
        for key, value in saved.items():
            _refuse_nan(value, f"{name} {key}")
    elif isinstance(saved, list | tuple):
        for value in saved:
            _refuse_nan(value, name)
    elif isinstance(saved, Tensor | float) and not bool(torch.isfinite(torch.as_tensor(saved)).all()):
        raise InputError.of(
            "checkpoint",
            f"NaN or infinity in {name}",
            "finite numbers",
            "go on from an older checkpoint, or train anew",
        )

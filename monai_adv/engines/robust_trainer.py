"""The MONAI host: one trainer over any defence.

Only the iteration of SupervisedTrainer is replaced; data, network, loss, optimiser, handlers, metrics, post-processing
stay the bundle's own. An unmodified bundle becomes robust by one key::

    python -m monai.bundle run --config_file configs/train.json \\
        --train#trainer#_target_ monai_adv.engines.IMATrainer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from ignite.engine import Engine, Events
from monai.engines.trainer import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers.inferer import SimpleInferer
from monai.utils.enums import CommonKeys
from monai.utils.misc import ensure_tuple
from torch import Tensor

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.nothing_attacked import NothingAttacked
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.engines.bundle_rule import Rule, check_rule, leaves_background_out, rule_of
from monai_adv.engines.bundle_task import (
    KINDS,
    Kind,
    Layout,
    kind_of_batch,
    kind_of_data,
    layout_of,
    loss_of_each_sample,
    with_meta,
)
from monai_adv.engines.given_settings import Given
from monai_adv.engines.log_words import be_heard, words_of_the_first_batch, words_of_the_settings
from monai_adv.engines.numbering import numbered
from monai_adv.engines.raw_unit import WHY_NOT, dataset_raw_unit
from monai_adv.engines.robust_metric import RobustMetric
from monai_adv.engines.robust_state import RobustState, check_ranks
from monai_adv.engines.run import Run
from monai_adv.engines.run_settings import RunSettings
from monai_adv.engines.sample_ids import BatchIds, data_list
from monai_adv.engines.supported import check_arguments, check_present, image_and_label, mask_channels
from monai_adv.errors import InputError
from monai_adv.network_state import device_of, frozen, is_compiled
from monai_adv.settings import Settings, as_dict, flat, read_settings
from monai_adv.tasks import ClassificationTask, Output, SegmentationSettings, SegmentationTask, Target
from monai_adv.tasks.base import TrainingTask, plain

METRICS = "defense/"
"""Prefix of a defence's figures in ``engine.state.metrics``."""


class RobustTrainer(SupervisedTrainer):
    """Base of all robust trainers: SupervisedTrainer, whose loss comes from a defence.

    Args:
        args, kwargs: of SupervisedTrainer, unchanged. ``inferer`` must be a SimpleInferer and ``iteration_update``
            None: a defence calls the network on whole batches.
        settings: of the defence, the task and the run, in one flat mapping; ``preset`` names a group of them. Those not
            given come from the file named by ``MONAI_ADV_SETTINGS`` and from variables ``MONAI_ADV_<NAME>``.
        defense: a ready one instead of ``settings``; its task trains with this trainer's ``loss_function``.
        task: ``"classification"``, ``"segmentation"``, a task of your own, or ``"auto"``: what the labels of the data
            list say (numbers or files), unless the first batch says otherwise.
        regions: segmentation: whether the output's channels overlap (sigmoid). Default: they do if there is a single
            one, or if a label with as many channels is not one-hot.
        activation: segmentation: ``"softmax"`` (the largest logit wins) or ``"sigmoid"`` (each channel is a yes or no).
            Default: what the post-processing does, otherwise what the loss does.
        ignore_label: segmentation: label whose voxels count nowhere; the loss must know it by itself.
        channels: input channels that are intensities and may be attacked; default: all.
        index_key: key of a batch that holds the position of each sample in the training list, if the list says it.
            Otherwise the trainer numbers the items of the data set by itself.
        num_samples: number of training samples, where the data loader's data set does not tell it.
        state: a :class:`~monai_adv.engines.RobustState`, or the file for one.
        train_handlers: of SupervisedTrainer.

    Attributes:
        defense: None until the first batch where ``task`` cannot be told earlier.
        robust_state: what goes into checkpoints.

    Each epoch's figures of the defence are in ``state.metrics`` under ``defense/...`` before other handlers run.
    ``state.output`` has the prediction on the clean images where the method makes one, otherwise on attacked images.
    BACKWARD_COMPLETED is fired before every weight update, so that handlers can clip gradients: more than once in the
    iterations of methods with several updates.

    Raises:
        InputError: says what is not allowed; other settings, or a network or loader that the method cannot use.
    """

    method: ClassVar[Method | None] = None
    accumulation_steps: int = 1  # MONAI before 1.6 has none

    def __init__(
        self,
        *args: Any,
        settings: Mapping[str, Any] | None = None,
        defense: Defense | None = None,
        task: Literal["auto"] | Kind | TrainingTask = "auto",
        regions: bool | None = None,
        activation: Rule | None = None,
        ignore_label: int | None = None,
        channels: Sequence[int] | None = None,
        index_key: str = "index",
        num_samples: int | None = None,
        state: RobustState | str | Path | None = None,
        train_handlers: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("iteration_update") is not None:
            todo = f"{type(self).__name__} has its own; interactive training (clicks, prompts) is not supported"
            raise InputError.of("iteration_update", "a function", "None", todo)
        if defense is not None and (settings is not None or task != "auto" or channels is not None):
            raise InputError.of("defense", "a ready one and settings, task or channels", "one or the other")
        if isinstance(task, str) and task not in ("auto", *KINDS):
            raise InputError.of("task", task, f"auto, {', '.join(KINDS)}, or a task")
        check_rule(activation)
        check_arguments(type(self).__name__, kwargs)
        if not args:
            check_present(type(self).__name__, kwargs)
        self.kind: Kind | None = None
        self._own_task: TrainingTask | None = None
        self._given = Given(self.method, {} if defense is not None else {**read_settings(), **(settings or {})})
        self.run_around = self._make_run(defense)
        handlers = self.run_around.kept(ensure_tuple(train_handlers or ()))
        kwargs["train_handlers"] = [_Attached(self._attach_first), *handlers, _Attached(self._attach_last)]
        super().__init__(*args, **kwargs)
        be_heard(self.logger)
        if type(self.inferer) is not SimpleInferer:
            raise InputError.of(
                "inferer", type(self.inferer).__name__, "SimpleInferer",
                "a defence calls the network on whole batches; crop patches with a transform",
            )  # fmt: skip
        self.defense: Defense | None = None
        self.robust_state = RobustState.of(state)
        self.sections: dict[str, Settings] = {}
        self._regions, self._ignore_label = regions, ignore_label
        self._given_rule, self._postprocessing = activation, kwargs.get("postprocessing")
        self._channels = None if channels is None else tuple(channels)
        self._index_key, self._num_samples = index_key, num_samples
        self._ids: BatchIds | None = None
        self._layout: Layout | None = None
        self._looked = False
        self._own_task = None if isinstance(task, str) else task.with_loss(self._training_loss)
        self._raw_unit = dataset_raw_unit(getattr(self.data_loader, "dataset", None))
        if defense.needs_ids if defense is not None else self.method is not None and self.method.defense.needs_ids:
            self.data_loader = numbered(self.data_loader) or self.data_loader
        self._guessed = False
        self._nothing_attacked = NothingAttacked()
        self.run_around.prepare(self, self._metric)  # before the defence, which may double layers or copy weights
        self.robust_state.surround(self.run_around)
        self.kind = task if isinstance(task, str) and task != "auto" else None
        if defense is not None:
            defense.task = self._own_task = defense.task.with_loss(self._training_loss)
        elif task == "auto":
            guess = kind_of_data(data_list(self.data_loader))
            self.kind = None if self.method is not None and guess in self.method.not_for else guess
            self._guessed = True
        if isinstance(self._own_task, ClassificationTask):
            self.kind = "classification"
        elif isinstance(self._own_task, SegmentationTask):
            self.kind = "segmentation"
        if defense is not None:
            self._use(defense)
        elif self.kind is not None or self._own_task is not None:
            self._use(self._make_defense())
        else:
            self._settings()  # a bad setting shall not wait for the first batch

    # ---------------------------------------------------------------- set-up

    def _settings(self) -> dict[str, Settings]:
        return self._given.sections(task=self.kind != "classification" and self._own_task is None)

    def _make_run(self, defense: Defense | None) -> Run:
        if defense is not None:
            return Run(RunSettings(), None)
        sections = self._settings()
        return Run(cast(RunSettings, sections["run"]), self._given.price(sections))

    def _metric(self, eps: float | None, steps: int, batches: int | None) -> RobustMetric:
        """The attacker of the training, for validation."""
        attacker = cast(DefenseSettings, self._settings()["defense"])
        return RobustMetric(
            eps=attacker.eps if eps is None else eps,
            unit=attacker.unit,
            norm=attacker.norm,
            box=attacker.box,
            steps=steps,
            channels=self._channels,
            regions=self._regions,
            activation=self._given_rule,
            ignore_label=self._ignore_label,
            batches=batches,
            seed=attacker.seed,
        )

    def _make_defense(self) -> Defense:
        method = self._given.method
        if self.kind is not None:
            method.check_task(self.kind)
        self.sections = self._settings()
        task = self._own_task
        if task is None and self.kind == "classification":
            task = ClassificationTask(self._training_loss, loss_of_each_sample(self.loss_function))
        elif task is None:
            settings = cast(SegmentationSettings, self.sections["task"])
            task = SegmentationTask(self._training_loss, settings, ignore_label=self._ignore_label)
        attacker = cast(DefenseSettings, self.sections["defense"]).in_network_units(self._raw_unit, WHY_NOT)
        return method.defense(task, cast(Any, attacker), self._channels)

    def _use(self, defense: Defense) -> None:
        name = type(defense).__name__
        if self.method is not None and not isinstance(defense, self.method.defense):
            raise InputError.of("defense", name, self.method.defense.__name__, "or use RobustTrainer")
        if defense.eager_only is not None and is_compiled(self.network):
            raise InputError.of("compile", True, f"false with {name}", defense.eager_only)
        self.sections = self.sections or {"defense": defense.settings}
        device = device_of(self.network)
        if defense.needs_ids:
            self._ids = BatchIds(self.data_loader, self._index_key, self._num_samples, name)
            defense.bind(self._ids.announced, device)
        else:
            defense.generator(device)  # so that a checkpoint's random stream finds its place
        defense.attach(self.network, self.optimizer)
        self.defense = defense
        settings = flat(as_dict(self.sections))
        self.robust_state.connect(defense, name, settings, self.logger)

    def _training_loss(self, output: Output, target: Target) -> Tensor:
        """The bundle's own loss, called as SupervisedTrainer calls it."""
        label = target if self._layout is None else self._layout.to_bundle(target)
        loss: Tensor = self.loss_function(output, label).mean()
        return loss

    @torch.no_grad()
    def _look(self, images: Tensor, label: Tensor) -> None:
        """Decide, on the first batch, what is not known yet; the extra forward leaves no trace."""
        with frozen(self.network) as network, self._autocast():
            output = network(images)
        if self._own_task is None or isinstance(self._own_task, ClassificationTask | SegmentationTask):
            found = kind_of_batch(output, label)
            if self.kind not in (None, found):
                self._change_kind(found)
            self.kind = found
        if self.defense is None:
            self._use(self._make_defense())
            assert self.defense is not None
            self.defense.on_epoch_start(self.state.epoch - 1, self.state.max_epochs)
        task = self.defense.task
        if isinstance(task, SegmentationTask):
            if not isinstance(output, Tensor) and task.settings.attack_deep_supervision:
                raise InputError.of("attack_deep_supervision", True, "false", "MONAI's labels have one resolution")
            rule = rule_of(self._given_rule, self._postprocessing, self.loss_function)
            background = not leaves_background_out(self.loss_function)
            self._layout = layout_of(output, label, self._regions, task.ignore_label, rule, background)
            self.defense.task = replace(task, regions=self._layout.regions, sigmoid=self._layout.sigmoid)
        elif isinstance(task, ClassificationTask):
            task.check(output, label)
        self._tell(images, label, output)

    def _change_kind(self, found: Kind) -> None:
        """The data list suggested another kind than that of the batch.

        Raises:
            InputError: somebody said it, or the defence has changed the network for it already.
        """
        why = f"{found}, because of the shapes of output and label"
        if not self._guessed:
            todo = "leave the argument task out" if self._own_task is None else "give another task"
            raise InputError.of("task", self.kind, why, todo)
        if self.defense is not None and type(self.defense).attach is not Defense.attach:
            raise InputError.of(
                "task", f"{self.kind}, as the data list looks", why, f"give the argument task {found!r}"
            )
        self.robust_state.disconnect()
        self.defense, self.sections, self.kind = None, {}, found

    def _tell(self, images: Tensor, label: Tensor, output: Output) -> None:
        assert self.defense is not None
        what = self.kind or type(self.defense.task).__name__
        ids = None if self._ids is None else self._ids.source
        self.logger.info(
            f"{type(self).__name__}: "
            + words_of_the_first_batch(what, self._layout, self.defense, images, label, output, self._raw_unit, ids)
        )
        if self.kind and self.method and (warning := self.method.warning(self.kind, self.defense.settings)):
            self.logger.warning(warning)
        if masks := mask_channels(images, self.defense.channels):
            self.logger.warning(
                f"Channels {masks} of the first batch hold only 0 and 1 and are attacked as intensities. If they are "
                "masks or clicks, leave them out with the argument channels."
            )

    # ---------------------------------------------------------------- events

    def _attach_first(self) -> None:
        """Before all other handlers, which log and save what ours leave in ``state.metrics``."""
        self.add_event_handler(Events.STARTED, self._on_started)
        self.add_event_handler(Events.EPOCH_STARTED, self._on_epoch_started)
        self.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.run_around.iteration_completed(self))
        self.add_event_handler(Events.EPOCH_COMPLETED, self._on_epoch_completed)
        self.add_event_handler(Events.COMPLETED, lambda: self.run_around.completed(self))

    def _attach_last(self) -> None:
        """After all others: the state knows then what the validation of the epoch has found."""
        self.add_event_handler(Events.EPOCH_COMPLETED, self._after_validation)

    def _on_started(self) -> None:
        self._resumed = False
        sections = self.sections or self._settings()
        if "run" in sections:
            self.logger.info(f"{type(self).__name__} {words_of_the_settings(sections)}")
            if left_out := self._given.left_out(sections):
                self.logger.info(f"Not part of this trainer, so left out of the preset: {', '.join(left_out)}.")
        self.run_around.started(self)

    def _on_epoch_started(self) -> None:
        if not self._resumed:  # now, because handlers that load a checkpoint run after our STARTED
            self.robust_state.resume(self.network, self.logger)
            check_ranks(self.network)
            self._resumed = True
        self.run_around.epoch_started(self)  # sets the number that the defence is told
        if self.defense is not None:
            self.defense.on_epoch_start(self.state.epoch - 1, self.state.max_epochs)

    def _on_epoch_completed(self) -> None:
        assert self.defense is not None
        figures = self.run_around.figures = self.defense.on_epoch_end()
        if (warning := self._nothing_attacked(self.defense, figures)) and self.state.rank == 0:
            self.logger.warning(f"{type(self).__name__}: {warning}")
        self.state.metrics.update({METRICS + name: value for name, value in figures.items()})
        self.run_around.epoch_completed(self)

    def _after_validation(self) -> None:
        self.run_around.epoch_validated(self)
        if self.state.rank == 0:
            self.robust_state.write(self.network, self.state.epoch)

    # ---------------------------------------------------------------- an iteration

    def _iteration(self, engine: SupervisedTrainer, batchdata: Any) -> dict[str, Any]:
        """SupervisedTrainer's iteration, with the defence's parts in place of the one loss."""
        inputs, label = self._prepared(batchdata)
        images, target = plain(inputs), plain(label)
        if not self._looked:
            self._look(images, target)
            self._looked = True
        defense = self.defense
        assert defense is not None
        ids = None if self._ids is None else self._ids.of(batchdata).to(images.device, non_blocking=True)
        if self._layout is not None:
            target = self._layout.to_task(target)
        self.run_around.look(defense, self.network, images, target)

        self.state.output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: label}
        first, last = self._micro_batch()
        self.network.train()
        if first:
            self._zero_grad()
        updated = False
        clean: Output | None = None
        noisy: Output | None = None
        parts = defense.losses(self.network, Batch(images, target, ids))
        while True:
            with self._autocast():  # the forwards happen inside next()
                part = next(parts, None)
            if part is None:
                break
            self._backward(part)
            clean = part.output if clean is None else clean
            noisy = part.noisy_output if noisy is None else noisy
            updated = part.update
            del part  # the next part's attack needs the memory of its graph
            if updated:
                self._update_weights()
                self._zero_grad()
        prediction = noisy if clean is None else clean
        if prediction is not None:
            self.state.output[CommonKeys.PRED] = with_meta(prediction, inputs)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        if not updated:
            self._update_weights(step=last)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, Any] = self.state.output
        return output

    def _prepared(self, batchdata: Any) -> tuple[Tensor, Tensor]:
        if batchdata is None:
            raise ValueError("Must provide batch data for current iteration.")
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        return image_and_label(batch)

    def _micro_batch(self) -> tuple[bool, bool]:
        """Whether gradients start at zero, and whether weights are updated: accumulation as SupervisedTrainer does."""
        steps, length = self.accumulation_steps, self.state.epoch_length
        place = self.state.iteration - 1 if length is None else (self.state.iteration - 1) % length
        return place % steps == 0, (place + 1) % steps == 0 or place + 1 == length

    def _backward(self, part: LossPart) -> None:
        steps = self.accumulation_steps
        if part.update and steps > 1:
            raise InputError.of(
                "accumulation_steps", steps, f"1 with {type(self.defense).__name__}",
                "it updates the weights several times per batch",
            )  # fmt: skip
        loss = part.loss / steps if steps > 1 else part.loss
        torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))
        before = self.state.output.get(CommonKeys.LOSS)
        self.state.output[CommonKeys.LOSS] = part.loss.detach() if before is None else before + part.loss.detach()

    def _update_weights(self, step: bool = True) -> None:
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if not step:
            return
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)

    def _autocast(self) -> Any:
        return torch.autocast("cuda", **self.amp_kwargs) if self.amp else nullcontext()


class _Attached:
    """A handler that lets the trainer attach its own, at its place among the others."""

    def __init__(self, attach: Callable[[], None]) -> None:
        self._attach = attach

    def attach(self, engine: Engine) -> None:
        """Called by the trainer."""
        self._attach()

"""The nnU-Net host: one trainer over any defence.

Only what differs from nnU-Net is overridden; everything else (data, augmentation, loss, schedule, validation, export)
is the host's own. trainers.py makes one for every method of the registry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, autocast, nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch
from monai_adv.defenses.method import CLEAN_PASSES, Method
from monai_adv.defenses.nothing_attacked import NothingAttacked
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.network_state import bare, is_compiled
from monai_adv.price import Clock, dearer_later, forecast
from monai_adv.random_streams import seed_of
from monai_adv.sample_state import SampleIds
from monai_adv.settings import Settings, as_dict, combine, expand_preset, read_settings, with_fine_tuning
from monai_adv.tasks import SegmentationSettings, SegmentationTask
from monai_adv.threats import Threat
from nnunet_trainers import pretrained
from nnunet_trainers.attacker import Attacker, attacker_of
from nnunet_trainers.augmentation import check_augmentation, chosen, mirrored_only
from nnunet_trainers.batch_checks import refuse_bad_samples
from nnunet_trainers.batch_samples import ids_of, samples_of, unknown_samples
from nnunet_trainers.checkpoint import (
    BEST_ROBUST,
    SECTION,
    as_written,
    goes_on_in,
    plain,
    read_checkpoint,
    read_of_run,
    refuse_later_run,
    write_checkpoint,
)
from nnunet_trainers.console import end_with_the_sentence
from nnunet_trainers.host_network import built
from nnunet_trainers.mixing import Mixing, defining
from nnunet_trainers.opening_lines import opening_lines
from nnunet_trainers.plain_model import NNUNET_ITERATIONS, check_worth_attacking, starting_model
from nnunet_trainers.price import RunPrice
from nnunet_trainers.ranks import frozen_ranks_named, wait_at_most
from nnunet_trainers.robust_validation import attacked, fixed_batches, pseudo_dice
from nnunet_trainers.robustness_log import RobustnessLog
from nnunet_trainers.run_settings import FINE_TUNING, PLAIN, RunSettings, resumed
from nnunet_trainers.slice_loader import slices_in_batches
from nnunet_trainers.start_checks import check_device, check_mixture, check_writable

SAVE_EVERY = 10  # attacks make epochs long; nnU-Net would risk 50 of them
NNUNET_SAVES_EVERY = 50


class RobustTrainer(nnUNetTrainer, metaclass=Mixing):
    """Base of all robust trainers; subclasses name their method. See mixing.py for how nnU-Net's variants join in."""

    method: ClassVar[Method]

    # Of nnU-Net's, and set again here.
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    initial_lr: float
    save_every: int

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature, to the letter)
    ) -> None:
        end_with_the_sentence()
        self.method.check_task("segmentation")
        given = expand_preset(self._sections(), read_settings(), self._presets())
        sections = combine(self._sections(), given)  # refuse bad settings before any folder is made
        self._goes_on = bool(plans.get("continue_training"))  # --c, not --val; nnU-Net takes it out of the plans
        names = plans["dataset_name"], type(self).__name__, plans["plans_name"], configuration, fold
        # Only what is given now, and for a beginning: a checkpoint remembers a file that may be gone.
        begins = not (self._goes_on and goes_on_in(get_output_folder(*names)))
        run = cast(RunSettings, sections["run"])
        self.start = starting_model(run.initial_weights, plans, configuration, fold) if begins else None
        # A file that somebody names for a long training may be young: one from scratch is younger.
        if self.start is not None and (run.initial_weights == PLAIN or run.budget is not None):
            threshold = cast(SegmentationSettings, sections["task"]).threshold
            check_worth_attacking(self.start, self.method, cast(DefenseSettings, sections["defense"]), threshold)
        self.sections = sections
        self._price.epochs(NNUNET_ITERATIONS)
        check_device(device)
        check_writable()
        check_mixture(type(self))
        check_augmentation(run.augmentation, self._own_augmentation())
        attacker_of(sections, PlansManager(plans), configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.save_every == NNUNET_SAVES_EVERY:
            self.save_every = SAVE_EVERY
        self.defense: Defense | None = None
        self.robustness = RobustnessLog()
        self.sample_ids: SampleIds | None = None
        self._given = given
        self._saved_defense: dict[str, Any] | None = None
        self._bound = False
        self._split: Any = None
        self._validation_batches: list[dict[str, Any]] | None = None
        self._attacked_validation: list[dict[str, Any]] = []
        self._nothing_attacked = NothingAttacked()

    # ---------------------------------------------------------------- settings

    @classmethod
    def _sections(cls) -> dict[str, type[Settings]]:
        return {"defense": cls.method.settings, "task": SegmentationSettings, "run": RunSettings}

    @property
    def run(self) -> RunSettings:
        """The settings of the run."""
        return cast(RunSettings, self.sections["run"])

    @classmethod
    def _presets(cls) -> dict[str, Mapping[str, Any]]:
        return with_fine_tuning(cls.method.presets, FINE_TUNING)

    @property
    def _price(self) -> RunPrice:
        return RunPrice(self.method, self.sections, self.start)

    def settings_count(self) -> None:
        """Set what a setting names; the rest stays as nnU-Net, its variants and subclasses have set it."""
        values = {
            "num_epochs": self.run.epochs or self._price.epochs(self.num_iterations_per_epoch),
            "num_iterations_per_epoch": self.run.iterations,
            "num_val_iterations_per_epoch": self.run.validation_iterations,
            "initial_lr": None if self.run.initial_lr == PLAIN else self.run.initial_lr,
            "save_every": self.run.save_every,
        }
        for name, value in values.items():
            if value is not None:
                setattr(self, name, value)
        if not self.run.amp:
            self.grad_scaler = None

    # ---------------------------------------------------------------- set-up

    def initialize(self) -> None:
        super().initialize()
        loss = self.loss
        task = SegmentationTask(
            loss,
            cast(SegmentationSettings, self.sections["task"]),
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            deep_supervision_weights=getattr(loss, "weight_factors", None),
        )
        if self.run.training_loss == "per_sample":  # with every resolution: DDP wants all parameters used
            alone = task.sample_training_loss
            task = task.with_loss(lambda output, target: alone(output, target).mean())
        self.defense = self.method.defense(task, self.attacker.training, self._intensity_channels())
        self.defense.attach(self.network, self.optimizer)
        pretrained.watch(self.network)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The host's network as the method wants it (DSBN doubles the norm layers); prediction calls this as well."""
        network = built(
            super().build_network_architecture, plans_manager, configuration_manager, num_input_channels,
            num_output_channels, enable_deep_supervision,
        )  # fmt: skip
        return cls.method.defense.prepare(network)

    def _do_i_compile(self) -> bool:
        reason = self.method.defense.eager_only
        if reason is None:
            return bool(super()._do_i_compile())
        self.print_to_log_file(f"{self.method.name} runs without torch.compile: {reason}")
        return False

    def _intensity_channels(self) -> tuple[int, ...] | None:
        """A cascade appends the previous stage's segmentation as one-hot channels: no attacker changes those."""
        if not self.is_cascaded:
            return None
        return tuple(range(self.num_input_channels - len(self.label_manager.foreground_labels)))

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        optimizer, scheduler = super().configure_optimizers(*args, **kwargs)  # variants have arguments of their own
        if self.run.initial_lr == PLAIN and self._saved_defense is None:  # a run that goes on has its rate already
            assert self.start is not None
            rate = self.start.initial_lr(optimizer)
            if rate is None:
                self.print_to_log_file(
                    f"First learning rate {self.initial_lr:g}: the plain checkpoint knows none of "
                    f"{type(optimizer).__name__} (`initial_lr`)."
                )
            else:
                self.initial_lr = rate
                self.print_to_log_file(f"First learning rate {rate:g}, as in the plain training (`initial_lr`).")
                optimizer, scheduler = super().configure_optimizers(*args, **kwargs)
        if self.run.lr_schedule == "constant":
            scheduler = PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0.0)
        return optimizer, scheduler

    def get_dataloaders(self) -> Any:
        with slices_in_batches():
            return super().get_dataloaders()

    @classmethod
    def _own_augmentation(cls) -> list[str]:
        return [c.__name__ for c in defining(cls, "get_training_transforms") if c is not RobustTrainer]

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        transforms = super().get_training_transforms(*args, **kwargs)
        if self.run.augmentation == "host":
            return transforms
        mirroring = True
        if self.run.augmentation == "auto":
            mirroring, said = chosen(self._own_augmentation(), *self._visits())
            self.print_to_log_file(said)
        return mirrored_only(transforms) if mirroring else transforms

    def _visits(self) -> tuple[float, str]:
        """How often the training sees each image, and whether that is a case or, in 2D, a slice."""
        cases = len(self.do_split()[0])
        slices = self.plans_manager.original_median_shape_after_transp[0] if self._is_2d else 1
        drawn = self.num_epochs * self.num_iterations_per_epoch * self.configuration_manager.batch_size
        return drawn / (cases * slices), "slice" if self._is_2d else "case"

    def do_split(self) -> Any:
        """nnU-Net's, asked once: it writes into the log."""
        if self._split is None:
            self._split = super().do_split()
        return self._split

    def get_tr_and_val_datasets(self) -> Any:
        training, validation = super().get_tr_and_val_datasets()
        assert self.defense is not None
        if self.defense.needs_ids:
            self.sample_ids = samples_of(training, self._is_2d)
        self._bind()  # before worker processes start, so that a refusal leaves nothing behind
        return training, validation

    @property
    def _is_2d(self) -> bool:
        return len(self.configuration_manager.patch_size) == 2

    def _bind(self) -> None:
        assert self.defense is not None
        if self.sample_ids is not None:
            self.defense.bind(self.sample_ids, self.device)
        else:
            self.defense.generator(self.device)  # so that a checkpoint's random stream finds its place
        self._bound = True
        if self._saved_defense is not None:
            self.defense.load_state_dict(self._saved_defense)

    def on_train_start(self) -> None:
        if self.local_rank == 0:
            for left_over in Path(self.output_folder).glob("*.tmp"):  # of a run that was killed while saving
                left_over.unlink()
        if self.is_ddp:
            wait_at_most(self.run.rank_timeout)
            self.print_to_log_file(f"GPUs wait for each other for {self.run.rank_timeout:g} minutes (`rank_timeout`).")
        super().on_train_start()
        assert self.defense is not None
        if not self._bound:  # loaders of the user's own, which did not ask for our data sets
            if self.defense.needs_ids:
                todo = "call get_tr_and_val_datasets() in get_dataloaders()"
                raise unknown_samples(self.dataloader_train, "the cases to train with", self.method.name, todo)
            self._bind()
        if self.start is not None and self.start.weights is not None:
            if self.current_epoch == 0:
                self.start.load_into(bare(self.network))
                for line in self.start.lines(self.plans_manager.dataset_name, self.fold):
                    self.print_to_log_file(line)
            self.start = replace(self.start, weights=None)
        patch = torch.empty(1, self.num_input_channels, *self.configuration_manager.patch_size)
        threat = self.threat().describe(patch, self.attacker.raw_unit)
        price = self._price.lines(self.num_epochs, self.num_iterations_per_epoch)
        for line in opening_lines(type(self).__name__, self.sections, threat, price, self.sample_ids):
            self.print_to_log_file(line, add_timestamp=False)
        self._clock = Clock(self.num_iterations_per_epoch)
        if is_compiled(self.network):
            self.print_to_log_file(
                "Compiling graphs for training, attack and search: the first epoch takes minutes longer."
            )

    @property
    def attacker(self) -> Attacker:
        """Of the training and of its validation, in network units."""
        return attacker_of(self.sections, self.plans_manager, self.configuration_name)

    def threat(self) -> Threat:
        """The attacker that is trained against."""
        return self.attacker.training.threat(self._intensity_channels())

    def run_training(self) -> None:
        """nnU-Net's.

        Raises:
            InputError: another rank stands still.
        """
        with frozen_ranks_named(self.run.rank_timeout):
            super().run_training()

    # ---------------------------------------------------------------- training

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        assert self.defense is not None
        self.defense.on_epoch_start(self.current_epoch, self.num_epochs)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, with the defence's parts in place of the one loss."""
        assert self.defense is not None
        images, target = self._to_device(batch)
        ids = self._ids(batch)

        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        parts = self.defense.losses(self.network, Batch(images, target, ids))
        updated = False
        while True:
            with self._autocast():  # the forwards happen inside next(); the backward stays outside, as in nnU-Net
                part = next(parts, None)
            if part is None:
                break
            scaled = part.loss if self.grad_scaler is None else self.grad_scaler.scale(part.loss)
            torch.autograd.backward(scaled)
            loss += part.loss.detach()
            updated = part.update
            if updated:
                self._update_weights()
                self.optimizer.zero_grad(set_to_none=True)
            del part, scaled  # the next part's attack needs the memory
        if not updated:
            self._update_weights()
        result = {"loss": loss.cpu().numpy()}
        told = self._clock.step(self.num_epochs - self.current_epoch)
        if told is not None:
            told += self._dearer_later(self.defense.statistics.so_far())
            if self.current_epoch == 0:
                told += self._price.beyond(self._clock.seconds, self.num_epochs)
            self.print_to_log_file(told)
        return result

    def _ids(self, batch: dict[str, Any]) -> Tensor | None:
        """Which samples a batch holds, where the method remembers samples."""
        if self.sample_ids is None:
            return None
        ids = ids_of(batch, self.sample_ids, self._is_2d, self.dataloader_train, self.method.name)
        return ids.to(self.device, non_blocking=True)

    def _autocast(self) -> Any:
        return autocast("cuda", enabled=self.run.amp) if self.device.type == "cuda" else nullcontext()

    def _update_weights(self) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()

    def _to_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | list[Tensor]]:
        """Images and target on the device, checked."""
        images = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [t.to(self.device, non_blocking=True) for t in target]
        else:
            target = target.to(self.device, non_blocking=True)
        refuse_bad_samples(images, target, batch, self.label_manager)
        return images, target

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        assert self.defense is not None
        figures = self.defense.on_epoch_end()
        self._figures = {**figures, "passes_clean": CLEAN_PASSES}
        warning = self._nothing_attacked(self.defense, figures)
        if warning is not None:
            self.print_to_log_file(f"WARNING: {warning} `initial_weights` starts from a trained model.")

    # ---------------------------------------------------------------- robust validation

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._attacked_validation = []
        threat = self._validation_threat()
        if threat is None:
            return
        if self._validation_batches is None:
            seed = seed_of(self.attacker.training.seed, self.local_rank)
            count = self.run.robust_validation_batches
            self._validation_batches = fixed_batches(self.dataloader_val, count, seed)
        assert self.defense is not None
        for batch in map(self._on_device, self._validation_batches):
            with self._autocast():
                worst = attacked(batch, threat, self.run.robust_validation_steps, self.network, self.defense.task)
            self._attacked_validation.append(super().validation_step(worst))

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = super().validation_step(self._on_device(batch))
        return result

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        images, target = self._to_device(batch)
        return {**batch, "data": images, "target": target}

    def _validation_threat(self) -> Threat | None:
        eps = self.attacker.validation.eps
        return replace(self.threat(), eps=eps) if eps else None

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        self._figures["robust_dice"] = pseudo_dice(self._attacked_validation)
        self._figures["mean_fg_dice"] = float(self.logger.get_value("mean_fg_dice", step=-1))
        self.robustness.add(self.current_epoch, self._figures)
        for logger in self.logger.loggers:  # Weights & Biases and the like; nnU-Net's local logger has fixed keys
            for name, value in self._figures.items():
                logger.log(f"robustness/{name}", value, self.current_epoch)

    def on_epoch_end(self) -> None:
        row = self.robustness.rows[-1]
        shown = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("epoch", "passes_clean"))
        self.print_to_log_file(f"Robustness: {shown}")
        super().on_epoch_end()
        if self.current_epoch < self.num_epochs:
            seconds = self._seconds_of_last_epoch()
            left = forecast(seconds, self.num_epochs - self.current_epoch)
            self.print_to_log_file(left + self._dearer_later(self._figures))
        if self.robustness.last_is_best():
            self.print_to_log_file(f"New best pseudo Dice under attack (moving average): {row['robust_dice_ema']:.4f}")
            self.current_epoch -= 1  # save_checkpoint counts on from the current epoch, as in on_train_end
            self.save_checkpoint(os.path.join(self.output_folder, BEST_ROBUST))
            self.current_epoch += 1
        if self.local_rank == 0:
            self.robustness.write(self.output_folder)

    def _dearer_later(self, figures: Mapping[str, float]) -> str:
        return dearer_later(self.method, cast(DefenseSettings, self.sections["defense"]), figures)

    def _seconds_of_last_epoch(self) -> float:
        start, end = (float(self.logger.get_value(f"epoch_{name}_timestamps", step=-1)) for name in ("start", "end"))
        return end - start

    def on_train_end(self) -> None:
        if self.run.final_weights == "best_robust":
            self._take_best_robust()
        super().on_train_end()

    def _take_best_robust(self) -> None:
        """A file of an earlier run may lie there: that run began at another instant. One that goes on keeps its own."""
        began = [self.logger.get_value("epoch_start_timestamps", step=0)]
        if self.is_ddp:
            dist.broadcast_object_list(began)  # of the rank that writes the file; it has done so by now
        best = read_of_run(Path(self.output_folder) / BEST_ROBUST, began[0])
        if best is None:
            self.print_to_log_file(
                f"This run has no {BEST_ROBUST}, so the final weights are the last (`final_weights`)."
            )
            return
        bare(self.network).load_state_dict(best["network_weights"])
        row = best[SECTION]["robustness"][-1]
        self.print_to_log_file(
            f"The final weights are those of epoch {row['epoch']}, as in {BEST_ROBUST} (`final_weights`): "
            f"pseudo Dice {row['robust_dice']:.4f} under attack, {row['mean_fg_dice']:.4f} clean."
        )

    # ---------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint plus our section, written so that a crash never costs the previous one."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        assert self.defense is not None
        checkpoint = as_written(super().save_checkpoint)
        if checkpoint is None:
            return  # a variant that writes none
        checkpoint[SECTION] = {
            "settings": as_dict(self.sections),
            "epochs": self.num_epochs,
            "initial_lr": self.initial_lr,
            "threat": self.defense.trained_against(),
            "defense": self.defense.state_dict(),
            "robustness": self.robustness.rows,
        }
        write_checkpoint(plain(checkpoint), filename)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Restore a run; settings that were not given anew come from the checkpoint.

        Raises:
            InputError: damaged file, another trainer's checkpoint, margins of other samples, or a finished run where
                ``--c`` means a later one.
        """
        if not isinstance(filename_or_checkpoint, str):
            raise InputError.of("checkpoint", type(filename_or_checkpoint).__name__, "the path of a checkpoint file")
        if self._goes_on:
            refuse_later_run(Path(filename_or_checkpoint))
        saved = read_checkpoint(filename_or_checkpoint, self.__class__.__name__)[SECTION]
        sections, changed = resumed(
            self.method, self._sections(), filename_or_checkpoint, saved["settings"], self._given
        )
        if changed:
            self.print_to_log_file("Settings that differ from the checkpoint:\n  " + "\n  ".join(changed))
        if not self.was_initialized:
            self.sections = sections
            self.settings_count()
            if self.run.budget is not None:
                self.num_epochs = saved["epochs"]
            if self.run.initial_lr == PLAIN:
                self.initial_lr = float(saved["initial_lr"])
        self._saved_defense = saved["defense"]
        super().load_checkpoint(filename_or_checkpoint)
        self.robustness = RobustnessLog(list(saved["robustness"]))
        if self._bound:
            assert self.defense is not None
            self.defense.load_state_dict(self._saved_defense)

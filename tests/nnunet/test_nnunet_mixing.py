"""Every variant that comes with nnU-Net, mixed with a robust trainer, in both orders: trained, saved, continued."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler
from nnunetv2.training.nnUNetTrainer import variants
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam3en4
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs
from torch import nn

from monai_adv import InputError
from monai_adv.networks.dual_batch_norm import converted
from nnunet_trainers import CATTrainer, DSBNTrainer, IMATrainer, StandardTrainer
from nnunet_trainers.robust_trainer import RobustTrainer
from tests import nnunet_toy as toy
from tests.nnunet_host import datasets, host, same, started, weights  # noqa: F401  (fixtures)

BENCHMARKS = ("nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading")  # need a GPU


def all_variants() -> list[type]:
    found = {}
    for info in pkgutil.walk_packages(variants.__path__, variants.__name__ + "."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, type) and issubclass(value, nnUNetTrainer) and value.__module__ == info.name:
                found[value.__name__] = value
    for name in BENCHMARKS:
        del found[name]
    if importlib.util.find_spec("adan_pytorch") is None:
        found = {name: cls for name, cls in found.items() if "Adan" not in name}
    return list(found.values())


def mixed(variant: type, robust: type = IMATrainer, robust_first: bool = True) -> Any:
    return type("Mixed", (robust, variant) if robust_first else (variant, robust), {})


VARIANTS = all_variants()


def test_there_are_variants() -> None:
    assert len(VARIANTS) > 35


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
def test_the_order_of_naming_makes_no_difference(variant: type) -> None:
    first, second = mixed(variant), mixed(variant, robust_first=False)
    assert first.__mro__[1:] == second.__mro__[1:]
    assert first.__mro__.index(RobustTrainer) < first.__mro__.index(variant)
    rest = [c for c in first.__mro__ if not issubclass(c, RobustTrainer)]
    assert rest == [c for c in variant.__mro__ if c in rest]  # among themselves as Python has them


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
def test_what_a_variant_sets_is_there_before_and_after_loading(host: Any, tmp_path: Path, variant: type) -> None:
    """The attributes and parts of the variant alone are those of the mixture, fresh and from a checkpoint.

    In one order: the test above says that the other one is the same class.
    """
    alone = toy_of(host, variant)
    cls = mixed(variant, robust_first=False)
    fresh = toy_of(host, cls)
    started(fresh)
    fresh.defense.margins.values.copy_(torch.rand(len(fresh.defense.margins.values)) / 20)
    file = str(tmp_path / "saved.pth")
    fresh.save_checkpoint(file)
    continued = toy_of(host, cls)
    continued.load_checkpoint(file)
    started(continued)
    for trainer in (fresh, continued):
        for name in ("num_epochs", "initial_lr", "enable_deep_supervision", "probabilistic_oversampling",
                     "oversample_foreground_percent", "num_iterations_per_epoch"):  # fmt: skip
            assert getattr(trainer, name) == getattr(alone, name), name
    alone.initialize()
    for trainer in (fresh, continued):
        assert str(trainer.network) == str(alone.network)
        assert type(trainer.optimizer) is type(alone.optimizer)
        assert type(trainer.lr_scheduler) is type(alone.lr_scheduler)
        assert str(trainer.loss) == str(alone.loss)
    assert torch.equal(fresh.defense.margins.values, continued.defense.margins.values)
    assert same(weights(fresh), weights(continued))


def toy_of(host: Any, cls: type) -> Any:
    """With the variant's own schedule: no settings are given."""
    return host(cls, short=False)


@pytest.mark.parametrize(
    ("variant", "robust_first"), [(nnUNetTrainerBN, False), (nnUNetTrainer_warmup, False), (nnUNetTrainer_warmup, True)]
)
def test_mixtures_train_and_go_on(host: Any, tmp_path: Path, variant: type, robust_first: bool) -> None:
    cls = mixed(variant, robust_first=robust_first)
    first = host(cls, threshold=0.05)
    first.run_training()
    second = host(cls, threshold=0.05, epochs=3)
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    second.run_training()
    assert [r["epoch"] for r in second.robustness.rows] == [0, 1, 2]


@pytest.mark.parametrize("robust_first", [True, False])
def test_batch_norm_is_trained_also_with_two_branches(host: Any, robust_first: bool) -> None:
    trainer = host(mixed(nnUNetTrainerBN, DSBNTrainer, robust_first))
    trainer.initialize()
    layers = converted(trainer.network)
    assert layers
    assert all(isinstance(layer.clean, nn.BatchNorm2d) for layer in layers)


@pytest.mark.parametrize("robust_first", [True, False])
def test_warm_up_changes_its_schedule_and_keeps_the_optimiser(host: Any, robust_first: bool) -> None:
    trainer = started(host(mixed(nnUNetTrainer_warmup, robust_first=robust_first), epochs=100))
    optimizer = trainer.optimizer
    assert isinstance(trainer.lr_scheduler, Lin_incr_LRScheduler)
    trainer.current_epoch = trainer.warmup_duration_whole_net
    trainer.on_train_epoch_start()
    assert not isinstance(trainer.lr_scheduler, Lin_incr_LRScheduler)
    assert trainer.optimizer is optimizer


@pytest.mark.parametrize("robust_first", [True, False])
def test_a_setting_that_is_given_wins_over_a_variant(host: Any, robust_first: bool) -> None:
    cls = mixed(type("Both", (nnUNetTrainer_5epochs, nnUNetTrainerAdam3en4), {}), robust_first=robust_first)
    trainer = host(cls, epochs=7)
    assert (trainer.num_epochs, trainer.initial_lr) == (7, 3e-4)
    assert host(cls, short=False, initial_lr=0.5).num_epochs == 5


def test_what_a_subclass_sets_survives_a_checkpoint(host: Any, tmp_path: Path) -> None:
    class Mine(IMATrainer):
        def __init__(self, plans: Any, configuration: Any, fold: Any, dataset_json: Any, device: Any = None) -> None:
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.initial_lr, self.num_epochs, self.num_iterations_per_epoch, self.save_every = 0.003, 17, 3, 4
            self.num_val_iterations_per_epoch = 1

    def values(trainer: Any) -> tuple[Any, ...]:
        return (trainer.initial_lr, trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.save_every,
                trainer.num_val_iterations_per_epoch)  # fmt: skip

    first = started(host(Mine, short=False))
    assert values(first) == (0.003, 17, 3, 4, 1)
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    second = host(Mine, short=False)
    second.load_checkpoint(str(tmp_path / "saved.pth"))
    assert values(second) == (0.003, 17, 3, 4, 1)
    assert second.optimizer.param_groups[0]["initial_lr"] == 0.003
    third = host(Mine, short=False, epochs=9)  # what is given wins
    third.load_checkpoint(str(tmp_path / "saved.pth"))
    assert values(third) == (0.003, 9, 3, 4, 1)
    assert host(IMATrainer, short=False).save_every == 10


def test_settings_of_one_method_do_not_mix_on_resume(host: Any, tmp_path: Path) -> None:
    """CAT's lessons and the task each have a threshold."""
    first = started(host(CATTrainer))
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    second = host(CATTrainer)
    second.load_checkpoint(str(tmp_path / "saved.pth"))
    assert second.sections == first.sections
    assert second.sections["defense"].lesson_threshold == 0.95
    assert second.sections["task"].threshold == 0.6


def test_another_training_step_cannot_be_mixed_in(host: Any) -> None:
    class TheirStep(nnUNetTrainer):
        def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {}

    for first in (True, False):
        with pytest.raises(InputError, match="^trainer: received 'Mixed with the train_step of TheirStep'"):
            host(mixed(TheirStep, robust_first=first))


def test_networks_of_the_old_signature(host: Any) -> None:
    class Old(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(
            name: str, kwargs: Any, imports: Any, channels: int, outputs: int, deep_supervision: bool = True
        ) -> nn.Module:
            network = nn.Conv2d(channels, outputs, 1)
            network.told = (name.rpartition(".")[2], deep_supervision)
            return network

    plans = host(StandardTrainer)
    arguments = (plans.plans_manager, plans.configuration_manager, 1, 3, False)
    network = mixed(Old, StandardTrainer).build_network_architecture(*arguments)
    assert network.told == ("PlainConvUNet", False)
    assert plans.plans_manager.dataset_name == toy.NAME

"""The plain model that a fine-tuning starts from, what its training cost, and how long ours may be for that."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from torch import Tensor, nn
from torch.optim import Optimizer

from monai_adv.defenses.method import CLEAN_PASSES, Method
from monai_adv.defenses.nothing_attacked import least_dice
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.errors import InputError
from monai_adv.price import in_hours, whole_epochs
from monai_adv.weights import names_in
from nnunet_trainers.checkpoint import FINAL, LATEST, is_nnunet, is_plain, read_any
from nnunet_trainers.run_settings import PLAIN

NNUNET_ITERATIONS = 250
_NAME_ONE = "name a checkpoint (MONAI_ADV_INITIAL_WEIGHTS=FILE)"


@dataclass(frozen=True)
class PlainModel:
    """A trained model without a defence.

    Attributes:
        file: its checkpoint.
        epochs: that it was trained for; 0 if the checkpoint does not say.
        iterations: steps of an epoch.
        dice: nnU-Net's pseudo Dice of its last epoch, mean over the classes; NaN if the checkpoint does not say.
        epoch_seconds: of an epoch with its validation, the median; NaN if the checkpoint does not say.
        optimizer: settings of its optimiser's first group, as PyTorch keeps them; empty if the checkpoint has none.
        dataset, fold: that it was trained on; "" and None if the checkpoint does not say.
        weights: of its network, on the CPU; None once they have been used, which frees their memory.
    """

    file: Path
    epochs: int
    iterations: int
    dice: float
    epoch_seconds: float = math.nan
    optimizer: Mapping[str, Any] = field(default_factory=dict, repr=False)
    dataset: str = ""
    fold: int | str | None = None
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def passes(self) -> float:
        """Network passes per sample of a batch over the whole training, in forwards."""
        return self.epochs * self.iterations * CLEAN_PASSES

    @property
    def hours(self) -> float:
        """What the whole training took, on the machine that it ran on."""
        return self.epochs * self.epoch_seconds / 3600

    def told_of_a_leak(self, dataset: str, fold: int | str) -> str | None:
        """A sentence where its training has seen the cases that validate a fold of ours, or None.

        Example:
            >>> plain = PlainModel(Path("x.pth"), 1000, 250, 0.9, dataset="Dataset004_Hippocampus", fold=0)
            >>> plain.told_of_a_leak("Dataset004_Hippocampus", 0) is None
            True
            >>> plain.told_of_a_leak("Dataset004_Hippocampus", 1)
            'WARNING: x.pth is of fold 0, which trains with what validates fold 1: all Dice of this run are too high.'
        """
        if self.dataset != dataset or self.fold in (None, fold) or fold == "all":
            return None
        return (
            f"WARNING: {self.file} is of fold {self.fold}, which trains with what validates fold {fold}: "
            "all Dice of this run are too high."
        )

    def lines(self, dataset: str, fold: int | str) -> list[str]:
        """For the log of a fine-tuning that begins: where from, and what speaks against that.

        Args:
            dataset, fold: that are trained on now.
        """
        said = [f"Fine-tuning from {self.file}"]
        if math.isnan(self.dice):
            said.append(
                f"WARNING: {self.file} does not say which Dice it has reached, so nobody has looked whether it "
                "segments anything."
            )
        leak = self.told_of_a_leak(dataset, fold)
        return said if leak is None else [*said, leak]

    def initial_lr(self, optimizer: Optimizer) -> float | None:
        """Its first learning rate, for an optimiser of the same kind; None where that is not known.

        Example:
            SGD's rate says nothing to Adam:

            >>> plain = PlainModel(Path("final.pth"), 1000, 250, 0.9, optimizer={"initial_lr": 0.02, "momentum": 0.99})
            >>> from torch.optim import SGD, Adam
            >>> weights = list(nn.Linear(1, 1).parameters())
            >>> plain.initial_lr(SGD(weights)), plain.initial_lr(Adam(weights))
            (0.02, None)
        """
        kind = ("momentum", "betas")  # of SGD; of Adam and its relatives
        ours = optimizer.param_groups[0]
        if "initial_lr" not in self.optimizer or any((k in ours) != (k in self.optimizer) for k in kind):
            return None
        return float(self.optimizer["initial_lr"])

    def load_into(self, network: nn.Module) -> None:
        """Give a network of the same architecture the weights, output layers included.

        Raises:
            InputError: another architecture.
        """
        assert self.weights is not None
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise InputError.of(
                "initial_weights", str(self.file), "a checkpoint of the same plans and configuration",
                f"PyTorch says: {' '.join(str(error).split())[:200]}",
            ) from None  # fmt: skip


def find_plain(results: Path, dataset: str, plans: str, configuration: str, fold: int | str) -> PlainModel:
    """The one plain model of a data set, plans, configuration and fold, at its final checkpoint.

    A model is plain if no defence has trained it; nnU-Net's variants and trainers of your own are.

    Args:
        results: the folder nnUNet_results.
        dataset, plans, configuration: names, as folders have them.
        fold: number, or "all".

    Raises:
        InputError: there is none, or several to choose from.
    """
    pattern = f"*__{plans}__{configuration}/fold_{fold}/{FINAL}"
    found, robust = [], []
    for file in sorted((results / dataset).glob(pattern)):
        checkpoint = read_any(file)
        if is_plain(checkpoint):
            found.append(_plain_model(file, checkpoint))
        else:
            robust.append(file)
    wanted = f"{dataset}, {plans}, {configuration}, fold {fold}"
    if not found:
        unfinished = [
            file
            for file in sorted((results / dataset).glob(pattern.replace(FINAL, LATEST)))
            if is_nnunet(file) and is_plain(read_any(file))
        ]
        if unfinished:
            raise InputError.of(
                "initial_weights", PLAIN, f"a finished plain training of {wanted}",
                f"{unfinished[0]} is of one that is not finished; end it (nnUNetv2_train with --c), or {_NAME_ONE}",
            )  # fmt: skip
        others = [
            f"{file.parts[-3]}/{file.parts[-2]}{' (robust)' if file in robust else ''}"
            for file in sorted((results / dataset).glob(f"*/fold_*/{FINAL}"))
        ]
        here = f"there are {', '.join(others[:5])}" if others else "nothing is trained there yet"
        raise InputError.of(
            "initial_weights", PLAIN, f"a finished plain training of {wanted}",
            f"{here}; train it first (nnUNetv2_train without -tr), or {_NAME_ONE}",
        )  # fmt: skip
    if len(found) > 1:
        raise InputError.of(
            "initial_weights", PLAIN, f"one plain model of {wanted}",
            f"there are several; {_NAME_ONE}, one of " + ", ".join(str(model.file) for model in found),
        )  # fmt: skip
    return found[0]


def read_plain(file: Path) -> PlainModel:
    """The model of a checkpoint, whoever trained it, and what is known about its training.

    Raises:
        InputError: it cannot be read.
    """
    return _plain_model(file, read_any(file))


def _plain_model(file: Path, checkpoint: Mapping[str, Any]) -> PlainModel:
    made_of = checkpoint.get("init_args") or {}
    return PlainModel(
        file,
        int(checkpoint.get("current_epoch", 0)),
        _iterations(file),
        _last_dice(checkpoint),
        _epoch_seconds(checkpoint),
        _optimizer(checkpoint),
        (made_of.get("plans") or {}).get("dataset_name", ""),
        made_of.get("fold"),
        checkpoint["network_weights"],
    )


def starting_model(
    weights: str | None, plans: Mapping[str, Any], configuration: str, fold: int | str
) -> PlainModel | None:
    """The model that the setting ``initial_weights`` names, if any.

    Raises:
        InputError: there is no such file, or it cannot be read; or :data:`PLAIN`, and there is none, or several.
    """
    if weights is None:
        return None
    if weights != PLAIN:
        file = Path(weights)
        if not file.is_file():
            raise InputError.of(
                "initial_weights", weights, "an existing file, such as .../fold_0/checkpoint_final.pth",
                f"in {file.parent} there is {names_in(file.parent)}",
            )  # fmt: skip
        return read_plain(file)
    results = Path(nnUNet_results.require())
    return find_plain(results, plans["dataset_name"], plans["plans_name"], configuration, fold)


def epochs_within(budget: float | str, plain: PlainModel, iterations: int, forwards: float) -> int:
    """How many epochs cost no more than a share of the plain training.

    Args:
        budget: 1: as many network passes as the plain training took; "2h": as many as it made in two hours.
        plain: the model that is fine-tuned.
        iterations: steps of an epoch of ours, with batches of the same size.
        forwards: passes per sample and step of ours, at most.

    Raises:
        InputError: it does not suffice for one epoch; says what does. Or hours, and the checkpoint knows none.

    Example:
        1000 epochs at 3 forwards a step pay for 142 at 21; of 60 seconds each, 10 hours of them pay for 85:

        >>> plain = PlainModel(Path("final.pth"), 1000, 250, 0.9, epoch_seconds=60)
        >>> epochs_within(1.0, plain, 250, 21), epochs_within("10h", plain, 250, 21)
        (142, 85)
    """
    if plain.epochs == 0:
        raise InputError.of(
            "budget", budget, f"none with {plain.file}, which does not say how long it was trained",
            "give budget: none and the number of epochs (MONAI_ADV_BUDGET=none MONAI_ADV_EPOCHS=50)",
        )  # fmt: skip
    hours = in_hours(budget)
    if hours is not None and not plain.hours > 0:
        raise InputError.of(
            "budget", budget, "a share, such as 1.0, with a checkpoint that does not say how long its epochs took"
        )
    share = float(budget) if hours is None else hours / plain.hours
    epochs = whole_epochs(share * plain.passes / (iterations * forwards))
    if epochs < 1:
        needed = iterations * forwards / plain.passes * (1 if hours is None else plain.hours)
        least = f"{math.ceil(1000 * needed) / 1000:g}{'' if hours is None else 'h'}"
        raise InputError.of(
            "budget", budget, f"at least {least}: one epoch, {iterations} steps at {forwards:.3g} forwards a sample",
            f"the plain training had {plain.epochs} epochs of {plain.iterations} steps at {CLEAN_PASSES:g}; "
            "give a larger budget, fewer attack `steps`, or fewer `iterations`",
        )  # fmt: skip
    return epochs


def check_worth_attacking(plain: PlainModel, method: Method, settings: DefenseSettings, threshold: float) -> None:
    """Refuse a start that segments too little for the method that is to attack it.

    Args:
        plain: the start; one that does not say its Dice passes.
        method, settings: what it is trained with.
        threshold: of the task, above which a sample is right.

    Raises:
        InputError: says so.
    """
    least = least_dice(method.defense, settings, threshold)
    if least is None or not plain.dice <= least:
        return
    if method.defense.attacks_right_only(settings):
        allowed, todo = (
            f"a model above the `threshold` {threshold:g} with {method.name}",
            f"{method.name} attacks samples that are right, and few or none would be; train it longer, lower "
            "`threshold`, or take a method that attacks all samples, such as FGSMRS",
        )
    else:
        allowed, todo = f"a model above {least:g}", "it finds next to nothing that could be attacked; train it longer"
    raise InputError.of("initial_weights", f"{plain.file} with a pseudo Dice of {plain.dice:.2f}", allowed, todo)


def _iterations(file: Path) -> int:
    """nnU-Net notes the length of its epochs beside the checkpoint, not in it."""
    try:
        return int(json.loads((file.parent / "debug.json").read_text())["num_iterations_per_epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return NNUNET_ITERATIONS


def _last_dice(checkpoint: Mapping[str, Any]) -> float:
    logged = checkpoint.get("logging")
    values = logged.get("mean_fg_dice") if isinstance(logged, Mapping) else None
    return float(values[-1]) if isinstance(values, list) and values else math.nan


def _optimizer(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    state = checkpoint.get("optimizer_state")
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    return {k: v for k, v in groups[0].items() if k != "params"} if groups else {}


def _epoch_seconds(checkpoint: Mapping[str, Any]) -> float:
    logged = checkpoint.get("logging")
    if not isinstance(logged, Mapping):
        return math.nan
    starts, ends = logged.get("epoch_start_timestamps"), logged.get("epoch_end_timestamps")
    if not (isinstance(starts, list) and isinstance(ends, list) and ends):
        return math.nan
    return float(statistics.median(end - start for start, end in zip(starts, ends, strict=False)))

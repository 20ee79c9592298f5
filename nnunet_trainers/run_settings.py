"""Settings of a training run that belong to the host, not to the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monai_adv.defenses.method import Method
from monai_adv.errors import InputError
from monai_adv.price import is_budget, refuse_another_price
from monai_adv.settings import Settings, as_dict, combine, differences, flat, not_negative, positive, setting

PLAIN = "plain"
"""In place of a file or a figure: what the plain model in nnUNet_results is, or was trained with."""

Augmentation = Literal["host", "mirroring", "auto"]

FEW_VISITS = 23
"""Seen 19 times mirroring alone was better, 23 times it was good, 24 times it was not (docs/results/price.md)."""


def _is_rate(value: float | str) -> bool:
    return value == PLAIN if isinstance(value, str) else positive(value)


@dataclass(frozen=True)
class RunSettings(Settings):
    """Schedule, precision, robust validation. ``None`` leaves nnU-Net's own value, or that of a subclass."""

    epochs: int | None = setting(None, "epochs; none: nnU-Net's 1000", "a whole number >= 1 or none", positive)
    iterations: int | None = setting(
        None, "steps per epoch; none: nnU-Net's 250", "a whole number >= 1 or none", positive
    )
    validation_iterations: int | None = setting(
        None, "validation batches per epoch; none: nnU-Net's 50", "a whole number >= 1 or none", positive
    )
    save_every: int | None = setting(
        None, "epochs between two checkpoint_latest; none: 10", "a whole number >= 1 or none", positive
    )
    initial_lr: float | str | None = setting(
        None, "first learning rate; none: nnU-Net's 0.01; plain: that of the training that initial_weights comes from, "
        "where its checkpoint knows it and the optimiser is of the same kind",
        "a number > 0, plain or none", _is_rate,
    )  # fmt: skip
    lr_schedule: Literal["poly", "constant"] = setting("poly", "nnU-Net's decay, or none (official IMA code)")
    amp: bool = setting(True, "mixed precision on CUDA, as nnU-Net (official IMA code: false)")
    training_loss: Literal["host", "per_sample"] = setting(
        "host", "nnU-Net's own loss, or Dice + cross-entropy of each sample alone (per_sample: official IMA code)"
    )
    augmentation: Augmentation = setting(
        "host", "nnU-Net's own, or mirroring alone, or (auto) mirroring alone where each image, in 2D each slice, "
        f"is seen at most {FEW_VISITS} times",
    )  # fmt: skip
    initial_weights: str | None = setting(
        None,
        "checkpoint to fine-tune, output layers included (-pretrained_weights leaves those out); plain: the model in "
        "nnUNet_results that no defence trained, of the same data set, plans, configuration and fold",
        "a file, plain or none",
    )
    budget: float | str | None = setting(
        None, "epochs follow from this: network passes as a multiple of those that the plain training took, at most; "
        "or hours (2h), reckoned with the time that the plain training's epochs took",
        "a number > 0, hours such as 2h or none", is_budget,
    )  # fmt: skip
    final_weights: Literal["last", "best_robust"] = setting(
        "last", "what checkpoint_final.pth holds: the last weights, or those of checkpoint_best_robust.pth"
    )
    robust_validation_batches: int = setting(
        5, "validation batches that are attacked after each epoch, always the same; 0: no robust pseudo Dice",
        "a whole number >= 0", not_negative,
    )  # fmt: skip
    robust_validation_steps: int = setting(5, "gradient steps of that attack", "a whole number >= 1", positive)
    robust_validation_eps: float | None = setting(
        None, "its radius in the unit of eps; none: eps", "a number > 0 or none", positive
    )
    rank_timeout: float = setting(
        30.0, "minutes that GPUs wait for each other before the training ends", "a number > 0", positive
    )

    def check(self) -> None:
        if self.budget is not None and self.epochs is not None:
            raise InputError.of(
                "budget and epochs", (self.budget, self.epochs), "one of the two",
                "`preset: finetune` sets a budget: for so many epochs give budget: none beside it",
            )  # fmt: skip
        if self.budget is not None and self.initial_weights is None:
            raise InputError.of(
                "budget", self.budget, "given beside initial_weights",
                "it is a share of what that model's training cost; give initial_weights: plain, or epochs",
            )  # fmt: skip
        if self.final_weights == "best_robust" and self.robust_validation_batches == 0:
            raise InputError.of(
                "robust_validation_batches", 0, "at least 1 with final_weights: best_robust",
                "without them no epoch is the best under attack; or give final_weights: last",
            )  # fmt: skip
        if self.initial_lr == PLAIN and self.initial_weights is None:
            raise InputError.of(
                "initial_lr", self.initial_lr, "a number without initial_weights",
                "it is that model's; give initial_weights: plain, or a number",
            )  # fmt: skip


FINE_TUNING: dict[str, Any] = {
    "initial_weights": PLAIN,
    "initial_lr": PLAIN,
    "budget": 1.0,
    "augmentation": "auto",
    "final_weights": "best_robust",
}
"""The run's part of ``preset: finetune``; a method's own part stands in its file."""


def resumed(
    method: Method, classes: Mapping[str, type[Settings]], file: str, saved: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Settings], list[str]]:
    """Settings of a run that goes on: those of its checkpoint, and what is given anew.

    Args:
        method: that trains.
        classes: of the sections, "run" among them.
        file: the checkpoint.
        saved: settings by section, as it holds them.
        given: by name.

    Returns:
        the sections, and a line for each setting that differs from the checkpoint's.

    Raises:
        InputError: a setting that is not allowed, or another budget, or another price of what
            it pays for.
    """
    known = {name for section in classes.values() for name in section.names()}
    before = {name: value for name, value in flat(saved).items() if name in known}
    if given.get("budget") is not None and before.get("budget") is None:
        raise InputError.of(
            "budget", given["budget"],
            f"none with {file}, which was begun without one (epochs: {before.get('epochs')})",
            "its learning rates follow from its epochs: go on without budget and without `preset: finetune`",
        )  # fmt: skip
    sections = combine(classes, {**before, **given})
    now = flat(as_dict(sections))
    if now["budget"] is not None:
        todo = "go on with it, or start anew without --c"
        refuse_another_price(method, before, now, ("budget", "iterations"), todo)
    return sections, differences(before, now)

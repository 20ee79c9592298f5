"""Settings of a training in MONAI that belong to the run, not to the method: its start, length, learning rate, end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from monai_adv.errors import InputError
from monai_adv.price import in_hours, is_budget
from monai_adv.settings import Settings, not_negative, positive, setting

PLAIN = "plain"
"""In place of a file: the weights that the bundle itself names."""


@dataclass(frozen=True)
class RunSettings(Settings):
    """Everything else (data, optimiser, handlers) is the bundle's own."""

    initial_weights: str | None = setting(
        None,
        "weights to fine-tune; plain: those of the bundle's CheckpointLoader, otherwise model.pt in the folder of its "
        "checkpoints, in the folder above, or in models/",
        "a file, plain or none",
    )
    budget: float | str | None = setting(
        None, "epochs follow from this: network passes as a multiple of those that the plain training took, at most; "
        "or hours (2h), validation included, reckoned after each epoch with the time that they take",
        "a number > 0, hours such as 2h or none", is_budget,
    )  # fmt: skip
    plain_epochs: int | None = setting(
        None, "epochs of that plain training; none: as many as the config trains for (its max_epochs)",
        "a whole number >= 1 or none", positive,
    )  # fmt: skip
    schedule: Literal["bundle", "cosine"] = setting(
        "bundle",
        "of the learning rate: the bundle's own, or half a cosine from the first one to 0 over the epochs of this run",
    )
    initial_lr: float | None = setting(
        None, "first learning rate of the cosine; none: that of the bundle's optimiser", "a number > 0 or none",
        positive,
    )  # fmt: skip
    final_weights: Literal["last", "best_robust"] = setting(
        "last", "what the network has at the end: the last weights, or those of the epoch that was best under attack"
    )
    robust_validation_batches: int | None = setting(
        5, "validation batches that are attacked to choose it; none: all", "a whole number >= 1 or none", positive
    )
    robust_validation_steps: int = setting(5, "gradient steps of that attack", "a whole number >= 1", positive)
    robust_validation_eps: float | None = setting(
        None, "its radius in the unit of eps; none: eps", "a number >= 0 or none", not_negative
    )

    def check(self) -> None:
        if self.hours is None and self.budget is not None and self.initial_weights is None:
            raise InputError.of(
                "budget", self.budget, "given beside initial_weights",
                "it is a share of what that training cost; give initial_weights: plain, max_epochs, or hours (2h)",
            )  # fmt: skip
        if self.plain_epochs is not None and self.budget is None:  # hours may follow a share on the command line
            raise InputError.of("plain_epochs", self.plain_epochs, "given beside budget", "nothing else reads it")
        if self.initial_lr is not None and self.schedule == "bundle":
            raise InputError.of(
                "initial_lr", self.initial_lr, "given beside schedule: cosine",
                "the bundle's own schedule would overwrite it; or set the learning rate of the bundle's optimiser",
            )  # fmt: skip

    @property
    def hours(self) -> float | None:
        """Of a budget in hours."""
        return None if self.budget is None else in_hours(self.budget)


FINE_TUNING: dict[str, Any] = {
    "initial_weights": PLAIN,
    "budget": 1.0,
    "schedule": "cosine",
    "final_weights": "best_robust",
}
"""The run's part of ``preset: finetune``; a method's own part stands in its file."""

"""The weights that were best under attack, of all epochs that the bundle validates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Events
from monai.handlers.validation_handler import ValidationHandler
from torch import Tensor, nn

from monai_adv.engines.robust_metric import RobustMetric
from monai_adv.engines.starting_weights import attached
from monai_adv.errors import InputError
from monai_adv.network_state import bare

NAME = "robust"
"""Of the metric that is added where the bundle has none of its own."""


class BestRobust:
    """Attacks what the bundle validates, lets its CheckpointSaver choose by that, and keeps the best weights.

    A validator with a RobustMetric of its own keeps it, and ``metric`` is left out. Otherwise that is added and becomes
    the key metric, so that the file of the best network (``model.pt``) is no longer that of the best clean Dice.

    Args:
        handlers: of the trainer, with a ValidationHandler among them.
        network: that is trained and validated.
        metric: added where there is none.

    Raises:
        InputError: nothing validates, or several engines do.
    """

    def __init__(self, handlers: Sequence[Any], network: nn.Module, metric: RobustMetric) -> None:
        self.network = network
        self.validator = validator_of(handlers)
        if self.validator is None:
            raise InputError.of(
                "final_weights", "best_robust", "last without a validation",
                "give the trainer one ValidationHandler with a validator",
            )  # fmt: skip
        own = [h for h in attached(self.validator) if isinstance(h, RobustMetric)]
        self.replaced: str | None = None
        if own:
            self.name = own[0].name
        else:
            self.name = NAME
            metric.join(self.validator, NAME)
            self.replaced = self.validator.state.key_metric_name
        self.validator.state.key_metric_name = self.name
        self.score, self.epoch = float("-inf"), 0
        self._before = 0  # the best epoch before a break
        self._weights: dict[str, Tensor] = {}
        self._seen = 0
        self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def _validated(self, validator: Any) -> None:
        score = float(validator.state.metrics[self.name])
        self._seen = validator.state.epoch
        if score > self.score:
            self.score, self.epoch = score, self._seen
            state = bare(self.network).state_dict()
            self._weights = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def take(self, epoch: int) -> str:
        """Give the network the best weights; what is said of it.

        Args:
            epoch: the last one, which is validated here if the bundle has not done so.
        """
        assert self.validator is not None
        if self._seen != epoch:
            self.validator.run(epoch)
        if not self._weights:
            return f"No epoch has a score `{self.name}` that is a number, so the final weights are the last ones."
        bare(self.network).load_state_dict(self._weights)
        if self.epoch == self._before:  # savers forget over a break what was best: let them see it again
            self.validator.run(self.epoch)
        return f"The final weights are those of epoch {self.epoch}, {self.name} {self.score:.4f} (`final_weights`)."

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"score": self.score, "epoch": self.epoch, "weights": self._weights}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what was best before a break."""
        self.score, self.epoch, self._weights = saved["score"], saved["epoch"], dict(saved["weights"])
        self._before = self.epoch


def validator_of(handlers: Sequence[Any]) -> Any:
    """What validates a trainer's network; None without one.

    Raises:
        InputError: several do.
    """
    validating = [h.validator for h in handlers if isinstance(h, ValidationHandler) and h.validator is not None]
    found = {id(validator): validator for validator in validating}
    if len(found) > 1:
        raise InputError.of("train_handlers", f"{len(found)} validators", "one of them where `final_weights` or "
                            "`initial_weights` is set")  # fmt: skip
    return next(iter(found.values()), None)

"""What a run costs: the epochs that its budget pays for, and what its log says before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.price import cheaper_way, in_hours, price_line
from monai_adv.settings import Settings
from nnunet_trainers.plain_model import PlainModel, epochs_within
from nnunet_trainers.run_settings import RunSettings


@dataclass(frozen=True)
class RunPrice:
    """Of one training.

    Args:
        method: that trains.
        sections: settings of the defence and the run, at least.
        start: the model that is fine-tuned; None if there is none, or where a run goes on.
    """

    method: Method
    sections: dict[str, Settings]
    start: PlainModel | None

    @property
    def _defense(self) -> DefenseSettings:
        return cast(DefenseSettings, self.sections["defense"])

    @property
    def _run(self) -> RunSettings:
        return cast(RunSettings, self.sections["run"])

    @property
    def _told_budget(self) -> str:
        budget = self._run.budget
        if not isinstance(budget, str):
            return f"{budget:g}"
        if self.start is None:
            return budget
        return f"{budget} of the {self.start.hours:.3g} hours that the plain training took"

    @property
    def _told_plain(self) -> str:
        if self.start is None:
            return ""
        return f", for a plain training of {self.start.epochs} epochs of {self.start.iterations}"

    def epochs(self, iterations: int) -> int | None:
        """Epochs that the setting ``budget`` pays for; None without one, or where a checkpoint knows them.

        Args:
            iterations: steps of an epoch, where no setting says them.

        Raises:
            InputError: the budget does not suffice for one epoch.
        """
        if self._run.budget is None or self.start is None:
            return None
        forwards = self.method.most(self._defense)
        return epochs_within(self._run.budget, self.start, self._run.iterations or iterations, forwards)

    def beyond(self, seconds: float, epochs: int) -> str:
        """What to add to a forecast where the hours of the budget do not suffice on this machine; otherwise nothing.

        Args:
            seconds: of an epoch, as it is here.
            epochs: of the whole training.
        """
        hours = None if self._run.budget is None else in_hours(self._run.budget)
        if hours is None or seconds * epochs <= 3600 * hours:
            return ""
        return (
            f" That is more than the {hours:g} hours of the budget, which were reckoned with the times in the plain "
            "model's checkpoint (another machine?): give fewer hours, or let it run."
        )

    def lines(self, epochs: int, iterations: int) -> list[str]:
        """For the start of a log: the price, the budget, the cheaper way where there is one, warnings.

        Args:
            epochs, iterations: of the training; an epoch has so many iterations.
        """
        said = [price_line(self.method, self._defense)]
        if self._run.budget is not None:
            said.append(f"Budget {self._told_budget}: {epochs} epochs of {iterations} steps{self._told_plain}.")
        warning = self.method.warning("segmentation", self._defense)
        if warning is not None:
            said.append(f"WARNING: {warning}")
        todo = "From a plain model `preset: finetune` gets there for the price of one plain training."
        dear = None if self._run.initial_weights else cheaper_way(self.method, self._defense, epochs, todo)
        return said if dear is None else [*said, dear]

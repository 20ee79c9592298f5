"""What a user has set for a trainer in MONAI: defence, run and task in one flat mapping, with presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.engines.run_settings import FINE_TUNING, RunSettings
from monai_adv.errors import InputError
from monai_adv.settings import Settings, combine, expand_preset, with_fine_tuning
from monai_adv.tasks import SegmentationSettings


class Given:
    """The settings that were given to a trainer.

    Args:
        method: of the trainer; None: one of a ready defence, or of none.
        values: setting -> value; ``preset`` names a group of them.
    """

    def __init__(self, method: Method | None, values: Mapping[str, Any]) -> None:
        self._method, self._values = method, dict(values)

    @property
    def method(self) -> Method:
        """The trainer's.

        Raises:
            InputError: it has none.
        """
        if self._method is None:
            raise InputError.of("defense", None, "a defence", "or use the trainer of a method, such as IMATrainer")
        return self._method

    def sections(self, *, task: bool) -> dict[str, Settings]:
        """All settings.

        Args:
            task: with those of what counts as right in a segmentation.

        Raises:
            InputError: a setting that does not exist, or a value that is not allowed.
        """
        classes: dict[str, type[Settings]] = {"defense": self.method.settings, "run": RunSettings}
        if task:
            classes["task"] = SegmentationSettings
        known = {name for section in classes.values() for name in section.names()}
        # A preset's values for other hosts and tasks are not ours.
        ours = {p: {k: v for k, v in values.items() if k in known} for p, values in self._presets().items()}
        return combine(classes, expand_preset(classes, self._values, ours))

    def left_out(self, sections: Mapping[str, Settings]) -> list[str]:
        """Settings of the preset that are none of these sections'."""
        name = self._values.get("preset")
        preset = {} if name is None else self._presets()[name]
        return sorted(set(preset) - {n for s in sections.values() for n in s.names()})

    def price(self, sections: Mapping[str, Settings]) -> tuple[Method, DefenseSettings]:
        """What the cost of a step depends on."""
        return self.method, cast(DefenseSettings, sections["defense"])

    def _presets(self) -> dict[str, Mapping[str, Any]]:
        return with_fine_tuning(self.method.presets, FINE_TUNING)

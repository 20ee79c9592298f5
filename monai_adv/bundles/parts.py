"""The parts of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai_adv.errors import InputError


@dataclass(frozen=True)
class Parts:
    """What is for training, for validation and, where there is one, for the test.

    Args:
        lists: of each part a data list for MONAI.

    Example:
        >>> Parts({"train": [{"image": "a.png"}], "val": []}).part("train")
        [{'image': 'a.png'}]
    """

    lists: Mapping[str, list[dict[str, Any]]]

    def part(self, name: str) -> list[dict[str, Any]]:
        """One of them.

        Raises:
            InputError: a part that does not exist.
        """
        if name not in self.lists:
            raise InputError.of("part", name, f"one of {', '.join(self.lists)}")
        return self.lists[name]

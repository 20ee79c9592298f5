"""What the log of a training begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from monai_adv.sample_state import SampleIds
from monai_adv.settings import ENV_FILE, ENV_PREFIX, Settings, table


def opening_lines(
    trainer: str, sections: dict[str, Settings], threat: str, price: Iterable[str], samples: SampleIds | None
) -> Iterator[str]:
    """The settings with the attack in training, what they cost, and the samples that are remembered.

    Args:
        trainer: its name.
        sections: all settings.
        threat: in words.
        price: in lines.
        samples: None where the method remembers none.
    """
    yield (
        f"{trainer} settings (* differs from the default; set with a file named by {ENV_FILE} "
        f"or with {ENV_PREFIX}<NAME>):\n{table(sections)}\n"
        f"Threat: {threat}, in units of the normalised image."
    )
    yield from price
    if samples is not None:
        yield f"Samples: {len(samples)} in {len(samples.groups)} cases."

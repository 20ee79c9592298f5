"""Which variations of a modality there are, which are known and not offered, and what a user's words choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from monai_adv.errors import InputError, did_you_mean
from monai_adv.variations.base import Modality, Variation
from monai_adv.variations.ct import CT
from monai_adv.variations.mri import MRI
from monai_adv.variations.scan import Change, Scan
from monai_adv.variations.ultrasound import ULTRASOUND
from monai_adv.variations.xray import XRAY

AUTO = "auto"
VARIATIONS: dict[Modality, tuple[Variation, ...]] = {"ct": CT, "mri": MRI, "ultrasound": ULTRASOUND, "xray": XRAY}
MOVES = "it moves or deforms the organ, and the label would be wrong"
NOT_OFFERED: dict[Modality, Mapping[str, str]] = {
    "ct": {
        "another reconstruction kernel or iterative reconstruction": "needs the projections that the scanner measured",
        "metal": "needs those projections, and the scanner's own correction",
        "another tube voltage or contrast phase": "it changes each tissue differently; an image tells no tissues",
        "motion and breathing during the scan": MOVES,
        "a truncated field of view, the table, implants": "needs images of them",
    },
    "mri": {
        "another sequence, contrast or field strength": "it changes each tissue differently; an image tells no tissues",
        "distortion by gradients or susceptibility": MOVES,
        "Gibbs ringing, low resolution": "among the natural corruptions of `standard` and `full`",
        "wrap-around, chemical shift": "needs what lies outside of the image, or fat and water apart",
        "parallel imaging, a lost coil": "needs the signal of each coil",
    },
    "ultrasound": {
        "another probe, frequency, depth or machine": "needs images of them",
        "another angle or pressure of the probe": MOVES,
        "reverberation, enhancement": "depends on what lies above, which an image does not tell",
        "callipers, text and marks in the image": "needs images of them",
    },
    "xray": {
        "another position or projection": MOVES,
        "scatter, grid lines, quantum mottle": "needs the detector's signal before its processing",
        "another vendor's processing": "needs images of it",
        "tubes, implants, markers": "needs images of them",
    },
}
"""Known variations that nobody here has a faithful model of, and why."""
NAMES: dict[Modality, frozenset[str]] = {
    "ct": frozenset({"ct", "cect", "ncct", "cbct", "computed tomography"}),
    "mri": frozenset(
        {"mri", "mr", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "flair", "dwi", "adc", "swi", "pd"}
    ),
    "ultrasound": frozenset({"us", "ultrasound", "sonography"}),
    "xray": frozenset({"xray", "x-ray", "x ray", "cr", "dx", "mg", "cxr", "radiograph", "mammography", "mammogram"}),
}
"""What data sets call their channels."""


@dataclass(frozen=True)
class Step:
    """One variation at one severity, on some channels."""

    variation: Variation
    severity: int
    channels: tuple[int, ...] | None = None

    def change(self, seed_of: Callable[[int], int]) -> Change:
        """What it does to a scan, with the seed of each image of a case by its number."""

        def change(scan: Scan, number: int) -> Tensor:
            if self.channels is None:
                return self.variation(scan, self.severity, seed_of(number))
            voxels, chosen = scan.voxels.clone(), list(self.channels)
            part = replace(scan, voxels=voxels[chosen])
            voxels[chosen] = self.variation(part, self.severity, seed_of(number))
            return voxels

        return change


def modality_of(name: str) -> Modality | None:
    """What a channel's name says, where it is plain.

    Example:
        >>> modality_of("T1w"), modality_of("CT"), modality_of("PET"), modality_of("rescale_to_0_1")
        ('mri', 'ct', None, None)
    """
    return next((modality for modality, names in NAMES.items() if name.strip().lower() in names), None)


def checked_words(words: str | Sequence[str] | None) -> tuple[str, ...]:
    """What a user asks for, each word known, each variation once.

    Args:
        words: ``"ct"``, ``"mri"``, ``"ultrasound"``, ``"xray"``: all of a modality; ``"mri:motion"``: one of them;
            ``"mri:motion=1,3"``: at these severities; ``"auto"``: all of the modality that the data set names.

    Raises:
        InputError: something else, two modalities, a variation twice.

    Example:
        >>> checked_words("mri:motion=1,3")
        ('mri:motion=1,3',)
    """
    found = () if words is None else (words,) if isinstance(words, str) else tuple(words)
    if AUTO in found:
        if len(found) > 1:
            raise InputError.of("variations", list(found), "'auto' alone, or modalities and names")
        return found
    parts = [part for word in found for part in _parts(word)]
    if len({variation.modality for variation, _ in parts}) > 1:
        raise InputError.of("variations", list(found), "variations of one modality", "measure the others by themselves")
    keys = [variation.key for variation, _ in parts]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise InputError.of("variations", list(found), "each variation once", f"{twice[0]} comes twice")
    return found


def steps(words: Sequence[str], channels: Sequence[str]) -> list[Step]:
    """What is done to the images of a model.

    Args:
        words: of :func:`checked_words`.
        channels: what the data set calls its channels; names that say nothing are no contradiction. Of images of
            several modalities only the channels of this one are varied.

    Raises:
        InputError: channels of another modality, or ``"auto"`` and channels that do not say which.

    Example:
        >>> [(s.variation.name, s.severity, s.channels) for s in steps(["ct:streaks=1"], ["CT", "PET"])]
        [('streaks', 1, (0,))]
    """
    if not words:
        return []
    known = [modality_of(name) for name in channels]
    told = ", ".join(channels) or "nothing"
    if tuple(words) == (AUTO,):
        plain = {modality for modality in known if modality is not None}
        if len(plain) != 1:
            allowed = f"one of {', '.join(VARIATIONS)}"
            raise InputError.of("variations", AUTO, allowed, f"the channels are called {told}, which is not plain")
        words = (plain.pop(),)
    parts = [part for word in words for part in _parts(word)]
    modality = parts[0][0].modality
    others = sorted({found for found in known if found is not None} - {modality})
    if modality not in known and others:
        raise InputError.of("variations", modality, others[0], f"the channels are called {told}")
    chosen = tuple(i for i, found in enumerate(known) if found == modality) or None
    chosen = None if chosen is not None and len(chosen) == len(known) else chosen
    return [Step(variation, severity, chosen) for variation, severities in parts for severity in severities]


def _parts(word: str) -> list[tuple[Variation, tuple[int, ...]]]:
    """Variations of a word with their severities."""
    place, equals, numbers = word.partition("=")
    modality, colon, name = place.partition(":")
    if modality not in get_args(Modality):
        todo = did_you_mean(modality, [AUTO, *VARIATIONS])
        raise InputError.of("variations", word, "MODALITY, MODALITY:NAME or MODALITY:NAME=1,3", todo)
    all_of = VARIATIONS[modality]  # type: ignore[index]
    found = [variation for variation in all_of if variation.name == name] if colon else list(all_of)
    if not found:
        raise InputError.of(
            "variations", word, f"a variation of {modality}", did_you_mean(name, [v.name for v in all_of])
        )
    if not equals:
        return [(variation, tuple(range(1, len(variation.levels) + 1))) for variation in found]
    most = min(len(variation.levels) for variation in found)
    asked = numbers.split(",")
    if not all(each.isdecimal() and 1 <= int(each) <= most for each in asked) or len(set(asked)) < len(asked):
        raise InputError.of("variations", word, f"severities from 1 to {most}, each once")
    return [(variation, tuple(sorted(map(int, asked)))) for variation in found]

"""What an evaluation did not test, and where it went another way than planned: nobody else will say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from monai_adv.evaluation.evidence.history import Session, told_late
from monai_adv.evaluation.figures.results import Figures
from monai_adv.evaluation.records import level_name

NEVER_TESTED = {
    "poisoning": "Whether training data or pre-trained weights were manipulated, or hold a backdoor, was not tested.",
    "extraction": "Whether training data, patients or the model itself can be reconstructed from its answers (model "
    "inversion, membership inference, model theft) was not tested.",
    "drift": "Nothing was measured over time: scanners, protocols and patients change, and so can the figures.",
    "other populations": "The figures are of the cases that were given; other sites, scanners and patients were not "
    "tested, unless they are among those.",
    "geometry": "Rotations, shifts, deformations and crops made to do harm were not tested.",
    "physical attacks": "Changes made before the scan, to the patient or the scanner, were not tested.",
    "surroundings": "The software and network around the model, access rights and the supply of packages were not "
    "tested.",
    "human factors": "What a reader does with a wrong answer was not tested.",
    "another training": "One training was measured; another seed of the training can give other figures.",
    "lower bound": "Attacks give an upper bound of the worst case. How low it can be at most was not proven here; see "
    "monai-adv certify.",
}
"""Topic -> sentence."""
LEFT_OUT, NOT_FINISHED = "Left out: ", "Not finished: "
"""How sentences of :func:`deviations` begin that say that a mean is not of all cases."""


@dataclass(frozen=True)
class Untested:
    """Something that no figure is about, in a word or two and in a sentence."""

    topic: str
    sentence: str


def not_tested(figures: Figures, subgroups: bool = False) -> list[Untested]:
    """Everything that no figure is about, by topic.

    Args:
        figures: of the evaluation.
        subgroups: whether groups of cases were compared.
    """
    found = dict(NEVER_TESTED)
    settings = figures.evaluation.settings
    if settings.smooth or settings.certify:
        del found["lower bound"]  # it is among the figures
        found["the network itself"] = (
            "The figures are of the smoothed models. About the networks without the noise they say nothing."
        )
    if settings.certify:
        found["attacks"] = (
            "No attack was run. Certificates are lower bounds of the score that is left; how far above them it is was "
            "not tested; see --smooth of monai-adv evaluate."
        )
        found["larger changes"] = "Nothing is proven beyond the radii among the figures."
    norms = {level.norm for level in figures.levels}
    for norm, name in (("l2", "L2"), ("linf", "L-inf")):
        if norm not in norms:
            found[f"{name} attacks"] = f"Changes bounded in {name} were not tested; a radius in one norm says little "
            found[f"{name} attacks"] += "about the other."
    if figures.levels:
        largest = "; ".join(level_name(max((v for v in figures.levels if v.norm == n), key=lambda v: v.eps))
                            for n in sorted(norms))  # fmt: skip
        found["larger changes"] = f"Nothing larger than {largest} was tested."
    inventories = [model.variations for model in figures.models if model.variations is not None]
    if not any(model.corruptions for model in figures.models):
        found["natural corruptions"] = (
            "The natural corruptions of the standard attacks (blur, contrast, resolution, ...) were not tested."
            if inventories
            else "Artefacts and poor quality as scanners make them were not tested."
        )
    if not inventories:
        found["natural variations"] = "What scanners of this modality do to images was not tested; see --variations."
    for inventory in inventories:
        for what, why in inventory.untested:
            found[f"{inventory.modality}: {what}"] = (
                f"Natural variation of {inventory.modality} not tested: {what} ({why})."
            )
    if not subgroups:
        found["subgroups"] = "Whether some groups of patients are worse off was not looked at."
    return [Untested(topic, sentence) for topic, sentence in sorted(found.items())]


def deviations(figures: Figures, history: Sequence[Session]) -> list[str]:
    """Where the evaluation is not the plain whole: a sentence each."""
    settings, found = figures.evaluation.settings, told_late(history)
    for model, case, reason in figures.problems:
        found.append(f"{LEFT_OUT}{model}{', ' + case if case else ''}: {reason}")
    for results in figures.models:
        if results.unfinished:
            found.append(f"{NOT_FINISHED}{len(results.unfinished)} cases of {results.name} are in no figure yet.")
        if results.totals.broken:
            found.append(
                f"{results.name} gave NaN or infinity on {results.totals.broken} attacked inputs; they count as "
                "wrong, with the lowest score."
            )
    found += [f"Used, though odd: {model}, {case}: {note}" for model, case, note in figures.notes]
    if settings.cases is not None:
        which = f"the first {settings.cases}" if isinstance(settings.cases, int) else "those that were named"
        found.append(f"Not all cases were measured, only {which}.")
    if settings.attacks != "standard" and not settings.certify:
        found.append(f"The attacks are {settings.attacks!r}, not the standard ones.")
    if settings.seed != 0:
        found.append(f"The seed of the random draws is {settings.seed}, not the default 0.")
    if settings.box is not None:
        found.append(f"The range of attacked images was given: {settings.box[0]:g} to {settings.box[1]:g}.")
    return found + _resumed(history)


def _resumed(history: Sequence[Session]) -> list[str]:
    found = []
    for before, now in pairwise(history):
        if now.records > before.records:
            found.append(f"Gone on with on {now.at[:16].replace('T', ' ')}, after {now.records} results.")
        if now.machine != before.machine:
            found.append(f"Gone on with on another machine: {now.machine}, before {before.machine}.")
        if now.code != before.code:
            found.append(f"Gone on with by other code of monai-adv on {now.at[:16].replace('T', ' ')}.")
    return found

"""Red flags: signs that the figures of an evaluation promise more robustness than there is.

Gradient masking hides a model from gradient attacks without making it robust. Each flag is one sign of it, or of an
evaluation that does not measure what it says. A raised flag turns the verdict to "not reliable"; one that had
nothing to compare has not passed.
Sources: Athalye et al., ICML 2018, section 3.1; Carlini et al., "On evaluating adversarial robustness", 2019, section
4; the checks of AutoAttack (Croce & Hein, ICML 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from monai_adv.evaluation.checks.probed import Consistency, ModelProbe
from monai_adv.evaluation.checks.probes import STEPS
from monai_adv.evaluation.checks.verdict import Flag
from monai_adv.evaluation.records import (
    CLEAN,
    Level,
    Record,
    attacks,
    level_name,
    levels,
    own_scores,
    parse_level,
    worst_scores,
)
from monai_adv.metrics.score import Kind, mean_known
from monai_adv.metrics.statistics import Scores
from monai_adv.wording import counted

Families = Mapping[str, str]
"""Name of an attack -> random, white-box, black-box or transfer."""
Names = Mapping[str, str]
"""Key of a level -> how a page calls it."""
NO_NAMES: Names = {}

NOT_PROBED = "Not measured: the probes were not run."
GAIN: dict[Kind, float] = {"classification": 0.002, "segmentation": 0.01}
"""A black-box attack may lower the mean score by this much below the white-box attacks. Dice gets more room: it is a
step function, on which a random search wins a voxel here and there on honest models too."""
POINT = 0.01
FIRST_LOOK = 0.05
"""After quick attacks, a longer one may still find this much: on honest models it finds a few points."""


def find_flags(
    records: Sequence[Record],
    kind: Kind,
    families: Mapping[str, Families],
    probed: ModelProbe | None = None,
    levels: Sequence[Level] = (),
) -> list[Flag]:
    """All flags of one model.

    Args:
        records: of this model, in the order of the attacks.
        kind: classification or segmentation.
        families: level -> attack -> family.
        probed: what :func:`probe` returned, or None if it did not run.
        levels: the radii in the user's own words; others are named by their numbers.
    """
    names = {level.key: level_name(level) for level in levels}
    return [
        black_box(records, kind, families, names),
        longer(records, probed, names, "image" if kind == "classification" else "case"),
        monotone(records, families, names),
        noise(records, families, names),
        unbounded(probed),
        zero_gradients(records, families, probed),
        batch(probed),
        repeat(probed),
        inputs(probed, names),
        probabilities(probed),
    ]


def black_box(records: Sequence[Record], kind: Kind, families: Mapping[str, Families], names: Names = NO_NAMES) -> Flag:
    """Does an attack without gradients find what the attacks with gradients miss?"""
    gains: dict[str, float] = {}
    for _, level, known in _levels(records, families):
        if {"white-box", "black-box"} <= set(known.values()) or {"white-box", "transfer"} <= set(known.values()):
            gains[level] = mean_known(_gained_without_gradient(records, level, known).values())
    gains = {level: gain for level, gain in gains.items() if not math.isnan(gain)}
    largest = max(gains, key=gains.__getitem__, default="")
    measured = "No black-box or transfer attack was run; the standard attacks include one."
    if gains:
        more = f"lower the mean worst case by up to {_points(gains[largest])} points more ({_name(largest, names)})"
        measured = f"Black-box and transfer attacks {more if gains[largest] >= 5e-4 else 'find nothing more'}."
    return Flag(
        "black-box",
        "Do attacks without gradients find more than those with gradients?",
        "an attack without gradients finds more than those with gradients",
        gains[largest] > GAIN[kind] if gains else None,
        measured,
        "More than "
        + (
            "0.2 points: AutoAttack's own limit; with fewer than 500 images one image is enough."
            if kind == "classification"
            else "1 point: random search wins a voxel here and there on honest models too."
        ),
        "An attacker who sees only outputs should not beat one who sees everything. The model hides its gradients, so "
        "the white-box figures are too good. Look for rounding, clipping or saturation in the model's pipeline.",
    )


def longer(records: Sequence[Record], found: ModelProbe | None, names: Names = NO_NAMES, one: str = "case") -> Flag:
    """Do more steps from a new random start still find more than the evaluation did?"""
    gains: dict[str, float] = {}
    scores_left = (found.longer if found else None) or {}
    for level, cases in scores_left.items():
        reported = worst_scores(records, records[0].model, level) if records else {}
        drops = [
            reported[case, name].score - score
            for case, scores in cases.items()
            for name, score in scores.items()
            if (case, name) in reported
        ]
        if drops := [max(0.0, d) for d in drops if not math.isnan(d)]:  # max(0, NaN) would be 0: a pass for nothing
            gains[level] = mean_known(drops)
    largest = max(gains, key=gains.__getitem__, default="")
    steps = found.steps if found else 0
    allowed = FIRST_LOOK if steps < STEPS["standard"] else POINT
    measured = "No case with a defined score: nothing to compare." if scores_left else _not_probed(found)
    if found and gains:
        less = (
            f"up to {_points(gains[largest])} points less ({_name(largest, names)})"
            if gains[largest] >= 5e-4
            else "nothing less"
        )
        tried = len({(case, name) for cases in scores_left.values() for case in cases for name in cases[case]})
        measured = f"Longer attacks ({steps} steps, new random starts) on {counted(tried, one)} found {less}."
    return Flag(
        "longer",
        "Does a longer attack still find more?",
        "a longer attack still finds more",
        gains[largest] > allowed if gains else None,
        measured,
        "More than 1 point: less than that comes and goes with the random start. After quick attacks 5 points: they "
        "are a first look.",
        "The attacks were stopped before they were done, so the true worst case is lower than reported. "
        "Run the evaluation again with --attacks standard or full.",
    )


def monotone(records: Sequence[Record], families: Mapping[str, Families], names: Names = NO_NAMES) -> Flag:
    """Does the white-box score rise although the attacker may do more?"""
    means: dict[str, float] = {}
    for model, level, known in _levels(records, families):
        own = _lowest_own(records, model, level, known, ("white-box",))
        if any(not math.isnan(score) for score in own.values()):
            means[level] = mean_known(own.values())
    rises: dict[str, float] = {}
    chains: dict[tuple[str, str | None], list[Level]] = {}
    for radius in levels(records):
        if radius.key in means:
            chains.setdefault((radius.norm, radius.unit), []).append(radius)
    for chain in chains.values():
        for i, radius in enumerate(chain[1:], start=1):
            rises[radius.key] = means[radius.key] - min(means[v.key] for v in chain[:i])
    largest = max(rises, key=rises.__getitem__, default="")
    measured = "Fewer than two radii of one norm: nothing to compare."
    if rises:
        rise = rises[largest]
        measured = (
            f"The white-box score rises by {_points(rise)} points from a smaller radius to {_name(largest, names)}."
            if rise > 0
            else "The white-box score never rises with the radius."
        )
    return Flag(
        "monotone",
        "Does the score rise although the radius grows?",
        "a larger radius leaves a higher score",
        rises[largest] > POINT if rises else None,
        measured,
        "More than 1 point: what is found within a small radius lies within a larger one too, so a rise shows that the "
        "attack got lost. (The reported worst case cannot rise: it includes the smaller radii.)",
        "The attacks do not find what is there. The true score at the larger radius is lower than reported.",
    )


def noise(records: Sequence[Record], families: Mapping[str, Families], names: Names = NO_NAMES) -> Flag:
    """Does noise without aim do what the attacks do with aim?"""
    shares: dict[str, tuple[float, float, float]] = {}
    for model, level, known in _levels(records, families):
        aimed = _lowest_own(records, model, level, known, ("white-box",))
        aimless = _lowest_own(records, model, level, known, ("random",))
        clean = own_scores(records, model, CLEAN)
        if aimed and aimless and clean:
            start = mean_known(s.score for s in clean.values())
            shares[level] = (
                start - mean_known(aimless.values()),
                start - mean_known(aimed.values()),
                mean_known(aimed.values()),
            )
    # A radius at which nothing is left says nothing, and a drop of less than a point may be chance.
    judged = {k: a / b for k, (a, b, left) in shares.items() if b > POINT and left > 5 * POINT}
    largest = max(judged, key=judged.__getitem__, default="")
    if not shares:
        measured = "No random noise was run beside the white-box attacks."
    elif judged:
        drops = shares[largest]
        costs = f"costs {_points(drops[0])} points and the white-box attacks {_points(drops[1])}"
        measured = f"At {_name(largest, names)} random noise {costs}."
    else:
        measured = (
            "At every radius the attacks cost less than 1 point or leave less than 5: nothing to compare; add a radius "
            "between."
        )
    return Flag(
        "noise",
        "Does random noise hurt as much as the attack?",
        "random noise hurts as much as the attack",
        judged[largest] >= 0.9 if judged else None,
        measured,
        "At least nine tenths of the attack's drop, where that is more than 1 point and leaves more than 5: in many "
        "dimensions a random direction is almost harmless beside the worst one.",
        "An attack that is no better than chance did not work. The figures under attack are figures under noise.",
    )


def unbounded(found: ModelProbe | None) -> Flag:
    """With an unlimited radius every model fails."""
    left = (found.unbounded if found else None) or {}
    worst = max((v for v in left.values() if not math.isnan(v)), default=math.nan)
    named = ", ".join(f"{_points(v)} % ({_norm(n)})" for n, v in left.items())
    return Flag(
        "unbounded",
        "Does an unlimited attack fail?",
        "an unlimited attack does not bring the score to zero",
        None if math.isnan(worst) else worst > 5 * POINT,
        f"Left at radii as large as the image: {named}." if left else _not_probed(found),
        "More than 5 %: an attack that may replace the whole image can always show the model something else.",
        "The attacks fail for a reason that has nothing to do with the radius, most often hidden gradients; or the "
        "model gives some cases the same answer whatever it sees.",
    )


def zero_gradients(records: Sequence[Record], families: Mapping[str, Families], found: ModelProbe | None) -> Flag:
    """Can gradients be used at all?"""
    mine = [r for r in records if r.level and families.get(r.level, {}).get(r.attack) == "white-box"]
    attacked, dead = sum(r.attacked for r in mine), sum(r.dead for r in mine)
    parts, raised = [], []
    if attacked:
        parts.append(f"during the white-box attacks on {_percent(dead / attacked)} of the attacked inputs")
        raised.append(dead / attacked > 0.05)
    samples, voxels = (found.zero_samples, found.zero_voxels) if found else (None, None)
    if samples is not None and voxels is not None:
        parts.append(
            f"at and around unchanged images on {_percent(samples)} of the inputs, and in {_percent(voxels)} of all "
            "voxels"
        )
        raised += [samples > 0.05, voxels > 0.5]
    return Flag(
        "zero-gradients",
        "Are gradients zero?",
        "gradients are zero",
        any(raised) if samples is not None or any(raised) else None,
        f"Zero, vanishing or not finite: {'; '.join(parts)}." if parts else _not_probed(found),
        "More than 5 % of the inputs, or half of the voxels: our attacks rescale every gradient, so that only one that "
        "is exactly zero counts, and an honest network has hardly any.",
        "Where the gradient is zero a gradient attack stands still, whatever the model would do. Look for rounding, "
        "clipped inputs, or a softmax so sharp that it underflows; the figures are too good.",
    )


def batch(found: Consistency | None) -> Flag:
    """Is a patient judged by who else is in the batch?"""
    raised, measured = None, NOT_PROBED
    if found:
        change, chance = found.batch, found.repeat
        raised = change > max(0.01, 2 * chance) or bool(found.training)
        measured = f"An image alone and in a batch differ by {_spread_of(change)}"
        if change > 0.01 and not raised:
            raised, measured = None, f"{measured}, but two calls differ as much"
        measured += f", and {found.training} layers are in training mode." if found.training else "."
    return Flag(
        "batch",
        "Does the output depend on the other images of the batch?",
        "the output depends on the other images of the batch",
        raised,
        measured,
        "More than 1 % of the outputs' standard deviation (rounding is far below), or any layer in training mode.",
        "A patient's result depends on the neighbours, most often through batch normalisation in training mode. "
        "Put the model in eval mode; what was attacked is not what is deployed.",
    )


def repeat(found: Consistency | None) -> Flag:
    """Does the model answer the same question twice in the same way?"""
    measured = NOT_PROBED
    if found:
        same = "give the same" if found.repeat == 0 else f"differ by {_spread_of(found.repeat)}"
        measured = f"The same images, called again, {same}."
    return Flag(
        "repeat",
        "Do two calls give different outputs?",
        "two calls give different outputs",
        found.repeat > 1e-4 if found else None,
        measured,
        "More than 0.01 % of the outputs' standard deviation: AutoAttack's limit, relative to the outputs.",
        "A random model makes gradients and successes depend on luck, and figures from one draw too good. Switch the "
        "randomness off, or evaluate the average over many draws.",
    )


def inputs(found: ModelProbe | None, names: Names = NO_NAMES) -> Flag:
    """Are the images what the stated box and unit say?"""
    faults = _faults(found, names) if found else []
    measured = NOT_PROBED
    if found:
        measured = f"The images range from {_number(found.low)} to {_number(found.high)}"
        measured += f"; {'; '.join(faults)}." if faults else ", as box and unit say."
    return Flag(
        "inputs",
        "Do the images or radii not fit the stated box or unit?",
        "the images do not fit the stated box or unit",
        bool(faults) if found else None,
        measured,
        "Any image outside the box; images that fill less than 5 % of it; z-scored images with a standard deviation "
        "outside 0.05 to 20; a radius below a tenth of a grey level of 8 bits (L-inf), 0.001 % of the range (L2), or "
        "above the whole range.",
        "The radius does not mean what it says: a model that expects 0 to 255 looks robust at a radius meant for 0 to "
        "1. Check the preprocessing, the box and the unit of the radius.",
    )


def _faults(found: ModelProbe, names: Names) -> list[str]:
    """What does not fit, of the images and of the radii."""
    box, faults = found.box, []
    if found.outside:
        faults.append(f"{_percent(found.outside)} of them lie outside the stated box {_box(box)}")
    if box and found.high - found.low < 0.05 * (box[1] - box[0]):
        faults.append(f"they fill less than a twentieth of the stated box {_box(box)}")
    z_scored = any(word in found.unit.lower() for word in ("standard deviation", "z-score", "normalised"))
    if z_scored and not 0.05 <= found.sd <= 20:
        faults.append(f"their standard deviation is {found.sd:.3g}, but the stated unit is: {found.unit}")
    for key, share in found.relative.items():
        if share < (4e-4 if key.startswith("linf") else 1e-5):
            little = f"{100 * share:.1g} % of the intensity range per voxel, next to nothing"
            faults.append(f"the radius {_name(key, names)} is {little}")
        elif share > 1:
            faults.append(f"the radius {_name(key, names)} is {share:.1f} times the intensity range per voxel")
    return faults


def probabilities(found: Consistency | None) -> Flag:
    """Does the model give logits?"""
    raised = found.probabilities if found else None
    return Flag(
        "probabilities",
        "Does the model give probabilities instead of logits?",
        "the model gives probabilities instead of logits",
        raised,
        NOT_PROBED if raised is None else f"The outputs are {'probabilities' if raised else 'logits'}.",
        "All outputs at least 0 with sum 1, as after a softmax; of a single output and of regions all from 0 to 1, as "
        "after a sigmoid.",
        "Give the attacks the model without its last softmax or sigmoid. After a softmax the decisions stay the same, "
        "but several attacks see a flat loss where the model is sure. After a sigmoid the decisions are wrong on "
        "unchanged images too: a logit is a yes above 0, a probability above 0.5.",
    )


def _levels(records: Sequence[Record], families: Mapping[str, Families]) -> list[tuple[str, str, Families]]:
    """(model, level, families) of every level that has records."""
    return [(records[0].model, v.key, families.get(v.key, {})) for v in levels(records)]


def _lowest_own(
    records: Sequence[Record], model: str, level: str, known: Families, wanted: tuple[str, ...]
) -> dict[tuple[str, str], float]:
    """Lowest own score of each case over the attacks of some families."""
    lowest: dict[tuple[str, str], float] = {}
    for attack in attacks(records):
        if known.get(attack) in wanted:
            own: Scores = own_scores(records, model, attack, level)
            for key, score in own.items():
                lowest[key] = _low(lowest.get(key, math.nan), score.score)
    return lowest


def _gained_without_gradient(records: Sequence[Record], level: str, known: Families) -> dict[tuple[str, str], float]:
    """By how much black-box and transfer attacks lowered the worst case of each score that all before them left.

    The worst case counts, not the attack's own score: the slices of a volume share a score, and an attack that wins on
    some of them only shows in the mixture. For independent images both are the same.
    """
    gained: dict[tuple[str, str], float] = {}
    before: dict[tuple[str, str], float] = {}
    for record in records:
        if record.level == level and record.attack in known:
            for score in record.worst:
                key = record.case, score.case
                if known[record.attack] in ("black-box", "transfer") and key in before:
                    gained[key] = gained.get(key, 0.0) + before[key] - score.score
                before[key] = score.score
    return gained


def _low(a: float, b: float) -> float:
    """The smaller one; a NaN gives way."""
    return b if math.isnan(a) or b < a else a


def _points(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "−")


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _name(level: str, names: Names) -> str:
    return names.get(level) or level_name(parse_level(level))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _spread_of(value: float) -> str:
    share = "less than 0.001" if value < 1e-5 else f"{100 * value:.3f}" if value < 0.01 else f"{100 * value:.1f}"
    return f"{share} % of the outputs' standard deviation"


def _box(box: Sequence[float] | None) -> str:
    return f"[{_number(box[0])}, {_number(box[1])}]" if box else ""


def _norm(norm: str) -> str:
    return "L2" if norm == "l2" else "L-inf"


def _not_probed(found: ModelProbe | None) -> str:
    return "Not measured: images lie outside the box." if found and found.outside else NOT_PROBED

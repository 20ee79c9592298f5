"""From records to what the page and results.json say."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai_adv.evaluation.codec import plain_values
from monai_adv.evaluation.records import CLEAN, WORST, Record, own_scores, worst_scores
from monai_adv.evaluation.run.workers import versions
from monai_adv.evaluation.search.plan import NOISE_DRAWS, Stage, stages
from monai_adv.first_look.phantom import LABELS
from monai_adv.metrics.score import Score
from monai_adv.threats import Threat
from nnunet_trainers.demo.progress import Timing
from nnunet_trainers.demo.recipe import ATTACKS, DATASET, TRAINERS, Recipe, model_folder

CLASSES = tuple(LABELS)[1:]
PREDICTED = "clean, nnUNetv2_predict"
"""Scores of the files which nnU-Net's own command wrote."""
NOISE = "white noise"


def summarise(
    records: Sequence[Record],
    predicted: Mapping[str, Sequence[Score]],
    recipe: Recipe,
    timings: Sequence[Timing],
    date: str,
) -> dict[str, Any]:
    """Everything on the page but the pictures, as plain values.

    Args:
        records: of both trainers on the same cases.
        predicted: trainer -> Dice of the files that nnU-Net wrote.
        date: of the measurement.
    """
    table: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for condition, rms, scores in conditions(records, predicted, recipe):
        table.append({"condition": condition, "rms": rms, "dice": {t: _spread(scores[t]) for t in TRAINERS}})
        rows += [
            {"model": t, "case": s.case, "condition": condition, "rms": rms, "dice": s.score, "dice_per_class": s.dice}
            for t in TRAINERS
            for s in scores[t]
        ]
    worst = [line["dice"] for line in table if line["condition"] == WORST]
    plain, ima = TRAINERS
    plan = attacks()
    results: dict[str, Any] = {
        "date": date,
        "seed": {"phantom": recipe.phantom.seed, "training and noise": recipe.seed},
        "versions": versions(),
        "trainers": list(TRAINERS),
        "attacks": [stage.name for stage in plan],
        "gradient_steps": sum(stage.attack.most_passes().backward_input for stage in plan),
        "noise_draws": NOISE_DRAWS,
        "cases": len({record.case for record in records}),
        "classes": list(CLASSES),
        "table": table,
        "radii_where_ima_is_higher": sum(dice[ima]["mean"] > dice[plain]["mean"] for dice in worst),
        "radii": [{"rms": rms, "l2": recipe.l2(rms)} for rms in recipe.radii],
        "largest": max((record.largest for record in records), default=0.0),
        "dead_gradient": max((record.dead / record.attacked for record in records if record.attacked), default=0.0),
        "recipe": dataclasses.asdict(recipe),
        "ima_settings": recipe.ima_settings(),
        "evaluate": evaluate_command(recipe),
        "stages": [dataclasses.asdict(timing) for timing in timings],
        "rows": rows,
    }
    without_nan: dict[str, Any] = plain_values(results)
    return without_nan


def attacks() -> list[Stage]:
    """Of the evaluation, in their order."""
    return stages("segmentation", ATTACKS, Threat("l2", 1.0, unit="norm"), len(CLASSES))


def conditions(
    records: Sequence[Record], predicted: Mapping[str, Sequence[Score]], recipe: Recipe
) -> Iterator[tuple[str, float, dict[str, list[Score]]]]:
    """Condition, RMS of the noise, and the scores of the cases by trainer."""
    yield PREDICTED, 0.0, {t: list(predicted[t]) for t in TRAINERS}
    yield CLEAN, 0.0, {t: list(own_scores(records, t, CLEAN).values()) for t in TRAINERS}
    for level in recipe.levels:
        yield NOISE, level.eps, {t: list(own_scores(records, t, NOISE, level.key).values()) for t in TRAINERS}
    for level in recipe.levels:
        yield WORST, level.eps, {t: list(worst_scores(records, t, level.key).values()) for t in TRAINERS}


def evaluate_command(recipe: Recipe) -> str:
    """How the demo's models get a full report, in the demo's folder."""
    folders = " ".join("/".join(("nnUNet_results", *model_folder(t))) for t in TRAINERS)
    data = f"-i nnUNet_raw/{DATASET}/imagesTs -gt nnUNet_raw/{DATASET}/labelsTs"
    radii = " ".join(f"{rms:g}" for rms in recipe.radii)
    return f"monai-adv evaluate -m {folders} {data} --unit rms --eps {radii} -o report"


def text_table(results: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'Dice in %, mean ± sd':<28}" + "".join(f"{t:>16}" for t in results["trainers"])]
    for line in results["table"]:
        radius = f", RMS {line['rms']:g}" if line["rms"] else ""
        cells = (line["dice"][t] for t in results["trainers"])
        lines.append(
            f"{line['condition'] + radius:<28}"
            + "".join(f"{100 * c['mean']:>9.1f} ± {100 * c['sd']:<4.1f}" for c in cells)
        )
    return "\n".join(lines)


def _spread(scores: Sequence[Score]) -> dict[str, Any]:
    known = [s.score for s in scores if not math.isnan(s.score)]
    return {
        "mean": statistics.mean(known),
        "sd": statistics.stdev(known) if len(known) > 1 else 0.0,
        "values": known,
    }

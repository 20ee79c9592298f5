"""How robust are deployed nnU-Nets? Dice per case on the whole volume: clean, under white noise, under PGD.

Source: the noise evaluation of Ma & Liang, CMPB 2023, section 3 (L2 radius per network input). Unlike the
authors' code, nothing is clamped to [0, 1]: the images are z-scored, and the clamp alone destroys them.

What is measured is the function that is deployed: host preprocessing, sliding window, host export, and Dice in the
original geometry. The enemy changes the preprocessed image, each network input (2D: a slice, 3D: the volume) by at most
the radius. PGD raises the soft Dice loss and, in a second run, cross-entropy; a case counts with the worse of the two.

noise_table.py makes tables of the rows, noise_example.py shows one slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from monai_adv.errors import InputError
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.noise_case import LOSSES, Case, PreparedCase, find_cases

__all__ = ["Case", "Row", "evaluate", "find_cases"]


@dataclass(frozen=True)
class Row:
    """One model on one case under one condition.

    Attributes:
        condition: "clean", "white noise" or "PGD-<steps>".
        radius: L2 radius per network input, in standard deviations of the normalised image.
        dice: mean over the classes of ``dice_per_class`` that are not NaN.
        dice_per_class: hard Dice on the whole volume in the original geometry; NaN for a class that neither the ground
            truth nor the prediction has (0 if only one of them has it).
        dice_per_loss: PGD only: ``dice`` under the attack on each loss; ``dice`` and the rest are of the smallest.
        largest_norm: the largest L2 norm of a perturbation, measured on the images that the network saw.
        dead_gradient: share of the network inputs on which PGD met a zero gradient: a sign of gradient masking.
    """

    model: str
    case: str
    condition: str
    radius: float
    dice: float
    dice_per_class: dict[str, float]
    dice_per_loss: dict[str, float] = field(default_factory=dict)
    largest_norm: float = 0.0
    dead_gradient: float = 0.0


def evaluate(
    models: Sequence[DeployedModel],
    cases: Sequence[Case],
    radii: Sequence[float],
    *,
    steps: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Measure every model on every case: clean, then white noise and PGD at each radius.

    Args:
        models: with different names.
        cases: see :func:`find_cases`.
        radii: L2 radii per network input, in standard deviations of the normalised image.
        steps: of PGD.
        batch_size: network inputs attacked together (2D: slices).
        seed: of the white noise; a case gets the same noise for every model, and at every radius up to its length.
        progress: show a progress bar.

    Returns:
        rows in the order case, model, condition.

    Raises:
        InputError: nothing to measure, model names that repeat, or a radius that is not a finite number > 0.
    """
    names = [m.name for m in models]
    if not models or not cases:
        raise InputError.of("models and cases", f"{len(models)} and {len(cases)}", "at least one of each")
    if len(set(names)) < len(names):
        raise InputError.of("models", names, "models with different names", "give from_folder a name")
    for radius in radii:
        if not (math.isfinite(radius) and radius > 0):
            raise InputError.of("radii", radius, "finite numbers > 0", "the clean image is measured in any case")
    rows = []
    with tqdm(total=len(models) * len(cases) * (1 + 2 * len(radii)), disable=not progress) as bar:
        for case in cases:
            for model in models:
                bar.set_description(f"{case.name}, {model.name}")
                for row in _rows(model, case, radii, steps, batch_size, seed):
                    rows.append(row)
                    bar.update()
    return rows


def _rows(
    model: DeployedModel, case: Case, radii: Sequence[float], steps: int, batch_size: int, seed: int
) -> Iterator[Row]:
    prepared = PreparedCase(model, case, batch_size)
    yield Row(model.name, case.name, "clean", 0.0, **prepared.score(prepared.inputs))
    for radius in radii:
        noisy = prepared.with_white_noise(radius, seed)
        norm = prepared.largest_norm(noisy, radius)
        yield Row(model.name, case.name, "white noise", radius, **prepared.score(noisy), largest_norm=norm)
    for radius in radii:
        found = []
        for loss in LOSSES:
            attacked, dead = prepared.attacked(radius, loss, steps)
            norm = prepared.largest_norm(attacked, radius)
            found.append({**prepared.score(attacked), "largest_norm": norm, "dead_gradient": dead})
        per_loss: dict[str, float] = {loss: score["dice"] for loss, score in zip(LOSSES, found, strict=True)}
        worst = min(found, key=lambda score: math.inf if math.isnan(score["dice"]) else score["dice"])
        yield Row(model.name, case.name, f"PGD-{steps}", radius, **worst, dice_per_loss=per_loss)

"""Both bounds of a smoothed model in the folder of an evaluation: what is proven, and what the attacks found.

An attack lowers the vote of the draws that the deployed model has, and may learn those by heart. A certificate is about
infinitely many draws, so the worst images are judged by others before the two are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_adv.certificates import SmoothedModel, Smoothing
from monai_adv.certificates.bounds import chance_of_losing
from monai_adv.evaluation.certify.cases import Certified, certify_case, voted_scores
from monai_adv.evaluation.certify.kept import Judged, Proven, keep, read, read_certified
from monai_adv.evaluation.models.protocol import Case
from monai_adv.evaluation.models.smoothed import SmoothedVersion
from monai_adv.evaluation.records import CLEAN, Level
from monai_adv.evaluation.store import Store
from monai_adv.random_streams import seed_of


def certify(model: SmoothedVersion, case: Case, store: Store) -> None:
    """Keep what is proven about a case.

    Raises:
        InputError: see :func:`~monai_adv.evaluation.certify.cases.certify_case`.
    """
    found = certify_case(model, case, model.settings, _base(case))
    _judge(model, case, CLEAN, 0.0, case.images, store)
    keep(store, Proven(tuple(found)), model.name, case.name)


def judge(model: SmoothedVersion, case: Case, level: Level, images: Tensor, store: Store) -> None:
    """Keep what other draws say about the worst images of an L2 level."""
    if level.norm == "l2":
        _judge(model, case, level.key, float(case.threat(level).radius(case.images).max()), images, store)


def _judge(model: SmoothedVersion, case: Case, level: str, radius: float, images: Tensor, store: Store) -> None:
    settings = replace(model.settings, seed=seed_of(model.settings.seed, level))
    scores, labels = voted_scores(model, case, images, settings, _base(case))
    keep(store, Judged(radius, scores, labels), model.name, case.name, level)


@dataclass(frozen=True)
class Attacked:
    """The worst images of a patient, or the worst image, at an L2 level.

    Attributes:
        radius: L2 norm in network inputs.
        score: the lowest up to this radius, by draws that no attack knew.
        certified: what is proven at this radius.
        beaten: the attack is below what is proven, and chance does not explain it: something is wrong.
    """

    radius: float
    score: float
    certified: float
    beaten: bool


@dataclass(frozen=True)
class Bounds:
    """Both bounds of a patient or an image.

    Attributes:
        certified: what is proven.
        attacked: by the key of the level, "clean" for the unchanged images.
    """

    certified: Certified
    attacked: dict[str, Attacked]


def read_bounds(
    folder: Path, settings: Smoothing, model: str, cases: Sequence[str], levels: Sequence[Level]
) -> list[Bounds]:
    """What is kept of a model, of the cases that have both.

    Args:
        folder: of the evaluation.
        settings: of its smoothing.
        model, cases: names.
        levels: of the report.

    Raises:
        InputError: a file that was changed or is damaged.
    """
    store = Store(folder)
    return [bounds for case in cases for bounds in _bounds(store, settings, model, case, levels)]


def _bounds(store: Store, settings: Smoothing, model: str, case: str, levels: Sequence[Level]) -> Iterator[Bounds]:
    keys = [CLEAN, *(level.key for level in levels if level.norm == "l2")]
    judged = {key: found for key in keys if (found := read(store, Judged, model, case, key))}
    for one in read_certified(store, model, [case]):
        attacked: dict[str, Attacked] = {}
        lowest = math.inf
        for key, found in sorted(judged.items(), key=lambda item: item[1].radius):
            radius, score = found.radius, found.scores[one.case]
            certified = one.score if one.radius >= radius else 0 * one.score
            margin = max(0.0, one.radius - radius) / settings.sigma
            likely = found.labels * chance_of_losing(margin, settings.n) > settings.alpha
            lowest = score if math.isnan(score) else min(lowest, score)
            attacked[key] = Attacked(radius, lowest, certified, score < certified - 1e-9 and not likely)
        yield Bounds(one, attacked)


def _base(case: Case) -> Any:
    assert isinstance(case.network, SmoothedModel)
    return case.network.network

"""Models of one evaluation, compared pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from monai_adv.evaluation.records import Record, levels, models, scores_at
from monai_adv.metrics.score import Kind
from monai_adv.metrics.statistics import Comparison, Test, compare, holm


def compare_all(records: Sequence[Record], kind: Kind, *, seed: int = 0) -> list[Comparison]:
    """Every pair of models, on clean images and at every level, with Holm's correction."""
    found = []
    for first, second in combinations(models(records), 2):
        for level in ["", *(v.key for v in levels(records))]:
            one, other = (scores_at(records, m, level) for m in (first, second))
            found.append(compare(one, other, kind, names=(first, second), level=level, seed=seed))
    corrected = {
        name: holm([t.p for c in found for t in c.tests if t.name == name])
        for name in {t.name for c in found for t in c.tests}
    }
    iterators = {name: iter(values) for name, values in corrected.items()}
    return [
        Comparison(
            **{
                **vars(c),
                "tests": [Test(t.name, t.p, t.note, next(iterators[t.name])) for t in c.tests],
            }
        )
        for c in found
    ]

"""Validation under attack for classifiers: sensitivity, specificity, F1, AUC, of images or of patients."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from monai_adv.attacks.base import AttackResult
from monai_adv.engines.robust_metric import RobustMetric
from monai_adv.errors import InputError
from monai_adv.metrics.score import Score
from monai_adv.metrics.statistics import detection
from monai_adv.network_state import frozen
from monai_adv.tasks import ClassificationTask, Target

MEASURES = ("accuracy", "balanced_accuracy", "g_mean", "sensitivity", "specificity", "f1", "auc")
"""``g_mean``: geometric mean of the classes' sensitivities; 0 for a network that always says one of them."""


class RobustScores(RobustMetric):
    """What a classifier scores under an attack; with ``eps`` 0 without one.

    For ``additional_metrics`` or ``key_val_metric`` of an evaluator, as ``{"pgd": RobustScores(...)}``: the figures are
    ``pgd`` (the measure named by ``key``), ``pgd_accuracy``, ``pgd_f1`` and so on in ``engine.state.metrics``. Of two
    classes the second one is the positive one; of more, all but the accuracy are means over the classes.

    Args:
        key: which figure gets the plain name: one of ``MEASURES``. To choose a checkpoint take g_mean: under attack a
            network that always says one class has an accuracy that is hard to beat.
        group_key: key of the batch with a number for each sample's group, such as the patient. If given, the mean
            probabilities of a group are judged, not those of an image; its label is the largest of its images' labels:
            a patient with one malignant image is malignant.
        options: of :class:`~monai_adv.engines.RobustMetric`.

    Raises:
        InputError: a figure that does not exist, or an attack that is not allowed.
    """

    until = "lowest"  # an AUC depends on how wrong an image is

    def __init__(self, key: str = "accuracy", group_key: str | None = None, **options: Any) -> None:
        if key not in MEASURES:
            raise InputError.of("key", key, f"one of {', '.join(MEASURES)}")
        super().__init__(**options)
        self.key, self.group_key = key, group_key

    def _start(self, engine: Any) -> None:
        super()._start(engine)
        self._rows: list[Tensor] = []

    def _record(self, engine: Any, network: nn.Module, result: AttackResult, target: Target) -> None:
        if not isinstance(self._task, ClassificationTask):
            raise InputError.of("task", "segmentation", "classification", "RobustMetric gives the Dice under attack")
        with frozen(network) as model, torch.no_grad():
            logits = self._task.logits(model(result.images)).double().cpu()
        labels = self._task.labels(target, logits.shape[1]).double().cpu()
        groups = torch.full_like(labels, -1.0)
        if self.group_key is not None:
            batch = engine.state.batch
            if not isinstance(batch, dict) or self.group_key not in batch:
                known = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
                raise InputError.of("group_key", self.group_key, f"a key of the batch, which has {known}")
            groups = torch.as_tensor(batch[self.group_key]).double().cpu().reshape(-1)
        self._rows.append(torch.cat([groups[:, None], labels[:, None], logits.softmax(1)], dim=1))

    def _finish(self, engine: Engine) -> None:
        rows = torch.cat(self._rows) if self._rows else torch.zeros(0, 4, dtype=torch.double)
        if idist.get_world_size() > 1:
            # Ranks may have different numbers of samples.
            gathered: list[Any] = [None] * idist.get_world_size()
            torch.distributed.all_gather_object(gathered, rows)
            rows = torch.cat(gathered)
        figures = figures_of(rows, by_group=self.group_key is not None)
        metrics = engine.state.metrics
        metrics.update({f"{self.name}_{measure}": value for measure, value in figures.items()})
        metrics[self.name] = figures[self.key]


def figures_of(rows: Tensor, by_group: bool = False) -> dict[str, float]:
    """The figures of a table.

    Args:
        rows: ``(N, 2 + K)``: group, true class, K probabilities.
        by_group: judge the mean probabilities of each group.

    Returns:
        a number for each of ``MEASURES``; NaN where it is not defined.

    Example:
        Two images of one patient disagree; the surer one decides:

        >>> rows = torch.tensor([[0.0, 1.0, 0.6, 0.4], [0.0, 1.0, 0.1, 0.9], [1.0, 0.0, 0.8, 0.2]])
        >>> figures_of(rows)["sensitivity"], figures_of(rows, by_group=True)["sensitivity"]
        (0.5, 1.0)
    """
    table = rows.tolist()
    if by_group:
        members = defaultdict(list)
        for row in table:
            members[row[0]].append(row)
        table = [
            [
                group,
                max(r[1] for r in of),
                *(sum(column) / len(of) for column in zip(*(r[2:] for r in of), strict=True)),
            ]
            for group, of in members.items()
        ]
    scores = {}
    for i, (_, label, *probabilities) in enumerate(table):
        right = probabilities.index(max(probabilities)) == label
        scores[str(i), str(i)] = Score(str(i), float(right), label=int(label), probabilities=tuple(probabilities))
    classes = [str(k) for k in range(rows.shape[1] - 2)]
    found = detection(scores, classes)
    sensitivities = [row.values["sensitivity"] for row in found.rows]
    accuracy = sum(score.score for score in scores.values()) / len(scores) if scores else float("nan")
    return {
        "accuracy": accuracy,
        "balanced_accuracy": sum(sensitivities) / len(sensitivities),
        "g_mean": math.prod(sensitivities) ** (1 / len(sensitivities)),
        **{name: found.values[name] for name in MEASURES[3:]},
    }

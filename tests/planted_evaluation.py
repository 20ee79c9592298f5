"""Evaluations whose every number is known, without a model: records as the runner would write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Record, parse_level
from monai_adv.evaluation.store import Store
from monai_adv.metrics.score import Score

CLASSES = ("anterior", "posterior")
FAMILIES = {"white noise": "random", "APGD-CE": "white-box", "SegPGD": "white-box", "Square": "black-box"}


def dice_score(case: str, value: float) -> Score:
    """Two classes whose mean is ``value``; HD95 is defined unless the value is 0."""
    low, high = max(0.0, 2 * value - 1), min(1.0, 2 * value)
    distance = float("nan") if value == 0 else 10 * (1 - value)
    return Score(case, value, dict(zip(CLASSES, (high, low), strict=True)), dict.fromkeys(CLASSES, distance))


def label_score(case: str, label: int, probabilities: Sequence[float]) -> Score:
    """A classified image; NaN probabilities are wrong."""
    right = bool(np.isfinite(probabilities).all()) and int(np.argmax(probabilities)) == label
    return Score(case, float(right), label=label, probabilities=tuple(probabilities))


def plant(model: str, clean: Sequence[Score], attacked: Mapping[tuple[str, str], Sequence[Score]]) -> list[Record]:
    """Records of one model, one case per score.

    Args:
        clean: scores of the cases.
        attacked: (level, attack) -> own scores, in the order in which the attacks ran; the worst scores are kept as
            the runner keeps them, also from level to level of the same norm.
    """
    records = []
    for i, start in enumerate(clean):
        records.append(Record(model, start.case, "", "clean", (start,), (start,), forward=1, seconds=0.5))
        worst: dict[str, Score] = {}
        for (level, attack), scores in attacked.items():
            norm = parse_level(level).norm
            before = worst.get(norm, start)
            now = scores[i] if scores[i].remaining <= before.remaining else before
            worst[norm] = now
            records.append(
                Record(
                    model, start.case, level, attack, (scores[i],), (now,), forward=101, backward=100, seconds=2.0,
                    attacked=1, largest=0.999999, settings={"attack": attack, "steps": 100},
                )
            )  # fmt: skip
    return records


def folder_of(
    path: Path,
    records: Sequence[Record],
    *,
    pictures: bool = False,
    probes: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Write the folder that the runner would leave behind.

    Args:
        path: of the folder.
        records: of one or several models.
        pictures: also a picture for every case.
        probes: model -> what its probes found.
        more: entries of the first model, or "settings" and "words" of the evaluation, to replace.
    """
    settings = {
        "attacks": "standard", "seed": 7, "batch_size": 64, "cases": None, "box": None, "device": "cpu", "threads": 1,
        "variations": [],
    } | more.pop("settings", {})  # fmt: skip
    words = more.pop("words", {})
    keys = list(dict.fromkeys(r.level for r in records if r.level))
    models = []
    for name in dict.fromkeys(r.model for r in records):
        mine = [r for r in records if r.model == name]
        segmentation = mine[0].own[0].label is None
        stages: dict[str, list[dict[str, Any]]] = {}
        corruptions = {}
        for record in mine:
            if record.attack.startswith("corruption:"):
                corruptions[record.attack, record.level] = {"name": record.attack, "severity": record.level}
            elif record.level and record.attack not in [s["name"] for s in stages.setdefault(record.level, [])]:
                family = FAMILIES.get(record.attack, "white-box")
                stages[record.level].append({"name": record.attack, "family": family, "settings": record.settings})
        models.append(
            {
                "name": name,
                "kind": "segmentation" if segmentation else "classification",
                "classes": list(CLASSES) if segmentation else ["benign", "malignant"],
                "fingerprint": "ab12",
                "space": "whole volumes through nnU-Net's sliding window, mirroring off",
                "unit": "standard deviations of the z-scored image",
                "cases": list(dict.fromkeys(r.case for r in mine)),
                "problems": [],
                "stages": stages,
                "corruptions": list(corruptions.values()),
            }
            | more
        )
    evaluation = {
        "started": "2026-11-21T14:00:00",
        "machine": "two cores",
        "versions": {"monai-adv": "0.1.0", "torch": "2.15.0"},
        "settings": settings,
        "levels": [{"key": k, **vars(parse_level(k))} for k in keys if k[:2] in ("l2", "li")],
        "words": words,
        "models": models,
    }
    store = Store.open(path, json.loads(json.dumps(evaluation)))
    for record in records:
        store.commit_record(record, torch.zeros(0))
        if pictures and record.level and not record.attack.startswith("corruption"):
            store.add_pictures(record.model, record.case, record.level, [picture(s) for s in record.worst])
    for name, found in (probes or {}).items():
        store.add_probe(name, found)
    store.add_cost(
        bound={"forward": 10**6, "backward": 10**6, "seconds": 7200.0},
        predicted={"cases": 1, "seconds": 600.0},
        measured={"forward": 5000, "backward": 4000, "seconds": 660.0},
    )
    return path


def picture(score: Score, size: int = 40) -> Picture:
    """A disc in a ramp; under attack its segmentation shrinks with the score."""
    row, column = np.mgrid[:size, : size + 10]
    distance = np.hypot(row - size / 2, column - size / 2)
    clean = 0.03 * column + 1.5 * (distance < size / 4) - 0.5
    attacked = clean + 0.1 * np.sin(row) * np.cos(column)
    if score.label is not None:
        return Picture(score.case, clean, attacked, caption="benign, found malignant")
    truth = (distance < size / 4).astype(int) + (distance < size / 8)
    shrunken = (distance < score.score * size / 4).astype(int)
    return Picture(score.case, clean, attacked, truth, truth, shrunken, caption="slice 17 of 35")


__all__ = ["CLASSES", "FAMILIES", "dice_score", "folder_of", "label_score", "picture", "plant"]

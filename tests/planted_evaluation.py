"""Evaluations whose every number is known, without a model: records as the runner would write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_adv.evaluation.checks.probed import ModelProbe
from monai_adv.evaluation.costs import Cost, Costs, Measured, Predicted
from monai_adv.evaluation.described import (
    CorruptionEntry,
    Evaluation,
    Family,
    LevelEntry,
    ModelEntry,
    SettingsEntry,
    StageEntry,
)
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Record, parse_level
from monai_adv.evaluation.store import Store
from monai_adv.metrics.score import Score

CLASSES = ("anterior", "posterior")
FAMILIES: dict[str, Family] = {
    "white noise": "random",
    "APGD-CE": "white-box",
    "SegPGD": "white-box",
    "Square": "black-box",
}


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
    probes: Mapping[str, ModelProbe] | None = None,
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
        stages: dict[str, dict[str, StageEntry]] = {}
        corruptions = {}
        for record in mine:
            if record.attack.startswith("corruption:"):
                entry = CorruptionEntry(name=record.attack, severity=record.level)
                corruptions[record.attack, record.level] = entry
            elif record.level:
                family = FAMILIES.get(record.attack, "white-box")
                stage = StageEntry(name=record.attack, family=family, settings=record.settings)
                stages.setdefault(record.level, {}).setdefault(record.attack, stage)
        planted: dict[str, Any] = {
            "name": name,
            "kind": "segmentation" if segmentation else "classification",
            "classes": CLASSES if segmentation else ("benign", "malignant"),
            "fingerprint": "ab12",
            "space": "whole volumes through nnU-Net's sliding window, mirroring off",
            "unit": "standard deviations of the z-scored image",
            "cases": tuple(dict.fromkeys(r.case for r in mine)),
            "problems": (),
            "stages": {level: tuple(found.values()) for level, found in stages.items()},
            "corruptions": tuple(corruptions.values()),
        }
        models.append(ModelEntry(**planted | more))
    evaluation = Evaluation(
        started="2026-11-21T14:00:00",
        machine="two cores",
        versions={"monai-adv": "0.1.0", "torch": "2.15.0"},
        settings=SettingsEntry(**settings),
        levels=tuple(LevelEntry.of(parse_level(k)) for k in keys if k[:2] in ("l2", "li")),
        words=words,
        models=tuple(models),
        run_file="",
    )
    store = Store.open(path, evaluation)
    for record in records:
        store.commit_record(record, torch.zeros(0))
        if pictures and record.level and not record.attack.startswith("corruption"):
            store.add_pictures(record.model, record.case, record.level, [picture(s) for s in record.worst])
    for name, found in (probes or {}).items():
        store.add_probe(name, found)
    store.add_cost(Costs(Cost(10**6, 10**6, 7200.0), Predicted(600.0, 1), Measured(5000, 4000, 660.0, workers=1)))
    return path


def probed(**more: Any) -> ModelProbe:
    """An honest model with one case, "a", and one level, L2 5.

    Args:
        more: fields to replace.
    """
    honest: dict[str, Any] = {
        "cases": ("a",), "steps": 200, "unit": "standard deviations of the z-scored image", "images": 3,
        "threats": {"l2-5": "L2 radius 5 (= 0.104 RMS per voxel), no box"}, "per_voxel": {"l2-5": 0.104},
        "trained": None, "box": None, "low": -2.0, "high": 6.0, "sd": 1.0, "outside": 0.0,
        "relative": {"l2-5": 0.0124}, "repeat": 0.0, "batch": 0.0, "training": 0, "probabilities": False,
        "zero_samples": 0.0, "zero_voxels": 0.0, "unbounded": {"l2": 0.0}, "longer": {"l2-5": {"a": {"a": 0.5}}},
    }  # fmt: skip
    return ModelProbe(**honest | more)


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


__all__ = ["CLASSES", "FAMILIES", "dice_score", "folder_of", "label_score", "picture", "plant", "probed"]

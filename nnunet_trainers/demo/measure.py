"""Attack both models with the code of ``monai-adv evaluate``, and keep one slice of each for the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from monai_adv.attacks import SegmentationEnsemble
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import CLEAN, Level, Record
from monai_adv.evaluation.run.session import Session
from monai_adv.evaluation.run.workers import ThisProcess
from monai_adv.evaluation.store import read_problems, read_records
from monai_adv.first_look.phantom import LABELS
from monai_adv.metrics.score import Score
from monai_adv.metrics.segmentation import overlap_score
from monai_adv.tasks import take
from nnunet_trainers.demo.progress import StageFailed, Stages
from nnunet_trainers.demo.recipe import ATTACKS, DATASET, FOLD, TRAINERS, Recipe, model_folder
from nnunet_trainers.demo.workplace import Workplace
from nnunet_trainers.evaluation.case import NNUNetCase
from nnunet_trainers.evaluation.source import NNUNetSource
from nnunet_trainers.volume_dice import class_masks


def measure(stages: Stages, recipe: Recipe) -> None:
    """Fill the folder of the evaluation, and write one slice of each model.

    The probes for red flags are left out: they take several times as long as the attacks.

    Raises:
        StageFailed: a case cannot be used.
    """
    place = stages.place
    images, labels = (str(place.raw(DATASET, part)) for part in ("imagesTs", "labelsTs"))
    sources = [
        NNUNetSource(str(place.results(*model_folder(t))), images, labels, folds=(FOLD,), name=t) for t in TRAINERS
    ]
    with stages.quiet():
        session = Session(sources, recipe.evaluation(torch.get_num_threads()), place.evaluation, ThisProcess())
        session.prepare()
        cases = [(job, case) for job, m in zip(session.jobs, session.models, strict=True) for case in m.cases]
        with stages.bar(len(cases), "case") as bar:
            for job, case in cases:
                job.attack(case)
                bar.update()
        if problems := read_problems(place.evaluation):
            raise StageFailed("; ".join(f"{model}, {case}: {reason}" for model, case, reason in problems))
        name = typical_case(read_records(place.evaluation))
        for trainer, source in zip(TRAINERS, sources, strict=True):
            picture = one_slice(source.open().load(name), recipe.middle)
            np.savez_compressed(place.slice_file(trainer), **dataclasses.asdict(picture))


def read_slice(place: Workplace, trainer: str) -> Picture:
    """What :func:`measure` has written."""
    with np.load(place.slice_file(trainer)) as arrays:
        values: dict[str, Any] = {k: v.item() if v.ndim == 0 else v for k, v in arrays.items()}
    return Picture(**values)


def predicted(place: Workplace, trainer: str) -> list[Score]:
    """Dice of the files that nnU-Net's own command wrote."""
    scores = []
    for file in sorted(place.raw(DATASET, "labelsTs").iterdir()):
        masks = class_masks(_read(place.predictions(trainer, file.name)), _read(file), LABELS)
        scores.append(overlap_score(file.name.removesuffix(".nii.gz"), masks))
    return scores


def typical_case(records: Sequence[Record]) -> str:
    """The case whose clean Dice, as a mean over the models, is the median: neither the best nor the worst is shown."""
    clean = [r for r in records if r.attack == CLEAN]
    names = dict.fromkeys(r.case for r in clean)
    mean = {name: float(np.mean([r.own[0].score for r in clean if r.case == name])) for name in names}
    return sorted(mean, key=mean.__getitem__)[len(mean) // 2]


def one_slice(case: NNUNetCase, level: Level) -> Picture:
    """The slice with most foreground, attacked as in the evaluation; it is the same one for every 2D model."""
    index = int((case.labels > 0).flatten(1).sum(1).argmax())
    only = torch.tensor([index])
    clean = case.images[only]
    attack = SegmentationEnsemble(case.threat(level), ATTACKS)
    attacked = attack(case.network, clean, take(case.target, only), case.task).images
    return Picture(
        case.name,
        clean=clean[0, 0].numpy(),
        attacked=attacked[0, 0].numpy(),
        truth=case.labels[index, 0].numpy(),
        on_clean=case.slice_labels(case.logits(clean))[0],
        on_attacked=case.slice_labels(case.logits(attacked))[0],
        caption=f"slice {index + 1} of {len(case.images)}",
    )


def _read(path: Any) -> npt.NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]

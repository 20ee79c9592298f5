"""What the segmentation benchmarks attack: the networks and patients, and attacks one after the other on them.

Hippocampus: the weights that the bundle robust_organ_segmentation ships (MONAI, 3D; nnU-Net, 2D), on patients of
nnU-Net's validation fold 0, whole volumes as deployed. BUSI: two small 2D networks of benchmarks/busi.py, on held-out
images.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import busi
import torch
from nnunetv2.utilities.crossval_split import generate_crossval_split
from torch import Tensor, nn

from monai_adv.attacks.base import Attack, continued
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.models.protocol import Case
from monai_adv.tasks import SegmentationTask, Task, take
from monai_adv.threats import Threat
from nnunet_trainers.evaluation.source import NNUNetSource

BUNDLE = Path(__file__).parents[1] / "bundles" / "robust_organ_segmentation"
HIPPOCAMPUS = ("nnunet_clean", "nnunet_ima", "model_clean", "model")
BATCH = 64


class Problem(Protocol):
    """Inputs that are attacked together, with one score or one each."""

    name: str
    network: nn.Module
    images: Tensor
    target: Any

    def task(self, worst: Tensor | None) -> Task:
        """What an attack aims at, that shall beat the worst images so far."""

    def scores(self, images: Tensor) -> dict[str, float]:
        """Name of the case -> mean Dice, 0 to 1, as a report scores it."""

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        """The worst mixture."""


class Patient:
    """A case of the evaluation: a volume, or slices that share a score."""

    def __init__(self, case: Case) -> None:
        self.case, self.name, self.network = case, case.name.split(".")[0].removesuffix("_0000"), case.network
        self.images, self.target = case.images, case.target

    def task(self, worst: Tensor | None) -> Task:
        return self.case.task if worst is None else self.case.aim(worst)

    def scores(self, images: Tensor) -> dict[str, float]:
        return {self.name: self.case.scores(images)[0].score}

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        return self.case.combine(images, others)


class Images:
    """Independent images with a score each."""

    def __init__(self, network: nn.Module, images: Tensor, target: Tensor) -> None:
        self.name, self.network, self.images, self.target = "images", network, images, target
        self.judge = SegmentationTask.for_evaluation()

    def task(self, worst: Tensor | None) -> Task:
        return self.judge

    def scores(self, images: Tensor) -> dict[str, float]:
        return {f"image {i}": float(v) for i, v in enumerate(self._dice(images))}

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        return torch.where((self._dice(others) < self._dice(images)).view(-1, 1, 1, 1), others, images)

    @torch.no_grad()
    def _dice(self, images: Tensor) -> Tensor:
        return self.judge.dice(self.network(images), self.target).nanmean(1)


def problems(target: str, data: Path, weights: Path, cases: int) -> Iterable[Problem]:
    """The first so many cases of a target; of BUSI images with a clean Dice above 0.5, so that something can be lost.

    Args:
        target: ``nnunet_clean``, ``nnunet_ima``, ``model_clean``, ``model``, ``busi_plain`` or ``busi_robust``.
        data: folder of ``Dataset004_Hippocampus`` and ``busi_224``.
        weights: folder of ``busi_plain.pt`` and ``busi_robust.pt``.
        cases: how many.
    """
    if target.startswith("busi"):
        network = busi.network()
        network.load_state_dict(torch.load(weights / f"{target}.pt"))
        images, labels = busi.load(data / "busi_224", held_out=True, count=60)
        group = Images(network.eval(), images, labels)
        good = torch.tensor([v > 0.5 for v in group.scores(images).values()]).nonzero()[:cases, 0]
        yield Images(network, images[good], labels[good])
        return
    folder = data / "Dataset004_Hippocampus"
    names = sorted(file.name.removesuffix(".nii.gz") for file in (folder / "labelsTr").glob("*.nii.gz"))
    held_out = generate_crossval_split(names)[0]["val"][:cases]
    model: Any
    if target.startswith("nnunet"):
        places = str(BUNDLE / "models" / target), str(folder / "imagesTr"), str(folder / "labelsTr")
        model = NNUNetSource(*places, cases=tuple(held_out)).open()
    else:
        model = BundleSource(str(BUNDLE), None, (f"dataset_dir={folder}",), f"models/{target}.pt").open()
    for name in model.cases[:cases]:
        yield Patient(model.load(name))


def attacked(
    problem: Problem, attacks: Iterable[Attack], threat: Threat, worst: Tensor | None = None, seed: int = 0
) -> Tensor:
    """The worst images after some attacks, each of which knows what those before it have found, as in an evaluation."""
    radius = threat.radius(problem.images) * (1 - 1e-5)
    generator = torch.Generator().manual_seed(seed)
    known = worst is not None
    worst = problem.images if worst is None else worst
    for attack in attacks:
        task, found = problem.task(worst if known else None), worst.clone()
        for part in torch.arange(len(worst)).split(BATCH):
            found[part] = continued(
                attack, problem.network, problem.images[part], take(problem.target, part), task,
                worst=worst[part], radius=radius[part], generator=generator,
            ).images  # fmt: skip
        largest = float((threat.size(found.double() - problem.images.double()) / threat.radius(problem.images)).max())
        if not largest <= 1 + 1e-5:
            raise RuntimeError(f"{attack} left the radius: {largest}")
        worst, known = problem.combine(worst, found), True
    return worst

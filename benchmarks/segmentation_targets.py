"""What the segmentation benchmarks attack: the networks and patients, and attacks one after the other on them.

Hippocampus: the weights that the bundle robust_organ_segmentation ships (MONAI, 3D; nnU-Net, 2D), on patients of
nnU-Net's validation fold 0, whole volumes as deployed. BUSI: two small 2D networks of benchmarks/busi.py, on held-out
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from monai_adv.threats import Threat, per_sample
from nnunet_trainers.evaluation.source import NNUNetSource

BUNDLE = Path(__file__).parents[1] / "bundles" / "robust_organ_segmentation"
HIPPOCAMPUS = ("nnunet_clean", "nnunet_robust", "model_clean", "model")
BATCH = 64
BLOCK = (24, 32, 32)
SLICES = 12


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

    def __init__(self, network: nn.Module, images: Tensor, target: Tensor, name: str = "image") -> None:
        self.name, self.network, self.images, self.target = name, network, images, target
        self.judge = SegmentationTask.for_evaluation()

    def task(self, worst: Tensor | None) -> Task:
        return self.judge

    def scores(self, images: Tensor) -> dict[str, float]:
        return {f"{self.name} {i}": float(v) for i, v in enumerate(self._dice(images))}

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        return torch.where(per_sample(self._dice(others) < self._dice(images), images), others, images)

    @torch.no_grad()
    def _dice(self, images: Tensor) -> Tensor:
        return self.judge.dice(self.network(images), self.target).nanmean(1)


def part_of(patient: Patient) -> Images:
    """What a slow machine can measure: of a volume a block around the organ, of slices some, each for itself."""
    images, target = patient.images, patient.target
    organ = target[:, 0] > 0
    if images.ndim == 4:
        chosen = organ.flatten(1).sum(1).topk(SLICES).indices.sort().values
        return Images(patient.network, images[chosen], target[chosen], f"{patient.name}, slice")
    middle = organ[0].nonzero().float().mean(0).round().int().tolist()
    block: Any = [slice(None), slice(None)]
    for place, size, length in zip(middle, BLOCK, images.shape[2:], strict=True):
        first = max(min(place - size // 2, length - size), 0)
        block.append(slice(first, first + size))
    return Images(patient.network, images[tuple(block)], target[tuple(block)], f"{patient.name}, block")


def problems(target: str, data: Path, weights: Path, cases: int, part: bool = False) -> Iterable[Problem]:
    """The first so many cases of a target; of BUSI images with a clean Dice above 0.5, so that something can be lost.

    Args:
        target: ``nnunet_clean``, ``nnunet_robust``, ``model_clean``, ``model``, ``busi_plain`` or ``busi_robust``.
        data: folder of ``Dataset004_Hippocampus`` and ``busi_224``.
        weights: folder of ``busi_plain.pt`` and ``busi_robust.pt``.
        cases: how many.
        part: only a part of each patient, see :func:`part_of`.
    """
    if target.startswith("busi"):
        network = busi.network()
        network.load_state_dict(torch.load(weights / f"{target}.pt"))
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
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
        patient = Patient(model.load(name))
        yield part_of(patient) if part else patient


def attacked(
    problem: Problem,
    attacks: Iterable[Attack],
    threat: Threat,
    worst: Tensor | None = None,
    seed: int = 0,
    tell: Callable[[Tensor], None] = lambda worst: None,
) -> Tensor:
    """The worst images after some attacks, each of which knows what those before it have found, as in an evaluation.

    ``tell`` gets them after each attack.
    """
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
        tell(worst)
    return worst

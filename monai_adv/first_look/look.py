"""Train a small network plainly, make it robust, and attack both on a patient that neither has seen.

Everything follows from the seeds. Figures on phantoms say how things work, not how good a method is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from monai_adv.attacks import SegmentationEnsemble
from monai_adv.defenses import METHODS, Defense
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.first_look.phantom import LABELS, Phantom, make_case
from monai_adv.first_look.picture import mean_dice
from monai_adv.tasks import SegmentationTask
from monai_adv.threats import Threat

PLAIN, ROBUST = "plain", "robust (SAT)"


@dataclass(frozen=True)
class Recipe:
    """The defaults fit one CPU core and half a minute.

    Args:
        patients: phantoms to train on; the next one is attacked.
        plain_steps, robust_steps: of the optimiser; the robust training goes on from the plain network.
        trained_eps: radius of the attack during the robust training, RMS change per voxel in standard deviations of the
            scan.
        eps: radius of the noise and of the attack that both models meet.
    """

    phantom: Phantom = field(default_factory=Phantom)
    patients: int = 8
    plain_steps: int = 150
    robust_steps: int = 100
    batch_size: int = 12
    learning_rate: float = 0.02
    trained_eps: float = 0.2
    eps: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Look:
    """What one model makes of the patient: mean Dice of the volume, 0 to 1, and one slice to draw.

    ``attacked`` is the worse of attack and noise, slice by slice.
    """

    clean: float
    noise: float
    attacked: float
    picture: Picture


def first_look(recipe: Recipe, say: Callable[[str], object] = lambda text: None) -> dict[str, Look]:
    """Train both models and attack them.

    Args:
        recipe: what is done.
        say: is told what begins.

    Returns:
        what is seen of each, :data:`PLAIN` and :data:`ROBUST`.

    Example:
        A robust training of no steps changes nothing:

        >>> small = Phantom(shape=(16, 16, 9), objects=3, largest_radius=4, smallest_radius=2)
        >>> looks = first_look(Recipe(small, patients=1, plain_steps=1, robust_steps=0))
        >>> looks[PLAIN].attacked == looks[ROBUST].attacked
        True
    """
    parts = [patient(recipe.phantom, number) for number in range(recipe.patients)]
    scans, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    unseen = patient(recipe.phantom, recipe.patients)
    task = SegmentationTask(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True))
    sat = METHODS["sat"]
    plain = METHODS["standard"].defense(task)
    robust = sat.defense(task, sat.settings(**{**sat.presets["finetune"], "eps": recipe.trained_eps}))
    stages = ((PLAIN, plain, recipe.plain_steps, 1.0), (ROBUST, robust, recipe.robust_steps, 0.5))
    network, looks = new_network(recipe.seed), {}
    for name, defense, steps, share in stages:
        say(f"{name}: {steps} training steps on {len(scans)} slices of {recipe.patients} patients")
        network = trained(network, defense, scans, labels, steps, share * recipe.learning_rate, recipe)
        say(f"{name}: attack on another patient, {len(unseen[0])} slices")
        looks[name] = look_at(network, *unseen, recipe.eps, recipe.seed)
    return looks


def patient(phantom: Phantom, number: int) -> tuple[Tensor, Tensor]:
    """Z-scored slices ``(S, 1, H, W)`` of a patient, and their label maps ``(S, 1, H, W)``."""
    scan, labels = (torch.from_numpy(a).movedim(-1, 0)[:, None].contiguous() for a in make_case(phantom, number))
    return (scan - scan.mean()) / scan.std(), labels.long()


def new_network(seed: int) -> nn.Module:
    """A small 2D U-Net; torch's own random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(2, 1, len(LABELS), (8, 16, 32), (2, 2), norm=("instance", {"affine": True}))


def trained(
    network: nn.Module,
    defense: Defense,
    scans: Tensor,
    labels: Tensor,
    steps: int,
    learning_rate: float,
    recipe: Recipe,
) -> nn.Module:
    """A copy of the network, trained in a plain PyTorch loop."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 1))
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(steps):
        chosen = torch.randperm(len(scans), generator=generator)[: recipe.batch_size]
        optimizer.zero_grad()
        defense(network, scans[chosen], labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def look_at(network: nn.Module, scan: Tensor, labels: Tensor, eps: float, seed: int) -> Look:
    """Attack every slice of a patient, and score the volume.

    Args:
        network: slices to logits, in eval mode.
        scan: ``(S, 1, H, W)``, z-scored.
        labels: ``(S, 1, H, W)``.
        eps: RMS change per voxel of noise and attack.
        seed: of both.
    """
    generator = torch.Generator().manual_seed(seed)
    threat, task = Threat("l2", eps), SegmentationTask.for_evaluation()
    white = torch.randn(scan.shape, generator=generator)
    noisy = scan + white * eps / white.square().mean((1, 2, 3), keepdim=True).sqrt()
    attacked = SegmentationEnsemble(threat, "quick")(network, scan, labels, task, generator=generator).images
    with torch.no_grad():  # as in an evaluation: the attacker may use noise where it does more harm
        left, left_by_noise = (task.margin(network(images), labels) for images in (attacked, noisy))
    attacked = torch.where((left_by_noise < left)[:, None, None, None], noisy, attacked)
    truth = labels[:, 0].numpy()
    found = [_segmented(network, images) for images in (scan, noisy, attacked)]
    index = int((labels > 0).flatten(1).sum(1).argmax())
    picture = Picture(
        "a phantom patient",
        clean=scan[index, 0].numpy(),
        attacked=attacked[index, 0].numpy(),
        truth=truth[index],
        on_clean=found[0][index],
        on_attacked=found[2][index],
        caption=f"slice {index + 1} of {len(scan)}",
    )
    clean, noise, worst = (mean_dice(labelled, truth) for labelled in found)
    return Look(clean, noise, worst, picture)


@torch.no_grad()
def _segmented(network: nn.Module, images: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = network(images).argmax(1).numpy()
    return found

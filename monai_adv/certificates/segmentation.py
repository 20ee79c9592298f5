"""Certified segmentation: which voxels keep their class under every change up to a radius, and the Dice that remains.

Sources: Fischer, Baader, Vechev, "Scalable certified segmentation via randomized smoothing", ICML 2021 (SegCertify);
Laousy et al., "Certification of deep learning models for medical image segmentation", MICCAI 2023 (certified Dice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from monai_adv.certificates.bounds import agree
from monai_adv.certificates.settings import Certification
from monai_adv.certificates.smoothed import NO_CLASS
from monai_adv.certificates.votes import count_votes
from monai_adv.tasks import dice_score


@dataclass(frozen=True)
class MapCertificate:
    """What is proven about each image.

    Attributes:
        labels: ``(B, *spatial)`` class of each voxel, or ``(B, R, *spatial)`` 0 or 1 for each region;
            :data:`NO_CLASS` where the smoothed model abstains.
        radius: no change of a smaller L2 norm, over all intensities of an image, alters any of its labels that are
            not :data:`NO_CLASS`; all these statements about an image together.
    """

    labels: Tensor
    radius: float

    @property
    def abstained(self) -> Tensor:
        """``(B,)`` share of voxels about which nothing is said."""
        return (self.labels == NO_CLASS).flatten(1).double().mean(1)


def certify_labels(
    network: nn.Module,
    images: Tensor,
    settings: Certification,
    *,
    ids: Sequence[str | int] | None = None,
    regions: bool = False,
    together: bool = False,
) -> MapCertificate:
    """Certify the smoothed version of a segmentation model, image by image.

    Args:
        network: images ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``, in 2D or 3D; a sliding window over whole
            volumes is one too. The certificate is about its smoothed version, not about the network itself.
        images: as the network gets them.
        settings: noise and draws. What is said of all voxels of an image together is wrong with probability ``alpha``.
        ids: of the images, different from each other. An image with the same id gets the same draws, whatever stands
            beside it; default: the places in the batch.
        regions: the channels are overlapping regions (a sigmoid each).
        together: the images are the slices of one volume: what is said of all of them is wrong with that probability.

    Raises:
        InputError: too few draws for so many voxels, noise that is lost in the rounding of the images, or a network
            that answers by chance.

    Example:
        One that finds class 1 where a voxel is above 0 (the radius is the same for all voxels):

        >>> class Above(nn.Module):
        ...     def forward(self, x):
        ...         return torch.cat([-x, x], 1)
        >>> found = certify_labels(Above(), torch.tensor([[[2.0, 0.1, -2.0]]]), Certification(sigma=1.0, tau=0.75))
        >>> found.labels.tolist(), round(found.radius, 4)
        ([[1, -1, 0]], 0.6745)
    """
    slices = len(images) if together else 1
    settings.check_draws(slices * images[0, 0].numel(), settings.tau)
    votes = count_votes(network, images, settings, ids=ids, regions=regions)
    settings.check_draws(slices * votes.count[0].numel(), settings.tau)
    counts = votes.count.numpy()
    families = counts[None] if together else counts
    certain = np.stack([agree(count, settings.n, settings.tau, settings.alpha) for count in families])
    labels = torch.where(torch.from_numpy(certain).reshape(counts.shape), votes.chosen, NO_CLASS)
    return MapCertificate(labels, settings.sigma * float(stats.norm.ppf(settings.tau)))


def certified_dice(labels: Tensor, target: Tensor, classes: int, valid: Tensor | None = None) -> Tensor:
    """Lower bound of each class's Dice under every change up to the certificate's radius.

    Where the model abstains anything may come: at worst a voxel of the class is missed and one beside it is found. Of
    a single class the bound is attained; several classes cannot all be at their worst at once.

    Args:
        labels: ``(B, *spatial)`` of :class:`MapCertificate`.
        target: ``(B, *spatial)`` true classes.
        classes: number of foreground classes, 1, 2, ...
        valid: ``(B, *spatial)`` bool, voxels that count; default: all.

    Returns:
        ``(B, classes)`` double. As everywhere (see :mod:`monai_adv.tasks.dice_score`) a class that is not there has
        Dice 0 if it may be found in some voxel, and NaN if it is proven to stay away.

    Example:
        Three true voxels, one of them certain, one abstained, one wrong; beside them one abstained:

        >>> labels, target = torch.tensor([[1, -1, 0, -1, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
        >>> certified_dice(labels, target, 1).tolist()
        [[0.4]]
    """
    kinds = torch.arange(1, classes + 1, device=labels.device).view(1, -1, *[1] * (labels.ndim - 1))
    counted = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    there = (target[:, None] == kinds) & counted[:, None]
    kept = (labels[:, None] == kinds) & there
    added = ((labels[:, None] == kinds) | (labels[:, None] == NO_CLASS)) & ~there & counted[:, None]
    found = (kept | added).flatten(2).sum(2)
    return dice_score.dice(kept.flatten(2).sum(2), found + there.flatten(2).sum(2))


def certified_region_dice(labels: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """The same for regions.

    Args:
        labels: ``(B, R, *spatial)`` of :class:`MapCertificate`, 1, 0 or :data:`NO_CLASS`.
        target: ``(B, R, *spatial)`` 1 where the region is.
        valid: ``(B, *spatial)`` bool, voxels that count; default: all.

    Returns:
        ``(B, R)`` double.
    """
    size = labels.shape[:2]
    flat = None if valid is None else valid[:, None].expand_as(labels).flatten(0, 1)
    return certified_dice(labels.flatten(0, 1), target.flatten(0, 1), 1, flat).view(size)


def certified_score(per_class: Tensor, there: Tensor) -> Tensor:
    """``(B,)`` lower bound of the score that reports show: the mean over classes that are there or may be found.

    Args:
        per_class: ``(B, K)`` of :func:`certified_dice`.
        there: ``(B, K)`` bool: classes that the ground truth has; an image without any has no score, NaN.
    """
    return torch.where(there.any(1), dice_score.mean_dice(per_class), torch.nan)

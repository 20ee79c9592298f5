"""Certified classification: no change up to a radius alters what the smoothed model says.

Source: Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019, algorithm
CERTIFY and theorem 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monai_adv.certificates.bounds import lower_bound, radius
from monai_adv.certificates.settings import Certification
from monai_adv.certificates.smoothed import NO_CLASS
from monai_adv.certificates.votes import count_votes


@dataclass(frozen=True)
class ClassCertificate:
    """What is proven about each image.

    Attributes:
        label: ``(B,)`` class of the smoothed model, :data:`NO_CLASS` where it abstains.
        radius: ``(B,)`` double: no change of a smaller L2 norm, over all intensities of the image, alters the label.
        probability: ``(B,)`` double: lower bound of how often the label comes.
    """

    label: Tensor
    radius: Tensor
    probability: Tensor

    def holds(self, target: Tensor, size: float) -> Tensor:
        """``(B,)`` bool: right, and proven to stay so under every change of up to this L2 norm."""
        return (self.label == target) & (self.radius >= size)


def certify_classes(
    network: nn.Module, images: Tensor, settings: Certification, *, ids: Sequence[str | int] | None = None
) -> ClassCertificate:
    """Certify the smoothed version of a classifier, image by image.

    Args:
        network: images ``(B, C, *spatial)`` to logits ``(B, K)``, or ``(B, 1)`` for two classes; the model that is
            smoothed. The certificate is not about this network itself.
        images: as the network gets them.
        settings: noise and draws. Each image's statement is wrong with probability ``alpha``.
        ids: of the images, different from each other. An image with the same id gets the same draws, whatever stands
            beside it; default: the places in the batch.

    Raises:
        InputError: too few draws to show anything, noise that is lost in the rounding of the images, or a network that
            answers by chance.

    Example:
        A classifier that always says the same: the radius is bounded by the number of draws alone:

        >>> network = nn.Linear(2, 2)
        >>> _ = network.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.tensor([0.0, 1.0])})
        >>> found = certify_classes(network, torch.zeros(1, 2), Certification(sigma=0.5, n=1000, alpha=0.001))
        >>> found.label.tolist(), round(float(found.radius), 4)
        ([1], 1.2316)
    """
    settings.check_draws()
    votes = count_votes(network, images, settings, ids=ids)
    chosen, count = (of.reshape(len(images)) for of in (votes.chosen, votes.count))  # some keep spatial axes of size 1
    probability = lower_bound(count.numpy(), settings.n, settings.alpha)
    size = torch.from_numpy(radius(probability, settings.sigma))
    return ClassCertificate(torch.where(size > 0, chosen, NO_CLASS), size, torch.from_numpy(probability))

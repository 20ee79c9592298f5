"""Models made to raise a red flag, and honest ones, for ``monai-adv evaluate --factory tests/planted_models.py:...``.

All share one classifier and one segmentation network with weights that are written down, not trained: a matched filter
that tells bright from dark centres, and a threshold of a local mean.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.segmenter import Segmenter

UNIT = "standard deviations of the z-scored image"


class Wrapped(nn.Module):
    """A network with something planted before and after it."""

    def __init__(self, network: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        y: Tensor = self.network(x)
        return y if self.after is None else self.after(y)


class ClippedGradient(torch.autograd.Function):
    """The identity, whose gradient is cut off above a limit."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return torch.where(gradient.abs() < 1e-5, gradient, torch.zeros_like(gradient))


def classifier(before: Any = None, after: Any = None, name: str = "planted", **more: Any) -> Classifier:
    """16 images of 8 x 8 voxels in noise, half of them with a brighter, half with a darker centre."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 1, 8, 8, generator=generator)
    images[:, :, 2:6, 2:6] += 0.7 * (2 * labels - 1).view(-1, 1, 1, 1)
    images = more.pop("scale", 1.0) * (images - images.mean()) / images.std()
    linear = nn.Linear(64, 2)
    with torch.no_grad():
        bright = F.pad(torch.ones(4, 4), (2, 2, 2, 2)).flatten() / 8
        # Weights of its own for every voxel, as training leaves them: no voxel without a gradient.
        bright += 0.02 * torch.randn(64, generator=generator)
        linear.weight.copy_(torch.stack([-bright, bright]))
        linear.bias.zero_()
    network = Wrapped(nn.Sequential(nn.Flatten(), linear), before, after)
    return Classifier(name, network, images, labels, ("dark", "bright"), unit=more.pop("unit", UNIT), **more)


def segmenter(before: Any = None, after: Any = None, name: str = "planted", **more: Any) -> Segmenter:
    """Two images of 16 x 16 voxels with a bright disc in noise."""
    generator = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centres = 5 + 6 * torch.rand(2, 2, 1, 1, generator=generator)
    labels = (((row - centres[:, 0]) ** 2 + (column - centres[:, 1]) ** 2) < 16).long()
    images = 2.0 * labels[:, None] + 0.5 * torch.randn(2, 1, 16, 16, generator=generator)
    images = (images - images.mean()) / images.std()
    network = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        network.weight.copy_(torch.stack([torch.zeros(1, 3, 3), torch.full((1, 3, 3), 4 / 9)]))
        network.bias.copy_(torch.tensor([0.0, -2.0]))
    planted = Wrapped(network, before, after)
    return Segmenter(name, planted, list(images), list(labels), ("disc",), unit=UNIT, **more)


def honest() -> Classifier:
    return classifier(name="honest")


def honest_segmenter() -> Segmenter:
    return segmenter(name="honest")


def quantised_input() -> Classifier:
    return classifier(before=lambda x: (2 * x).round() / 2)


def quantised_input_segmenter() -> Segmenter:
    return segmenter(before=lambda x: (2 * x).round() / 2)


def saturated_softmax() -> Classifier:
    return classifier(after=lambda y: (1e4 * y).softmax(1))


def one_sigmoid() -> Classifier:
    """A single output after a sigmoid: above 0 whatever the image, so every image is called bright."""
    return classifier(after=lambda y: (y[:, 1:] - y[:, :1]).sigmoid())


def flat_sigmoid() -> Classifier:
    """The same as a vector (B,)."""
    return classifier(after=lambda y: (y[:, 1] - y[:, 0]).sigmoid())


def flat_logit() -> Classifier:
    return classifier(after=lambda y: y[:, 1] - y[:, 0], name="flat")


def softmax_segmenter() -> Segmenter:
    return segmenter(after=lambda y: y.softmax(1))


def sigmoid_segmenter() -> Segmenter:
    """A region after a sigmoid: every voxel is found."""
    planted = segmenter(after=lambda y: (y[:, 1:] - y[:, :1]).sigmoid())
    labels = [label[None] for label in planted.labels]
    return Segmenter("planted", planted.network, planted.images, labels, ("disc",), regions=True, unit=UNIT)


def temperature_scaled_logits() -> Classifier:
    return classifier(after=lambda y: 1e4 * y)


def randomised_layer() -> Classifier:
    return classifier(before=lambda x: x + 0.3 * torch.randn_like(x))


def randomised_segmenter() -> Segmenter:
    return segmenter(before=lambda x: x + 0.3 * torch.randn_like(x))


def clipped_gradient() -> Classifier:
    return classifier(before=ClippedGradient.apply)


def batch_statistics() -> Classifier:
    return classifier(before=lambda x: x - x.mean())


def guarded() -> Classifier:
    """What is brighter or darker than a scan gets the commonest answer, and no gradient: large attacks get lost."""

    def guard(x: Tensor) -> Tensor:
        unusual = x.flatten(1).norm(dim=1) > 10
        return torch.where(unusual.view(-1, 1, 1, 1), torch.full_like(x, -0.1), x)

    return classifier(before=guard)


def detours() -> Classifier:
    """A ripple along one direction that changes no answer and is most of the gradient."""
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))

    def ripple(x: Tensor) -> Tensor:
        phase = x.flatten(1) @ direction
        return x + 0.01 * (40 * phase).sin().view(-1, 1, 1, 1)

    return classifier(before=ripple)


def blind() -> Classifier:
    """The same answer whatever it sees."""
    return classifier(after=lambda y: 0 * y + torch.tensor([5.0, 0.0]))


def wrong_scale() -> Classifier:
    """Images of 0 to 255 under a unit that says otherwise."""
    return classifier(before=lambda x: x / 100, scale=100.0)


def honest_but_sure() -> Classifier:
    """Logits 5 times as large, which hide nothing from attacks that rescale their gradients."""
    return classifier(after=lambda y: 5 * y, name="honest")


def roughly_quantised_input() -> Classifier:
    return classifier(before=lambda x: x.round())

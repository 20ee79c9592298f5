"""Subjects whose answers are known, also for other processes: ``--factory tests/tiny_models.py:classifier``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.classifier import ClassificationCase, Classifier
from monai_adv.evaluation.models.segmenter import Segmenter

KILL_AT = "TINY_SUBJECTS_KILL_AT"
"""Number of the forward pass at which the process kills itself."""
KILL_ONCE = "TINY_SUBJECTS_KILL_ONCE"
"""A file that is there until the first process has killed itself at that pass."""


class Deadly(nn.Module):
    """A network in a process that somebody may kill."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == int(os.environ.get(KILL_AT, "0")):
            once = os.environ.get(KILL_ONCE)
            if once is None or _removed(Path(once)):
                os.kill(os.getpid(), signal.SIGKILL)
        return self.network(x)


def _removed(file: Path) -> bool:
    """By this process: of two that come at once, one is killed."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def classifier(name: str = "tiny", seed: int = 0, classes: int = 3) -> Classifier:
    """A linear network; it is wrong on the first of 20 images and right on the others."""
    linear = nn.Linear(16, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(classes, 16, generator=generator))
        linear.bias.zero_()
    network = Deadly(nn.Sequential(nn.Flatten(), linear))
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = network(x).argmax(1)
    labels[0] = (labels[0] + 1) % classes
    return Classifier(name, network, x, labels, "abc"[:classes], box=(0.0, 1.0), group=8)


def other_classifier() -> Classifier:
    """Another model with a name that file systems do not like."""
    return classifier("../Ä b", seed=1)


def half_readable() -> Classifier:
    """Its last case cannot be loaded."""
    model = classifier()

    def load(case: str) -> ClassificationCase:
        if case == model.cases[-1]:
            raise InputError(f"{case}: the file <b>last.nii.gz</b> is damaged.")
        return Classifier.load(model, case)

    model.load = load  # type: ignore[method-assign]
    return model


def segmenter() -> Segmenter:
    """A voxel is foreground where its intensity is above 0.5; the images are their own ground truth."""
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 4.0]).view(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -2.0]))
    images = [torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    return Segmenter("threshold", network, images, [(i[0] > 0.5).long() for i in images], ("lesion",))


def failing() -> Classifier:
    """A model that does not load."""
    raise FileNotFoundError("weights.pt is not there")


def batch_normed() -> Classifier:
    """A linear network with BatchNorm; it is wrong on the first of 20 images and right on the others."""
    network = nn.Sequential(nn.Conv2d(1, 2, 4, bias=False), nn.BatchNorm2d(2), nn.Flatten())
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in (network[0].weight, network[1].bias):
            values.copy_(torch.randn(values.shape, generator=draw))  # type: ignore[operator, arg-type, union-attr]
        network[1].running_var.copy_(torch.tensor([0.5, 2.0]))  # type: ignore[operator, union-attr]
    x = torch.rand(20, 1, 4, 4, generator=draw)
    with torch.no_grad():
        logits = network.eval()(x)
        # Both classes are as frequent, whatever was drawn.
        network[1].running_mean[0] += (logits[:, 0] - logits[:, 1]).median() * 0.5**0.5  # type: ignore[index, operator]
        labels = network(x).argmax(1)
    labels[0] = 1 - labels[0]
    return Classifier("batch normed", network, x, labels, "ab", box=(0.0, 1.0), group=8)

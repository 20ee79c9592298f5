"""Subjects that fail in ways of their own: ``--factory tests/bad_models.py:odd_size``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.segmenter import Segmenter


class Wrapped(nn.Module):
    """A linear classifier of 2 x 2 pixels behind something that a user may write."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] | None = None, after: Callable[[Tensor], Tensor] | None = None
    ):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
            self.linear.bias.zero_()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        y: Tensor = self.linear(x.flatten(1))
        return y if self.after is None else self.after(y)


def classifier(network: nn.Module, name: str = "bad", names: list[str] | None = None) -> Classifier:
    """Six images, half of each class, right by a margin of 0.4 to 2.4."""
    x = torch.linspace(0.05, 0.3, 6).view(6, 1, 1, 1).expand(6, 1, 2, 2).clone()
    x[1::2] *= -1
    return Classifier(name, network, x, torch.arange(6) % 2, ("up", "down"), group=2, names=names)


def without_graph() -> Classifier:
    """Right or wrong as before, but nothing can be differentiated."""
    return classifier(Wrapped(after=Tensor.detach))


def in_numpy() -> Classifier:
    """Works only where no gradient is wanted, as a wrapper of another runtime does."""
    return classifier(Wrapped(before=lambda x: torch.from_numpy(x.numpy().copy())))


def in_place() -> Classifier:
    """Changes its input."""
    return classifier(Wrapped(before=lambda x: x.mul_(2.0)))


class OneByOne(nn.Module):
    """Takes one image at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 4)[:, :2]


def one_by_one() -> Classifier:
    """Its first call, on one image, succeeds."""
    return classifier(OneByOne())


class EvenOnly(nn.Module):
    """A threshold that fails on images of an odd size, as networks that halve and double them do."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise RuntimeError(f"The size of tensor a ({x.shape[-1]}) must match the size of tensor b")
        return torch.cat([torch.zeros_like(x), 4 * x - 2], 1)


def segmenter(sizes: list[int], count: int = 1) -> Segmenter:
    """Images of these sizes, which are their own ground truth: class 1 is where they are bright."""
    images = [torch.rand(1, n, n, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(sizes)]
    network = EvenOnly() if count == 1 else ManyClasses(count)
    labels = [(image[0] > 0.5).long() for image in images]
    return Segmenter("even", network, images, labels, [f"class {i}" for i in range(count)])


class ManyClasses(nn.Module):
    """The last class where an image is bright, background elsewhere."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        between = torch.full_like(x, -9.0).expand(-1, self.count - 1, *x.shape[2:])
        return torch.cat([torch.zeros_like(x), between, 4 * x - 2], 1)


def odd_size() -> Segmenter:
    """The second of three images is one that the network does not take."""
    return segmenter([4, 5, 6])


def first_odd() -> Segmenter:
    """The first of three, on which a pass is timed."""
    return segmenter([5, 4, 6])


def all_odd() -> Segmenter:
    """All of them."""
    return segmenter([5, 7])


def many_cases() -> Segmenter:
    """Fifty cases of one size."""
    return segmenter([4] * 50)


def not_utf8() -> Classifier:
    """File names in Latin-1, as Python reads them on Linux."""
    return classifier(Wrapped(), "m\udce4dchen", [f"herz_\udcfc_{i}.png" for i in range(6)])


def raises_in_python() -> Classifier:
    """Loading a case fails in the user's own code."""
    model = classifier(Wrapped())
    load = Classifier.load

    def fails(case: str):  # type: ignore[no-untyped-def]
        if case == model.cases[0]:
            return {}["no such key"]
        return load(model, case)

    model.load = fails  # type: ignore[method-assign]
    return model

"""ARFL: adversarially robust feature learning: dual adversarial training with a term on the features.

Source: Hao et al., "Adversarially robust feature learning for breast cancer diagnosis", MICCAI 2024, equations 2, 4
and 5, and its arXiv version. The term is ``lam * L_rob`` with ``L_rob(x, y) = -(1/HW) sum_ij sigmoid(|f_ij y|)``: f is
the output of the last convolution, y the label as +1 or -1, and the mean is over the channels as well (the formula has
no index for them).

**The term does not depend on the label.** As y is +1 or -1, ``|f y| = |f|``: the term makes features large, whatever
they say about the class, until the sigmoid saturates at about 5. What follows: it is the same for any number of
classes; it needs no label; coding the labels as 0 and 1 by mistake would switch it off for class 0; a feature that is
exactly 0 has no gradient; and the loss may be negative (the term is between ``-lam`` and ``-lam / 2``). The paper's
text speaks of features that correlate with the labels; ``correlation="label_aware"`` is a term of ours that asks for
that, ``-sigmoid(f y)`` without the absolute value: see :func:`label_codes`.

**Sign.** On attacked images the published equation 5 adds the term, that of the arXiv version subtracts it
(``adversarial_sign``). The text supports the plus: minus would shrink the features of attacked images, and with r = 0
reverse the method. The attack itself raises the task's loss only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.defenses.batch import Batch
from monai_adv.defenses.dual import Dual, DualSettings, passes
from monai_adv.defenses.method import Method
from monai_adv.errors import InputError, did_you_mean
from monai_adv.network_state import unwrap_ddp
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Target, TrainingTask

PRESETS: dict[str, dict[str, Any]] = {
    # Step and start are not given. The paper fine-tunes the last convolution and the dense layers of a VGG16.
    "arfl_mammography": {"norm": "linf", "eps": 0.01, "steps": 7, "relative_step": 0.25, "r": 0.5, "lam": 10.0,
                         "box": (0.0, 1.0)},
    # On the penultimate layer of a multilayer perceptron: name it with feature_layer.
    "arfl_two_moons": {"norm": "linf", "eps": 0.05, "steps": 1, "relative_step": 1.0, "start": "clean", "r": 0.5,
                       "lam": 0.5},
}  # fmt: skip

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ARFLSettings(DualSettings):
    """Hyper-parameters of ARFL."""

    lam: float = setting(10.0, "weight of the feature term", "a number >= 0 (0: Dual)", not_negative)
    feature_layer: str | None = setting(
        None, "name of the layer whose output is the feature; none: the last convolution that runs", "a name or none"
    )
    correlation: Literal["paper", "label_aware"] = setting(
        "paper", "paper: large features, whatever the label; label_aware: features with the label's sign (ours)"
    )
    adversarial_sign: Literal[1, -1] = setting(1, "sign of the term on attacked images: 1, or -1 (arXiv version)")


class ARFL(Dual):
    """Dual adversarial training plus ``lam`` times a term that makes features large.

    Example:
        The gradient for the features does not see the label:

        >>> features = torch.tensor([[2.0, -1.0]], requires_grad=True)
        >>> feature_term(features).backward()
        >>> [round(float(g), 3) for g in features.grad[0]]
        [-0.052, 0.098]
        >>> codes = label_codes(torch.tensor([0, 1]), classes=2, channels=2)
        >>> codes.tolist()
        [[-1, -1], [1, 1]]
    """

    settings_class = ARFLSettings
    settings: ARFLSettings
    eager_only = "ARFL reads the features of a layer through a hook"

    def __init__(
        self, task: TrainingTask, settings: ARFLSettings | None = None, channels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(task, settings, channels)
        self._features = LayerOutput(self.settings.feature_layer)

    def _loss(self, network: nn.Module, batch: Batch, images: Tensor, adversarial: Tensor) -> tuple[Tensor, Output]:
        """Adds the term of each sample, with the sign of its version."""
        settings = self.settings
        if settings.lam == 0:
            return super()._loss(network, batch, images, adversarial)
        with self._features.of(network):
            loss, output = super()._loss(network, batch, images, adversarial)
        features = self._features.value()
        codes = None
        if settings.correlation == "label_aware":
            codes = label_codes(*self._labels(output, batch.target), features.shape[1])
        term = feature_term(features, codes)
        self.statistics.add("feature_term", term.detach())
        sign = torch.where(adversarial, settings.adversarial_sign, 1)
        return loss + settings.lam * (sign * term).mean(), output

    def _labels(self, output: Output, target: Target) -> tuple[Tensor, int]:
        """``(B,)`` labels and the number of classes."""
        points = self.task.points(output, target)
        if points.labels.shape[1] != 1:
            raise InputError.of("correlation", "label_aware", "'paper' for a task with several labels per sample")
        return points.labels[:, 0], points.logits.shape[1]


def feature_term(features: Tensor, codes: Tensor | None = None) -> Tensor:
    """``(B,)`` L_rob of features ``(B, C, *spatial)``: ``-mean sigmoid(|f|)``, or ``-mean sigmoid(f y)`` with codes.

    Args:
        features: of the layer, before its activation.
        codes: ``(B, C)`` y as +1 or -1; None: the paper's term, on which a label has no influence.
    """
    features = features if features.dtype == torch.float64 else features.float()
    if codes is None:
        correlation = features.abs()
    else:
        correlation = features * codes.view(*codes.shape, *[1] * (features.ndim - 2))
    return -correlation.sigmoid().flatten(1).mean(1)


def label_codes(labels: Tensor, classes: int, channels: int) -> Tensor:
    """``(B, C)`` the +1 and -1 with which the label-aware term of ours multiplies each channel of the features.

    Two classes: -1 and +1, as in the paper, in every channel. More: the channels are dealt out to the classes in turn,
    and y is +1 in the channels of the sample's class, -1 in the others.

    Raises:
        InputError: fewer channels than classes.
    """
    if classes == 2:
        return (2 * labels - 1)[:, None].expand(-1, channels)
    if channels < classes:
        raise InputError.of(
            "feature_layer", f"a layer with {channels} channels", f"one with at least {classes}, a channel per class",
            "name another one, or set correlation to paper",
        )  # fmt: skip
    owner = torch.arange(channels, device=labels.device) % classes
    return 2 * (owner == labels[:, None]).long() - 1


class LayerOutput:
    """The output of one layer during a forward pass, through a hook that is gone afterwards.

    Args:
        name: the layer's, as in ``network.named_modules()``; None: the last convolution that runs. That layer is looked
            for in the first pass only.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._found: tuple[str, Tensor] | None = None

    @contextmanager
    def of(self, network: nn.Module) -> Iterator[None]:
        """Listen to the passes of ``network``, which may be wrapped in DDP.

        Raises:
            InputError: there is no such layer, or no convolution.
        """
        modules = dict(unwrap_ddp(network).named_modules())
        if self.name is None:
            layers = {n: m for n, m in modules.items() if isinstance(m, _CONVOLUTIONS)}
            if not layers:
                raise InputError.of(
                    "feature_layer", None, "the name of a layer: this network has no convolution",
                    "give that of the penultimate layer",
                )  # fmt: skip
        elif self.name in modules:
            layers = {self.name: modules[self.name]}
        else:
            raise InputError.of("feature_layer", self.name, "a layer of the network", did_you_mean(self.name, modules))
        self._found = None
        hooks = [layer.register_forward_hook(self._listener(name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def value(self) -> Tensor:
        """The features ``(B, C, *spatial)`` or ``(B, C)`` of the last pass, which are then let go.

        Raises:
            InputError: the layer did not run.
        """
        found, self._found = self._found, None
        if found is None:
            raise InputError.of(
                "feature_layer", self.name, "a layer that the network runs", "it was not reached in this pass"
            )
        self.name = found[0]
        return found[1]

    def _listener(self, name: str) -> Any:
        def listen(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim < 2:
                raise InputError.of("feature_layer", name, "a layer that returns one tensor (B, C, ...)")
            # A copy: an activation in place behind the layer would change it.
            self._found = name, output.clone()

        return listen


METHOD = Method(
    "ARFL",
    ARFL,
    family="dual",
    idea="clean and attacked images, and large features",
    paper="Hao et al., MICCAI 2024",
    state="nothing",
    cost="2K + 6 (2K (1 - r) + 3 with mix: batch)",
    most=passes,
    presets=PRESETS,
    not_for={"segmentation": "its term relates the features of an image to the one label of that image"},
)

"""Between two models: weights on the line from a plain model to the robust one that was fine-tuned from it.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022, section 3: the weights
``(1 - share) * plain + share * robust`` are a network that keeps much of what both can do, because a fine-tuning stays
in the valley that it started from. Croce et al., "Seasoning model soups for robustness to adversarial and natural
distribution shifts", CVPR 2023, section 3: it holds from a nominal to an adversarially trained network. So how much of
the clean score is given for robustness can be chosen after one training, for nothing; docs/results/price.md has what
was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monai_adv.errors import InputError

LEAST_COSINE = 0.5
"""Of the weights of a model and of what was fine-tuned from it: 0.96 to 0.97 were measured, 0 for strangers."""


def interpolated(plain: Mapping[str, Tensor], robust: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """``(1 - share) * plain + share * robust``; whole numbers, such as counters, are those of the robust model.

    Args:
        plain, robust: state dicts of one architecture, the second fine-tuned from the first.
        share: of the robust weights, 0 to 1; 0 and 1 give back the one and the other, bit for bit.

    Returns:
        A state dict. Tensors that share memory in ``robust`` do so here, so that a file does not grow.

    Raises:
        InputError: another share, other names or shapes, or models that were not trained one from the other.

    Example:
        >>> plain, robust = {"weight": torch.tensor([[1.0, 2.0]])}, {"weight": torch.tensor([[1.0, 4.0]])}
        >>> interpolated(plain, robust, 0.25)["weight"]
        tensor([[1.0000, 2.5000]])
    """
    if not 0 <= share <= 1:
        raise InputError.of("share", share, "a number from 0, the plain model, to 1, the robust one")
    _check_one_architecture(plain, robust)
    if (cosine := similarity(plain, robust)) < LEAST_COSINE:
        raise InputError.of(
            "weights", f"two models whose weights have a cosine of {cosine:.2f}",
            "a model and one that was fine-tuned from it (0.9 and more)",
            "between models that were trained apart lies none that works",
        )  # fmt: skip
    made: dict[tuple[object, ...], Tensor] = {}
    found = {}
    for name, end in robust.items():
        if not end.is_floating_point():
            found[name] = end.clone()
            continue
        one = plain[name].data_ptr(), end.data_ptr(), end.shape, end.stride()
        if one not in made:
            made[one] = torch.lerp(plain[name].to(end), end, share)
        found[name] = made[one]
    return found


def similarity(plain: Mapping[str, Tensor], robust: Mapping[str, Tensor]) -> float:
    """The cosine of all kernels and matrices of two models, -1 to 1; scales and shifts are alike in any two.

    Example:
        >>> a, b = {"weight": torch.tensor([[1.0, 0.0]])}, {"weight": torch.tensor([[3.0, 4.0]])}
        >>> round(similarity(a, b), 6)
        0.6
    """
    kernels = [name for name, value in robust.items() if value.is_floating_point() and value.ndim > 1]
    if not kernels:
        return 1.0
    ours, theirs = (torch.cat([m[name].double().flatten() for name in kernels]) for m in (plain, robust))
    return float(torch.cosine_similarity(ours, theirs, dim=0))


def has_running_statistics(weights: Mapping[str, Tensor]) -> bool:
    """Whether there are layers, such as BatchNorm, that keep statistics of the images they were trained on."""
    return any(name.endswith("running_var") for name in weights)


def _check_one_architecture(plain: Mapping[str, Tensor], robust: Mapping[str, Tensor]) -> None:
    todo = "both need the same network: the same plans and configuration, or the same bundle"
    if apart := sorted(plain.keys() ^ robust.keys()):
        raise InputError.of("weights", f"{apart[0]} in only one of the two models", "the same names in both", todo)
    for name, value in robust.items():
        if plain[name].shape != value.shape:
            found = f"{name} of {tuple(plain[name].shape)} and {tuple(value.shape)}"
            raise InputError.of("weights", found, "the same shapes in both", todo)

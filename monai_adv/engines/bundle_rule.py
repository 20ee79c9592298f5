"""How a bundle turns logits into a decision: the largest one wins (softmax), or each channel is a yes or no (sigmoid).

Labels do not tell: ``DiceLoss(sigmoid=True, to_onehot_y=True)`` trains yes-or-no channels with label maps. What the
bundle's post-processing does is what it deploys, so that decides; otherwise what its loss does to the logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args

from monai.engines.utils import IterationEvents
from monai.losses.focal_loss import FocalLoss
from monai.transforms.post.array import Activations, AsDiscrete
from monai.transforms.post.dictionary import Activationsd, AsDiscreted
from monai.utils.enums import CommonKeys
from torch import nn

from monai_adv.engines.raw_unit import flat
from monai_adv.errors import InputError

Rule = Literal["softmax", "sigmoid"]
RULES: tuple[Rule, ...] = get_args(Rule)


def check_rule(rule: object) -> None:
    """Refuse what is neither a rule nor None."""
    if rule is not None and rule not in RULES:
        raise InputError.of("activation", rule, f"one of {', '.join(RULES)}, or None: what the bundle says")


def rule_of(given: Rule | None, postprocessing: Any, loss: Any) -> Rule | None:
    """What is given, otherwise what the post-processing says, otherwise what the loss says; ``None``: nobody says it.

    Raises:
        InputError: a post-processing that decides in a third way.

    Example:
        >>> rule_of(None, None, nn.CrossEntropyLoss()), rule_of(None, None, nn.BCEWithLogitsLoss())
        ('softmax', 'sigmoid')
    """
    return given or rule_of_postprocessing(postprocessing) or rule_of_loss(loss)


def postprocessing_of(engine: Any) -> Any:
    """What MONAI's engine was given as ``postprocessing``: it keeps that in a handler only; ``None`` without one."""
    for handler, *_ in getattr(engine, "_event_handlers", {}).get(IterationEvents.MODEL_COMPLETED, ()):
        if getattr(handler, "__name__", "") == "_run_postprocessing":
            return inspect.getclosurevars(handler).nonlocals.get("posttrans")
    return None


def leaves_background_out(loss: Any) -> bool:
    """Whether channel 0 is a background that the loss does not look at."""
    parts = _parts(loss)
    return any(getattr(part, "include_background", True) is False for part in parts)


def rule_of_loss(loss: Any) -> Rule | None:
    """MONAI's losses say it; PyTorch's have one each; of others nothing is known."""
    parts = list(_parts(loss))
    for said in (_said_by_flags, _said_by_focal, _said_by_kind):
        rules = {rule for part in parts if (rule := said(part)) is not None}
        if rules:
            return rules.pop() if len(rules) == 1 else None
    return None


def rule_of_postprocessing(transform: Any) -> Rule | None:
    """What becomes of the predictions.

    Raises:
        InputError: a threshold that is not that of an argmax or of a probability of 0.5.
    """
    activation: Rule | None = None
    for part in flat(transform):
        for place in _places(part):
            if isinstance(part, Activations | Activationsd):
                flags = {rule: _at(getattr(part, rule), place) for rule in RULES}
                activation = next((rule for rule, on in flags.items() if on), activation)
            elif isinstance(part, AsDiscrete | AsDiscreted):
                if _at(part.argmax, place):
                    return "softmax"
                if (cut := _at(part.threshold, place)) is not None:
                    return _rule_of_threshold(float(cut), activation)
    return activation


def _rule_of_threshold(cut: float, activation: Rule | None) -> Rule:
    if activation == "softmax" or cut != (0.5 if activation == "sigmoid" else 0.0):
        before = f"after {activation}" if activation else "of the logits"
        raise InputError.of(
            "postprocessing", f"a threshold of {cut:g} {before}", "argmax, or 0.5 after a sigmoid (0 of the logits)",
            "say how the logits are judged here: activation 'softmax' or 'sigmoid'",
        )  # fmt: skip
    return "sigmoid"


def _parts(loss: Any) -> Iterator[Any]:
    """The loss and all losses in it: DiceCELoss has a DiceLoss."""
    yield from loss.modules() if isinstance(loss, nn.Module) else [loss]


def _said_by_flags(part: Any) -> Rule | None:
    if not type(part).__module__.startswith("monai.losses."):
        return None
    on = [rule for rule in RULES if getattr(part, rule, False) is True]
    return on[0] if len(on) == 1 else None


def _said_by_focal(part: Any) -> Rule | None:
    if not isinstance(part, FocalLoss):
        return None
    return "softmax" if part.use_softmax else "sigmoid"


def _said_by_kind(part: Any) -> Rule | None:
    if isinstance(part, nn.CrossEntropyLoss):
        return "softmax"
    return "sigmoid" if isinstance(part, nn.BCEWithLogitsLoss | nn.MultiLabelSoftMarginLoss) else None


def _places(part: Any) -> list[int | None]:
    """Where a transform of dictionaries lists the prediction; one of arrays has no list."""
    keys = getattr(part, "keys", None)
    if keys is None:
        return [None]
    return [i for i, key in enumerate(keys) if key == CommonKeys.PRED]


def _at(values: Any, place: int | None) -> Any:
    return values if place is None else values[place]

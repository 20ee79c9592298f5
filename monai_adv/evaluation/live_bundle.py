"""``monai-adv evaluate`` from inside a bundle: its config hands over the parts that it has made.

In a bundle's ``configs/robustness.json``, on top of ``train.json`` and ``evaluate.json``::

    "run": ["$monai_adv.evaluation.live_bundle.evaluate(@bundle_root, @network, @validate#inferer, ...)"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_adv import given
from monai_adv.engines.bundle_rule import Rule, check_rule
from monai_adv.errors import InputError
from monai_adv.evaluation.models.bundle.models import as_model
from monai_adv.evaluation.models.bundle.opened import OpenBundle, channel_names
from monai_adv.evaluation.models.bundle.varied import input_names
from monai_adv.evaluation.models.protocol import LiveSource
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.run.measure import measure, threads_for
from monai_adv.evaluation.settings import EvaluationSettings, Version, attacks_of
from monai_adv.given import Box
from monai_adv.network_state import device_of, unwrap_ddp
from monai_adv.threats import Norm, RadiusUnit


def evaluate(
    bundle_root: str | Path,
    network: torch.nn.Module,
    inferer: Callable[..., Any],
    dataset: Any,
    output: str | Path,
    eps: Sequence[float],
    norm: Norm = "l2",
    unit: RadiusUnit | None = None,
    box: Box | None = None,
    attacks: Version | str = "standard",
    name: str | None = None,
    cases: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    activation: Rule | None = None,
    channels: Sequence[int] | None = None,
    words: Sequence[str] = (),
) -> Path:
    """Attack a bundle's network as it is now, and write the report.

    Args:
        bundle_root: the bundle's folder; its metadata.json names the classes.
        network: with its weights.
        inferer: of the validation.
        dataset: of validation or test items with ``image`` and ``label``, without random transforms.
        output: folder of the report, new or one to go on with.
        eps: radii, ascending.
        norm, unit, box, attacks, cases, batch_size, seed: as in ``monai-adv evaluate``.
        name: how tables call the model; default: the bundle's folder.
        activation: ``"softmax"`` or ``"sigmoid"``: how a segmentation's logits become a decision; default:
            labels with a channel for each output that overlap are sigmoids, all others are not.
        channels: input channels that may be attacked; default: all.
        words: how the report calls the radii, one for each, where the bundle computes them from others: "8/255";
            default: by their numbers.

    Returns:
        the page, ``report.html``.

    Raises:
        InputError: parts that do not fit each other, radii that are not allowed, a folder of another evaluation.
    """
    root = Path(bundle_root)
    known = channel_names(root / "configs" / "metadata.json")
    limits = None if box is None else given.box("box", box)
    bare = unwrap_ddp(network)
    check_rule(activation)
    bundle = OpenBundle(
        name or root.resolve().name, bare, inferer, dataset, limits, known, rule=activation,
        channels=None if channels is None else tuple(channels),
        input_names=input_names(root / "configs" / "metadata.json"),
    )  # fmt: skip
    folder = Path(output).resolve()
    if words and len(words) != len(eps):
        raise InputError.of("words", f"{len(words)} words", f"one for each radius, here {len(eps)}")
    written = zip(eps, words or [""] * len(eps), strict=True)
    settings = EvaluationSettings(
        tuple(Level(norm, given.number("eps", radius), unit, word) for radius, word in written), attacks_of(attacks),
        seed, batch_size, cases, limits, device_of(bare).type, threads_for(folder, None),
    )  # fmt: skip
    measure([LiveSource(as_model(bundle))], settings, folder)
    return folder / "report.html"

"""Two stages of one training: SimCLR without labels, then a defence that starts from its weights.

Both stages must leave out the same test images. A cross-validation pre-trains once for each fold, and weights of one
fold have seen the test images of another: so the images of stage 1 are kept beside its weights, and stage 2 looks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from monai_adv.errors import InputError
from monai_adv.pretraining import SimCLRSettings, load_pretrained
from monai_adv.pretraining import pretrain as simclr
from monai_adv.pretraining.views import Images
from monai_adv.weights import names_in

Items = Sequence[Mapping[str, Any]]
logger = logging.getLogger(__name__)


def pretrain(
    network: nn.Module,
    images: Images,
    items: Items,
    folder: str | Path,
    file: str | Path,
    settings: SimCLRSettings | None = None,
) -> list[float]:
    """Stage 1: :func:`monai_adv.pretraining.pretrain`, which goes on with a run that was interrupted.

    Beside ``file``, ``simclr.pt`` for example, ``simclr_images.json`` gets the names of the images.

    Args:
        network: whose encoder is trained; it is not changed.
        images: preprocessed, ``(C, *size)`` each.
        items: the data list that they come from.
        folder: of the data set; names are relative to it.
        file: for the weights.
        settings: of SimCLR.

    Returns:
        the mean loss of every epoch.

    Raises:
        InputError: a file of a run on other images, with other settings or of another network.
    """
    file = Path(file)
    names = _names(items, folder)
    seen = _seen(file)
    if file.is_file() and seen is not None and seen != names:
        raise InputError.of(
            "pretrained", str(file), "a file of a run on these images, or a new one",
            "each fold needs a ckpt_dir of its own",
        )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        _list_of(file).write_text(json.dumps(names, indent=0), encoding="utf-8")
    losses = simclr(network, images, file, settings)
    logger.info(f"SimCLR: {len(names)} images, {len(losses)} epochs, loss {losses[0]:.3f} to {losses[-1]:.3f}: {file}")
    return losses


def start_from(network: nn.Module, file: str | Path | None, test: Items, folder: str | Path) -> None:
    """Stage 2 begins: load the encoder's weights; the head keeps its random ones.

    Args:
        network: as in stage 1.
        file: from stage 1, or a state dict; None: nothing is loaded.
        test: data list of the test part.
        folder: of the data set.

    Raises:
        InputError: no such file, weights of another network, or weights that have seen an image of the test part.
    """
    if file is None:
        logger.info("Training starts from random weights.")
        return
    file = Path(file)
    if not file.is_file():
        raise InputError.of(
            "pretrained", str(file), f"an existing file; in {file.parent} there is {names_in(file.parent)}",
            "make it with configs/pretrain.json, or start from random weights with configs/scratch.json",
        )  # fmt: skip
    seen = _seen(file)
    known = set(seen or ()) & set(_names(test, folder))
    if known:
        raise InputError.of(
            "pretrained", str(file), "weights that have not seen the test images",
            f"{len(known)} of them were in the pre-training, such as {min(known)}; pre-train for this fold",
        )  # fmt: skip
    load_pretrained(network, file)
    unknown = "" if seen is not None else "; which images they were trained with is not known"
    logger.info(f"Training starts from the weights in {file}{unknown}.")


def _names(items: Items, folder: str | Path) -> list[str]:
    return sorted(Path(item["image"]).relative_to(folder).as_posix() for item in items)


def _list_of(file: Path) -> Path:
    return file.with_name(f"{file.stem}_images.json")


def _seen(file: Path) -> list[str] | None:
    """The images of stage 1; None: the weights come from elsewhere."""
    if not _list_of(file).is_file():
        return None
    names: list[str] = json.loads(_list_of(file).read_text(encoding="utf-8"))
    return names

"""Load a trained nnU-Net folder with the host's own predictor, after making sure that reading it runs no code."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from monai_adv.errors import InputError
from monai_adv.evaluation.models.plain import usable_device
from nnunet_trainers.checkpoint import load_data
from nnunet_trainers.named_code import check_named_code


class Written(NamedTuple):
    """What a checkpoint says about itself."""

    trainer: str
    configuration: str


def load_predictor(
    folder: Path,
    folds: Sequence[int | str],
    checkpoint: str,
    device: str | torch.device,
    mirroring: bool,
    trusted: Sequence[str] = (),
) -> nnUNetPredictor:
    """The host's predictor with the weights of some folds, of which the first is loaded into its network.

    Args:
        trusted: packages besides nnU-Net's own whose code the folder may name, see :func:`check_named_code`.

    Raises:
        InputError: something is missing, damaged, unsafe to load, or does not fit together.
    """
    paths = [checkpoint_path(folder, fold, checkpoint) for fold in folds]
    written = [check_weights_only(path) for path in paths]
    path, (trainer, configuration) = paths[0], written[0]
    where = usable_device(device)
    # The host tells about each folder that it searches, and advises the authors of older trainers.
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=where, allow_tqdm=False)
        try:
            plans, dataset_json = (
                json.loads((folder / name).read_text(encoding="utf-8")) for name in ("plans.json", "dataset.json")
            )
            check_named_code(plans, dataset_json, PlansManager(plans).get_configuration(configuration), trusted)
            predictor.initialize_from_trained_model_folder(str(folder), tuple(folds), checkpoint)
        except InputError:
            raise
        except RuntimeError as error:
            raise _explained(error, path, trainer) from error
        except (ValueError, LookupError, AttributeError, TypeError, ImportError, AssertionError) as error:
            raise InputError.of(
                "model_folder", str(folder), "the folder of a trained nnU-Net model",
                f"plans.json, dataset.json and {path.name} do not fit together ({type(error).__name__}: {error})",
            ) from error  # fmt: skip
    return predictor


def checkpoint_path(folder: Path, fold: int | str, checkpoint: str) -> Path:
    """The checkpoint's file.

    Raises:
        InputError: the folder, its plans, the fold or the checkpoint is missing; says what there is instead.
    """
    if not folder.is_dir():
        raise InputError.of(
            "model_folder", str(folder), "an existing folder of a trained nnU-Net model",
            "it is called nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION",
        )  # fmt: skip
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise InputError.of(
                "model_folder", str(folder), f"a folder with {name} in it",
                "name the folder that holds fold_0, fold_1, ..., not one of the folds",
            )  # fmt: skip
    if not (folder / f"fold_{fold}").is_dir():
        known = sorted(p.name.removeprefix("fold_") for p in folder.glob("fold_*"))
        raise InputError.of(
            "fold", fold, "one of " + ", ".join(known) if known else "none, nothing is trained here yet"
        )
    path = folder / f"fold_{fold}" / checkpoint
    if not path.is_file():
        known = sorted(p.name for p in path.parent.glob("*.pth"))
        allowed = "one of " + ", ".join(known) if known else f"none, {path.parent} has no checkpoint yet"
        raise InputError.of("checkpoint", checkpoint, allowed, "checkpoint_final.pth is written when training ends")
    return path


def check_weights_only(path: Path) -> Written:
    """Read a checkpoint with ``weights_only=True``: tensors and plain values, nothing that could run code.

    The host's own loader does not check. Once this one has passed, the same file is safe for the host to read.

    Returns:
        the trainer that wrote it, and the configuration of the plans.

    Raises:
        InputError: the file is damaged, is no nnU-Net checkpoint, or holds other Python objects.
    """
    try:
        checkpoint = load_data(path)
        written = Written(checkpoint["trainer_name"], checkpoint["init_args"]["configuration"])
        if not all(isinstance(name, str) for name in written) or "network_weights" not in checkpoint:
            raise KeyError("network_weights")
    except InputError:
        raise
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
        text = str(error).splitlines()[0].split(". ")[0][:120] if str(error) else "the file is empty"
        raise InputError.of(
            "checkpoint", str(path), "a whole nnU-Net checkpoint",
            f"{type(error).__name__}: {text}; copy or train it again",
        ) from error  # fmt: skip
    return written


def _explained(error: RuntimeError, path: Path, trainer: str) -> InputError:
    if "Could not find requested nnunet trainer" in str(error):
        return InputError.of(
            "trainer", trainer, "a trainer class that nnU-Net finds",
            "install the package it comes from, or name its folder in nnUNet_extTrainer (see 'monai-adv doctor')",
        )  # fmt: skip
    text = " ".join(str(error).split())[:200]
    return InputError.of("checkpoint", str(path), "weights that fit the plans beside them", f"PyTorch says: {text}")

"""``monai-adv export``: a robust model as a plain nnU-Net model, for people without this package.

Most methods train nnU-Net's own network, so that only the trainer's name in the checkpoint stands in the way. Whether
that is so is not believed but computed: the network that nnU-Net's own trainer builds from the plans must give the same
outputs, bit for bit.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find_trainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from monai_adv.errors import InputError
from monai_adv.files import whole_file, whole_folder
from monai_adv.networks.dual_batch_norm import converted
from nnunet_trainers.checkpoint import kept, read_any, trained_by
from nnunet_trainers.trained_folder import load_predictor

PLAIN = "nnUNetTrainer"
CHECKPOINT = "checkpoint_final.pth"  # what nnU-Net's commands read unless told otherwise
FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")


def export(
    model_folder: str | Path, output: str | Path, folds: Sequence[int | str] | None = None, checkpoint: str = CHECKPOINT
) -> tuple[Path, Path]:
    """Write the model as ``OUTPUT/DATASET/nnUNetTrainer__PLANS__CONFIGURATION``, or as a zip file with that in it.

    Args:
        model_folder: of a trained model, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        output: a folder that stands for nnUNet_results, or a file that ends in ``.zip`` for
            ``nnUNetv2_install_pretrained_model_from_zip``.
        folds: default: all that have the checkpoint.
        checkpoint: of each fold; it becomes its ``checkpoint_final.pth``.

    Returns:
        what was written, and the model's path inside ``output``.

    Raises:
        InputError: the model cannot be read, is there already, or needs this package (two branches of norm layers).
    """
    source, output = Path(model_folder), Path(output)
    folds = _folds(source, checkpoint) if folds is None else folds
    predictor = load_predictor(source, folds, checkpoint, "cpu", mirroring=False)
    contents = {fold: read_any(source / f"fold_{fold}" / checkpoint) for fold in folds}
    configuration = contents[folds[0]]["init_args"]["configuration"]
    with redirect_stdout(io.StringIO()):  # the host tells about each folder in which it looks for a trainer
        trainer = _host_trainer(predictor, source, configuration, str(contents[folds[0]]["trainer_name"]))
    plans = predictor.plans_manager
    inside = Path(plans.dataset_name) / f"{trainer}__{plans.plans_name}__{configuration}"
    is_zip = output.suffix == ".zip"
    written = output if is_zip else output / inside
    if written.exists():
        raise InputError.of("output", str(written), "a new path", "give another one, or move that one away")
    try:
        if is_zip:
            with whole_file(output) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in (source / name for name in FILES if (source / name).is_file()):
                    archive.write(path, str(inside / path.name))
                for fold, content in contents.items():
                    with archive.open(str(inside / f"fold_{fold}" / CHECKPOINT), "w", force_zip64=True) as entry:
                        torch.save(_plain_checkpoint(content, trainer), entry)
        else:
            with whole_folder(written) as folder:
                for path in (source / name for name in FILES if (source / name).is_file()):
                    (folder / path.name).write_bytes(path.read_bytes())
                for fold, content in contents.items():
                    (folder / f"fold_{fold}").mkdir()
                    torch.save(_plain_checkpoint(content, trainer), folder / f"fold_{fold}" / CHECKPOINT)
    except OSError as error:
        raise InputError.of("output", str(output), "a place that can be written to", str(error)) from error
    return written, inside


def _folds(source: Path, checkpoint: str) -> list[int | str]:
    names = sorted(path.parent.name.removeprefix("fold_") for path in source.glob(f"fold_*/{checkpoint}"))
    return [int(name) if name.isdigit() else name for name in names] or [0]  # 0: its absence is explained elsewhere


def _host_trainer(predictor: Any, source: Path, configuration: str, trainer: str) -> str:
    """nnU-Net's own trainer that builds this very network: nnUNetTrainer, or a variant that was mixed in.

    Raises:
        InputError: says why there is none.
    """
    network: nn.Module = predictor.network.cpu().eval()
    reason = "another network than the one that nnU-Net builds from these plans"
    if converted(network):
        reason = "normalisation layers with two branches, which nnU-Net does not have"
    else:
        mixed_in: list[str] = [
            c.__name__ for c in find_trainer(trainer).__mro__ if c.__module__.startswith("nnunetv2.")
        ]
        for name in dict.fromkeys([PLAIN, *mixed_in]):
            # Read anew for each: variants write into the plans they are given.
            if _builds(name, json.loads((source / "plans.json").read_text(encoding="utf-8")), configuration, predictor):
                return name
    raise InputError.of(
        "model_folder", f"a model of {trainer} with {reason}", "a model with nnU-Net's own network",
        "hand it on together with this package: 'pip install monai-adv' is all that a reader needs",
    )  # fmt: skip


def _builds(name: str, plans: dict[str, Any], configuration: str, predictor: Any) -> bool:
    manager, dataset = PlansManager(plans), predictor.dataset_json
    chosen = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, chosen, dataset)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    image = torch.randn(1, channels, *chosen.patch_size, generator=torch.Generator().manual_seed(0))
    plain = find_trainer(name).build_network_architecture(manager, chosen, channels, heads, False).eval()
    try:
        plain.load_state_dict(predictor.network.state_dict())
        with torch.no_grad():
            return torch.equal(plain(image), predictor.network(image))
    except RuntimeError:  # other weights
        return False


def _plain_checkpoint(content: dict[str, Any], trainer: str) -> dict[str, Any]:
    """What prediction and ``-pretrained_weights`` read, and that it is robust; not the optimiser, nor what the method
    remembers of cases.
    """
    arguments = content["init_args"]
    return {
        "network_weights": content["network_weights"],
        "trainer_name": trainer,
        "init_args": {k: arguments[k] for k in ("plans", "configuration", "fold", "dataset_json") if k in arguments},
        "inference_allowed_mirroring_axes": content.get("inference_allowed_mirroring_axes"),
        "current_epoch": content.get("current_epoch"),
        "exported_from": trained_by(content),
        **kept(content),
    }

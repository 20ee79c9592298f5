"""The part of ``monai-adv evaluate`` that speaks nnU-Net's own vocabulary.

Parsers are built at every start of the command: nothing here imports torch or nnU-Net before it is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monai_adv.errors import InputError, did_you_mean
from monai_adv.evaluation.bundle import unique_names

if TYPE_CHECKING:
    from nnunet_trainers.evaluation.source import NNUNetSource


CHECKPOINT = "checkpoint_final.pth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a group with nnU-Net's arguments."""
    add = parser.add_argument_group("nnU-Net models, in nnU-Net's own words").add_argument
    add("-d", metavar="DATASET", help="data set, number or name; its cases are the fold's validation cases")
    add("-c", metavar="CONFIGURATION", help="with -d: configuration, such as 2d or 3d_fullres")
    add("-tr", metavar="TRAINER", nargs="+", help="with -d: trainers, compared (default: nnUNetTrainer)")
    add("-p", metavar="PLANS", help="with -d: plans (default: nnUNetPlans)")
    add("-m", metavar="FOLDER", nargs="+", help="trained nnU-Net folders, TRAINER__PLANS__CONFIGURATION, compared")
    add("-i", metavar="IMAGES", help="folder of images, CASE_0000.nii.gz (default with -d: imagesTr)")
    add("-gt", metavar="LABELS", help="folder of their ground truth, CASE.nii.gz (default with -d: labelsTr)")
    add("-f", metavar="FOLD", nargs="+", help="folds; of several the mean (default: 0)")
    add("-chk", metavar="CHECKPOINT", help=f"file in the fold's folder (default: {CHECKPOINT})")
    add("--mirroring", action="store_true", help="average over mirrored images (nnUNetv2_predict's default)")
    add("--patches", action="store_true", help="one patch per volume, faster, not what is deployed")


def sources(args: argparse.Namespace) -> list[NNUNetSource]:
    """The models that the arguments name; none if they name no nnU-Net.

    ``args.device`` and ``args.box``, where the command has them, go into the sources.

    Raises:
        InputError: arguments that do not go together, missing environment variables, or no such model or data.
    """
    if args.d is None and args.m is None:
        for word in ("-c", "-tr", "-p", "-i", "-gt", "-f", "-chk", "--mirroring", "--patches"):
            if (given := getattr(args, word.lstrip("-"))) not in (None, False):
                raise InputError.of(word, given, "an addition to -d DATASET or -m FOLDER")
        return []
    if args.d is not None and args.m is not None:
        raise InputError.of("-d and -m", f"{args.d} and {args.m}", "one of the two")
    if (args.i is None) != (args.gt is None):
        raise InputError.of("-i and -gt", f"-i {args.i} -gt {args.gt}", "both or none", "an attack needs the truth")
    folds = tuple(_fold(word) for word in args.f or ["0"])
    folders, names = _by_dataset(args) if args.d is not None else _by_folder(args)
    if args.i is not None:
        images, labels, cases, note = args.i, args.gt, None, f"all cases of {args.i}"
    else:
        images, labels, cases, note = _validation_cases(folders[0].parent.name, folds)
        print(f"nnU-Net: {note}", file=sys.stderr)

    from nnunet_trainers.evaluation.source import NNUNetSource

    return [
        NNUNetSource(
            model_folder=str(folder),
            images_folder=str(images),
            labels_folder=str(labels),
            folds=folds,
            checkpoint=args.chk or CHECKPOINT,
            cases=cases,
            mirroring=args.mirroring,
            mode="patch" if args.patches else "whole",
            device=getattr(args, "device", None) or "cpu",
            name=name,
            box=_pair(getattr(args, "box", None)),
            note=note,
        )
        for folder, name in zip(folders, names, strict=True)
    ]


def _by_dataset(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    if args.c is None:
        raise InputError.of("-c", None, "a configuration such as 2d or 3d_fullres with -d")
    dataset = _dataset(args.d)
    plans = args.p or "nnUNetPlans"
    trainers = list(dict.fromkeys(args.tr or ["nnUNetTrainer"]))
    folders = [dataset / f"{trainer}__{plans}__{args.c}" for trainer in trainers]
    for folder in folders:
        if not folder.is_dir():
            known = [p.name for p in dataset.iterdir() if "__" in p.name]
            todo = did_you_mean(folder.name, known) if known else "nothing is trained on this data set yet"
            raise InputError.of("-tr, -p and -c", folder.name, f"a model in {dataset}", todo)
    return folders, trainers


def _by_folder(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    for name in ("c", "tr", "p"):
        if getattr(args, name) is not None:
            raise InputError.of(f"-{name}", getattr(args, name), "an addition to -d DATASET", "-m names all of it")
    if args.i is None:
        raise InputError.of("-m", args.m, "a folder together with -i IMAGES -gt LABELS")
    folders = [Path(word).resolve() for word in args.m]
    return folders, unique_names(folders, "-m")


def _dataset(word: str) -> Path:
    """The folder of a data set in nnUNet_results, by number or name."""
    results = _folder("nnUNet_results")
    if not word.isdecimal():
        found = [results / word] if (results / word).is_dir() else []
    else:
        found = sorted(results.glob(f"Dataset{int(word):03d}_*"))
    if len(found) == 1:
        return found[0]
    known = sorted(p.name for p in results.glob("Dataset*"))
    allowed = f"one data set in {results}"
    raise InputError.of("-d", word, allowed, f"there are {', '.join(known)}" if known else "nothing is trained there")


def _validation_cases(dataset: str, folds: Sequence[int | str]) -> tuple[Path, Path, tuple[str, ...], str]:
    """What no fold of the model was trained on: images, labels, cases, and in words which those are."""
    todo = "give held-out cases with -i IMAGES -gt LABELS"
    if "all" in folds:
        raise InputError.of("-f", " ".join(map(str, folds)), "a numbered fold: 'all' has seen every case", todo)
    if len(folds) > 1:
        allowed = "one fold: several have no validation case in common"
        raise InputError.of("-f", " ".join(map(str, folds)), allowed, todo)
    raw, splits = _folder("nnUNet_raw") / dataset, _folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    try:
        known = [tuple(map(str, fold["val"])) for fold in json.loads(splits.read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError.of("-f", folds[0], f"a fold of {splits}, which cannot be read", f"{reason}; {todo}") from error
    number = int(folds[0])
    if number >= len(known):
        raise InputError.of("-f", number, f"a fold from 0 to {len(known) - 1} of {splits}", todo)
    cases = known[number]
    note = f"{len(cases)} validation cases of fold {folds[0]} of {dataset}"
    return raw / "imagesTr", raw / "labelsTr", cases, note


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if value is None or not Path(value).is_dir():
        raise InputError.of(
            variable, value, "the path of an existing folder in the environment",
            "export it as for nnUNetv2_train, or name the model with -m FOLDER -i IMAGES -gt LABELS",
        )  # fmt: skip
    return Path(value)


def _fold(word: str) -> int | str:
    if word != "all" and not word.isdecimal():
        raise InputError.of("-f", word, "the number of a fold, or all")
    return "all" if word == "all" else int(word)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))

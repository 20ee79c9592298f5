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
from typing import TYPE_CHECKING, Any

from monai_adv.errors import InputError, did_you_mean
from monai_adv.evaluation.models.bundle.arguments import unique_names
from monai_adv.evaluation.models.hosts import Options, with_options
from monai_adv.foreign_text import say
from monai_adv.optional import require

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
    add("-f", metavar="FOLD", nargs="+", help="folds (default: 0); several: with -d each on its own validation cases, "
        "as in cross-validation, and with -i their mean")  # fmt: skip
    add("-chk", metavar="CHECKPOINT", help=f"file in the fold's folder (default: {CHECKPOINT})")
    add("--mirroring", action="store_true", help="average over mirrored images (nnUNetv2_predict's default)")
    add(
        "--trust",
        metavar="PACKAGE",
        nargs="+",
        help="import what plans.json names from here too, not only nnU-Net's own",
    )
    add("--patches", action="store_true", help="one patch per volume, faster, not what is deployed")


def sources(args: argparse.Namespace) -> list[NNUNetSource]:
    """The models that the arguments name; none if they name no nnU-Net.

    ``args.device`` and ``args.box``, where the command has them, go into the sources.

    Raises:
        InputError: arguments that do not go together, missing environment variables, or no such model or data.
    """
    if args.d is None and args.m is None:
        for word in ("-c", "-tr", "-p", "-i", "-gt", "-f", "-chk", "--mirroring", "--trust", "--patches"):
            if (given := getattr(args, word.lstrip("-"))) not in (None, False):
                raise InputError.of(word, given, "an addition to -d DATASET or -m FOLDER")
        return []
    require("an nnU-Net model", "nnunetv2")
    if args.d is not None and args.m is not None:
        raise InputError.of("-d and -m", f"{args.d} and {args.m}", "one of the two")
    if (args.i is None) != (args.gt is None):
        raise InputError.of("-i and -gt", f"-i {args.i} -gt {args.gt}", "both or none", "an attack needs the truth")
    folds = tuple(_fold(word) for word in args.f or ["0"])
    folders, names = _by_dataset(args) if args.d is not None else _by_folder(args)
    if args.i is not None:
        data: dict[str, Any] = {"images_folder": args.i, "labels_folder": args.gt, "note": f"all cases of {args.i}"}
    else:
        data = _validation_data(folders[0].parent.name, folds)
        say(f"nnU-Net: {data['note']}", sys.stderr)

    from nnunet_trainers.evaluation.source import NNUNetSource

    return [
        NNUNetSource(
            model_folder=str(folder),
            folds=folds,
            checkpoint=args.chk or CHECKPOINT,
            mirroring=args.mirroring,
            mode="patch" if args.patches else "whole",
            device=getattr(args, "device", None) or "cpu",
            name=name,
            box=_pair(getattr(args, "box", None)),
            **data,
            trusted=tuple(args.trust or ()),
        )
        for folder, name in zip(folders, names, strict=True)
    ]


def source_at(
    folder: Path,
    images: object,
    labels: object,
    *,
    device: str,
    box: tuple[float, float] | None,
    name: str | None,
    options: Options,
) -> NNUNetSource | None:
    """See :mod:`monai_adv.evaluation.models.hosts`: any folder with ``plans.json``.

    Raises:
        InputError: images and labels that are not two folders; options that an nnU-Net does not have.
    """
    if not (folder / "plans.json").is_file():
        return None
    require("an nnU-Net model", "nnunetv2")
    places = {}
    for word, place in (("images", images), ("labels", labels)):
        if not isinstance(place, str | Path) or not Path(place).is_dir():
            found = str(place) if isinstance(place, str | Path) else type(place).__name__ if place is not None else None
            raise InputError.of(
                word, found, f"the folder of the {word} for a trained nnU-Net, in its raw layout",
                f"such as nnUNet_raw/DATASET/{word}Tr",
            )  # fmt: skip
        places[f"{word}_folder"] = str(Path(place).resolve())

    from nnunet_trainers.evaluation.source import NNUNetSource

    note = f"all cases of {images}"
    return with_options(
        NNUNetSource, options, model_folder=str(folder), device=device, box=box, name=name, note=note, **places
    )


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


def _validation_data(dataset: str, folds: Sequence[int | str]) -> dict[str, Any]:
    """What each fold of the model was not trained on, as arguments of the source."""
    raw = _folder("nnUNet_raw") / dataset
    listed = _listed(raw / "dataset.json")
    data: dict[str, Any] = {"images_folder": str(raw / "imagesTr"), "labels_folder": str(raw / "labelsTr")}
    if listed is not None:
        data["listed"] = str(raw / "dataset.json")
    if "all" in folds:
        if len(folds) > 1:
            allowed = "folds, or all: it has seen the validation cases of the others"
            raise InputError.of("-f", " ".join(map(str, folds)), allowed)
        note = f"all cases of {dataset}, on which fold all was trained: the figures flatter it"
        return {**data, "cases": None, "note": note}
    known = _splits(dataset, folds)
    held_out = tuple(
        known[fold] if fold < len(known) else _random_split(_identifiers(raw, listed), fold) for fold in map(int, folds)
    )
    _check_overlap(folds, held_out)
    count = sum(map(len, held_out))
    random = ", by nnU-Net's random 80:20 split" if any(int(fold) >= len(known) for fold in folds) else ""
    if len(folds) == 1:
        note = f"{count} validation cases of fold {folds[0]} of {dataset}{random}"
        return {**data, "cases": held_out[0], "note": note}
    note = f"{count} validation cases of the folds {', '.join(map(str, folds))} of {dataset}{random}"
    return {**data, "held_out": held_out, "note": note}


def _splits(dataset: str, folds: Sequence[int | str]) -> list[tuple[str, ...]]:
    """The validation cases of each fold in splits_final.json."""
    path = _folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    try:
        return [tuple(map(str, fold["val"])) for fold in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        todo = f"{reason}; give held-out cases with -i IMAGES -gt LABELS"
        found = " ".join(map(str, folds))
        raise InputError.of("-f", found, f"a fold of {path}, which cannot be read", todo) from error


def _listed(dataset_json: Path) -> list[str] | None:
    from nnunet_trainers.evaluation.case_files import listed_files

    if not dataset_json.is_file():
        return None
    files = listed_files(dataset_json)
    return None if files is None else list(files)


def _identifiers(raw: Path, listed: list[str] | None) -> list[str]:
    """All cases of a data set."""
    if listed is not None:
        return listed
    try:
        ending = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
        files = [file.name for file in (raw / "imagesTr").iterdir() if file.name.endswith(ending)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError.of("nnUNet_raw", str(raw), "the folder of a data set", reason) from error
    return list({name[: -len(ending) - len("_0000")] for name in files})


def _random_split(cases: Sequence[str], fold: int) -> tuple[str, ...]:
    """Validation cases of a fold that splits_final.json does not have, as nnUNetTrainer.do_split draws them."""
    import numpy as np

    names = sorted(cases)
    trained = np.random.RandomState(seed=12345 + fold).choice(len(names), int(len(names) * 0.8), replace=False)
    return tuple(name for i, name in enumerate(names) if i not in set(trained.tolist()))


def _check_overlap(folds: Sequence[int | str], held_out: Sequence[Sequence[str]]) -> None:
    """A case counts once; random splits overlap."""
    fold_of: dict[str, int | str] = {}
    for fold, cases in zip(folds, held_out, strict=True):
        for case in cases:
            if case in fold_of:
                found = f"{fold_of[case]} and {fold}, which both hold {case} out"
                raise InputError.of("-f", found, "folds whose validation cases differ", "measure them one by one")
            fold_of[case] = fold


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

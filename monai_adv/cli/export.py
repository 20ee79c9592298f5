"""``monai-adv export``: a robust nnU-Net model for people who have nnU-Net only; see nnunet_trainers.export."""

from __future__ import annotations

import argparse

from monai_adv.optional import require


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export`` to the command line."""
    parser = subparsers.add_parser(
        "export", help="write a robust nnU-Net model as a plain one, for use without this package"
    )
    parser.add_argument("model_folder", help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("output", help="a folder that stands for nnUNet_results, or a new file that ends in .zip")
    parser.add_argument("-f", "--fold", nargs="+", metavar="FOLD", help="folds (default: all that are trained)")
    parser.add_argument(
        "-chk", "--checkpoint", default="checkpoint_final.pth", metavar="FILE",
        help="such as checkpoint_best_robust.pth (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the model and say how it is used.

    Returns:
        0.

    Raises:
        InputError: it cannot be read or written, or is more than nnU-Net's own network.
    """
    require("monai-adv export", "nnunetv2")
    from nnunet_trainers.export import export

    folds = None if args.fold is None else [int(f) if f.isdecimal() and f.isascii() else f for f in args.fold]
    written, inside = export(args.model_folder, args.output, folds, args.checkpoint)
    print(f"{written}: a plain nnU-Net model. Whoever has nnU-Net predicts with it:")
    if written.suffix == ".zip":
        trainer, plans, configuration = inside.name.split("__")
        print(f"  nnUNetv2_install_pretrained_model_from_zip {written}")
        print(f"  nnUNetv2_predict -i IMAGES -o OUT -d {inside.parts[0]} -tr {trainer} -p {plans} -c {configuration}")
    else:
        print(f"  nnUNetv2_predict_from_modelfolder -i IMAGES -o OUT -m {written}")
    return 0

"""``monai-adv try``: a plain and a robust model under attack, before the minute is over."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from monai_adv import openmp
from monai_adv.cli.pictures import png_file, writing
from monai_adv.optional import require

if TYPE_CHECKING:
    from monai_adv.first_look.look import Look


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``try`` to the command line."""
    parser = subparsers.add_parser(
        "try", help="in a minute: a plain and a robust model, one phantom patient, an attack"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="first_look.png",
        help="the picture, a PNG file (default: ./first_look.png)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, attack, print the table and write the picture.

    Returns:
        0.

    Raises:
        InputError: the file is not a PNG file in a folder that exists.
        MissingPackageError: matplotlib is not installed.
    """
    require("monai-adv try", "matplotlib")
    output = png_file(args.output)
    began = time.monotonic()
    openmp.wait_passively()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s  {text}", flush=True)

    say("loading PyTorch and MONAI")
    from monai_adv.first_look.look import Recipe, first_look
    from monai_adv.first_look.picture import picture

    recipe = Recipe()
    looks = first_look(recipe, say)
    with writing(args.output):
        picture({name: look.picture for name, look in looks.items()}, recipe.eps, output)
    say("done")
    print(f"\n{table(looks)}\n\nNoise and attack change a voxel by RMS {recipe.eps:g} standard deviations of the scan.")
    print("A phantom and seconds of training: how it works, not how good it is.")
    print(f"Picture: {output}. Next: 'monai-adv demo', the same with nnU-Net; 'monai-adv evaluate --help', your model.")
    return 0


def table(looks: dict[str, Look]) -> str:
    """The Dice of each model, a line each.

    Example:
        >>> from monai_adv.first_look.look import Look
        >>> from monai_adv.evaluation.models.protocol import Picture
        >>> print(table({"plain": Look(0.9, 0.875, 0.25, Picture("a", 0, 0))}))
        Dice of the volume in %    clean  white noise  attacked
        plain                       90.0         87.5      25.0
    """
    lines = [f"{'Dice of the volume in %':<23}{'clean':>9}{'white noise':>13}{'attacked':>10}"]
    for name, look in looks.items():
        lines.append(f"{name:<23}{100 * look.clean:>9.1f}{100 * look.noise:>13.1f}{100 * look.attacked:>10.1f}")
    return "\n".join(lines)

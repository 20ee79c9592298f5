"""``monai-adv radius``: how noisy your own images are, and the radius that follows from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from monai_adv.cli.pictures import png_file, writing
from monai_adv.errors import InputError
from monai_adv.exit_codes import ExitCode

if TYPE_CHECKING:
    from monai_adv.radius import Scan

EPILOG = """\
See docs/choose_your_radius.md for what the figures mean, and what they do not.

examples:
  monai-adv radius -d 4 -c 3d_fullres                    # nnU-Net: its plan, its training images
  monai-adv radius --bundle my_bundle                    # a MONAI bundle: its transforms, its validation images
  monai-adv radius --images scans/ --scale 255           # a folder; networks see the intensities divided by 255
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``radius`` to the command line."""
    parser = subparsers.add_parser(
        "radius", help="suggest a radius by the noise of your own images",
        description="Measure the noise of images as a network sees them, and suggest a radius of that size.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    which = parser.add_argument_group("which images")
    which.add_argument("-d", metavar="DATASET", help="nnU-Net: data set, number or name")
    which.add_argument("-c", metavar="CONFIGURATION", help="with -d: configuration, such as 2d or 3d_fullres")
    which.add_argument("-p", metavar="PLANS", help="with -d: plans (default: nnUNetPlans)")
    which.add_argument("--bundle", metavar="FOLDER", help="a MONAI bundle; its configs are run as code")
    which.add_argument("--bundle-override", metavar="KEY=VALUE", nargs="+", help="such as dataset_dir=/data/spleen")
    which.add_argument("--images", metavar="FOLDER", help="image files of one channel, as they are")
    which.add_argument("--scale", type=float, metavar="S",
                       help="with --images: intensity of one unit of the network's input (CT whose window of width W "
                       "is scaled to [0, 1]: W; 8-bit pictures scaled to [0, 1]: 255)")  # fmt: skip
    which.add_argument("--cases", type=int, default=10, metavar="N", help="so many of them (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", default="radius.png",
                        help="a picture of the radii; the text goes beside it (default: %(default)s)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, draw.

    Returns:
        0, or 1 if some of the images could not be used.

    Raises:
        InputError: input that cannot be used.
    """
    _check(args)
    output = png_file(args.output)

    from monai_adv.foreign_text import say
    from monai_adv.radius import picture, suggest, words

    found = suggest(_scans(args))
    lines = words(found)
    for line in lines:
        say(line)
    with writing(args.output):
        picture(found, output)
        output.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"Picture: {output}, text: {output.with_suffix('.txt')}")
    return ExitCode.CASES_LEFT_OUT if found.problems else ExitCode.FINISHED


def _check(args: argparse.Namespace) -> None:
    given = [name for name in ("d", "bundle", "images") if getattr(args, name) is not None]
    if len(given) != 1:
        found = ", ".join(given) or None
        raise InputError.of("images", found, "one of -d DATASET, --bundle FOLDER, --images FOLDER")
    for name, owner in (("c", "d"), ("p", "d"), ("bundle_override", "bundle"), ("scale", "images")):
        if getattr(args, name) is not None and given != [owner]:
            word = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
            owned = f"-{owner}" if len(owner) == 1 else f"--{owner}"
            raise InputError.of(word, getattr(args, name), f"an addition to {owned}")
    if args.cases < 1:
        raise InputError.of("--cases", args.cases, "a whole number >= 1")
    if args.scale is not None and not 0 < args.scale < float("inf"):
        raise InputError.of("--scale", args.scale, "a number > 0")
    if args.d is not None and args.c is None:
        raise InputError.of("-c", None, "a configuration such as 2d or 3d_fullres with -d")
    if args.images is not None and args.scale is None:
        raise InputError.of(
            "--scale", None, "the intensity that is one unit of the network's input",
            "files do not say it: 255 for 8-bit pictures scaled to [0, 1], the width of the window for CT, the "
            "standard deviation of your images if they are z-scored",
        )  # fmt: skip


def _scans(args: argparse.Namespace) -> Iterable[Scan]:
    if args.d is not None:
        if find_spec("nnunetv2") is None:
            raise InputError("radius: the package nnunetv2 is missing; run 'pip install \"nnunetv2>=2.8\"'.")
        from nnunet_trainers.radius import scans

        return scans(args.d, args.c, args.p or "nnUNetPlans", args.cases)
    from monai_adv.bundles.scans import of_folder, of_model

    if args.images is not None:
        return of_folder(Path(args.images), args.cases, args.scale)
    from monai_adv.evaluation.models.bundle.source import BundleSource

    source = BundleSource(str(Path(args.bundle).resolve()), overrides=tuple(args.bundle_override or ()))
    return of_model(source, args.cases)

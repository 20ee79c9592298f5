"""A MONAI bundle under attack: its network and inferer, behind its own preprocessing.

What a bundle computes before the network sees an image stays as it is. Attacked is the preprocessed image, through the
bundle's inferer (a sliding window included), and the ground truth is the bundle's preprocessed label.

A bundle's config is code: MONAI runs every ``$`` expression in it. Measure only bundles that you would run.
Parsers are built at every start of the command: nothing here imports torch or MONAI before it is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monai_adv.errors import InputError
from monai_adv.evaluation.models.hosts import Options, with_options

if TYPE_CHECKING:
    from monai_adv.evaluation.models.bundle.source import BundleSource

WEIGHTS = "models/model.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a group with the arguments for bundles."""
    group = parser.add_argument_group("MONAI bundles")
    group.add_argument(
        "--bundle", metavar="FOLDER", nargs="+",
        help="compared; their configs are run as code: measure only bundles that you trust",
    )  # fmt: skip
    group.add_argument(
        "--bundle-config", metavar="FILE", nargs="+",
        help="in the bundle, later files override earlier ones (default: configs/train.json and configs/evaluate.json, "
        "those that exist; or .yaml)",
    )  # fmt: skip
    group.add_argument(
        "--bundle-override", metavar="KEY=VALUE", nargs="+",
        help="as --KEY VALUE of `python -m monai.bundle run`, such as dataset_dir=/data/spleen or "
        "validate#inferer#overlap=0.25; values are JSON, or text; +KEY=VALUE adds to a list or dictionary, or is new",
    )  # fmt: skip
    group.add_argument(
        "--bundle-key", metavar="PART=KEY", nargs="+",
        help="where the configs have a part, if not under its usual key: data=eval_dataset; parts are network, data, "
        "inferer, loss, postprocessing",
    )  # fmt: skip
    group.add_argument(
        "--bundle-activation", choices=("softmax", "sigmoid"),
        help="how a segmentation's logits become a decision: the largest wins, or each is a yes or no (default: as the "
        "bundle's post-processing does it, otherwise as its loss does)",
    )  # fmt: skip
    group.add_argument(
        "--bundle-channels", metavar="N", nargs="+", type=int,
        help="input channels that may be attacked; leave masks and clicks out (default: all)",
    )  # fmt: skip
    group.add_argument("--bundle-weights", metavar="FILE", help=f"in the bundle (default: {WEIGHTS})")


def sources(args: argparse.Namespace) -> list[BundleSource]:
    """The bundles that the arguments name; none if they name none.

    ``args.device`` and ``args.box``, where the command has them, go into the sources.

    Raises:
        InputError: arguments that do not go together, or a folder given twice.
    """
    if args.bundle is None:
        for name in ("config", "override", "weights", "key", "activation", "channels"):
            if (given := getattr(args, f"bundle_{name}")) is not None:
                raise InputError.of(f"--bundle-{name}", given, "an addition to --bundle FOLDER")
        return []
    folders = [Path(word).resolve() for word in args.bundle]

    from monai_adv.evaluation.models.bundle.source import BundleSource

    box = getattr(args, "box", None)
    return [
        BundleSource(
            folder=str(folder),
            configs=None if args.bundle_config is None else tuple(args.bundle_config),
            overrides=tuple(args.bundle_override or ()),
            weights=args.bundle_weights or WEIGHTS,
            device=getattr(args, "device", None) or "cpu",
            name=name,
            box=None if box is None else (float(box[0]), float(box[1])),
            keys=tuple(args.bundle_key or ()),
            activation=args.bundle_activation,
            channels=None if args.bundle_channels is None else tuple(args.bundle_channels),
        )
        for folder, name in zip(folders, unique_names(folders, "--bundle"), strict=True)
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
) -> BundleSource | None:
    """See :mod:`monai_adv.evaluation.models.hosts`: any folder with ``configs``.

    Raises:
        InputError: images, which a bundle brings itself; options that it does not have.
    """
    if not (folder / "configs").is_dir():
        return None
    if images is not None or labels is not None:
        todo = "say where they are, options={'overrides': ['dataset_dir=PATH']}"
        raise InputError.of("images and labels", "given", "none: a bundle's config names its data", todo)

    from monai_adv.evaluation.models.bundle.source import BundleSource

    return with_options(BundleSource, options, folder=str(folder), device=device, box=box, name=name)


def unique_names(folders: Sequence[Path], argument: str) -> list[str]:
    """The folders' own names, with as many of the folders above as tell them apart.

    Raises:
        InputError: a folder given twice.

    Example:
        >>> unique_names([Path("/a/one/m"), Path("/a/two/m")], "-m")
        ['one/m', 'two/m']
    """
    for depth in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise InputError.of(argument, [str(f) for f in folders], "each folder once")

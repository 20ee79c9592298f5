"""``monai-adv bundle``: which bundles come with this package, and a copy of one to work in."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from monai_adv.errors import InputError, did_you_mean
from monai_adv.files import whole_folder

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE.parent / "bundles", PACKAGE / "bundles" / "zoo")
"""In a checkout, and in an installed package."""
OUTPUTS = ("eval", "phantom", "__pycache__")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bundle`` to the command line."""
    parser = subparsers.add_parser("bundle", help="list the MONAI bundles, or copy one to work in")
    parser.add_argument("name", nargs="?", help="a bundle; default: list all")
    parser.add_argument("folder", nargs="?", help="new folder for the copy (default: its name, here)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List or copy.

    Returns:
        0.

    Raises:
        InputError: there is no bundle of that name, or the folder exists.
    """
    if args.name is None:
        for folder in bundles().values():
            print(f"{folder.name:<30}{title(folder)}")
        return 0
    copy = copy_bundle(args.name, args.folder or args.name)
    print(f"{copy}: {title(copy)}")
    if not any(copy.glob("models/**/*.pt*")):
        print(f"Weights: none yet. {how_weights_come(copy)}")
    print("Try it without data, in a minute on a CPU (read docs/README.md for what comes next):")
    print(f"  cd {copy}")
    print("""  python -m monai.bundle run --config_file "['configs/train.json','configs/phantom.json']\"""")
    return 0


def bundles() -> dict[str, Path]:
    """Folders of all bundles, by name."""
    found = [f.parents[1] for place in PLACES for f in sorted(place.glob("*/configs/metadata.json"))]
    by_name = {folder.name: folder for folder in reversed(found)}  # a checkout's win
    return dict(sorted(by_name.items()))


def title(folder: Path) -> str:
    """What a bundle's metadata call it."""
    return str(json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))["name"])


def how_weights_come(folder: Path) -> str:
    """The first paragraph of a bundle's ``models/README.md``, in one line."""
    text = (folder / "models" / "README.md").read_text(encoding="utf-8")
    return " ".join(text.partition("\n\n")[0].split())


def copy_bundle(name: str, folder: str | Path) -> Path:
    """Copy a bundle, without what runs of it have written.

    Args:
        name: of the bundle.
        folder: for the copy; may not exist.

    Returns:
        the folder.

    Raises:
        InputError: there is no bundle of that name, or the folder exists or cannot be made.
    """
    known = bundles()
    if name not in known:
        raise InputError.of("bundle", name, f"one of {', '.join(sorted(known))}", did_you_mean(name, known))
    folder = Path(folder)
    try:
        if folder.exists():
            raise InputError.of("folder", str(folder), "a new folder", "give another one, or remove this one")
        with whole_folder(folder) as copy:
            shutil.copytree(known[name], copy, ignore=shutil.ignore_patterns(*OUTPUTS), dirs_exist_ok=True)
    except OSError as error:
        raise InputError.of("folder", str(folder), f"a folder that can be made ({error.strerror})") from error
    return folder

"""The command ``monai-adv``. Each subcommand is a module with ``add_parser``, listed in ``COMMANDS``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from monai_adv import demo, doctor, export, methods
from monai_adv.bundles import command as bundle
from monai_adv.errors import InputError
from monai_adv.evaluation import command as evaluate

# Parsers are built at every start: these modules import torch and the like only inside what they run.
COMMANDS = (bundle, demo, doctor, evaluate, export, methods)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; a parsed subcommand carries its function as ``run``."""
    parser = argparse.ArgumentParser(prog="monai-adv", description="Adversarial robustness for nnU-Net and MONAI.")
    parser.add_argument("--version", action="version", version=f"monai-adv {_version()}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the words after ``monai-adv``; those of the process when None.

    Returns:
        The exit code: the subcommand's own, or 2 for input that cannot be used.

    Raises:
        SystemExit: for ``--help``, ``--version`` and words that argparse rejects.
    """
    args = build_parser().parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    try:
        code: int = args.run(args)
    except InputError as error:
        print(f"monai-adv: {error}", file=sys.stderr)
        return 2
    return code


def _version() -> str:
    try:
        return metadata.version("monai-adv")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())

"""``monai-adv methods``: which defences there are, and the settings of one."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``methods`` to the command line."""
    parser = subparsers.add_parser("methods", help="list the defences, or the settings and presets of one")
    parser.add_argument("name", nargs="?", help="a defence; default: list all")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table or the method.

    Returns:
        0.

    Raises:
        InputError: there is no method of that name.
    """
    from monai_adv.defenses.registry import method  # imports torch
    from monai_adv.method_tables import details, overview

    print(overview() if args.name is None else details(method(args.name)))
    return 0

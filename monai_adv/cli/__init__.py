"""The command ``monai-adv``. Each subcommand is a module with ``add_parser``, listed in ``COMMANDS``."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from monai_adv.cli import (
    bundle,
    card,
    certify,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    first_look,
    interpolate,
    methods,
    radius,
    report,
    verify,
)
from monai_adv.cli.run_file import Parser
from monai_adv.errors import InputError, in_a_sentence
from monai_adv.exit_codes import ExitCode
from monai_adv.optional import explained

# Parsers are built at every start: these modules import torch and the like only inside what they run.
COMMANDS = (
    bundle, card, certify, compare, demo, doctor, evaluate, export, first_look, interpolate, methods, radius, report,
    verify,
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; a parsed subcommand carries its function as ``run``."""
    parser = argparse.ArgumentParser(prog="monai-adv", description="Adversarial robustness for nnU-Net and MONAI.")
    parser.add_argument("--version", action="version", version=f"monai-adv {_version()}")
    subparsers = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None, **handed: Any) -> int:
    """Run one subcommand.

    Args:
        argv: the words after ``monai-adv``; those of the process when None.
        handed: on to the subcommand's ``run``, in place of what it takes otherwise.

    Returns:
        The exit code: the subcommand's own, 2 for input that cannot be used, or 4 for an unexpected error, which the
        last line names.

    Raises:
        SystemExit: for ``--help``, ``--version`` and words that argparse rejects.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name that the terminal cannot show must not end a long run
            stream.reconfigure(errors="backslashreplace")
    names: Mapping[str, str] = {}
    try:
        args = build_parser().parse_args(argv)
        names = getattr(args, "names", names)
        args.words = list(sys.argv[1:] if argv is None else argv)
        with explained(f"monai-adv {args.words[0]}"):
            code: int = args.run(args, **handed)
        sys.stdout.flush()
    except InputError as error:
        name, colon, said = str(error).partition(": ")
        print(f"monai-adv: {names.get(name, name)}{colon}{said}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return ExitCode.BROKEN_PIPE
        traceback.print_exc()
        print(
            f"monai-adv: unexpected error, exit code {ExitCode.UNEXPECTED}: {in_a_sentence(error)} What was finished "
            "is kept; please report this with the lines above.",
            file=sys.stderr,
        )
        return ExitCode.UNEXPECTED
    return code


def _nobody_reads() -> bool:
    """Whether standard output is closed at its other end; then Python shall not complain about it again."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _version() -> str:
    try:
        return metadata.version("monai-adv")
    except metadata.PackageNotFoundError:
        return "(not installed)"

"""``monai-adv demo``: from nothing to two models under attack, on a CPU, in minutes.

The demo itself is nnunet_trainers.demo. It runs in a Python of its own: OpenMP reads its settings when that starts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from monai_adv import openmp
from monai_adv.optional import require

MODULE = "nnunet_trainers.demo"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``demo`` to the command line."""
    parser = subparsers.add_parser("demo", help="train nnU-Net with and without IMA on a phantom and attack both")
    parser.add_argument(
        "--output", default="demo", metavar="FOLDER",
        help="new or empty folder for everything that is made (default: ./demo); a second run reuses finished stages",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start the demo.

    Returns:
        its exit code.

    Raises:
        MissingPackageError: nnU-Net, or what its pictures need, is not installed.
    """
    require("monai-adv demo", "nnunetv2", "jinja2", "matplotlib")
    process = subprocess.Popen([sys.executable, "-m", MODULE, args.output], env={**os.environ, **openmp.PASSIVE})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the demo gets the same signal and says what it keeps
            continue

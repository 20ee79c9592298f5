"""``monai-adv report``: the page of an evaluation, finished or not."""

from __future__ import annotations

import argparse

from monai_adv.optional import require


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``report`` to the command line."""
    parser = subparsers.add_parser(
        "report", help="write the page of an evaluation again, of what is finished so far",
        description="Write the report of what an evaluation has finished. It may still run, or have been stopped.",
    )  # fmt: skip
    parser.add_argument("folder", help="what was given to `monai-adv evaluate` as -o")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page.

    Returns:
        0.

    Raises:
        InputError: not the folder of an evaluation, or nothing is finished yet.
    """
    require("monai-adv report", "matplotlib", "jinja2")
    from monai_adv.evaluation.report.page import write_report

    print(f"Report: {write_report(args.folder)}")
    return 0

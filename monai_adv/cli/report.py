"""``monai-adv report``: the page of an evaluation, finished or not."""

from __future__ import annotations

import argparse

from monai_adv.cli.subgroups import add_subgroups, groups_of
from monai_adv.optional import require


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``report`` to the command line."""
    parser = subparsers.add_parser(
        "report", help="write the page of an evaluation again, of what is finished so far",
        description="Write the report of what an evaluation has finished. It may still run, or have been stopped.",
    )  # fmt: skip
    parser.add_argument("folder", help="what was given to `monai-adv evaluate` as -o")
    add_subgroups(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page.

    Returns:
        0.

    Raises:
        InputError: not the folder of an evaluation, nothing is finished yet, or a table of other cases.
    """
    require("monai-adv report", "matplotlib", "jinja2", "jsonschema")
    from monai_adv.evaluation.evidence.subgroups import add_later
    from monai_adv.evaluation.report.page import write_report

    groups = groups_of(args)
    if groups is not None:
        add_later(groups, args.folder)
    print(f"Report: {write_report(args.folder)}")
    return 0

"""Words about a table of groups, for the commands that write a report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from monai_adv.errors import InputError

if TYPE_CHECKING:
    from monai_adv.evaluation.evidence.group_table import GroupTable


def add_subgroups(parser: argparse._ActionsContainer) -> None:
    """Add ``--subgroups`` and ``--subgroup-edges``."""
    parser.add_argument(
        "--subgroups", metavar="FILE", help="CSV with a column case and others (site, age, ...): scores per group"
    )
    parser.add_argument(
        "--subgroup-edges", nargs="+", metavar="COLUMN=A,B",
        help="edges of the bins of columns of numbers, such as age=40,60 (default: quartiles)",
    )  # fmt: skip


def groups_of(args: argparse.Namespace) -> GroupTable | None:
    """The table that was given; None without one.

    Raises:
        InputError: a table that cannot be read, or edges without one.
    """
    from monai_adv.evaluation.evidence.group_table import GroupTable, edges_of

    if args.subgroups is None:
        if args.subgroup_edges:
            raise InputError.of("subgroup-edges", " ".join(args.subgroup_edges), "given with --subgroups")
        return None
    return GroupTable.read(args.subgroups, edges_of(args.subgroup_edges or []))

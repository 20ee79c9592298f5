"""``monai-adv compare``: what changed from one version of a model to the next?"""

from __future__ import annotations

import argparse

from monai_adv.exit_codes import ExitCode

EPILOG = """\
Both folders need the same data, cases, radii and plan of attacks; otherwise it is refused, and says what differs.

exit codes: 0 nothing got worse, 2 the folders cannot be compared, 5 something got worse

example:
  monai-adv compare report_v1 report_v2 --json changes.json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare`` to the command line."""
    parser = subparsers.add_parser(
        "compare", help="say what got better, worse or stays within noise from one version of a model to the next",
        description="Compare two evaluations, case by case.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("old", metavar="OLD", help="folder of the evaluation of the earlier version")
    parser.add_argument("new", metavar="NEW", help="folder of the evaluation of the new version")
    parser.add_argument("--json", metavar="FILE", help="write it there as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare. Returns the exit code, see ``EPILOG``.

    Raises:
        InputError: folders that cannot be compared, or a file that cannot be written.
    """
    from monai_adv.errors import InputError
    from monai_adv.evaluation.evidence.changes import changes
    from monai_adv.files import write_whole
    from monai_adv.foreign_text import say

    found = changes(args.old, args.new)
    say(repr(found))
    if args.json:
        try:
            write_whole(args.json, found.as_json())
        except OSError as error:
            raise InputError.of("json", args.json, f"a file that can be written ({error.strerror})") from error
    return ExitCode.WORSE if found.worse else ExitCode.FINISHED

"""``monai-adv verify``: are the files of an evaluation still those that were written?"""

from __future__ import annotations

import argparse

EPILOG = """\
exit codes: 0 everything matches, 1 something DIFFERS, 2 nothing differs, but something could not be checked

A hash is no signature: whoever can change the folder can compute its hashes anew. Keep the digest elsewhere
(the signed page, a register) and give it with --digest.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``verify`` to the command line."""
    parser = subparsers.add_parser(
        "verify", help="check whether report, records, model and data are still those of the evidence",
        description="Hold evidence.json against the records, the report and the files that were measured.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folder", help="what was given to `monai-adv evaluate` or `certify` as -o, or a folder with a report"
    )
    parser.add_argument("--digest", metavar="SHA256", help="digest of the evidence, as it was kept elsewhere")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, and say line by line what was found. Returns the exit code, see ``EPILOG``.

    Raises:
        InputError: no evidence there.
    """
    from monai_adv.evaluation.evidence.document import digest_in
    from monai_adv.evaluation.evidence.verify import exit_code, verify
    from monai_adv.foreign_text import say

    lines = verify(args.folder, args.digest)
    for line in lines:
        say(str(line))
    count = {outcome: sum(line.outcome == outcome for line in lines) for outcome in ("DIFFERS", "not checked")}
    print(f"Digest of the evidence (SHA-256): {digest_in(args.folder)}")
    say(f"{len(lines)} checks: {count['DIFFERS']} differ, {count['not checked']} could not be made.")
    return exit_code(lines)

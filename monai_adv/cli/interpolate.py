"""``monai-adv interpolate``: how much of the clean score to give for robustness, chosen after the training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_adv.errors import InputError

EPILOG = """\
The weights (1 - share) * PLAIN + share * ROBUST are a model between both: more clean score than the robust one, more
robustness than the plain one. It costs no training; measure it before you use it (monai-adv evaluate).

examples:
  monai-adv interpolate PLAIN/fold_0/checkpoint_final.pth ROBUST/fold_0/checkpoint_final.pth --share 0.9 0.75
  nnUNetv2_predict -tr FGSMRSTrainer -chk checkpoint_final_share_0.75.pth ...
  monai-adv interpolate models/model_clean.pt models/model.pt --share 0.75     # weights of a MONAI bundle
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``interpolate`` to the command line."""
    parser = subparsers.add_parser(
        "interpolate", help="write models between a plain one and the robust one that was fine-tuned from it",
        description="Write weights between a plain model and the robust one that was fine-tuned from it.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("plain", metavar="PLAIN", type=Path, help="weights that the fine-tuning started from")
    parser.add_argument("robust", metavar="ROBUST", type=Path, help="weights that it ended with")
    parser.add_argument("--share", metavar="S", type=float, nargs="+", required=True,
                        help="of the robust weights, above 0 and below 1; each makes a file")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path,
                        help="an existing folder (default: that of ROBUST)")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write a file for each share, beside ROBUST unless told otherwise.

    Returns:
        0.

    Raises:
        InputError: weights that do not belong together, a share that is none, a file that is there already.
    """
    for share in args.share:
        if not 0 < share < 1:
            raise InputError.of("--share", share, "a number between 0, the plain model, and 1, the robust one")
    folder = args.robust.parent if args.output is None else args.output
    if not folder.is_dir():
        raise InputError.of("-o", str(folder), "a folder that exists")
    files = {share: folder / f"{args.robust.stem}_share_{share}{args.robust.suffix}" for share in args.share}
    for file in files.values():
        if file.exists():
            raise InputError.of("--share", str(file), "a file that is not there yet", "move it away, or give -o FOLDER")

    from monai_adv.foreign_text import say
    from monai_adv.interpolation import has_running_statistics
    from nnunet_trainers.checkpoint import write_checkpoint

    written = zip(files.items(), _between(args.plain, args.robust, list(files)), strict=True)
    for (share, file), content in written:
        write_checkpoint(content, file, "then give the command again")
        say(f"{file}: {100 * share:g} % of {args.robust}, {100 * (1 - share):g} % of {args.plain}")
        if has_running_statistics(content.get("network_weights", content)):
            say("WARNING: its BatchNorm has statistics between both, which are not those that its weights would have.")
    say("Nobody has measured yet how accurate and how robust they are: monai-adv evaluate.")
    return 0


def _between(plain: Path, robust: Path, shares: Sequence[float]) -> Iterator[dict[str, Any]]:
    """The content of the files, one for each share."""
    from monai_adv.engines.robust_state import threat_in
    from monai_adv.interpolation import interpolated
    from monai_adv.weights import read_weights
    from nnunet_trainers.checkpoint import is_nnunet

    hosts = {file: "nnU-Net" if is_nnunet(file) else "no nnU-Net" for file in (plain, robust)}
    if len(set(hosts.values())) > 1:
        found = " and ".join(f"{file} of {host}" for file, host in hosts.items())
        raise InputError.of("weights", found, "two of the same host")
    if hosts[robust] == "nnU-Net":
        from nnunet_trainers.interpolation import checkpoints_between

        yield from checkpoints_between(plain, robust, shares)
        return
    if (threat := threat_in(plain)) is not None:
        trained = f"{plain}, trained against {threat['norm']} {threat['eps']:g} ({threat['unit']})"
        raise InputError.of("PLAIN", trained, "a model that no defence has trained", "it comes first")
    start, end = read_weights(plain, "PLAIN"), read_weights(robust, "ROBUST")
    for share in shares:
        yield interpolated(start, end, share)

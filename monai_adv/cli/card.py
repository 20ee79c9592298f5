"""``monai-adv card``: the figures of an evaluation into a bundle, or into a card for the Hugging Face Hub."""

from __future__ import annotations

import argparse

EPILOG = """\
Writing again replaces what was written before, and leaves everything else as it is.

examples:
  monai-adv card report --bundle my_bundle
  monai-adv card report -o README.md --dataset "Decathlon Hippocampus"
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``card`` to the command line."""
    parser = subparsers.add_parser(
        "card", help="write figures, radii and limits into a bundle's README and metadata, or a model card",
        description="Tell those who get the model how robust it was measured to be.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", help="what was given to `monai-adv evaluate` as -o")
    parser.add_argument("--model", metavar="NAME", help="which of several")
    parser.add_argument("--bundle", metavar="DIR", help="MONAI bundle: docs/README.md and configs/metadata.json")
    parser.add_argument("-o", "--output", metavar="FILE", help="card for the Hugging Face Hub, new or one to add to")
    parser.add_argument("--dataset", metavar="NAME", help="with -o: name of the data, which the Hub requires")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write. Returns 0.

    Raises:
        InputError: an evaluation, bundle or file that cannot be used.
    """
    from monai_adv.errors import InputError
    from monai_adv.evaluation.evidence.card import Card, as_hub_card, into_bundle

    if not args.bundle and not args.output:
        raise InputError("card: received neither --bundle nor -o, allowed is one of them, or both; say where to write.")
    if bool(args.output) != bool(args.dataset):
        missing = "--dataset" if args.output else "-o"
        raise InputError(f"{missing}: is missing, allowed is -o with --dataset, or neither; the Hub requires both.")
    card = Card.of(args.folder, args.model)
    written = into_bundle(card, args.bundle) if args.bundle else []
    written += [as_hub_card(card, args.output, args.dataset)] if args.output else []
    for path in written:
        print(f"Written: {path}")
    return 0

"""``monai-adv certify``: what no attack can do to the smoothed versions of these models."""

from __future__ import annotations

import argparse
import shlex
import time
from typing import TYPE_CHECKING

from monai_adv.cli.models import OPTIONS, add_models, cases, device, folder, models
from monai_adv.cli.pools import add_pool, pool_of
from monai_adv.cli.purpose import add_purpose, add_run_file, criteria
from monai_adv.exit_codes import ExitCode
from monai_adv.openmp import wait_passively
from monai_adv.optional import require

if TYPE_CHECKING:
    from monai_adv.certificates import Certification
    from monai_adv.evaluation.models.protocol import Source

EPILOG = """\
What is certified is the smoothed model, the majority vote over noisy copies of the input, not the network
itself; see docs/certificates.md. The same command goes on where it was stopped, and `monai-adv verify FOLDER`
holds the folder's evidence.json against all that it rests on.

exit codes: 0 finished, 1 some cases could not be used, 2 the input cannot be used, 4 an unexpected error

examples:
  monai-adv certify --factory my_model.py:model --sigma 0.25 -o certificates
  monai-adv certify -d 4 -c 3d_fullres -f 0 -tr GaussianTrainer --sigma 0.25 --n 200 -o certificates
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``certify`` to the command line."""
    parser = subparsers.add_parser(
        "certify", help="prove what no attack can do to the smoothed versions of models",
        description="Certify the smoothed versions of models by randomized smoothing.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_run_file(parser)
    add_models(parser)
    what = parser.add_argument_group("what is certified")
    what.add_argument("--sigma", type=float, required=True, metavar="S",
                      help="standard deviation of the noise in every voxel, in network inputs")  # fmt: skip
    add_draws(what)
    what.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    what.add_argument("--cases", nargs="+", metavar="N|NAME",
                      help="the first N cases (of a classifier: images), or names (default: all)")  # fmt: skip
    where = parser.add_argument_group("where it runs")
    where.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    where.add_argument("--inputs-per-pass", type=int, default=64, metavar="N",
                       help="noisy copies in one pass of the network (default: 64)")  # fmt: skip
    add_pool(where)
    where.add_argument("-o", "--output", required=True, metavar="FOLDER", help="new folder, or one to go on with")
    where.add_argument("--dry-run", action="store_true", help="predict the cost, write nothing")
    file = parser.add_argument_group("for the file", "easier said in a run file, see docs/evidence.md")
    add_purpose(file)
    parser.set_defaults(run=run, box=None, names=OPTIONS)


def add_draws(group: argparse._ArgumentGroup) -> None:
    """What a certificate depends on besides its noise."""
    group.add_argument("--n0", type=int, default=100, metavar="N", help="draws that choose an answer (default: 100)")
    group.add_argument("--n", type=int, default=1000, metavar="N", help="draws that count it (default: 1000)")
    group.add_argument("--alpha", type=float, default=0.001, metavar="P",
                       help="probability that what is said of an image is wrong (default: 0.001)")  # fmt: skip
    group.add_argument("--tau", type=float, default=0.75, metavar="P",
                       help="segmentation: how often a voxel's class must come (default: 0.75)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Certify. Returns the exit code, see ``EPILOG``.

    Raises:
        InputError: input that cannot be used.
    """
    wait_passively()
    require("monai-adv certify", "pandas", "jsonschema")  # it writes a table and the evidence
    from monai_adv.certificates import Certification
    from monai_adv.evaluation.evidence.document import CERTIFICATES, NAME, digest_in
    from monai_adv.evaluation.evidence.purpose import Purpose
    from monai_adv.evaluation.run.certify import certify_models
    from monai_adv.foreign_text import say

    settings = Certification(
        args.sigma, args.n0, args.n, args.alpha, args.tau, args.seed, inputs_per_pass=args.inputs_per_pass
    )
    purpose = Purpose.stated(args.intended_use, criteria(args.acceptance))
    args.device = device(args.device)
    output, chosen = folder(args.output), cases(args.cases)
    sources = models(args)
    print(_cost(sources, settings, chosen))
    if args.dry_run:
        return ExitCode.FINISHED
    pool = pool_of(args)
    try:
        found = certify_models(
            sources, settings, output, cases=chosen, device=args.device, bars=True, pool=pool,
            asked=shlex.join(["monai-adv", *args.words]), purpose=purpose,
        )  # fmt: skip
    finally:
        pool.close()
    say(repr(found))
    for model, case, reason in found.problems:
        say(f"not used: {model}{', ' + case if case else ''}: {reason}")
    print(f"Table: {output / CERTIFICATES}")
    print(f"Evidence: {output / NAME}; keep its digest elsewhere: {digest_in(output)}")
    return ExitCode.CASES_LEFT_OUT if found.problems else ExitCode.FINISHED


def _cost(sources: list[Source], settings: Certification, chosen: int | tuple[str, ...] | None) -> str:
    """Passes of all cases, and the time they take, from one pass of the first case of each model."""
    import torch

    from monai_adv.evaluation.models.classifier import first_of
    from monai_adv.evaluation.search.cost import duration
    from monai_adv.evaluation.settings import selected
    from monai_adv.network_state import device_of, frozen

    draws, seconds, count = settings.n0 + settings.n, 0.0, 0
    for source in sources:
        model = first_of(source.open(), chosen)
        names = selected(chosen, model.cases)
        case = model.load(names[0])
        few = case.images[: settings.inputs_per_pass].to(device_of(case.network))
        with frozen(case.network) as network, torch.no_grad():
            network(few)
            start = time.perf_counter()
            network(few)
        seconds += (time.perf_counter() - start) / len(few) * len(case.images) * draws * len(names)
        count += len(case.images) * draws * len(names)
    return f"About {count} passes of one input, {duration(seconds)}."

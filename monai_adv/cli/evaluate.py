"""``monai-adv evaluate``: how robust are these models, honestly?

The models come from hosts, see :mod:`monai_adv.evaluation.models.hosts`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from monai_adv import given
from monai_adv.cli.certify import add_draws
from monai_adv.cli.models import OPTIONS, add_models, cases, device, folder, models
from monai_adv.cli.pools import add_pool, pool_of
from monai_adv.cli.purpose import add_purpose, add_run_file, criteria
from monai_adv.cli.run_file import as_run_file
from monai_adv.cli.subgroups import add_subgroups, groups_of
from monai_adv.errors import InputError
from monai_adv.exit_codes import ExitCode
from monai_adv.openmp import wait_passively
from monai_adv.optional import require

if TYPE_CHECKING:
    from monai_adv.certificates import Smoothing
    from monai_adv.evaluation.figures.results import Figures
    from monai_adv.evaluation.report.baseline import Baseline
    from monai_adv.evaluation.run.parts import Parts
    from monai_adv.evaluation.run.workers import Pool
    from monai_adv.evaluation.settings import EvaluationSettings

EPILOG = """\
exit codes:
  0    finished, and no check failed; the last lines say whether that is enough to trust the figures
  1    finished, but some cases could not be used; the summary names the files
  2    the input, or the folder of the report, cannot be used
  3    finished, and a check FAILED, or an attack beat a certificate: the figures are not reliable (also if cases
       could not be used)
  4    an unexpected error, which the last line names; what was finished is kept
  5    finished, and a model is worse than in --baseline by more than --max-drop
  130  interrupted; the same command goes on

examples:
  monai-adv evaluate --factory my_model.py:model --norm linf --eps 0.01 0.03 --box 0 1 -o report
  monai-adv evaluate -d 4 -c 2d -f 0 -tr IMATrainer --norm l2 --eps 0.05 0.1 0.2 -o report
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``evaluate`` to the command line."""
    parser = subparsers.add_parser(
        "evaluate", help="measure how robust models are, and write a report",
        description="Attack models and write a report. Several models in one call become one comparison.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_run_file(parser)
    add_models(parser)
    what = parser.add_argument_group("what the attacker may do")
    what.add_argument(
        "--norm", action="append", choices=("l2", "linf"),
        help="norm of the perturbation (default: l2); for both: --norm l2 --eps ... --norm linf --eps ...",
    )  # fmt: skip
    what.add_argument(
        "--eps", action="append", nargs="+", required=True, metavar="R",
        help="radii such as 0.03 or 8/255, ascending, for the norm before them",
    )  # fmt: skip
    what.add_argument(
        "--unit", choices=("norm", "rms", "raw"),
        help="of the radii: rms: root mean square change per voxel, in units of network inputs (default for l2), norm: "
        "the norm itself (default for linf: the largest change), raw: the default in units of the files (HU for CT)",
    )  # fmt: skip
    what.add_argument(
        "--box", nargs="+", metavar=("LOW", "HIGH"),
        help="lowest and highest intensity of an attacked image in network units (default: none; for nnU-Net "
        "the range to which the plan clips CT or scales colour images)",
    )  # fmt: skip
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--attacks", default="standard", metavar="quick|standard|full|MODULE:PLAN",
        help="default: standard; or a plan of your own, a function (threat, classes) that returns stages, as "
        "package.module:function or file.py:function",
    )  # fmt: skip
    how.add_argument(
        "--variations", nargs="+", default=[], metavar="WORD",
        help="natural variations beside the attacks: ct, mri, ultrasound, xray, or auto (as the data set says); "
        "mri:motion: one of them; mri:motion=1,3: at these severities",
    )  # fmt: skip
    how.add_argument(
        "--fuse", action="store_true",
        help="search on a copy of each network with BatchNorm folded into its convolutions: a pass takes half to "
        "three quarters of the time on a CPU, and has other last digits; scores are the network's own, which has to "
        "confirm what was found (default: off)",
    )  # fmt: skip
    how.add_argument("--seed", type=int, default=0, help="of all random draws (default: 0)")
    how.add_argument("--batch-size", type=int, default=64, metavar="N", help="inputs attacked at once (default: 64)")
    how.add_argument(
        "--cases",
        nargs="+",
        metavar="N|NAME",
        help="the first N cases (of a classifier: images), or names (default: all)",
    )
    smoothed = parser.add_argument_group("the smoothed version of the models, attacked and certified on one page")
    smoothed.add_argument(
        "--smooth", type=float, metavar="S",
        help="standard deviation of the noise, in network inputs: the majority vote over noisy copies is measured, and "
        "not the model itself (default: the model itself)",
    )  # fmt: skip
    smoothed.add_argument("--draws", type=int, default=100, metavar="N", help="noisy copies that vote (default: 100)")
    add_draws(smoothed)
    where = parser.add_argument_group("where it runs")
    where.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add_pool(where)
    where.add_argument(
        "--threads", type=int, metavar="N",
        help="CPU threads of each process; the last digits depend on it (default: those torch takes, whatever the "
        "number of workers)",
    )  # fmt: skip
    where.add_argument("-o", "--output", required=True, metavar="FOLDER", help="new folder, or one to go on with")
    where.add_argument("--dry-run", action="store_true", help="predict the cost, write nothing")
    where.add_argument("-y", "--yes", action="store_true", help="start without asking")
    where.add_argument(
        "--log", nargs="+", default=[], metavar="NAME",
        help="at the end, hand the figures to tensorboard, mlflow or wandb, into the run that their own variables name",
    )  # fmt: skip
    file = parser.add_argument_group("for the file", "easier said in a run file, see docs/evidence.md")
    add_purpose(file)
    add_subgroups(file)
    then = parser.add_argument_group("for a test that runs by itself")
    then.add_argument("--baseline", metavar="FILE", help="results.json of an earlier report, measured in the same way")
    then.add_argument(
        "--max-drop", type=float, metavar="POINTS",
        help=f"exit code {ExitCode.WORSE} if a mean score, clean or at a radius, is lower than there by more than this",
    )  # fmt: skip
    parser.set_defaults(run=run, parser=parser, names=OPTIONS)


def _agreed() -> bool:
    """Ask, where somebody can answer."""
    return not sys.stdin.isatty() or input("Start? [Y/n] ").strip().lower() in ("", "y", "yes")


def run(
    args: argparse.Namespace,
    *,
    pool: Pool | None = None,
    agreed: Callable[[], bool] = _agreed,
    parts: Parts | None = None,
) -> int:
    """Evaluate.

    Args:
        args: of the command line.
        pool: who does the work; None: as the options say.
        agreed: whether to start, where ``--yes`` does not say so.
        parts: what is done around the attacks; None: all that a report needs.

    Returns:
        the exit code, see ``EPILOG``.

    Raises:
        InputError: input that cannot be used.
    """
    wait_passively()
    require("monai-adv evaluate", "matplotlib", "jinja2", "jsonschema")  # before hours are spent in vain
    read = [[(given.number("eps", word), word) for word in radii] for radii in args.eps]
    args.eps = [[word if "/" in word else radius for radius, word in radii] for radii in read]  # 8/255 stays that
    args.box = given.box("box", ", ".join(args.box)) if args.box else None
    args.acceptance = criteria(args.acceptance)
    asked = as_run_file(args, args.parser)
    from monai_adv.evaluation.evidence.purpose import Purpose
    from monai_adv.evaluation.run.measure import measure
    from monai_adv.evaluation.run.parts import Parts

    args.device = device(args.device)
    output = folder(args.output)
    purpose = Purpose.stated(args.intended_use, args.acceptance)
    groups = groups_of(args)
    settings = _settings(args)
    baseline = _baseline(args, settings)
    _check_loggers(args.log)
    sources = models(args)
    pool = pool or pool_of(args)
    try:
        finished = measure(
            sources, settings, output, pool, dry_run=args.dry_run, agreed=lambda: args.yes or agreed(), asked=asked,
            purpose=purpose, groups=groups, parts=parts or Parts(),
        )  # fmt: skip
        if finished is None:
            if not args.dry_run:
                print("Nothing was computed.")
            return ExitCode.FINISHED
        _log(output, finished.figures, args.log)
        if baseline is not None and _worse(baseline, finished.figures, args.max_drop):
            return ExitCode.WORSE
        return finished.code
    except KeyboardInterrupt:
        again = shlex.join(["monai-adv", *args.words])
        print(f"\nInterrupted. All finished stages are kept; go on with\n  {again}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    finally:
        pool.close()


def _check_loggers(names: list[str]) -> None:
    """Before hours of attacks."""
    if names:
        from monai_adv.evaluation.report.loggers import logger_of

        for name in names:
            logger_of(name)


def _log(folder: Path, figures: Figures, names: list[str]) -> None:
    if names:
        from monai_adv.evaluation.outcome import Results

        results = Results(folder, numbers=figures)
        for name in names:
            results.log_to(name)


def _settings(args: argparse.Namespace) -> EvaluationSettings:
    from monai_adv.evaluation.records import Level
    from monai_adv.evaluation.run.measure import threads_for
    from monai_adv.evaluation.settings import EvaluationSettings, attacks_of

    norms = args.norm or ["l2"]
    if len(norms) != len(args.eps):
        raise InputError.of(
            "eps", f"{len(args.eps)} lists of radii for {len(norms)} norms", "one list for each norm",
            "a radius in one norm says nothing in the other: --norm l2 --eps ... --norm linf --eps ...",
        )  # fmt: skip
    if len(set(norms)) < len(norms):
        raise InputError.of("norm", norms, "each norm once", "give all its radii after one --eps")
    levels = tuple(
        Level.written(norm, eps, args.unit) for norm, radii in zip(norms, args.eps, strict=True) for eps in radii
    )
    return EvaluationSettings(
        levels, attacks_of(args.attacks), args.seed, args.batch_size, cases(args.cases), args.box,
        args.device.split(":")[0], threads_for(Path(args.output), args.threads), _smoothing(args),
        tuple(args.variations), args.fuse,
    )  # fmt: skip


def _smoothing(args: argparse.Namespace) -> Smoothing | None:
    from monai_adv.certificates import Smoothing

    if args.smooth is None:
        for name in ("draws", "n0", "n", "alpha", "tau"):
            if getattr(args, name) != args.parser.get_default(name):
                raise InputError.of(f"--{name}", getattr(args, name), "given beside --smooth S")
        return None
    return Smoothing(args.smooth, args.n0, args.n, args.alpha, args.tau, args.seed, draws=args.draws)


def _baseline(args: argparse.Namespace, settings: EvaluationSettings) -> Baseline | None:
    from monai_adv.evaluation.report.baseline import Baseline

    if (args.baseline is None) != (args.max_drop is None):
        raise InputError.of("--baseline and --max-drop", f"{args.baseline} and {args.max_drop}", "both or none")
    if args.baseline is None:
        return None
    if not args.max_drop >= 0:
        raise InputError.of("--max-drop", args.max_drop, "points >= 0")
    return Baseline(args.baseline, settings)


def _worse(baseline: Baseline, figures: Figures, most: float) -> bool:
    """Compare, and say what is worse."""
    from monai_adv.evaluation.report.baseline import larger_than
    from monai_adv.foreign_text import say

    worse = larger_than(baseline.compare(figures), most)
    for drop in worse:
        say(f"worse than {baseline.file} by more than {most:g} points: {drop}")
    if not worse:
        say(f"No score is worse than in {baseline.file} by more than {most:g} points.")
    return bool(worse)

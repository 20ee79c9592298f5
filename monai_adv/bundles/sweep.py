"""Print the commands of a cross-validation, or of a sweep over one hyper-parameter; a shell runs them.

    python -m monai_adv.bundles.sweep --folds 0 1 2 3 4 --dataset_dir DATA | sh
    python -m monai_adv.bundles.sweep r --values 0 0.5 1 --dataset_dir DATA --epochs 20 | sh

In the bundle's folder. Everything that is not listed under --help goes to the training and the evaluation as it is.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

Places = Sequence[int | None]


def commands(
    key: str | None, values: Sequence[str], folds: Places, configs: Sequence[str], name: str, options: Sequence[str]
) -> list[str]:
    """For each value and fold a training and an evaluation, then a summary of each value with several folds.

    Args:
        key: of the bundle's config, such as ``r`` or ``train#trainer#settings#steps``; None: no sweep.
        values: of the key.
        folds: of the cross-validation; ``[None]``: the bundle's data have no folds, or its own default.
        configs: on top of train.json, such as ``dual``.
        name: folder below models and eval.
        options: for MONAI.

    Example:
        >>> lines = commands("r", ["0.5"], [0, 1], ["dual"], "dual", ["--epochs", "1"])
        >>> len(lines), lines[-1]
        (5, 'python -m monai_adv.bundles.folds eval/dual/r_0.5/fold0/metrics.csv eval/dual/r_0.5/fold1/metrics.csv')
    """
    lines, summaries = [], []
    for value in values if key else [""]:
        place = name if key is None else f"{name}/{key.split('#')[-1]}_{value}"
        written = [f"{place}/fold{fold}" if fold is not None else place for fold in folds]
        for fold, folder in zip(folds, written, strict=True):
            own = [] if fold is None else ["--fold", str(fold)]
            own += ["--ckpt_dir", f"models/{folder}", "--output_dir", f"eval/{folder}"]
            own += [] if key is None else [f"--{key}", value]
            for last in ([], ["evaluate"]):
                files = [f"configs/{config}.json" for config in ("train", *configs, *last)]
                run = ["python", "-m", "monai.bundle", "run", "--config_file", str(files)]
                lines.append(shlex.join([*run, *own, *options]))
        if len(folds) > 1:
            metrics = [f"eval/{folder}/metrics.csv" for folder in written]
            summaries.append(shlex.join(["python", "-m", "monai_adv.bundles.folds", *metrics]))
    return lines + summaries


def main(argv: Sequence[str] | None = None) -> int:
    """Print the commands."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_adv.bundles.sweep", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("key", nargs="?", help="hyper-parameter: a key of the bundle's config; default: none")
    parser.add_argument("--values", nargs="+", default=[], help="of the hyper-parameter")
    parser.add_argument("--folds", nargs="+", type=int, default=[None], help="default: no cross-validation")
    parser.add_argument("--configs", nargs="*", default=[], help="on top of train.json, such as dual or vgg16_bn")
    parser.add_argument("--name", help="folder below models and eval; default: the configs, or robust")
    args, options = parser.parse_known_args(argv)
    if bool(args.values) != bool(args.key):
        parser.error(f"--values: received {args.values} for the hyper-parameter {args.key}; give both or none")
    name = args.name or "_".join(args.configs) or "robust"
    print("\n".join(["set -e", *commands(args.key, args.values, args.folds, args.configs, name, options)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Mean and spread of a cross-validation, and a test between two methods, from what the bundles' evaluate.json writes.

python -m monai_adv.bundles.folds eval/mirst/fold*/metrics.csv --against eval/rst/fold*/metrics.csv
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import mannwhitneyu

from monai_adv.errors import InputError

Figures = dict[str, list[float]]
"""For each figure its value in every fold."""


def read_folds(files: Sequence[str | Path]) -> Figures:
    """The figures of all folds.

    Args:
        files: ``metrics.csv`` of each fold.

    Raises:
        InputError: fewer than two files, one twice, a file of another kind, folds with different figures, or a figure
            that is not defined.
    """
    if len(files) < 2 or len({Path(file).resolve() for file in files}) < len(files):
        raise InputError.of("metrics", [str(file) for file in files], "metrics.csv of two or more folds, each once")
    folds = [read_metrics(file) for file in files]
    for file, fold in zip(files, folds, strict=True):
        if fold.keys() != folds[0].keys():
            other = min(fold.keys() ^ folds[0].keys())
            raise InputError.of("metrics", str(file), f"the figures of {files[0]}", f"only one of them has {other}")
    return {name: [fold[name] for fold in folds] for name in folds[0]}


def table(figures: Figures, against: Figures | None = None) -> str:
    """A Markdown table: mean and sample standard deviation, and with ``against`` the two-sided Mann-Whitney U test.

    Raises:
        InputError: methods with different figures.

    Example:
        >>> print(table({"f1": [0.5, 0.7]}))
        | figure | mean (std) |
        | --- | --- |
        | f1 | 0.600 (0.141) |
    """
    rows = [["figure", "mean (std)"], ["---", "---"]]
    rows += [[name, _spread(values)] for name, values in figures.items()]
    if against is not None:
        if against.keys() != figures.keys():
            other = min(against.keys() ^ figures.keys())
            raise InputError.of("against", f"folds with other figures, such as {other}", "those of the same evaluation")
        rows[0] += ["against", "p"]
        rows[1] += ["---", "---"]
        for row, (name, values) in zip(rows[2:], figures.items(), strict=True):
            test = mannwhitneyu(values, against[name], alternative="two-sided")
            row += [_spread(against[name]), f"{test.pvalue:.3f}"]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(words: Sequence[str] | None = None) -> int:
    """The command; 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m monai_adv.bundles.folds", description="Sum up a cross-validation.")
    parser.add_argument("metrics", nargs="+", help="metrics.csv of each fold")
    parser.add_argument("--against", nargs="+", metavar="METRICS", help="those of another method")
    args = parser.parse_args(words)
    try:
        print(table(read_folds(args.metrics), None if args.against is None else read_folds(args.against)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_metrics(file: str | Path) -> dict[str, float]:
    """The figures that ``evaluate.json`` of a bundle wrote.

    Args:
        file: ``metrics.csv``.

    Raises:
        InputError: a file of another kind, or a figure that is not defined.
    """
    file = Path(file)
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            found = {name: float(value) for name, value in csv.reader(lines)}
    except (OSError, ValueError, csv.Error) as error:
        raise InputError.of("metrics", str(file), "a metrics.csv of evaluate.json", str(error).rstrip(".")) from error
    undefined = [name for name, value in found.items() if not math.isfinite(value)]
    if undefined or not found:
        problem = f"{undefined[0]} is {found[undefined[0]]}" if undefined else "it is empty"
        raise InputError.of("metrics", str(file), "a file with a number for every figure", problem)
    return found


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})"


if __name__ == "__main__":
    sys.exit(main())

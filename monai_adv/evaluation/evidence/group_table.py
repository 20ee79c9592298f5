"""A table of cases with the groups that they belong to: site, scanner, sex, age, whatever its owner has."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_adv.errors import InputError, first_cause
from monai_adv.evaluation import seal
from monai_adv.evaluation.codec import plain
from monai_adv.evaluation.models.protocol import check_distinct
from monai_adv.foreign_text import from_cell
from monai_adv.given import number

CASE = "case"
NOT_GIVEN = "not given"
EMPTY = ("", "na", "n/a", "nan", "none")
FEW_VALUES = 6
"""A column of numbers with more different ones is binned; with fewer each is a group, such as 0 and 1."""
MOST_GROUPS = 20
Edges = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class GroupTable:
    """Which group each case belongs to.

    Attributes:
        name: of the file, or "table".
        columns: column -> case -> group.
        binned: column -> edges, of the columns of numbers that were binned.
    """

    name: str
    columns: dict[str, dict[str, str]]
    binned: dict[str, list[float]]

    @property
    def hash(self) -> str:
        """SHA-256 of what it says."""
        return seal.checksum(plain(self))

    @classmethod
    def read(cls, source: Any, edges: Edges | None = None) -> GroupTable:
        """Read a table.

        Args:
            source: a CSV file (UTF-8, commas, a first line with names), or a pandas frame or mapping; a column
                ``case``, with a row per patient or image as in ``Results.frame``, and at least one other.
            edges: column -> edges of its bins, ascending; default: quartiles.

        Raises:
            InputError: a table that cannot be read, cases twice, columns without groups, edges that do not fit.

        Example:
            >>> table = GroupTable.read({"case": ["a", "b", "c"], "age": [30, 60, 70]}, {"age": [60]})
            >>> table.columns
            {'age': {'a': '< 60', 'b': '≥ 60', 'c': '≥ 60'}}
        """
        name, content = _content(source)
        if CASE not in content or len(content) < 2:
            todo = "put commas between the columns, and their names into the first line"
            raise InputError.of("subgroups", f"the columns {', '.join(content)}", f"'{CASE}' and another one", todo)
        cases = content.pop(CASE)
        if twice := sorted({case for case in cases if cases.count(case) > 1}):
            raise InputError.of("subgroups", f"{_some(twice)} twice", "one row for each case")
        if unknown := sorted(set(edges or {}) - set(content)):
            raise InputError.unknown(unknown[0], f"column of {name}", content)
        columns, binned = {}, {}
        for column, values in content.items():
            known = [v for v in values if v.lower() not in EMPTY]
            cut = _edges(column, known, (edges or {}).get(column))
            if cut:
                binned[column] = cut
            groups = [NOT_GIVEN if v.lower() in EMPTY else _bin(float(v), cut) if cut else v for v in values]
            if len(set(groups)) > MOST_GROUPS:
                raise InputError.of(
                    "subgroups", f"{len(set(groups))} different values in {column!r}", f"at most {MOST_GROUPS} groups",
                    "leave this column out, or give a coarser one",
                )  # fmt: skip
            columns[column] = dict(zip(cases, groups, strict=True))
        return cls(name, columns, binned)

    def check(self, cases: Iterable[str]) -> None:
        """Hold the rows against the cases of the evaluation.

        Raises:
            InputError: names the cases without a row, and the rows without a case.
        """
        here, known = set(next(iter(self.columns.values()))), set(cases)
        for what, names in (("no row", known - here), ("a row, but is not evaluated,", here - known)):
            if names:
                raise InputError.of(
                    "subgroups", f"{_some(sorted(names))}: {what} in {self.name}", "a row for each case, and no other",
                    "names are those of results.csv, in its column patient",
                )  # fmt: skip

    def groups(self, column: str) -> list[str]:
        """Of a column: bins in their order, otherwise by name; what is not given comes last."""
        found = set(self.columns[column].values())
        order = [_bin(value, self.binned[column]) for value in _middles(self.binned[column])] if (
            column in self.binned) else sorted(found - {NOT_GIVEN}, key=_natural)  # fmt: skip
        return [g for g in [*order, NOT_GIVEN] if g in found]


def edges_of(words: Iterable[str]) -> dict[str, list[float]]:
    """Edges as the command line has them.

    Raises:
        InputError: something else.

    Example:
        >>> edges_of(["age=40,60"])
        {'age': [40.0, 60.0]}
    """
    found = {}
    for word in words:
        column, equals, values = word.rpartition("=")
        if not equals or not column:
            raise InputError.of("subgroup-edges", word, "COLUMN=EDGE,EDGE, such as age=40,60")
        found[column] = [number("subgroup-edges", value, "a number") for value in values.split(",")]
    return found


def _content(source: Any) -> tuple[str, dict[str, list[str]]]:
    """Name, and column -> values as text."""
    if isinstance(source, str | Path):
        name, (head, *rows) = Path(source).name, _rows(Path(source))
    else:
        import pandas

        try:
            frame = pandas.DataFrame(source)
        except (ValueError, TypeError) as error:
            raise InputError.of("subgroups", type(source).__name__, "a table", first_cause(error)) from error
        name, head, rows = "table", [str(c) for c in frame.columns], frame.to_numpy(dtype=object).tolist()
    head = [column.strip() for column in head]
    check_distinct("columns of subgroups", head)
    if not rows:
        raise InputError.of("subgroups", f"{name}, which has no row", "a row for each case")
    return name, {column: [_text(row[i]) for row in rows] for i, column in enumerate(head)}


def _rows(path: Path) -> list[list[str]]:
    """Of a CSV file, all of one length."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError.of("subgroups", str(path), "a CSV file that can be read", first_cause(error)) from error
    if not rows:
        raise InputError.of("subgroups", f"{path.name}, which is empty", "a row for each case")
    for line, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            found = f"{len(row)} values in row {line} of {path.name}"
            raise InputError.of("subgroups", found, f"{len(rows[0])}, as in the first row")
    return rows


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(from_cell(str(value))).strip()


def _edges(column: str, values: Sequence[str], asked: Sequence[float] | None) -> list[float]:
    """Of the bins; empty for a column of names."""
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            if asked is not None:
                raise InputError.of(f"column {column!r}", value, "numbers, where edges are given") from None
            return []
    if any(math.isinf(n) for n in numbers):
        raise InputError.of(f"column {column!r}", "infinity", "finite numbers")
    if asked is not None:
        cut = [float(edge) for edge in asked]
        if not cut or cut != sorted(set(cut)) or not all(map(math.isfinite, cut)):
            raise InputError.of(f"edges of {column!r}", list(asked), "finite numbers in ascending order, each once")
        return cut
    if len(set(numbers)) <= FEW_VALUES:
        return []
    return sorted({float(q) for q in np.quantile(numbers, (0.25, 0.5, 0.75))})


def _bin(value: float, edges: Sequence[float]) -> str:
    if value < edges[0]:
        return f"< {edges[0]:g}"
    if value >= edges[-1]:
        return f"≥ {edges[-1]:g}"
    at = int(np.searchsorted(edges, value, side="right"))
    return f"{edges[at - 1]:g} to < {edges[at]:g}"


def _middles(edges: Sequence[float]) -> list[float]:
    """A value in every bin."""
    return [-math.inf, *edges]


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""The boards of a leaderboard as Markdown: a table each, the best worst case first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from monai_adv.errors import InputError
from monai_adv.evaluation.evidence.card import plain_text
from monai_adv.evaluation.evidence.leaderboard import Board, Entry, Row

_BLOCK = re.compile(r"<!-- boards -->\n.*<!-- end -->", re.DOTALL)
NONE = "not measured"


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "clean": lambda row: _score(row.clean),
    "worst case": lambda row: _score(row.robust),
    "certified": lambda row: _score(row.certified),
    "white noise": lambda row: _score(row.noise),
    "passes per sample": lambda row: _score(row.passes),
    "cost, plain training = 1": lambda row: _share(row.share),
    "verdict": lambda row: plain_text(row.verdict) or NONE,
}
"""Of a board's tables; what no row of a board has is named below its table instead."""


def refreshed(page: Path, rows: Iterable[Row], entries: Sequence[Entry]) -> str:
    """A page with the boards of all rows between its two marks; the rest of it is written by hand.

    Args:
        page: file with ``<!-- boards -->`` and ``<!-- end -->``.
        rows: whose sources are seen from there.
        entries: rows of others, kept in ``leaderboard`` beside it.

    Raises:
        InputError: the marks are not there.
    """
    added = [replace(row, source=f"leaderboard/{row.source}") for entry in entries for row in entry.rows]
    boards = f"<!-- boards -->\nAdded so far:{_added(entries)}\n\n{markdown([*rows, *added])}\n<!-- end -->"
    text, count = _BLOCK.subn(lambda _: boards, page.read_text(encoding="utf-8") if page.exists() else "")
    if count != 1:
        raise InputError.of(str(page), f"{count} blocks of boards", "one, between <!-- boards --> and <!-- end -->")
    return text


def _added(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        left = f"; not checked: {plain_text('; '.join(entry.not_checked))}" if entry.not_checked else ""
        short = entry.digest[:16]
        lines.append(f"* [{short}](./leaderboard/{short}.json): {entry.checked} checks matched{left}")
    return "\n\n" + "\n".join(lines) if lines else " none."


def markdown(rows: Iterable[Row]) -> str:
    """All boards, those of the same samples under one heading, in the order in which they come.

    Args:
        rows: of any boards, in any order.

    Returns:
        sections of a page.

    Example:
        >>> from dataclasses import replace
        >>> board = Board("two images", "a line", "L2 1", "PGD", "accuracy")
        >>> low = Row(board=board, method="A", robust=1.0, source="s", date="d")
        >>> text = markdown([low, replace(low, method="B", robust=9.0)])
        >>> text.index("| B |") < text.index("| A |")
        True
    """
    boards: dict[Board, list[Row]] = defaultdict(list)
    for row in rows:
        boards[row.board].append(row)
    groups: dict[tuple[str, str], list[Board]] = defaultdict(list)
    for board in boards:
        groups[board.data, board.model].append(board)
    parts = []
    for (data, model), found in groups.items():
        parts += [f"## {plain_text(data)}", f"{plain_text(model)}."]
        for board in found:
            title = plain_text(f"{board.radius}: {board.attack}, {board.score}")
            parts += [f"### {title}", *_board(ranked(boards[board]))]
    return "\n\n".join(parts)


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The best worst case first; what was not attacked, and constant answers, last."""

    def place(row: Row) -> tuple[bool, bool, float, float, str, str]:
        robust, clean = row.robust, row.clean
        return (not row.ranked, robust is None, -(robust or 0.0), -(clean or 0.0), row.method, row.settings)

    return sorted(rows, key=place)


def _board(rows: Sequence[Row]) -> list[str]:
    shown = {head: value for head, value in COLUMNS.items() if any(value(row) != NONE for row in rows)}
    heads = ["", "method", "settings", *shown, "trainings", "source", "note"]
    right = [False, False, False, *(head != "verdict" for head in shown), True, False, False]
    lines = [heads, ["---:" if figure else "---" for figure in right]]
    for number, row in enumerate(rows, 1):
        rank = "–" if not row.ranked or row.robust is None else str(number)
        link = f"[{row.date}](./{row.source})"
        texts = [plain_text(row.method), plain_text(row.settings)]
        lines.append(
            [rank, *texts, *(value(row) for value in shown.values()), str(row.runs), link, plain_text(row.note)]
        )
    parts = ["\n".join("| " + " | ".join(line) + " |" for line in lines)]
    if missing := [head for head in COLUMNS if head not in shown]:
        parts.append(f"{NONE.capitalize()} here: {', '.join(missing)}.")
    return [*parts, _commands(rows)]


def _commands(rows: Sequence[Row]) -> str:
    """Each command once, with the methods it made where there are several."""
    made: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        made[_command(row)].append(plain_text(row.method + (f" ({row.settings})" if row.settings else "")))
    if len(made) == 1:
        return f"Made by {next(iter(made))}."
    return "Made by:\n\n" + "\n".join(f"* {command}: {'; '.join(methods)}" for command, methods in made.items())


def _command(row: Row) -> str:
    """On one line; a run file has several and stays where it is kept."""
    if "\n" in row.command:
        return f"the run file in [{row.source}](./{row.source})"
    return (
        f"`{row.command}`"
        if row.command and "`" not in row.command
        else plain_text(row.command) or "a command not kept"
    )

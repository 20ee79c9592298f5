"""``monai-adv methods``: which defences there are, and the settings of one.

The list is read from the files of the methods, whose entries are plain literals: importing them means importing torch.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monai_adv.cli.recommend import Question, answers, commands, name_of, remarks, warnings_in
from monai_adv.errors import InputError

if TYPE_CHECKING:
    from monai_adv.defenses.method import Method

FIRST = 5
"""Of a recommendation, how many are shown."""
FOLDER = Path(__file__).parents[1] / "defenses"
FAMILIES = {
    "adversarial": "Adversarial training",
    "early_stop": "Attacks that stop early, or grow",
    "margins": "A radius for every sample",
    "ensembling": "Soft labels and teachers",
    "cheap": "Cheap",
    "dual": "Clean and attacked images together",
    "gradient": "Without attacked images",
    "smoothing": "For a smoothed, certified model",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``methods`` to the command line."""
    parser = subparsers.add_parser("methods", help="list the defences, the settings of one, or which one to take")
    parser.add_argument("name", nargs="?", help="a defence; default: list all")
    which = parser.add_argument_group("which one")
    which.add_argument("--recommend", action="store_true", help="rank them by what was measured, for what follows")
    which.add_argument("--task", choices=("classification", "segmentation"), help="what the network does")
    which.add_argument("--start", choices=("trained", "scratch"), help="from a trained model, or from random weights")
    which.add_argument("--samples", type=int, metavar="N", help="training images, or cases of a segmentation")
    which.add_argument("--budget", type=float, metavar="B", help="price in plain trainings, at most")
    which.add_argument("--may-lose", type=float, metavar="POINTS", help="of the clean score, at most")
    which.add_argument("--all", action="store_true", help=f"not only the first {FIRST}, and what speaks against others")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table or the method.

    Returns:
        0.

    Raises:
        InputError: there is no method of that name, or a question that cannot be answered.
    """
    console = Console()
    asked = {name: getattr(args, name) for name in ("task", "start", "samples", "budget", "may_lose")}
    if args.recommend:
        _recommend(console, args.name, args.all, **asked)
    elif given := [name for name, value in asked.items() if value is not None]:
        raise InputError.of("--" + given[0].replace("_", "-"), asked[given[0]], "given beside --recommend")
    elif args.name is None:
        _print_all(console)
    else:
        from monai_adv.defenses import method  # imports torch

        _print_one(console, method(args.name))
    return 0


def declared() -> list[dict[str, Any]]:
    """The entries of all methods as they stand in the files: name, family, idea, paper, state, cost, not_for."""
    entries = [entry for file in sorted(FOLDER.glob("*.py")) for entry in _entries(file)]
    if metadata.entry_points(group="monai_adv.defenses"):
        from monai_adv.defenses import METHODS

        known = {entry["name"] for entry in entries}
        entries += [vars(m) for m in METHODS.values() if m.name not in known]
    order = list(FAMILIES)
    return sorted(entries, key=lambda entry: (order.index(entry["family"]), entry["name"].lower()))


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["METHOD"]:
            call = node.value
            assert isinstance(call, ast.Call)
            code = (None, "presets", "most", "harmless")
            literal = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg not in code}
            yield {"name": ast.literal_eval(call.args[0]), "not_for": {}, **literal}


def _print_all(console: Console) -> None:
    entries = declared()
    width = max(len(entry["name"]) for entry in entries)
    for family, title in FAMILIES.items():
        table = Table(box=box.SIMPLE, pad_edge=False, expand=True, title=title, title_justify="left")
        table.add_column("method", width=width)
        for head, ratio in (("trains on", 6), ("forwards per sample", 3), ("paper", 4)):
            table.add_column(head, ratio=ratio)
        for entry in entries:
            if entry["family"] == family:
                only = "".join(f"; not for {task}" for task in entry["not_for"])
                only += "".join(f"; not recommended for {task}" for task in entry.get("not_recommended", {}))
                table.add_row(*map(escape, (entry["name"], entry["idea"] + only, entry["cost"], entry["paper"])))
        console.print(table)
    console.print("A clean step costs 3 forwards per sample; K is the setting `steps`.", highlight=False)
    console.print("Settings, presets and price of one, as a number: monai-adv methods IMA", highlight=False)


def _recommend(console: Console, name: str | None, everything: bool, **asked: Any) -> None:
    if name is not None:
        raise InputError.of("name", name, "none beside --recommend")
    if asked["task"] is None:
        raise InputError.of("--task", None, "classification or segmentation", "say what the network does")
    question = Question(**asked)
    entries = declared()
    found = answers(question, warnings_in(entries))
    for title, fits in (("What fits, the best first", True), ("What speaks against the others", False)):
        rows = [answer for answer in found if fits is not bool(answer.against)]
        if not fits and not everything:
            console.print(f"{len(rows)} others do not fit: --all says why.\n" if rows else "")
            continue
        table = Table(box=box.SIMPLE, pad_edge=False, title=title, title_justify="left")
        for head in ("method", "measured", "on", *(() if fits else ("but",))):
            table.add_column(head, min_width=12)
        for answer in rows if everything else rows[:FIRST]:
            plain = answer.row.experiment
            cells = [name_of(answer.row), answer.figures, f"{plain.data}, {plain.threat}: docs/results/{plain.page}"]
            table.add_row(*map(escape, [*cells, *(() if fits else ("; ".join(answer.against),))]))
        console.print(table if rows else "No method that was measured fits.", highlight=False)
        if fits and rows:
            more = "" if everything or len(rows) <= FIRST else f" ({len(rows) - FIRST} more fit: --all)"
            console.print(escape(f"The first of them{more}:"), *map(escape, commands(rows[0].row)), "", sep="\n",
                          highlight=False, soft_wrap=True)  # fmt: skip
    for entry in entries:
        if question.task in entry.get("not_recommended", {}):
            console.print(escape(f"{entry['name']}: {entry['not_recommended'][question.task]}."), highlight=False)
    for remark in [*remarks(question), "Few data sets and short trainings: a start, not a verdict. Then measure yours: "
                   "monai-adv evaluate"]:  # fmt: skip
        console.print(escape(remark), highlight=False)


def _print_one(console: Console, of: Method) -> None:
    from monai_adv.cli.method_tables import facts, preset_rows, setting_rows

    console.print(f"[bold]{of.name}[/] trains on {of.idea}.", highlight=False)
    for fact in facts(of):
        console.print(escape("  " + fact.replace("`", "")), highlight=False)
    for heads, rows in ((("setting", "default", "meaning", "allowed"), setting_rows(of.settings)),
                        (("preset", "sets"), preset_rows(of))):  # fmt: skip
        table = Table(box=box.SIMPLE, pad_edge=False, header_style="bold")
        for number, head in enumerate(heads):
            table.add_column(head, no_wrap=number == 0, ratio=3 if head in ("meaning", "sets") else None)
        for row in rows:
            table.add_row(*(escape(cell.replace("`", "")) for cell in row))
        if table.rows:
            console.print(table)

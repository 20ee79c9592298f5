"""The registry as Markdown, for docs/methods.

``python -m monai_adv.cli.method_tables docs/methods`` writes it between the marks ``<!-- overview -->``,
``<!-- which one -->``, ``<!-- common settings -->`` or ``<!-- method: NAME -->`` and ``<!-- end -->`` of every page
there; what stands outside the marks is written by hand.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_type_hints

from monai_adv.cli.recommend import which_one
from monai_adv.defenses.method import Method, TaskName
from monai_adv.defenses.registry import METHODS, method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.price import price_line
from monai_adv.settings import Settings, choices

TASKS: tuple[TaskName, ...] = ("classification", "segmentation")
_BLOCK = re.compile(r"<!-- (overview|which one|common settings|method: (\w+)) -->\n.*?<!-- end -->", re.DOTALL)


def overview() -> str:
    """All methods, a row each."""
    rows = [[f"[{m.name}]({m.family}.md#{m.key})", m.idea, m.cost] for m in METHODS.values()]
    limits = [
        f"{', '.join(names)} not {word}for {task}"
        for task in TASKS
        for word, names in (
            ("", [m.name for m in METHODS.values() if task in m.not_for]),
            ("recommended ", [m.name for m in METHODS.values() if task in m.not_recommended]),
        )
        if names
    ]
    return "\n\n".join([
        table(["method", "trains on", "forwards per sample"], rows),
        f"All are for {' and '.join(TASKS)}, but: {'; '.join(limits)}.",
    ])  # fmt: skip


def which() -> str:
    """Which method to take, for some questions."""
    warned = {m.name: {str(task): why for task, why in m.not_recommended.items()} for m in METHODS.values()}
    heads = ["you have", "and want", "take", "measured on", "under attack", "clean", "times the plain training"]
    return table(heads, which_one(warned))


def details(of: Method) -> str:
    """What is to be known of one method beside its row in the overview: paper, limits, settings, names of presets."""
    head = [f"`{_name(of)}`" + (f", after {of.paper}." if of.paper else "."), *_limits(of)]
    common, own = _settings(of.settings)
    head.append(f"[Common settings](README.md#common-settings): {common}.")
    if of.presets:
        head.append(f"Presets: {', '.join(f'`{name}`' for name in of.presets)}.")
    parts = ["\n".join(f"* {fact}" for fact in head), *([_settings_table(own)] if own else [])]
    return "\n\n".join(parts)


def facts(of: Method) -> list[str]:
    """Sentences: paper, cost, memory, trainers, what it cannot do."""
    return [
        *([f"Source: {of.paper}."] if of.paper else []),
        f"Cost: {of.cost} forwards per sample and step (a clean step: 3); K is `steps`.",
        *prices(of),
        f"Keeps {of.state}." + (" Batches must say which samples they hold." if of.defense.needs_ids else ""),
        f"In nnU-Net and MONAI: `{of.trainer}`; in a loop of your own: `{_name(of)}`.",
        *_limits(of),
    ]


def prices(of: Method) -> list[str]:
    """What a training says of its price before it starts, with the defaults and with ``preset: finetune``."""
    names = of.settings.names()
    given = {"the defaults": {}, "preset finetune": of.presets.get("finetune")}
    return [
        f"Price with {what}: "
        + price_line(of, of.settings(**{n: v for n, v in values.items() if n in names})).removeprefix("Price: ")
        for what, values in given.items()
        if values is not None
    ]


def _name(of: Method) -> str:
    return f"{of.defense.__module__}.{of.defense.__name__}"


def _limits(of: Method) -> list[str]:
    return [
        *([] if of.defense.eager_only is None else [f"Not compiled: {of.defense.eager_only}"]),
        *(f"Not for {task}: {why}" for task, why in of.not_for.items()),
        *(f"Not recommended for {task}: {why}." for task, why in of.not_recommended.items()),
    ]


def _settings(section: type[Settings]) -> tuple[str, list[list[str]]]:
    """Which settings are what they are for most methods, but for a default, in words; and rows of the others."""
    rows, common = setting_rows(section), {row[0]: row for row in setting_rows(AttackSettings)}
    own = [row for row in rows if row[0] not in common or row[2:] != common[row[0]][2:]]
    same = {row[0]: row[1] for row in rows if row not in own}
    left_out = ", ".join(name for name in common if name not in same)
    defaults = [f"{name} is {default}" for name, default in same.items() if default != common[name][1]]
    return "; ".join([f"all but {left_out}" if left_out else "all", *defaults]), own


def preset_rows(of: Method) -> list[list[str]]:
    """Name and settings of each preset."""
    return [[f"`{name}`", ", ".join(f"{k} {_shown(v)}" for k, v in values.items()) or "the defaults"]
            for name, values in of.presets.items()]  # fmt: skip


def setting_rows(section: type[Settings]) -> list[list[str]]:
    """Name, default, meaning and what is allowed of each setting of a section."""
    hints = get_type_hints(section)
    return [[f"`{f.name}`", _shown(f.default), f.metadata["help"], f.metadata["allowed"] or _allowed(hints[f.name])]
            for f in dataclasses.fields(section)]  # fmt: skip


def settings_table(section: type[Settings]) -> str:
    """The settings of a section, a row each, for a page. Ranges of numbers are said by the commands and in errors."""
    return _settings_table(setting_rows(section))


def _settings_table(rows: Iterable[list[str]]) -> str:
    return table(["setting", "default", "meaning"], map(_brief, rows))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    head, *body = ["| " + " | ".join(line) + " |" for line in (heads, *rows)]
    return "\n".join([head, "|" + "---|" * len(heads), *body])


def refreshed(page: str) -> str:
    """A page with its generated blocks as the code is now."""

    def block(found: re.Match[str]) -> str:
        whole: dict[str, Callable[[], str]] = {
            "overview": overview,
            "which one": which,
            "common settings": lambda: settings_table(AttackSettings),
        }
        text = whole[found[1]]() if found[2] is None else details(method(found[2]))
        return f"<!-- {found[1]} -->\n{text}\n<!-- end -->"

    return _BLOCK.sub(block, page)


def _brief(row: list[str]) -> list[str]:
    """A setting without its range, but for what is said of one number in it, or the words to choose from."""
    *known, meaning, allowed = row
    if remark := re.search(r" \(.+:.+\)$", allowed):
        return [*known, meaning + remark[0]]
    words = [word for word in allowed.split(", ") if word not in ("true", "false", "none")]
    to_choose = len(words) > 1 and all(re.fullmatch(r"[a-z_]+", word) for word in words)
    unsaid = to_choose and not set(words) <= set(re.findall(r"\w+", meaning))
    return [*known, f"{meaning}: {', '.join(f'`{w}`' for w in words)}" if unsaid else meaning]


def _allowed(hint: Any) -> str:
    return "true, false" if hint is bool else ", ".join(map(_shown, choices(hint)))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    for path in Path(sys.argv[1]).glob("*.md"):
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")

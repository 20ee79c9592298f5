"""Run steps in a child process, so that even one that kills Python gives an answer.

A broken binary extension does not raise, it takes the interpreter with it. The child writes one JSON line
before and one after each step; a step that began and never ended is the one that died.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Steps = Mapping[str, Callable[[], Any]]

# An installed command does not search the current folder, `python -c` does: leave it out.
_CHILD = "import sys; sys.path[:] = filter(None, sys.path); from monai_adv import probe; probe.child()"


@dataclass(frozen=True)
class Outcome:
    """What one step returned (any JSON value), or the sentence that says why it did not."""

    value: Any = None
    error: str = ""


def run_steps(steps: str, timeout: float = 120.0) -> dict[str, Outcome]:
    """Run every step of a table in one child process, in order; a failing step does not stop the next.

    Args:
        steps: where the table lives, as ``"module:ATTRIBUTE"``.
        timeout: seconds after which the child is stopped.

    Returns:
        The outcome per step. Steps after one that killed the child are missing; a child that could not even
        begin has the one entry ``"start"``.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "steps.jsonl")
        command = [sys.executable, "-c", _CHILD, steps, str(log)]
        try:
            process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
            end = f"Python died with exit code {process.returncode}"
            last_words = process.stderr.strip().splitlines()[-1:]
        except subprocess.TimeoutExpired:
            end, last_words = f"no answer within {timeout:.0f} seconds", []
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
    death = ": ".join([end, *last_words])
    outcomes: dict[str, Outcome] = {}
    for name, value, error in map(json.loads, lines):
        outcomes[name] = Outcome(value, death if error is None else error)
    return outcomes or {"start": Outcome(error=death)}


def child() -> None:
    """The child's side of ``run_steps``: log ``[name, value, error]`` before and after each step.

    The table and the log are the two words of the command line; the error is null while a step runs.
    """
    steps, log = sys.argv[1:]
    with open(log, "a", encoding="utf-8") as lines:

        def write(name: str, value: object, error: str | None) -> None:
            lines.write(json.dumps([name, value, error]) + "\n")
            lines.flush()

        table: Steps = pkgutil.resolve_name(steps)
        for name, step in table.items():
            write(name, None, None)
            try:
                write(name, step(), "")
            except (Exception, SystemExit) as error:
                write(name, None, one_line(error))


def one_line(error: BaseException) -> str:
    """``"ImportError: no such thing"``: the kind and the first line of what an exception says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])

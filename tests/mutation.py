"""Do the tests notice a changed core? One small change of the code at a time, against the tests of its file.

    python -m tests.mutation [--each 12] [--seed 0] [FILE ...]

prints the changes that no test noticed (survivors). Changed are comparisons, ``+ - * /``, numbers, True and False,
``and`` and ``or``, ``not`` and signs, in a copy of the package; not what is only said (docstrings, messages, hints).
"""

from __future__ import annotations

import argparse
import ast
import copy
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import processes
from tests.places import ROOT

CORE = {
    "monai_adv/threats.py": ["test_threats", "test_clip_range"],
    "monai_adv/attacks/pgd.py": ["test_pgd"],
    "monai_adv/attacks/ascent.py": ["test_pgd", "test_early_stops"],
    "monai_adv/tasks/dice_score.py": ["test_segmentation_task", "test_absent_classes"],
    "monai_adv/defenses/ima.py": ["test_ima"],
    "monai_adv/defenses/margins.py": ["test_margins", "test_ima"],
    "monai_adv/statistics.py": ["test_statistics", "test_losses", "test_ima"],
    "monai_adv/metrics/statistics.py": ["test_evaluation_statistics"],
    "monai_adv/metrics/two_groups.py": ["test_subgroups"],
    "monai_adv/metrics/segmentation.py": ["test_nnunet_evaluation"],
}
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
SAID = ("InputError", "warn", "setting")


def changed(node: ast.AST) -> ast.AST | None:
    """The node with its one change, or None where there is nothing to change."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.Compare) and type(new.ops[0]) in COMPARISONS:
        new.ops[0] = COMPARISONS[type(new.ops[0])]()
    elif isinstance(new, (ast.BinOp, ast.AugAssign)) and type(new.op) in OPERATORS:
        new.op = OPERATORS[type(new.op)]()
    elif isinstance(new, ast.BoolOp):
        new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, (ast.Not, ast.USub)):
        return new.operand
    elif isinstance(new, ast.Constant) and isinstance(new.value, (bool, int, float)):
        new.value = not new.value if isinstance(new.value, bool) else new.value + 1
    else:
        return None
    return new


def code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below this one that compute something."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(SAID):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from code(child)


def mutants(source: str) -> list[tuple[int, str, str, str]]:
    """Line, what it said, what it says now, and the whole changed text, for each possible change."""
    found = []
    for node in code(ast.parse(source)):
        new = changed(node)
        if new is not None and isinstance(node, ast.expr | ast.stmt):
            lines = source.splitlines(keepends=True)
            start = sum(len(line.encode()) for line in lines[: node.lineno - 1]) + node.col_offset
            end = sum(len(line.encode()) for line in lines[: (node.end_lineno or 0) - 1]) + (node.end_col_offset or 0)
            text = source.encode()
            after = ast.unparse(new) if isinstance(node, ast.stmt) else f"({ast.unparse(new)})"
            whole = (text[:start] + after.encode() + text[end:]).decode()
            found.append((node.lineno, text[start:end].decode(), after, whole))
    return found


def noticed(folder: Path, file: str, timeout: float) -> bool:
    """Whether the tests and examples of the file fail in the copy in ``folder``, or do not end in time."""
    tests = [str(path) for name in CORE[file] for path in (folder / "tests").rglob(f"{name}.py")]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--doctest-modules"]
    words = [sys.executable, "-m", "pytest", *options, *tests, file]
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return processes.run(words, cwd=folder, env=variables, timeout=timeout).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(CORE), help="of the core; default: all that have tests here")
    parser.add_argument("--each", type=int, default=12, help="changes per file, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    processes.use_server()
    multiprocessing.set_forkserver_preload([*processes.LIBRARIES, "pytest", "hypothesis.strategies"])
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        for part in ("monai_adv", "nnunet_trainers", "tests", "pyproject.toml"):
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copied(ROOT / part, Path(temporary, part))
        for file in options.files:
            path = Path(temporary, file)
            source = path.read_text()
            path.write_text("raise SystemError\n")
            if not noticed(Path(temporary), file, 600):
                raise SystemExit(f"the tests of {file} do not import it from the copy")
            path.write_text(source)
            started = time.monotonic()
            if noticed(Path(temporary), file, 3600):
                raise SystemExit(f"the tests of {file} fail as it is")
            timeout = 60 + 10 * (time.monotonic() - started)
            possible = mutants(source)
            drawn = random.Random(options.seed).sample(possible, min(options.each, len(possible)))
            left = []
            for line, before, after, whole in sorted(drawn):
                path.write_text(whole)
                if not noticed(Path(temporary), file, timeout):
                    left.append(f"  {file}:{line}: {before} -> {after}")
            path.write_text(source)
            print(f"{file}: {len(drawn)} of {len(possible)} changes, {len(left)} survived", *left, sep="\n", flush=True)
            survivors += len(left)
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())

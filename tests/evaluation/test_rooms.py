"""The rooms of the evaluation: each imports only what stands before it, so that there is no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.places import ROOT

ROOMS = ("models", "certify", "checks", "search", "figures", "evidence", "report", "run")
"""From the bottom to the top. Files beside the rooms are what all of them use, and the doors."""

HOSTS = ("tasks", "attacks", "metrics", "networks", "defenses", "certificates", "variations", "engines")
"""What the evaluation uses, and what therefore knows nothing of it."""


def imported(file: Path) -> set[str]:
    """The modules that a file names in its imports, those inside functions too."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return whole | {f"{node.module}.{alias.name}" for node in parts for alias in node.names}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_from_above(room: str) -> None:
    above = ROOMS[ROOMS.index(room) + 1 :]
    files = list((ROOT / "monai_adv" / "evaluation" / room).rglob("*.py"))
    assert len(files) > 1
    for file in files:
        for name in imported(file):
            assert not name.startswith(tuple(f"monai_adv.evaluation.{other}" for other in above)), (file.name, name)


@pytest.mark.parametrize("package", HOSTS)
def test_what_is_measured_does_not_know_the_evaluation(package: str) -> None:
    for file in (ROOT / "monai_adv" / package).rglob("*.py"):
        assert not any(name.startswith("monai_adv.evaluation") for name in imported(file)), file.name

"""The registry: a method is one file with its entry; other packages add theirs by an entry point."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from monai_adv.cli.methods import FAMILIES, declared
from monai_adv.defenses import METHODS
from monai_adv.defenses.method import Family
from monai_adv.defenses.sat import METHOD, SAT
from monai_adv.errors import InputError
from tests import processes
from tests.places import ROOT

MINE = """
from monai_adv.defenses import Method
from monai_adv.defenses.standard import Standard

class Mine(Standard):
    pass

METHOD = Method(
    "{name}", Mine, family="cheap", idea="what I like", paper="", state="nothing", cost="3", most=lambda s: 3
)
"""
SHOW = "from monai_adv.defenses import METHODS; print([m.name for m in METHODS.values() if m.family == 'cheap'])"


def test_every_method_comes_from_its_own_file() -> None:
    assert len(METHODS) >= 25
    assert len({m.defense.__module__ for m in METHODS.values()}) == len(METHODS)
    assert METHODS["sat"] is METHOD
    assert METHOD.defense is SAT


def test_an_entry_is_checked() -> None:
    with pytest.raises(InputError, match="family: received 'margin', allowed is one of adversarial"):
        dataclasses.replace(METHOD, family="margin")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name: received 'My method'"):
        dataclasses.replace(METHOD, name="My method")


@pytest.mark.parametrize(
    ("name", "entry", "shown", "warned"),
    [
        ("Mine", "mine:METHOD", "['FGSMRS', 'FGSMSDI', 'FreeAT', 'Mine']", None),
        ("sat", "mine:METHOD", "['FGSMRS', 'FGSMSDI', 'FreeAT']", "there is a method sat already"),
        ("Mine", "mine:Mine", "['FGSMRS', 'FGSMSDI', 'FreeAT']", "mine:Mine is no monai_adv.defenses.Method"),
        ("Mine", "absent:METHOD", "['FGSMRS', 'FGSMSDI', 'FreeAT']", "No module named 'absent'"),
    ],
)
def test_another_package_adds_a_method(tmp_path: Path, name: str, entry: str, shown: str, warned: str | None) -> None:
    (tmp_path / "mine.py").write_text(MINE.format(name=name))
    information = tmp_path / "mine-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[monai_adv.defenses]\nmine = {entry}\n")
    places = os.pathsep.join([str(tmp_path), str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": places}
    found = processes.run([sys.executable, "-c", SHOW], env=variables, cwd=tmp_path, check=True)
    assert found.stdout.strip() == shown
    assert ("is left out" in found.stderr) == (warned is not None)
    assert (warned or "") in found.stderr


def test_the_list_on_the_terminal_is_the_registry() -> None:
    """It is read from the files, without importing them."""
    shown = [
        (e["name"], e["family"], e["idea"], e["paper"], e["state"], e["cost"], dict(e["not_for"])) for e in declared()
    ]
    told = [(m.name, m.family, m.idea, m.paper, m.state, m.cost, dict(m.not_for)) for m in METHODS.values()]
    assert shown == told
    assert tuple(FAMILIES) == get_args(Family)


def test_the_list_needs_no_torch(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from monai_adv.cli import main; main(['methods']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert "IMA" in capfd.readouterr().out

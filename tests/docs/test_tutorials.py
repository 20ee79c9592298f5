"""Tutorials run as they stand: their cells raise nothing, and assert what they show."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

nbformat = pytest.importorskip("nbformat", reason="jupyter is not installed")
nbclient = pytest.importorskip("nbclient", reason="jupyter is not installed")
pytest.importorskip("ipykernel", reason="jupyter is not installed")

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@pytest.mark.nightly
@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))  # our commands
    notebook = nbformat.read(file, 4)
    assert sum("assert " in cell.source for cell in notebook.cells) >= 1  # one that asserts nothing shows nothing
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_outputs_are_kept_for_the_site(file: Path) -> None:
    for cell in nbformat.read(file, 4).cells:
        kinds = [output.output_type for output in cell.get("outputs", [])]
        assert "error" not in kinds

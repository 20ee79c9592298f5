"""The three lines in a real notebook kernel: progress while it runs, the result at the end, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="jupyter is not installed")
nbclient = pytest.importorskip("nbclient", reason="jupyter is not installed")
pytest.importorskip("ipykernel", reason="jupyter is not installed")

DATA = """\
import torch, monai_adv
from torch import nn
network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
with torch.no_grad():
    network[1].weight.copy_(torch.stack([torch.zeros(16), torch.full((16,), 1 / 16)]))
    network[1].bias.copy_(torch.tensor([0.0, -0.5]))
images = torch.full((60, 1, 4, 4), 0.6)  # 0.1 away from the threshold, a brightness of 0.5
images[:12] = 0.8  # 0.3 away
labels = torch.ones(60, dtype=torch.long)
"""
LINES = """\
results = monai_adv.evaluate(
    network, images, labels, norm="linf", eps=[0.05, 0.2], box=(0, 1), attacks="quick", name="mean")
results
"""


@pytest.fixture(scope="module")
def cells() -> list[list[dict[str, Any]]]:
    """Outputs of: the data, the three lines, the frame, the figure, the worst image."""
    notebook = nbformat.v4.new_notebook()
    sources = [DATA, LINES, "results.frame().dtypes.to_dict()", "results.plot()", "results.worst('30')"]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


def test_the_result_is_shown(cells: list[list[dict[str, Any]]]) -> None:
    """At 0.05 all are right, at 0.2 the 12 bright ones alone."""
    shown = cells[1][-1]
    assert shown["output_type"] == "execute_result"
    assert "mean keeps 20 % of its accuracy at L-inf 0.2" in shown["data"]["text/plain"]
    assert "mean: figures not fully checked" in shown["data"]["text/plain"]
    assert "<td>mean</td><td>100.0</td><td>100.0</td><td>20.0</td>" in shown["data"]["text/html"]
    assert "<b>mean keeps 20 % of its accuracy at L-inf 0.2" in shown["data"]["text/html"]


def test_nothing_but_progress(cells: list[list[dict[str, Any]]]) -> None:
    assert cells[0] == []
    *progress, _ = cells[1]
    assert progress  # bars, as widgets where there are some
    for output in progress:
        text = output.get("text", "") or output["data"]["text/plain"]
        assert all(re.match("reading|attacking", line.strip()) for line in re.split("[\r\n]+", text) if line.strip()), (
            text
        )
    assert all(len(outputs) == 1 for outputs in cells[2:])


def test_frame_figure_and_picture(cells: list[list[dict[str, Any]]]) -> None:
    types = cells[2][0]["data"]["text/plain"]
    assert types.count("float64") == 2
    figure, worst = cells[3][0]["data"], cells[4][0]["data"]
    assert {"image/png", "text/plain"} <= figure.keys()
    assert "image/png" in worst
    assert "accuracy 100.0 before and 0.0 after the attack" in worst["text/plain"]

"""The page in a real browser: nothing wider than a telephone, tables that sort by keyboard, values at the points."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.report import curves, pictures
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.store import read_evaluation
from tests.planted_evaluation import dice_score, folder_of, plant

BROWSER = next(
    (found for name in ("chromium", "google-chrome", "chromium-browser") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")

WIDTHS = (390, 1280)
LONG = "IMATrainer__nnUNetPlans__3d_fullres"
ASK = """
<script>
addEventListener("load", () => {
  const found = {width: innerWidth, page: document.documentElement.scrollWidth};
  const table = document.querySelector(".sortable"), buttons = [...table.querySelectorAll("th button")];
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  found.names = {start: names()};
  for (const button of [buttons[0], buttons[1], buttons[1]]) {
    button.focus();
    found.focused = document.activeElement === button;
    button.click();
    found.names[button.textContent + " " + button.parentElement.getAttribute("aria-sort")] = names();
  }
  const scroller = [...document.querySelectorAll(".scroll")].find((box) => box.scrollWidth > box.clientWidth);
  if (scroller) {
    const name = scroller.querySelector("tbody td"), before = name.getBoundingClientRect().left;
    scroller.scrollLeft = 100;
    found.moved = name.getBoundingClientRect().left - before;
  }
  found.text = Math.min(...[...document.querySelectorAll(".curve text:not(.value)")].map((text) =>
    text.getBoundingClientRect().height));
  found.points = document.querySelectorAll(".curve .point").length;
  found.hidden = getComputedStyle(document.querySelector(".point .value")).display;
  parent.document.body.dataset.found = JSON.stringify(found);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        for module in (curves, pictures):
            patch.setattr(module, "DPI", 30)
        clean = [dice_score(f"patient_{n}", 0.8 + 0.02 * n) for n in (10, 9, 2)]
        scores = [dice_score(s.case, 0.5) for s in clean]
        levels = [f"l2-{eps}" for eps in (1, 2, 5, 10, 15)]
        write_report(folder_of(folder, plant(LONG, clean, {(k, "APGD-CE"): scores for k in levels}), pictures=True))
    kept = read_evaluation(folder)
    write_report(
        folder, replace(gather(folder), evaluation=replace(kept, run_file="dataset_dir: " + "/a_long_name" * 9))
    )
    text = (folder / "report.html").read_text(encoding="utf-8")
    asked = html.escape(text.replace("</body>", f"{ASK}</body>"))
    for width in WIDTHS:  # in a frame: a window of its own is never as narrow as a telephone
        framed = f'<body><iframe width="{width}" height="900" frameborder="0" srcdoc="{asked}"></iframe></body>'
        (folder / f"{width}.html").write_text(framed, encoding="utf-8")
    return folder


def look(folder: Path, width: int) -> dict[str, Any]:
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,1000",
        "--dump-dom",
    ]
    words += [f"--user-data-dir={folder / str(width)}", (folder / f"{width}.html").as_uri()]
    seen = subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=120, check=True).stdout
    found = seen.split('data-found="', 1)[1].split('"', 1)[0]
    answers: dict[str, Any] = json.loads(html.unescape(found))
    return answers


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(page: Path, width: int) -> None:
    found = look(page, width)
    assert found["page"] == found["width"] == width
    assert found["names"] == {
        "start": ["patient_10", "patient_9", "patient_2"],
        "patient ascending": ["patient_2", "patient_9", "patient_10"],
        "unchanged ascending": ["patient_2", "patient_9", "patient_10"],
        "unchanged descending": ["patient_10", "patient_9", "patient_2"],
    }
    assert found["focused"]
    assert found["points"] == 2 * 6 + 6  # the worst case; for the model its attack as well
    assert found["hidden"] == "none"
    assert found["text"] > 9
    if width == 390:
        assert found["moved"] == 0  # the first column stays in sight

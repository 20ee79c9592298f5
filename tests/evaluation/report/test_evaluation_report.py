"""The report from planted records: its numbers are the ones computed by hand, and nothing breaks the page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation import store
from monai_adv.evaluation.checks.probed import TrainedAgainst
from monai_adv.evaluation.checks.verdict import Verdict
from monai_adv.evaluation.described import StageEntry
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.figures.sentences import opening, robustness
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Level, Record, levels
from monai_adv.evaluation.report import curves, pictures
from monai_adv.evaluation.report import page as report
from monai_adv.evaluation.report.as_text import axis_name, duration, p_value, percent, points
from monai_adv.evaluation.report.curves import chains, repetitions
from monai_adv.evaluation.report.inline_svg import inline_svg
from monai_adv.evaluation.report.page import _settings_of, write_report
from monai_adv.evaluation.report.pictures import draw, largest_change
from monai_adv.evaluation.report.worst_cases import worst_cases_of
from monai_adv.metrics import statistics
from monai_adv.metrics.score import Score
from tests import planted_models
from tests.planted_evaluation import dice_score, folder_of, label_score, picture, plant, probed


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Small figures and short bootstraps: what is tested does not depend on them."""
    for module in (curves, pictures):
        monkeypatch.setattr(module, "DPI", 30)
    monkeypatch.setattr(statistics, "RESAMPLES", 199)


NASTY = "<script>alert(1)</script>&\"'/../$x_1$ ünï"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """What a browser would see: nesting is checked, tables become rows of text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.stack.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.stack):
            self.text.append(data)
        if {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += data

    @property
    def plain(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))

    def row(self, *start: str) -> list[str]:
        """The first row whose cells begin so."""
        cells = [[re.sub(r"\s+", " ", c).strip() for c in row] for row in self.rows]
        return next(row for row in cells if row[: len(start)] == list(start))


def _page(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def _segmentation(model="IMA", shift=0.0, names="abcdefgh"):
    clean = [dice_score(n, 0.8 + 0.01 * i) for i, n in enumerate(names)]

    def attacked(base):
        return [dice_score(n, base + shift + 0.02 * i) for i, n in enumerate(names)]

    return plant(
        model, clean,
        {(key, attack): attacked(base)
         for key, lower in (("l2-5", 0.0), ("l2-15", 0.25), ("linf-0.1", 0.2))
         for attack, base in (("white noise", 0.7), ("APGD-CE", 0.5 - lower), ("SegPGD", 0.45 - lower),
                              ("Square", 0.6 - lower))},
    )  # fmt: skip


def test_numbers_on_the_page_are_those_of_the_records(tmp_path):
    page = _page(folder_of(tmp_path, _segmentation(), probes={"IMA": probed()}))
    # clean: 0.80 ... 0.87; SegPGD at L2 5: 0.45 ... 0.59; noise 0.70 ... 0.84
    assert page.row("unchanged")[2] == "83.5"
    row = page.row("L2 5", "77.0")
    assert (row[2], row[4], row[5], row[6]) == ("52.0", "52.0", "45.0 a", "8")
    low, high = (float(v) for v in row[3].split(" to "))
    assert 48 < low < 50
    assert 54 < high < 56
    assert page.row("L2 15")[2] == "27.0"
    assert page.row("SegPGD", "everything")[2:] == ["52.0", "27.0", "32.0"]
    assert page.row("worst case", "")[2:] == ["52.0", "27.0", "32.0"]
    # per class at L2 5: anterior min(1, 2v), posterior max(0, 2v - 1); HD95 10 (1 - v)
    values = 0.45 + 0.02 * np.arange(8)
    anterior, posterior = np.minimum(1, 2 * values).mean(), np.maximum(0, 2 * values - 1).mean()
    assert page.row("anterior", "unchanged")[2:] == ["100.0", "–", "100.0", "1.6", "8 of 8"]
    row = page.row("", "L2 5")
    assert [row[2], *row[4:]] == [f"{100 * anterior:.1f}", "90.0", "4.8", "8 of 8"]
    low, high = (float(v) for v in row[3].split(" to "))
    assert 90 <= low < 100 * anterior < high <= 100
    assert any(r[2].strip() == f"{100 * posterior:.1f}" for r in page.rows if len(r) == 7)
    # every attack by itself, with its interval, its worst patient, and its classes
    row = page.row("", "SegPGD")
    assert [row[2], *row[4:]] == ["52.0", "45.0 a", f"{100 * anterior:.1f}", f"{100 * posterior:.1f}"]
    low, high = (float(v) for v in row[3].split(" to "))
    assert 48 < low < 52 < high < 56
    assert "L2 radius 5 (= 0.104 RMS per voxel), no box" in page.row(
        "L2 5", "L2 radius 5 (= 0.104 RMS per voxel), no box"
    )


def test_a_radius_in_hu_is_rms_for_l2_and_the_largest_change_for_linf():
    assert axis_name(Level("l2", 21, "raw"), "SD") == "root mean square change per voxel, in units of the image files"
    assert axis_name(Level("linf", 21, "raw"), "SD") == "L-inf radius, in units of the image files"
    assert axis_name(Level("l2", 5, "norm"), "SD (MRI)") == "L2 radius, in SD"


@pytest.mark.parametrize(("per_voxel", "warns"), [(0.104, False), (0.3, True)])
def test_the_page_says_what_a_model_was_trained_against(tmp_path, per_voxel, warns):
    trained = TrainedAgainst(norm="l2", words=f"L2, {per_voxel} RMS per voxel", per_voxel=per_voxel)
    probes = probed(trained=trained)
    page = _page(folder_of(tmp_path, _segmentation(), probes={"IMA": probes}))
    assert f"It was trained against L2, {per_voxel} RMS per voxel" in page.plain
    assert ("the largest radius measured, L2 5, is 35 % of the one it was trained with" in page.plain) == warns


def test_the_page_begins_with_the_verdict_and_a_sentence_for_everybody(tmp_path):
    page = _page(folder_of(tmp_path, _segmentation(), probes={"IMA": probed()}))
    said = (
        "IMA Measurement: ✓ figures reliable Robustness: ✗ not robust IMA keeps 62 % of its clean score at L2 5 "
        "(more than half), 32 % at L2 15 (less than half), 38 % at L-inf 0.1 (less than half). "
        "On unchanged scans its mean Dice is 83.5 %. Changes made to do harm, of about 1.2 % "
        "of the intensity range per voxel (L2 5), bring it down to 52.0 % (worst patient 45.0 %); random noise of that "
        "size leaves 77.0 %. Changes of L2 15 leave 27.0 %, random noise 77.0 %."
    )
    assert page.plain.replace("\xa0", " ").index(said) < page.plain.index("What was done")


def test_verdict_and_reasons(tmp_path):
    honest = _page(folder_of(tmp_path / "a", _segmentation(), probes={"IMA": probed()}))
    assert "IMA Measurement: ✓ figures reliable" in honest.plain
    assert "none of 10 checks" in honest.plain
    masked = _page(folder_of(tmp_path / "b", _segmentation(), probes={"IMA": probed(zero_samples=0.4)}))
    assert "IMA Measurement: ✗ figures not reliable" in masked.plain
    assert "Do not trust these figures: gradients are zero." in masked.plain
    assert "Look for rounding" in masked.plain
    unknown = _page(folder_of(tmp_path / "c", _segmentation()))
    assert "IMA Measurement: ? figures not fully checked" in unknown.plain
    few = _page(folder_of(tmp_path / "d", _segmentation(names="abcde"), probes={"IMA": probed()}))
    assert "IMA Measurement: ? not enough measured" in few.plain
    assert "too little was measured to say more: 5 patients of at least 6." in few.plain


def test_the_page_needs_nothing_from_outside(tmp_path):
    folder = folder_of(tmp_path, _segmentation() + _segmentation("plain", -0.1), pictures=True)
    page = _page(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1  # sorts the patients
    assert "<script src" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    sources = [value for _, name, value in page.attributes if name in ("src", "srcset", "data", "action", "poster")]
    assert len(sources) == 2 * 3  # worst cases
    assert text.count("<svg") == 2 + 4  # curves of the page and of each model
    assert text.count("<style") == 1  # none of the curves has one, it would be that of the page
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    links = [value for _, name, value in page.attributes if name == "href"]
    assert links
    assert all(v[1:] in page.ids for v in links)
    assert len(page.ids) == len(set(page.ids))
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_worst_cases_are_shown_at_one_radius_for_all_models(tmp_path):
    """Means at L2 5, L2 15 and L-inf 0.1: weak 42, 17, 22; strong 62, 37, 42; half of the clean score is 41.75."""
    folder = folder_of(tmp_path, _segmentation("weak", -0.1) + _segmentation("strong", 0.1), pictures=True)
    results = gather(folder)
    assert report.telling_level(results.models[:1], results.levels).key == "l2-5"
    shown = worst_cases_of(folder, results)
    assert {p.level for pictures in shown.values() for p in pictures} == {"L-inf 0.1"}
    assert [p.case for p in shown["weak"]] == ["a", "b", "c"]
    assert (shown["weak"][0].before, shown["weak"][0].after) == ("Dice 80.0 %", "Dice 15.0 %")


def test_odd_names_are_text_and_nothing_else(tmp_path):
    records = _segmentation(NASTY, names=[NASTY, *"bcdefgh"])
    folder = folder_of(
        tmp_path, records, pictures=True, problems=[NASTY], classes=["anterior", "posterior"], space=NASTY, unit=NASTY
    )
    page = _page(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39;" in text
    assert f"45.0 {NASTY}" in page.row("L2 5", "77.0")
    assert not list(tmp_path.parent.glob("x_1*"))


def test_csv_and_json_carry_the_same_numbers(tmp_path):
    folder = folder_of(tmp_path, _segmentation(names=[NASTY, *"bcdefgh"]))
    write_report(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    records = store.read_records(folder)
    assert len(rows) == sum(len(r.own) for r in records) + 3 * 8
    one = next(r for r in rows if (r["patient"], r["level"], r["attack"]) == (NASTY, "l2-5", "SegPGD"))
    assert (one["norm"], float(one["eps"]), one["unit"], one["family"]) == ("l2", 5.0, "norm", "white-box")
    assert float(one["score"]) == 0.45
    assert (float(one["dice anterior"]), float(one["dice posterior"])) == (0.9, 0.0)
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    model = content["models"][0]
    assert model["summaries"]["l2-5"]["mean"] == pytest.approx(0.52)
    assert model["summaries"]["l2-5"]["lowest_case"] == NASTY
    assert model["verdict"]["word"] == "not fully checked"
    assert {f["name"] for f in model["flags"]} >= {"black-box", "unbounded"}
    lists = {"probabilities": (), "absent": (), "false_positives": ()}
    assert [Score(**s | lists) for s in content["records"][1]["own"]] == list(records[1].own)


def test_the_tables_for_machines_have_a_row_per_level_attack_and_class(tmp_path):
    folder = folder_of(tmp_path, _segmentation(names=[NASTY, *"bcdefgh"]))
    write_report(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "tables.csv").read_text(encoding="utf-8"))))
    assert len(rows) == (1 + 3 * 5) * (2 + 2 * 2)
    found = {(r["level"], r["attack"], r["class"], r["measure"]): r for r in rows}
    whole = found["l2-5", "SegPGD", "all", "mean Dice"]
    assert (float(whole["value"]), float(whole["lowest"])) == pytest.approx((0.52, 0.45))
    assert (whole["lowest_patient"], whole["count"], whole["eps"]) == (NASTY, "8", "5.0")
    assert 0.48 < float(whole["low"]) < 0.5 < 0.54 < float(whole["high"]) < 0.56
    anterior = found["l2-5", "worst case", "anterior", "mean Dice"]
    assert float(anterior["value"]) == pytest.approx(np.minimum(1, 2 * (0.45 + 0.02 * np.arange(8))).mean())
    assert float(found["", "clean", "posterior", "median HD95 in mm"]["value"]) == pytest.approx(1.65)


def test_what_is_not_defined_says_so(tmp_path):
    clean = [dice_score("a", 0.8), Score("b", math.nan, {"anterior": math.nan, "posterior": math.nan}, {})]
    low = [dice_score("a", 0.0), Score("b", math.nan, {"anterior": math.nan, "posterior": math.nan}, {})]
    folder = folder_of(tmp_path, plant("IMA", clean, {("l2-5", "APGD-CE"): low}))
    page = _page(folder)
    row = page.row("L2 5", "–")
    assert (row[2], row[3], row[6]) == ("0.0", "–", "1 + 1 not defined")
    assert ("td", "title", "1 case: too few for an interval") in page.attributes
    assert page.row("", "L2 5")[2:] == ["0.0", "–", "0.0", "not defined", "0 of 1"]
    assert "they have no Dice, before an attack or after it, and are in none of the means" in page.plain
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["models"][0]["rows"]["l2-5"][0]["values"]["hd95"] is None
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    assert {r["score"] for r in rows if r["patient"] == "b"} == {""}


def test_patients_without_foreground_alone_have_a_page(tmp_path):
    """A curve without a point: nothing is drawn, and nothing fails."""
    empty = [Score(case, math.nan, {"anterior": math.nan, "posterior": math.nan}, {}) for case in "ab"]
    page = _page(folder_of(tmp_path, plant("IMA", empty, {("l2-5", "APGD-CE"): empty})))
    assert "No score under attack is known yet." in page.plain
    assert page.row("L2 5", "–")[6] == "0 + 2 not defined"


def test_broken_outputs_and_unusable_files_are_counted(tmp_path):
    records = [Record(**{**vars(r), "broken": 2 * bool(r.level), "dead": 1 * bool(r.level)}) for r in _segmentation()]
    folder = folder_of(tmp_path, records, problems=("case_9: label values 7, allowed are 0 to 2",))
    store.Store(folder).add_problem("IMA", "h", "unreadable image")
    page = _page(folder)
    count = 7 * 3 * 4  # a patient that could not be used is in no figure
    assert f"NaN or infinite outputs on {2 * count} attacked inputs" in page.plain
    assert f"a zero gradient on {count} of {count} attacked inputs" in page.plain
    assert "IMA: case_9: label values 7" in page.plain
    assert "IMA, h: unreadable image" in page.plain


def test_an_evaluation_that_stopped_half_way_says_so(tmp_path):
    records = [r for r in _segmentation() if r.case != "h" or r.attack != "Square"]
    folder = folder_of(tmp_path, records)
    assert gather(folder).models[0].unfinished == ("h",)
    assert "Not finished. IMA: 1 case still to do." in _page(folder).plain


def test_nothing_attacked_yet(tmp_path):
    page = _page(folder_of(tmp_path, plant("IMA", [dice_score("a", 0.8)], {})))
    assert "1 patient, nothing attacked yet" in page.plain
    assert page.row("unchanged")[2:] == ["80.0", "–", "80.0", "80.0 a", "1"]
    assert "No radius has been measured yet." in page.plain


def test_several_models_are_compared_in_words(tmp_path):
    probes = {"IMA": probed(), "plain": probed(unbounded={"l2": 0.5})}
    page = _page(folder_of(tmp_path, _segmentation("plain", -0.1) + _segmentation(), probes=probes))
    assert page.row("worst-case Dice in %")[1:] == ["unchanged", "L2 5", "L2 15", "L-inf 0.1"]
    assert page.row("plain", "83.5")[1:] == ["83.5", "42.0", "17.0", "22.0"]
    assert page.row("IMA", "83.5")[1:] == ["83.5", "52.0", "27.0", "32.0"]
    row = page.row("L2 5", "+10.0")
    # every case differs by the same 0.1 up to rounding: the smallest p of 8 pairs, 2 / 2**8, times three tests
    assert row[3:6] == ["8 / 0 of 8", "0.008", "0.023"]
    higher = "IMA has the higher Dice than plain; chance alone would rarely give such a difference."
    assert f"L2 5, L2 15, L-inf 0.1: {higher}" in page.plain
    assert "unchanged: No test: the two models score the same on every case" in page.plain
    assert "Not reliable: plain. Comparisons with it mean nothing until that is settled." in page.plain


def _classification(count=20):
    def answers(probability):
        return [label_score(f"i{k}", k % 2, (1 - p, p)) for k in range(count) for p in [probability(k)]]

    clean = answers(lambda k: 0.9 if k % 2 else 0.2)
    attacked = answers(lambda k: 0.1 if k in (1, 3, 5) else 0.9 if k % 2 else 0.8 if k == 0 else 0.2)
    records = plant("net", clean, {("linf-0.01", "apgd-ce"): attacked})
    return [Record(**{**vars(r), "case": "group 1"}) for r in records]


def test_a_classifier_gets_its_own_tables(tmp_path):
    records = _classification()
    one = [
        Record("net", "group 1", level, attack, *([tuple(s for r in records if r.level == level for s in r.own)] * 2))
        for level, attack in (("", "clean"), ("linf-0.01", "apgd-ce"))
    ]
    folder = folder_of(tmp_path, one, unit="intensities in [0, 1]", settings={"box": (0.0, 1.0)})
    page = _page(folder)
    row = page.row("L-inf 0.01", "–")
    assert row[2:] == ["80.0", "58.4 to 91.9", "20"]
    # 7 of 10 found, 9 of 10 cleared; F1 = 14 / (14 + 3 + 1); what is ranked under attack is the attack's work
    assert page.row("L-inf 0.01", "80.0")[2:] == ["70.0", "90.0", f"{1400 / 18:.1f}", "–"]
    assert "Positive class: malignant" in page.plain
    assert "2 classes: the DLR losses are not defined" in page.plain
    assert "No voxel leaves the range from 0.0 to 1.0." in page.plain


def test_natural_corruptions_are_a_table_of_their_own(tmp_path):
    records = _segmentation()
    for severity, loss in (("1", 0.05), ("3", 0.2)):
        records += [
            Record("IMA", n, severity, "corruption:bias_field", (dice_score(n, 0.8 - loss),), (dice_score(n, 0.1),),
                   settings={"meaning": "smooth shading"})
            for n in "abcdefgh"
        ]  # fmt: skip
    page = _page(folder_of(tmp_path, records))
    assert page.row("bias field") == ["bias field", "75.0", "60.0", "smooth shading"]
    assert page.row("L2 5", "77.0")[2] == "52.0"  # no part of the worst case


def test_many_classes_do_not_widen_the_table_of_attacks(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, _segmentation())
    assert _page(folder).row("Dice in %", "attack")[2:] == [
        "mean", "95 % interval", "worst patient", "anterior", "posterior",
    ]  # fmt: skip
    monkeypatch.setattr(report, "MOST_COLUMNS", 1)
    page = _page(folder)
    assert page.row("Dice in %", "attack")[2:] == ["mean", "95 % interval", "worst patient"]
    assert len(page.row("", "SegPGD")) == 5


def test_settings_are_words(tmp_path):
    phase = {"attack": "Phase", "steps": 20, "loss": "balanced_masked_cross_entropy", "multiple": 1.0}
    settings = {"attack": "Relay", "phases": [phase, {**phase, "loss": None}], "until": "lowest", "box": None}
    stage = StageEntry(name="relay", family="white-box", settings=settings)
    assert _settings_of(stage) == (
        "Relay: phases [steps 20, loss balanced masked cross entropy, multiple 1; steps 20, multiple 1], until lowest"
    )


def test_cost_settings_and_versions_stand_on_the_page(tmp_path):
    folder = folder_of(tmp_path, _segmentation(), settings={"attacks": "quick", "cases": 8})
    page = _page(folder)
    assert page.row("predicted, from the first cases")[-1] == "10 min"
    assert page.row("measured")[1:] == ["5 000", "4 000", "11 min"]
    for words in ("seed7", "torch2.15.0", "the first 8", "“Quick” is a first look", "100.000 % of its radius"):
        assert words in page.plain.replace("seed 7", "seed7").replace("torch 2", "torch2"), words


def test_from_the_command_to_the_page(tmp_path):
    """Two real models in one call; the inputs of one of them are quantised."""
    models = [f"{planted_models.__file__}:{name}" for name in ("honest", "quantised_input")]
    radii = ["--norm", "l2", "--unit", "norm", "--eps", "1", "3"]
    words = ["--attacks", "quick", *radii, "--device", "cpu", "-y", "-o", str(tmp_path)]
    assert main(["evaluate", "--factory", models[0], "--factory", models[1], *words]) == 3
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "honest Measurement: ? not enough measured Robustness: " in page.plain
    assert re.search(
        r"planted Measurement: ✗ figures not reliable Robustness: .* Do not trust these figures: [^.]*are zero",
        page.plain,
    )
    assert "Not reliable: planted. Comparisons with it mean nothing until that is settled." in page.plain
    assert "on 100.0 % of the attacked inputs" in page.plain
    found = gather(tmp_path)
    keys = ("", "l2-1", "l2-3")
    for model in found.models:
        shown = [percent(model.summaries[key].mean) for key in keys]
        assert page.row(model.name, shown[0])[1:] == shown
    honest, masked = (m.summaries for m in found.models)
    assert all(honest[key].mean < masked[key].mean for key in keys[1:])  # what looks more robust is the masked one


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="not the folder of an evaluation"):
        write_report(tmp_path)


def test_curves_are_written_one_per_norm(tmp_path):
    folder = folder_of(tmp_path, _segmentation("a seed 0") + _segmentation("a seed 1", -0.1))
    write_report(folder)
    names = {p.name for p in folder.glob("*.png")}
    norms = ("l2", "linf")
    assert names == {f"{kind}-{n}.png" for kind in ("curve", "attacks-1", "attacks-2") for n in norms}
    assert all(matplotlib.image.imread(folder / n).std() > 0 for n in names)
    groups = chains(gather(folder).levels)
    assert [[level.eps for level in chain] for chain in groups] == [[5.0, 15.0], [0.1]]


def test_the_points_of_a_curve_tell_their_values(tmp_path):
    """Clean 83.5, SegPGD 52.0 and 27.0 (see above); noise 77.0 at both."""
    records = _segmentation(NASTY)
    chain = chains(levels(records))[0]
    drawn = curves.worst_case_curve(records, chain, "segmentation", f"L2 radius, in {NASTY}", "white noise")
    again = curves.worst_case_curve(records, chain, "segmentation", f"L2 radius, in {NASTY}", "white noise")
    assert drawn == again
    found = ElementTree.fromstring(drawn.svg)
    points = [g for g in found.iter("g") if g.get("class") == "point"]
    place = ("unchanged", "L2 5", "L2 15")
    worst, noise = (
        [f"{name}, {where}: {value} %" for where, value in zip(place, values, strict=True)]
        for name, values in ((NASTY, ("83.5", "52.0", "27.0")), (f"{NASTY}, random noise", ("83.5", "77.0", "77.0")))
    )
    assert [g.findtext("title") for g in points] == worst + noise
    assert [g.findtext("text") for g in points] == ["83.5", "52.0", "27.0", "83.5", "77.0", "77.0"]
    described = {e.get("id"): e.text for e in found if e.tag in ("title", "desc")}
    assert found.get("aria-labelledby").split() == list(described)
    assert described["curve-l2-title"].endswith(f"in {NASTY}, worst case for each model")
    assert "unchanged: 83.5 %, L2 5: 52.0 %, L2 15: 27.0 %" in described["curve-l2-desc"]
    assert NASTY in [e.text for e in found.iter("text")]  # the legend, as text
    assert len({e.get("id") for e in found.iter() if e.get("id")}) == sum(e.get("id") is not None for e in found.iter())


def test_a_radius_keeps_the_users_words(tmp_path):
    """Written as a quotient, or named by a bundle whose images have another size; a plain number stays one."""
    words = {"l2-0.285714": "1 at 224 × 224", "linf-0.0313725": "8/255"}
    keys = [*words, "linf-0.1"]
    table = {(key, "APGD-CE"): [dice_score(n, 0.5) for n in "abcdefgh"] for key in keys}
    clean = [dice_score(n, 0.8) for n in "abcdefgh"]
    folder = folder_of(tmp_path, plant("m", clean, table), probes={"m": probed()}, words=words)
    page = _page(folder)
    assert page.row("worst case", "")[2:] == ["50.0"] * 3
    assert page.row("unchanged", "–")
    for name in ("L2 1 at 224 × 224", "L-inf 8/255", "L-inf 0.1"):
        assert page.row(name, "–")[2] == "50.0"
        assert f"62 % of its clean score at {name}" in page.plain or f"62 % at {name}" in page.plain
        assert f"m, {name}: 50.0 %" in page.plain  # at the point of the curve
    assert "0.285714" not in page.plain
    assert "0.0313725" not in page.plain
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    assert {r["eps"] for r in rows if r["level"] == "l2-0.285714"} == {"0.285714"}  # numbers for machines
    assert Level("linf", 8 / 255, words="8/255") == Level("linf", 8 / 255)


def test_a_point_without_a_value_is_no_point():
    figure = Figure()
    figure.subplots().plot([0.0, 1.0, 2.0], [80.0, math.nan, 50.0], marker="o", label="m")
    found = ElementTree.fromstring(inline_svg(figure, "c", "t", {0.0: "clean", 2.0: "L2 2"}))
    assert [g.findtext("title") for g in found.iter("g") if g.get("class") == "point"] == [
        "m, clean: 80.0 %",
        "m, L2 2: 50.0 %",
    ]


def test_models_that_differ_in_their_seed_share_a_curve():
    assert repetitions(["a seed 0", "a seed 1"]) == {"a (2 seeds)": ["a seed 0", "a seed 1"]}
    assert repetitions(["seed 3", "Trainer 2d fold 0"]) == {
        "seed 3": ["seed 3"],
        "Trainer 2d fold 0": ["Trainer 2d fold 0"],
    }


def test_pictures_show_the_difference_on_its_own_scale():
    planted = picture(dice_score("a", 0.5))
    assert largest_change(planted) == pytest.approx(0.1, abs=0.002)
    drawn = matplotlib.image.imread(io.BytesIO(draw(planted, ("anterior", "$x$"), "Dice 90 %", "Dice 50 %")))
    red, blue = drawn[..., 0] - drawn[..., 2] > 0.5, drawn[..., 2] - drawn[..., 0] > 0.5
    assert red.any()
    assert blue.any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (40, 3)])
def test_odd_pictures_are_drawn(shape):
    flat = np.zeros(shape)
    labels = np.ones(shape, int)
    broken = np.full(shape, np.nan)
    for attacked in (flat, broken):
        png = draw(Picture("a", flat, attacked, labels, labels, 0 * labels), ("one",), "", "")
        assert png.startswith(b"\x89PNG")
    assert largest_change(Picture("a", flat, broken)) == 0


def test_three_sentences_compare_like_with_like(tmp_path):
    """At RMS 0.1: 0.42 / 0.8 and 0.04 / 0.8 of the clean Dice, rounded down."""
    clean = [dice_score(n, 0.8) for n in "abcdef"]

    def falls(name, *scores):
        table = {
            (f"l2-{eps}-rms", "APGD-CE"): [dice_score(n, v) for n in "abcdef"]
            for eps, v in zip((0.05, 0.1), scores, strict=True)
        }
        return plant(name, clean, table)

    probes = {n: probed(longer={}) for n in ("IMATrainer", "nnUNetTrainer")}
    results = gather(
        folder_of(tmp_path, falls("IMATrainer", 0.7, 0.42) + falls("nnUNetTrainer", 0.6, 0.04), probes=probes)
    )
    measured, found, follows = opening(results)
    assert (
        measured
        == "The scans (6 patients) were changed on purpose, by at most RMS 0.05, RMS 0.1, to make 2 models err."
    )
    assert found == "IMATrainer keeps 52 % of its Dice at RMS 0.1, nnUNetTrainer 5 %."
    assert follows.endswith("do not rely on nnUNetTrainer where images may be changed on purpose.")
    assert [robustness(m, results.levels).word for m in results.models] == ["partly robust", "not robust"]


def test_a_model_that_falls_is_never_green(tmp_path):
    fallen = [dice_score(n, 0.038) for n in "abcdefgh"]
    records = plant(
        "m",
        [dice_score(n, 0.9) for n in "abcdefgh"],
        {("l2-1", "APGD-CE"): [dice_score(n, 0.89) for n in "abcdefgh"], ("l2-5", "APGD-CE"): fallen},
    )
    results = gather(folder_of(tmp_path, records, probes={"m": probed()}))
    assert robustness(results.models[0], results.levels).tone == "bad"
    trusted = replace(results.models[0], verdict=Verdict("reliable", ()))
    assert robustness(trusted, results.levels).tone == "bad"
    assert robustness(trusted, results.levels[:1]).tone == "good"
    assert robustness(results.models[0], results.levels[:1]).tone == "open"


def test_formats():
    assert [percent(v) for v in (0.5, 0.0, math.nan)] == ["50.0", "0.0", "not defined"]
    assert [points(v) for v in (0.123, -0.123)] == ["+12.3", "−12.3"]
    assert [p_value(v) for v in (0.05, 1e-5, math.nan)] == ["0.050", "< 0.001", "–"]
    assert [duration(v) for v in (1, 89.6, 150, 3600)] == ["1 s", "1 min", "2 min", "1 h 0 min"]

"""``monai-adv card``: known figures between two marks, the rest of the files as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation.evidence.card import BEGIN, END, Card, as_hub_card, into_bundle
from monai_adv.evaluation.evidence.json_entry import with_entry
from tests.planted_evaluation import dice_score, folder_of, plant

CLEAN = [dice_score(f"p{n}", 0.8 + 0.01 * n) for n in range(9)]
LOW = [dice_score(s.case, s.score / 2) for s in CLEAN]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    attacked = {("l2-0.1-rms", "white noise"): CLEAN, ("l2-0.1-rms", "APGD-CE"): LOW}
    return folder_of(tmp_path / "store", plant("net", CLEAN, attacked), unit="units <script> | *of* the image")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    place = tmp_path / "bundle"
    (place / "docs").mkdir(parents=True)
    (place / "configs").mkdir()
    (place / "docs" / "README.md").write_text("# Mine\n\nText.\n\n## After\n")
    (place / "configs" / "metadata.json").write_text(json.dumps({"name": "Mine", "version": "1.0.0", "ä": [1, 2]}))
    return place


def test_a_bundle_gets_figures_and_keeps_the_rest(folder: Path, bundle: Path) -> None:
    readme, metadata = into_bundle(Card.of(folder), bundle)
    text = readme.read_text()
    assert text.startswith("# Mine\n\nText.\n\n## After\n\n" + BEGIN)
    assert "| unchanged | 84.0 (" in text
    assert "| random noise, L2, 0.1 RMS | 84.0 (" in text
    assert "| worst case, L2, 0.1 RMS | 42.0 (" in text
    assert "robustness: **partly robust**" in text  # it keeps half of its Dice
    assert "units \\<script\\> \\| \\*of\\* the image" in text
    assert "backdoor" in text  # among the limits
    assert metadata.read_text().startswith('{"name": "Mine", "version": "1.0.0", "\\u00e4": [1, 2], "robustness": {"')
    content = json.loads(metadata.read_text())
    found = content.pop("robustness")
    assert content == {"name": "Mine", "version": "1.0.0", "ä": [1, 2]}
    clean, worst = found["figures"]
    assert clean["value"] == pytest.approx(0.84)
    assert (worst["norm"], worst["eps"], worst["unit"], worst["cases"]) == ("l2", 0.1, "rms", 9)
    assert worst["value"] == pytest.approx(0.42)
    assert worst["low"] < worst["value"] < worst["high"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{\n  "b": [1, 2]\n}\n', '{\n  "b": [1, 2],\n  "robustness": {\n    "a": 1\n  }\n}\n'),
        ('{\r\n\t"b": {"a": [1,2]}\r\n}', '{\r\n\t"b": {"a": [1,2]},\r\n\t"robustness": {\r\n\t\t"a": 1\r\n\t}\r\n}'),
        ('{"b": {"robustness": 1}}', '{"b": {"robustness": 1}, "robustness": {"a": 1}}'),
        ('{\n "robustness": {"old": [1]},\n "ä": 1.50\n}', '{\n "robustness": {\n  "a": 1\n },\n "ä": 1.50\n}'),
        ("{}", '{"robustness": {"a": 1}}'),
    ],
)
def test_metadata_keep_their_layout(before: str, after: str) -> None:
    """Letter by letter but for the block, which is indented as they are; written again it stays."""
    assert with_entry(before, "robustness", {"a": 1}) == after
    assert with_entry(after, "robustness", {"a": 1}) == after


def test_groups_that_were_compared_are_not_called_untested_and_one_patient_is_one(folder: Path, tmp_path: Path) -> None:
    assert "Measured on 9 patients with" in Card.of(folder).section()
    assert "groups of patients" in Card.of(folder).section()
    table = tmp_path / "patients.csv"
    table.write_text("case,site\n" + "".join(f"p{n},{'AB'[n % 2]}\n" for n in range(9)))
    assert main(["report", str(folder), "--subgroups", str(table)]) == 0
    assert "groups of patients" not in Card.of(folder).section()
    single = folder_of(tmp_path / "one", plant("net", CLEAN[:1], {("l2-0.1-rms", "APGD-CE"): LOW[:1]}))
    assert "Measured on 1 patient with" in Card.of(single).section()


def test_writing_again_changes_nothing_and_new_figures_replace_old_ones(
    folder: Path, bundle: Path, tmp_path: Path
) -> None:
    files = into_bundle(Card.of(folder), bundle)
    first = [file.read_bytes() for file in files]
    into_bundle(Card.of(folder), bundle)
    assert [file.read_bytes() for file in files] == first
    with files[0].open("a") as file:
        file.write("\nWritten after it.\n")
    new = folder_of(tmp_path / "new", plant("net", CLEAN, {("linf-0.2", "APGD-CE"): LOW}))
    text = into_bundle(Card.of(new), bundle)[0].read_text()
    assert "L-inf 0.2" in text
    assert "0.1 RMS" not in text
    assert text.endswith(f"{END}\n\nWritten after it.\n")


def test_the_hub_reads_the_card(folder: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    path = as_hub_card(Card.of(folder), tmp_path / "README.md", "Decathlon Hippocampus")
    card = hub.ModelCard.load(path)
    clean, worst = card.data.eval_results
    assert (worst.task_type, worst.dataset_type, worst.dataset_name) == (
        "image-segmentation", "decathlon-hippocampus", "Decathlon Hippocampus"
    )  # fmt: skip
    assert (clean.metric_type, clean.metric_value, worst.metric_value) == ("dice", 0.84, 0.42)
    assert worst.metric_name == "dice, worst case at L2, 0.1 RMS"
    assert "## Robustness" in card.text


def test_a_card_that_is_there_keeps_its_fields_and_text(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\ntags:\n- mine\nmodel-index:\n- name: old\n---\n# Mine\n\n---\nA line above.\n")
    as_hub_card(Card.of(folder), path, "Data")
    once = path.read_text()
    as_hub_card(Card.of(folder), path, "Data")
    assert path.read_text() == once
    front = yaml.safe_load(once.split("---\n")[1])
    assert (front["license"], front["tags"], front["model-index"][0]["name"]) == ("mit", ["mine"], "net")
    assert "# Mine\n\n---\nA line above.\n\n" + BEGIN in once


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_marks_that_are_broken_are_refused_and_nothing_is_written(folder: Path, bundle: Path, text: str) -> None:
    (bundle / "docs" / "README.md").write_text(text)
    before = (bundle / "configs" / "metadata.json").read_text()
    with pytest.raises(InputError, match="one of each, in this order"):
        into_bundle(Card.of(folder), bundle)
    assert (bundle / "configs" / "metadata.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither --bundle nor -o"),
        (["-o", "x.md"], "--dataset: is missing"),
        (["--dataset", "x", "--bundle", "y"], "-o: is missing"),
        (["--bundle", "nowhere"], "allowed is a bundle, with configs/metadata.json"),
        (["--model", "nett", "--bundle", "y"], "did you mean 'net'?"),
    ],
)
def test_refused(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["card", str(folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_front_matter_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\na: [\n---\ntext\n")
    with pytest.raises(InputError, match="a front matter in YAML"):
        as_hub_card(Card.of(folder), tmp_path / "README.md", "Data")
    assert (tmp_path / "README.md").read_text() == "---\na: [\n---\ntext\n"


def test_what_somebody_wrote_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    """YAML 1.1 makes 90 of 1:30 and 64 of 0100."""
    (tmp_path / "README.md").write_text("---\nlength: 1:30\nbatch: 0100\nrate: 1e-3\n---\ntext\n")
    as_hub_card(Card.of(folder), tmp_path / "README.md", "Data")
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert (front["length"], front["batch"], front["rate"]) == ("1:30", 100, 0.001)


def test_several_models_and_unfinished_ones_are_refused(tmp_path: Path) -> None:
    attacked: Any = {("l2-5", "APGD-CE"): LOW}
    two = folder_of(tmp_path / "two", plant("a", CLEAN, attacked) + plant("b", CLEAN, attacked))
    with pytest.raises(InputError, match="allowed is a or b"):
        Card.of(two)
    assert Card.of(two, "b").model.name == "b"
    half = folder_of(tmp_path / "half", plant("a", CLEAN, attacked), cases=[*(s.case for s in CLEAN), "p9"])
    with pytest.raises(InputError, match="a finished evaluation"):
        Card.of(half)


def test_from_the_command_line(folder: Path, bundle: Path, tmp_path: Path) -> None:
    words = ["--bundle", str(bundle), "-o", str(tmp_path / "card.md"), "--dataset", "Data"]
    assert main(["card", str(folder), *words]) == 0
    assert END in (tmp_path / "card.md").read_text()
    assert END in (bundle / "docs" / "README.md").read_text()

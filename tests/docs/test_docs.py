"""The docs say what the code does."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

import monai_adv
from monai_adv import attacks
from monai_adv.cli import build_parser
from monai_adv.cli.method_tables import refreshed, settings_table
from monai_adv.defenses import METHODS
from monai_adv.defenses.settings import AttackSettings
from monai_adv.engines import run_settings
from monai_adv.evaluation.evidence.glossary import GLOSSARY
from monai_adv.settings import Settings, setting
from monai_adv.tasks import SegmentationSettings
from monai_adv.variations import VARIATIONS
from nnunet_trainers.run_settings import RunSettings
from tests.linear_classifier import problem
from tests.places import ROOT

METHOD_PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
OWN = ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*(ROOT / f"{name}.md" for name in OWN), *SITE])


@pytest.mark.parametrize(
    ("page", "section"),
    [("nnunet", SegmentationSettings), ("nnunet", RunSettings), ("monai", run_settings.RunSettings)],
)
def test_every_setting_of_a_host_is_documented_as_it_is(page: str, section: type[Settings]) -> None:
    table = settings_table(section)
    assert table in (ROOT / "docs" / f"{page}.md").read_text(), f"put this into docs/{page}.md:\n{table}"


def test_a_row_of_a_setting_says_what_cannot_be_guessed() -> None:
    """Words to choose from, where the meaning does not say them, and what one number does; no range of numbers."""

    @dataclasses.dataclass(frozen=True)
    class Made(Settings):
        start: Literal["clean", "ball"] = setting("ball", "first point")
        rule: Literal["paper", "ours"] = setting("ours", "ours: better; paper: as published")
        many: bool = setting(True, "more than one")
        weight: float = setting(1.0, "weight of the term", "a number >= 0 (0: off)")
        share: float = setting(0.5, "a share", "a number in (0, 1)")

    assert settings_table(Made).splitlines()[2:] == [
        "| `start` | ball | first point: `clean`, `ball` |",
        "| `rule` | ours | ours: better; paper: as published |",
        "| `many` | true | more than one |",
        "| `weight` | 1 | weight of the term (0: off) |",
        "| `share` | 0.5 | a share |",
    ]


def test_every_variation_is_documented_with_its_severities() -> None:
    text = (ROOT / "docs" / "variations.md").read_text()
    rows = [
        f"| `{v.key}` | {v.meaning} | {', '.join(v.words(s + 1) for s in range(len(v.levels)))} | {v.source} |"
        for each in VARIATIONS.values() for v in each
    ]  # fmt: skip
    missing = [row for row in rows if row not in text]
    assert not missing, "put these rows into docs/variations.md:\n" + "\n".join(missing)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda p: p.name)
def test_the_registrys_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert refreshed(text) == text, "run: python -m monai_adv.cli.method_tables docs/methods"


@pytest.mark.parametrize("key", METHODS)
def test_every_setting_of_a_method_is_on_its_page_once(key: str) -> None:
    """In a row of its own, or among the common ones, if it is what it is for most methods but for its default."""
    page = (ROOT / "docs" / "methods" / f"{METHODS[key].family}.md").read_text()
    section = page.partition(f"<!-- method: {METHODS[key].name} -->")[2].partition("<!-- end -->")[0]
    said = re.search(r"^\* \[Common settings\]\(.*?\): all(?: but ([^;]*))?(?:; (.*))?\.$", section, re.MULTILINE)
    assert said
    shared = {f.name: f for f in dataclasses.fields(AttackSettings)}
    own = {f.name: f for f in dataclasses.fields(METHODS[key].settings)}
    common = [name for name in shared if name not in re.findall(r"`(\w+)`", said[1] or "")]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(common + rows) == sorted(own)
    assert all(own[name].metadata[key] == shared[name].metadata[key] for name in common for key in ("help", "allowed"))
    differs = {name: str(own[name].default) for name in common if own[name].default != shared[name].default}
    assert dict(re.findall(r"`(\w+)` is ([^;]+)", said[2] or "")) == differs


@pytest.mark.parametrize("key", METHODS)
def test_every_preset_of_a_method_is_named_on_its_page(key: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{METHODS[key].family}.md").read_text()
    section = page.partition(f"<!-- method: {METHODS[key].name} -->")[2].partition("<!-- end -->")[0]
    named = re.search(r"^\* Presets: (.*)\.$", section, re.MULTILINE)
    assert re.findall(r"`(\w+)`", named[1] if named else "") == list(METHODS[key].presets)


@pytest.mark.parametrize("key", METHODS)
def test_every_method_has_its_section(key: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{METHODS[key].family}.md").read_text()
    assert f"## {METHODS[key].name}\n**Idea.**" in page
    assert f"<!-- method: {METHODS[key].name} -->" in page


def test_the_glossary_says_what_the_report_says() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text()
    missing = [word for word, meaning in GLOSSARY.items() if f"## {word}\n{meaning}\n" not in page]
    assert not missing, "put these into docs/glossary.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """What a link may name on a page: its headings, as both the repository's pages and the site write them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.replace("`", "").lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_headings_that_there_are(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", page.read_text()):
        if not target.startswith("api/"):  # whose headings are made from docstrings
            assert anchor in anchors((page.parent / target) if target else page), f"{page.name}: {target}#{anchor}"


def on_the_site(page: Path) -> list[str]:
    """Targets of the links of a page of docs/ on the site, without those within the page."""
    config = SimpleNamespace(repo_url="https://github.com/monai-adv/monai-adv")
    source = SimpleNamespace(file=SimpleNamespace(src_uri=str(page.relative_to(ROOT / "docs"))))
    found = run_path(str(ROOT / "docs" / "site_hooks.py"))["on_page_markdown"](page.read_text(), source, config, None)
    return re.findall(r"\]\(([^)#\s]+)", found)


@pytest.mark.parametrize("page", SITE, ids=lambda p: p.name)
def test_links_on_the_site_lead_to_what_it_has(page: Path) -> None:
    """Pages, pictures and the report are there; data, code and what lies outside of docs/ are in the repository."""
    here = [target for target in on_the_site(page) if not target.startswith("http")]
    left_out = (".csv", ".json", ".py")  # as mkdocs.yml says
    outside = [t for t in here if not (page.parent / t).resolve().is_relative_to(ROOT / "docs")]
    dead = [*outside, *(target for target in here if target.endswith(left_out))]
    assert not dead


def test_a_link_to_data_leads_to_the_repository_however_it_is_written() -> None:
    page = ROOT / "docs" / "results" / "price.md"
    assert "](price.json)" in page.read_text()
    assert "https://github.com/monai-adv/monai-adv/blob/main/docs/results/price.json" in on_the_site(page)


def referenced() -> dict[str, list[str]]:
    """Pages of the reference -> what they name."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    return {page.stem: re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE) for page in pages}


def test_the_reference_names_what_there_is() -> None:
    for names in referenced().values():
        for name in names:
            module, _, attribute = name.rpartition(".")
            assert hasattr(import_module(module), attribute), name


def test_every_attack_and_defence_is_in_the_reference() -> None:
    pages = {page: {name.rpartition(".")[2] for name in names} for page, names in referenced().items()}
    classes = [getattr(attacks, name) for name in attacks.__all__]
    ours = {c.__name__ for c in classes if isinstance(c, type) and issubclass(c, attacks.BaseAttack)}
    assert ours - {"BaseAttack", "Ascent"} <= pages["attacks"]
    assert {m.defense.__name__ for m in METHODS.values()} <= pages["defenses"]


def bash_lines(page: Path) -> list[str]:
    """Commands of a page's bash blocks, continued lines joined, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [command for line in lines for command in line.partition("  # ")[0].split(" && ") if command]


README = ROOT / "README.md"


def test_the_readme_fits_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= 90


COMMANDS = [README, *(ROOT / "docs" / f"{name}.md" for name in ("index", "certificates", "evidence"))]
"""Pages all of whose commands are tried."""


@pytest.mark.parametrize("page", COMMANDS, ids=lambda p: p.name)
def test_commands_are_ones_that_there_are(page: Path) -> None:
    lines = [line for line in bash_lines(page) if line.startswith("monai-adv ") and " ... " not in line]
    ours = [shlex.split(line)[1:] for line in lines]
    assert ours
    for words in ours:
        assert build_parser().parse_args(words).run
    trainers = {f"{m.name}Trainer" for m in METHODS.values()} | {"nnUNetTrainer"}
    assert set(re.findall(r"\b\w+Trainer\b", page.read_text())) <= trainers
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {line.split()[1] for line in bash_lines(page) if line.startswith("make ")} <= set(targets)


def test_the_python_of_certificates_runs() -> None:
    text = (ROOT / "docs" / "certificates.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    network, images, labels = problem(2, (1, 4), count=6)
    names: dict[str, Any] = {"monai_adv": monai_adv, "network": network, "images": images, "labels": labels}
    for block in (blocks[0], blocks[2]):
        exec(block, names)
    assert 0.5 <= names["certificates"].at(0.0) <= 1.0
    found = names["model"].predict(images)
    assert ((found == labels) | (found == -1)).all()


def test_the_readmes_prices_are_those_measured() -> None:
    """Every row of its table, and what each was measured with: the preset, for a budget of about 1."""
    results = ROOT / "docs" / "results"
    flat, solid = (json.loads((results / f"{name}.json").read_text()) for name in ("price", "price_3d"))
    text = re.sub(r"\*\*", "", README.read_text())

    def row(what: str, before: dict[str, float], after: dict[str, float]) -> str:
        attacked, clean = (f"{before[key]:.1f} to {after[key]:.1f}" for key in ("worst", "clean"))
        return f"| {what} | {attacked} | {clean} |"

    smaller = "the same, with the noise of these images as radius (`eps: 0.05`)"
    for what, plain, robust, eps, cases in (
        ("hippocampus, nnU-Net 2D", "plain_2d", "fgsmrs_2d_mirror", 0.1, 8),
        ("hippocampus, nnU-Net 3D (`DualTrainer`)", "plain_3d_wide", "dual_3d_wide_mirror_65", 0.1, 8),
        ("lesions in breast ultrasound, nnU-Net 2D", "plain_busi_more", "fgsmrs_busi_lr02", 0.1, 30),
        (smaller, "plain_busi_more", "fgsmrs_busi_eps05", 0.05, 30),
    ):
        before, after = (flat[job]["measured"]["checkpoint_final.pth"] for job in (plain, robust))
        assert row(what, before, after) in text
        assert len(after["cases"]) == len(before["cases"]) == cases
        assert 0.89 < flat[robust]["budget"] < 1.05
        chosen = {"augmentation": "mirroring"} if "hippocampus" in what else {}  # by the preset, in trainings as short
        preset = METHODS[robust.partition("_")[0]].presets["finetune"]
        assert flat[robust]["job"]["settings"] == {**preset, "eps": eps, **chosen}
    first = [run for run in solid["runs"] if run["cases"] == "first 12 cases" and "share" not in run]
    (monai,) = (run for run in first if run["name"] == "fgsmrs")
    percent = [{"worst": 100 * run["pgd20_rms_0_1"], "clean": 100 * run["clean"]} for run in (first[0], monai)]
    assert row("hippocampus, MONAI 3D", *percent) in text
    assert 0.9 < monai["budget"] < 1.05


def test_the_defences_are_counted_and_named() -> None:
    assert (
        f"the {len(METHODS) - 1} defences (`monai-adv methods`)" in README.read_text()
    )  # all but Standard, which defends nothing
    overview = (ROOT / "docs" / "overview.md").read_text()
    missing = [m.name for m in METHODS.values() if m.name != "Standard" and not re.search(rf"\b{m.name}\b", overview)]
    assert not missing, f"name these in docs/overview.md: {missing}"

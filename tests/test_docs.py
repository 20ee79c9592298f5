"""The docs say what the code does."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest

from monai_adv import attacks
from monai_adv.cli.method_tables import refreshed, settings_table
from monai_adv.defenses import METHODS
from monai_adv.engines import run_settings
from monai_adv.evaluation.evidence.glossary import GLOSSARY
from monai_adv.tasks import SegmentationSettings
from monai_adv.variations import NOT_OFFERED, VARIATIONS
from nnunet_trainers.run_settings import RunSettings

ROOT = Path(__file__).parents[1]
METHOD_PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
OWN = ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")
PAGES = sorted([*(ROOT / f"{name}.md" for name in OWN), *(ROOT / "docs").rglob("*.md")])


def rows() -> list[str]:
    """The settings tables of docs/nnunet.md, a row per setting."""
    return [
        f"| `{f.name}` | {str(f.default).lower() if isinstance(f.default, bool) or f.default is None else f.default} "
        f"| {f.metadata['help']} | {f.metadata['allowed']} |"
        for cls in (SegmentationSettings, RunSettings)
        for f in dataclasses.fields(cls)
    ]


def test_every_setting_is_documented_as_it_is() -> None:
    text = (ROOT / "docs" / "nnunet.md").read_text()
    missing = [row for row in rows() if row not in text]
    assert not missing, "put these rows into docs/nnunet.md:\n" + "\n".join(missing)


def test_the_settings_of_a_run_in_monai_are_documented() -> None:
    table = settings_table(run_settings.RunSettings)
    assert table in (ROOT / "docs" / "monai.md").read_text(), f"put this into docs/monai.md:\n{table}"


def test_every_variation_is_documented_with_its_severities() -> None:
    text = (ROOT / "docs" / "variations.md").read_text()
    rows = [
        f"| `{v.key}` | {v.meaning} | {' · '.join(v.words(s + 1) for s in range(len(v.levels)))} | {v.source} |"
        for each in VARIATIONS.values() for v in each
    ]  # fmt: skip
    missing = [row for row in rows if row not in text]
    assert not missing, "put these rows into docs/variations.md:\n" + "\n".join(missing)
    assert all(f"*{what}* ({why})" in text for each in NOT_OFFERED.values() for what, why in each.items())


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda p: p.name)
def test_the_registrys_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert refreshed(text) == text, "run: python -m monai_adv.cli.method_tables docs/methods"


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

"""Read by mkdocs: pages are written for the repository, where links may lead out of docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()(?![a-z]+:)([^)#\s]+)")  # not those to another site, nor within the page
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc|obj):(<code>)~?")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of docs/, and to data in it, lead to the repository; a file that is not there is an error."""

    def outside(found: re.Match[str]) -> str:
        target = (ROOT / "docs" / Path(page.file.src_uri).parent / found[2]).resolve()
        inside = target.is_relative_to(ROOT / "docs") and target.suffix not in (".json", ".csv")
        if inside:
            return found[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {found[2]}")
        kind = "tree" if target.is_dir() else "blob"
        return f"{found[1]}{config.repo_url.rstrip('/')}/{kind}/main/{target.relative_to(ROOT)}"

    return LINK.sub(outside, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings name things as ``:func:`name```; a page shows the name."""
    return ROLE.sub(r"\1", html)

"""What the package index shows: the README, whose links and pictures have to be absolute there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Read by hatchling, see ``tool.hatch.metadata.hooks.custom`` in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme``; links lead to the files of this version in the repository."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source, tag = metadata["urls"]["Source"], f"v{metadata['version']}"
        text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{source}/raw/{tag}/", text)
        text = re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{source}/blob/{tag}/", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}

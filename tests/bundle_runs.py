"""Run a copy of one of our bundles through MONAI's own workflow, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.bundle.workflows import ConfigWorkflow

from monai_adv.cli.bundle import copy_bundle
from monai_adv.errors import InputError


class BundleRun:
    """A copy of a bundle in a temporary folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.root = copy_bundle(name, folder / name)

    def workflow(self, *configs: str, **overrides: Any) -> ConfigWorkflow:
        """Configs by their names, such as ``train`` and ``phantom``; overrides as on the command line."""
        files = [str(self.root / "configs" / f"{name}.json") for name in configs]
        overrides = {"bundle_root": str(self.root), **overrides}
        return ConfigWorkflow(files, workflow_type="train", logging_file=False, **overrides)  # type: ignore[arg-type]

    def run(self, *configs: str, **overrides: Any) -> ConfigWorkflow:
        """As ``python -m monai.bundle run``."""
        workflow = self.workflow(*configs, **overrides)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow

    def refusal(self, *configs: str, **overrides: Any) -> str:
        """What the error says that ends the run: ours, otherwise its first cause."""
        with pytest.raises(Exception) as caught:  # noqa: PT011 MONAI wraps errors in kinds of its own
            self.run(*configs, **overrides)
        error: BaseException = caught.value
        while not isinstance(error, InputError) and error.__cause__ is not None:
            error = error.__cause__
        return f"{type(error).__name__}: {error}"

"""The demo's own folder, and an environment in which nnU-Net knows no other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from monai_adv.errors import InputError

MARKER = "stages"


class Workplace:
    """Paths below the output folder.

    Raises:
        InputError: the folder cannot be made or written to, or holds something that no demo put there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        try:
            if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / MARKER).is_dir():
                raise InputError.of("--output", str(folder), "a new or empty folder, or one of an earlier demo",
                                    "what is in it could be overwritten")  # fmt: skip
            (self.folder / MARKER).mkdir(parents=True, exist_ok=True)
            with open(self.log, "a", encoding="utf-8"):
                pass
        except OSError as error:
            raise InputError.of(
                "--output", str(folder), "a folder you may write to", f"the system says: {error.strerror}"
            ) from None

    @property
    def log(self) -> Path:
        """Everything that nnU-Net says."""
        return self.folder / "log.txt"

    @property
    def settings(self) -> Path:
        """The settings file of IMATrainer."""
        return self.folder / "ima_settings.yaml"

    def raw(self, *parts: str) -> Path:
        """Below nnUNet_raw."""
        return self.folder.joinpath("nnUNet_raw", *parts)

    def preprocessed(self, *parts: str) -> Path:
        """Below nnUNet_preprocessed."""
        return self.folder.joinpath("nnUNet_preprocessed", *parts)

    def results(self, *parts: str) -> Path:
        """Below nnUNet_results."""
        return self.folder.joinpath("nnUNet_results", *parts)

    def predictions(self, *parts: str) -> Path:
        """Label maps that nnUNetv2_predict writes."""
        return self.folder.joinpath("predictions", *parts)

    @property
    def evaluation(self) -> Path:
        """What ``monai-adv evaluate`` would write, up to its report."""
        return self.folder / "evaluation"

    def slice_file(self, trainer: str) -> Path:
        """The slice of a model that the picture shows."""
        return self.folder / f"slice_{trainer}.npz"

    def environment(self, before: Mapping[str, str]) -> dict[str, str]:
        """``before`` without the user's own nnU-Net and monai-adv settings, with the folders of the demo."""
        from_outside = ("nnUNet_", "MONAI_ADV_")
        kept = ("nnUNet_extTrainer", "MONAI_ADV_NO_DISCOVERY")
        environment = {k: v for k, v in before.items() if k in kept or not k.startswith(from_outside)}
        own = {f"nnUNet_{name}": str(self.folder / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")}
        for path in own.values():
            os.makedirs(path, exist_ok=True)
        # Without worker processes the data come in the same order every time, and on few cores no later.
        return {**environment, **own, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}

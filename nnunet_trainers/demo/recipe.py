"""What the demo does: every number of it, and the settings file that it writes for IMATrainer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from monai_adv.evaluation.records import Level
from monai_adv.evaluation.settings import EvaluationSettings, Version
from monai_adv.first_look.phantom import Phantom

DATASET_ID = 990
DATASET = f"Dataset{DATASET_ID}_Phantom"
CONFIGURATION = "2d"
PLANS = "nnUNetPlansDemo"
FOLD = 0
TRAINERS = ("nnUNetTrainer", "IMATrainer")
ATTACKS: Version = "quick"

_IMA: dict[str, tuple[Any, str]] = {
    "eps": (0.2, "largest margin: RMS change per voxel, in standard deviations of the normalised image"),
    "delta": (0.05, "first margin of every slice, and its growth each time the network withstands the attack"),
    "unit": ("rms", ""),
    "steps": (5, "gradient steps of the attack during training (default 20)"),
    "searches": (4, "halvings in the search for the decision boundary (default 10)"),
    "robust_validation_batches": (1, "validation batches that are attacked after each epoch"),
}


@dataclass(frozen=True)
class Recipe:
    """The defaults fit a CPU with two cores and a few minutes.

    Args:
        radii: of the noise in the evaluation, as RMS change per voxel.
        learning_rate: higher than nnU-Net's 0.01, which suits 250 000 steps.
        features: per stage of the network, instead of nnU-Net's 32 to 512.
    """

    phantom: Phantom = field(default_factory=Phantom)
    batch_size: int = 12
    features: tuple[int, ...] = (8, 16, 32, 64)
    epochs: int = 10
    iterations: int = 25
    validation_iterations: int = 2
    learning_rate: float = 0.05
    radii: tuple[float, ...] = (0.05, 0.1, 0.2)
    seed: int = 0

    @property
    def slice_voxels(self) -> int:
        """Voxels of one input of the network, a slice."""
        return self.phantom.shape[0] * self.phantom.shape[1]

    def l2(self, rms: float) -> float:
        """The L2 norm over a slice of noise with this RMS per voxel."""
        return rms * math.sqrt(self.slice_voxels)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The radii, as the evaluation calls them."""
        return tuple(Level("l2", rms, "rms") for rms in self.radii)

    @property
    def middle(self) -> Level:
        """The radius of the picture."""
        return self.levels[len(self.levels) // 2]

    def evaluation(self, threads: int = 1) -> EvaluationSettings:
        """Settings of the evaluation."""
        return EvaluationSettings(self.levels, ATTACKS, self.seed, threads=threads)

    def ima_settings(self) -> dict[str, Any]:
        """Settings of IMATrainer; the schedule is that of the plain training."""
        return {
            **{name: value for name, (value, _) in _IMA.items()},
            "epochs": self.epochs,
            "iterations": self.iterations,
            "validation_iterations": self.validation_iterations,
            "initial_lr": self.learning_rate,
        }

    def ima_settings_file(self) -> str:
        """The same as a YAML file for a reader: with comments, and the command that uses it."""
        lines = [
            "# Settings of IMATrainer in this demo. A file like this one is all that changes in a training:",
            "#",
            "#   export MONAI_ADV_SETTINGS=ima_settings.yaml",
            f"#   nnUNetv2_train {DATASET_ID} {CONFIGURATION} {FOLD} -tr IMATrainer -p {PLANS} -device cpu",
            "",
        ]
        for name, value in self.ima_settings().items():
            comment = _IMA.get(name, ("", ""))[1]
            lines.append(f"{name}: {value}" + (f"  # {comment}" if comment else ""))
        return "\n".join(lines) + "\n"


def model_folder(trainer: str) -> tuple[str, str]:
    """Where nnU-Net puts the model of a trainer, below nnUNet_results."""
    return DATASET, f"{trainer}__{PLANS}__{CONFIGURATION}"

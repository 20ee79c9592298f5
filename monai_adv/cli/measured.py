"""What each method gave and cost where it was measured: the one table behind ``--recommend`` and docs/methods.

Figures are those of docs/results; tests compare them. Scores in %: mean Dice of volumes, or balanced accuracy (the mean
over the classes). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TaskName = Literal["classification", "segmentation"]
Start = Literal["trained", "scratch"]


@dataclass(frozen=True)
class Experiment:
    """Methods measured side by side.

    Attributes:
        data: in words.
        task, start: of all of them.
        samples: training images (classification) or cases.
        threat: radius and attack.
        clean, robust: scores of the plain model, without an attack and under it.
        page: below docs/results, where it is described.
    """

    data: str
    task: TaskName
    start: Start
    samples: int
    threat: str
    clean: float
    robust: float
    page: str


@dataclass(frozen=True)
class Measured:
    """One method there.

    Attributes:
        method, settings: what differs from the defaults, in words.
        cost: network passes as a multiple of the plain training's.
        clean, robust: scores in %.
    """

    experiment: Experiment
    method: str
    settings: str
    cost: float
    clean: float
    robust: float

    @property
    def lost(self) -> float:
        """Points of the clean score that it costs; below 0: it adds some."""
        return self.experiment.clean - self.clean

    @property
    def given_back(self) -> float:
        """The share of what the attack takes from the plain model that it does not take from this one."""
        plain = self.experiment
        return (self.robust - plain.robust) / (plain.clean - plain.robust)


PRICE_2D = Experiment(
    "Hippocampus MRI, nnU-Net 2D",
    "segmentation",
    "trained",
    176,
    "L2 RMS 0.1 per slice, PGD-20",
    84.4,
    18.2,
    "price.md",
)
PRICE_3D = Experiment(
    "Hippocampus MRI, MONAI UNet 3D", "segmentation", "trained", 176, "L2 RMS 0.1 per volume, PGD-20", 88.9, 0.7,
    "price.md",
)  # fmt: skip
PRICE_NNUNET_3D = Experiment(
    "Hippocampus MRI, nnU-Net 3D", "segmentation", "trained", 176, "L2 RMS 0.1 per volume, PGD-20", 85.5, 6.9,
    "price.md",
)  # fmt: skip
PRICE_WIDE_3D = Experiment(
    "Hippocampus MRI, nnU-Net 3D with wider deep stages", "segmentation", "trained", 176,
    "L2 RMS 0.1 per volume, PGD-20", 87.0, 9.8, "price.md",
)  # fmt: skip
PRICE_BREAST = Experiment(
    "lesions in breast ultrasound, nnU-Net 2D", "segmentation", "trained", 446, "L2 RMS 0.1 per image, PGD-20", 78.3,
    19.8, "price.md",
)  # fmt: skip
LONG_3D = Experiment(
    "Hippocampus MRI, MONAI UNet 3D", "segmentation", "trained", 176, "L2 RMS 0.1 per volume, PGD-20", 86.8, 1.0,
    "bundles.md",
)  # fmt: skip
DEFAULTS_2D = Experiment(
    "Hippocampus MRI, nnU-Net 2D", "segmentation", "trained", 176, "L2 5 per slice, `quick`", 83.4, 6.9,
    "hippocampus.md",
)  # fmt: skip
SCRATCH_2D = Experiment(
    "Hippocampus MRI, nnU-Net 2D", "segmentation", "scratch", 176, "L2 5 per slice, PGD-20", 80.2, 24.5,
    "hippocampus.md",
)  # fmt: skip
BREAST = Experiment(
    "BreastMNIST ultrasound", "classification", "scratch", 546, "L-inf 4/255, PGD-20", 79.8, 1.2, "classification.md"
)
PNEUMONIA = Experiment(
    "PneumoniaMNIST X-ray", "classification", "scratch", 4708, "L-inf 4/255, PGD-20", 72.6, 26.9, "classification.md"
)

_SEGMENTATION = (
    Measured(PRICE_2D, "FGSMRS", "preset: finetune", 0.89, 83.9, 69.1),
    Measured(PRICE_2D, "FGSMRS", "preset: finetune, augmentation: host", 0.92, 83.2, 67.7),
    Measured(
        PRICE_2D,
        "FGSMRS",
        "preset: finetune, augmentation: host, then monai-adv interpolate --share 0.75",
        0.92,
        84.0,
        63.2,
    ),
    Measured(PRICE_2D, "FreeAT", "preset: finetune, augmentation: host", 1.00, 82.4, 69.5),
    Measured(PRICE_2D, "SAT", "preset: finetune, augmentation: host", 1.00, 83.9, 62.8),
    Measured(PRICE_2D, "MIRST", "preset: finetune, augmentation: host", 0.93, 83.8, 63.0),
    Measured(PRICE_2D, "FAT", "preset: finetune, augmentation: host", 1.03, 84.1, 59.2),
    Measured(PRICE_2D, "IMA", "preset: finetune, augmentation: host", 1.00, 84.3, 56.4),
    Measured(PRICE_2D, "MMA", "preset: finetune, augmentation: host", 0.97, 83.5, 55.6),
    Measured(PRICE_2D, "TRADES", "preset: finetune, augmentation: host", 0.93, 84.5, 53.5),
    Measured(PRICE_2D, "FGSMRS", "preset: finetune, augmentation: host, budget: 0.25", 0.23, 82.9, 59.8),
    Measured(PRICE_2D, "FreeAT", "preset: finetune, augmentation: host, budget: 0.25", 0.26, 79.6, 57.2),
    Measured(PRICE_2D, "SAT", "preset: finetune, augmentation: host, budget: 0.25", 0.27, 83.5, 55.6),
    Measured(PRICE_2D, "MIRST", "preset: finetune, augmentation: host, budget: 0.25", 0.27, 83.4, 53.3),
    Measured(PRICE_2D, "FAT", "preset: finetune, augmentation: host, budget: 0.25", 0.25, 83.8, 48.2),
    Measured(PRICE_2D, "TRADES", "preset: finetune, augmentation: host, budget: 0.25", 0.26, 84.1, 45.0),
    Measured(PRICE_2D, "MMA", "preset: finetune, augmentation: host, budget: 0.25", 0.25, 83.7, 45.4),
    Measured(PRICE_2D, "IMA", "preset: finetune, augmentation: host, budget: 0.25", 0.25, 84.2, 44.5),
    Measured(PRICE_3D, "SAT", "preset: finetune, clean_weight: 0.65", 1.00, 86.2, 70.1),
    Measured(PRICE_WIDE_3D, "FGSMRS", "preset: finetune", 1.00, 84.0, 74.9),
    Measured(PRICE_WIDE_3D, "Dual", "preset: finetune, r: 0.5", 1.00, 84.9, 74.3),
    Measured(PRICE_WIDE_3D, "Dual", "preset: finetune", 1.01, 85.5, 72.0),
    Measured(PRICE_WIDE_3D, "SAT", "preset: finetune, clean_weight: 0.6", 1.00, 85.1, 70.9),
    Measured(PRICE_WIDE_3D, "FreeAT", "preset: finetune", 1.00, 82.7, 73.1),
    Measured(PRICE_WIDE_3D, "MIRST", "preset: finetune", 1.01, 83.5, 71.1),
    Measured(PRICE_NNUNET_3D, "SAT", "preset: finetune, augmentation: host, clean_weight: 0.6", 1.00, 83.6, 69.0),
    Measured(PRICE_NNUNET_3D, "FGSMRS", "preset: finetune, augmentation: host", 0.99, 82.9, 74.2),
    Measured(PRICE_NNUNET_3D, "FGSMRS", "preset: finetune, augmentation: host, budget: 0.25", 0.23, 81.6, 68.5),
    Measured(PRICE_BREAST, "FGSMRS", "preset: finetune", 0.95, 67.6, 33.3),
    Measured(PRICE_BREAST, "FGSMRS", "preset: finetune, eps: 0.05", 0.96, 73.2, 36.3),
    Measured(LONG_3D, "IMA", "eps: 0.2, delta: 0.02, steps: 5, searches: 4", 3.3, 83.2, 75.0),
    Measured(DEFAULTS_2D, "SAT", "", 1.27, 78.3, 52.6),
    Measured(DEFAULTS_2D, "FAT", "", 0.67, 81.6, 46.7),
    Measured(DEFAULTS_2D, "MMA", "", 2.4, 83.2, 26.3),
    Measured(DEFAULTS_2D, "IMA", "", 3.8, 84.1, 22.4),
    Measured(DEFAULTS_2D, "TRADES", "", 1.8, 36.9, 20.6),
    Measured(DEFAULTS_2D, "TE", "", 1.6, 23.9, 1.3),
    Measured(SCRATCH_2D, "IMA", "eps: 15, delta: 2, unit: norm", 5.4, 80.4, 51.7),
)

_CLASSIFICATION: Mapping[Experiment, tuple[tuple[str, float, float, float], ...]] = {
    BREAST: (
        ("SAT", 17.0, 66.6, 59.0),
        ("TRADES", 21.0, 67.6, 60.4),
        ("IMA", 22.8, 82.2, 45.3),
        ("RST", 20.0, 73.5, 57.1),
        ("Dual", 20.0, 73.5, 57.4),
        ("GAIRAT", 17.0, 68.9, 34.8),
        ("MART", 20.0, 60.2, 55.3),
        ("DAT", 17.0, 71.0, 60.6),
        ("FAT", 15.8, 73.2, 59.8),
        ("CAT", 6.3, 72.1, 49.2),
        ("ATES", 17.0, 64.0, 58.1),
        ("CustomizedAT", 17.0, 66.7, 57.7),
        ("MMA", 29.6, 77.8, 36.2),
        ("IAAT", 37.9, 75.2, 23.0),
        ("TE", 18.0, 55.5, 51.1),
        ("LBGAT", 24.0, 57.5, 51.8),
        ("FGSMSDI", 7.0, 67.4, 58.4),
        ("FGSMRS", 7.2, 72.1, 58.5),
        ("FreeAT", 24.0, 53.3, 50.0),
        ("MIRST", 31.0, 75.1, 56.8),
        ("ARFL", 20.0, 54.9, 48.1),
        ("DSBN", 20.0, 81.2, 43.3),
        ("GR", 6.0, 50.0, 50.0),
        ("LLR", 25.0, 54.3, 51.5),
    ),
    PNEUMONIA: (
        ("SAT", 17.0, 78.2, 65.4),
        ("TRADES", 21.0, 76.6, 65.4),
        ("IMA", 21.2, 77.6, 55.4),
        ("RST", 20.0, 79.3, 63.6),
        ("Dual", 20.0, 79.2, 63.8),
        ("GAIRAT", 17.0, 84.3, 63.0),
        ("MART", 20.0, 79.1, 66.8),
        ("DAT", 8.9, 79.1, 65.0),
        ("FAT", 16.3, 78.6, 64.4),
        ("CAT", 4.0, 76.6, 57.0),
        ("ATES", 17.0, 78.2, 65.5),
        ("CustomizedAT", 17.0, 77.4, 60.4),
        ("MMA", 29.2, 78.3, 57.4),
        ("IAAT", 32.7, 77.7, 51.6),
        ("TE", 18.0, 76.3, 65.3),
        ("LBGAT", 24.0, 72.0, 63.1),
        ("FGSMSDI", 7.2, 77.8, 64.1),
        ("FGSMRS", 5.5, 79.3, 64.4),
        ("FreeAT", 24.0, 74.4, 63.6),
        ("MIRST", 31.0, 79.3, 64.1),
        ("ARFL", 20.0, 76.5, 60.8),
        ("DSBN", 20.0, 78.9, 62.9),
        ("GR", 6.0, 58.8, 53.3),
        ("LLR", 25.0, 75.6, 62.7),
    ),
}
"""Method, passes per sample (a plain step: 3), balanced clean accuracy, the same under PGD-20."""

_EPOCHS: Mapping[tuple[Experiment, str], float] = {(BREAST, "FreeAT"): 4 / 30, (PNEUMONIA, "FreeAT"): 1 / 4}
"""Epochs as a share of the plain training's, where they were fewer: Free-AT sees each batch eight times."""

MEASURED: tuple[Measured, ...] = (
    *_SEGMENTATION,
    *(
        Measured(experiment, method, "", round(passes / 3 * _EPOCHS.get((experiment, method), 1.0), 2), clean, robust)
        for experiment, rows in _CLASSIFICATION.items()
        for method, passes, clean, robust in rows
    ),
)

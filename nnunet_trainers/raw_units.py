"""Unit and range of a normalised image in the intensities of the files (HU for CT), by the plan's normalisation."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from monai_adv.threats import Beyond

Array = npt.NDArray[Any]
SMALLEST = 1e-8  # nnU-Net divides by no less


def note_raw_units(preprocessor: Any) -> list[float | None]:
    """Let a host's preprocessor note, when it runs, the raw intensity per network unit of each channel.

    Z-scores are of the case itself, and their standard deviation is known only between cropping and normalisation.

    Returns:
        a list that the run fills; None for a channel whose normalisation is not one of nnU-Net's, and empty for a
        preprocessor with another way to normalise.
    """
    units: list[float | None] = []
    normalise = getattr(preprocessor, "_normalize", None)
    if normalise is not None:

        def noting(data: Array, seg: Array, configuration: Any, intensities: dict[str, dict[str, float]]) -> Any:
            units[:] = [
                _raw_unit(scheme, image, seg[0] >= 0 if masked else None, intensities.get(str(c), {}))
                for c, (scheme, masked, image) in enumerate(
                    zip(configuration.normalization_schemes, configuration.use_mask_for_norm, data, strict=True)
                )
            ]
            return normalise(data, seg, configuration, intensities)

        preprocessor._normalize = noting
    return units


def plan_raw_unit(scheme: str, intensities: dict[str, float]) -> float | None:
    """The raw unit if the plan alone fixes it, the same for every case; otherwise None.

    Example:
        >>> plan_raw_unit("CTNormalization", {"std": 210.0}), plan_raw_unit("ZScoreNormalization", {"std": 210.0})
        (210.0, None)
    """
    match scheme:
        case "CTNormalization":
            return max(float(intensities["std"]), SMALLEST)
        case "NoNormalization":
            return 1.0
        case "RGBTo01Normalization":
            return 255.0
        case _:
            return None


def plan_raw_unit_of_all(plan: Any, configuration: Any) -> float | None:
    """The raw unit if the plan fixes the same for all cases and channels.

    Args:
        plan: nnU-Net's PlansManager.
        configuration: its ConfigurationManager.
    """
    intensities = plan.foreground_intensity_properties_per_channel
    schemes = enumerate(configuration.normalization_schemes)
    units = {plan_raw_unit(scheme, intensities.get(str(c), {})) for c, scheme in schemes}
    return units.pop() if len(units) == 1 else None


def plan_range(scheme: str, intensities: dict[str, float]) -> tuple[float, float, Beyond] | None:
    """Lowest and highest value, in network units, that a normalised image can have whatever the file holds.

    Returns:
        the two, and what they mean for voxels at them, see :class:`monai_adv.threats.Threat`: an image for CT was
        clipped to them, so there the file is beyond; that of a colour image ends there itself. None: no such range.

    Example:
        >>> plan_range("CTNormalization", {"mean": 50, "std": 100, "percentile_00_5": -150, "percentile_99_5": 250})
        (-2.0, 2.0, 'keep_ends')
    """
    match scheme:
        case "CTNormalization":
            ends = (float(intensities[f"percentile_{p}"]) - float(intensities["mean"]) for p in ("00_5", "99_5"))
            low, high = (end / max(float(intensities["std"]), SMALLEST) for end in ends)
            return (low, high, "keep_ends") if low < high else None
        case "RGBTo01Normalization":
            return 0.0, 1.0, "keep"
        case _:
            return None


def _raw_unit(scheme: str, image: Array, mask: Array | None, intensities: dict[str, float]) -> float | None:
    match scheme:
        case "ZScoreNormalization":
            return max(float((image if mask is None else image[mask]).std()), SMALLEST)
        case "RescaleTo01Normalization":
            return max(float(image.max() - image.min()), SMALLEST)
        case _:
            return plan_raw_unit(scheme, intensities)

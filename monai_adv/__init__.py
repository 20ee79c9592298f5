"""monai-adv: adversarial and noise robustness for nnU-Net and MONAI models."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from monai_adv.errors import InputError

if TYPE_CHECKING:
    from monai_adv.evaluation.api import evaluate
    from monai_adv.evaluation.certify_api import certify
    from monai_adv.threats import Threat

try:
    __version__ = version("monai-adv")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["InputError", "Threat", "__version__", "certify", "evaluate"]

_NEEDS_TORCH = {
    "Threat": "monai_adv.threats",
    "certify": "monai_adv.evaluation.certify_api",
    "evaluate": "monai_adv.evaluation.api",
}


def __getattr__(name: str) -> object:
    """Import torch only for what needs it: the doctor must start where torch is broken.

    And the command line at once: ``monai-adv --help`` takes a thirtieth of what importing the evaluation does.
    """
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEEDS_TORCH[name]), name)

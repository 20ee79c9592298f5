"""monai-adv: adversarial and noise robustness for nnU-Net and MONAI models."""

from importlib.metadata import PackageNotFoundError, version

from monai_adv.errors import InputError
from monai_adv.threats import Threat

try:
    __version__ = version("monai-adv")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["InputError", "Threat", "__version__"]

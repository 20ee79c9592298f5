"""tqdm's bar as it suits a terminal or a notebook. Without ipywidgets a notebook gets it as text, and no warning."""

from __future__ import annotations

import warnings

from tqdm.std import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["tqdm"]

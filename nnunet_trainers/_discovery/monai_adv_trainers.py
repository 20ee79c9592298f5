"""The one module nnU-Net finds in this folder: it re-exports our trainers.

nnU-Net forgets modules of such a folder after each look-up. A class defined here would get a new identity
every time and could not be pickled; the classes therefore live in ``nnunet_trainers``.
"""

from __future__ import annotations

from nnunet_trainers.trainers import *  # noqa: F403

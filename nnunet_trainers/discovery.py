"""How nnU-Net finds our trainers: a folder named in an environment variable.

At every start of Python, ``monai_adv_nnunet.pth`` in site-packages appends that folder to the variable. The
.pth cannot import this module (it must stay cheap and must survive our removal): it repeats the names below.
"""

from __future__ import annotations

import os

SEARCH_VARIABLE = "nnUNet_extTrainer"
SWITCH_OFF = "MONAI_ADV_NO_DISCOVERY"


def discovery_folder() -> str:
    """The folder to name in ``nnUNet_extTrainer``."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "_discovery")


def search_folders() -> list[str]:
    """The folders ``nnUNet_extTrainer`` names now, in the order nnU-Net searches them."""
    return [folder for folder in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if folder.strip()]


def switched_off() -> bool:
    """Whether the user asked the .pth to do nothing."""
    return os.environ.get(SWITCH_OFF, "0") not in ("", "0")

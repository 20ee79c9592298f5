"""What ``monai-adv doctor`` tries in a child process: does nnU-Net find our trainers, and if not, why?"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterator
from typing import Any

from monai_adv.probe import Steps, one_line
from nnunet_trainers.discovery import discovery_folder, search_folders


def find_trainer() -> dict[str, str]:
    """Look one of our trainers up exactly as ``nnUNetv2_train -tr`` does, and say where it came from."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    name = _our_trainers()[0]
    trainer = recursive_find_trainer_class_by_name(name)
    return {"name": name, "module": trainer.__module__, "file": inspect.getfile(trainer)}


def read_user_folders() -> dict[str, list[Any]]:
    """Import every module in the user's own folders.

    Returns:
        ``broken``: pairs (file, error) of modules that cannot be imported; one is enough to stop nnU-Net.
        ``shadowing``: pairs (file, trainer) where a class of theirs has the name of one of ours.
    """
    from nnunetv2.utilities.find_class_by_name import (
        temporarily_cleanup_imports_from_path,
        temporarily_extend_syspath,
    )

    broken, shadowing = [], []
    for folder in search_folders():
        if os.path.abspath(folder) == discovery_folder() or not os.path.isdir(folder):
            continue
        with temporarily_extend_syspath(folder), temporarily_cleanup_imports_from_path(folder):
            for name, file in _modules(folder):
                try:
                    module = importlib.import_module(name)
                except (Exception, SystemExit) as error:
                    broken.append((file, one_line(error)))
                else:
                    shadowing += [(file, trainer) for trainer in _our_trainers() if _is_theirs(module, trainer)]
    return {"broken": broken, "shadowing": shadowing}


def _modules(folder: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, file) of each module nnU-Net imports below a folder, packages included."""
    for info in pkgutil.iter_modules([folder]):
        if info.ispkg:
            yield from _modules(os.path.join(folder, info.name), f"{prefix}{info.name}.")
        else:
            yield f"{prefix}{info.name}", os.path.join(folder, f"{info.name}.py")


def _is_theirs(module: object, trainer: str) -> bool:
    found = getattr(module, trainer, None)
    return found is not None and not found.__module__.startswith("nnunet_trainers.")


def _our_trainers() -> list[str]:
    from nnunet_trainers.trainers import __all__ as names

    return list(names)


def _import_image_libraries() -> None:
    import timm  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401


def _import_trainer() -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: F401


STEPS: Steps = {
    "import torchvision, timm": _import_image_libraries,
    "import nnU-Net": _import_trainer,
    "user folders": read_user_folders,
    "look-up": find_trainer,
}

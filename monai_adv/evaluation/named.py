"""Functions that the user names, ``package.module:function`` or ``path/to/file.py:function``: naming one runs code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from monai_adv.errors import InputError, did_you_mean, first_cause

ALLOWED = "package.module:function or path/to/file.py:function"


def find(argument: str, word: str, allowed: str = ALLOWED) -> Any:
    """The function of that name; its module is imported.

    Args:
        argument: through which it was named, for the message.
        word: the name.
        allowed: for the message.

    Raises:
        InputError: a word without its parts, a module that cannot be imported or fails, no such function in it.

    Example:
        >>> find("plan", "math:sqrt")(9.0)
        3.0
        >>> find("plan", "math:sqr")
        Traceback (most recent call last):
        monai_adv.errors.InputError: plan: received 'math:sqr', allowed is a function in math; did you mean 'sqrt'?
    """
    place, colon, name = word.rpartition(":")
    if not colon or not place or not name:
        raise InputError.of(argument, word, allowed)
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # of the user's own code
        reason = str(error) if isinstance(error, ImportError | FileNotFoundError) else f"it fails: {first_cause(error)}"
        raise InputError.of(argument, word, allowed, reason) from error
    if not callable(function := getattr(module, name, None)):
        known = [n for n, value in vars(module).items() if inspect.isroutine(value) and not n.startswith("_")]
        raise InputError.of(argument, word, f"a function in {place}", did_you_mean(name, known))
    return function


def absolute(word: str) -> str:
    """With the whole path of a file: a worker may have another current folder."""
    place, _, name = word.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else word


def _from_file(path: Path) -> Any:
    # A name that depends on the path: two files of one name are two modules.
    name = f"monai_adv_named_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

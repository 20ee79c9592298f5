"""The host for any Python code: a function that makes a model."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import inspect
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_adv.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from monai_adv.evaluation.models.protocol import Model

NEEDED = ("name", "kind", "classes", "fingerprint", "space", "unit", "cases", "problems", "load")


@dataclass(frozen=True)
class FactorySource:
    """A function without arguments that returns a model; see :class:`Source`.

    Args:
        function: ``"package.module:function"`` or ``"path/to/file.py:function"``.
        device: the model is moved there by its method ``to``, if it has one.
        box: sets the model's, unless that has one.
    """

    function: str
    device: str = "cpu"
    box: tuple[float, float] | None = None

    def open(self) -> Model:
        """Call the function.

        Raises:
            InputError: it is not found, fails, or returns something else.
        """
        from monai_adv.evaluation.models.fingerprint import code_files
        from monai_adv.evaluation.models.plain import usable_device

        usable_device(self.device)
        try:
            function = self._find()
            model: Any = function()
        except InputError:
            raise
        except Exception as error:
            reason = f"it raised {type(error).__name__}: {error}".rstrip(".")
            raise InputError.of("factory", self.function, "a function that makes a model", reason) from error
        missing = [name for name in NEEDED if not hasattr(model, name)]
        if missing:
            raise InputError.of(
                "factory", self.function, f"a function that returns a model; this one's lacks {', '.join(missing)}",
                "return a Classifier or a Segmenter",
            )  # fmt: skip
        if hasattr(model, "to"):
            model.to(self.device)
        if self.box is not None:
            own = getattr(model, "box", None)
            if own is not None and tuple(own) != self.box:
                raise InputError.of("box", self.box, f"the box {own} of {model.name}, or none")
            model.box = self.box
        with suppress(AttributeError):  # a model of the user's own may know better
            model.files = [*getattr(model, "files", ()), *code_files([function.__module__])]
        found: Model = model
        return found

    def _find(self) -> Any:
        place, colon, name = self.function.rpartition(":")
        allowed = "package.module:function or path/to/file.py:function"
        if not colon or not place or not name:
            raise InputError.of("factory", self.function, allowed)
        try:
            module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        except (ImportError, FileNotFoundError) as error:
            raise InputError.of("factory", self.function, allowed, str(error)) from error
        if not callable(function := getattr(module, name, None)):
            known = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
            raise InputError.of("factory", self.function, f"a function in {place}", did_you_mean(name, known))
        return function


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option of this host."""
    group = parser.add_argument_group("model from any Python code")
    group.add_argument(
        "--factory", action="append", default=[], metavar="MODULE:FUNCTION",
        help="a function that returns a Classifier or a Segmenter, as package.module:function or "
        "file.py:function; may be given several times",
    )  # fmt: skip


def sources(args: argparse.Namespace) -> list[FactorySource]:
    """One source per ``--factory``."""
    return [FactorySource(_absolute(f), args.device, args.box) for f in args.factory]


def _absolute(function: str) -> str:
    """A worker may have another current folder."""
    place, _, name = function.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else function


def _from_file(path: Path) -> Any:
    # A name that depends on the path: two files of one name are two modules.
    name = f"monai_adv_factory_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

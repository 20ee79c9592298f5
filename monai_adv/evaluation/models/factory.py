"""The host for any Python code: a function that makes a model."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_adv.errors import InputError
from monai_adv.evaluation.named import absolute, find

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
            function = find("factory", self.function)
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
    return [FactorySource(absolute(f), args.device, args.box) for f in args.factory]

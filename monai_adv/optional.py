"""Packages that only a part of monai-adv needs, and the sentence that names the extra which brings them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from monai_adv.errors import InputError

EXTRAS = {
    "bundles": ("fire", "ignite", "nibabel", "tensorboard"),
    "dask": ("cryptography", "distributed"),
    "dicom": ("pydicom",),
    "nnunet": ("nnunetv2",),
    "report": ("PIL", "jinja2", "jsonschema", "matplotlib", "pandas"),
    "tracking": ("mlflow", "wandb"),
}
"""Extra -> the packages that it brings, by the names under which they are imported."""


class MissingPackageError(InputError, ImportError):
    """A part of monai-adv is used whose packages are not installed."""

    def __init__(self, message: str, package: str = "") -> None:
        super().__init__(message)
        self.name = package


def require(what: str, *packages: str) -> None:
    """Say before the work begins which packages are missing; nothing is imported.

    Args:
        what: is asked for, in the user's words.
        packages: those that it needs, by the names under which they are imported; each in :data:`EXTRAS`.

    Raises:
        MissingPackageError: the first that is not installed, and the extra that brings it.

    Example:
        >>> require("the report", "importlib")  # of Python itself: never missing
    """
    for package in packages:
        if find_spec(package) is None:
            raise missing(what, package)


def missing(what: str, package: str) -> MissingPackageError:
    """The error for a package that could not be imported.

    Example:
        >>> str(missing("the report", "matplotlib"))
        'the report: the package matplotlib is missing; run \\'pip install "monai-adv[report]"\\'.'
    """
    extra = next(extra for extra, packages in EXTRAS.items() if package in packages)
    return MissingPackageError(
        f"{what}: the package {package} is missing; run 'pip install \"monai-adv[{extra}]\"'.", package
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Around imports: one that fails for want of a package of :data:`EXTRAS` says which extra brings it.

    Raises:
        MissingPackageError: instead of Python's own error; all other errors stay as they are.

    Example:
        >>> with explained("monai_adv.engines"):
        ...     raise ModuleNotFoundError("No module named 'ignite'", name="ignite.engine")
        Traceback (most recent call last):
        ...
        monai_adv.optional.MissingPackageError: monai_adv.engines: the package ignite is missing; ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if any(package in packages for packages in EXTRAS.values()):
            raise missing(what, package) from error
        raise

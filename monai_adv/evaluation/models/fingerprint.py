"""Tell whether two runs had the same model, data and code: what is in files, and what the model computes.

Contents count, not names, sizes or dates: a label corrected in place has all of these as before. A file is read once;
afterwards its size and times tell that it is the one whose content hash is stored beside them.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_adv.evaluation.models.protocol import Model

Marks = dict[str, list[Any]]
"""Path -> size, time of the last change of the content and of the file in nanoseconds, SHA-256 of the content."""

PROJECTIONS, PERIOD = 4, 65_537
TOLERANCE = 1e-3
"""Share of an output's size by which two machines may differ in it; what is in files is compared exactly."""
FEW = 3
"""Cases that are tried for one that can be read."""


def fingerprint(*values: object) -> str:
    """SHA-256 of values that Python can print in full.

    Example:
        >>> fingerprint("a", 1) == fingerprint("a", 1) != fingerprint("a", 2)
        True
    """
    return hashlib.sha256(repr(values).encode()).hexdigest()


def marks_of(files: Iterable[Path], known: Mapping[str, list[Any]] | None = None) -> Marks:
    """The content hashes of files.

    Args:
        files: in an order that does not change; a folder stands for all files in it.
        known: of an earlier run.
    """
    known = known or {}
    each = [path for file in files for path in (sorted(file.rglob("*")) if file.is_dir() else [file])]
    paths = list(dict.fromkeys(path.resolve() for path in each if not path.is_dir()))

    def mark(path: Path) -> list[Any]:
        try:
            found = path.stat()
            here = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
            old = known.get(str(path))
            return [*here, old[3] if old is not None and old[:3] == here else _content(path)]
        except OSError as error:  # its case cannot be used, which is said there
            return [0, 0, 0, f"unreadable: {error.strerror}"]

    with ThreadPoolExecutor(4) as threads:
        return {str(path): found for path, found in zip(paths, threads.map(mark, paths), strict=True)}


def contents(marks: Marks) -> str:
    """Of all files together in their order, wherever their folder lies."""
    return fingerprint([(Path(path).name, mark[3]) for path, mark in marks.items()])


def changed(before: Marks, now: Marks) -> list[str]:
    """The files that are new, gone, or have another content."""
    return sorted(p for p in {*before, *now} if before.get(p, [None])[-1] != now.get(p, [None])[-1])


def code_files(modules: Iterable[str]) -> list[Path]:
    """Python files of the user's own code that these modules come from, and those that they import.

    Installed packages are left out: their versions are compared.
    """
    queue, seen, files = list(modules), set[str](), []
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if module is None or file is None or not _own(name, Path(file)):
            continue
        files.append(Path(file))
        queue += [found for value in vars(module).values() if (found := _module_of(value))]
    return sorted(files)


def computed(model: Model) -> dict[str, list[float]]:
    """What the deployed function makes of one input: a few numbers in which every change of it shows.

    Returns:
        of the first case that can be read: ``image`` (its input with the largest spread, preprocessed), ``target`` and
        ``output``, each with its norm and random projections. Empty if none can be read; without ``output`` for a model
        that answers the same image differently.
    """
    import torch

    from monai_adv.network_state import device_of, frozen
    from monai_adv.tasks.base import first_resolution

    for name in model.cases[:FEW]:
        try:
            case = model.load(name)
            index = int(case.images.flatten(1).double().std(1).argmax())
            image = case.images[index : index + 1]
            outputs = []
            device = device_of(case.network)
            forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
            with frozen(case.network) as network, torch.no_grad(), forked:
                for _ in range(2):
                    torch.manual_seed(0)
                    outputs.append(_summary(network(image.to(device))))
            target = first_resolution(case.target)
        except Exception:  # whatever it is, it is said where the case is used
            continue
        found = {"image": _summary(image), "target": _summary(target[index : index + 1])}
        return {**found, "output": outputs[0]} if _alike(*outputs) else found
    return {}


def same_computed(here: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]]) -> bool:
    """Whether two results of :func:`computed` differ by rounding only."""
    return all(_alike(here[name], new[name]) for name in here if name in new)


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    size = max(abs(one[0]), abs(other[0]))
    return all(abs(a - b) <= TOLERANCE * size for a, b in zip(one, other, strict=True))


def _summary(values: Any) -> list[float]:
    """The norm, then projections on random directions: a change of relative size d moves them by about d norms."""
    import torch

    from monai_adv.tasks.base import first_resolution

    tensor = first_resolution(values).detach().cpu().flatten()
    numbers = tensor.float().nan_to_num(12345.0, 1e6, -1e6)
    rows = -(-len(numbers) // PERIOD)
    table = torch.nn.functional.pad(numbers, (0, rows * PERIOD - len(numbers))).view(rows, PERIOD)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(PERIOD, PROJECTIONS, generator=generator)
    projected = (table @ columns).double() * torch.randn(rows, PROJECTIONS, generator=generator).double()
    return [float(numbers.double().norm()), *projected.sum(0).tolist()]


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _module_of(value: Any) -> str | None:
    try:
        with warnings.catch_warnings():  # of objects that call being looked at a use, such as torch's reduce_op
            warnings.simplefilter("ignore")
            name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    except Exception:  # objects that answer to everything, or to nothing
        return None
    return name if isinstance(name, str) else None


def _own(name: str, file: Path) -> bool:
    if name.partition(".")[0] in ("monai_adv", "nnunet_trainers") or file.suffix != ".py":
        return False
    installed = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(file.resolve().is_relative_to(Path(place).resolve()) for place in installed)

"""Who does the work: this process, or the workers of a Dask cluster. The numbers are the same.

Every case is a task of its own and keeps each finished stage in the store, which all workers reach by the same path.
The task of a worker that dies is given to another one, which goes on from the store. A task that kills every worker
that takes it, as by lack of memory, is given up, and the others go on.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation.checks.probed import CaseProbe
from monai_adv.evaluation.checks.probes import STEPS
from monai_adv.evaluation.costs import Size
from monai_adv.evaluation.described import CorruptionEntry, ModelEntry, StageEntry
from monai_adv.evaluation.models.classifier import Classifier, first_of
from monai_adv.evaluation.models.fingerprint import Marks, computed, contents, fingerprint, marks_of
from monai_adv.evaluation.models.protocol import Model, Source
from monai_adv.evaluation.models.radii import in_words
from monai_adv.evaluation.models.smoothed import SmoothedVersion
from monai_adv.evaluation.records import level_name
from monai_adv.evaluation.run.parts import Parts
from monai_adv.evaluation.sealed_folder import is_begun
from monai_adv.evaluation.search import cost
from monai_adv.evaluation.search.plan import AttackPlan, corruption_entry
from monai_adv.evaluation.search.runner import check_threat, reproducible, run_case
from monai_adv.evaluation.search.variations import checked_steps, largest, variation_entry
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import Store
from monai_adv.optional import require
from monai_adv.statistics import Passes

PACKAGES = ("monai-adv", "torch", "monai", "numpy", "scipy", "nnunetv2")


@dataclass(frozen=True)
class Described:
    """A model, and where it was opened.

    Attributes:
        model: as ``evaluation.json`` describes it.
        most: key of a level -> what each of its attacks costs an input that is never finished.
        versions: of the packages.
        machine: in words.
    """

    model: ModelEntry
    most: dict[str, tuple[Passes, ...]]
    versions: dict[str, str]
    machine: str


@dataclass(frozen=True)
class Job:
    """One model of an evaluation, as a worker gets it.

    Attributes:
        run: differs from run to run, so that a long-lived worker opens changed files again.
        source: of the model.
        settings: of the evaluation.
        folder: of the store, absolute.
        number: of the model in the run.
        parts: of the run.
    """

    run: str
    source: Source
    settings: EvaluationSettings
    folder: str
    number: int = 0
    parts: Parts = Parts()

    def describe(self) -> Described:
        """What ``evaluation.json`` says about the model, but for what :meth:`identify` adds.

        Raises:
            InputError: the model does not load, or has no such case.
        """
        model, plan = self._opened()
        described = entry_of(
            model,
            self.settings.select(model.cases),
            stages={key: tuple(stage.entry() for stage in stages) for key, stages in plan.by_level.items()},
            corruptions=(
                *map(corruption_entry, plan.corruptions),
                *map(variation_entry, checked_steps(self.settings.variations, model)),
            ),
        )
        return Described(described, plan.most_passes(), versions(), machine())

    def identify(self, entry: ModelEntry) -> tuple[ModelEntry, Marks]:
        """See :func:`identified`."""
        with reproducible(self.settings.threads):
            return identified(entry, self._model(), Path(self.folder))

    def scored(self, case: str) -> tuple[str, ...]:
        """Names of the patients or images in a case, each of which gets a score."""
        model = self._model()
        return model.load(case).names if isinstance(model, Classifier) else (case,)

    def survey(self, case: str) -> tuple[Size, Size] | str:
        """The size of a case, and what natural variations can make of it at most; or why it cannot be used."""
        model = self._model()
        try:
            loaded = model.load(case)
            for level in self.settings.levels:
                check_threat(loaded.threat(level), loaded.images)
        except Exception as error:  # of whatever reads the images
            return in_a_sentence(error)
        size = varied = Size.of(loaded)
        if self.settings.variations:
            with suppress(Exception):  # of a model that takes no such image: then the size is that of the case
                varied = Size.of(largest(model, case))
        return size, varied

    def radii(self, case: str) -> list[str]:
        """The radii in all their units, for this case, and as they were written where that is not the number itself."""
        loaded = self._model().load(case)
        return [
            (f"{level_name(level)} is " if level.words else "") + in_words(loaded, level)
            for level in self.settings.levels
        ]

    def timing(self, cases: Sequence[str]) -> tuple[cost.Timing, cost.Timing]:
        """Seconds of a pass on the first of these cases that the network takes: in attacks, and in the probes.

        They differ with ``fuse``: the probes are about the network itself.

        Raises:
            InputError: it takes none of them; says why not the first.
        """
        refused: InputError | None = None
        for case in cases:
            try:
                with reproducible(self.settings.threads):
                    loaded, size = self._model().load(case), self.settings.batch_size
                    probes = cost.measure(loaded, size)
                    return cost.measure(loaded, size, fuse=True) if self.settings.fuse else probes, probes
            except InputError as error:
                refused = refused or error
        assert refused is not None
        raise InputError(f"{self._model().name}: {refused}") from refused

    def attack(self, case: str, tell: Callable[[], None] = lambda: None) -> bool:
        """All levels and attacks of one case that the store does not have; see :func:`run_case`."""
        model, plan = self._opened()
        with reproducible(self.settings.threads):
            return run_case(model, case, plan, self._store(), tell)

    def probe(self, cases: tuple[str, ...], tell: Callable[[], None] = lambda: None) -> str:
        """The probes for the red flags, on these cases, unless the store has them; returns why they failed, or ""."""
        store, model = self._store(), self._model()
        if store.probe(model.name) is not None:
            for _ in cases:
                tell()
            return ""

        def once(case: str, find: Callable[[], CaseProbe]) -> CaseProbe:
            found = store.probed_once(model.name, case, find)
            tell()
            return found

        try:
            with reproducible(self.settings.threads):
                steps = STEPS[self.settings.version]
                found = self.parts.probe(model, self.settings.levels, self.settings.seed, cases, steps, once)
        except Exception as error:  # of the model's own code, for some image
            return in_a_sentence(error)
        store.add_probe(model.name, found)
        return ""

    def _store(self) -> Store:
        if not is_begun(self.folder):
            raise InputError(
                f"{self.folder}: this worker ({platform.node()}) does not see the folder of the evaluation; "
                "give a path that all workers share."
            )
        return self.parts.store(self.folder)

    def _model(self) -> Model:
        return self._opened()[0]

    def _opened(self) -> tuple[Model, AttackPlan]:
        """The model and its attacks, once in each process."""
        key = self.run, self.number
        if key not in _models:
            for old in [k for k in _models if k[0] != self.run]:
                del _models[old]
            model = first_of(self.source.open(), self.settings.cases)
            if self.settings.smooth is not None:
                model = SmoothedVersion(model, self.settings.smooth)
            _models[key] = model, AttackPlan(model.kind, len(model.classes), self.settings)
        return _models[key]


def entry_of(
    model: Model,
    cases: tuple[str, ...],
    stages: dict[str, tuple[StageEntry, ...]],
    corruptions: tuple[CorruptionEntry, ...],
) -> ModelEntry:
    """A model as ``evaluation.json`` describes it, but for what :func:`identified` adds."""
    return ModelEntry(
        name=model.name,
        kind=model.kind,
        classes=tuple(model.classes),
        space=model.space,
        unit=model.unit,
        cases=cases,
        problems=tuple(model.problems),
        stages=stages,
        corruptions=corruptions,
    )


def identified(entry: ModelEntry, model: Model, folder: Path) -> tuple[ModelEntry, Marks]:
    """The entry with what tells the model, its data and its code from others, and its files one by one.

    Args:
        entry: of the model.
        model: that it is about.
        folder: of the store, which may know the files already.
    """
    marks = marks_of(getattr(model, "files", ()), Store(folder).marks(model.name))
    data = marks_of(getattr(model, "data_files", ()), marks)
    found = replace(
        entry,
        fingerprint=model.fingerprint,
        files=contents(marks),
        computes=computed(model),
        data=fingerprint(contents(data), getattr(model, "data_in_memory", "")),
        in_files=bool(getattr(model, "in_files", False)),
    )
    return found, marks


_models: dict[tuple[str, int], tuple[Model, AttackPlan]] = {}


def forget(run: str) -> None:
    """Let go of the models that this process opened for a run."""
    for key in [k for k in _models if k[0] == run]:
        del _models[key]


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor and the GPU in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}, {cores} cores{gpu}"


@dataclass(frozen=True)
class Killed:
    """What a task gives that killed every process that took it."""

    reason: str = "every process that took it was killed, as the system does where memory is short; use fewer --workers"


class Pool(Protocol):
    """Runs functions.

    Attributes:
        workers: how many tasks run at the same time.
    """

    workers: int

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call the function with each tuple of arguments; yields (number of the task, result) as they finish.

        The result of a task that kills its process is :class:`Killed`, where that is not this process.
        """

    def close(self) -> None:
        """Stop what is still running."""


class ThisProcess:
    """One after the other, here."""

    workers = 1

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See :class:`Pool`."""
        for i, task in enumerate(tasks):
            yield i, function(*task)

    def close(self) -> None:
        """Nothing is running."""


class Dask:
    """The workers of a Dask cluster.

    Args:
        address: of a scheduler, or ``"local"`` for a cluster of processes on this machine.
        workers: processes of the local cluster.
        certificates: of a scheduler, see :func:`monai_adv.evaluation.run.cluster.connect`.

    Raises:
        InputError: Dask is not installed, or the scheduler does not answer.
    """

    def __init__(self, address: str, workers: int = 1, certificates: Mapping[str, str] | None = None) -> None:
        require("--dask and --workers", "distributed", "cryptography")
        cluster: Any = import_module("monai_adv.evaluation.run.cluster")
        self._cluster: Any = cluster.local_cluster(workers) if address == "local" else None
        try:
            self._client: Any = (
                cluster.connect(address, certificates) if self._cluster is None else self._cluster.get_client()
            )
        except InputError:
            raise
        except (OSError, ValueError) as error:
            todo = "check the address and the certificates, or give 'local'"
            raise InputError.of("dask", address, f"a scheduler that answers ({error})", todo) from error
        self.workers = max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See :class:`Pool`."""
        distributed: Any = import_module("distributed")
        futures = [self._client.submit(function, *task, pure=False) for task in tasks]
        numbers = {future.key: i for i, future in enumerate(futures)}
        suspects = []
        for future in distributed.as_completed(futures):
            try:
                result = future.result()
            except distributed.KilledWorker:
                suspects.append(numbers[future.key])
            else:
                yield numbers[future.key], result
        for i in suspects:  # one by one: which of those that waited for a dying worker was it?
            try:
                result = self._client.submit(function, *tasks[i], pure=False).result()
            except distributed.KilledWorker:
                result = Killed()
            yield i, result

    def close(self) -> None:
        """Cancel the tasks; stop the cluster if it is ours."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

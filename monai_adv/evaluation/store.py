"""The store: one folder that holds all that an evaluation has finished, so that it can stop and go on at any moment.

Layout; how the files are kept whole and told from others, sealed_folder.py says::

    evaluation.json                        what is evaluated: :class:`~monai_adv.evaluation.described.Evaluation`
    cost.json                              what it costs: :class:`~monai_adv.evaluation.costs.Costs`
    history.json                           its sessions, and what was stated then; see :func:`read_history`
    subgroups.json                         which group each case belongs to, where that was given
    records/MODEL/CASE/clean.json          one :class:`Record` each, with what is needed to go on
    records/MODEL/CASE/LEVEL.STAGE.json
    images/MODEL/CASE/LEVEL.STAGE.npz      worst images so far, only as long as they are needed to go on
    pictures/MODEL/CASE/LEVEL.npz          worst images as pictures, written after the last stage of a level
    problems/MODEL/CASE.json               a case that could not be used, with the reason; MODEL.json: its probes
    certificates/MODEL/...                 what is proven of smoothed models; see certify/kept.py
    probes/MODEL/CASE.json                 what the probes for the red flags found on a case, MODEL.json: on all of them
    files.json                             content hashes of the files that an evaluation depends on
    lock                                   held by the process that writes; see :func:`monai_adv.files.locked`

MODEL, CASE, LEVEL and STAGE are :func:`safe_name` of the names; the true names are inside the files.

Whoever reads a folder uses the functions ``read_...``; only the runner writes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.evaluation.checks.probed import CaseProbe, ModelProbe
from monai_adv.evaluation.codec import Plain, plain, typed
from monai_adv.evaluation.costs import Costs
from monai_adv.evaluation.described import Evaluation
from monai_adv.evaluation.differences import differences
from monai_adv.evaluation.models.fingerprint import Marks, changed
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import CLEAN, Record
from monai_adv.evaluation.sealed_folder import AGAIN, SealedFolder, is_begun, read_beginning, reading
from monai_adv.metrics.score import Score

FOLLOWS = (".stages", ".corruptions", ".data", ".in_files")
"""Entries of a model that follow from others."""
T = TypeVar("T")


def read_evaluation(folder: str | Path) -> Evaluation:
    """What is evaluated and how.

    Raises:
        InputError: not the folder of an evaluation, or not as it was written.
    """
    return read_beginning(folder, Evaluation)


def read_records(folder: str | Path) -> list[Record]:
    """All finished records: by model, case, level and stage, in the order of ``evaluation.json``.

    A case begins with the clean record and the natural corruptions, whose level is their severity. Every attack has a
    record for every case, also where nothing was left to attack. In a folder that is not finished later ones are
    missing; a corruption that does not exist for images of these axes has none.

    Raises:
        InputError: not the folder of an evaluation.
    """
    store, records = Store(folder), []
    for model in read_evaluation(folder).models:
        keys = [("", CLEAN), *((c.severity, c.name) for c in model.corruptions)]
        keys += [(level, stage.name) for level, stages in model.stages.items() for stage in stages]
        for case in model.cases:
            found = (store.saved(model.name, case, *key) for key in keys)
            records += [saved.record for saved in found if saved is not None]
    return records


def usable_records(folder: str | Path) -> list[Record]:
    """:func:`read_records` without the cases that could not be used: of those some levels may be missing."""
    lost = {(model, case) for model, case, _ in read_problems(folder)}
    return [record for record in read_records(folder) if (record.model, record.case) not in lost]


def read_pictures(folder: str | Path, model: str, case: str, level: str) -> list[Picture]:
    """The worst images of one case at one level as pictures; empty while its level is not finished."""
    store = Store(folder)
    path = store.path("pictures", model, case, level, suffix=".npz")
    if not path.exists():
        return []
    todo = store.again(model, case)
    arrays = store.read_arrays(path, todo)
    with reading(path, todo):
        heads = [typed(_Head, head) for head in json.loads(str(arrays["heads"]))]
        return [
            Picture(
                head.case,
                arrays[f"{i}.clean"],
                arrays[f"{i}.attacked"],
                arrays.get(f"{i}.truth"),
                arrays.get(f"{i}.on_clean"),
                arrays.get(f"{i}.on_attacked"),
                head.caption,
            )
            for i, head in enumerate(heads)
        ]


def check_picture(folder: str | Path, path: Path) -> None:
    """Hold a file of :meth:`Store.add_pictures` against its checksum, wherever it belongs.

    Raises:
        InputError: it is not as it was written.
    """
    Store(folder).read_arrays(path, AGAIN)


def read_problems(folder: str | Path) -> list[tuple[str, str, str]]:
    """``(model, case, reason)`` of all files that could not be used; the case is "" where it has no name.

    Raises:
        InputError: not the folder of an evaluation, or a damaged file in it.
    """
    problems, store = [], Store(folder)
    for model in read_evaluation(folder).models:
        problems += [(model.name, "", reason) for reason in model.problems]
        of_model = store.path("problems", model.name)
        of_cases = sorted(store.path("problems", model.name, suffix="").glob("*.json"))
        for path in [*([of_model] if of_model.exists() else []), *of_cases]:
            found = store.read(path, Problem)
            problems.append((model.name, found.case, found.reason))
    return problems


def read_probes(folder: str | Path) -> dict[str, ModelProbe]:
    """What the probes found, by model; models whose probes have not run are missing."""
    store = Store(folder)
    found = {model.name: store.probe(model.name) for model in read_evaluation(folder).models}
    return {name: probe for name, probe in found.items() if probe is not None}


def read_cost(folder: str | Path) -> Costs:
    """Predicted and measured cost; nothing is known while ``cost.json`` is not there.

    Raises:
        InputError: a damaged file.
    """
    path = Path(folder) / "cost.json"
    return Store(folder).read(path, Costs) if path.exists() else Costs()


@dataclass(frozen=True)
class _History:
    """Entries of ``history.json``, whose kind only the evidence knows."""

    entries: tuple[Plain, ...]


def read_history(folder: str | Path, kind: type[T]) -> list[T]:
    """When the evaluation was begun and gone on with.

    Args:
        folder: of an evaluation.
        kind: of an entry, see :class:`monai_adv.evaluation.evidence.history.Session`.

    Raises:
        InputError: a damaged file.
    """
    path = Path(folder) / "history.json"
    if not path.exists():
        return []
    found = Store(folder).read(path, _History)
    with reading(path, AGAIN):
        return [typed(kind, entry) for entry in found.entries]


def read_subgroups(folder: str | Path, kind: type[T]) -> T | None:
    """What :meth:`Store.add_subgroups` kept, or None.

    Args:
        folder: of an evaluation.
        kind: see :class:`monai_adv.evaluation.evidence.group_table.GroupTable`.

    Raises:
        InputError: a damaged file.
    """
    path = Path(folder) / "subgroups.json"
    return Store(folder).read(path, kind) if path.exists() else None


@dataclass
class State:
    """How far one level of one case has got.

    Attributes:
        images: ``(B, C, *spatial)`` worst images so far, on the CPU.
        finished: ``(B,)`` bool: not attacked any more at this level.
        carried: ``(B,)`` bool: the worst image comes from a lower level.
        scores: of ``images``.
    """

    images: Tensor
    finished: Tensor
    carried: Tensor
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Saved:
    """A record as it lies in the store, with what the next stage needs."""

    record: Record
    finished: tuple[bool, ...]
    carried: tuple[bool, ...]
    images: str | None

    def __post_init__(self) -> None:
        if len(self.finished) != len(self.carried):
            raise ValueError("finished and carried are of one length")


@dataclass(frozen=True)
class Problem:
    """What could not be used: a case, or with case "" something else of a model; ``details``: a traceback."""

    case: str
    reason: str
    details: str


@dataclass(frozen=True)
class _Head:
    """What of a picture is no array."""

    case: str
    caption: str


class Store(SealedFolder):
    """Reads and writes one folder. Several processes may write different cases at the same time.

    Args:
        folder: made by :meth:`open`.
        write: writes one file, wholly or not at all.
    """

    @classmethod
    def open(cls, folder: str | Path, evaluation: Evaluation, marks: Mapping[str, Marks] | None = None) -> Store:
        """Start a folder, or go on with one of the same evaluation.

        Args:
            folder: new, empty, or of an evaluation that did not finish.
            evaluation: what is evaluated.
            marks: of the files that each model depends on.

        Raises:
            InputError: the folder cannot be written, holds something else, or belongs to another evaluation; says
                what differs.
        """
        store = cls(folder)
        store.check_place()
        if is_begun(store.folder):
            here = read_evaluation(folder)
            store.drop_partials(3600)
            found = dict(differences(plain(here), plain(evaluation)))
            # Plans follow from settings, levels and kinds, data from files: they are news only if nothing else differs.
            told = {k: v for k, v in found.items() if not any(part in k for part in FOLLOWS)} or found
            for model, of_files in (marks or {}).items():
                files = changed(store.marks(model), of_files)
                if (name := f"models[{model}].files") in told and files:
                    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
                    told[name] = f"the contents of {', '.join(files[:3])}{more}"
            if found:
                differs = "; ".join(f"{name}: {how}" for name, how in told.items())
                raise InputError(
                    f"{folder}: holds another evaluation; it differs in {differs}. "
                    "Give its own settings to go on with it, or a new folder."
                )
        else:
            store.begin(evaluation)
        if marks:
            store.write(store.folder / "files.json", dict(marks))
        return store

    def marks(self, model: str) -> Marks:
        """Content hashes of the files that a model depends on, as :meth:`open` got them; empty where none are known."""
        path = self.folder / "files.json"
        if path.exists() and is_begun(self.folder):
            with suppress(InputError):  # without them every file is read again, which is never wrong
                return self.read(path, dict[str, Marks]).get(model, {})
        return {}

    def saved(self, model: str, case: str, level: str, stage: str) -> Saved | None:
        """One record with what belongs to it, or None if it is not finished."""
        path = self._record_path(model, case, level, stage)
        if not path.exists():
            return None
        todo = self.again(model, case)
        saved = self.read(path, Saved, todo)
        with reading(path, todo):
            if saved.images is not None:
                self._images_path(saved.images, model, case)
        return saved

    def state(self, saved: Saved) -> State:
        """The state after a saved stage."""
        record = saved.record
        if saved.images is None:
            raise RuntimeError(f"{record.attack} of {record.case} at {record.level} has no images in the store")
        path = self._images_path(saved.images, record.model, record.case)
        images = torch.from_numpy(self.read_arrays(path, self.again(record.model, record.case))["images"])
        return State(images, torch.tensor(saved.finished), torch.tensor(saved.carried), record.worst)

    def commit(self, record: Record, state: State, images: str | None = None) -> Saved:
        """Keep one finished stage: first the images, then the record that refers to them.

        Args:
            record: of the stage.
            state: after the stage.
            images: of an earlier stage of this level, if this one changed none of them.
        """
        if images is None:
            path = self.path("images", record.model, record.case, f"{record.level}.{record.attack}", suffix=".npz")
            self.write_arrays(path, images=state.images.numpy())
            images = path.relative_to(self.folder).as_posix()
        return self.commit_record(record, state.finished, state.carried, images)

    def commit_record(
        self, record: Record, finished: Tensor, carried: Tensor | None = None, images: str | None = None
    ) -> Saved:
        """Keep a record to which no images belong, or only older ones."""
        carried = torch.zeros_like(finished) if carried is None else carried
        saved = Saved(record, tuple(finished.tolist()), tuple(carried.tolist()), images)
        self.write(self._record_path(record.model, record.case, record.level, record.attack), saved)
        return saved

    def drop_images(self, saved: Saved | None) -> None:
        """Delete images that no later stage needs."""
        if saved is not None and saved.images is not None:
            with suppress(OSError):
                self._images_path(saved.images, saved.record.model, saved.record.case).unlink()

    def drop_all_images(self, model: str, case: str) -> None:
        """Delete what a case needed to go on, also what was left behind by a process that was killed."""
        shutil.rmtree(self.path("images", model, case, suffix=""), ignore_errors=True)

    def add_pictures(self, model: str, case: str, level: str, pictures: list[Picture]) -> None:
        """Keep what a page can draw of a finished level."""
        arrays = {}
        for i, picture in enumerate(pictures):
            for name in ("clean", "attacked", "truth", "on_clean", "on_attacked"):
                if (values := getattr(picture, name)) is not None:
                    arrays[f"{i}.{name}"] = np.asarray(values)
        heads = json.dumps([plain(_Head(p.case, p.caption)) for p in pictures])
        path = self.path("pictures", model, case, level, suffix=".npz")
        self.write_arrays(path, compressed=True, heads=np.array(heads), **arrays)

    def has_pictures(self, model: str, case: str, level: str) -> bool:
        """Whether :meth:`add_pictures` was called."""
        return self.path("pictures", model, case, level, suffix=".npz").exists()

    def add_problem(self, model: str, case: str, reason: str, details: str = "") -> None:
        """Note that a case could not be used, or with case "" something else of a model; ``details``: a traceback."""
        path = self.path("problems", model, case) if case else self.path("problems", model)
        self.write(path, Problem(case, reason, details))

    def clear_problem(self, model: str, case: str) -> None:
        """The case can be used now."""
        with suppress(FileNotFoundError):
            (self.path("problems", model, case) if case else self.path("problems", model)).unlink()

    def add_probe(self, model: str, found: ModelProbe) -> None:
        """Keep what the probes of a model found."""
        self.write(self.path("probes", model), found)

    def probe(self, model: str) -> ModelProbe | None:
        """What the probes of a model found, or None if they have not run."""
        path = self.path("probes", model)
        return self.read(path, ModelProbe) if path.exists() else None

    def probed_once(self, model: str, case: str, find: Callable[[], CaseProbe]) -> CaseProbe:
        """What the probes found on a case, and in how many seconds: as it is kept, or found now and kept."""
        path = self.path("probes", model, case)
        if not path.exists():
            start = time.perf_counter()
            found = find()
            self.write(path, replace(found, seconds=time.perf_counter() - start))
        return self.read(path, CaseProbe)

    def add_cost(self, known: Costs) -> None:
        """Add to ``cost.json`` what is known now; the rest of it stays."""
        new = {f.name: value for f in fields(known) if (value := getattr(known, f.name)) is not None}
        self.write(self.folder / "cost.json", replace(read_cost(self.folder), **new))

    def add_history(self, entry: Any) -> None:
        """Add to ``history.json``; see :func:`read_history`."""
        path = self.folder / "history.json"
        before = self.read(path, _History).entries if path.exists() else ()
        self.write(path, _History((*before, plain(entry))))

    def add_subgroups(self, table: Any) -> None:
        """Keep the table of groups of the cases, instead of an earlier one."""
        self.write(self.folder / "subgroups.json", table)

    def again(self, model: str, case: str) -> str:
        """What to do about a file of a case: later records follow from earlier ones."""
        return f"delete the folder {self.path('records', model, case, suffix='')} and give the same command again"

    def _images_path(self, name: str, model: str, case: str) -> Path:
        """Where the images of a record lie: in the folder of its case, whatever it says."""
        path = self.folder / name
        if path.parent != self.path("images", model, case, suffix="") or path.is_symlink() or path.suffix != ".npz":
            raise ValueError(f"it names the images {name!r}, which are not of its case")
        return path

    def _record_path(self, model: str, case: str, level: str, stage: str) -> Path:
        return self.path("records", model, case, f"{level}.{stage}" if level else CLEAN)

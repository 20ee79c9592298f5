"""The store: one folder that holds all that an evaluation has finished, so that it can stop and go on at any moment.

Layout; every file is written beside its place and then moved into it, so a file that is there is complete::

    evaluation.json                        what is evaluated; see :func:`read_evaluation`
    cost.json                              what it was predicted to cost; see :func:`read_cost`
    history.json                           its sessions, and what was stated then; see :func:`read_history`
    subgroups.json                         which group each case belongs to, where that was given
    records/MODEL/CASE/clean.json          one :class:`Record` each, with what is needed to go on
    records/MODEL/CASE/LEVEL.STAGE.json
    images/MODEL/CASE/LEVEL.STAGE.npz      worst images so far, only as long as they are needed to go on
    pictures/MODEL/CASE/LEVEL.npz          worst images as pictures, written after the last stage of a level
    problems/MODEL/CASE.json               a case that could not be used, with the reason; MODEL.json: its probes
    probes/MODEL/CASE.json                 what the probes for the red flags found on a case, MODEL.json: on all of them
    files.json                             content hashes of the files that an evaluation depends on
    lock                                   held by the process that writes; see :func:`monai_adv.files.locked`

Every file carries a checksum over its content and its place (see seal.py), also over the evaluation that it belongs to:
what was edited, copied or shortened is refused, with its name. Nothing outside the folder is read or deleted, whatever
the files say.

MODEL, CASE, LEVEL and STAGE are :func:`safe_name` of the names; the true names are inside the files. Numbers are
written so that reading gives the same bits; NaN is written as ``NaN``, as Python's json does.

Whoever reads a folder uses the functions ``read_...``; only the runner writes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_adv.errors import InputError, PlaceError, first_cause
from monai_adv.evaluation import seal
from monai_adv.evaluation.models.fingerprint import Marks, changed, same_computed
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Record
from monai_adv.files import LOCK, PARTIAL, write_whole
from monai_adv.metrics.score import Score

FORMAT = 3
EVALUATION = "evaluation"
AGAIN = "delete it and give the same command again"
NOT_COMPARED = ("started", "machine", "run_file", "words")
"""Entries of ``evaluation.json`` that may differ when an evaluation goes on."""
FOLLOWS = (".stages", ".corruptions", ".data", ".in_files")
"""Entries of a model that follow from others."""


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """What is evaluated and how: the content of ``evaluation.json``.

    Returns:
        a dict with the keys

        - ``format``: 3.
        - ``started``: date and time, ISO 8601.
        - ``machine``: in words: processor or GPU, cores.
        - ``versions``: of Python and the packages, ``{"monai-adv": ..., "torch": ..., ...}``.
        - ``settings``: ``attacks`` (quick, standard, full, or the name of a plan, which then has ``attacks_code``, a
          hash of its code), ``seed``, ``batch_size``, ``cases`` (None, a number or names), ``box`` (None or [low,
          high]), ``device`` (type), ``threads``.
        - ``levels``: ``[{"key", "norm", "eps", "unit"}, ...]``, ascending within a norm.
        - ``words``: ``{level key: how the user wrote the radius}``, where that is not the number itself.
        - ``models``: one dict per model, in the order of the command line: ``name``, ``kind``, ``classes``,
          ``fingerprint`` (of what is in memory), ``files`` (of the contents of all files), ``computes`` (see
          :func:`monai_adv.evaluation.models.fingerprint.computed`), ``data`` (of images and labels alone),
          ``in_files`` (whether weights and data all come from files), ``space``, ``unit`` (in words, of network
          inputs), ``cases`` (names of those selected), ``problems`` (files left out, with reasons), ``stages``
          (``{level key: [{"name", "family", "settings"}, ...]}`` in the order they run; family is random, white-box,
          black-box or transfer), ``corruptions`` (``[{"name", "severity"}, ...]``: of their records these are the
          attack and the level).
        - ``run_file``: what was asked for on the command line, as YAML for ``--run``; "" from Python.

    Raises:
        InputError: no such file, or not ours.
    """
    path = Path(folder) / "evaluation.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: not the folder of an evaluation, its evaluation.json gives {error!r}.") from error
    if known != FORMAT:
        raise InputError.of(str(path), f"format {known}", f"format {FORMAT}", "use the monai-adv that wrote it")
    with _reading(path, "bring back the file as it was, or give a new folder"):
        return seal.opened(content, EVALUATION)


def read_records(folder: str | Path) -> list[Record]:
    """All finished records: by model, case, level and stage, in the order of ``evaluation.json``.

    A case begins with the clean record and the natural corruptions, whose level is their severity. Every attack has a
    record for every case, also where nothing was left to attack. In a folder that is not finished later ones are
    missing; a corruption that does not exist for images of these axes has none.

    Raises:
        InputError: not the folder of an evaluation.
    """
    store, records = Store(folder), []
    for model in read_evaluation(folder)["models"]:
        keys = [("", "clean"), *((c["severity"], c["name"]) for c in model["corruptions"])]
        keys += [(level, s["name"]) for level, stages in model["stages"].items() for s in stages]
        for case in model["cases"]:
            found = (store.saved(model["name"], case, *key) for key in keys)
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
    arrays = store._read_arrays(path, model, case)
    pictures = []
    for i, head in enumerate(json.loads(str(arrays["heads"]))):
        parts: dict[str, Any] = {name: arrays.get(f"{i}.{name}") for name in _ARRAYS}
        pictures.append(Picture(**head, **parts))
    return pictures


def check_picture(folder: str | Path, path: Path) -> None:
    """Hold a file of :meth:`Store.add_pictures` against its checksum, wherever it belongs.

    Raises:
        InputError: it is not as it was written.
    """
    store = Store(folder)
    with _reading(path, AGAIN), np.load(path) as file:
        seal.opened_arrays(dict(file), *store._place(path))


def read_problems(folder: str | Path) -> list[tuple[str, str, str]]:
    """``(model, case, reason)`` of all files that could not be used; the case is "" where it has no name.

    Raises:
        InputError: not the folder of an evaluation, or a damaged file in it.
    """
    problems, store = [], Store(folder)
    for model in read_evaluation(folder)["models"]:
        problems += [(model["name"], "", reason) for reason in model["problems"]]
        of_model = store.path("problems", model["name"])
        of_cases = sorted(store.path("problems", model["name"], suffix="").glob("*.json"))
        for path in [*([of_model] if of_model.exists() else []), *of_cases]:
            content = store._read(path)
            problems.append((model["name"], content["case"], content["reason"]))
    return problems


def read_probes(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What ``probes.probe`` returned, by model, with ``seconds``; models whose probes have not run are missing."""
    store = Store(folder)
    found = {m["name"]: store.probe(m["name"]) for m in read_evaluation(folder)["models"]}
    return {name: probe for name, probe in found.items() if probe is not None}


def read_cost(folder: str | Path) -> dict[str, Any]:
    """Predicted and measured cost: the content of ``cost.json``; empty while nothing was predicted.

    Returns:
        a dict with some of the keys

        - ``bound``: before the start, if no input is ever finished: ``forward``, ``backward``, ``seconds``.
        - ``predicted``: after the pilot: ``seconds`` of the whole, ``cases``: how many had run.
        - ``measured``: ``forward``, ``backward`` of the attacks, ``seconds`` of the whole, ``workers``.
        - ``sizes``: model -> case -> [inputs, voxels].

        Passes are counted in inputs. Seconds are those of all workers together, probes included.

    Raises:
        InputError: a damaged file.
    """
    path = Path(folder) / "cost.json"
    return Store(folder)._read(path) if path.exists() else {}


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """When the evaluation was begun and gone on with, see :class:`~monai_adv.evaluation.evidence.history.Session`.

    Raises:
        InputError: a damaged file.
    """
    path = Path(folder) / "history.json"
    entries: list[dict[str, Any]] = Store(folder)._read(path)["entries"] if path.exists() else []
    return entries


def read_subgroups(folder: str | Path) -> dict[str, Any] | None:
    """What :meth:`Store.add_subgroups` kept, or None.

    Raises:
        InputError: a damaged file.
    """
    path = Path(folder) / "subgroups.json"
    return Store(folder)._read(path) if path.exists() else None


def safe_name(name: str) -> str:
    """A file name for any text, on any file system; two texts never share one.

    Example:
        >>> safe_name("hippocampus_001"), safe_name("l2-5")
        ('hippocampus_001', 'l2-5')
        >>> safe_name("a/b") == safe_name("a-b"), safe_name("IMA").lower() == safe_name("ima")
        (False, False)
    """
    if re.fullmatch(r"[a-z0-9_-]([a-z0-9._-]{0,78}[a-z0-9_-])?", name):
        return name
    # Some file systems do not tell capitals apart, and all bound the length: the hash does the telling.
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".")
    return f"{readable}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


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


class Store:
    """Reads and writes one folder. Several processes may write different cases at the same time.

    Args:
        folder: made by :meth:`open`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def _identity(self) -> str:
        """Of the evaluation: what belongs to another one does not belong here."""
        content = read_evaluation(self.folder)
        return seal.checksum({name: value for name, value in content.items() if name not in NOT_COMPARED})

    @classmethod
    def open(cls, folder: str | Path, evaluation: dict[str, Any], marks: Mapping[str, Marks] | None = None) -> Store:
        """Start a folder, or go on with one of the same evaluation.

        Args:
            folder: new, empty, or of an evaluation that did not finish.
            evaluation: what :func:`read_evaluation` documents, without ``format``.
            marks: of the files that each model depends on.

        Raises:
            InputError: the folder cannot be written, holds something else, or belongs to another evaluation; says
                what differs.
        """
        store = cls(folder)
        store.check_place()
        path = store.folder / "evaluation.json"
        content = json.loads(json.dumps({"format": FORMAT, **evaluation}))
        if path.exists():
            here = read_evaluation(folder)
            store.drop_partials(3600)
            found = dict(_differences(here, content))
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
            try:
                write_whole(path, _json(seal.sealed(content, EVALUATION)))
            except OSError as error:
                raise InputError.of("-o", str(folder), f"a folder that can be written ({error.strerror})") from error
        if marks:
            store._write(store.folder / "files.json", dict(marks))
        return store

    def marks(self, model: str) -> Marks:
        """Content hashes of the files that a model depends on, as :meth:`open` got them; empty where none are known."""
        path = self.folder / "files.json"
        if path.exists() and (self.folder / "evaluation.json").exists():
            with suppress(InputError):  # without them every file is read again, which is never wrong
                return dict(self._read(path).get(model, {}))
        return {}

    def check_place(self) -> None:
        """Refuse, before anything is computed, a folder that cannot be written or is somebody else's.

        Raises:
            InputError: says which.
        """
        try:
            new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "trial", b"")
            (self.folder / "trial").unlink()
            names = [p.name for p in self.folder.iterdir() if p.name != LOCK and not p.name.endswith(PARTIAL)]
            for folder in new:  # they come with the first file, when all input has been accepted
                folder.rmdir()
        except OSError as error:
            todo = "choose a folder that you may write to"
            raise InputError.of("-o", str(self.folder), f"a folder that can be written ({error.strerror})", todo) from (
                error
            )
        if names and "evaluation.json" not in names:
            raise InputError.of(
                "-o", str(self.folder), "a new or empty folder, or that of an evaluation",
                f"this one holds {', '.join(sorted(names)[:3])} and no evaluation.json",
            )  # fmt: skip

    def path(self, kind: str, *names: str, suffix: str = ".json") -> Path:
        """Where a file of these names lies.

        Raises:
            InputError: a link leads out of the folder: what is not ours is neither read nor deleted.
        """
        *above, last = map(safe_name, names)
        path = self.folder.joinpath(kind, *above, last + suffix)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{path}: leads out of the folder, to {path.resolve()}; remove this link.")
        return path

    def saved(self, model: str, case: str, level: str, stage: str) -> Saved | None:
        """One record with what belongs to it, or None if it is not finished."""
        path = self._record_path(model, case, level, stage)
        if not path.exists():
            return None
        todo = self._again(model, case)
        content = self._read(path, todo)
        with _reading(path, todo):
            record = content["record"]
            known = {f.name for f in fields(Record)} - {"own", "worst"}
            saved = Saved(
                Record(
                    own=tuple(_score(s) for s in record["own"]),
                    worst=tuple(_score(s) for s in record["worst"]),
                    **{name: record[name] for name in known},
                ),
                tuple(content["finished"]),
                tuple(content["carried"]),
                content["images"],
            )
            if saved.images is not None:
                self._images_path(saved.images, model, case)
        return saved

    def state(self, saved: Saved) -> State:
        """The state after a saved stage."""
        record = saved.record
        if saved.images is None:
            raise RuntimeError(f"{record.attack} of {record.case} at {record.level} has no images in the store")
        path = self._images_path(saved.images, record.model, record.case)
        images = torch.from_numpy(self._read_arrays(path, record.model, record.case)["images"])
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
            self._write_arrays(path, images=state.images.numpy())
            images = path.relative_to(self.folder).as_posix()
        return self.commit_record(record, state.finished, state.carried, images)

    def commit_record(
        self, record: Record, finished: Tensor, carried: Tensor | None = None, images: str | None = None
    ) -> Saved:
        """Keep a record to which no images belong, or only older ones."""
        carried = torch.zeros_like(finished) if carried is None else carried
        saved = Saved(record, tuple(finished.tolist()), tuple(carried.tolist()), images)
        content = {"record": record.as_dict(), "finished": saved.finished, "carried": saved.carried, "images": images}
        self._write(self._record_path(record.model, record.case, record.level, record.attack), content)
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
            for name in _ARRAYS:
                if (values := getattr(picture, name)) is not None:
                    arrays[f"{i}.{name}"] = np.asarray(values)
        heads = json.dumps([{"case": p.case, "caption": p.caption} for p in pictures])
        path = self.path("pictures", model, case, level, suffix=".npz")
        self._write_arrays(path, compressed=True, heads=np.array(heads), **arrays)

    def has_pictures(self, model: str, case: str, level: str) -> bool:
        """Whether :meth:`add_pictures` was called."""
        return self.path("pictures", model, case, level, suffix=".npz").exists()

    def add_problem(self, model: str, case: str, reason: str, details: str = "") -> None:
        """Note that a case could not be used, or with case "" something else of a model; ``details``: a traceback."""
        path = self.path("problems", model, case) if case else self.path("problems", model)
        self._write(path, {"case": case, "reason": reason, "details": details})

    def clear_problem(self, model: str, case: str) -> None:
        """The case can be used now."""
        with suppress(FileNotFoundError):
            (self.path("problems", model, case) if case else self.path("problems", model)).unlink()

    def add_probe(self, model: str, result: dict[str, Any]) -> None:
        """Keep what the probes of a model found."""
        self._write(self.path("probes", model), result)

    def probe(self, model: str) -> dict[str, Any] | None:
        """What the probes of a model found, or None if they have not run."""
        path = self.path("probes", model)
        return self._read(path) if path.exists() else None

    def probed_once(self, model: str, case: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the probes found on a case, with ``seconds``: as it is kept, or found now and kept."""
        path = self.path("probes", model, case)
        if not path.exists():
            start = time.perf_counter()
            found = find()
            self._write(path, {**found, "seconds": time.perf_counter() - start})
        return self._read(path)

    def add_cost(self, **parts: dict[str, Any]) -> None:
        """Add to ``cost.json``; see :func:`read_cost`."""
        self._write(self.folder / "cost.json", {**read_cost(self.folder), **parts})

    def add_history(self, entry: Mapping[str, Any]) -> None:
        """Add to ``history.json``; see :func:`read_history`."""
        self._write(self.folder / "history.json", {"entries": [*read_history(self.folder), dict(entry)]})

    def add_subgroups(self, table: Mapping[str, Any]) -> None:
        """Keep the table of groups of the cases, instead of an earlier one."""
        self._write(self.folder / "subgroups.json", dict(table))

    def drop_partials(self, age: float = 0.0) -> None:
        """Delete what killed processes had not finished writing.

        Args:
            age: in seconds, of the youngest: a younger file may belong to a worker that still lives.
        """
        for path in self.folder.rglob(f"*{PARTIAL}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime >= age:
                    path.unlink()

    def _place(self, path: Path) -> tuple[str, str]:
        return self._identity, path.relative_to(self.folder).as_posix()

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        self._write_bytes(path, _json(seal.sealed(content, *self._place(path))))

    def _read(self, path: Path, todo: str = AGAIN) -> dict[str, Any]:
        """What :meth:`_write` wrote there.

        Raises:
            InputError: something else lies there; says what to do.
        """
        with _reading(path, todo):
            return seal.opened(json.loads(path.read_text(encoding="utf-8")), *self._place(path))

    def _write_arrays(self, path: Path, compressed: bool = False, **arrays: np.ndarray[Any, Any]) -> None:
        self._write_bytes(path, _npz(compressed, **seal.sealed_arrays(arrays, *self._place(path))))

    def _read_arrays(self, path: Path, model: str, case: str) -> dict[str, np.ndarray[Any, Any]]:
        with _reading(path, self._again(model, case)), np.load(path) as file:
            return seal.opened_arrays(dict(file), *self._place(path))

    def _again(self, model: str, case: str) -> str:
        """What to do about a file of a case: later records follow from earlier ones."""
        return f"delete the folder {self.path('records', model, case, suffix='')} and give the same command again"

    def _images_path(self, name: str, model: str, case: str) -> Path:
        """Where the images of a record lie: in the folder of its case, whatever it says."""
        path = self.folder / name
        if path.parent != self.path("images", model, case, suffix="") or path.is_symlink() or path.suffix != ".npz":
            raise ValueError(f"it names the images {name!r}, which are not of its case")
        return path

    def _write_bytes(self, path: Path, content: bytes) -> None:
        """Write a file of an evaluation that has begun.

        Raises:
            PlaceError: it cannot be written, or somebody deleted the folder.
        """
        if not (self.folder / "evaluation.json").exists():
            raise PlaceError(f"{self.folder}: was deleted or moved away while the evaluation ran; start it again.")
        try:
            write_whole(path, content)
        except OSError as error:
            raise PlaceError(
                f"{path}: cannot be written ({error.strerror or error}); make room or give the permission, and go on "
                "with the same command. What was finished is kept."
            ) from error

    def _record_path(self, model: str, case: str, level: str, stage: str) -> Path:
        return self.path("records", model, case, f"{level}.{stage}" if level else "clean")


_ARRAYS = ("clean", "attacked", "truth", "on_clean", "on_attacked")


def _score(content: dict[str, Any]) -> Score:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    return Score(**values)


def _differences(here: Any, new: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Where two contents of ``evaluation.json`` differ, and how."""
    if name.endswith(".computes") and isinstance(here, dict) and isinstance(new, dict):
        if not same_computed(here, new):
            parts = [part for part in here if part in new and not same_computed({part: here[part]}, new)]
            yield name, f"another {' and '.join(parts)} for the same case: the code, its settings or its data changed"
    elif isinstance(here, dict) and isinstance(new, dict):
        for key in [*here, *(k for k in new if k not in here)]:
            if name or key not in NOT_COMPARED:
                yield from _differences(here.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(here, list) and isinstance(new, list) and len(here) == len(new):
        for i, (a, b) in enumerate(zip(here, new, strict=True)):
            label = _label(a) or i
            if _label(a) != _label(b):  # something else altogether: how it differs otherwise is no news
                yield f"{name}[{label}]", f"{_short(a)} there, {_short(b)} now"
            else:
                yield from _differences(a, b, f"{name}[{label}]")
    elif name.endswith(".fingerprint"):
        if here != new:
            yield name, "other weights, other data, or deployed in another way"
    elif name.endswith(".files"):
        if here != new:
            yield name, "the contents of files"
    elif here != new:
        yield name, f"{_short(here)} there, {_short(new)} now"


def _label(value: Any) -> str | None:
    """What an entry of a list is called."""
    return value.get("name", value.get("key")) if isinstance(value, dict) else None


def _short(value: Any) -> str:
    if _label(value):
        value = _label(value)
    elif isinstance(value, list) and any(map(_label, value)):
        value = list(map(_label, value))
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


@contextmanager
def _reading(path: Path, todo: str) -> Iterator[None]:
    """Name the file that is not as it was written, and what to do."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zip, numpy and json raise kinds of their own
        reason = str(error) if type(error) is ValueError else first_cause(error)
        raise InputError(f"{path}: is not as it was written ({reason.rstrip('.')}); {todo}.") from error


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _npz(compressed: bool = False, **arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()

"""Certify the cases of models, one after another; with a folder what is finished stays and is not done again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TextIO

import torch
from tqdm.auto import tqdm

from monai_adv.certificates import Certification
from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation.certify.cases import Certified, certify_case, check_case
from monai_adv.evaluation.certify.kept import Proven, keep, read_kept
from monai_adv.evaluation.certify.results import Certificates
from monai_adv.evaluation.models.classifier import first_of
from monai_adv.evaluation.models.fingerprint import contents, marks_of
from monai_adv.evaluation.models.protocol import Model, Source
from monai_adv.evaluation.random_streams import seed_of
from monai_adv.evaluation.run.workers import Killed, Pool, ThisProcess
from monai_adv.evaluation.sealed_folder import safe_name
from monai_adv.evaluation.settings import selected
from monai_adv.files import locked, unlocked

WHAT = "certification.json"


@dataclass(frozen=True)
class ModelEntry:
    """A model whose smoothed version is certified.

    Attributes:
        name: of the model.
        fingerprint: of what is in memory.
        files: hash of the contents of all its files.
        cases: names of those selected.
    """

    name: str
    fingerprint: str
    files: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class What:
    """What a folder is about: the content of ``certification.json``."""

    settings: Certification
    models: tuple[ModelEntry, ...]


def certify_models(
    sources: Sequence[Source],
    settings: Certification,
    folder: Path | None = None,
    *,
    cases: int | tuple[str, ...] | None = None,
    bars: bool = False,
    pool: Pool | None = None,
) -> Certificates:
    """Certify all cases of models.

    Args:
        sources: of the models, all of one kind.
        settings: noise and draws; every case has a random stream of its own.
        folder: new, or of the same certification that did not finish; None: nothing is written.
        cases: the first so many patients or images, or names; None: all.
        bars: show how far it is.
        pool: who does the work; default: this process. The numbers are the same.

    Raises:
        InputError: a model or folder that cannot be used, or settings with which nothing can be shown.
    """
    models: list[Model] = [first_of(source.open(), cases) for source in sources]
    if len({model.kind for model in models}) > 1:
        raise InputError.of("models", "classifiers and segmentation models", "one kind in one call")
    chosen = {model.name: selected(cases, model.cases) for model in models}
    if folder is None or not folder.exists():  # what is refused leaves none that the corrected command would not fit
        for model in models:
            _check_first(model, chosen[model.name], settings)
    problems = [(model.name, "", reason) for model in models for reason in model.problems]
    run, threads = uuid.uuid4().hex, torch.get_num_threads()
    works = [_Work(f"{run} {i}", source, settings, cases, threads) for i, source in enumerate(sources)]
    for work, model in zip(works, models, strict=True):
        _open[work.key] = model
    lock = None if folder is None else _opened(folder, models, settings, chosen)
    tasks = [(work, model.name, name) for work, model in zip(works, models, strict=True) for name in chosen[model.name]]
    found: dict[int, list[Certified]] = {}
    try:
        places = [None if folder is None else _path(folder, *names) for _, *names in tasks]
        kept = {
            i: list(read_kept(path, Proven, *tasks[i][1:]).cases)
            for i, path in enumerate(places)
            if path is not None and path.exists()
        }
        todo = [i for i in range(len(tasks)) if i not in kept]
        found |= kept
        with tqdm(total=len(tasks), initial=len(kept), desc="certifying", unit="case", disable=not bars) as bar:
            for number, result in (pool or ThisProcess()).run(_certified, [(tasks[i][0], tasks[i][2]) for i in todo]):
                place, path = tasks[todo[number]][1:], places[todo[number]]
                if isinstance(result, list):
                    found[todo[number]] = result
                    if path is not None:
                        keep(path, Proven(tuple(result)), *place)
                else:
                    problems.append((*place, result.reason if isinstance(result, Killed) else result))
                bar.update()
    finally:
        unlocked(lock)
        for work in works:
            del _open[work.key]
    every = tuple(one for i in sorted(found) for one in found[i])
    return Certificates(models[0].kind, settings, every, tuple(problems))


@dataclass(frozen=True)
class _Work:
    """One model, as a worker gets it."""

    key: str
    source: Source
    settings: Certification
    cases: int | tuple[str, ...] | None
    threads: int


_open: dict[str, Model] = {}
"""The models that this process has opened."""


def _certified(work: _Work, name: str) -> list[Certified] | str:
    """What is proven about a case, or why it cannot be used."""
    if work.key not in _open:
        for old in [key for key in _open if key.split()[0] != work.key.split()[0]]:
            del _open[old]  # of earlier runs of a long-lived worker
        _open[work.key] = first_of(work.source.open(), work.cases)
    model = _open[work.key]
    threads = torch.get_num_threads()
    torch.set_num_threads(work.threads)  # the last digits of the logits depend on it
    try:
        return certify_case(model, model.load(name), replace(work.settings, seed=seed_of(work.settings.seed, name)))
    except InputError as error:
        return in_a_sentence(error)
    finally:
        torch.set_num_threads(threads)


def _check_first(model: Model, cases: Sequence[str], settings: Certification) -> None:
    """See :func:`check_case`, of the first case that can be read.

    Raises:
        InputError: also where none can be read.
    """
    refused: InputError | None = None
    for name in cases:
        try:
            case = model.load(name)
        except InputError as error:
            refused = refused or error
            continue
        return check_case(model, case, settings)
    assert refused is not None
    raise refused


def _path(folder: Path, model: str, name: str) -> Path:
    return folder / safe_name(model) / f"{safe_name(name)}.json"


def _opened(
    folder: Path, models: Sequence[Model], settings: Certification, chosen: dict[str, tuple[str, ...]]
) -> TextIO | None:
    """Start a folder or go on with it; returns its lock."""
    entries = [ModelEntry(m.name, m.fingerprint, contents(marks_of(m.files)), chosen[m.name]) for m in models]
    what = What(settings, tuple(entries))
    path = folder / WHAT
    if path.exists():
        here = read_kept(path, What, WHAT, todo="")
        if here != what:
            differs = [f.name for f in fields(what.settings)
                       if getattr(here.settings, f.name) != getattr(what.settings, f.name)]  # fmt: skip
            differs += ["models or cases"] * (here.models != what.models)
            raise InputError.of(
                "folder", str(folder), "one with the same certification, or a new one",
                f"this one differs in {', '.join(differs)}",
            )  # fmt: skip
    elif folder.exists() and any(folder.iterdir()):
        raise InputError.of("folder", str(folder), "a new or empty folder, or that of a certification")
    else:
        keep(path, what, WHAT)
    try:
        return locked(folder)
    except BlockingIOError as error:
        raise InputError.of("folder", str(folder), "one that nobody else writes to", f"{error} does") from error

"""Certify the cases of models, one after another; with a folder what is finished stays and is not done again.

The folder is the store of an evaluation in which nothing is attacked, so that its evidence and ``monai-adv verify`` are
those of every other.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from monai_adv.certificates import Certification
from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation.certified_outcome import Certificates
from monai_adv.evaluation.certify.cases import Certified, certify_case
from monai_adv.evaluation.certify.kept import Proven, is_certified, keep, read_certified
from monai_adv.evaluation.clock import now
from monai_adv.evaluation.described import Evaluation, SettingsEntry
from monai_adv.evaluation.evidence.certified import decide_alone
from monai_adv.evaluation.evidence.code import code_hash
from monai_adv.evaluation.evidence.document import CERTIFICATES, write_evidence
from monai_adv.evaluation.evidence.history import Session, purpose_of, sessions
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.models.classifier import first_of
from monai_adv.evaluation.models.protocol import Model, Source, check_distinct
from monai_adv.evaluation.models.smoothed import check_case
from monai_adv.evaluation.run.measure import threads_for
from monai_adv.evaluation.run.workers import Killed, Pool, ThisProcess, entry_of, identified, machine, versions
from monai_adv.evaluation.sealed_folder import is_begun
from monai_adv.evaluation.search.runner import reproducible
from monai_adv.evaluation.settings import selected
from monai_adv.evaluation.store import Store
from monai_adv.files import unlocked, write_whole


def certify_models(
    sources: Sequence[Source],
    settings: Certification,
    folder: Path | None = None,
    *,
    cases: int | tuple[str, ...] | None = None,
    device: str = "cpu",
    bars: bool = False,
    pool: Pool | None = None,
    asked: str = "",
    purpose: Purpose = Purpose(),  # noqa: B008  frozen
) -> Certificates:
    """Certify all cases of models.

    Args:
        sources: of the models, all of one kind.
        settings: noise and draws; every case has a random stream of its own.
        folder: new, or of the same certification that did not finish; it gets a table and the evidence as well. None:
            nothing is written.
        cases: the first so many patients or images, or names; None: all.
        device: on which the models are.
        bars: show how far it is.
        pool: who does the work; default: this process. The numbers are the same.
        asked: what was asked for on the command line, for the evidence.
        purpose: what the models are for, with acceptance criteria; empty: as stated before in this folder.

    Raises:
        InputError: a model or folder that cannot be used, settings with which nothing can be shown, or no case that
            can be used.
    """
    models: list[Model] = [first_of(source.open(), cases) for source in sources]
    check_distinct("models", [model.name for model in models], "the host says how to name a model")
    if len({model.kind for model in models}) > 1:
        raise InputError.of("models", "classifiers and segmentation models", "one kind in one call")
    purpose.check_certified()
    for model in models:
        purpose.check_model(model.name, model.kind, model.classes)
    chosen = {model.name: selected(cases, model.cases) for model in models}
    if folder is None or not is_begun(folder):
        # What is refused leaves no folder that the corrected command would not fit.
        for model in models:
            _check_first(model, chosen[model.name], settings)
    run, threads = uuid.uuid4().hex, threads_for(folder, None)
    works = [_Work(f"{run} {i}", source, settings, cases, threads) for i, source in enumerate(sources)]
    for work, model in zip(works, models, strict=True):
        _open[work.key] = model
    tasks = [(work, model.name, name) for work, model in zip(works, models, strict=True) for name in chosen[model.name]]
    problems = [(model.name, "", reason) for model in models for reason in model.problems]
    store = lock = None
    try:
        if folder is not None:
            evaluation = SettingsEntry(
                attacks="none", seed=settings.seed, batch_size=settings.inputs_per_pass, cases=cases, box=None,
                device=device.split(":")[0], threads=threads, certify=settings,
            )  # fmt: skip
            store, lock = _begun(folder, models, evaluation, chosen, asked, purpose)
            purpose = purpose_of(sessions(folder))
        found = {} if store is None else _kept(store, [place for _, *place in tasks])
        todo = [i for i in range(len(tasks)) if i not in found]
        with tqdm(total=len(tasks), initial=len(found), desc="certifying", unit="case", disable=not bars) as bar:
            for number, result in (pool or ThisProcess()).run(_certified, [(tasks[i][0], tasks[i][2]) for i in todo]):
                place = tasks[todo[number]][1:]
                if isinstance(result, list):
                    found[todo[number]] = result
                else:
                    problems.append((*place, result.reason if isinstance(result, Killed) else result))
                _keep(store, place, result)
                bar.update()
        every = tuple(one for i in sorted(found) for one in found[i])
        if not every:
            raise InputError(f"cases: none could be used. {': '.join(problems[-1])}")
        decisions = {
            m.name: tuple(
                decide_alone(c, [one for one in every if one.model == m.name], m, settings.seed)
                for c in purpose.criteria
            )
            for m in models
        }  # fmt: skip
        certificates = Certificates(models[0].kind, settings, every, tuple(problems), decisions)
        if folder is not None:
            _file(folder, certificates)
        return certificates
    finally:
        unlocked(lock)
        for work in works:
            del _open[work.key]


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
    try:
        with reproducible(work.threads):
            return certify_case(model, model.load(name), work.settings)
    except Exception as error:  # of the model's own code, for this one case
        return in_a_sentence(error)


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


def _begun(
    folder: Path,
    models: Sequence[Model],
    settings: SettingsEntry,
    chosen: Mapping[str, tuple[str, ...]],
    asked: str,
    purpose: Purpose,
) -> tuple[Store, TextIO | None]:
    """Start a folder or go on with it; returns it with its lock.

    Raises:
        InputError: it holds something else, or somebody else writes to it.
    """
    store = Store(folder)
    lock = store.lock()
    try:
        with reproducible(settings.threads):
            entries = [identified(entry_of(m, chosen[m.name], {}, ()), m, folder) for m in models]
        evaluation = Evaluation(
            started=now(),
            machine=machine(),
            versions=versions(),
            settings=settings,
            levels=(),
            words={},
            models=tuple(entry for entry, _ in entries),
            run_file=asked,
        )
        store = Store.open(folder, evaluation, {entry.name: marks for entry, marks in entries})
        Session(
            at=evaluation.started,
            machine=evaluation.machine,
            records=sum(is_certified(store, m.name, case) for m in models for case in chosen[m.name]),
            command=asked,
            code=code_hash(),
            purpose=purpose,
        ).keep(store)
    except BaseException:
        unlocked(lock)
        raise
    return store, lock


def _kept(store: Store, places: Sequence[Sequence[str]]) -> dict[int, list[Certified]]:
    """What is proven of cases that are finished, by their number."""
    found = enumerate(places)
    return {i: read_certified(store, model, [case]) for i, (model, case) in found if is_certified(store, model, case)}


def _keep(store: Store | None, place: tuple[str, str], result: list[Certified] | Killed | str) -> None:
    if store is None:
        return
    if isinstance(result, list):
        store.clear_problem(*place)
        keep(store, Proven(tuple(result)), *place)
    else:
        store.add_problem(*place, result.reason if isinstance(result, Killed) else result)


def _file(folder: Path, certificates: Certificates) -> None:
    """The table, and the evidence."""
    table = certificates.frame().to_csv(index=False).encode(errors="backslashreplace")
    try:
        write_whole(folder / CERTIFICATES, table)
        hashes = {CERTIFICATES: hashlib.sha256(table).hexdigest()}
        write_evidence(folder, gather(folder, attacked=False), folder, hashes)
    except OSError as error:
        raise InputError.of("folder", str(folder), f"a folder that can be written ({error.strerror})") from error

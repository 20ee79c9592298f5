"""Certify the cases of models, one after another; with a folder what is finished stays and is not done again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from monai_adv.certificates import Certification
from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation import seal
from monai_adv.evaluation.certify.cases import Certified, certify_case, check_case
from monai_adv.evaluation.certify.results import Certificates
from monai_adv.evaluation.models.classifier import first_of
from monai_adv.evaluation.models.fingerprint import contents, marks_of
from monai_adv.evaluation.models.protocol import Model, Source
from monai_adv.evaluation.random_streams import seed_of
from monai_adv.evaluation.run.workers import Killed, Pool, ThisProcess
from monai_adv.evaluation.sealed_folder import safe_name
from monai_adv.evaluation.settings import selected
from monai_adv.files import locked, unlocked, write_whole

WHAT = "certification.json"


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
        kept = {i: _kept(path, *tasks[i][1:]) for i, path in enumerate(places) if path is not None and path.exists()}
        todo = [i for i in range(len(tasks)) if i not in kept]
        found |= kept
        with tqdm(total=len(tasks), initial=len(kept), desc="certifying", unit="case", disable=not bars) as bar:
            for number, result in (pool or ThisProcess()).run(_certified, [(tasks[i][0], tasks[i][2]) for i in todo]):
                place, path = tasks[todo[number]][1:], places[todo[number]]
                if isinstance(result, list):
                    found[todo[number]] = result
                    if path is not None:
                        content = {"cases": [one.as_dict() for one in result]}
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_whole(path, json.dumps(seal.sealed(content, *place), indent=1))
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


def _kept(path: Path, *place: str) -> list[Certified]:
    try:
        content = seal.opened(json.loads(path.read_text(encoding="utf-8")), *place)
        return [Certified(**one) for one in content["cases"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError.of(str(path), in_a_sentence(error), "the file as it was written", "delete it") from error


def _opened(folder: Path, models: Sequence[Model], settings: Certification, chosen: dict[str, tuple[str, ...]]) -> Any:
    """Start a folder or go on with it; returns its lock."""
    what = json.loads(
        json.dumps(
            {
                "settings": asdict(settings),
                "models": [
                    {"name": m.name, "fingerprint": m.fingerprint, "files": contents(marks_of(m.files)),
                     "cases": chosen[m.name]} for m in models
                ],
            }
        )
    )  # fmt: skip
    path = folder / WHAT
    if path.exists():
        try:
            here = seal.opened(json.loads(path.read_text(encoding="utf-8")), WHAT)
        except (OSError, ValueError) as error:
            raise InputError.of(str(path), in_a_sentence(error), "the file as it was written") from error
        if here != what:
            differs = [k for k, v in what["settings"].items() if here["settings"].get(k) != v]
            differs += ["models or cases"] * (here["models"] != what["models"])
            raise InputError.of(
                "folder", str(folder), "one with the same certification, or a new one",
                f"this one differs in {', '.join(differs)}",
            )  # fmt: skip
    elif folder.exists() and any(folder.iterdir()):
        raise InputError.of("folder", str(folder), "a new or empty folder, or that of a certification")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(seal.sealed(what, WHAT), indent=1))
    try:
        return locked(folder)
    except BlockingIOError as error:
        raise InputError.of("folder", str(folder), "one that nobody else writes to", f"{error} does") from error

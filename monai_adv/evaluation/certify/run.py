"""Certify the cases of models, one after another; with a folder what is finished stays and is not done again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from monai_adv.certificates import Certification
from monai_adv.errors import InputError, in_a_sentence
from monai_adv.evaluation import seal
from monai_adv.evaluation.certify.cases import Certified, certify_case
from monai_adv.evaluation.certify.results import Certificates
from monai_adv.evaluation.models.classifier import first_of
from monai_adv.evaluation.models.fingerprint import contents, marks_of
from monai_adv.evaluation.models.protocol import Model, Source
from monai_adv.evaluation.random_streams import seed_of
from monai_adv.evaluation.settings import selected
from monai_adv.evaluation.store import safe_name
from monai_adv.files import locked, unlocked, write_whole

WHAT = "certification.json"


def certify_models(
    sources: Sequence[Source],
    settings: Certification,
    folder: Path | None = None,
    *,
    cases: int | tuple[str, ...] | None = None,
    bars: bool = False,
) -> Certificates:
    """Certify all cases of models.

    Args:
        sources: of the models, all of one kind.
        settings: noise and draws; every case has a random stream of its own.
        folder: new, or of the same certification that did not finish; None: nothing is written.
        cases: the first so many patients or images, or names; None: all.
        bars: show how far it is.

    Raises:
        InputError: a model or folder that cannot be used, or settings with which nothing can be shown.
    """
    models: list[Model] = [first_of(source.open(), cases) for source in sources]
    if len({model.kind for model in models}) > 1:
        raise InputError.of("models", "classifiers and segmentation models", "one kind in one call")
    chosen = {model.name: selected(cases, model.cases) for model in models}
    problems = [(model.name, "", reason) for model in models for reason in model.problems]
    lock = None if folder is None else _opened(folder, models, settings, chosen)
    found: list[Certified] = []
    try:
        total = sum(map(len, chosen.values()))
        with tqdm(total=total, desc="certifying", unit="case", disable=not bars) as bar:
            for model in models:
                for name in chosen[model.name]:
                    try:
                        found += _case(model, name, settings, folder)
                    except _Unreadable as error:
                        problems.append((model.name, name, str(error)))
                    bar.update()
    finally:
        unlocked(lock)
    return Certificates(models[0].kind, settings, tuple(found), tuple(problems))


def _case(model: Model, name: str, settings: Certification, folder: Path | None) -> list[Certified]:
    place = (model.name, name)
    path = None if folder is None else folder / safe_name(model.name) / f"{safe_name(name)}.json"
    if path is not None and path.exists():
        try:
            content = seal.opened(json.loads(path.read_text(encoding="utf-8")), *place)
            return [Certified(**one) for one in content["cases"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError.of(str(path), in_a_sentence(error), "the file as it was written", "delete it") from error
    try:
        case = model.load(name)
    except InputError as error:
        raise _Unreadable(in_a_sentence(error)) from error
    found = certify_case(model, case, replace(settings, seed=seed_of(settings.seed, name)))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(seal.sealed({"cases": [one.as_dict() for one in found]}, *place), indent=1))
    return found


class _Unreadable(Exception):
    """A case whose files cannot be used; the others can."""


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

"""From models and settings to a finished folder: what every door to the evaluation shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from monai_adv.evaluation.evidence.group_table import GroupTable
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.models.protocol import Source
from monai_adv.evaluation.run.parts import Finished, Parts
from monai_adv.evaluation.run.session import Session
from monai_adv.evaluation.run.workers import Pool, ThisProcess
from monai_adv.evaluation.sealed_folder import is_begun
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import read_evaluation
from monai_adv.foreign_text import say


def measure(
    sources: Sequence[Source],
    settings: EvaluationSettings,
    folder: Path,
    pool: Pool | None = None,
    *,
    say: Callable[[str], None] = say,
    bars: bool = True,
    dry_run: bool = False,
    agreed: Callable[[], bool] = lambda: True,
    asked: str = "",
    purpose: Purpose | None = None,
    groups: GroupTable | None = None,
    parts: Parts = Parts(),  # noqa: B008  frozen
) -> Finished | None:
    """Attack the models, or go on with it, and write the report.

    Args:
        sources: of the models.
        settings: of the evaluation.
        folder: of the store, absolute, new or one to go on with.
        pool: who does the work; default: this process.
        say: gets what is to be told, line by line.
        bars: show how far it is.
        dry_run: only predict the cost.
        agreed: called when the cost is known, unless finished records are there already.
        asked: the run file of this evaluation, for the report.
        purpose: what the models are for, with acceptance criteria; None: as stated before in this folder.
        groups: which group each case belongs to; None: as given before in this folder.
        parts: what is done around the attacks.

    Returns:
        the exit code of ``monai-adv evaluate``, and the figures; None if nothing was to be computed.

    Raises:
        InputError: a model, case or folder that cannot be used.
    """
    with closing(
        Session(sources, settings, folder, pool or ThisProcess(), say, bars, asked, purpose, groups, parts)
    ) as session:
        session.prepare(write=not dry_run)
        if dry_run or not (session.resumed or agreed()):
            return None
        return session.finish()


def threads_for(folder: Path | None, asked: int | None) -> int:
    """As asked; when an evaluation goes on, as it began; otherwise as torch likes it on this machine."""
    if asked is not None:
        return asked
    if folder is not None and is_begun(folder):
        return read_evaluation(folder).settings.threads
    return torch.get_num_threads()

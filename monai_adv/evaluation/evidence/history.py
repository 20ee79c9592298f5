"""When an evaluation was begun and gone on with, and what was stated then: a threshold set afterwards has to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monai_adv.evaluation.codec import optional
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.store import Store, read_history


@dataclass(frozen=True, kw_only=True)
class Session:
    """One command that worked in the folder.

    Attributes:
        at: date and time, ISO 8601.
        machine: in words.
        records: that were finished before it.
        command: the run file, see ``--run``; "" from Python.
        code: hash of the code of monai-adv, see :func:`~monai_adv.evaluation.evidence.code.code_hash`.
        purpose: as stated then; None: nothing was stated, what stood before holds.
        subgroups: hash of a table of groups that was given then; "" if none was.
    """

    at: str
    machine: str
    records: int
    command: str
    code: str = ""
    purpose: Purpose | None = None
    subgroups: str = optional("")

    def keep(self, store: Store) -> None:
        """Add it to the folder's history."""
        store.add_history(self if self.purpose else replace(self, purpose=None))


def sessions(folder: str | Path) -> list[Session]:
    """All sessions of a folder, the first one first.

    Raises:
        InputError: a damaged file.
    """
    return read_history(folder, Session)


def purpose_of(history: Sequence[Session]) -> Purpose:
    """What was stated last; empty if nothing was."""
    return next((s.purpose for s in reversed(history) if s.purpose), Purpose())


def told_late(history: Sequence[Session]) -> list[str]:
    """What was stated only after something had been measured, a sentence each."""
    found, before, groups = [], Purpose(), set[str]()
    for session in history:
        if session.purpose and session.purpose != before:
            if session.records:
                what = "changed" if before else "stated"
                found.append(
                    f"Intended use and acceptance criteria were {what} on {session.at[:16].replace('T', ' ')}, after "
                    f"{session.records} results were known."
                )
            before = session.purpose
        if session.records and session.subgroups and session.subgroups not in groups:
            found.append(
                f"The table of subgroups was given on {session.at[:16].replace('T', ' ')}, after {session.records} "
                "results were known."
            )
        groups.add(session.subgroups)
    return found

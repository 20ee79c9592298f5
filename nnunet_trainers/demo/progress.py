"""Stages: a line for each, a bar while it runs, the time it took; what is finished is not done again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_adv.errors import InputError
from nnunet_trainers.demo.workplace import MARKER, Workplace

LOG_TAIL = 15  # lines of the log that a failure shows


class StageFailed(Exception):
    """A stage did not finish; the message says what is known."""


@dataclass(frozen=True)
class Timing:
    """How long a stage took when it was run; ``reused``: in an earlier run of the demo."""

    name: str
    seconds: float
    cpu_seconds: float
    reused: bool


class Stages:
    """Runs stages one after the other.

    Args:
        place: where the stages leave a note of what they were made from.
        total: number of stages.
        basis: goes into every note: settings and versions. When it differs, everything is done anew.
    """

    def __init__(self, place: Workplace, total: int, basis: dict[str, Any]) -> None:
        self.place, self.total, self.basis = place, total, basis
        self.timings: list[Timing] = []
        self._started = time.monotonic()
        self._anew = False

    def run(self, name: str, makes: Sequence[Path], work: Callable[[], None]) -> None:
        """Do ``work`` unless an earlier run with the same basis has finished it and ``makes`` are still there.

        A stage that is done anew starts without what it makes, and so do all stages after it.

        Raises:
            StageFailed: something in it did not work.
        """
        note = self.place.folder / MARKER / f"{len(self.timings) + 1}.json"
        before = None if self._anew else _finished(note, self.basis, makes)
        head = f"[{len(self.timings) + 1}/{self.total}] {name}"
        if before is not None:
            self.timings.append(Timing(name, before["seconds"], before["cpu_seconds"], True))
            self._say(f"{head}: done in an earlier run", None)
            return
        self._anew = True
        for path in (note, *makes):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self._say(f"{head} ...", None)
        started, cpu = time.monotonic(), _cpu_seconds()
        try:
            work()
        except (InputError, StageFailed):
            raise
        except Exception as error:
            with self._open_log() as log:
                traceback.print_exc(file=log)
            raise StageFailed(f"{type(error).__name__}: {error}") from error
        timing = Timing(name, time.monotonic() - started, _cpu_seconds() - cpu, False)
        content = {"basis": self.basis, "seconds": timing.seconds, "cpu_seconds": timing.cpu_seconds}
        note.write_text(json.dumps(content, indent=1), encoding="utf-8")
        self.timings.append(timing)
        self._say(f"{head}: done", timing.seconds)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What Python prints goes to the log."""
        with self._open_log() as log, redirect_stdout(log), redirect_stderr(log):
            yield

    def bar(self, total: int, unit: str) -> Any:
        """A progress bar that ``quiet`` does not silence."""
        seconds = 0.5 if _on_a_terminal() else 15  # in a file every change of the bar is a line
        return tqdm(total=total, unit=unit, file=sys.__stderr__, leave=False, mininterval=seconds, dynamic_ncols=True)

    def command(self, words: Sequence[str], total: int, finished: Callable[[], int], **variables: str) -> None:
        """Run a command line with its output in the log; ``finished`` counts the cases it is done with.

        Raises:
            StageFailed: it is not installed, or its exit code is not 0.
        """
        program = shutil.which(words[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if program is None:
            raise StageFailed(f"the command {words[0]} is missing; run 'pip install --force-reinstall nnunetv2'")
        with self._open_log() as log, self.bar(total, "case") as bar:
            log.write("$ " + " ".join(words) + "\n")
            log.flush()
            process = subprocess.Popen(
                [program, *words[1:]], env={**os.environ, **variables}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            try:
                while process.poll() is None:
                    bar.update(finished() - bar.n)
                    if _on_a_terminal():
                        bar.refresh()  # the clock runs on while nothing is finished
                    time.sleep(0.5)
            finally:
                process.terminate()
                process.wait()
        if process.returncode != 0:
            raise StageFailed(f"{words[0]} ended with exit code {process.returncode}")

    def log_tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.place.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:])

    def _open_log(self) -> Any:
        return open(self.place.log, "a", encoding="utf-8", buffering=1)

    def _say(self, text: str, seconds: float | None) -> None:
        took = "" if seconds is None else f" in {clock(seconds)}"
        print(f"{clock(time.monotonic() - self._started):>6}  {text}{took}", flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, ``3:07``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _finished(note: Path, basis: dict[str, Any], makes: Sequence[Path]) -> dict[str, Any] | None:
    """The note of a stage that needs not be done again."""
    try:
        content: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = content.get("basis") == json.loads(json.dumps(basis))  # JSON has no tuples
    return content if same and all(path.exists() for path in makes) else None


def _on_a_terminal() -> bool:
    return sys.__stderr__ is not None and sys.__stderr__.isatty()


def _cpu_seconds() -> float:
    """Of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

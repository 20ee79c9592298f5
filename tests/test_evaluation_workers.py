"""Dask: the numbers of one process, whatever happens to the workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_evaluation_cli import numbers
from tiny_evaluate import SUBJECTS, evaluate
from tiny_subjects import KILL_AT, KILL_ONCE

from monai_adv.errors import InputError
from monai_adv.evaluation.factory import FactorySource
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import Store
from monai_adv.evaluation.subject import Level
from monai_adv.evaluation.workers import Dask, Job, ThisProcess

SETTINGS = EvaluationSettings((Level("linf", 0.02), Level("linf", 0.06)), "quick")


def job(folder: Path, run: str = "1") -> Job:
    return Job(run, FactorySource(f"{SUBJECTS}:classifier"), SETTINGS, str(folder))


def start(folder: Path) -> list[str]:
    """A store for the job; returns its cases."""
    model = job(folder).describe()["model"]
    Store.open(folder, {"models": [model]})
    cases: list[str] = model["cases"]
    return cases


def test_this_process_runs_one_after_the_other() -> None:
    assert list(ThisProcess().run(pow, [(2, 3), (3, 2)])) == [(0, 8), (1, 9)]


def test_a_worker_opens_a_model_once_per_run(tmp_path: Path) -> None:
    subjects = [job(tmp_path, run)._subject() for run in ("1", "1", "2")]
    assert subjects[0] is subjects[1]
    assert subjects[1] is not subjects[2]


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a path that all workers share"):
        job(tmp_path / "elsewhere").attack("images 0 to 7")


def test_a_scheduler_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")

    def times_out(*_: object, **__: object) -> None:
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", times_out)
    with pytest.raises(InputError, match="a scheduler that answers"):
        Dask("tcp://127.0.0.1:1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for case in start(folder):
        job(folder).attack(case)
    return folder


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_give_the_numbers_of_one_process(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    (tmp_path / "not yet").write_text("")
    monkeypatch.setenv(KILL_AT, "60")
    monkeypatch.setenv(KILL_ONCE, str(tmp_path / "not yet"))
    cases = start(tmp_path / "store")
    pool = Dask("local", 2)
    try:
        assert pool.workers == 2
        done = dict(pool.run(job(tmp_path / "store").attack, [(case,) for case in cases]))
    finally:
        pool.close()
    assert done == {0: True, 1: True, 2: True}
    assert not (tmp_path / "not yet").exists()  # somebody was killed
    assert numbers(tmp_path / "store") == numbers(alone)


@pytest.mark.slow
def test_the_command_takes_a_scheduler_that_runs_already(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    here = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp", **here) as running:  # in this process, where the probes are patched
        assert evaluate(tmp_path / "dask", "--dask", running.scheduler_address) == 0
    assert evaluate(tmp_path / "alone") == 0
    assert numbers(tmp_path / "dask") == numbers(tmp_path / "alone")

"""No bad case, full disk, foreign process or kill costs what was computed, and every ending says what it is."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from monai_adv.attacks import APGD, FAB, PGD
from monai_adv.attacks.cw import CW
from monai_adv.cli import main
from monai_adv.errors import InputError, say_it_last
from monai_adv.evaluation import store
from monai_adv.evaluation.checks import flags, probes
from monai_adv.evaluation.checks.probed import CaseProbe, ModelProbe
from monai_adv.evaluation.models.protocol import LiveSource
from monai_adv.evaluation.records import Level, Record
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.run import session, workers
from monai_adv.evaluation.run.parts import Parts
from monai_adv.evaluation.run.session import Session
from monai_adv.evaluation.run.workers import Dask, Killed, ThisProcess
from monai_adv.evaluation.search.plan import AttackPlan
from monai_adv.evaluation.search.runner import run_case
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import Store, read_cost, read_evaluation, read_pictures, read_problems, read_records
from monai_adv.exit_codes import ExitCode
from monai_adv.files import locked, unlocked
from monai_adv.threats import Threat
from tests import bad_models, tiny_models
from tests.places import TESTS
from tests.planted_evaluation import dice_score, folder_of, plant, probed
from tests.tiny_evaluate import evaluate, figures_only


def bad(folder: Path, model: str, *words: str, **handed: Any) -> int:
    """The exit code of a small evaluation of one of ``bad_models``."""
    factory = ("--factory", f"{TESTS / 'bad_models.py'}:{model}")
    return evaluate(folder, *factory, *(words or ("--norm", "linf", "--eps", "0.02")), models=(), **handed)


def by_case(folder: Path) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in read_records(folder):
        found.setdefault(record.case, []).append(replace(record, seconds=0.0))
    return found


def interrupted_at(number: int, act: Callable[[], None]) -> Parts:
    """Let something happen before the given stage is kept."""
    count = 0

    class Acts(Store):
        def commit(self, *args: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                act()
            return super().commit(*args)

    return figures_only(store=Acts)


# -------------------------------------------------------------------- cases that fail


@pytest.mark.parametrize(("model", "name"), [("odd_size", "1"), ("first_odd", "0")])
def test_a_case_on_which_the_network_raises_is_not_used_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, name: str
) -> None:
    assert bad(tmp_path / "out", model) == 1
    said = capsys.readouterr().out
    size = "RuntimeError: The size of tensor a (5) must match the size of tensor b (bad_models.py, line "
    assert f"not used: even, {name}: {size}" in said
    assert (tmp_path / "out" / "report.html").exists()
    assert set(by_case(tmp_path / "out")) == {"0", "1", "2"} - {name}
    (problem,) = (tmp_path / "out" / "problems" / "even").iterdir()
    assert "Traceback" in json.loads(problem.read_text())["details"]
    assert bad(tmp_path / "out", model) == 1  # and nothing blocks the way


def test_user_code_that_raises_while_a_case_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bad(tmp_path, "raises_in_python") == 1
    assert "not used: bad, images 0 to 1: KeyError: 'no such key' (bad_models.py, line " in capsys.readouterr().out


def test_no_case_that_the_network_takes_is_2_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bad(tmp_path / "out", "all_odd") == 2
    said = capsys.readouterr().err
    assert "monai-adv: even: network: received '0 in a batch of (1, 1, 5, 5)', allowed is images that it takes" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "in_numpy",
            "also where a gradient is wanted; RuntimeError: Can't call numpy() on Tensor",
        ),
        (
            "one_by_one",
            "received 'images 0 to 1 in a batch of (2, 1, 2, 2)', allowed is images that it takes, also",
        ),
    ],
)
def test_a_network_that_fails_in_the_first_passes_is_2_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, said: str
) -> None:
    assert bad(tmp_path / "out", model) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("monai-adv: bad: network: ")
    assert said in last
    assert not (tmp_path / "out").exists()


class Failing:
    """A pool in which one case kills every process."""

    workers = 1

    def __init__(self, case: str) -> None:
        self.case = case

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for i, task in enumerate(tasks):
            method, *arguments = task
            killed = getattr(method, "__name__", "") == "attack" and arguments[0] == self.case
            yield i, Killed() if killed else function(*task)

    def close(self) -> None:
        pass


def test_a_case_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    assert bad(tmp_path, "odd_size", pool=Failing("2")) == 1
    reasons = {case: reason for _, case, reason in read_problems(tmp_path)}
    assert set(reasons) == {"1", "2"}
    assert "was killed, as the system does where memory is short" in reasons["2"]
    assert bad(tmp_path, "odd_size") == 1
    assert {case for _, case, _ in read_problems(tmp_path)} == {"1"}


def test_of_the_tasks_of_a_dying_worker_only_the_guilty_one_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask blames all tasks that waited for the worker; each is tried once more by itself."""
    distributed = pytest.importorskip("distributed")
    tried: dict[int, int] = {}

    def submit(function: Any, number: int, pure: bool) -> Any:
        tried[number] = tried.get(number, 0) + 1

        def result() -> int:
            if number == 1 or (number == 2 and tried[number] == 1):
                raise distributed.KilledWorker("task", "worker", 3)
            return 10 * number

        return SimpleNamespace(key=(number, tried[number]), result=result)

    monkeypatch.setattr(distributed, "as_completed", lambda futures: futures)  # it wants futures of a real cluster
    pool = Dask.__new__(Dask)
    pool._client = Namespace(submit=submit)
    assert dict(pool.run(pow, [(0,), (1,), (2,)])) == {0: 0, 1: Killed(), 2: 20}


def test_probes_that_meet_a_bad_case_are_made_without_it(
    tmp_path: Path,
) -> None:
    """All three cases would be probed, and the second one fails."""
    asked = []

    def probe(model: Any, levels: Any, seed: int, cases: Sequence[str], steps: int, once: Any) -> ModelProbe:
        asked.append(list(cases))
        for case in cases:
            with torch.no_grad():
                model.network(model.load(case).images)
        return probed(cases=tuple(cases))

    sources, settings = [LiveSource(bad_models.odd_size())], EvaluationSettings((Level("linf", 0.02),), "quick")
    running = Session(sources, settings, tmp_path / "out", ThisProcess(), parts=figures_only(probe=probe))
    running.prepare()
    assert running.finish().code == 1
    running.close()
    assert asked == [["0", "1", "2"], ["0", "2"]]
    assert store.read_probes(tmp_path / "out")["even"].cases == ("0", "2")


@pytest.mark.parametrize("stop_at", [1, 2])
def test_probes_go_on_where_they_were_stopped(tmp_path: Path, stop_at: int) -> None:
    """Each probed case is a stage of its own: kept, told of, and never made twice."""
    made: list[str] = []

    def counted(model: Any, levels: Any, seed: int, cases: Sequence[str], steps: int, once: probes.Once) -> ModelProbe:
        def counting(name: str, find: Callable[[], CaseProbe]) -> CaseProbe:
            def counted_once() -> CaseProbe:
                if len(made) == stop_at and not (tmp_path / "stopped").exists():
                    (tmp_path / "stopped").touch()
                    raise KeyboardInterrupt
                made.append(name)
                return find()

            return once(name, counted_once)

        return probes.probe(model, levels, seed, cases, 5, counting)

    def job(folder: str) -> workers.Job:
        settings = EvaluationSettings((Level("linf", 0.02),), "quick")
        running = Session(
            [LiveSource(tiny_models.classifier())], settings, tmp_path / folder, ThisProcess(), str,
            parts=Parts(probe=counted),
        )  # fmt: skip
        running.prepare()
        running._open()
        running.close()
        return running.jobs[0]

    told: list[None] = []
    cases = tuple(tiny_models.classifier().cases)
    with pytest.raises(KeyboardInterrupt):
        job("out").probe(cases)
    assert job("out").probe(cases, lambda: told.append(None)) == ""
    assert made == list(cases)
    assert len(told) == len(cases)
    assert job("whole").probe(cases) == ""
    (there, whole) = (store.read_probes(tmp_path / folder)["tiny"] for folder in ("out", "whole"))
    assert replace(there, seconds=0.0) == replace(whole, seconds=0.0)


# -------------------------------------------------------------------- networks that attacks cannot differentiate


@pytest.mark.parametrize(
    "after",
    [torch.Tensor.detach, torch.round, torch.sign, lambda y: y.argmax(1, keepdim=True) == torch.arange(2)],
    ids=["detached", "rounded", "sign", "decision"],
)
def test_no_gradient_means_dead_samples_not_a_crash(after: Any) -> None:
    decide = after if after(torch.zeros(1, 2)).dtype != torch.bool else lambda y: after(y).float()
    model = bad_models.classifier(bad_models.Wrapped(after=decide))
    case = model.load(model.cases[1])
    threat = Threat("linf", 0.01)
    for attack in (
        PGD(threat, 3),
        APGD(threat, 3, None, until="wrong"),
        CW(Threat("l2", 0.01, unit="norm"), steps=2),
        FAB(threat),
    ):
        found = attack(case.network, case.images, case.target, case.task, generator=torch.Generator().manual_seed(0))
        assert found.dead.all(), type(attack)
        assert not found.wrong.any()


def test_no_gradient_is_a_failed_check(tmp_path: Path) -> None:
    model = bad_models.without_graph()
    settings = EvaluationSettings((Level("linf", 0.01),), "quick")
    running = Session([LiveSource(model)], settings, tmp_path / "out", ThisProcess(), say=lambda line: None)
    running.prepare()
    running._open()
    for case in model.cases:
        assert run_case(model, case, AttackPlan(model.kind, 2, settings), running.store)
    families = {k: {s.name: s.family for s in v} for k, v in running.models[0].stages.items()}
    found = flags.find_flags(read_records(tmp_path / "out"), "classification", families)
    assert next(flag for flag in found if flag.name == "zero-gradients").raised
    running.close()


def test_a_network_that_works_in_place_leaves_the_images_alone() -> None:
    """Doubling in place or not is the same function."""
    threat, found = Threat("linf", 0.2), []
    for before in (lambda x: x.mul_(2.0), lambda x: 2.0 * x):
        model = bad_models.classifier(bad_models.Wrapped(before=before))
        case = model.load(model.cases[2])
        images = case.images.clone()
        result = PGD(threat, 3)(case.network, case.images, case.target, case.task)
        scores = case.scores(result.images)
        assert torch.equal(case.images, images)
        found.append((result.images, result.margin, scores))
    torch.testing.assert_close(found[0][:2], found[1][:2], equal_nan=True)
    assert found[0][2] == found[1][2]


# -------------------------------------------------------------------- where it is written


def test_two_evaluations_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    other = locked(tmp_path / "out")
    assert other is not None
    assert bad(tmp_path / "out", "odd_size") == 2
    assert (
        f"allowed is a folder in which no other evaluation runs, here process {os.getpid()} on"
        in capsys.readouterr().err
    )
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["lock"]
    unlocked(other)
    assert bad(tmp_path / "out", "odd_size") == 1
    assert not (tmp_path / "out" / "lock").exists()


def test_a_lock_that_a_killed_process_left_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on elsewhere")
    file = locked(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    unlocked(file)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_deleted_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = interrupted_at(3, lambda: shutil.rmtree(tmp_path / "out"))
    assert bad(tmp_path / "out", "odd_size", parts=parts) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("out: was deleted or moved away while the evaluation ran; start it again.")
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_or_read_only_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    sync, count = os.fsync, 0

    def fails(file: int) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(code, os.strerror(code))
        sync(file)

    monkeypatch.setattr(os, "fsync", fails)  # no argument of the command makes a disk full
    assert bad(tmp_path / "out", "odd_size") == 2
    assert f"cannot be written ({os.strerror(code)}); make room or give" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.undo()
    assert bad(tmp_path / "out", "odd_size") == 1
    assert bad(tmp_path / "undisturbed", "odd_size") == 1
    assert by_case(tmp_path / "out") == by_case(tmp_path / "undisturbed")


def test_a_report_on_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = [dice_score(c, 0.9) for c in "ab"]
    folder = folder_of(tmp_path / "out", plant("m", clean, {("l2-1", "APGD-CE"): [dice_score(c, 0.5) for c in "ab"]}))
    write_report(folder)
    before = {f.name: f.read_bytes() for f in folder.glob("*.*")}

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # no argument makes a disk full
    with pytest.raises(InputError, match="a folder that can be written .No space left"):
        write_report(folder)
    monkeypatch.undo()
    assert {f.name: f.read_bytes() for f in folder.glob("*.*")} == before


def test_images_that_a_killed_process_left_behind_go(tmp_path: Path) -> None:
    assert bad(tmp_path, "odd_size") == 1
    orphan = tmp_path / "images" / "even" / "0" / "linf-0.02.APGD~x.npz"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"old")
    (tmp_path / "records" / "half.json-12ab.partial").write_bytes(b"{")
    assert bad(tmp_path, "odd_size") == 1
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".npz", ".partial") and "pictures" not in f.parts]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("cost.json", b"{", "cost.json: is not as it was written (JSONDecodeError: "),
        ("cost.json", b"[]", "cost.json: is not as it was written ("),
        ("probes/even.json", b"\xff", "probes/even.json: is not as it was written (UnicodeDecodeError: "),
        ("problems/even/1.json", b"{}", "problems/even/1.json: is not as it was written ("),
    ],
)
def test_garbled_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes, said: str
) -> None:
    assert bad(tmp_path, "odd_size") == 1
    (tmp_path / "probes" / "even.json").unlink()
    (tmp_path / file).write_bytes(content)
    capsys.readouterr()
    with pytest.raises(InputError) as refused:
        write_report(tmp_path)
    assert said in str(refused.value)
    assert "; delete it and give the same command again." in str(refused.value)
    (tmp_path / file).unlink()
    assert bad(tmp_path, "odd_size") == 1


def test_a_garbled_image_or_picture_is_named_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert bad(tmp_path, "odd_size", parts=interrupted_at(2, stop)) == 130
    (image,) = (tmp_path / "images").rglob("*.npz")
    image.write_bytes(b"PK")
    assert bad(tmp_path, "odd_size") == 1
    records = tmp_path / "records" / "even" / "0"
    assert f"not used: even, 0: {image}: is not as it was written (" in (said := capsys.readouterr().out)
    assert f"delete the folder {records} and give the same command again." in said
    shutil.rmtree(records)
    assert bad(tmp_path, "odd_size") == 1
    assert [case for _, case, _ in read_problems(tmp_path)] == ["1"]
    (picture,) = (tmp_path / "pictures" / "even" / "0").iterdir()
    picture.write_bytes(b"PK")
    with pytest.raises(InputError, match="is not as it was written .* and give the same command again"):
        read_pictures(tmp_path, "even", "0", "linf-0.02")


# -------------------------------------------------------------------- names, classes, prediction


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bad(tmp_path, "not_utf8") == 0
    assert "m\\xe4dchen" in capsys.readouterr().out
    for file in (tmp_path / "probes").iterdir():
        file.unlink()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "m\\xe4dchen" in page
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["models"][0]["name"] == "m\udce4dchen"
    assert "herz_\\xfc_0.png" in (tmp_path / "results.csv").read_text(encoding="utf-8")


def test_more_classes_than_a_byte_counts() -> None:
    model = bad_models.segmenter([4], 300)
    case = model.load("0")
    (picture,) = case.picture(case.images)
    assert picture.on_clean.max() == 300
    assert picture.truth.max() == 1


def test_a_dry_run_reads_a_sample_and_predicts_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read: list[str] = []

    class Counting(ThisProcess):
        def run(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
            read.extend(case for method, *arguments in tasks if method.__name__ == "survey" for case in arguments)
            return super().run(function, tasks)

    handed = {"pool": Counting(), "agreed": lambda: False}
    bounds = []
    for words in (("--dry-run",), ()):
        assert bad(tmp_path / "out", "many_cases", "--norm", "linf", "--eps", "0.02", *words, **handed) == 0
        bounds.append(capsys.readouterr().out.split("at most ")[1].split(" of one input")[0])
    assert len(read) == session.SAMPLE + 50
    assert len(set(read[: session.SAMPLE])) == session.SAMPLE
    assert bounds[0] == bounds[1]


def test_what_was_not_agreed_to_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that the command with other radii does not find a folder of these."""
    assert bad(tmp_path / "out", "odd_size", agreed=lambda: False) == 0
    assert "Nothing was computed." in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_an_open_model_is_not_pickled(tmp_path: Path) -> None:
    """A live bundle holds its whole data set, and transforms that cannot be pickled."""
    model = bad_models.odd_size()
    model.transform = lambda x: x  # type: ignore[attr-defined]
    model.__class__ = type("Own", (type(model),), {"__reduce_ex__": lambda self, protocol: 1 / 0})
    settings = EvaluationSettings((Level("linf", 0.02),), "quick")
    running = Session([LiveSource(model)], settings, tmp_path / "out", ThisProcess(), say=lambda line: None)
    running.prepare()
    assert [m.name for m in running.models] == ["even"]


# -------------------------------------------------------------------- how it ends


def test_the_report_of_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    assert bad(tmp_path, "first_odd", parts=interrupted_at(4, stop)) == 130
    shutil.rmtree(tmp_path / "probes", ignore_errors=True)  # they are empty in these tests
    assert main(["report", str(tmp_path)]) == 0
    assert f"Report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    assert "Not finished." in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(tmp_path / "nowhere")]) == 2


def test_a_model_without_a_finished_case_beside_one_with(tmp_path: Path) -> None:
    """The page of what is done does not wait for all models."""
    clean = [dice_score(c, 0.9) for c in "ab"]
    attacked = {("l2-1", "APGD-CE"): [dice_score(c, 0.5) for c in "ab"]}
    folder = folder_of(tmp_path / "out", [*plant("m", clean, attacked), *plant("other", clean, attacked)])
    shutil.rmtree(folder / "records" / "other")
    assert "other" in write_report(folder).read_text(encoding="utf-8")


def test_an_unexpected_error_is_4_and_the_last_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> bool:
        raise TypeError("unheard of")

    assert bad(tmp_path, "odd_size", agreed=fails) == ExitCode.UNEXPECTED == 4
    *above, last = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in above
    assert last.startswith(
        "monai-adv: unexpected error, exit code 4: TypeError: unheard of (test_evaluation_goes_on.py, l"
    )


def test_nobody_reads_the_output(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """``monai-adv bundle | head``."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)  # the stream of the process is what breaks
        assert main(["bundle"]) == 141
    assert capfd.readouterr().err == ""


def test_our_sentence_comes_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """MONAI raises an error whose message is the whole config."""
    # The hook of the process is what is replaced.
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: print(error, file=sys.stderr))
    say_it_last()
    say_it_last()
    ours = InputError.of("eps", -1, "a number > 0")
    wrapped = RuntimeError("Failed to evaluate ConfigExpression:\n" + 50 * "line\n")
    wrapped.__cause__ = ours
    for error, times in ((wrapped, 1), (ours, 0), (ValueError("another"), 0)):
        sys.excepthook(type(error), error, None)
        lines = capsys.readouterr().err.splitlines()
        assert lines.count("monai-adv: eps: received -1, allowed is a number > 0.") == times
        assert times == 0 or lines[-1].startswith("monai-adv: eps")


def test_evaluation_json_and_cost_of_a_run(tmp_path: Path) -> None:
    """The bound is kept although it is computed before the folder exists."""
    assert bad(tmp_path, "odd_size") == 1
    assert read_cost(tmp_path).bound.forward > 0
    assert read_evaluation(tmp_path).models[0].cases == ("0", "1", "2")

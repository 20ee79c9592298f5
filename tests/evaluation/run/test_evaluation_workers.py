"""Dask: the numbers of one process, whatever happens to the workers."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from monai_adv.certificates import Certification
from monai_adv.errors import InputError
from monai_adv.evaluation.models.factory import FactorySource
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.run.certify import certify_models
from monai_adv.evaluation.run.workers import Dask, Job, ThisProcess
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import Store
from tests.cli.test_evaluation_cli import numbers
from tests.evaluation.test_evaluation_store import evaluation
from tests.tiny_evaluate import SUBJECTS, evaluate
from tests.tiny_models import KILL_AT, KILL_ONCE

distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")  # comes with distributed

SETTINGS = EvaluationSettings((Level("linf", 0.02), Level("linf", 0.06)), "quick")


def job(folder: Path, run: str = "1") -> Job:
    return Job(run, FactorySource(f"{SUBJECTS}:classifier"), SETTINGS, str(folder))


def start(folder: Path) -> list[str]:
    """A store for the job; returns its cases."""
    model = job(folder).describe().model
    Store.open(folder, evaluation(models=(model,)))
    return list(model.cases)


def test_this_process_runs_one_after_the_other() -> None:
    assert list(ThisProcess().run(pow, [(2, 3), (3, 2)])) == [(0, 8), (1, 9)]


def test_a_worker_opens_a_model_once_per_run(tmp_path: Path) -> None:
    models = [job(tmp_path, run)._model() for run in ("1", "1", "2")]
    assert models[0] is models[1]
    assert models[1] is not models[2]


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a path that all workers share"):
        job(tmp_path / "elsewhere").attack("images 0 to 7")


@pytest.fixture(scope="module")
def pool() -> Iterator[Dask]:
    """One worker."""
    pool = Dask("local", 1)
    yield pool
    pool.close()


def test_certificates_of_workers_are_those_of_one_process(pool: Dask, tmp_path: Path) -> None:
    """The cases are tasks; a folder that workers began is finished by this process without doing anything again."""
    sources, settings = [FactorySource(f"{SUBJECTS}:classifier")], Certification(sigma=0.1, n0=5, n=30)
    alone = certify_models(sources, settings)
    spread = certify_models(sources, settings, tmp_path / "out", pool=pool)
    timeless = [replace(case, seconds=0.0) for case in alone.cases]
    assert [replace(case, seconds=0.0) for case in spread.cases] == timeless
    assert certify_models(sources, settings, tmp_path / "out").cases == spread.cases
    with pytest.raises(InputError, match="n: received 5, allowed is at least 10"):
        certify_models(sources, replace(settings, n=5), pool=pool)


def test_nothing_listens_beyond_this_machine_and_nothing_without_certificates(pool: Dask) -> None:
    assert list(pool.run(pow, [(2, 3)])) == [(0, 8)]
    me = psutil.Process()
    listening = [
        c.laddr for p in (me, *me.children(recursive=True)) for c in p.net_connections() if c.status == "LISTEN"
    ]
    assert len(listening) == 3  # the scheduler, the worker, and the nanny that starts it again: no HTTP
    assert {place.ip for place in listening} == {"127.0.0.1"}
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    for place in listening:
        assert answer(place) in (b"", b"\x15")  # nothing, or an alert of TLS
        assert answer(place, anybody) == b""


def answer(place: tuple[str, int], encrypted: ssl.SSLContext | None = None) -> bytes:
    """The first byte that a server says to a request."""
    with suppress(ssl.SSLError, ConnectionError), socket.create_connection(place, timeout=5) as stream:
        request = b"GET / HTTP/1.0\r\n\r\n"
        if encrypted is None:
            stream.sendall(request)
            return stream.recv(1)
        with encrypted.wrap_socket(stream) as secret:  # the server looks at certificates after this
            secret.sendall(request)
            return secret.recv(1)
    return b""


@pytest.mark.parametrize("others", ["nothing", "a certificate of their own"])
def test_who_has_no_certificate_of_the_run_runs_nothing(pool: Dask, others: str) -> None:
    address = pool._cluster.scheduler_address
    assert address.startswith("tls://127.0.0.1:")
    if others == "nothing":
        address, security = address.replace("tls", "tcp"), None
    else:
        security = distributed.Security.temporary()
    with pytest.raises(OSError, match="closed|certificate"):
        distributed.Client(address, timeout="3s", security=security)


def test_a_scheduler_with_certificates(tmp_path: Path, pool: Dask, capsys: pytest.CaptureFixture[str]) -> None:
    address, security = pool._cluster.scheduler_address, pool._cluster.security
    files = {name: str(tmp_path / name) for name in ("tls_ca_file", "tls_client_cert", "tls_client_key")}
    for name, file in files.items():
        Path(file).write_text(getattr(security, name))
    for given in (address, address.removeprefix("tls://")):
        client = Dask(given, certificates=files)
        assert list(client.run(pow, [(2, 3)])) == [(0, 8)]
        client.close()
    assert "neither encrypted" not in capsys.readouterr().err
    with pytest.raises(InputError, match="an address that begins with tls://"):
        Dask(address.replace("tls", "tcp"), certificates=files)
    Path(files["tls_client_key"]).write_text("no key")
    with pytest.raises(InputError, match="check the address and the certificates"):
        Dask(address, certificates=files)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tls-cert", "a"], "--tls-cert: received 'a', allowed is an addition to --dask ADDRESS"),
        (
            ["--dask", "local", "--tls-ca-file", "a"],
            "--tls-ca-file: received 'a', allowed is an addition to --dask ADDR",
        ),
        (["--dask", "tls://a:1", "--tls-ca-file", "a"], "--tls-ca-file: received 'a', allowed is an existing file"),
        (["--dask", "tls://a:1", "--tls-ca-file", __file__], "allowed is --tls-ca-file and --tls-cert, and --tls-key"),
    ],
)
def test_certificates_that_do_not_go_together(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_scheduler_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_command_takes_a_scheduler_that_runs_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp", **here) as running:
        assert evaluate(tmp_path / "dask", "--dask", running.scheduler_address) == 0
    assert "is neither encrypted nor authenticated: whoever reaches its ports" in capsys.readouterr().err
    assert evaluate(tmp_path / "alone") == 0
    assert numbers(tmp_path / "dask") == numbers(tmp_path / "alone")

"""A forked process is as good as a fresh one: words, variables, folder, outputs, exit code, imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.multiprocessing as mp

from tests import processes

SAY = """
import os, sys
ours = [m for m in sys.modules if m.startswith(("monai_adv", "nnunetv2", "nnunet_trainers"))]
print(sys.argv, os.getcwd(), os.environ["HERE"], "HOME" in os.environ, ours, __name__)
sys.exit("over")
"""


@pytest.mark.parametrize("forked", [True, False])
def test_words_variables_folder_and_outputs(tmp_path: Path, forked: bool) -> None:
    variables = {"HERE": "set", "PATH": os.environ["PATH"]}
    words = [sys.executable, "-c", SAY, "one", "two"]
    done = processes.run(words, cwd=tmp_path, env=variables, forked=forked and processes.FORKED)
    assert done.stdout == f"['-c', 'one', 'two'] {tmp_path} set False [] __main__\n"
    assert (done.stderr, done.returncode) == ("over\n", 1)


def test_how_processes_end() -> None:
    kill = f"import os; os.kill(os.getpid(), {signal.SIGKILL})"
    assert processes.run([sys.executable, "-c", kill]).returncode == -signal.SIGKILL
    failed = processes.run([sys.executable, "-c", "1 / 0"])
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    with pytest.raises(subprocess.CalledProcessError):
        processes.run([sys.executable, "-c", "1 / 0"], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run([sys.executable, "-c", "import time; time.sleep(600)"], timeout=0.1)


def test_a_module_and_an_installed_script(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys; print(sys.argv[1:], __name__)")
    for words in (["-m", "mine"], [str(tmp_path / "mine.py")]):
        assert processes.run([sys.executable, *words, "a"], cwd=tmp_path).stdout == "['a'] __main__\n"
    script = str(Path(sys.executable).with_name("monai-adv"))
    assert processes.run([script, "--version"]).stdout.startswith("monai-adv ")


def worker(rank: int, folder: str) -> None:
    print("rank", rank, os.environ["HERE"])
    np.save(Path(folder, f"{rank}.npy"), np.random.rand())  # noqa: NPY002  the stream of a fresh process


def test_ranks_have_our_variables_and_outputs_and_streams_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HERE", "set")
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2, join=True)
    assert sorted(capfd.readouterr().out.splitlines()) == ["rank 0 set", "rank 1 set"]
    assert np.load(tmp_path / "0.npy") != np.load(tmp_path / "1.npy")

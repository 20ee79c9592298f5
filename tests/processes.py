"""New Python processes without the seconds that each takes to import torch and its like.

They are forked from a server that has imported other people's libraries and nothing else: this package and nnU-Net are
imported anew in every process, with variables, a folder and outputs of its own. ``make test-all`` sets
``FRESH_PROCESSES``: then real interpreters are started, as the product does.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from multiprocessing import context, forkserver, reduction, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

FORKED = sys.platform == "linux" and not os.environ.get("FRESH_PROCESSES")
LIBRARIES = [  # none starts a thread, as blosc2 does: a fork loses it
    "torch", "torch._dynamo", "torch.distributed", "torchvision", "matplotlib.pyplot", "pandas", "scipy.ndimage",
    "scipy.signal", "scipy.stats", "seaborn", "skimage.measure", "skimage.transform", "sklearn", "nibabel", "SimpleITK",
    "tifffile", "rich.console", "jsonschema", "PIL.Image", "tensorboard", "ignite.engine", "monai",
    "monai.bundle", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "distributed",
]  # fmt: skip

if FORKED:

    class ForkedProcess(context.ForkServerProcess):
        """In place of what ``spawn`` starts. Of itself the server knows neither our variables nor our outputs."""

        variables: Mapping[str, str] | None = None

        def __reduce__(self) -> tuple[Any, ...]:
            variables = dict(os.environ if self.variables is None else self.variables)
            # The state is unpickled after the call of _child: what it imports sees the variables.
            return _child, (variables, reduction.DupFd(1), reduction.DupFd(2)), self.__dict__


def _child(variables: dict[str, str], *outputs: Any) -> ForkedProcess:
    os.environ.clear()
    os.environ.update(variables)
    for number, output in enumerate(outputs, 1):
        os.dup2(output.detach(), number)
    np.random.seed()  # noqa: NPY002 the server's state would be the same in all of them
    # Its children come from the same server, not from one of its own as Python has it.
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running
    return ForkedProcess.__new__(ForkedProcess)


def use_server() -> None:
    """From now on, what ``spawn`` starts in this process is forked from the server."""
    if FORKED:
        multiprocessing.set_forkserver_preload(LIBRARIES)
        context.SpawnContext.Process = ForkedProcess  # type: ignore[misc, assignment]


def _command(words: list[str], folder: Path | None, outputs: list[Path]) -> None:
    for number, file in enumerate(outputs, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    if folder is not None:
        os.chdir(folder)
    use_server()
    multiprocessing.cpu_count = lambda: 1  # nnU-Net's threads on the CPU: the other cores are for other tests
    sys.path[:0] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = words
    try:
        if words[0] != sys.executable:  # a script that was installed calls a function
            (script,) = entry_points(group="console_scripts", name=Path(words[0]).name)
            sys.exit(script.load()())
        elif words[1] == "-m":
            sys.argv = words[2:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        elif words[1] == "-c":
            sys.argv = ["-c", *words[3:]]
            sys.path.insert(0, "")
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[2], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = words[1:]
            sys.path.insert(0, str(Path(words[1]).parent))
            runpy.run_path(words[1], run_name="__main__")
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()


def run(
    words: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: bool = False,
    forked: bool = FORKED,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with text captured, for ``python -c``, ``python -m``, Python files and installed scripts."""
    if not forked:
        return subprocess.run(words, cwd=cwd, env=env, timeout=timeout, check=check, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, "stdout"), Path(folder, "stderr")]
        process = ForkedProcess(target=_command, args=(list(words), cwd, outputs))
        process.variables = env
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout or 0)
        done = subprocess.CompletedProcess(list(words), process.exitcode, *(file.read_text() for file in outputs))
    if check:
        done.check_returncode()
    return done


def torchrun(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """``torchrun --standalone --nproc_per_node=2 WORDS``, outputs one after the other."""
    if not FORKED:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        return run([*start, *words], cwd=cwd, env=env, timeout=timeout)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def rank(number: int) -> subprocess.CompletedProcess[str]:
        variables = {**env, **common, "RANK": str(number), "LOCAL_RANK": str(number)}
        return run([sys.executable, *words], cwd=cwd, env=variables, timeout=timeout)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(rank, (0, 1))
    return subprocess.CompletedProcess(
        one.args, one.returncode or two.returncode, one.stdout + two.stdout, one.stderr + two.stderr
    )

"""``monai-adv doctor``: is this machine ready, and if not, how to fix it.

Hosts add checks of their own through the entry point group ``monai_adv.cli.doctor``: a function without arguments
that returns a list of ``Check``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from monai_adv.foreign_text import say
from monai_adv.optional import EXTRAS
from monai_adv.probe import Steps, one_line, run_steps

Status = Literal["OK", "WARN", "FAIL"]
ENTRY_POINTS = "monai_adv.cli.doctor"
FEW_CORES = 4


@dataclass(frozen=True)
class Check:
    """One line of the report. Whatever is not OK says how to fix it."""

    status: Status
    name: str
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.status != "OK" and not self.fix:
            raise ValueError(f"the {self.status} check {self.name!r} must say how to fix what it found")


def requirement_checks() -> list[Check]:
    """Python and every package we require against the versions our own metadata asks for."""
    try:
        ours = metadata.distribution("monai-adv")
    except metadata.PackageNotFoundError:
        fix = "run `pip install monai-adv`, or `pip install -e .` in a source checkout"
        return [Check("FAIL", "monai-adv", "not installed, only its source is importable", fix)]
    checks = []
    python, wanted = platform.python_version(), ours.metadata["Requires-Python"]
    if SpecifierSet(wanted).contains(python, prereleases=True):
        checks.append(Check("OK", "Python", f"{python} ({sys.executable})"))
    else:
        fix = f"create an environment with Python {wanted} and run `pip install monai-adv` in it"
        checks.append(Check("FAIL", "Python", f"{python}, needed is {wanted}", fix))
    good = {"monai-adv": ours.version}
    absent: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    for requirement in map(Requirement, ours.requires or []):
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        extras = [e for e in EXTRAS if not needed and requirement.marker.evaluate({"extra": e})]  # type: ignore[union-attr]
        if requirement.name == "monai-adv" or not (needed or extras):
            continue
        fix = f'run `pip install --upgrade "{requirement.name}{requirement.specifier}"`'
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if needed:
                checks.append(Check("FAIL", requirement.name, "not installed", fix))
            for extra in extras:
                absent[extra].append(requirement.name)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good[requirement.name] = version
        else:
            found = f"version {version}, needed is {requirement.specifier}"
            checks.append(Check("FAIL", requirement.name, found, fix))
    packages = Check("OK", "packages", ", ".join(f"{name} {version}" for name, version in good.items()))
    return [*dict.fromkeys(checks), packages, _extras_check(absent)]


def _extras_check(absent: dict[str, list[str]]) -> Check:
    """Which parts can be used; one that nobody asked for is no fault."""
    found = ", ".join(extra for extra, packages in absent.items() if not packages) or "none"
    missing = "; ".join(f"{extra} (lacks {', '.join(packages)})" for extra, packages in absent.items() if packages)
    return Check("OK", "extras", found + (f"; not installed: {missing}" if missing else ""))


def thread_checks() -> list[Check]:
    """OpenMP's waiting threads: on few cores they take the time of those that work."""
    cores = available_cores()
    found = f"{cores} cores, OMP_WAIT_POLICY is {os.environ.get('OMP_WAIT_POLICY', 'not set')}"
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if sys.platform != "linux" or cores > FEW_CORES or passive:
        return [Check("OK", "CPU threads", found)]
    fix = "before Python starts, `export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0`: many times faster steps"
    return [Check("WARN", "CPU threads", found, fix)]


def available_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def torch_checks() -> list[Check]:
    """Whether torch and MONAI can be imported, and what they can compute on."""
    outcomes = run_steps("monai_adv.cli.doctor:TORCH_STEPS")
    checks = []
    for name in ("start", "torch", "monai"):
        if name in outcomes and outcomes[name].error:
            package = "monai" if name == "monai" else "torch"
            fix = f"run `pip install --force-reinstall {package}` and read its messages"
            checks.append(Check("FAIL", f"import {name}", outcomes[name].error, fix))
    devices = outcomes.get("devices")
    if devices is not None and not devices.error:
        checks.append(_device_check(devices.value))
    return checks


def _device_check(seen: dict[str, Any]) -> Check:
    if seen["cuda"]:
        gpus = ", ".join(f"{name} with {gib:.0f} GiB" for name, gib in seen["cuda"])
        return Check("OK", "device", f"CUDA {seen['built for']}: {gpus}")
    if seen["mps"]:
        return Check("OK", "device", "Apple GPU (MPS)")
    built = f"built for CUDA {seen['built for']} but sees no GPU" if seen["built for"] else "built for the CPU"
    fix = (
        "give `-device cpu` to nnU-Net commands; to train at full size use a machine with a GPU "
        "(where there is one, check that `nvidia-smi` works and install the torch build for its driver)"
    )
    return Check("WARN", "device", f"CPU only{_memory()}: torch is {built}", fix)


def _memory() -> str:
    if not hasattr(os, "sysconf"):  # Windows
        return ""
    return f" with {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"


def _devices() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cuda": [(gpu.name, gpu.total_memory / 2**30) for gpu in gpus],
        "mps": torch.backends.mps.is_available(),
        "built for": torch.version.cuda,
    }


TORCH_STEPS: Steps = {
    "torch": lambda: __import__("torch").__version__,
    "monai": lambda: __import__("monai").__version__,
    "devices": _devices,
}


def host_checks(entry: metadata.EntryPoint) -> list[Check]:
    """The checks one host brings, or the reason why they cannot run."""
    try:
        checks: list[Check] = entry.load()()
    except Exception as error:
        fix = "fix this import, or reinstall with `pip install --force-reinstall --no-deps monai-adv`"
        return [Check("FAIL", entry.name, f"its checks in {entry.value} cannot run: {one_line(error)}", fix)]
    return checks


def examine() -> list[Check]:
    """Run all checks. Each group that needs a child process waits for it in a thread of its own."""
    groups: list[Callable[[], list[Check]]] = [requirement_checks, thread_checks, torch_checks]
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        groups.append(lambda entry=entry: host_checks(entry))  # type: ignore[misc]
    with ThreadPoolExecutor() as pool:
        return [check for group in [pool.submit(group) for group in groups] for check in group.result()]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser("doctor", help="check this machine and say how to fix what is wrong")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns 0 when nothing FAILs, 1 otherwise."""
    checks = examine()
    count = {status: sum(check.status == status for check in checks) for status in ("OK", "WARN", "FAIL")}
    if args.json:
        report = {"ok": not count["FAIL"], "checks": [asdict(check) for check in checks]}
        print(json.dumps(report, indent=2))
    else:
        for check in checks:
            say(f"{check.status:<5} {check.name}: {check.found}")
            if check.fix:
                say(f"      how to fix: {check.fix}")
        print(", ".join(f"{number} {status}" for status, number in count.items()))
    return 1 if count["FAIL"] else 0

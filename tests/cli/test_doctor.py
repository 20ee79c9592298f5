"""`monai-adv doctor` names what is wrong, says how to fix it, and its exit code tells a script."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from monai_adv import cli, probe
from monai_adv.cli import doctor
from monai_adv.cli.doctor import Check
from monai_adv.probe import Outcome
from nnunet_trainers import doctor as nnunet_doctor
from nnunet_trainers import trainers
from nnunet_trainers.discovery import discovery_folder
from tests.places import ROOT

GOOD_TRAINER = {"name": "IMATrainer", "module": "nnunet_trainers.trainers", "file": "trainers.py"}


def only(checks: list[Check], name: str) -> Check:
    (check,) = (check for check in checks if check.name == name)
    return check


# ---- packages


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with exactly these packages, on which monai-adv asks for the ones named here."""
    versions = {"torch": "2.8.0+cu128", "monai": "1.6.1", "nnunetv2": "2.8.1", "nibabel": "5.4.2"}

    ours = SimpleNamespace(
        version="0.1.0",
        metadata={"Requires-Python": ">=3.10"},
        requires=[
            "torch>=2.4",
            "monai>=1.4",
            'nnunetv2>=2.8; extra == "nnunet"',
            'nibabel>=5.1; extra == "nnunet"',
            'nibabel>=5.1; extra == "bundles"',
            'monai-adv[nnunet]; extra == "all"',
            'mlflow; extra == "tracking"',
            'ruff; extra == "dev"',
            'tomli; python_version < "3"',
        ],
    )

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "distribution", lambda name: ours)
    monkeypatch.setattr(doctor.metadata, "version", version)
    return versions


def test_good_packages(packages: dict[str, str]) -> None:
    checks = doctor.requirement_checks()
    assert [check.status for check in checks] == ["OK", "OK", "OK"]
    found = only(checks, "packages").found
    assert found == "monai-adv 0.1.0, torch 2.8.0+cu128, monai 1.6.1, nnunetv2 2.8.1, nibabel 5.4.2"
    assert only(checks, "extras").found.startswith(
        "bundles, dask, dicom, nnunet, report; not installed: tracking (lacks"
    )


def test_missing_torch(packages: dict[str, str]) -> None:
    del packages["torch"]
    check = only(doctor.requirement_checks(), "torch")
    assert (check.status, check.found) == ("FAIL", "not installed")
    assert 'pip install --upgrade "torch>=2.4"' in check.fix


def test_an_extra_that_nobody_asked_for_is_no_fault(packages: dict[str, str]) -> None:
    del packages["nnunetv2"]
    checks = doctor.requirement_checks()
    assert {check.status for check in checks} == {"OK"}
    assert "not installed: nnunet (lacks nnunetv2); tracking (lacks mlflow)" in only(checks, "extras").found


def test_old_package_of_two_extras_is_said_once(packages: dict[str, str]) -> None:
    packages["nibabel"] = "5.0"
    assert only(doctor.requirement_checks(), "nibabel").status == "FAIL"


def test_old_monai(packages: dict[str, str]) -> None:
    packages["monai"] = "1.3.2"
    check = only(doctor.requirement_checks(), "monai")
    assert (check.status, check.found) == ("FAIL", "version 1.3.2, needed is >=1.4")


def test_old_nnunet(packages: dict[str, str]) -> None:
    packages["nnunetv2"] = "2.7.0"
    check = only(doctor.requirement_checks(), "nnunetv2")
    assert (check.status, check.found) == ("FAIL", "version 2.7.0, needed is >=2.8")
    assert 'pip install --upgrade "nnunetv2>=2.8"' in check.fix


def test_old_python(packages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.18")
    assert only(doctor.requirement_checks(), "Python").status == "FAIL"


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "distribution", distribution)
    assert [(check.name, check.status) for check in doctor.requirement_checks()] == [("monai-adv", "FAIL")]


# ---- steps in a child process

STEPS: probe.Steps = {
    "good": lambda: {"answer": 42},
    "raises": lambda: 1 / 0,
    "exits": lambda: sys.exit("not today"),
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "never begins": lambda: None,
}


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_child_tells_the_step_that_killed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    outcomes = probe.run_steps("tests.cli.test_doctor:STEPS")
    assert outcomes == {
        "good": Outcome({"answer": 42}),
        "raises": Outcome(error="ZeroDivisionError: division by zero"),
        "exits": Outcome(error="SystemExit: not today"),
        "dies": Outcome(error="Python died with exit code -9"),
    }


def test_child_that_cannot_begin() -> None:
    assert "No module named 'no_such_module'" in probe.run_steps("no_such_module:STEPS")["start"].error


# ---- threads and devices


@pytest.mark.parametrize(
    ("cores", "policy", "status"),
    [(2, None, "WARN"), (2, "ACTIVE", "WARN"), (2, "PASSIVE", "OK"), (4, None, "WARN"), (5, None, "OK")],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, cores: int, policy: str | None, status: str) -> None:
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(doctor, "available_cores", lambda: cores)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert only(doctor.thread_checks(), "CPU threads").status == status


@pytest.mark.parametrize(
    ("seen", "status", "found"),
    [
        (
            {"cuda": [["H200", 139.8]], "mps": False, "built for": "13.0"},
            "OK",
            "CUDA 13.0: H200 with 140 GiB",
        ),
        ({"cuda": [], "mps": True, "built for": None}, "OK", "Apple GPU (MPS)"),
        ({"cuda": [], "mps": False, "built for": "13.0"}, "WARN", "built for CUDA 13.0 but sees no GPU"),
        ({"cuda": [], "mps": False, "built for": None}, "WARN", "built for the CPU"),
    ],
)
def test_device(monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], status: str, found: str) -> None:
    outcomes = {"torch": Outcome("2.8"), "monai": Outcome("1.6"), "devices": Outcome(seen)}
    monkeypatch.setattr(doctor, "run_steps", lambda steps: outcomes)
    (check,) = doctor.torch_checks()
    assert check.status == status
    assert check.found.endswith(found)


def test_torch_that_kills_python(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"torch": Outcome(error="Python died with exit code -11")}
    monkeypatch.setattr(doctor, "run_steps", lambda steps: outcomes)
    (check,) = doctor.torch_checks()
    assert (check.status, check.name, check.found) == (
        "FAIL",
        "import torch",
        "Python died with exit code -11",
    )


# ---- nnU-Net: discovery


@pytest.mark.parametrize(
    ("folders", "switch", "status"),
    [
        ([discovery_folder()], "", "OK"),
        (["/", discovery_folder()], "1", "OK"),
        ([], "1", "WARN"),
        ([], "", "FAIL"),
        (["/"], "", "FAIL"),
    ],
)
def test_discovery(monkeypatch: pytest.MonkeyPatch, folders: list[str], switch: str, status: str) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(folders))
    monkeypatch.setenv("MONAI_ADV_NO_DISCOVERY", switch)
    (check,) = nnunet_doctor.discovery_checks()
    assert (check.name, check.status) == ("discovery", status)
    assert status == "OK" or "export nnUNet_extTrainer=$(python -m nnunet_trainers)" in check.fix


def test_missing_user_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/no/such/folder", discovery_folder()]))
    check = only(nnunet_doctor.discovery_checks(), "user folders")
    assert (check.status, check.found) == ("WARN", "/no/such/folder does not exist")


# ---- nnU-Net: look-up


def test_look_up_finds_ours() -> None:
    checks = nnunet_doctor.look_up_checks({"look-up": Outcome(GOOD_TRAINER)})
    assert [(check.name, check.status) for check in checks] == [("trainer look-up", "OK")]


@pytest.mark.parametrize("module", ["nnunetv2.training.nnUNetTrainer.ima", "my_trainers"])
def test_look_up_finds_another(module: str) -> None:
    (check,) = nnunet_doctor.look_up_checks({"look-up": Outcome({**GOOD_TRAINER, "module": module})})
    assert (check.status, check.found) == ("WARN", "nnU-Net finds another IMATrainer first (trainers.py)")


def test_torchvision_that_does_not_fit_torch() -> None:
    error = "RuntimeError: operator torchvision::nms does not exist"
    outcomes = {
        "import torchvision, timm": Outcome(error=error),
        "import nnU-Net": Outcome(),
        "look-up": Outcome(error=error),
    }
    checks = nnunet_doctor.look_up_checks(outcomes)
    assert [(check.name, check.status) for check in checks] == [
        ("import torchvision, timm", "FAIL"),
        ("import nnU-Net", "OK"),
        ("trainer look-up", "FAIL"),
    ]
    assert checks[0].found == error
    assert "pip install --force-reinstall torch torchvision timm" in checks[0].fix


def test_step_that_killed_python_before_the_look_up() -> None:
    checks = nnunet_doctor.look_up_checks({"import nnU-Net": Outcome(error="Python died with exit code -11")})
    assert [check.status for check in checks] == ["FAIL", "FAIL"]
    assert "not tried" in only(checks, "trainer look-up").found


@pytest.mark.slow
def test_real_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one test that asks nnU-Net itself: a broken module, a shadowing class, and a harmless re-export."""
    broken = tmp_path / "theirs" / "nested" / "half_written.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("import no_such_library\n")
    (broken.parent / "__init__.py").touch()
    first = trainers.__all__[0]  # the one that the doctor looks up
    shadow = tmp_path / "theirs" / "a_shadow.py"
    shadow.write_text(f"class OtherTrainer: pass\nclass {first}: pass\n")
    (tmp_path / "theirs" / "reexport.py").write_text("from nnunet_trainers import IMATrainer\n")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path / "theirs"), discovery_folder()]))

    outcomes = probe.run_steps("nnunet_trainers.look_up:STEPS")
    assert outcomes["user folders"].value == {
        "broken": [[str(broken), "ModuleNotFoundError: No module named 'no_such_library'"]],
        "shadowing": [[str(shadow), first]],
    }
    # nnU-Net stops at the shadow and refuses it, for it is no nnU-Net trainer.
    assert outcomes["look-up"].error.startswith("AssertionError: The requested nnunet trainer class must inherit")
    checks = nnunet_doctor.look_up_checks(outcomes)
    found = {check.found: check.status for check in checks}
    assert found[f"{broken}: ModuleNotFoundError: No module named 'no_such_library'"] == "FAIL"
    assert found[f"{shadow} has a {first} of its own"] == "WARN"


# ---- nnU-Net: paths and workers


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "later"))
    monkeypatch.setenv("nnUNet_results", str(file))
    checks = nnunet_doctor.path_checks()
    assert [(check.name, check.status, check.found) for check in checks] == [
        ("nnUNet_raw", "WARN", "not set"),
        ("nnUNet_preprocessed", "WARN", f"{tmp_path / 'later'} does not exist"),
        ("nnUNet_results", "FAIL", f"{file} is not a folder"),
    ]


def test_unwritable_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: str) -> None:
        raise OSError(30, "Read-only file system")

    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(nnunet_doctor.tempfile, "TemporaryFile", refuse)
    checks = nnunet_doctor.path_checks()
    assert [check.status for check in checks] == ["OK", "FAIL", "FAIL"]  # raw data is only read
    assert checks[2].found == f"{tmp_path}: Read-only file system"


def test_good_paths_stay_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert [check.status for check in nnunet_doctor.path_checks()] == ["OK"] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "warns"), [("0", True), ("1", False), ("12", False)])
def test_workers(monkeypatch: pytest.MonkeyPatch, value: str, warns: bool) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", value)
    assert bool(nnunet_doctor.worker_checks()) == warns


# ---- the command


@pytest.mark.parametrize(("statuses", "code"), [(["OK", "WARN"], 0), (["OK", "FAIL", "OK"], 1), ([], 0)])
def test_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], statuses: list[Any], code: int
) -> None:
    checks = [Check(status, "thing", "seen", "do this") for status in statuses]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert cli.main(["doctor", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    assert report["checks"] == [
        {"status": status, "name": "thing", "found": "seen", "fix": "do this"} for status in statuses
    ]


def test_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [
        Check("OK", "Python", "3.12"),
        Check("FAIL", "torch", "not installed", "run `pip install torch`"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "OK    Python: 3.12",
        "FAIL  torch: not installed",
        "      how to fix: run `pip install torch`",
        "1 OK, 0 WARN, 1 FAIL",
    ]


def test_every_problem_has_a_fix() -> None:
    with pytest.raises(ValueError, match="'torch' must say how to fix"):
        Check("WARN", "torch", "old")


def test_host_whose_checks_cannot_be_imported() -> None:
    entry = importlib.metadata.EntryPoint("nnunet", "no_such_module:checks", doctor.ENTRY_POINTS)
    (check,) = doctor.host_checks(entry)
    assert (check.status, check.name) == ("FAIL", "nnunet")
    assert "No module named 'no_such_module'" in check.found


def test_installed_entry_point_leads_to_the_nnunet_checks() -> None:
    (entry,) = importlib.metadata.entry_points(group=doctor.ENTRY_POINTS)
    assert entry.load() is nnunet_doctor.checks


def test_version_and_unusable_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"monai-adv {importlib.metadata.version('monai-adv')}\n"

    def refuse() -> list[Check]:
        raise cli.InputError.of("eps", -1, "a number > 0")

    monkeypatch.setattr(doctor, "examine", refuse)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "monai-adv: eps: received -1, allowed is a number > 0.\n"


def test_doctor_starts_where_torch_is_broken(tmp_path: Path) -> None:
    """Whatever torch does, the command answers; nothing of ours may import it on the way there."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.99: cannot open shared object file')\n")
    command = [sys.executable, "-m", "monai_adv.cli", "doctor", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    found = {check["name"]: check for check in json.loads(process.stdout)["checks"]}
    for name in ("import torch", "import nnU-Net", "trainer look-up"):
        assert found[name]["status"] == "FAIL"
        assert found[name]["found"] == "ImportError: libcudart.so.99: cannot open shared object file"

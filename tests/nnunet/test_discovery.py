"""`pip install monai-adv` shows nnU-Net our trainers, and `pip uninstall` leaves nothing.

Each test installs into an empty environment that borrows the dependencies of the running one.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import ROOT

SHOW = "import os; print(os.environ.get('nnUNet_extTrainer', 'not set'))"
LOOK_UP = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
trainer = find({!r})
"""


class Environment:
    """A throw-away Python environment with the running one's packages, but without our editable install."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.site = Path(self("import sysconfig; print(sysconfig.get_path('purelib'))"))
        borrowed = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        if any(Path(p, "nnunet_trainers").exists() for p in borrowed):
            pytest.skip("monai-adv is installed as a copy; these tests need `pip install -e .`")
        # Python does not read the .pth files in folders that are named in a .pth: ours there stays silent.
        (self.site / "borrowed.pth").write_text("\n".join(borrowed))
        self.trainers = str(self.site / "nnunet_trainers" / "_discovery")

    def run(self, *words: str, **variables: str) -> str:
        """What a command prints, started in a folder from which the source checkout cannot be imported."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_ext", "PYTHON", "MONAI_ADV_"))}
        process = subprocess.run(
            [str(self.python), *words],
            env={**inherited, **variables},
            cwd=self.python.parent,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.strip()

    def __call__(self, code: str, **variables: str) -> str:
        return self.run("-c", code, **variables)

    def pip(self, *words: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *words]
        subprocess.run(command, check=True, capture_output=True, text=True)


Install = Callable[[], Environment]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_bundles_but_no_weights(wheel: Path) -> None:
    """Weights have a licence of their own, and made most of the package's size."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "monai_adv/bundles/zoo/robust_organ_segmentation/configs/train.json" in names
    models = [name for name in names if "/zoo/" in name and "/models/" in name]
    assert {Path(name).name for name in models} == {"README.md"}
    assert len(models) == 4
    assert wheel.stat().st_size < 2e6
    assert [name for name in names if name.endswith(".pth")] == ["monai_adv_nnunet.pth"]


def test_metadata_are_complete_and_links_absolute(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(archive.read(file))
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Author"] == "The monai-adv authors"
    urls = dict(line.split(", ") for line in found.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} <= urls.keys()
    assert found["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)]+)\)", found.get_payload())
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", found.get_payload())
    assert all(link.startswith(f"{urls['Source']}/raw/v{found['Version']}/") for link in pictures)


def install_wheel(folder: Path, wheel: Path) -> Environment:
    environment = Environment(folder)
    environment.pip("install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    return environment


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with the wheel; tests do not change it."""
    return install_wheel(tmp_path_factory.mktemp("wheel"), wheel)


def test_wheel_names_its_folder_and_imports_nothing(installed: Environment) -> None:
    heavy = "import sys; print({'torch', 'nnunet_trainers', 'monai_adv', 'inspect'} & set(sys.modules))"
    assert installed(SHOW) == installed.trainers
    assert installed(heavy) == "set()"


def test_folder_holds_one_module(installed: Environment) -> None:
    assert [path.name for path in Path(installed.trainers).glob("*.*")] == ["monai_adv_trainers.py"]


def test_users_folders_come_first(installed: Environment) -> None:
    own = os.pathsep.join(["/data/my trainers", "/data/others"])
    assert installed(SHOW, nnUNet_extTrainer=own) == own + os.pathsep + installed.trainers


def test_child_process_names_it_once(installed: Environment) -> None:
    child = f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {SHOW!r}], text=True))"
    assert installed(child) == installed.trainers
    assert installed(child, nnUNet_extTrainer="/mine") == os.pathsep.join(["/mine", installed.trainers])


@pytest.mark.parametrize(("value", "shown"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_switch(installed: Environment, value: str, shown: bool) -> None:
    own = os.pathsep.join(["/mine", installed.trainers]) if shown else "/mine"
    assert installed(SHOW, nnUNet_extTrainer="/mine", MONAI_ADV_NO_DISCOVERY=value) == own


def test_module_prints_the_folder_for_export(installed: Environment, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not needed to print a folder')")
    variables = {"MONAI_ADV_NO_DISCOVERY": "1", "PYTHONPATH": str(tmp_path)}
    assert installed.run("-m", "nnunet_trainers", **variables) == installed.trainers


@pytest.mark.slow
def test_nnunet_finds_the_trainer_and_can_pickle_it(installed: Environment) -> None:
    # The class must outlive nnU-Net's clean-up of the folder's modules: same object after a second look-up.
    questions = """
import pickle, sys
same = trainer is find("IMATrainer") is pickle.loads(pickle.dumps(trainer))
print(same, "monai_adv_trainers" in sys.modules, trainer.__module__)
"""
    same, left_over, module = installed(LOOK_UP.format("IMATrainer") + questions).splitlines()[-1].split()
    assert (same, left_over) == ("True", "False")
    assert module.startswith("nnunet_trainers.")


def test_editable_install(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "editable")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    environment.pip("install", *options, "--editable", str(ROOT))
    folder = str(ROOT / "nnunet_trainers" / "_discovery")
    assert environment(SHOW) == folder
    assert environment.run("-m", "nnunet_trainers") == folder


@pytest.mark.slow
def test_uninstall_leaves_nothing(tmp_path: Path, wheel: Path) -> None:
    environment = Environment(tmp_path / "gone")
    before = set(environment.site.rglob("*"))
    environment.pip("install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    environment.pip("uninstall", "--yes", "monai-adv")
    assert {path for path in environment.site.rglob("*") if "__pycache__" not in path.parts} == before
    assert environment(SHOW) == "not set"
    assert environment(LOOK_UP.format("nnUNetTrainer") + "print(trainer.__name__)") == "nnUNetTrainer"


def test_silent_without_the_package(tmp_path: Path) -> None:
    """A .pth that outlived its package (a half-done removal) must not disturb any start of Python."""
    environment = Environment(tmp_path / "left over")
    source = ROOT / "nnunet_trainers" / "_discovery" / "monai_adv_nnunet.pth"
    (environment.site / source.name).write_text(source.read_text())
    child = f"""
import subprocess, sys
print(subprocess.check_output([sys.executable, "-c", {SHOW!r}], stderr=subprocess.STDOUT, text=True))
"""
    assert environment(child) == "not set"


def test_harmless_without_nnunet(tmp_path: Path, wheel: Path) -> None:
    """Whoever has no nnU-Net gets a variable that nobody reads; no start of Python imports more or says anything."""
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "PYTHON", "MONAI_ADV_"))}
    code = "import os, sys; print([k for k in os.environ if 'nnUNet' in k], {'monai_adv', 'nnunetv2'} & {*sys.modules})"
    done = subprocess.run([python, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['nnUNet_extTrainer'] set()\n", "")

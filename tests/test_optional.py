"""The core imports nothing of the extras; a part whose packages are missing says which extra brings them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from packaging.requirements import Requirement

from monai_adv.optional import EXTRAS, MissingPackageError, explained, missing, require
from tests.places import ROOT

ALL = sorted({package for packages in EXTRAS.values() for package in packages})
THIRD_PARTY_OF_NNUNET = ["batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "timm", "torchvision"]
DISTRIBUTIONS = {"ignite": "pytorch-ignite", "PIL": "pillow"}
CORE = """
import monai_adv, monai_adv.attacks, monai_adv.certificates, monai_adv.defenses, monai_adv.networks, monai_adv.tasks
import monai_adv.pretraining, monai_adv.evaluation.certify_api
import torch
from monai_adv.cli import main
from monai_adv.defenses import METHODS
from monai_adv.tasks import ClassificationTask
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
images, labels = torch.rand(6, 1, 2, 2), torch.zeros(6, dtype=torch.long)
method = METHODS["sat"]
defense = method.defense(ClassificationTask(), method.settings(eps=0.1, norm="linf"))
assert defense(network, images, labels).requires_grad
found = monai_adv.certify(network, images, labels, sigma=0.25, n=20, n0=5)
for use in (found.frame, found.plot, lambda: monai_adv.evaluate(network, images, labels, norm="linf", eps=[0.1])):
    try:
        use()
        raise SystemExit("nothing was said")
    except monai_adv.InputError as error:
        assert isinstance(error, ImportError)
        print(error)
assert main(["methods"]) == 0
"""


def without(packages: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Python that cannot import these packages, in a process of its own: here they are imported already."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
    return subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, cwd=ROOT)


def test_the_core_measures_without_any_extra() -> None:
    done = without([*ALL, *THIRD_PARTY_OF_NNUNET], CORE)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert said == [
        "results.frame(): the package pandas is missing; run 'pip install \"monai-adv[report]\"'.",
        "results.plot(): the package matplotlib is missing; run 'pip install \"monai-adv[report]\"'.",
        "monai_adv.evaluate: the package matplotlib is missing; run 'pip install \"monai-adv[report]\"'.",
    ]


COMMANDS = {
    "demo": "nnunet",
    "export model out.zip": "nnunet",
    "evaluate --factory m.py:f --eps 1 -o out": "report",
    "certify --factory m.py:f --sigma 1 -o out": "report",
    "report out": "report",
    "try": "report",
}


def test_commands_name_the_extra_on_their_last_line() -> None:
    runs = "\n".join(f"assert main({words.split()!r}) == 2" for words in COMMANDS)
    done = without(ALL, f"from monai_adv.cli import main\n{runs}")
    assert done.returncode == 0, done.stderr
    for (words, extra), line in zip(COMMANDS.items(), done.stderr.splitlines(), strict=True):
        assert line.startswith(f"monai-adv: monai-adv {words.split()[0]}: the package ")
        assert line.endswith(f"run 'pip install \"monai-adv[{extra}]\"'.")


PARTS = {
    "import monai_adv.engines": ("ignite", "bundles"),
    "import monai_adv.bundles": ("PIL", "report"),
    "from nnunet_trainers import IMATrainer": ("nnunetv2", "nnunet"),
    "from monai_adv.evaluation.run.workers import Dask; Dask('local')": ("distributed", "dask"),
    "from monai_adv.bundles.cmmd import read_header; read_header('x.dcm')": ("pydicom", "dicom"),
    "from monai_adv.evaluation.report.loggers import logger_of; logger_of('wandb')": ("wandb", "tracking"),
    "import monai_adv; monai_adv.evaluate('MODEL', 'i', 'l', norm='l2', eps=[1.0])": ("nnunetv2", "nnunet"),
}
SAY = """
for code, (package, _) in {parts!r}.items():
    sys.modules[package] = None
    try:
        exec(code)
        print("nothing was said by", code)
    except ImportError as error:
        print(error)
    del sys.modules[package]
"""


def test_parts_name_their_extra(tmp_path: Path) -> None:
    (tmp_path / "plans.json").touch()
    parts = {code.replace("MODEL", str(tmp_path)): names for code, names in PARTS.items()}
    done = without([], SAY.format(parts=parts))
    assert done.returncode == 0, done.stderr
    for (package, extra), line in zip(PARTS.values(), done.stdout.splitlines(), strict=True):
        assert line.endswith(f"the package {package} is missing; run 'pip install \"monai-adv[{extra}]\"'.")


def test_other_import_errors_stay_as_they_are() -> None:
    error = ModuleNotFoundError("No module named 'my_networks'", name="my_networks")
    with pytest.raises(ModuleNotFoundError) as caught, explained("monai_adv.engines"):
        raise error
    assert caught.value is error


def test_the_error_is_of_both_kinds_and_names_the_package() -> None:
    error = missing("the report", "jinja2")
    assert (error.name, isinstance(error, ImportError), isinstance(error, ValueError)) == ("jinja2", True, True)
    require("anything", *EXTRAS["report"])  # nothing is said where all is there
    assert issubclass(MissingPackageError, ImportError)


def test_extras_are_those_of_the_metadata() -> None:
    """An extra that the sentence names brings the package that was missing."""
    extras = ProjectMetadata(str(ROOT), None).config["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        brought = {Requirement(line).name for line in extras[extra]}
        assert {DISTRIBUTIONS.get(package, package) for package in packages} <= brought, extra


def test_no_optional_import_goes_round_the_helper() -> None:
    """Whatever is imported at the top of a module without an extra is a requirement of the core."""
    optional = {*ALL, *THIRD_PARTY_OF_NNUNET}
    handled = {
        f"{file.relative_to(ROOT)}: {ast.unparse(handler.type)}"
        for file in [*(ROOT / "monai_adv").rglob("*.py"), *(ROOT / "nnunet_trainers").rglob("*.py")]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Try)
        for handler in node.handlers
        if handler.type is not None and "ImportError" in ast.unparse(handler.type)
        and any(_imports(line) & optional for line in node.body)
    }  # fmt: skip
    assert handled == set()


def _imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()

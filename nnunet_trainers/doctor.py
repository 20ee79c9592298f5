"""The nnU-Net part of ``monai-adv doctor``."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec

from monai_adv.cli.doctor import Check
from monai_adv.probe import Outcome, run_steps
from nnunet_trainers.discovery import (
    SEARCH_VARIABLE,
    SWITCH_OFF,
    discovery_folder,
    search_folders,
    switched_off,
)

BY_HAND = (
    f"`export {SEARCH_VARIABLE}=$(python -m nnunet_trainers)` "
    f"(folders of your own go before it, followed by {os.pathsep!r})"
)
STEP_FIXES = {
    "start": "reinstall with `pip install --force-reinstall --no-deps monai-adv`",
    "import torchvision, timm": (
        "install builds of torch, torchvision and timm that fit each other, all from one index: "
        "`pip install --force-reinstall torch torchvision timm`; until then nnU-Net finds no trainer at all"
    ),
    "import nnU-Net": 'run `pip install --force-reinstall "nnunetv2>=2.8"` and read its messages',
    "user folders": (
        f"take folders out of {SEARCH_VARIABLE} until this passes; the last one out holds the module at fault"
    ),
}


def checks() -> list[Check]:
    """Everything between ``pip install`` and ``nnUNetv2_train -tr IMATrainer``."""
    if find_spec("nnunetv2") is None:  # an extra that is not installed, which the packages' check says
        return []
    found = look_up_checks(run_steps("nnunet_trainers.look_up:STEPS"))
    return [*discovery_checks(), *found, *path_checks(), *worker_checks()]


def discovery_checks() -> list[Check]:
    """Whether nnU-Net is told of our folder, and whether the other folders it is told of exist."""
    ours, folders = discovery_folder(), search_folders()
    found = f"{SEARCH_VARIABLE} is {os.environ.get(SEARCH_VARIABLE, 'not set')}"
    if ours in folders:
        result = [Check("OK", "discovery", found)]
    elif switched_off():
        fix = f"unset {SWITCH_OFF}, or {BY_HAND}"
        result = [Check("WARN", "discovery", f"switched off by {SWITCH_OFF}={os.environ[SWITCH_OFF]}", fix)]
    else:
        reason = "Python did not read monai_adv_nnunet.pth (python -S and pip install --target never do)"
        fix = f"{BY_HAND}; {reason}"
        result = [Check("FAIL", "discovery", f"our folder is missing: {found}", fix)]
    for folder in folders:
        if not os.path.isdir(folder):
            fix = f"create it, or take it out of {SEARCH_VARIABLE}; nnU-Net skips it silently"
            result.append(Check("WARN", "user folders", f"{folder} does not exist", fix))
    return result


def look_up_checks(outcomes: dict[str, Outcome]) -> list[Check]:
    """Judge what the steps of ``nnunet_trainers.look_up`` found."""
    result = []
    for step, fix in STEP_FIXES.items():
        if step not in outcomes:
            continue
        if outcomes[step].error:
            result.append(Check("FAIL", step, outcomes[step].error, fix))
        elif step.startswith("import "):
            result.append(Check("OK", step, "works together with torch"))
    look_up = outcomes.get("look-up", Outcome(error="not tried, an earlier step stopped Python"))
    folders = outcomes.get("user folders", Outcome()).value or {"broken": [], "shadowing": []}
    for file, error in folders["broken"]:
        fix = f"fix or remove {file}: nnU-Net imports every module in the folder on its way to a trainer"
        result.append(Check("FAIL" if look_up.error else "WARN", "user folders", f"{file}: {error}", fix))
    for file, trainer in folders["shadowing"]:
        fix = f"give the class in {file} another name: nnU-Net takes the first {trainer} it meets"
        result.append(Check("WARN", "user folders", f"{file} has a {trainer} of its own", fix))
    return [*result, _origin_check(look_up)]


def _origin_check(look_up: Outcome) -> Check:
    if look_up.error:
        fix = f"fix what is not OK above; if nothing is, {STEP_FIXES['start']}"
        return Check("FAIL", "trainer look-up", look_up.error, fix)
    name, module, file = (look_up.value[key] for key in ("name", "module", "file"))
    if module.startswith("nnunet_trainers."):
        return Check("OK", "trainer look-up", f"nnU-Net finds {name} of monai-adv ({file})")
    fix = f"rename or remove that class; as it is, `-tr {name}` trains with it instead of ours"
    return Check("WARN", "trainer look-up", f"nnU-Net finds another {name} first ({file})", fix)


def path_checks() -> list[Check]:
    """nnU-Net's three folders: named, there, and usable."""
    return [
        _path_check("nnUNet_raw", "raw data sets", written=False),
        _path_check("nnUNet_preprocessed", "preprocessed data", written=True),
        _path_check("nnUNet_results", "trained models", written=True),
    ]


def _path_check(variable: str, holds: str, written: bool) -> Check:
    path = os.environ.get(variable)
    if not path:
        fix = f"`export {variable}=/path/to/a/folder` for {holds}, before nnU-Net starts"
        return Check("WARN", variable, "not set", fix)
    if not os.path.exists(path):
        return Check("WARN", variable, f"{path} does not exist", f"`mkdir -p {path}`, or correct {variable}")
    if not os.path.isdir(path):
        return Check("FAIL", variable, f"{path} is not a folder", f"let {variable} name a folder for {holds}")
    try:
        os.listdir(path)
        if written:
            # Permission bits are not the whole truth (read-only mounts, quotas, root): write something.
            tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        right = "write" if written else "read"
        fix = f"give yourself the right to {right} there, or let {variable} name another folder"
        return Check("FAIL", variable, f"{path}: {error.strerror}", fix)
    return Check("OK", variable, path)


def worker_checks() -> list[Check]:
    """The one value of nnUNet_n_proc_DA that works in training but not in planning."""
    if os.environ.get("nnUNet_n_proc_DA") != "0":
        return []
    fix = "`export nnUNet_n_proc_DA=1` for nnUNetv2_plan_and_preprocess; 0 is fine for training"
    return [Check("WARN", "nnUNet_n_proc_DA", "0, with which planning fails", fix)]

"""Foreign files run nothing: names in a model folder are not imported, names in tables and pages are not obeyed."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.data.csv_saver import CSVSaver
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from PIL import Image

from monai_adv.bundles.image_index import file_cells, read_index, write_table
from monai_adv.cli import main
from monai_adv.errors import InputError
from monai_adv.evaluation.report.page import write_report
from monai_adv.foreign_text import cell, csv_text, from_cell, printable, say
from nnunet_trainers import NNUNetModel
from nnunet_trainers.deployed import DeployedModel
from tests.planted_evaluation import dice_score, folder_of, plant
from tests.tiny_nnunet import write_case, write_model

# ----------------------------------------------------------------------------------------------- names in model folders

NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
TRAP = """
from pathlib import Path
from dynamic_network_architectures.architectures.unet import PlainConvUNet
Path(__file__).with_name("ran").write_text("")

class Net(PlainConvUNet):
    pass

def call(*args, **kwargs):
    return Net(*args, **kwargs)
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported; whoever does so leaves a file."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "trap_module.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    return tmp_path / "code" / "ran"


def changed(folder: Path, keys: str, value: Any) -> Path:
    """A model folder with another entry in plans.json, or in dataset.json where the keys begin with "dataset"."""
    *above, last = keys.split("/")
    file = folder / ("dataset.json" if above[:1] == ["dataset"] else "plans.json")
    content = json.loads(file.read_text())
    place: Any = content
    for key in above:
        place = place if key == "dataset" else content["configurations"]["2d"] if key == "2d" else place[key]
    place[last] = value
    file.write_text(json.dumps(content))
    return folder


NAMES: list[tuple[str, Any, str]] = [
    (
        "2d/architecture/network_class_name",
        "torch.hub.load",
        "network_class_name in plans.json: received 'torch.hub.lo",
    ),
    ("2d/architecture/network_class_name", "trap_module.Net", "if you trust its package, name it with --trust"),
    ("2d/architecture/network_class_name", "trap_module.call", "if you trust its package, name it with --trust"),
    (
        "2d/architecture/network_class_name",
        NETWORK.replace("PlainConvUNet", "torch.hub.load"),
        "there is no such class",
    ),
    ("2d/architecture/network_class_name", NETWORK.replace("PlainConvUNet", "partial"), "there is no such class"),
    ("2d/architecture/network_class_name", f"{NETWORK}.forward", "there is no such class"),
    (
        "2d/architecture/network_class_name",
        "nnunetv2.utilities.find_class_by_name.recursive_find_python_class",
        "no such",
    ),
    ("2d/architecture/network_class_name", "dynamic_network_architectures_.Net", "if you trust its package"),
    ("2d/architecture/network_class_name", ["os.system"], "network_class_name in plans.json: received ['os.system']"),
    ("2d/architecture/network_class_name", f"{NETWORK}\n", "network_class_name in plans.json"),
    (
        "2d/architecture/arch_kwargs/conv_op",
        "os.system",
        "conv_op in plans.json: received 'os.system', allowed is a lay",
    ),
    ("2d/architecture/arch_kwargs/conv_op", "torch.hub.load", "conv_op in plans.json: received 'torch.hub.load'"),
    ("2d/architecture/arch_kwargs/norm_op", "torch.nn.functional.handle_torch_function", "norm_op in plans.json"),
    ("2d/architecture/arch_kwargs/nonlin", "torch.nn.modules.module.torch.hub.load", "nonlin in plans.json"),
    (
        "2d/architecture/arch_kwargs/dropout_op",
        "trap_module.Net",
        "dropout_op in plans.json: received 'trap_module.Net'",
    ),
    ("2d/architecture/_kw_requires_import", ["n_stages"], "n_stages in plans.json: received 3, allowed is a layer"),
    ("2d/preprocessor_name", "shutil", "allowed is a DefaultPreprocessor of nnunetv2.preprocessing"),
    ("2d/preprocessor_name", "load_pickle", "preprocessor_name in plans.json"),
    (
        "2d/normalization_schemes",
        ["os.system"],
        "allowed is a ImageNormalization of nnunetv2.preprocessing.normalization",
    ),
    ("2d/normalization_schemes", ["Type"], "normalization_schemes in plans.json: received 'Type'"),
    ("2d/resampling_fn_data", "join", "allowed is a function of nnunetv2.preprocessing.resampling"),
    ("2d/resampling_fn_seg", "nnunetv2", "resampling_fn_seg in plans.json"),
    ("2d/resampling_fn_probabilities", "Callable", "resampling_fn_probabilities in plans.json"),
    ("image_reader_writer", "traceback", "image_reader_writer in plans.json: received 'traceback'"),
    ("label_manager", "join", "label_manager in plans.json: received 'join', allowed is a LabelManager"),
    ("dataset/overwrite_image_reader_writer", "os", "overwrite_image_reader_writer in dataset.json: received 'os'"),
    ("dataset_name", "../victim", "dataset_name in plans.json: received '../victim', allowed is a name that a folder"),
    ("plans_name", "..", "plans_name in plans.json: received '..'"),
    ("dataset/file_ending", "/../../victim.nii.gz", "file_ending in dataset.json: received '/../../victim.nii.gz'"),
]


@pytest.mark.parametrize(("keys", "value", "message"), NAMES)
def test_a_model_folder_names_nothing_foreign(tmp_path: Path, trap: Path, keys: str, value: Any, message: str) -> None:
    folder = changed(write_model(tmp_path / "model"), keys, value)
    with pytest.raises(InputError) as refused:
        DeployedModel.from_folder(folder)
    assert message in str(refused.value)
    assert not trap.exists()


def test_every_way_in_refuses(tmp_path: Path, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(write_model(tmp_path / "model"), "2d/architecture/network_class_name", "trap_module.Net")
    write_case(tmp_path)
    with pytest.raises(InputError, match="received 'trap_module.Net'"):
        NNUNetModel(folder)
    words = ["evaluate", "-m", str(folder), "-i", str(tmp_path), "-gt", str(tmp_path), "--eps", "1", "-o"]
    assert main([*words, str(tmp_path / "report"), "--device", "cpu", "--dry-run"]) == 2
    assert "received 'trap_module.Net'" in capsys.readouterr().err
    assert not trap.exists()


def test_a_named_package_is_trusted(tmp_path: Path, trap: Path) -> None:
    folder = changed(write_model(tmp_path / "model"), "2d/architecture/network_class_name", "trap_module.Net")
    with pytest.raises(InputError, match="received 'trap_module.Net'"):
        NNUNetModel(folder, trusted=["trap"])  # a package, not a beginning
    network = NNUNetModel(folder, trusted=["trap_module"])
    assert type(network.deployed.network).__name__ == "Net"
    assert trap.exists()  # the trap works


def test_the_host_itself_would_have_run_it(trap: Path) -> None:
    with pytest.raises(TypeError):
        get_network_from_plans("trap_module.call", {}, [], 1, 2)
    assert trap.exists()


def test_what_nnunet_plans_itself_is_allowed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    for scheme in ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization"):
        model = DeployedModel.from_folder(changed(folder, "2d/normalization_schemes", [scheme]))
        assert model.configuration_manager.normalization_schemes == [scheme]
    for reader in ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO", "Tiff3DIO"):
        model = DeployedModel.from_folder(changed(folder, "image_reader_writer", reader))
        assert model.plans_manager.image_reader_writer_class.__name__ == reader
    for function in ("resample_torch_fornnunet", "no_resampling_hack", "resample_data_or_seg_to_shape"):
        model = DeployedModel.from_folder(changed(folder, "2d/resampling_fn_data", function))
        assert model.configuration_manager.resampling_fn_data.func.__name__ == function
    moved = NETWORK.replace("unet.", "residual_unet.")  # nnU-Net finds it by its name alone
    model = DeployedModel.from_folder(changed(folder, "2d/architecture/network_class_name", moved))
    assert type(model.network).__name__ == "PlainConvUNet"


# ---------------------------------------------------------------------------------------- names in tables and on screen

FORMULA = '=HYPERLINK("http://example.org","x")'
ESCAPE = "\x1b[2J\x1b]0;title\x07"
NAMES_OF_FILES = [
    FORMULA,
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "a;=1",
    "\r=1",
    " =1",
    "＝1",
    "'=1",
    "a,=1",
    'a","=1',
    "",
]


@pytest.mark.parametrize("name", NAMES_OF_FILES)
def test_no_cell_is_a_formula(name: str) -> None:
    """Whatever a spreadsheet takes for the end of a cell (OWASP, CSV injection); and the name comes back."""
    table = csv_text([name, "b"], [{name: name, "b": -1.5}])
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert [[from_cell(value) for value in row] for row in rows] == [[name, "b"], [name, "-1.5"]]
    for value in rows[0]:
        assert not re.search(r"(^|[;\t\r\n])\s*[=+\-@＝]", value)


def test_numbers_stay_numbers() -> None:
    assert [cell(value) for value in (-1, -0.5, "-0.5", "+3", "-inf", None)] == [-1, -0.5, "-0.5", "+3", "-inf", None]


SHOWN = [
    (ESCAPE, r"\x1b[2J\x1b]0;title\x07"),
    ("a\rb", r"a\x0db"),
    ("a\x9b2Jb", r"a\x9b2Jb"),
    ("scan\u202egnp.exe", r"scan\u202egnp.exe"),
    ("M\udcfcller", r"M\xfcller"),  # not UTF-8
    ("Müller 肝臓\n\tä", "Müller 肝臓\n\tä"),
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_nothing_moves_the_cursor(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    assert capsys.readouterr().out.removesuffix("\n") == printable(text) == str(InputError(text)) == shown


def test_names_in_a_report(tmp_path: Path) -> None:
    name = FORMULA + "".join(text for text, _ in SHOWN[:4]) + "<script>"
    records = plant(name, [dice_score(name, 0.9)], {("linf-0.1", "SegPGD"): [dice_score(name, 0.5)]})
    page = write_report(folder_of(tmp_path / "evaluation", records, pictures=True))
    text = page.read_text(encoding="utf-8")
    shown = "".join(shown for _, shown in SHOWN[:4])
    assert "x&#34;)" + shown + "&lt;script&gt;" in text
    assert not set(text) & {"\x1b", "\x07", "\r", "\x9b", "\u202e"}
    assert text.count("<script") == 1  # the page's own, which sorts
    for table in ("results.csv", "tables.csv"):
        with (page.parent / table).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert rows[1][0] == f"'{FORMULA}{shown}<script>"
        assert not [value for row in rows for value in row if re.match(r"[=+@]|-[^\d]", value)]


def test_an_index_of_odd_names_is_read_back(tmp_path: Path) -> None:
    names = ["=1.png", "+a.png", "@b.png", "a,=c.png", "a;=1.png", "-a.png"]
    parts = ("train", "val", "test")
    rows = [{"image": name, "sick": i // 3, "split": parts[i % 3]} for i, name in enumerate(names)]
    for name in names:
        Image.new("L", (4, 3)).save(tmp_path / name)
    with write_table(tmp_path, rows).open(newline="") as file:
        assert not [value for row in csv.reader(file) for value in row if value[0] in "=+@"]
    index = read_index(tmp_path, "sick", {"0": 0, "1": 1})
    assert sorted(Path(item["image"]).name for part in parts for item in index.part(part)) == sorted(names)


def test_files_in_the_predictions_of_a_bundle(tmp_path: Path) -> None:
    names = ["=1.png", "a,=1.png", 'b"\n=1.png']
    items = [{"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": name})} for name in names]
    saver = CSVSaver(tmp_path, "predictions.csv")
    for meta in file_cells(items):
        saver.save(torch.tensor([0.25, 0.75]), meta)
    saver.finalize()
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [from_cell(row[0]) for row in rows] == names
    assert [row[1:] for row in rows] == [["0.25", "0.75"]] * 3
    assert not [row[0] for row in rows if row[0].startswith("=")]

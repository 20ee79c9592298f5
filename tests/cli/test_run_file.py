"""``--run``: a file says what the command line says. ``--baseline``: worse than before has an exit code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from monai_adv.cli import build_parser, main
from monai_adv.cli.evaluate import _settings
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.store import read_evaluation
from tests.places import TESTS

FACTORY = f"{TESTS / 'tiny_models.py'}:classifier"
ASKED: dict[str, Any] = {
    "factory": [FACTORY], "norm": ["linf"], "eps": [[0.02]], "attacks": "quick", "device": "cpu", "cases": [4],
}  # fmt: skip


class Plain(str):
    """Is written without quotes."""


yaml.SafeDumper.add_representer(Plain, lambda dumper, text: dumper.represent_int(text))


def run(tmp_path: Path, *words: str, **changed: Any) -> int:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**ASKED, "output": str(tmp_path / "out"), "yes": True, **changed}))
    return main(["evaluate", "--run", str(file), *words])


def test_a_run_file_and_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) in (0, 3)
    said = capsys.readouterr().out
    assert said.startswith("1 model, 4 images, 1 level: at most ")
    assert "Predicted from 4 images: " in said
    assert "model  level       worst-case accuracy (%)  images" in said
    assert "\ntiny   L-inf 0.02  " in said
    assert "(80 steps, new random starts) on 4 images found" in (tmp_path / "out" / "report.html").read_text()
    kept = read_evaluation(tmp_path / "out")
    assert [level.key for level in kept.levels] == ["linf-0.02"]
    assert kept.models[0].cases == ("images 0 to 3",)
    again = yaml.safe_load(kept.run_file)
    assert again == {**ASKED, "cases": ["4"], "output": str(tmp_path / "out")}
    assert "--run FILE" in (tmp_path / "out" / "report.html").read_text()

    # The first of four images is wrong, so the clean accuracy is 75 %: 20 points below a baseline of 95 %.
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    content["models"][0]["summaries"][""]["mean"] = 0.95
    old = tmp_path / "old.json"
    old.write_text(json.dumps(content))
    capsys.readouterr()
    assert run(tmp_path, "--baseline", str(old), "--max-drop", "19.9") == 5
    assert "by more than 19.9 points: tiny, clean: 95.0 before, 75.0 now" in capsys.readouterr().out
    assert run(tmp_path, "--baseline", str(old), "--max-drop", "20.1") in (0, 3)
    assert run(tmp_path, "--baseline", str(old), "--max-drop", "20", "--cases", "3") == 2
    assert "--baseline: received 'cases 4', allowed is cases 3, as here" in capsys.readouterr().err
    content["evaluation"]["settings"]["cases"] = None
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert run(tmp_path, "--baseline", str(other), "--max-drop", "20") == 2
    assert "--baseline: received 'all cases', allowed is cases 4, as here" in capsys.readouterr().err
    assert run(tmp_path, "--baseline", str(old), "--max-drop", "20", "--norm", "linf", "--eps", "0.03") == 2
    assert "--baseline: received 'radii L-inf 0.02', allowed is L-inf 0.03, as here" in capsys.readouterr().err


def test_a_radius_reads_as_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--dry-run", eps="4/255", cases=6) == 0
    said = capsys.readouterr().out
    assert "Radii, for an input of tiny: L-inf 4/255 is L-inf radius 0.0156863 (" in said
    assert said.startswith("1 model, 6 images, 1 level: ")


@pytest.mark.parametrize(
    ("changed", "words", "levels"),
    [
        ({}, ("--eps", "0.05"), [Level("linf", 0.05)]),
        ({"norm": "linf", "unit": "raw"}, ("--eps", "0.05", "0.1"), [Level("linf", r, "raw") for r in (0.05, 0.1)]),
        ({"norm": ["linf", "l2"], "eps": [[1], [2]]}, ("--norm=l2", "--eps", "0.05"), [Level("l2", 0.05)]),
        ({"unit": "raw"}, ("--norm", "l2", "--eps", "3", "--unit", "norm"), [Level("l2", 3.0, "norm")]),
    ],
)
def test_a_radius_of_the_command_line_keeps_the_norm_and_the_unit_of_the_file(
    tmp_path: Path, changed: dict[str, Any], words: tuple[str, ...], levels: list[Level]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**ASKED, "output": "out", **changed}))
    args = build_parser().parse_args(["evaluate", "--run", str(file), *words])
    assert list(_settings(args).levels) == levels


@pytest.mark.parametrize(
    ("changed", "words", "said"),
    [
        # a number that would get another meaning
        ({}, ("--norm", "l2"), "--norm: received 'no --eps', allowed is --norm with --eps; the radii in "),
        ({}, ("--unit", "raw"), "--unit: received 'no --eps', allowed is --unit with --eps; the radii in "),
        ({"norm": ["l2", "linf"], "eps": [[1], [2]]}, ("--eps", "1"), "run.yaml has several norms: l2, linf."),
        (
            {},
            ("-c", "a.yaml"),
            "-c: received 'a.yaml', allowed is nnU-Net's configuration, such as 2d; a run file is --run",
        ),
        ({"unit": "norm"}, ("--norm", "l2", "--eps", "1"), "--norm with --eps and --unit; the unit norm in "),
        # what is no option, or no value of one
        ({"atacks": "quick"}, (), "did you mean 'attacks'?"),
        ({"yes": "perhaps"}, (), "yes in "),
        ({"seed": [1, 2]}, (), "allowed is one value"),
        ({"seed": None}, (), "allowed is text or a number"),
        ({"cases": [Plain("0010")]}, (), "'0010'"),
        ({"eps": [[-1]]}, (), "eps: received -1.0, allowed is finite radii > 0"),
        ({}, ("--baseline", "none.json"), "allowed is both or none"),
        ({}, ("--baseline", "none.json", "--max-drop", "1"), "allowed is the results.json of a report"),
    ],
)
def test_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], words: tuple[str, ...], said: str
) -> None:
    assert run(tmp_path, *words, **changed) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_looks_like_a_time_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML 1.1 makes 120 of it."""
    with pytest.raises(SystemExit):
        run(tmp_path, seed=Plain("2:00"))
    assert "argument --seed: invalid int value: '2:00'" in capsys.readouterr().err

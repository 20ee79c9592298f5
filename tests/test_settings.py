"""Settings: from a file and the environment, validated, one sentence per mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from monai_adv import InputError
from monai_adv.defenses import METHODS, Method
from monai_adv.defenses.ima import PRESETS, IMASettings
from monai_adv.defenses.sat import SATSettings
from monai_adv.settings import as_dict, combine, differences, expand_preset, flat, owners, read_settings, table
from monai_adv.tasks import SegmentationSettings
from nnunet_trainers.run_settings import RunSettings

SECTIONS = {"defense": IMASettings, "task": SegmentationSettings, "run": RunSettings}


def ima(values: dict) -> dict:
    return flat(as_dict(combine(SECTIONS, expand_preset(SECTIONS, values, PRESETS))))


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_no_two_settings_of_a_run_share_a_name(method: Method) -> None:
    sections = {**SECTIONS, "defense": method.settings}
    assert sorted(owners(sections)) == sorted(n for cls in sections.values() for n in [*cls.names()])
    assert "preset" not in owners(sections)


def test_sections_that_share_a_name_are_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="the setting eps of SATSettings is also one of the section 'defense'"):
        combine({"defense": IMASettings, "other": METHODS["sat"].settings}, {})


def test_file_then_environment(tmp_path: Path) -> None:
    file = tmp_path / "ima.yaml"
    file.write_text("eps: 15\ndelta: 2\nunit: norm\nepochs: 50\ninitial_lr: 1e-3\n")
    given = read_settings({"MONAI_ADV_SETTINGS": str(file), "MONAI_ADV_EPS": "20", "MONAI_ADV_CLEAN_GATE": "false"})
    settings = ima(given)
    assert (settings["eps"], settings["delta"], settings["epochs"], settings["clean_gate"]) == (20.0, 2.0, 50, False)
    assert settings["initial_lr"] == 0.001
    assert settings["steps"] == 20  # the default


def test_what_looks_like_a_time_is_no_number(tmp_path: Path) -> None:
    """YAML 1.1 makes 120 of 2:00, 90 of 1:30 and 64 of 0100."""
    file = tmp_path / "s.yaml"
    file.write_text("budget: 2:00\nepochs: 0100\n")
    given = read_settings({"MONAI_ADV_SETTINGS": str(file)})
    assert given == read_settings({"MONAI_ADV_BUDGET": "2:00", "MONAI_ADV_EPOCHS": "0100"})
    assert given == {"budget": "2:00", "epochs": 100}
    said = "budget: received '2:00', allowed is a number > 0, hours such as 2h or none;"
    with pytest.raises(InputError, match=f"^{said}"):
        RunSettings(initial_weights="plain", budget=given["budget"])
    with pytest.raises(InputError, match="^epochs: received '1:30', allowed is a whole number >= 1 or none;"):
        RunSettings(**read_settings({"MONAI_ADV_EPOCHS": "1:30"}))
    with pytest.raises(InputError, match="^eps: received '1:30', allowed is a finite number > 0"):
        ima(read_settings({"MONAI_ADV_EPS": "1:30"}))


def test_a_number_is_read_where_a_word_is_allowed_too() -> None:
    rates = ("1e-3", "1/1000", "plain")
    values = [RunSettings(initial_weights="plain", initial_lr=rate).initial_lr for rate in rates]
    assert values == [0.001, 0.001, "plain"]
    assert RunSettings(initial_weights="plain", budget="5e-1").budget == 0.5


def test_json_is_accepted_and_none_means_none(tmp_path: Path) -> None:
    file = tmp_path / "ima.json"
    file.write_text('{"eps": 0.2, "epochs": null}')
    given = read_settings({"MONAI_ADV_SETTINGS": str(file), "MONAI_ADV_INITIAL_LR": "none"})
    assert given == {"eps": 0.2, "epochs": None, "initial_lr": None}


def test_variables_that_are_not_settings_are_left_alone() -> None:
    assert read_settings({"MONAI_ADV_NO_DISCOVERY": "1", "nnUNet_raw": "x"}) == {}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("MONAI_ADVEPS", "MONAI_ADV_EPS"),
        ("MONAI_ADV_eps", "MONAI_ADV_EPS"),
        ("monai_adv_eps", "MONAI_ADV_EPS"),
        ("Monai_Adv_Eps", "MONAI_ADV_EPS"),
        ("MONAIADV_EPS", "MONAI_ADV_EPS"),
        ("MONAI-ADV-EPS", "MONAI_ADV_EPS"),
        ("MONAI_AVD_EPS", "MONAI_ADV_EPS"),
        ("monai_adv_settings", "MONAI_ADV_SETTINGS"),
    ],
)
def test_a_variable_that_is_nearly_ours_is_refused(name: str, write: str) -> None:
    with pytest.raises(InputError) as error:
        read_settings({name: "1"})
    assert str(error.value).startswith(f"{name}: received 'a variable of this name', allowed is MONAI_ADV_<NAME>")
    assert f"write {write}, or unset it" in str(error.value)


@pytest.mark.parametrize("name", ["MONAI_DATA_DIRECTORY", "MONAI_ALLOW_MISSING_REFERENCE", "MONAI_ADAPT", "ADV_EPS"])
def test_variables_of_others_are_left_alone(name: str) -> None:
    assert read_settings({name: "1"}) == {}


@pytest.mark.parametrize("content", ["eps: 0.1\nsteps: 3\neps: 0.2\n", '{"eps": 0.1, "steps": 3, "eps": 0.2}'])
def test_a_key_that_comes_twice_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ima.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="the parser says: 'eps' is there twice"):
        read_settings({"MONAI_ADV_SETTINGS": str(file)})


def test_preset_and_explicit_values() -> None:
    official = ima({"preset": "official"})
    assert {n: official[n] for n in PRESETS["official"]} == PRESETS["official"]
    assert ima({"preset": "official", "clean_gate": True})["clean_gate"] is True
    assert ima({"preset": "paper"}) == ima({})


def test_choosing_a_preset_replaces_all_of_another_one() -> None:
    """As on --c: the values of the checkpoint, overridden by what is given now."""
    given = expand_preset(SECTIONS, {"preset": "paper", "eps": 0.2}, PRESETS)
    assert ima({**ima({"preset": "official"}), **given}) == ima({"eps": 0.2})


def test_delta_is_a_fifth_of_eps_unless_given() -> None:
    assert IMASettings(eps=0.5).growth == 0.1
    assert IMASettings(eps=0.5, delta=0.2).growth == 0.2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epz": 1}, "epz: unknown setting; did you mean 'eps'?"),
        ({"zzzz": 1}, "zzzz: unknown setting; known are absent_classes, algorithm, amp"),
        (
            {"preset": "offical"},
            "preset: received 'offical', allowed is one of paper, ima_covid, ima_pathmnist, ima_heart, "
            "ima_hippocampus, ima_prostate, finetune, official; did you mean 'official'",
        ),
        ({"eps": "fifteen"}, "eps: received 'fifteen', allowed is a finite number > 0"),
        ({"eps": 0}, "eps: received 0.0, allowed is a finite number > 0; set eps and delta both to 0"),
        ({"eps": -1}, "eps: received -1.0, allowed is a finite number > 0"),
        ({"eps": float("nan")}, "eps: received nan, allowed is a finite number > 0"),
        ({"eps": "nan"}, "eps: received nan"),
        ({"eps": 1, "delta": 2}, "delta: received 2.0, allowed is at most eps, here 1.0"),
        ({"delta": 0}, "delta: received 0.0, allowed is a number > 0"),
        (
            {"eps": 15},
            "eps: received 15.0, allowed is at most 1 in the unit rms, one standard deviation in every voxel",
        ),
        ({"preset": 1}, "preset: received 1, allowed is one of paper, ima_covid"),
        ({"preset": ["paper"]}, "preset: received ['paper'], allowed is one of paper, ima_covid"),
        ({"threshold": 1.0}, "threshold: received 1.0, allowed is a number in (0, 1)"),
        ({"threshold": 0}, "threshold: received 0.0, allowed is a number in (0, 1)"),
        ({"steps": 2.5}, "steps: received 2.5, allowed is a whole number >= 1"),
        ({"steps": True}, "steps: received True, allowed is a whole number >= 1"),
        ({"steps": 0}, "steps: received 0, allowed is a whole number >= 1"),
        ({"amp": 1}, "amp: received 1, allowed is true or false"),
        ({"algorithm": 1}, "algorithm: received 1, allowed is one of 2, 3"),
        ({"unit": "hu"}, "unit: received 'hu', allowed is one of 'norm', 'rms', 'raw', None"),
        ({"norm": "linf", "unit": "rms"}, "unit: received 'rms', allowed is 'norm'"),
        ({"eps": 1e-300}, "eps: received 1e-300, allowed is"),
        ({"eps": 1e-9}, "eps: received 1e-09, allowed is 0 (off) or at least 1e-08"),
        ({"eps": 1e300, "unit": "norm"}, "eps: received 1e+300, allowed is"),
        ({"steps": 10**30}, "steps: received 1000000000000000000000000000000, allowed is a whole number >= 1; numbers"),
        ({"seed": -(10**20)}, "seed: received -100000000000000000000, allowed is a whole number >= 0"),
        ({"epochs": 0}, "epochs: received 0, allowed is a whole number >= 1 or none"),
    ],
)
def test_each_mistake_gets_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        ima(values)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_off_is_allowed() -> None:
    assert ima({"eps": 0, "delta": 0})["eps"] == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "an existing YAML or JSON file"),
        ("eps: [1", "well-formed YAML or JSON"),
        ("- eps", "a flat mapping"),
        ("ima:\n  eps: 1", "a flat mapping"),
        ("", "a flat mapping"),
        (b"\xff\xfe\x00", "a readable YAML or JSON file"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str | bytes | None, says: str) -> None:
    file = tmp_path / "ima.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match="^MONAI_ADV_SETTINGS: received") as error:
        read_settings({"MONAI_ADV_SETTINGS": str(file)})
    assert says in str(error.value)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IMASettings().eps = 1.0  # type: ignore[misc]


def test_differences_say_what_and_how() -> None:
    assert differences({"eps": 15.0, "old": 1}, {"eps": 10.0, "steps": 20}) == [
        "eps: 15.0 in the checkpoint, 10.0 now",
        "steps: null in the checkpoint, 20 now",
        "old: 1 in the checkpoint, null now",
    ]
    assert differences({"eps": 1.0}, {"eps": 1.0}) == []


def test_table_marks_what_differs_from_the_default() -> None:
    text = table({"defense": IMASettings(eps=0.2)})
    assert " * eps = 0.2 " in text
    assert "   steps = 20 " in text


@pytest.mark.parametrize("given", ["0, 1", "0,1", "0 1", "[0, 1]", [0, 1], (0.0, 1.0), ["0", "255/255"]])
def test_a_box_is_two_numbers_however_it_is_written(given: Any) -> None:
    assert SATSettings(box=given).box == (0.0, 1.0)


def test_a_box_from_a_file_and_from_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("box: [-1, 2]\neps: 8/255\nnorm: linf\n")
    assert read_settings({"MONAI_ADV_SETTINGS": str(file)}) == {"box": [-1, 2], "eps": "8/255", "norm": "linf"}
    settings = SATSettings(**read_settings({"MONAI_ADV_SETTINGS": str(file), "MONAI_ADV_BOX": "0, 1"}))
    assert (settings.box, settings.eps) == ((0.0, 1.0), 8 / 255)
    assert read_settings({"MONAI_ADV_BOX": "none"}) == {"box": None}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"box": "0"}, "box: received '0', allowed is two numbers, lowest and highest, such as 0, 1; give none for z"),
        ({"box": 1.0}, "box: received 1.0, allowed is two numbers"),
        ({"box": [1, 0]}, "box: received [1, 0], allowed is two numbers, lowest and highest, such as 0, 1, LOW < HIGH"),
        ({"box": [0, 0]}, "box: received [0, 0], allowed is two numbers"),
        ({"box": [0, "nan"]}, "box: received [0, 'nan'], allowed is two numbers"),
        ({"box": "a, b"}, "box: received 'a', allowed is a number such as 0.03 or 8/255."),
        ({"eps": "8/0"}, "eps: received '8/0', allowed is a finite number >= 0 (0: off); nothing can be divided by 0."),
        ({"eps": "a/b"}, "eps: received 'a/b', allowed is a finite number >= 0 (0: off); it is: radius of the attack."),
        ({"eps": "1/2/3"}, "eps: received '1/2/3', allowed is a finite number >= 0 (0: off); a quotient has two"),
        ({"eps": "inf/inf"}, "eps: received 'inf/inf', allowed is"),
    ],
)
def test_what_is_no_box_or_number_gets_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        SATSettings(**given)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_what_is_in_the_unit_of_eps_is_converted_with_it(method: Method) -> None:
    for field in dataclasses.fields(method.settings):
        in_unit = field.name == "eps" or "in the unit of eps" in field.metadata["help"]
        assert field.metadata["radius"] == in_unit, field.name

"""Numbers of users' files are what they look like: YAML 1.1 reads times of day and octal numbers into them."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
import yaml

from monai_adv.yaml_text import read_words, read_yaml

NUMBERS: dict[str, Any] = {
    "2:00": "2:00", "1:30": "1:30", "-1:30:15.5": "-1:30:15.5", "0100": 100, "-007": -7, "089": 89, "0": 0, "+7": 7,
    "0o17": 15, "0x1F": 31, "1e-3": 0.001, "1E5": 100000.0, "-.5": -0.5, "3.": 3.0, "1.5e+3": 1500.0, "8/255": "8/255",
    "1_000": "1_000", "0b11": "0b11", "2h": "2h", "12e": "12e", "1.2.3": "1.2.3", ".": ".", "'1'": "1",
    "true": True, "~": None, "2024-05-01": datetime.date(2024, 5, 1),
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_those_of_yaml_1_2(text: str) -> None:
    for given, found in ((text, read_yaml(text)), (f"a: {text}", read_yaml(f"a: {text}")["a"])):
        assert (given, type(found), found) == (given, type(NUMBERS[text]), NUMBERS[text])


def test_what_is_no_finite_number_is_read() -> None:
    low, high, none = read_yaml("[-.inf, .INF, .nan]")
    assert (low, high) == (-math.inf, math.inf)
    assert math.isnan(none)


def test_words_stay_as_they_are_written() -> None:
    assert read_words("a: [007, 1.10, 2:00, 1e-3, 2024-05-01, true, null, x]") == {
        "a": ["007", "1.10", "2:00", "1e-3", "2024-05-01", True, None, "x"]
    }


@pytest.mark.parametrize("read", [read_yaml, read_words])
def test_a_key_that_comes_twice_is_an_error_and_a_merge_is_none(read: Any) -> None:
    with pytest.raises(yaml.YAMLError, match="'a' is there twice"):
        read("a: x\na: y")
    assert read("a: &x {b: t}\nc: {<<: *x, d: u}") == {"a": {"b": "t"}, "c": {"b": "t", "d": "u"}}


@pytest.mark.parametrize("text", ["a: 2024-13-45", "a: " + "9" * 5000, "a: !!int x", "a: ["])
def test_what_cannot_be_read_is_an_error_of_one_kind(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)

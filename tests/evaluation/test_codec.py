"""Every record that is kept in a file: written and read it is equal, and what does not fit is refused by name."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from monai_adv.certificates.settings import Certification, Smoothing
from monai_adv.errors import InputError
from monai_adv.evaluation import seal
from monai_adv.evaluation.certify.kept import Judged, Proven
from monai_adv.evaluation.checks.probed import CaseProbe, ModelProbe
from monai_adv.evaluation.codec import keyed, plain, plain_values, typed
from monai_adv.evaluation.costs import Costs
from monai_adv.evaluation.described import Evaluation
from monai_adv.evaluation.evidence.content import Evidence, Figure
from monai_adv.evaluation.evidence.document import schema
from monai_adv.evaluation.evidence.group_table import GroupTable
from monai_adv.evaluation.evidence.history import Session
from monai_adv.evaluation.evidence.leaderboard import Entry
from monai_adv.evaluation.store import Problem, Saved, Store, _Head, _History
from monai_adv.metrics.statistics import Interval
from tests.planted_evaluation import dice_score, folder_of, plant

KINDS = [
    Evaluation, Costs, Saved, Problem, _Head, _History, Session, GroupTable, CaseProbe, ModelProbe, Proven, Judged,
    Evidence, Entry,
]  # fmt: skip
"""All that the codec reads from files."""
Place = tuple[Any, ...]
few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
text = st.text(st.characters(exclude_categories=()), max_size=4)  # also bytes of file names that are no Unicode
numbers = {"sigma": st.floats(0.01, 10), "alpha": st.floats(0.001, 0.5), "tau": st.floats(0.51, 0.99)}
numbers |= dict.fromkeys(("n0", "n", "inputs_per_pass", "draws"), st.integers(1, 9)) | {"seed": st.integers(0, 9)}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=3,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Of a type that a field may have, NaN and infinity among them."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is JsonValue:
        return anything
    if kind in (int, str, bool, float, NoneType):
        return {int: st.integers(), str: text, bool: st.booleans(), float: st.floats(), NoneType: st.none()}[kind]
    if origin is Literal:
        return st.sampled_from(parts)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, parts))
    if origin is dict:
        return st.dictionaries(values(parts[0]), values(parts[1]), max_size=2)
    if origin is tuple and parts[-1] is not Ellipsis:
        return st.tuples(*map(values, parts))
    if origin in (tuple, list):
        return st.lists(values(parts[0]), max_size=2).map(origin)
    if hasattr(kind, "_fields"):
        return st.tuples(*map(values, get_type_hints(kind).values())).map(lambda found: kind(*found))
    hints = get_type_hints(kind)
    known = {f.name: values(hints[f.name]) for f in fields(kind)}
    if issubclass(kind, Certification):
        known |= {name: found for name, found in numbers.items() if name in known}
    if kind is Saved:
        pairs = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=3)
        return st.builds(
            lambda both, **rest: Saved(finished=tuple(a for a, _ in both), carried=tuple(b for _, b in both), **rest),
            pairs, record=known["record"], images=known["images"],
        )  # fmt: skip
    return st.builds(kind, **known)


def through_json(record: Any) -> Any:
    return json.loads(json.dumps(plain(record)))


@pytest.mark.parametrize("kind", [*KINDS, Certification, Smoothing, dict[str, tuple[int, int, int, str]]], ids=str)
def test_what_is_written_reads_equal(kind: Any) -> None:
    """By its text, in which NaN equals itself and no digit of a number is lost."""

    @few
    @given(values(kind))
    def holds(record: Any) -> None:
        assert repr(typed(kind, through_json(record))) == repr(record)

    holds()


def places(
    kind: Any, content: Any, path: tuple[Any, ...] = (), name: str = ""
) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Path and name of every field of a dataclass in a content."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            if is_dataclass(part) and isinstance(content, dict):
                yield from places(part, content, path, name)
    elif origin is dict:
        for key, each in content.items():
            yield from places(parts[1], each, (*path, key), f"{name}.{key}" if name else key)
    elif origin in (tuple, list):
        kinds = parts if origin is tuple and parts[-1] is not Ellipsis else parts[:1] * len(content)
        for i, (part, each) in enumerate(zip(kinds, content, strict=True)):
            yield from places(part, each, (*path, i), f"{name}[{i}]")
    elif is_dataclass(kind):
        hints = get_type_hints(kind)
        for f in fields(kind):
            key = f.metadata.get("key", f.name)
            if key in content:
                inside = f"{name}.{key}" if name else key
                yield (*path, key), inside
                yield from places(hints[f.name], content[key], (*path, key), inside)


def broken(content: Any, path: Place, how: str) -> Any:
    """A content with the field at a path missing, doubled under another name, or of another type."""
    content = copy.deepcopy(content)
    *above, last = path
    place = content
    for key in above:
        place = place[key]
    if how == "missing":
        del place[last]
    elif how == "extra":
        place[f"{last}2"] = place[last]
    else:
        wrong = {dict: 3, NoneType: True}  # what a field may be besides is neither of these
        place[last] = wrong.get(type(place[last]), {"a": "b"})
    return content


def left_out(kind: Any, path: Place) -> bool:
    """Whether a field of this name may be missing anywhere in a record."""
    if get_origin(kind) is not None:
        return any(left_out(part, path) for part in get_args(kind))
    if not is_dataclass(kind):
        return False
    optional = {f.metadata.get("key", f.name) for f in fields(kind) if f.metadata.get("optional")}
    return path[-1] in optional or any(left_out(hint, path) for hint in get_type_hints(kind).values())


SAID = {"missing": "{} is missing", "extra": "{}2 is not known", "wrong": "{}: received "}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_field_that_does_not_fit_is_named(kind: Any) -> None:
    @few
    @given(values(kind), st.data())
    def holds(record: Any, data: st.DataObject) -> None:
        content = through_json(record)
        known = list(places(kind, content))
        if not known:  # all of it was left out
            return
        path, name = data.draw(st.sampled_from(known))
        for how, said in SAID.items():
            if how == "missing" and left_out(kind, path):
                continue
            with pytest.raises(ValueError, match=re.escape(said.format(name))):
                typed(kind, broken(content, path, how))

    holds()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    clean = [dice_score("p0", 0.8)]
    return Store(folder_of(tmp_path_factory.mktemp("kept") / "store", plant("m", clean, {("l2-5", "PGD"): clean})))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_message_names_the_file_and_the_field(kind: Any, store: Store, tmp_path: Path) -> None:
    """Also with a right checksum, as after an edit by somebody who knows this program."""

    @settings(few, max_examples=3)
    @given(values(kind))
    def holds(record: Any) -> None:
        path = store.folder / "some.json"
        store.write(path, record)
        assert repr(store.read(path, kind)) == repr(record)
        for how, said in SAID.items():
            for place, name in list(places(kind, through_json(record)))[:3]:
                if how == "missing" and left_out(kind, place):
                    continue
                content = broken(through_json(record), place, how)
                path.write_text(json.dumps(seal.sealed(content, *store._place(path))))
                with pytest.raises(InputError) as error:
                    store.read(path, kind)
                assert str(path) in str(error.value)
                assert said.format(name) in str(error.value)

    holds()


@dataclass(frozen=True)
class Worded:
    of: str = keyed("class")
    value: float | None = None


def test_a_word_of_python_is_a_key_of_the_file() -> None:
    assert plain(Worded("lesion", 0.5)) == {"class": "lesion", "value": 0.5}
    assert typed(Worded, {"class": "lesion", "value": 0.5}) == Worded("lesion", 0.5)
    with pytest.raises(ValueError, match="class is missing"):
        typed(Worded, {"of": "lesion", "value": 0.5})


def test_what_is_not_defined_is_null_for_others_and_nan_for_us() -> None:
    content = plain_values(Interval(float("nan"), float("inf"), "too few"))
    assert content == {"low": None, "high": None, "how": "too few"}
    assert repr(typed(Interval, content, null_is_nan=True)) == "Interval(low=nan, high=nan, how='too few')"
    with pytest.raises(ValueError, match="low: received None, allowed is float"):
        typed(Interval, content)


def test_evidence_and_its_schema_have_the_same_fields() -> None:
    """Of the records of a type in the schema, by their keys, and which of them may be left out."""
    definitions = schema()["$defs"]
    for kind, found in ((Evidence, schema()), (Figure, definitions["figure"])):
        keys = {f.metadata.get("key", f.name) for f in fields(kind)}
        assert keys == set(found["properties"])
        always = {f.metadata.get("key", f.name) for f in fields(kind) if not f.metadata.get("optional")}
        assert always - {"low", "high"} <= set(found["required"]) <= keys

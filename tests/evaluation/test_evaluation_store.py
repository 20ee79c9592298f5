"""The store: complete or not at all, the same bits, no mix of evaluations."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_adv.errors import InputError
from monai_adv.evaluation.described import (
    CorruptionEntry,
    Evaluation,
    LevelEntry,
    ModelEntry,
    SettingsEntry,
    StageEntry,
)
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import Record
from monai_adv.evaluation.sealed_folder import safe_name
from monai_adv.evaluation.store import (
    State,
    Store,
    read_evaluation,
    read_pictures,
    read_problems,
    read_records,
)
from monai_adv.metrics.score import Score


def evaluation(model: Mapping[str, Any] = MappingProxyType({}), seed: int = 0, **changes: Any) -> Evaluation:
    """Of one model; ``changes`` of its entry, the seed, or other parts."""
    entry = ModelEntry(
        name="m",
        kind="segmentation",
        classes=("lesion",),
        space="",
        unit="",
        fingerprint="abc",
        cases=("../c 1", "c2"),
        problems=("c3: no label",),
        corruptions=(CorruptionEntry(name="corruption:blur", severity="1"),),
        stages={"l2-5": tuple(StageEntry(name=n, family="white-box", settings={}) for n in ("FGSM", "PGD"))},
    )
    settings = SettingsEntry(attacks="quick", seed=seed, batch_size=64, cases=None, box=None, device="cpu", threads=1)
    whole = Evaluation(
        started="now", machine="mine", versions={"torch": "2"}, settings=settings, words={}, run_file="",
        levels=(LevelEntry(key="l2-5", norm="l2", eps=5.0, unit="norm"),), models=(replace(entry, **model),),
    )  # fmt: skip
    return replace(whole, **changes)


def a_record(case: str = "../c 1", level: str = "l2-5", attack: str = "FGSM") -> Record:
    own = Score(case, 0.1 + 0.2, {"lesion": 1 / 3, "edema": math.nan}, {"lesion": math.inf})
    worst = Score(case, math.nan, label=2, probabilities=(0.1, 1 - 0.1))
    return Record("m", case, level, attack, (own,), (worst,), 0.25, 7, 3, 1.5, 2, 1, 1, 0.9999999, {"steps": 20})


def state(seed: int = 0) -> State:
    images = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    return State(images, torch.tensor([True, False]), torch.tensor([False, True]), a_record().worst)


@given(st.text(), st.text())
def test_safe_names_are_safe_and_never_shared(a: str, b: str) -> None:
    for name in (a, b):
        assert re.fullmatch(r"[A-Za-z0-9._~-]{1,90}", safe_name(name))
        assert not safe_name(name).startswith(".")
    assert (safe_name(a).lower() == safe_name(b).lower()) == (a == b)


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "new", evaluation())
    saved = store.commit(a_record(), state())
    assert repr(read_records(store.folder)) == repr([a_record()])
    again = store.saved("m", "../c 1", "l2-5", "FGSM")
    assert again is not None
    assert repr(again) == repr(saved)
    read = store.state(again)
    assert torch.equal(read.images, state().images)
    assert read.finished.tolist() == [True, False]
    assert read.carried.tolist() == [False, True]


def test_records_come_in_the_order_of_the_evaluation(tmp_path: Path) -> None:
    store = Store.open(tmp_path, evaluation())
    done = torch.tensor([False])
    keys = [("l2-5", "PGD"), ("1", "corruption:blur"), ("l2-5", "FGSM"), ("", "clean")]
    for case in ("c2", "../c 1"):
        for level, attack in keys:
            store.commit_record(a_record(case, level, attack), done)
    expected = [("", "clean"), ("1", "corruption:blur"), ("l2-5", "FGSM"), ("l2-5", "PGD")]
    assert [(r.case, r.level, r.attack) for r in read_records(tmp_path)] == [
        (case, *key) for case in ("../c 1", "c2") for key in expected
    ]


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "inside", evaluation())
    store.commit(a_record("../../x"), state())
    store.add_problem("../m", "/etc/passwd", "no")
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def test_a_file_is_there_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path, evaluation())
    store.commit_record(a_record(), torch.tensor([True]))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        store.commit_record(replace(a_record(), forward=99), torch.tensor([True]))
    monkeypatch.undo()
    assert [r.forward for r in read_records(tmp_path)] == [7]
    Store.open(tmp_path, evaluation())  # what was not finished is no foreign file


def test_pictures_come_back(tmp_path: Path) -> None:
    store = Store.open(tmp_path, evaluation())
    assert read_pictures(tmp_path, "m", "c2", "l2-5") == []
    picture = Picture("<script>", np.eye(2), np.ones((2, 2)), truth=np.zeros((2, 2), np.uint8), caption="slice 1")
    store.add_pictures("m", "c2", "l2-5", [picture])
    (found,) = read_pictures(tmp_path, "m", "c2", "l2-5")
    assert (found.case, found.caption, found.on_clean) == ("<script>", "slice 1", None)
    assert np.array_equal(found.clean, np.eye(2))
    assert found.truth.dtype == np.uint8


def test_problems_are_listed_until_they_are_solved(tmp_path: Path) -> None:
    store = Store.open(tmp_path, evaluation())
    store.add_problem("m", "c2", "c2.nii.gz is damaged")
    assert read_problems(tmp_path) == [("m", "", "c3: no label"), ("m", "c2", "c2.nii.gz is damaged")]
    store.clear_problem("m", "c2")
    assert read_problems(tmp_path) == [("m", "", "c3: no label")]


def test_the_same_evaluation_goes_on_whenever_and_wherever(tmp_path: Path) -> None:
    Store.open(tmp_path, evaluation())
    Store.open(tmp_path, evaluation(started="later", machine="another"))
    assert read_evaluation(tmp_path).started == "now"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "settings.seed: 0 there, 1 now"),
        ({"model": {"fingerprint": "xyz"}}, "models[m].fingerprint: other weights, other data"),
        ({"model": {"cases": ("c2",)}}, 'models[m].cases: ["../c 1", "c2"] there, ["c2"] now'),
        ({"versions": {"torch": "3"}}, 'versions.torch: "2" there, "3" now'),
        ({"levels": ()}, 'levels: ["l2-5"] there, [] now'),
    ],
)
def test_another_evaluation_is_refused_and_what_differs_is_said(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    Store.open(tmp_path, evaluation())
    with pytest.raises(InputError) as error:
        Store.open(tmp_path, evaluation(**changes))
    assert said in str(error.value)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("")
    with pytest.raises(InputError, match="thesis.docx"):
        Store.open(tmp_path, evaluation())
    (tmp_path / "evaluation.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="not the folder of an evaluation"):
        read_records(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder: received"):
        Store(tmp_path / "file" / "folder").check_place()

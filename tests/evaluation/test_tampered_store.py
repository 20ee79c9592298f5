"""A store believes only what it wrote itself: whatever else lies there is named, with what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_adv.errors import InputError
from monai_adv.evaluation import seal
from monai_adv.evaluation.costs import Costs, Predicted
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.store import (
    Store,
    read_cost,
    read_evaluation,
    read_pictures,
    read_probes,
    read_problems,
    read_records,
)
from tests.evaluation.test_evaluation_store import a_record, evaluation, state
from tests.planted_evaluation import probed
from tests.tiny_evaluate import evaluate

ONE, TWO = "records/m/c1", "records/m/c2"


def fill(folder: Path, **changes: Any) -> Store:
    """Two cases of one model, each with a clean record, two attacks and the images to go on."""
    store = Store.open(folder, evaluation(model={"cases": ("c1", "c2")}, **changes))
    for number, case in enumerate(("c1", "c2")):
        store.commit_record(replace(a_record(case, "", "clean"), forward=number), torch.tensor([False, True]))
        for attack in ("FGSM", "PGD"):
            store.commit(a_record(case, attack=attack), state(number))
        store.add_pictures("m", case, "l2-5", [Picture(case, np.eye(2), np.eye(2) + number)])
    store.add_problem("m", "c2", "too dark")
    store.add_probe("m", probed(seconds=1.0))
    store.add_cost(Costs(predicted=Predicted(5.0, 2)))
    return store


def read_all(folder: Path) -> None:
    """As going on and the report do."""
    store = Store(folder)
    for record in read_records(folder):
        saved = store.saved(record.model, record.case, record.level, record.attack)
        assert saved is not None
        if saved.images is not None:
            store.state(saved)
    for case in ("c1", "c2"):
        read_pictures(folder, "m", case, "l2-5")
    read_problems(folder), read_probes(folder), read_cost(folder), read_evaluation(folder)


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], str]:
    """Change a file's content, and leave its checksum."""

    def tamper(folder: Path) -> str:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        return name

    return tamper


def copied(name: str, to: str) -> Callable[[Path], str]:
    def tamper(folder: Path) -> str:
        shutil.copy(folder / name, folder / to)
        return to

    return tamper


def arrays(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], str]:
    def tamper(folder: Path) -> str:
        with np.load(folder / name) as file:
            content = dict(file)
        change(content)
        np.savez(folder / name, **content)
        return name

    return tamper


def raw(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    def tamper(folder: Path) -> str:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return name

    return tamper


def from_another_evaluation(folder: Path) -> str:
    """The same case and attack with another seed."""
    fill(folder.with_name("other"), seed=1)
    shutil.copy(folder.with_name("other") / ONE / "clean.json", folder / ONE / "clean.json")
    return f"{ONE}/clean.json"


FGSM = Store("x").path("records", "m", "c1", "l2-5.FGSM").name
TAMPERED: dict[str, Callable[[Path], str]] = {
    "a record copied from another case": copied(f"{TWO}/{FGSM}", f"{ONE}/{FGSM}"),
    "a record copied from another stage": copied(f"{ONE}/clean.json", f"{ONE}/{FGSM}"),
    "a record of another evaluation": from_another_evaluation,
    "a score": edit(f"{ONE}/{FGSM}", lambda c: c["record"]["worst"][0].update(score=0.99)),
    "a list cut short": edit(f"{ONE}/{FGSM}", lambda c: c["record"]["own"].clear()),
    "who is finished": edit(f"{ONE}/{FGSM}", lambda c: c["finished"].reverse()),
    "a record without a checksum": edit(f"{ONE}/{FGSM}", lambda c: c.pop("checksum")),
    "half a record": raw(f"{ONE}/{FGSM}", lambda b: b[: len(b) // 2]),
    "a list for a record": raw(f"{ONE}/{FGSM}", lambda b: b"[]"),
    "an empty record": raw(f"{ONE}/{FGSM}", lambda b: b""),
    "NaN in an image": arrays(
        f"images/m/c1/{FGSM[:-5]}.npz", lambda c: c.update(images=np.where(c["images"] > 0, np.nan, c["images"]))
    ),
    "an image less": arrays(f"images/m/c1/{FGSM[:-5]}.npz", lambda c: c.update(images=c["images"][:1])),
    "images of another case": copied(f"images/m/c2/{FGSM[:-5]}.npz", f"images/m/c1/{FGSM[:-5]}.npz"),
    "half an image": raw(f"images/m/c1/{FGSM[:-5]}.npz", lambda b: b[: len(b) // 2]),
    "a picture of another case": copied("pictures/m/c2/l2-5.npz", "pictures/m/c1/l2-5.npz"),
    "a picture": arrays("pictures/m/c1/l2-5.npz", lambda c: c.update({"0.attacked": np.zeros((2, 2))})),
    "a reason": edit("problems/m/c2.json", lambda c: c.update(reason="none")),
    "a probe": edit("probes/m.json", lambda c: c.update(repeat=1.0)),
    "the cost": edit("cost.json", lambda c: c["predicted"].update(seconds=1.0)),
    "a case less": edit("evaluation.json", lambda c: c["models"][0]["cases"].pop()),
    "other settings": edit("evaluation.json", lambda c: c["settings"].update(seed=3)),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
def test_what_was_tampered_with_is_named_with_what_to_do(tamper: Callable[[Path], str], tmp_path: Path) -> None:
    store = fill(tmp_path / "store")
    read_all(store.folder)
    name = tamper(store.folder)
    with pytest.raises(InputError) as error:
        read_all(store.folder)
    said = str(error.value)
    assert said.startswith(f"{store.folder / name}: is not as it was written (")
    assert re.search(r"; (delete|bring back) .*\.$", said)
    if match := re.search(r"delete the folder (\S+) and give", said):  # what is advised is right
        shutil.rmtree(match[1])
        for kind in ("images", "pictures"):
            shutil.rmtree(store.folder / kind / "m" / "c1", ignore_errors=True)  # written again with their records
        read_all(store.folder)
    elif "delete it" in said:
        (store.folder / name).unlink()
        read_all(store.folder)


def test_order_and_spaces_are_no_change(tmp_path: Path) -> None:
    """Checksums are of contents: a file that went through another program with the same values is the same."""
    store = fill(tmp_path)
    file = store.folder / ONE / "clean.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(content.items())), indent=4))
    read_all(tmp_path)


@pytest.mark.parametrize(
    "name", ["../victim.npz", "{outside}/victim.npz", "images/m/c2/{other}.npz", "evaluation.json"]
)
def test_a_forged_record_reads_and_deletes_nothing_outside_its_case(name: str, tmp_path: Path) -> None:
    """With a right checksum, as an attacker would compute it."""
    store = fill(tmp_path / "store")
    victim = tmp_path / "victim.npz"
    np.savez(victim, images=np.zeros((2, 1, 3, 3), np.float32))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    saved = store.saved("m", "c1", "l2-5", "FGSM")
    assert saved is not None
    forged = replace(saved, images=name.format(outside=tmp_path, other=FGSM[:-5]))
    for use in (store.state, store.drop_images):
        with pytest.raises((InputError, ValueError), match="not of its case"):
            use(forged)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    file = store.folder / ONE / FGSM
    content = seal.opened(json.loads(file.read_text()), *store._place(file)) | {"images": forged.images}
    file.write_text(json.dumps(seal.sealed(content, *store._place(file))))
    with pytest.raises(InputError, match="not of its case"):
        read_records(store.folder)


@pytest.mark.parametrize(
    "link", ["records", "records/m", "images/m", "images/m/c1", "pictures", "problems/m", "probes"]
)
def test_a_link_leads_nowhere(link: str, tmp_path: Path) -> None:
    """A folder of the store that is a link to somebody's files."""
    store = fill(tmp_path / "store")
    place = store.folder / link
    place.rename(tmp_path / "somewhere")
    place.symlink_to(tmp_path / "somewhere")
    files = sorted((tmp_path / "somewhere").rglob("*"))
    with pytest.raises(InputError, match="leads out of the folder"):
        read_all(store.folder)
    with pytest.raises(InputError, match="leads out of the folder"):
        fill(store.folder)
    assert sorted((tmp_path / "somewhere").rglob("*")) == files


def test_a_store_that_is_a_link_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    read_all(fill(tmp_path / "store").folder)
    plain = fill(tmp_path / "plain").folder
    assert read_records(tmp_path / "store") == read_records(plain)
    names = [sorted(f.relative_to(d) for f in d.rglob("*")) for d in (tmp_path / "disk", plain)]
    assert names[0] == names[1]  # on the disk that the link names


def test_the_command_goes_on_only_after_the_advice_and_then_with_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "a") == 0
    numbers = [replace(r, seconds=0.0) for r in read_records(tmp_path / "a")]
    record = sorted((tmp_path / "a" / "records").rglob("linf-0.06*.json"))[0]
    record.write_text(record.read_text().replace('"score": 0.0', '"score": 1.0'))
    capsys.readouterr()
    assert evaluate(tmp_path / "a") == 2
    said = capsys.readouterr().err
    assert str(record) in said
    shutil.rmtree(re.search(r"delete the folder (\S+) and", said)[1])  # type: ignore[index]
    assert evaluate(tmp_path / "a") == 0
    assert [replace(r, seconds=0.0) for r in read_records(tmp_path / "a")] == numbers

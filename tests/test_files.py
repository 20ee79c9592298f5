"""A file that is there completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_adv.files import whole_file


def test_file_is_replaced_only_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    with whole_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half of the sec", "ond"])  # type: ignore[list-item]
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    with whole_file(path, "-a.partial") as first, whole_file(path, "-b.partial") as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # the one that ended last

"""A file that is there completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_adv.files import whole_file, whole_folder


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


def test_folder_is_whole_or_absent_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with pytest.raises(ZeroDivisionError), whole_folder(path) as folder:
        (folder / str(1 // 0)).touch()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(path) as slow:
        with whole_folder(path) as fast:
            (fast / "a").write_text("fast")
        (slow / "a").write_text("slow")
    assert (path / "a").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [path]

"""Files that are written as a whole, also when several writers write the same one."""

from __future__ import annotations

import threading

import pytest

from rl.files import write_synced


def test_many_writers_of_one_file_leave_the_whole_text_of_one_of_them(tmp_path):
    """With one temporary file for all, a writer would rename the half written file of another, or find it gone."""
    file, errors = tmp_path / "scale.json", []
    texts = [str(digit).encode() * 200_000 for digit in range(8)]

    def write(text):
        try:
            for _ in range(10):
                write_synced(file, text)
                assert file.read_bytes() in texts
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_synced(tmp_path / "taken", b"text")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]

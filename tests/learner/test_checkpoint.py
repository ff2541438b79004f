"""Checkpoints on disk and at URLs: complete or not there, and never pickled."""

from __future__ import annotations

import json

import numpy as np
import pytest

from learner.checkpoint import MANIFEST, Checkpoint, CheckpointStore


def arrays():
    return {"online": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "optimizer": {"0.step": np.array(3.0)}}


@pytest.mark.parametrize("root", ["local", "memory://checkpoints"])
def test_checkpoints_round_trip_and_keep_the_newest(tmp_path, root):
    store = CheckpointStore(str(tmp_path / "c") if root == "local" else f"{root}-{tmp_path.name}", keep=2)
    for step in (1, 2, 3):
        store.save(step, Checkpoint(arrays(), {"updates": step}))
    assert store.steps() == [2, 3]
    loaded = store.load_newest()
    assert loaded.state == {"updates": 3}
    np.testing.assert_array_equal(loaded.arrays["online"]["w"], arrays()["online"]["w"])
    np.testing.assert_array_equal(loaded.arrays["optimizer"]["0.step"], arrays()["optimizer"]["0.step"], strict=True)


def test_a_new_save_is_kept_even_if_its_step_is_lower(tmp_path):
    store = CheckpointStore(str(tmp_path), keep=1)
    store.save(300, Checkpoint(arrays(), {"updates": 300}))
    store.save(200, Checkpoint(arrays(), {"updates": 200}))
    assert store.steps() == [200]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, damage):
    store = CheckpointStore(str(tmp_path))
    store.save(1, Checkpoint(arrays(), {"updates": 1}))
    folder = tmp_path / store.save(2, Checkpoint(arrays(), {"updates": 2}))
    file = folder / ("online.safetensors" if damage != "manifest" else MANIFEST)
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    assert store.load_newest().state == {"updates": 1}
    assert "damaged" in caplog.text


def test_a_checkpoint_without_its_manifest_does_not_exist(tmp_path):
    store = CheckpointStore(str(tmp_path))
    folder = tmp_path / store.save(5, Checkpoint(arrays(), {}))
    (folder / MANIFEST).unlink()
    assert store.steps() == []
    assert store.load_newest() is None


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    store = CheckpointStore(str(tmp_path))
    folder = tmp_path / store.save(5, Checkpoint(arrays(), {"a": 1}))
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    json.loads((folder / "state.json").read_text())


def test_a_read_error_is_not_taken_for_damage(tmp_path, monkeypatch):
    """Else a resume would silently take an older save, because a disk or a network failed for a moment."""
    store = CheckpointStore(str(tmp_path))
    for step in (1, 2):
        store.save(step, Checkpoint(arrays(), {"updates": step}))

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store.fs, "cat_file", fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.load_newest()


def test_a_save_deletes_those_of_later_steps_that_a_resume_skipped(tmp_path):
    store = CheckpointStore(str(tmp_path), keep=2)
    for step in (10, 30):
        store.save(step, Checkpoint(arrays(), {"updates": step}))
    (tmp_path / f"{30:012d}" / "state.json").unlink()
    assert store.load_newest().state == {"updates": 10}
    store.save(20, Checkpoint(arrays(), {"updates": 20}))
    assert store.steps() == [10, 20]

"""Format numbers of what is kept on disk: an older format is carried over, a newer one refused.

A file without a number is of format 0, of the time before there were any. Raise the number when the meaning of a file
changes: a key is renamed, say, or a reader of before would read it wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl.errors import BadInput

KEY = "format"

Renamed = Sequence[Mapping[str, str]]  # [n]: the dotted keys that format n + 1 calls otherwise than format n


def format_of(data: Mapping[str, Any], known: int, where: str) -> int:
    """The format number in ``data``. Raises BadInput, naming ``where``, for one above ``known`` and for what is none."""
    number = data.get(KEY, 0)
    if type(number) is not int or not 0 <= number <= known:
        raise BadInput(
            f"{where} is of format {number}, this Qfleet reads up to {known}: use the newer Qfleet that wrote it"
        )
    return number


def upgraded(data: Mapping[str, Any], renamed: Renamed, where: str) -> dict[str, Any]:
    """``data`` of any format up to ``len(renamed)`` under today's keys, without its number. Raises BadInput."""
    number = format_of(data, len(renamed), where)
    found = {key: value for key, value in data.items() if key != KEY}
    for step in renamed[number:]:
        for old, new in step.items():
            _rename(found, old.split("."), new.split(".")[-1])
    return found


def _rename(data: dict[str, Any], path: Sequence[str], new: str) -> None:
    """Rename the key at ``path`` where it is, keeping the order; never over another of that name."""
    *parents, old = path
    for parent in parents:
        inner = data.get(parent)
        if not isinstance(inner, dict):
            return
        data[parent] = data = dict(inner)  # the caller's own stays as it is
    if old in data and new not in data:
        items = [(new if key == old else key, value) for key, value in data.items()]
        data.clear()
        data.update(items)

"""Format numbers of files on disk: older formats are upgraded when they are read, newer ones are rejected.

A file without a format number has format 0. Increment the number when a key is renamed, or when the content changes so
that an older Qfleet would misread it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rl.errors import BadInput

KEY = "format"

Renamed = Sequence[Mapping[str, str]]  # entry n: {old: new} for the dotted keys that were renamed in format n + 1


class NewerFormat(BadInput):
    """A file that a newer Qfleet wrote."""


def format_of(data: Any, newest: int, where: str) -> int:
    """The format number in ``data``, or 0 if there is none.

    ``where`` is the file's name for the message. Raises NewerFormat if the number is above ``newest``. Raises ValueError
    if ``data`` is not a mapping or the number is not an integer of at least 0.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"it contains a {type(data).__name__}, but must contain a mapping of names to values")
    number = data.get(KEY, 0)
    if type(number) is not int or number < 0:
        raise ValueError(f"its {KEY} is {number!r}, but must be an integer of at least 0")
    if number > newest:
        raise NewerFormat(
            f"{where} has format {number}, but this Qfleet reads formats up to {newest}: use the Qfleet that wrote it"
        )
    return number


def upgraded(data: Any, renamed: Renamed, where: str) -> dict[str, Any]:
    """A deep copy of ``data`` with all renamed keys replaced by their current names, without the format number.

    ``data`` may have any format up to ``len(renamed)``. Raises NewerFormat and ValueError as `format_of` does.
    """
    number = format_of(data, len(renamed), where)
    result = {key: copy.deepcopy(value) for key, value in data.items() if key != KEY}
    for step in renamed[number:]:
        for old, new in step.items():
            _move(result, old.split("."), new.split("."))
    return result


def _move(data: dict[str, Any], old: Sequence[str], new: Sequence[str]) -> None:
    """Move the value at the path ``old`` to ``new``. Does nothing if ``old`` is missing or ``new`` exists.

    A key that keeps its parent also keeps its position among the keys.
    """
    source, target = _mapping_at(data, old[:-1]), _mapping_at(data, new[:-1])
    if source is None or target is None or old[-1] not in source or new[-1] in target:
        return
    if old[:-1] != new[:-1]:
        target[new[-1]] = source.pop(old[-1])
        return
    items = [(new[-1] if key == old[-1] else key, value) for key, value in source.items()]
    source.clear()
    source.update(items)


def _mapping_at(data: Any, path: Sequence[str]) -> dict[str, Any] | None:
    """The nested mapping at ``path``, or None if there is none."""
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None

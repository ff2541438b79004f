"""Format numbers of files on disk: older formats are upgraded when they are read, newer ones rejected.

A file without a number has format 0, from before formats were numbered. Raise the number when the meaning of a file
changes: for example when a key is renamed, or when an older reader would misread it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rl.errors import BadInput

KEY = "format"

Renamed = Sequence[Mapping[str, str]]  # [n]: the dotted keys that format n + 1 renamed, old -> new


def format_of(data: Any, known: int, where: str) -> int:
    """The format number in ``data``, 0 where it has none.

    Raises BadInput, naming ``where``, when the number is above ``known``; ValueError when ``data`` is not a mapping or
    the number is not an integer from 0 on.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"it holds {type(data).__name__}, not names with values")
    number = data.get(KEY, 0)
    if type(number) is not int or number < 0:
        raise ValueError(f"its {KEY} is {number!r}, not a number from 0 on")
    if number > known:
        raise BadInput(
            f"{where} is of format {number}, this Qfleet reads up to {known}: use the newer Qfleet that wrote it"
        )
    return number


def upgraded(data: Any, renamed: Renamed, where: str) -> dict[str, Any]:
    """A copy of ``data``, of any format up to ``len(renamed)``, under today's keys and without its format number.

    Raises BadInput and ValueError as `format_of` does.
    """
    number = format_of(data, len(renamed), where)
    found = {key: copy.deepcopy(value) for key, value in data.items() if key != KEY}
    for step in renamed[number:]:
        for old, new in step.items():
            _move(found, old.split("."), new.split("."))
    return found


def _move(data: dict[str, Any], old: Sequence[str], new: Sequence[str]) -> None:
    """Move the value at the path ``old``, where there is one, to ``new``; never over another that is there.

    Under the same parent it keeps its place in the order.
    """
    source, target = _inner(data, old[:-1]), _inner(data, new[:-1])
    if source is None or target is None or old[-1] not in source or new[-1] in target:
        return
    if old[:-1] != new[:-1]:
        target[new[-1]] = source.pop(old[-1])
        return
    items = [(new[-1] if key == old[-1] else key, value) for key, value in source.items()]
    source.clear()
    source.update(items)


def _inner(data: Any, path: Sequence[str]) -> dict[str, Any] | None:
    """The mapping at ``path``; None where there is none."""
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None

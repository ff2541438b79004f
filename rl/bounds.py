"""Checks of configuration fields, for use in ``__post_init__``.

    at_least(self, 1, "batch_size", unit="items")
    between(self, 0, 1, "epsilon", what="a probability")

Each check raises BadSetting with the field, its value and what to write instead. NaN and infinity pass none of them.
"""

from __future__ import annotations

import math
from typing import Any

from rl.errors import BadSetting


def require(condition: bool, config: object, name: str, wanted: str) -> None:
    """Raise BadSetting unless ``condition`` is true. The message is "NAME is VALUE: write WANTED"."""
    if not condition:
        raise BadSetting(type(config), name, f"is {as_written(getattr(config, name))}: write {wanted}")


def at_least(config: object, least: float, *names: str, unit: str = "", zero: str = "") -> None:
    """Raise BadSetting unless each of the fields ``names`` is at least ``least``.

    The message contains ``unit``. If ``least`` is 0, it also contains ``zero``, the meaning of 0 ("no limit").
    """
    wanted = f"at least {least:g}" if least else f"0 ({zero}) or more" if zero else "0 or more"
    for name in names:
        value = getattr(config, name)
        finite = "a finite number, " if value == math.inf else ""
        require(least <= value < math.inf, config, name, f"{finite}{wanted} {unit}".rstrip())


def positive(config: object, *names: str, unit: str = "") -> None:
    """Raise BadSetting unless each of the fields ``names`` is above 0. The message contains ``unit``."""
    for name in names:
        value = getattr(config, name)
        finite = "finite " if value == math.inf else ""
        require(0 < value < math.inf, config, name, f"a {finite}positive number{f' of {unit}' if unit else ''}")


def between(
    config: object,
    low: float,
    high: float,
    *names: str,
    what: str = "a number",
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise BadSetting unless each of the fields ``names`` is between ``low`` and ``high``, inclusive.

    ``above`` excludes ``low``, ``below`` excludes ``high``. ``what`` describes the value in the message.
    """
    to = "and below" if above and below else "to below" if below else "to"
    wanted = f"{what} {'above' if above else 'from'} {as_written(low)} {to} {as_written(high)}"
    for name in names:
        value = getattr(config, name)
        inside = low <= value <= high and not (above and value == low) and not (below and value == high)
        require(inside, config, name, wanted)


def layers(config: object, name: str, units: int = 1) -> None:
    """Raise BadSetting unless the field ``name`` lists at least one layer, each of at least ``units`` units."""
    value = getattr(config, name)
    wanted = f"at least one layer of at least {units} unit{'s' if units > 1 else ''}"
    require(bool(value) and min(value) >= units, config, name, wanted)


def as_written(value: Any) -> str:
    """Format a value the way a user writes it: 2.0 as "2", 20000 as "20_000", (1, 2) as "1 2", text in quotes.

    An empty tuple is "empty".
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(as_written, value)) or "empty"
    if isinstance(value, float):
        short = f"{value:_.0f}" if value.is_integer() and 10_000 <= abs(value) < 1e15 else f"{value:g}"
        return short if float(short) == value else str(value)
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:_}"
    return repr(value) if isinstance(value, str) else str(value)

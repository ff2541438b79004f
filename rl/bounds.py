"""The bounds of a configuration's fields: each raises BadSetting with the field, its value and what to write instead.

NaN and infinity satisfy none of these bounds.
"""

from __future__ import annotations

import math
from typing import Any

from rl.errors import BadSetting


def require(holds: bool, config: object, name: str, wanted: str) -> None:
    """Raise BadSetting unless ``holds``; the message gives the value of field ``name`` and says to write ``wanted``."""
    if not holds:
        raise BadSetting(type(config), name, f"is {_shown(getattr(config, name))}: write {wanted}")


def at_least(config: object, least: float, *names: str, unit: str = "", zero: str = "") -> None:
    """Raise BadSetting unless each of the fields ``names`` is at least ``least``.

    ``unit`` goes into the message; so does ``zero``, which says what 0 means where 0 is the least.
    """
    wanted = f"at least {least:g}" if least else f"0 ({zero}) or more" if zero else "0 or more"
    for name in names:
        require(least <= getattr(config, name) < math.inf, config, name, f"{wanted} {unit}".rstrip())


def positive(config: object, *names: str, unit: str = "") -> None:
    """Raise BadSetting unless each of the fields ``names`` is above 0; ``unit`` goes into the message."""
    for name in names:
        wanted = f"a positive number of {unit}" if unit else "a positive number"
        require(0 < getattr(config, name) < math.inf, config, name, wanted)


def between(
    config: object,
    low: float,
    high: float,
    *names: str,
    what: str = "a number",
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise BadSetting unless each of the fields ``names`` lies from ``low`` to ``high``.

    ``above`` excludes ``low`` itself, ``below`` excludes ``high``; ``what`` names the number in the message.
    """
    to = "and below" if above and below else "to below" if below else "to"
    wanted = f"{what} {'above' if above else 'from'} {_shown(low)} {to} {_shown(high)}"
    for name in names:
        value = getattr(config, name)
        holds = low <= value <= high and not (above and value == low) and not (below and value == high)
        require(holds, config, name, wanted)


def layers(config: object, name: str, units: int = 1) -> None:
    """Raise BadSetting unless the field ``name`` lists at least one layer, each of at least ``units`` units."""
    value = getattr(config, name)
    wanted = f"at least one layer of at least {units} unit{'s' if units > 1 else ''}"
    require(bool(value) and min(value) >= units, config, name, wanted)


def _shown(value: Any) -> str:
    """A value as it would be written."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else str(value)
    return repr(value) if isinstance(value, str) else str(value)

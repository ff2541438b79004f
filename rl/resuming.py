"""What a resumed run may change: each configuration states it for its own fields, in a table beside them.

A field may change, or stays as it was, or may change with a consequence: a sentence that is printed when it does.
"""

from __future__ import annotations

from collections.abc import Mapping

MAY, STAYS = "may change", "stays"
Rules = Mapping[str, str]  # by field: MAY, STAYS, or the consequence of a change


def rules(may: str = "", stays: str = "", **consequences: str) -> Rules:
    """A configuration's table, by field.

    ``may`` and ``stays`` name fields, separated by spaces; every other argument is a field with the consequence of a
    change.
    """
    return {**dict.fromkeys(may.split(), MAY), **dict.fromkeys(stays.split(), STAYS), **consequences}

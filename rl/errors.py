"""The two kinds of errors that a user sees: bad input, and a fault at run time."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable

NAMED = re.compile(r"`(\w[\w.]*)(: [^`]+)?`")  # in a BadSetting's message: a field, or a field and the value to write


class BadInput(Exception):
    """A user's mistake, found before anything starts; one line: what, where, what to write instead (exit status 2)."""


class BadSetting(BadInput):
    """A bad value of a configuration's field, raised by code that does not know where the configuration is mounted.

    ``said`` is the rest of the line, after the field's name. In it, `field` stands for another field of the same class and
    `field: value` for a value to write. Where the class is mounted, the names are spelled (`spelled_in`): as flags, or as
    the paths of a file. Unspelled it reads as in Python: ``SelectorConfig.alpha is 2: write an exponent from 0 to 1``.
    """

    def __init__(self, owner: type, field: str, said: str) -> None:
        super().__init__(owner, field, said)
        self.owner, self.field, self.said = owner, field, said

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.spelled(str)}"

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message, with each field in it written as ``spell`` writes ``field`` or ``field: value``."""
        own = {f.name for f in dataclasses.fields(self.owner)}

        def name(found: re.Match[str]) -> str:
            return spell(found[1] + (found[2] or "")) if found[1].split(".")[0] in own else found[0]

        return f"{spell(self.field)} {NAMED.sub(name, self.said)}"

    def spelled_in(self, root: type, spell: Callable[[str], str]) -> str:
        """The message as the user of ``root`` reads it, the class in which this configuration is mounted.

        ``spell`` gets the whole path of each field. Where ``root`` does not mount the configuration, it is `str(self)`.
        """
        path = mounted(root, self.owner)
        return str(self) if path is None else self.spelled(lambda name: spell(path + name))


class RunFault(Exception):
    """A fault at run time that the run could not recover from by itself (exit status 1)."""


def mounted(root: type, owner: type) -> str | None:
    """The path of ``owner`` in ``root``, such as "replay.selector."; None where ``root`` does not hold it.

    It is "" where ``root`` is that class. A class that is mounted twice is found at its first place.
    """
    if issubclass(root, owner):
        return ""
    for f in dataclasses.fields(root) if dataclasses.is_dataclass(root) else ():
        if isinstance(f.default_factory, type) and dataclasses.is_dataclass(f.default_factory):
            inner = mounted(f.default_factory, owner)
            if inner is not None:
                return f"{f.name}.{inner}"
    return None


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word nearest to ``word``, or the first few known ones when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")

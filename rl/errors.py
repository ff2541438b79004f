"""The two kinds of errors that a user sees: bad input, and a failure at run time."""

from __future__ import annotations

import dataclasses
import difflib
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

FIELD_REFERENCE = re.compile(r"`(\w[\w.]*)(: [^`]+)?`")  # `field`, or `field: value`, in the message of a BadSetting
LONGEST_MESSAGE = 300  # characters of an environment's own message


class BadInput(Exception):
    """A user's mistake, found before anything starts (exit status 2).

    The message is one line. It says what is wrong, where, and what to write instead.
    """


class BadSetting(BadInput):
    """A bad value of a field of the configuration class ``owner``.

        raise BadSetting(SelectorConfig, "alpha", "is 2: write an exponent from 0 to 1, or `kind: uniform`")

    The code that raises it does not know which larger configuration contains ``owner``, so it writes bare field names:
    `field` for another field of ``owner``, `field: value` for a value to write. The command line and the reader of
    config.yaml replace them by flags and by full paths (`render_in`). ``str(error)`` is the message for Python code:
    ``SelectorConfig.alpha is 2: ...``.
    """

    def __init__(self, owner: type, field: str, message: str) -> None:
        super().__init__(owner, field, message)
        self.owner, self.field, self.message = owner, field, message

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.render(str)}"

    def render(self, format_field: Callable[[str], str]) -> str:
        """The message with every field reference replaced by ``format_field("field")`` or ``("field: value")``."""
        own = {f.name for f in dataclasses.fields(self.owner)}

        def replace(found: re.Match[str]) -> str:
            return format_field(found[1] + (found[2] or "")) if found[1].split(".")[0] in own else found[0]

        return f"{format_field(self.field)} {FIELD_REFERENCE.sub(replace, self.message)}"

    def render_in(self, root: type, format_field: Callable[[str], str]) -> str:
        """The message for a user of the configuration ``root``, which contains ``owner``.

        ``format_field`` gets each field with its full path, such as "replay.selector.alpha". Returns ``str(self)`` if
        ``root`` does not contain ``owner``.
        """
        path = config_path(root, self.owner)
        return str(self) if path is None else self.render(lambda name: format_field(path + name))


class RunFault(Exception):
    """A failure at run time that the run could not recover from (exit status 1)."""


class Unreachable(RunFault):
    """Another process does not answer. A run starts the process that reports it again, instead of ending."""


class EnvironmentFault(RunFault):
    """An environment raised an error, which is the ``__cause__``.

        raise EnvironmentFault("step", describe_error(error)) from error

    ``call`` is what raised it: make, reset, or step. ``what`` is one line about the error.
    """

    def __init__(self, call: str, what: str) -> None:
        super().__init__(call, what)
        self.call, self.what = call, what

    def __str__(self) -> str:
        return f"the environment raised {self.what} in {self.call}"


def describe_error(error: BaseException) -> str:
    """One line with the type of ``error``, its message, and where it was raised: "ValueError: bad (chain_env.py:17)"."""
    message = " ".join(str(error).split())
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE]} ..."
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def config_path(root: type, owner: type) -> str | None:
    """The path from the configuration ``root`` to the nested ``owner``, such as "replay.selector.".

    Returns "" if ``root`` is ``owner`` or a subclass of it, and None if ``root`` does not contain ``owner``. If
    ``root`` contains it twice, the first path is returned.
    """
    if issubclass(root, owner):
        return ""
    for f in dataclasses.fields(root) if dataclasses.is_dataclass(root) else ():
        if isinstance(f.default_factory, type) and dataclasses.is_dataclass(f.default_factory):
            inner = config_path(f.default_factory, owner)
            if inner is not None:
                return f"{f.name}.{inner}"
    return None


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown ``word``: what the user may have meant.

    It is "did you mean 'X'?" if one of the ``known`` words is similar, else "write one of " and up to 20 of them.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "write one of " + ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")

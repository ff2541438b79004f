"""Command-line flags from dataclasses, by tyro; errors of tyro and of the configurations become one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import tyro

from rl.errors import BadInput, BadSetting

STYLE = (tyro.conf.PositionalMetavarFromFieldName,)  # a positional RUN reads RUN, not STR
Renamed = Mapping[type, Mapping[str, str]]  # configuration -> {its field: the command's field}


def parse(cls: Any, args: list[str], default: Any = None, prog: str = "qfleet") -> Any:
    """Parse ``args`` to an instance of the dataclass ``cls``.

    Raises BadInput, in one line, for what tyro or a configuration in ``cls`` rejects, and SystemExit after --help.
    """
    out, err = io.StringIO(), io.StringIO()
    asked_help = any(a in ("-h", "--help") for a in args)
    try:
        if asked_help:
            return tyro.cli(cls, args=args, default=default, prog=prog, config=STYLE)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), as_flags(cls):
            return tyro.cli(cls, args=args, default=default, prog=prog, config=STYLE)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadInput(_complaint(err.getvalue() + out.getvalue(), args, prog, cls)) from None


@contextlib.contextmanager
def as_flags(cls: type, renamed: Renamed | None = None) -> Iterator[None]:
    """A context: a BadSetting of a configuration in the command ``cls`` raises BadInput that names its flags.

    ``renamed`` has the configurations that the command makes from its own fields: {EnvConfig: {"id": "env"}}.
    """
    try:
        yield
    except BadSetting as error:
        own = (renamed or {}).get(error.owner)
        if own is None:
            raise BadInput(error.render_in(cls, flag)) from error
        raise BadInput(error.render(lambda name: _renamed_flag(name, own))) from error


def flag(path: str) -> str:
    """A field's path as the flag to write: ``a.b_c`` is --a.b-c, ``a.b: 3`` is --a.b 3, ``a.b: false`` is --a.no-b."""
    name, _, value = path.partition(": ")
    head, dot, last = name.replace("_", "-").rpartition(".")
    written = f"--{head}{dot}{'no-' if value == 'false' else ''}{last}"
    return written if value in ("", "true", "false") else f"{written} {value}"


def _renamed_flag(name: str, own: Mapping[str, str]) -> str:
    field, colon, value = name.partition(": ")
    return flag(own.get(field, field) + colon + value)


def _complaint(text: str, args: list[str], prog: str, cls: Any) -> str:
    """Tyro's boxed message in one line, with the nearest flag that exists."""
    lines = [line.strip(" │╭╰─╮╯") for line in text.splitlines()]
    lines = [line for line in lines if line.strip("-")]
    end = next((i for i, line in enumerate(lines) if line.startswith("For full helptext")), len(lines))
    first = " ".join(lines[1:end]).partition(" Argument helptext")[0] or "the flags are not understood"
    if first.startswith("Missing from"):
        missing = [line for line in lines[2:end] if line.startswith("--") or line.split()[0].isupper()]
        return f"missing: {', '.join(missing)}: see {prog} --help"
    if first.startswith("Unrecognized options"):
        flag = next((a for a in args if a.split("=")[0] in first and a.startswith("-")), None)
        word = flag or first.partition(": ")[2].split(",")[0]
        if flag is None:
            return f"unexpected word {word!r}: see {prog} --help"
        near = difflib.get_close_matches(flag.split("=")[0], flag_names(cls), n=1, cutoff=0.5)
        return f"unknown flag {flag}: " + (f"did you mean {near[0]}?" if near else f"see {prog} --help")
    return f"{first.rstrip('.')}: see {prog} --help"


def value_of(args: list[str], flag: str) -> str | None:
    """The value that ``args`` give a flag, before anything is parsed; None where they do not."""
    for i, arg in enumerate(args):
        if arg.startswith(flag + "="):
            return arg.partition("=")[2]
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
    return None


def flag_names(cls: Any) -> list[str]:
    """Every flag of a command's dataclass; those of nested ones have dotted names."""

    def walk(cls: Any, prefix: str) -> list[str]:
        found = []
        for f in dataclasses.fields(cls):
            name = f"{prefix}{f.name.replace('_', '-')}"
            factory = f.default_factory
            inner = factory() if factory is not dataclasses.MISSING else None
            if dataclasses.is_dataclass(inner):
                found += walk(type(inner), name + ".")
            elif isinstance(f.default, bool):
                head, _, tail = name.rpartition(".")
                found += [f"--{name}", f"--{head + '.' if head else ''}no-{tail}"]
            else:
                found.append(f"--{name}")
        return found

    return walk(cls, "")

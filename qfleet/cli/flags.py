"""Command-line flags from dataclasses, parsed by tyro. Errors of tyro and of the configurations become one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import tyro

from rl.errors import BadInput, BadSetting

STYLE = (tyro.conf.PositionalMetavarFromFieldName,)  # help shows a positional field `run` as RUN, not STR
# Tyro's messages about a value, and ours.
TYRO_ERRORS = {
    r"Error parsing (\S+): .*invalid literal for int\(\).*: (.*)$": "{0} is {1}: write a whole number",
    r"Error parsing (\S+): .*float\b.*: (.*)$": "{0} is {1}: write a number",
    r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]$": (
        "{0} is {1}: write numbers as the help of this flag shows them, with spaces between"
    ),
    r"Missing value for argument '(\S+)'": "{0} has no value: write one after it",
    r"[Ii]nvalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*?)\)": "{1} is {0}: write one of {2}",
}
Renamed = Mapping[type, Mapping[str, str]]  # {configuration class: {its field: the command's field}}


def parse(cls: Any, args: list[str], default: Any = None, prog: str = "qfleet") -> Any:
    """Parse ``args`` into an instance of the dataclass ``cls``.

    ``default`` is an instance of ``cls`` with the default values; ``prog`` is the command's name in messages. Raises
    BadInput, in one line, if tyro or a configuration in ``cls`` rejects a value; SystemExit after --help.
    """
    out, err = io.StringIO(), io.StringIO()
    wants_help = any(a in ("-h", "--help") for a in args)
    try:
        if wants_help:
            return tyro.cli(cls, args=args, default=default, prog=prog, config=STYLE)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), errors_name_flags(cls):
            return tyro.cli(cls, args=args, default=default, prog=prog, config=STYLE)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadInput(_one_line_error(err.getvalue() + out.getvalue(), args, prog, cls)) from None


@contextlib.contextmanager
def errors_name_flags(cls: type, renamed: Renamed | None = None) -> Iterator[None]:
    """Context manager that turns a BadSetting into a BadInput whose message names the flags of the command ``cls``.

    ``renamed`` maps configurations that are not fields of ``cls``, but are built from its fields, to those fields:
    {EnvConfig: {"id": "env"}} if the command's `env` becomes `EnvConfig.id`.
    """
    try:
        yield
    except BadSetting as error:
        own = (renamed or {}).get(error.owner)
        if own is None:
            raise BadInput(error.render_in(cls, flag)) from error
        raise BadInput(error.render(lambda name: _renamed_flag(name, own))) from error


def flag(path: str) -> str:
    """The flag for a field's path: ``a.b_c`` gives --a.b-c, ``a.b: 3`` gives --a.b 3, ``a.b: false`` gives --a.no-b."""
    name, _, value = path.partition(": ")
    head, dot, last = name.replace("_", "-").rpartition(".")
    written = f"--{head}{dot}{'no-' if value == 'false' else ''}{last}"
    return written if value in ("", "true", "false") else f"{written} {value}"


def _renamed_flag(name: str, own: Mapping[str, str]) -> str:
    field, colon, value = name.partition(": ")
    return flag(own.get(field, field) + colon + value)


def _one_line_error(text: str, args: list[str], prog: str, cls: Any) -> str:
    """Tyro's boxed error message ``text`` as one line; for an unknown flag, with the nearest known one."""
    lines = [line.strip(" │╭╰─╮╯") for line in text.splitlines()]
    lines = [line for line in lines if line.strip("-")]
    end = next((i for i, line in enumerate(lines) if line.startswith("For full helptext")), len(lines))
    first = " ".join(lines[1:end]).partition(" Argument helptext")[0] or "invalid flags"
    if first.startswith("Missing from"):
        missing = [line for line in lines[2:end] if line.startswith("--") or line.split()[0].isupper()]
        return f"missing {', '.join(missing)}: see {prog} --help"
    for pattern, message in TYRO_ERRORS.items():
        if m := re.match(pattern, first):
            *words, choices = [*m.groups(), "", ""][:3]
            return message.format(*(word.strip("'") for word in words), ", ".join(re.findall(r"[^\s,'()]+", choices)))
    if first.startswith("Unrecognized options") and (switch := _switch_with_value(args, flag_names(cls))):
        return f"{switch} takes no value: write {switch}, or {flag(switch.removeprefix('--') + ': false')}"
    if first.startswith("Unrecognized options"):
        unknown = next((a for a in args if a.split("=")[0] in first and a.startswith("-")), None)
        if unknown is None:
            return f"unexpected word {first.partition(': ')[2].split(',')[0]!r}: see {prog} --help"
        near = difflib.get_close_matches(unknown.split("=")[0], flag_names(cls), n=1, cutoff=0.6)
        return f"unknown flag {unknown}: " + (f"did you mean {near[0]}?" if near else f"see {prog} --help")
    return f"{first.rstrip('.')}: see {prog} --help"


def _switch_with_value(args: list[str], names: list[str]) -> str | None:
    """The first switch (--x, with a --no-x) in ``args`` that has a value, as in --x=false."""
    written = (a.partition("=")[0] for a in args if "=" in a)
    return next((a for a in written if a in names and flag(a.removeprefix("--") + ": false") in names), None)


def flag_value(args: list[str], flag: str) -> str | None:
    """The value of ``flag`` in the unparsed ``args``, of a repeated flag the last one; None if it is not there."""
    value = None
    for i, arg in enumerate(args):
        if arg.startswith(flag + "="):
            value = arg.partition("=")[2]
        elif arg == flag and i + 1 < len(args):
            value = args[i + 1]
    return value


def flag_names(cls: Any) -> list[str]:
    """All flags of a command's dataclass, with both forms of a boolean (--x, --no-x); nested fields are dotted."""

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

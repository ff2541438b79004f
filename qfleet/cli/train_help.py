"""`qfleet train --help`: the flags that people use first; `--help GROUP` has the others of a group, `--help all` all."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import shlex
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from qfleet.cli.flags import flag
from qfleet.presets import PRESETS
from rl.errors import BadInput, nearest

WIDTH, LEFT = 80, 31  # columns of the screen, and of the flags on the first one
FIRST = {  # ten lines on a terminal of 24
    "env.id": "a Gymnasium id with discrete actions",
    "actors.count": "processes that play",
    "replay.shards": "processes that hold the replay",
    "max_steps": "agent steps after which the run ends",
    "evaluation.goal": "mean return at which it is solved, and ends",
    "seed": "seed of everything that draws",
    "run_dir": "the run's directory; a dated one by default",
    "resume": "go on with the run in this directory",
    "serial": "one process, without Ray: reproducible",
    "address": "join a running Ray: auto, or host:port",
}
HELP = ("-h", "--help")


class Setting(NamedTuple):
    """A flag of a command, as its help shows it."""

    path: str  # such as learner.batch_size
    hint: Any  # its type
    default: Any
    doc: str


def asked(args: list[str]) -> str | None:
    """The group that ``--help`` names: "" without one, None without ``--help``."""
    at = next((i for i, word in enumerate(args) if word in HELP), None)
    if at is None:
        return None
    after = args[at + 1] if at + 1 < len(args) else ""
    return "" if after.startswith("-") else after


def screen(command: Any, group: str) -> str:
    """The help of ``command``, whose values are the defaults. Raises BadInput where there is no such group."""
    groups = _groups(command)
    if group == "":
        return _first_screen(command, groups)
    if group == "all":
        return "\n\n".join([_listed("run", _own(command)), *(_listed(name, _all(command, name)) for name in groups)])
    if group == "run":
        return _listed("run", _own(command))
    if group not in groups:
        raise BadInput(f"--help {group}: no such group: {nearest(group, ['run', 'all', *groups])}")
    return _listed(group, _all(command, group))


def _first_screen(command: Any, groups: dict[str, str]) -> str:
    found = {s.path: s for s in [*_own(command), *(s for name in groups for s in _all(command, name))]}
    lines = ["usage: qfleet train [PRESET] [flags]", f"presets: {', '.join(PRESETS)}"]
    shown = {path: flag(path) if path == "serial" else _with_default(found[path]) for path in FIRST}
    lines += [f"  {shown[path]:<{LEFT - 2}}{text}" for path, text in FIRST.items()]
    lines += ["", "The others, by `qfleet train --help GROUP` or `--help all`:"]
    lines += [f"  {'run':<12}limits, time-outs, and where the run is kept"]
    return "\n".join(lines + [f"  {name:<12}{about}" for name, about in groups.items()])


def _groups(command: Any) -> dict[str, str]:
    """The configurations in a command, with what each is about."""
    nested = [f.name for f in dataclasses.fields(command) if dataclasses.is_dataclass(getattr(command, f.name))]
    about = {name: (type(getattr(command, name)).__doc__ or "").split("\n")[0].rstrip(".") for name in nested}
    return {name: text[:1].lower() + text[1:] for name, text in about.items()}


def _own(command: Any) -> list[Setting]:
    """The settings that are in no group."""
    return list(_settings(command, "", deep=False))


def _all(command: Any, group: str) -> list[Setting]:
    return list(_settings(getattr(command, group), f"{group}.", deep=True))


def _settings(config: Any, prefix: str, deep: bool) -> Iterator[Setting]:
    hints, docs = typing.get_type_hints(type(config)), _docs(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not dataclasses.is_dataclass(value):
            yield Setting(prefix + f.name, hints[f.name], value, docs.get(f.name, ""))
        elif deep:
            yield from _settings(value, f"{prefix}{f.name}.", deep)


def _docs(cls: type) -> dict[str, str]:
    """The text under each field of a class, as tyro takes it for its own help."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _listed(title: str, settings: list[Setting]) -> str:
    lines = [f"{title}, each flag as it is by default:"]
    for s in settings:
        lines.append(f"  {_with_default(s)}")
        lines += textwrap.wrap(s.doc, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if choices := _choices(s.hint):
            lines.append(" " * 6 + "one of: " + ", ".join(choices))
    return "\n".join(lines)


def _with_default(s: Setting) -> str:
    """The flag as one would write it to have the default."""
    if isinstance(s.default, bool):
        return flag(f"{s.path}: {'true' if s.default else 'false'}")
    if s.default is None or s.default == "":
        return f"{flag(s.path)} {_placeholder(s)}"
    return f"{flag(s.path)} {_written(s.default)}"


def _placeholder(s: Setting) -> str:
    return "DIRECTORY" if s.path in ("run_dir", "resume") else "NUMBER" if _is_number(s.hint) else "TEXT"


def _is_number(hint: Any) -> bool:
    return bool({int, float} & {hint, *typing.get_args(hint)})


def _choices(hint: Any) -> list[str]:
    """The words of a Literal, alone or beside None."""
    inner = [hint, *(typing.get_args(hint) if isinstance(hint, types.UnionType) else ())]
    return [str(word) for h in inner if typing.get_origin(h) is typing.Literal for word in typing.get_args(h)]


def _written(value: Any) -> str:
    """A value as one may write it behind its flag."""
    if isinstance(value, tuple):
        return " ".join(_written(x) for x in value)
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:_}"
    if isinstance(value, float):
        return f"{value:_.0f}" if value.is_integer() and abs(value) >= 10_000 else f"{value:g}"
    return shlex.quote(str(value))

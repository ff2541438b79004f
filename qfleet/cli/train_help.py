"""The help of `qfleet train`: `--help` shows the most used flags, `--help GROUP` those of a group, `--help all` all."""

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
from rl.bounds import as_written
from rl.errors import BadInput, suggestion

WIDTH, FLAG_WIDTH = 80, 35  # columns of the terminal, and of the flags on the first screen
FIRST_SCREEN = {  # ten flags, so that the first screen fits 24 lines
    "env.id": "a Gymnasium id with discrete actions",
    "actors.count": "actor processes",
    "replay.shards": "replay processes",
    "max_steps": "agent steps after which the run ends",
    "evaluation.goal": "mean return at which the run is solved",
    "seed": "random seed",
    "run_dir": "its directory or URL; default: new, in runs/",
    "resume": "continue the run in this directory or URL",
    "serial": "one process without Ray; reproducible",
    "address": "join a running Ray: auto, or host:port",
}
HELP = ("-h", "--help")


class Setting(NamedTuple):
    """A field of a command's dataclass, for its help."""

    path: str  # such as learner.batch_size
    hint: Any  # its type annotation
    default: Any
    doc: str


def take_help_request(args: list[str]) -> str | None:
    """Remove ``--help`` and the group after it from ``args``; returns the group, "" without one, None without --help."""
    position = next((i for i, word in enumerate(args) if word.partition("=")[0] in HELP), None)
    if position is None:
        return None
    if "=" in args[position]:
        return args.pop(position).partition("=")[2]
    following = args[position + 1] if position + 1 < len(args) else ""
    group = "" if following.startswith("-") else following
    del args[position : position + (2 if group else 1)]
    return group


def help_text(command: Any, group: str, source: str) -> str:
    """The help of ``group``: "" is the first screen, "run" the flags without a group, "all" all flags.

    ``command`` has the values that are shown. ``source`` says where they come from: a preset, or the path of a run.
    Raises BadInput if there is no such group.
    """
    groups = _groups(command)
    if group == "":
        return _first_screen(command, groups, source)
    if group not in ("run", "all", *groups):
        raise BadInput(f"--help {group}: unknown group: {suggestion(group, ['run', 'all', *groups])}")
    shown = ["run", *groups] if group == "all" else [group]
    return "\n\n".join(
        _format_group(name, _ungrouped_settings(command) if name == "run" else _group_settings(command, name), source)
        for name in shown
    )


def _first_screen(command: Any, groups: dict[str, str], source: str) -> str:
    grouped = [s for name in groups for s in _group_settings(command, name)]
    settings = {s.path: s for s in [*_ungrouped_settings(command), *grouped]}
    presets = ", ".join(f"{name} (shown)" if name == source else name for name in PRESETS)
    lines = ["usage: qfleet train [PRESET] [flags]"]
    lines += [f"presets: {presets}" if source in PRESETS else f"values of {source}:"]
    shown = {path: flag(path) if path == "serial" else _flag_with_default(settings[path]) for path in FIRST_SCREEN}
    lines += [f"  {shown[path]:<{FLAG_WIDTH - 2}}{text}" for path, text in FIRST_SCREEN.items()]
    lines += ["All flags: `qfleet train --help all`. By group: `qfleet train --help GROUP`:"]
    lines += [f"  {'run':<12}limits, time-outs, directories, offline training, JSON output"]
    return "\n".join(lines + [f"  {name:<12}{about}" for name, about in groups.items()])


def _groups(command: Any) -> dict[str, str]:
    """The nested configurations of a command: {field: first line of the class's docstring}."""
    nested = [f.name for f in dataclasses.fields(command) if dataclasses.is_dataclass(getattr(command, f.name))]
    about = {name: (type(getattr(command, name)).__doc__ or "").split("\n")[0].rstrip(".") for name in nested}
    return {name: text[:1].lower() + text[1:] for name, text in about.items()}


def _ungrouped_settings(command: Any) -> list[Setting]:
    """The settings outside nested configurations."""
    return list(_settings(command, "", deep=False))


def _group_settings(command: Any, group: str) -> list[Setting]:
    """All settings of one nested configuration."""
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
    """The docstring under each field of a class, which tyro also uses for its help."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _format_group(title: str, settings: list[Setting], source: str) -> str:
    lines = [f"{title}: flags, with the values of {'preset ' if source in PRESETS else ''}{source}"]
    for s in settings:
        lines.append(f"  {_flag_with_default(s)}")
        lines += textwrap.wrap(s.doc, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if choices := _choices(s.hint):
            lines.append(" " * 6 + "one of: " + ", ".join(choices))
    return "\n".join(lines)


def _flag_with_default(s: Setting) -> str:
    """The flag with its value, such as ``--learner.batch-size 64``; both flags of a switch, and which one holds."""
    if isinstance(s.default, bool):
        return f"{flag(s.path)}, {flag(s.path + ': false')} (default: {'on' if s.default else 'off'})"
    if s.default is None or s.default == "":
        return f"{flag(s.path)} {_placeholder(s)}"
    return f"{flag(s.path)} {_format_value(s.default)}"


def _placeholder(s: Setting) -> str:
    return "DIRECTORY" if s.path in ("run_dir", "resume") else "NUMBER" if _is_number(s.hint) else "TEXT"


def _is_number(hint: Any) -> bool:
    return bool({int, float} & {hint, *typing.get_args(hint)})


def _choices(hint: Any) -> list[str]:
    """The values of a Literal, or of the Literal in a union with None."""
    inner = [hint, *(typing.get_args(hint) if isinstance(hint, types.UnionType) else ())]
    return [str(word) for h in inner if typing.get_origin(h) is typing.Literal for word in typing.get_args(h)]


def _format_value(value: Any) -> str:
    """A value as it can be written after its flag."""
    return shlex.quote(value) if isinstance(value, str) else as_written(value)

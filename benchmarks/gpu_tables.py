"""The GPU check's figures as padded Markdown tables, which read as plain text too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAME_WIDTH = 90  # characters of a kernel's name, which can be thousands

Column = tuple[str, str, str]  # heading, key of the row, format


CHECKS: tuple[Column, ...] = (
    ("check", "name", ""),
    ("network", "network", ""),
    ("optimizer", "optimizer", ""),
    ("worst relative error", "worst", ".1e"),
    ("allowed", "tolerance", "g"),
    ("passed", "passed", ""),
)
SPEED: tuple[Column, ...] = (
    ("network", "network", ""),
    ("dtype", "dtype", ""),
    ("batch", "batch", ""),
    ("updates/s", "updates_per_s", ",.1f"),
    ("transitions/s", "transitions_per_s", ",.0f"),
    ("resident updates/s", "resident_updates_per_s", ",.1f"),
    ("efficiency", "efficiency", ".2f"),
    ("plain updates/s", "plain_updates_per_s", ",.1f"),
    ("times plain", "over_plain", ".2f"),
    ("publication, ms", "publish_ms", ".1f"),
    ("peak device MiB", "peak_device_mib", ",.0f"),
)
LONGEST: tuple[Column, ...] = (
    ("calls an update", "calls", ".1f"),
    ("us an update", "us", ",.1f"),
    ("share", "share", ".1%"),
)


def tables(figures: Mapping[str, Any]) -> Iterator[str]:
    """The lines of all tables, with a line of text above each profile."""
    for columns, rows in ((CHECKS, figures["checks"]), (SPEED, figures["speed"])):
        if rows:
            yield ""
            yield from table(columns, rows)
    for profile in figures["profile"]:
        yield ""
        yield _above(profile)
        if profile["longest"]:
            rows = [{**row, "name": row["name"][:NAME_WIDTH].replace("|", "/")} for row in profile["longest"]]
            yield from table((*LONGEST, (profile["kind"], "name", "")), rows)
    yield ""


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of one table; a missing or unknown value is a dash."""
    cells = [[heading for heading, _, _ in columns]]
    cells += [[_cell(row.get(key), form) for _, key, form in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return format(value, form)


def _above(profile: Mapping[str, Any]) -> str:
    """What a profile says besides its longest kernels or operators."""
    text = f"{profile['network']}, {profile['dtype']}, batch {profile['batch']}, one update: "
    text += f"{profile['busy_us']:,.0f} us in {profile['kind']}"
    if "idle_us" in profile:
        text += f" ({profile['launches']:.0f} launches), {profile['idle_us']:,.0f} us idle between them "
        text += f"({profile['gaps']:.0f} gaps), the largest gap {profile['largest_gap_us']:,.0f} us"
    return text + (f"; {profile['note']}" if "note" in profile else "")

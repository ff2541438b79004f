"""The figures of `benchmarks.gpu` as Markdown tables, padded so that they are readable as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAME_WIDTH = 90  # characters; names of kernels can be thousands long

Column = tuple[str, str, str]  # heading, key in the row, format


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
    ("full / plain", "over_plain", ".2f"),
    ("publication, ms", "publish_ms", ".1f"),
    ("peak device MiB", "peak_device_mib", ",.0f"),
)
LONGEST: tuple[Column, ...] = (
    ("calls per update", "calls", ".1f"),
    ("us per update", "us", ",.1f"),
    ("share", "share", ".1%"),
)


def format_figures(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of all tables, with a line of text above each profile."""
    for columns, rows in ((CHECKS, figures["checks"]), (SPEED, figures["speed"])):
        if rows:
            yield ""
            yield from format_table(columns, rows)
    for profile in figures["profile"]:
        yield ""
        yield _profile_heading(profile)
        if profile["longest"]:
            rows = [{**row, "name": row["name"][:NAME_WIDTH].replace("|", "/")} for row in profile["longest"]]
            yield from format_table((*LONGEST, (profile["kind"], "name", "")), rows)
    yield ""


def format_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of one table; missing values and None are shown as a dash."""
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


def _profile_heading(profile: Mapping[str, Any]) -> str:
    """One line with the figures of a profile that are not in its table."""
    text = f"{profile['network']}, {profile['dtype']}, batch {profile['batch']}, one update: "
    text += f"{profile['busy_us']:,.0f} us in {profile['kind']}"
    if "idle_us" in profile:
        text += f" ({profile['launches']:.0f} launches), {profile['idle_us']:,.0f} us idle between them "
        text += f"({profile['gaps']:.0f} gaps), largest gap {profile['largest_gap_us']:,.0f} us"
    return text + (f"; {profile['note']}" if "note" in profile else "")

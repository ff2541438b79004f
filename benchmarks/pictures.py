"""Pictures of the benchmarks' results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_shards(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, float], to: Path) -> None:
    """Inserted and sampled transitions/s over the number of writers, a colour for each number of shards."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4))
    writers = sorted({row["writers"] for row in rows})
    for i, shards in enumerate(sorted({row["shards"] for row in rows})):
        of = sorted((row for row in rows if row["shards"] == shards), key=lambda row: row["writers"])
        style: dict[str, Any] = {"color": f"C{i}", "marker": "o", "ms": 4}
        at = list(range(1, len(of) + 1))
        name = f"{shards} shard" + "s" * (shards > 1)
        left.plot(at, _column(of, "inserted_per_s"), label=f"{name}, alone", **style)
        left.plot(at, _column(of, "inserted_per_s_both"), "--", label=f"{name}, sampled too", **style)
        sampled = [of[0]["sampled_per_s_alone"] / 1e3, *_column(of, "sampled_per_s_both")]
        right.plot([0, *at], sampled, label=name, **style)
    _bound(left, machine["limit_store_per_s"], f"packing and storing alone, {machine['cores']:.0f} cores")
    _bound(right, machine["limit_grpc_per_s"], "its bytes, plain gRPC stream")
    _bound(right, machine["limit_lz4_per_s"], "unpacking alone, 1 thread")
    left.set(title="inserted", xlabel="writer processes", ylabel="thousand transitions/s")
    right.set(title="sampled, one reader, batches of 32", xlabel="writer processes meanwhile (0: none inserts)")
    left.set_xticks(range(1, len(writers) + 1), [str(n) for n in writers])
    right.set_xticks(range(len(writers) + 1), ["0", *map(str, writers)])
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    idle = max(_column(rows, "idle", 1.0)), max(_column(rows, "idle_both", 1.0))
    figure.suptitle(
        f"Replay of Pong on one machine of {machine['cores']:.0f} cores, clients included: at most {idle[0]:.0%} of them "
        f"idle while inserting, {idle[1]:.0%} with both",
        fontsize=10,
    )
    _save(figure, to)


def _column(rows: Sequence[Mapping[str, Any]], name: str, unit: float = 1e3) -> list[float]:
    return [row[name] / unit for row in rows]


def _bound(axis: Any, per_s: float, label: str) -> None:
    colour = f"{0.35 + 0.3 * sum(line.get_linestyle() == ':' for line in axis.lines)}"
    axis.axhline(per_s / 1e3, ls=":", color=colour, label=label)


def draw_memory(
    minutes: Sequence[float], mib: Mapping[str, Sequence[float]], full: float, judged: float, title: str, to: Path
) -> None:
    """Resident memory of processes over minutes; ``full``: when the buffer was, ``judged``: from when on it must be flat."""
    figure, axis = plt.subplots(figsize=(9, 4))
    for name, values in mib.items():
        axis.plot(minutes, values, lw=1.5, label=name)
    axis.axvline(full, color="0.5", ls="--", lw=1, label="buffer full")
    axis.axvline(judged, color="0.5", ls=":", lw=1, label="judged from here on")
    axis.set(title=title, xlabel="minutes", ylabel="resident memory, MiB")
    axis.title.set_fontsize(10)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    _save(figure, to)


def _save(figure: Any, to: Path) -> None:
    figure.tight_layout()
    figure.savefig(to, dpi=120)
    plt.close(figure)

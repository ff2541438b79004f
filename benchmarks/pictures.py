"""Plots of the benchmarks' results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_shards(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, float], to: Path) -> None:
    """Plot inserted and sampled transitions/s over the number of writers to the file ``to``.

    ``rows`` and ``machine`` (number of cores and upper limits) are the figures of `benchmarks.shards.run`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4))
    writers = sorted({row["writers"] for row in rows})
    for i, shards in enumerate(sorted({row["shards"] for row in rows})):
        own = sorted((row for row in rows if row["shards"] == shards), key=lambda row: row["writers"])
        style: dict[str, Any] = {"color": f"C{i}", "marker": "o", "ms": 4}
        at = list(range(1, len(own) + 1))
        name = f"{shards} shard" + "s" * (shards > 1)
        left.plot(at, _column(own, "inserted_per_s"), label=f"{name}, inserting alone", **style)
        left.plot(at, _column(own, "inserted_per_s_both"), "--", label=f"{name}, while sampling", **style)
        sampled = [own[0]["sampled_per_s_alone"] / 1e3, *_column(own, "sampled_per_s_both")]
        right.plot([0, *at], sampled, label=name, **style)
    _draw_limit(left, machine["limit_store_per_s"], f"limit: packing and storing, {machine['cores']:.0f} cores")
    _draw_limit(right, machine["limit_grpc_per_s"], "limit: plain gRPC stream")
    _draw_limit(right, machine["limit_lz4_per_s"], "limit: decoding, 1 thread")
    left.set(title="inserted", xlabel="writer processes", ylabel="thousand transitions/s")
    right.set(title="sampled by one sampler, batches of 32", xlabel="writer processes at the same time")
    left.set_xticks(range(1, len(writers) + 1), [str(n) for n in writers])
    right.set_xticks(range(len(writers) + 1), ["0", *map(str, writers)])
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    idle = max(_column(rows, "idle", 1.0)), max(_column(rows, "idle_both", 1.0))
    figure.suptitle(
        f"Replay of Pong, shards and clients on one machine of {machine['cores']:.0f} cores; CPU idle at most "
        f"{idle[0]:.0%} while inserting, {idle[1]:.0%} while inserting and sampling",
        fontsize=10,
    )
    _save(figure, to)


def _column(rows: Sequence[Mapping[str, Any]], name: str, unit: float = 1e3) -> list[float]:
    return [row[name] / unit for row in rows]


def _draw_limit(axis: Any, per_s: float, label: str) -> None:
    colour = f"{0.35 + 0.3 * sum(line.get_linestyle() == ':' for line in axis.lines)}"
    axis.axhline(per_s / 1e3, ls=":", color=colour, label=label)


def draw_memory(
    minutes: Sequence[float], mib: Mapping[str, Sequence[float]], full: float, flat_from: float, title: str, to: Path
) -> None:
    """Plot the resident memory of each process in ``mib`` over ``minutes`` to the file ``to``.

    ``full`` is the minute at which the shard was full, ``flat_from`` the one from which its memory must be flat.
    """
    figure, axis = plt.subplots(figsize=(9, 4))
    for name, values in mib.items():
        axis.plot(minutes, values, lw=1.5, label=name)
    axis.axvline(full, color="0.5", ls="--", lw=1, label="shard full")
    axis.axvline(flat_from, color="0.5", ls=":", lw=1, label="must be flat from here")
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

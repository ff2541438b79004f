"""The Reverb processes of `qfleet bench replay --vs reverb`. They run in another Python, without Qfleet.

    serve CAPACITY      a server with one prioritized table (alpha 0.6, as in Qfleet): prints its port
    client PORT FILE    a writer and samplers: reads one command per line on stdin, prints one JSON object per line:
                        fill ITEMS | insert SECONDS | client SECONDS BATCH | datasetW SECONDS BATCH, with W workers

FILE is a .npz file with ``frames`` [T, 84, 84] of whole episodes one after the other, ``lengths`` [episodes] in frames,
and ``action``, ``r_t``, ``discount_t`` [T]. Row t of these three belongs to the item whose newest frame is frame t. An
item has ITEM_FRAMES frames and these three numbers.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import reverb
import tensorflow as tf

TABLE = "replay"
ITEM_FRAMES = 7  # n-step 3, stack 4
COLUMNS = ("frames", "action", "r_t", "discount_t")


def serve(capacity: int) -> None:
    """Print the port and serve one table of ``capacity`` items until killed."""
    table = reverb.Table(
        TABLE,
        sampler=reverb.selectors.Prioritized(0.6),
        remover=reverb.selectors.Fifo(),
        max_size=capacity,
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    server = reverb.Server([table])
    print(server.port, flush=True)
    server.wait()


class Inserter:
    """Inserts the items of a file through one trajectory writer, and starts over after the last."""

    def __init__(self, client: reverb.Client, path: str) -> None:
        with np.load(path) as data:
            self._columns = [data[name] for name in COLUMNS]
            self._ends = np.cumsum(data["lengths"]).tolist()
        self._writer = client.trajectory_writer(num_keep_alive_refs=ITEM_FRAMES)
        self._steps = self._walk()

    def _walk(self):
        writer = self._writer
        while True:
            start = 0
            for end in self._ends:
                for row in range(start, end):
                    writer.append({name: column[row] for name, column in zip(COLUMNS, self._columns, strict=True)})
                    if row - start < ITEM_FRAMES - 1:
                        continue
                    history = writer.history
                    trajectory = {name: history[name][-1] for name in COLUMNS[1:]}
                    trajectory["frames"] = history["frames"][-ITEM_FRAMES:]
                    writer.create_item(TABLE, priority=1.0, trajectory=trajectory)
                    writer.flush(block_until_num_items=200)
                    yield
                writer.end_episode(clear_buffers=True)
                start = end

    def insert(self, seconds: float, items: float = float("inf")) -> float:
        """Insert for ``seconds`` or until ``items`` are inserted, whichever is first; returns acknowledged items/s."""
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds and done < items:
            next(self._steps)
            done += 1
        self._writer.flush()
        return done / (time.perf_counter() - began)


def split_frames(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split frames [B, 7, 84, 84] into s_tm1 and s_t, uint8 [B, 4, 84, 84] each; views, not copies."""
    return frames[:, :4], frames[:, 3:]


def measure_batches(batches, batch: int, seconds: float) -> dict[str, float]:
    """Iterate over ``batches`` [B, 7, 84, 84] for ``seconds``; returns transitions/s and ms per batch (p50, p99)."""
    began = last = time.perf_counter()
    latencies = []
    while last - began < seconds:
        before, after = split_frames(next(batches))
        assert before.shape == after.shape == (batch, 4, 84, 84), (before.shape, after.shape)
        now = time.perf_counter()
        latencies.append(now - last)
        last = now
    p50, p99 = np.percentile(latencies, [50, 99])
    return {"per_s": batch * len(latencies) / (last - began), "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3}


def from_client(client: reverb.Client, batch: int):
    """Yield batches of frames, uint8 [B, 7, 84, 84], from Reverb's client without end."""
    while True:
        samples = client.sample(TABLE, num_samples=batch, emit_timesteps=False)
        yield np.stack([next(x for x in sample.data if x.ndim == 3) for sample in samples])  # data: the columns, flat


def from_dataset(address: str, batch: int, workers: int):
    """Yield batches of frames, uint8 [B, 7, 84, 84], from Reverb's dataset with ``workers`` workers, without end."""
    dataset = reverb.TrajectoryDataset(
        server_address=address,
        table=TABLE,
        dtypes={"frames": tf.uint8, "action": tf.int32, "r_t": tf.float32, "discount_t": tf.float32},
        shapes={
            "frames": tf.TensorShape([ITEM_FRAMES, 84, 84]),
            **{name: tf.TensorShape([]) for name in COLUMNS[1:]},
        },
        max_in_flight_samples_per_worker=4 * batch,
        num_workers_per_iterator=workers,
    )
    for sample in dataset.batch(batch).prefetch(4).as_numpy_iterator():
        yield sample.data["frames"]


def client(port: str, path: str) -> None:
    """Run the commands on standard input; prints the figures of each as a JSON object."""
    address = f"127.0.0.1:{port}"
    link = reverb.Client(address)
    inserter = Inserter(link, path)
    datasets = {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        if what == "fill":
            figures = {"per_s": inserter.insert(float("inf"), float(numbers[0]))}
        elif what == "insert":
            figures = {"per_s": inserter.insert(float(numbers[0]))}
        elif what == "client":
            figures = measure_batches(from_client(link, int(numbers[1])), int(numbers[1]), float(numbers[0]))
        else:
            batch, workers = int(numbers[1]), int(what.removeprefix("dataset"))
            if (batch, workers) not in datasets:
                datasets[batch, workers] = from_dataset(address, batch, workers)
            figures = measure_batches(datasets[batch, workers], batch, float(numbers[0]))
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        client(sys.argv[2], sys.argv[3])

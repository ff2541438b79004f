"""Measure updates/s on this device with three loops that take turns:

full      the whole learner as in a run: batches come from host memory through the prefetch thread, |TD errors| are
          read back after every update, weights are copied to the host every publish_period updates
resident  the update alone, on one batch that stays on the device; nothing is read back before the end of the window
plain     the loop of CleanRL's dqn_atari.py in eager PyTorch on the same batches. It does less: no Double DQN, no
          importance weights, no dueling heads, no layer normalization; only the loss is read back, every
          PLAIN_LOG_PERIOD updates

The efficiency is full / resident. On a CPU it can exceed 1, because there the full learner computes its targets in a
second thread (decisions/0004).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_parts import ACTIONS, NETWORKS, SPEC, BenchLearner, Pool, Sizes, Source, bench_learner, synchronize
from learner.learner import LearnerConfig, learner_threads
from learner.update import Updater
from rl.networks import make_network
from rl.precision import Precision

# Updates between two copies to the target network, and between two readings of the loss, as CleanRL has them:
PLAIN_TARGET_PERIOD, PLAIN_LOG_PERIOD = 250, 25

Update = Callable[[], None]


def measure_speed(
    device: str, network: str, precision: Precision, batch: int, pool: Pool, seconds: float, sizes: Sizes
) -> dict[str, Any]:
    """Measure the three loops for ``seconds`` each; returns one row of the table."""
    config: dict[str, Any] = {"batch_size": batch, "learning_rate": 1e-4, "precision": precision}
    settings = LearnerConfig(device=device, **config)
    before = torch.get_num_threads()
    torch.set_num_threads(learner_threads(settings))
    try:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with bench_learner(device, NETWORKS[network], pool, config) as learner:
            for _ in range(sizes.warm_up):
                learner.step()
            synchronize(device)
            peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
            loops = {
                "full": learner.step,
                "resident": _make_resident_update(settings, network, pool),
                "plain": _make_plain_update(device, network, precision, Source(pool, batch)),
            }
            for update in loops.values():
                _measure_rate(update, 0.0, sizes.warm_up, device)
            rates = measure_alternating(loops, seconds, sizes, device)
            publish = _measure_publish_seconds(learner, device)
    finally:
        torch.set_num_threads(before)
    return {
        "network": network,
        "dtype": precision,
        "batch": batch,
        "updates_per_s": median(rates["full"]),
        "transitions_per_s": median(rates["full"]) * batch,
        "resident_updates_per_s": median(rates["resident"]),
        "efficiency": _median_ratio(rates["full"], rates["resident"]),
        "plain_updates_per_s": median(rates["plain"]),
        "over_plain": _median_ratio(rates["full"], rates["plain"]),
        "publish_ms": publish * 1e3,
        "peak_device_mib": peak,  # None on a CPU, where torch does not measure it
    }


def measure_alternating(loops: dict[str, Update], seconds: float, sizes: Sizes, device: str) -> dict[str, list[float]]:
    """Measure each loop for ``seconds``, in windows that take turns; returns updates/s of each window by loop."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(sizes.windows):
        for name, update in loops.items():
            rates[name].append(_measure_rate(update, seconds / sizes.windows, sizes.settle, device))
    return rates


def _measure_rate(update: Update, seconds: float, settle: int, device: str) -> float:
    """Updates/s over ``seconds`` (at least one update), after ``settle`` updates that are not counted."""
    for _ in range(settle):
        update()
    synchronize(device)
    began, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - began < seconds:
        update()
        done += 1
    synchronize(device)
    return done / (time.perf_counter() - began)


def _median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median over the windows of a / b; the two windows of a pair are measured one right after the other."""
    return median(x / y for x, y in zip(a, b, strict=True))


def _make_resident_update(settings: LearnerConfig, network: str, pool: Pool) -> Update:
    """Return a function that makes one update (targets and gradient step) on a batch that stays on the device."""
    online, target = (make_network(NETWORKS[network], SPEC, ACTIONS, seed=1) for _ in range(2))
    updater = Updater(settings, online, target, torch.device(settings.device))
    batch = updater.prepare(pool.batch(0, settings.batch_size))

    def update() -> None:
        updater.update(batch)

    return update


def _measure_publish_seconds(learner: BenchLearner, device: str, times: int = 5) -> float:
    """Seconds for which the learner waits during one publication of its weights; the median of ``times``."""
    durations = []
    for _ in range(times):
        synchronize(device)
        began = time.perf_counter()
        learner.learner.publisher.publish()
        durations.append(time.perf_counter() - began)
    return median(durations)


class PlainNetwork(nn.Module):
    """CleanRL's QNetwork for ``kind`` "nature", otherwise the network of Mnih et al. 2013."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        convolutions: list[nn.Module] = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2)]
        features, hidden = 32 * 9 * 9, 256
        if kind == "nature":
            convolutions = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            convolutions += [nn.Conv2d(64, 64, 3, stride=1)]
            features, hidden = 64 * 7 * 7, 512
        head = [nn.ReLU(), nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, ACTIONS)]
        self.network = nn.Sequential(*convolutions, *head)

    def forward(self, x: Tensor) -> Tensor:
        """Action values [B, A] of frames, uint8 [B, 4, 84, 84]."""
        q: Tensor = self.network(x / 255.0)
        return q


def _make_plain_update(device: str, kind: str, precision: Precision, source: Source) -> Update:
    """Return a function that makes one update of the plain loop. In bfloat16 the forward passes run under autocast."""
    online, target = (PlainNetwork(kind).to(device) for _ in range(2))
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-4)
    done = 0

    def update() -> None:
        nonlocal done
        t = source.sample(0.0).transitions
        s_tm1, a_tm1, r_t, discount_t, s_t = (torch.tensor(x, device=device) for x in t)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            with torch.no_grad():
                target_max, _ = target(s_t).max(dim=1)
                td_target = r_t + discount_t * target_max
            old_value = online(s_tm1).gather(1, a_tm1.unsqueeze(1)).squeeze(1)
        loss = F.mse_loss(td_target.float(), old_value.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        if done % PLAIN_LOG_PERIOD == 0:
            loss.item()
        if done % PLAIN_TARGET_PERIOD == 0:
            for to, weights in zip(target.parameters(), online.parameters(), strict=True):
                to.data.copy_(weights.data)

    return update

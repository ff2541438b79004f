"""How fast the learner updates on this device: fed, beside one batch that stays there, and beside a plain loop.

fed       the whole learner as a run has it: batches out of the host's memory through the prefetching thread, |TD errors|
          read back after every update, weights copied out every publish_period updates
resident  the update alone, on one batch that stays on the device, nothing read back until the window's end
plain     the loop of CleanRL's dqn_atari.py in eager PyTorch on the same batches, which does less: no Double DQN, no
          importance weights, no dueling heads, no layer normalisation, nothing read back but a loss now and then

Efficiency is fed over resident. On a CPU the fed learner computes its targets in a second thread (decisions/0004), so that
it can exceed 1 there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_parts import ACTIONS, NETWORKS, SPEC, Pool, Sizes, Source, Trial, finish, trial
from learner.learner import LearnerConfig, learner_threads
from learner.update import Updater
from rl.networks import make_network
from rl.precision import Precision

PLAIN_SYNC, PLAIN_READ = 250, 25  # updates between target copies and readings of the loss, as CleanRL has them

Update = Callable[[], None]


def check_speed(
    device: str, network: str, precision: Precision, batch: int, pool: Pool, seconds: float, sizes: Sizes
) -> dict[str, Any]:
    """One row of the table; ``seconds`` go to each of the three loops."""
    config: dict[str, Any] = {"batch_size": batch, "learning_rate": 1e-4, "precision": precision}
    settings = LearnerConfig(device=device, **config)
    before = torch.get_num_threads()
    torch.set_num_threads(learner_threads(settings))
    try:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with trial(device, NETWORKS[network], pool, config) as fed:
            for _ in range(sizes.warm_up):
                fed.step()
            finish(device)
            peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
            loops = {
                "fed": fed.step,
                "resident": _resident(settings, network, pool),
                "plain": _plain(device, network, precision, Source(pool, batch)),
            }
            for update in loops.values():
                _rate(update, 0.0, sizes.warm_up, device)
            rates = in_turns(loops, seconds, sizes, device)
            publish = _publish_seconds(fed, device)
    finally:
        torch.set_num_threads(before)
    return {
        "network": network,
        "dtype": precision,
        "batch": batch,
        "updates_per_s": median(rates["fed"]),
        "transitions_per_s": median(rates["fed"]) * batch,
        "resident_updates_per_s": median(rates["resident"]),
        "efficiency": _ratio(rates["fed"], rates["resident"]),
        "plain_updates_per_s": median(rates["plain"]),
        "over_plain": _ratio(rates["fed"], rates["plain"]),
        "publish_ms": publish * 1e3,
        "peak_device_mib": peak,  # None on a CPU, where torch does not count
    }


def in_turns(loops: dict[str, Update], seconds: float, sizes: Sizes, device: str) -> dict[str, list[float]]:
    """Calls/s of each loop by window; the ``seconds`` of each are cut into windows in which the loops take turns."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(sizes.windows):
        for name, update in loops.items():
            rates[name].append(_rate(update, seconds / sizes.windows, sizes.settle, device))
    return rates


def _rate(update: Update, seconds: float, settle: int, device: str) -> float:
    for _ in range(settle):
        update()
    finish(device)
    began, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - began < seconds:
        update()
        done += 1
    finish(device)
    return done / (time.perf_counter() - began)


def _ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median over the windows of a / b, each pair of windows measured side by side."""
    return median(x / y for x, y in zip(a, b, strict=True))


def _resident(settings: LearnerConfig, network: str, pool: Pool) -> Update:
    """The update alone, both halves of it, on one batch that is on the device."""
    online, target = (make_network(NETWORKS[network], SPEC, ACTIONS, seed=1) for _ in range(2))
    updater = Updater(settings, online, target, torch.device(settings.device))
    batch = updater.prepare(pool.batch(0, settings.batch_size))

    def update() -> None:
        updater.update(batch)

    return update


def _publish_seconds(fed: Trial, device: str, times: int = 5) -> float:
    """Seconds that the learner stands still for one publication of its weights, the median of ``times``."""
    took = []
    for _ in range(times):
        finish(device)
        began = time.perf_counter()
        fed.learner.publisher.publish()
        took.append(time.perf_counter() - began)
    return median(took)


class PlainNetwork(nn.Module):
    """CleanRL's QNetwork ("nature"), or one with the layers of Mnih et al. 2013."""

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
        """q [B, A] of pixels [B, 4, 84, 84]."""
        q: Tensor = self.network(x / 255.0)
        return q


def _plain(device: str, kind: str, precision: Precision, source: Source) -> Update:
    """The plain loop, an update per call; in bfloat16 its forward passes are under autocast."""
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
        if done % PLAIN_READ == 0:
            loss.item()
        if done % PLAIN_SYNC == 0:
            for to, of in zip(target.parameters(), online.parameters(), strict=True):
                to.data.copy_(of.data)

    return update

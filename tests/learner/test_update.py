"""One update: the targets, the gradient step, the target network and the average."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.update import COPY_PERIOD, UpdateConfig, Updater
from rl.networks import NetworkConfig, make_network
from rl.parameters import from_bytes, to_bytes, weights_of
from rl.types import ObservationSpec
from tests.conftest import SMALL
from tests.learner.updates import CPU, MLP, batch_of, updater


def test_one_update_makes_the_expected_gradient_step(rng):
    """Double DQN: loss = mean w * huber(td). The gradients are compared, before the optimizer uses them."""
    u = updater()
    sampled = batch_of(rng, weights=[1, 0.5, 0.25, 1, 1, 1, 1, 0.1])
    s_tm1, a_tm1, r_t, _, s_t = (torch.from_numpy(x) for x in sampled.transitions)
    with torch.no_grad():
        for p in u.target.parameters():
            p.add_(0.1)
        q_t, q_next = u.target(s_t), u.online(s_t)
    q = u.online(s_tm1)
    rows = torch.arange(8)
    td = r_t + 0.9 * q_t[rows, q_next.argmax(1)] - q[rows, a_tm1]
    loss = torch.where(td.abs() <= 1, td**2 / 2, td.abs() - 0.5) * torch.from_numpy(sampled.weights)
    expected = torch.autograd.grad(loss.mean(), list(u.online.parameters()))
    got_td, metrics = u.update(u.prepare(sampled))
    torch.testing.assert_close(got_td, td.detach().abs())
    assert float(metrics["loss"]) == pytest.approx(loss.mean().item(), rel=1e-5)
    norm = torch.sqrt(sum((g**2).sum() for g in expected))
    scale = min(1.0, 10.0 / float(norm))
    for p, g in zip(u.online.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g * scale, rtol=1e-4, atol=1e-6)


def test_targets_prepared_concurrently_lag_by_at_most_the_copy_period(rng):
    config = UpdateConfig(learning_rate=1e-2, target_update_period=6)
    u = Updater(config, *(make_network(MLP, SMALL, 3, seed) for seed in (1, 1)), CPU, concurrent=True)
    looked = batch_of(rng)
    s_t, r_t = (torch.from_numpy(x) for x in (looked.transitions.s_t, looked.transitions.r_t))
    frozen = 0
    online = {0: [p.clone() for p in u.online.parameters()]}
    for update in range(1, 20):
        u.update(u.prepare(batch_of(rng)))
        online[update] = [p.clone() for p in u.online.parameters()]
        if update % COPY_PERIOD == 0 or update % 6 == 0:
            frozen = update
        then = make_network(MLP, SMALL, 3, 1)
        torch.nn.utils.vector_to_parameters(torch.cat([p.flatten() for p in online[frozen]]), then.parameters())
        with torch.no_grad():
            q = u.target(s_t).gather(1, then(s_t).argmax(1, keepdim=True))[:, 0]
        torch.testing.assert_close(u.prepare(looked).target, r_t + 0.9 * q)


def test_pixels_are_prepared_in_channels_last_order_with_the_same_values(rng):
    spec = ObservationSpec((84, 84), "uint8", 4)
    small = NetworkConfig(kind="small", hidden=(8,))
    updater = Updater(UpdateConfig(), *(make_network(small, spec, 3, 1) for _ in range(2)), CPU)
    looked = batch_of(rng, spec)
    batch = updater.prepare(looked)
    for made, given in ((batch.s_tm1, looked.transitions.s_tm1), (batch.s_t, looked.transitions.s_t)):
        assert made.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(made, torch.from_numpy(given).float(), rtol=0, atol=0)


def test_only_the_first_batch_sets_the_background_of_every_network(rng):
    spec, config = ObservationSpec((84, 84), "uint8", 4), UpdateConfig(average_tau=0.1, target_update_period=3)
    network = NetworkConfig(kind="small", hidden=(8,), center=True)
    first, second = (Updater(config, *(make_network(network, spec, 3, s) for _ in range(2)), CPU, True) for s in (1, 9))
    looked = batch_of(rng, spec)
    background = np.sort(looked.transitions.s_tm1, axis=0)[(len(looked.weights) - 1) // 2]
    batches = [first.prepare(looked), *(first.prepare(batch_of(rng, spec)) for _ in range(2))]
    for batch in batches:
        torch.testing.assert_close(batch.target, first._compute_targets(batch, *first._networks_for_targets))
    for batch in batches:
        first.update(batch)
    second.set_state(first.get_state(), first.updates, first.target_syncs)
    for u in (first, second):
        u.prepare(batch_of(rng, spec))
        copies = [n for copies in (u._active_copies, u._spare_copies) for n in copies.networks]
        for n in (u.online, u.target, u.acting_network, *(copies if u is first else u._active_copies.networks)):
            np.testing.assert_array_equal(n.background.numpy(), background)


@pytest.mark.parametrize("changes", [{}, {"target_tau": 0.5}, {"double": False}, {"precision": "bfloat16"}])
def test_targets_prepared_after_a_restore_use_the_restored_weights(rng, changes):
    """With a restored state a concurrent updater prepares the targets that a non-concurrent one computes."""
    config = UpdateConfig(learning_rate=1e-2, target_update_period=3, **changes)
    networks = lambda seed: (make_network(MLP, SMALL, 3, seed) for _ in range(2))  # noqa: E731
    old, new = Updater(config, *networks(1), CPU), Updater(config, *networks(9), CPU, concurrent=True)
    for _ in range(5):
        old.update(old.prepare(batch_of(rng)))
    new.set_state(old.get_state(), old.updates, old.target_syncs)
    looked = batch_of(rng)
    exact = old._compute_targets(old.prepare(looked), *old._networks_for_targets)
    close = {"rtol": 3e-2, "atol": 3e-2} if config.precision == "bfloat16" else {}
    torch.testing.assert_close(new.prepare(looked).target, exact, **close)
    torch.testing.assert_close(new.update(new.prepare(looked))[0], old.update(old.prepare(looked))[0], **close)
    for _ in range(COPY_PERIOD):
        new.update(new.prepare(batch_of(rng)))
    assert new.updates % COPY_PERIOD == 2  # two updates behind
    new._renew_copies()
    batch = new.prepare(looked)
    torch.testing.assert_close(batch.target, new._compute_targets(batch, *new._networks_for_targets), **close)


def test_the_second_renewal_waits_for_prepare(rng):
    """While `prepare` is in the forward pass of the copies, their second renewal waits."""
    u = Updater(
        UpdateConfig(learning_rate=1e-2), *(make_network(MLP, SMALL, 3, 1) for _ in range(2)), CPU, concurrent=True
    )
    batches = [u.prepare(batch_of(rng)) for _ in range(2 * COPY_PERIOD)]
    inside, go = threading.Event(), threading.Event()

    def wait_inside(*_):
        inside.set()
        assert go.wait(timeout=10.0)

    hook = u._active_copies.networks[0].register_forward_pre_hook(wait_inside)
    reader = threading.Thread(target=u.prepare, args=(batch_of(rng),))
    reader.start()
    assert inside.wait(timeout=10.0)
    hook.remove()
    writer = threading.Thread(target=lambda: [u.update(b) for b in batches])
    writer.start()
    writer.join(timeout=1.0)
    assert writer.is_alive()
    assert u.updates == 2 * COPY_PERIOD  # the step is made, but the renewal waits for the reader
    go.set()
    for thread in (reader, writer):
        thread.join(timeout=10.0)
        assert not thread.is_alive()


def test_copies_are_not_renewed_under_a_reader(rng):
    """The copies do not change while a reader holds their lock; the second renewal waits for the reader."""
    u = Updater(
        UpdateConfig(learning_rate=1e-2), *(make_network(MLP, SMALL, 3, 1) for _ in range(2)), CPU, concurrent=True
    )
    for _ in range(COPY_PERIOD - 1):
        u.update(u.prepare(batch_of(rng)))
    batches = [u.prepare(batch_of(rng)) for _ in range(2 * COPY_PERIOD)]
    began_with = u._active_copies
    with began_with.lock:
        before = [p.clone() for n in began_with.networks for p in n.parameters()]
        thread = threading.Thread(target=lambda: [u.update(b) for b in batches])
        thread.start()
        thread.join(timeout=1.0)
        assert thread.is_alive()
        assert u.updates == 2 * COPY_PERIOD  # the step is made, but the renewal waits
        after = [p.clone() for n in began_with.networks for p in n.parameters()]
    thread.join(timeout=10.0)
    assert not thread.is_alive()
    assert u.updates == 3 * COPY_PERIOD - 1
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_gradients_are_clipped_to_the_norm(rng):
    u = updater(UpdateConfig(max_grad_norm=0.01, loss="squared"))
    u.update(u.prepare(batch_of(rng)))
    norm = torch.sqrt(sum((p.grad**2).sum() for p in u.online.parameters()))
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_the_target_is_copied_by_update_count(rng):
    u = updater()
    for k in range(1, 12):
        u.update(u.prepare(batch_of(rng)))
        same = all(torch.equal(a, b) for a, b in zip(u.online.parameters(), u.target.parameters(), strict=True))
        assert same == (k % 5 == 0)
    assert u.target_syncs == 2


def test_the_learning_rate_decreases_linearly_and_then_stays(rng):
    u = updater(UpdateConfig(learning_rate=1e-2, learning_rate_end=1e-3, learning_rate_updates=3))
    rates = []
    for _ in range(5):
        u.update(u.prepare(batch_of(rng)))
        rates.append(u.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 7e-3, 4e-3, 1e-3, 1e-3])


def test_a_soft_target_moves_by_tau(rng):
    u = updater(UpdateConfig(target_tau=0.25))
    before = [p.clone() for p in u.target.parameters()]
    u.update(u.prepare(batch_of(rng)))
    for old, new, online in zip(before, u.target.parameters(), u.online.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25 * (online - old))


def test_the_acting_network_is_the_average_and_is_restored_from_a_state(rng):
    config = UpdateConfig(learning_rate=1e-2, average_tau=0.25)
    u = updater(config)
    average = [p.clone() for p in u.online.parameters()]
    for _ in range(3):
        u.update(u.prepare(batch_of(rng)))
        average = [a + 0.25 * (p - a) for a, p in zip(average, u.online.parameters(), strict=True)]
    for expected, got in zip(average, weights_of(u.acting_network).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), expected.detach())
    state = u.get_state()
    for given, group in ((state, "average"), ({k: v for k, v in state.items() if k != "average"}, "online")):
        other = updater(config, seed=9)
        other.set_state(given, u.updates, u.target_syncs)
        for name, x in weights_of(other.acting_network).items():
            np.testing.assert_array_equal(x, state[group][name])
    plain = updater(seed=9)  # resumed without an average
    plain.set_state(state, u.updates, u.target_syncs)
    assert plain.acting_network is plain.online
    assert set(plain.get_state()) == {"online", "target", "optimizer"}
    np.testing.assert_array_equal(weights_of(plain.acting_network)["head.2.weight"], state["online"]["head.2.weight"])


def test_a_state_with_weights_alone_is_rejected():
    u = updater()
    with pytest.raises(ValueError, match="the state has no optimizer, target"):
        u.set_state({"online": u.get_state()["online"]}, 0, 0)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize(
    ("network", "spec"), [(MLP, SMALL), (NetworkConfig("small", (16,)), ObservationSpec((36, 36), "uint8", 2))]
)
def test_updates_after_a_restore_equal_the_uninterrupted_ones(rng, optimizer, network, spec):
    config = UpdateConfig(learning_rate=1e-2, target_update_period=3, optimizer=optimizer)
    batches = [batch_of(rng, spec) for _ in range(8)]
    straight, first = (updater(config, network, spec) for _ in range(2))
    for b in batches[:4]:
        straight.update(straight.prepare(b))
        first.update(first.prepare(b))
    groups = {name: from_bytes(to_bytes(group)) for name, group in first.get_state().items()}
    second = updater(config, network, spec, seed=99)
    second.set_state(groups, first.updates, first.target_syncs)
    for b in batches[4:]:
        straight.update(straight.prepare(b))
        second.update(second.prepare(b))
    assert second.target_syncs == straight.target_syncs == 2
    for a, b in zip(weights_of(straight.online).values(), weights_of(second.online).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_gives_gradients_in_the_same_direction(rng):
    a, b = updater(), updater(UpdateConfig(learning_rate=1e-2, precision="bfloat16"))
    sampled = batch_of(rng, size=64)
    sampled = replace(sampled, transitions=sampled.transitions._replace(s_tm1=sampled.transitions.s_tm1 / 255))
    a.update(a.prepare(sampled))
    b.update(b.prepare(sampled))
    x, y = (torch.cat([p.grad.flatten() for p in u.online.parameters()]) for u in (a, b))
    assert torch.nn.functional.cosine_similarity(x, y, dim=0) > 0.99

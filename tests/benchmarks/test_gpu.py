"""The GPU checks can fail, and the flags, traces and tables of `benchmarks.gpu`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu, gpu_checks, gpu_profile, gpu_tables
from benchmarks.gpu_parts import NETWORKS, QUICK, SPEC, Pool, Sizes, Source, bench_learner
from learner.checkpoint import Checkpoint
from qfleet.cli import main as cli
from qfleet.presets import preset

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
SMALL_CPU = ("cpu", NETWORKS["small"])


@NO_CUDA
@pytest.mark.parametrize("flags", [[], ["--device", "cuda", "--json"]])
@pytest.mark.parametrize("main", [gpu.main, lambda flags: cli.main(["bench", "gpu", *flags])])
def test_without_cuda_the_message_names_the_flag_to_write(main, flags, capsys):
    assert main(flags) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "write --device cpu" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--updates", "0"], "--updates is 0: write at least 1"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--batches", "32", "0"], "from 1 to 8192"),
        (["--update", "3"], "--update"),
    ],
)
def test_bad_input_is_reported_in_one_line(flags, message, capsys):
    assert gpu.main([*flags, "--device", "cpu"] if "--device" not in flags else flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_both_command_lines_parse_to_the_same_command(monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(gpu, "run", lambda c, log=print: commands.append(c) or {"passed": False})
    flags = ["--device", "cpu", "--batches", "8", "16", "--seconds", "0.5", "--updates", "7", "--quick", "--json"]
    assert gpu.main(flags) == cli.main(["bench", "gpu", *flags]) == 1
    assert gpu.main([]) == cli.main(["bench", "gpu"]) == 1
    given = gpu.Command(device="cpu", batches=(8, 16), seconds=0.5, updates=7, quick=True, json=True)
    assert commands == [given, given, gpu.Command(), gpu.Command()]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"passed": False}] * 2


def test_the_networks_are_those_of_the_presets():
    assert {"nature": preset("breakout").network, "small": preset("pong").network} == NETWORKS


def test_the_source_returns_batches_laid_out_like_the_samplers():
    pool = Pool(10)
    source = Source(pool, 4)
    first, second, third = (source.sample(0.0) for _ in range(3))
    s_tm1, a_tm1, r_t, discount_t, s_t = first.transitions
    assert s_tm1.shape == s_t.shape == (4, *SPEC.shape)
    assert s_tm1.base is s_t.base is pool.stacks  # views of one buffer, s_tm1 and s_t alternating
    assert s_t.ctypes.data - s_tm1.ctypes.data == 4 * 84 * 84
    assert [x.dtype for x in (s_tm1, a_tm1, r_t, discount_t)] == [np.uint8, np.int64, np.float32, np.float32]
    assert [x.flags.writeable for x in (s_tm1, a_tm1, r_t, discount_t)] == [True, True, False, False]
    assert second.keys.tolist() == [4, 5, 6, 7]
    assert third.keys.tolist() == first.keys.tolist()  # the last 2 of 10 do not fill a batch
    assert not np.array_equal(s_tm1, second.transitions.s_tm1)


@pytest.mark.parametrize(
    ("got", "passed", "worst", "at"),
    [
        ([0.5, 0.25, 2.0], True, 0.0, 1),
        ([0.5, 0.25 * 1.0009, 2.0], True, 9e-4, 2),
        ([0.5, 0.25, 2.0 * 0.998], False, 2e-3, 3),
        ([0.5, float("nan"), 2.0], False, None, 2),
        ([0.5, 0.25], False, 0.0, 1),
        ([], False, None, 0),
    ],
)
def test_wrong_losses_fail(got, passed, worst, at):
    verdict = gpu_checks.compare_losses("x", [0.5, 0.25, 2.0], got, 1e-3)
    assert (verdict["passed"], verdict["at_update"]) == (passed, at)
    assert verdict["worst"] == (None if worst is None else pytest.approx(worst))


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"learning_rate": 1.1e-5}, False),  # a tenth too high
        ({"target_update_period": 10**6}, False),  # no target syncs
        ({"max_grad_norm": 0.0}, False),  # no gradient clipping
        ({"optimizer": "rmsprop"}, False),
        ({"loss": "squared"}, False),
    ],
)
def test_a_faulty_learner_fails(changes, passed):
    pool, config = Pool(64), gpu_checks._config("small", "adam", replace(Sizes(), batch=8))
    with (
        bench_learner(*SMALL_CPU, pool, config, exact=True) as reference,
        bench_learner(*SMALL_CPU, pool, {**config, **changes}, exact=True) as tested,
    ):
        (verdict,) = gpu_checks.compare_learners(reference, {"float32": tested}, updates=8, copy_every=8)
    assert verdict["passed"] is passed


def test_a_different_state_fails():
    state = {"updates": 3, "replay": {"drawn": 3}}
    one = Checkpoint({"online": {"w": np.ones(2, np.float32)}, "optimizer": {"0.step": np.array(3.0)}}, state)
    assert gpu_checks.compare_states("x", one, replace(one, state={**state, "more": 7}))["passed"]
    for arrays, plain, wrong in [
        ({**one.arrays, "online": {"w": np.nextafter(one.arrays["online"]["w"], 2)}}, state, ["online/w"]),
        ({**one.arrays, "online": {}}, state, ["online/w"]),
        ({**one.arrays, "optimizer": {"0.step": np.array([3.0])}}, state, ["optimizer/0.step"]),
        (one.arrays, {**state, "updates": 4}, ["updates"]),
        (one.arrays, {**state, "replay": {"drawn": 4}}, ["replay"]),
    ]:
        verdict = gpu_checks.compare_states("x", one, Checkpoint(arrays, plain))
        assert (verdict["passed"], verdict["differing"]) == (False, wrong)


def test_failures_are_listed_and_the_other_tasks_still_run(monkeypatch, capsys):
    """One check fails and one task raises: the others run, the status is 1, and both are listed."""

    def failing(device, network, optimizer, pool, updates, sizes):
        verdict = gpu_checks.compare_losses("losses, float32", [1.0], [1.0 + (network == "small")], 1e-3)
        return [{**verdict, "network": network, "optimizer": optimizer}]

    def raising(*args):
        raise RuntimeError("CUDA error: an illegal memory access\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(gpu, "check_losses", failing)
    monkeypatch.setattr(gpu, "check_checkpoints", raising)
    monkeypatch.setattr(gpu, "measure_speed", lambda *args: {"network": "small"})
    monkeypatch.setattr(gpu, "profile_updates", raising)
    assert gpu.main(["--device", "cpu", "--quick", "--json"]) == 1
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert len(figures["failed"]) == 2 + 2 + 2
    assert "losses, float32, small, adam: relative error 1 at update 1, at most 0.001 is allowed" in figures["failed"]
    assert all(f"FAILED: {name}" in out for name in figures["failed"])
    assert figures["failed"][0].endswith("RuntimeError: CUDA error: an illegal memory access")
    assert len(figures["speed"]) == 4


def test_kernels_and_gaps_are_read_from_a_trace():
    """Two updates: 0-10 and 30-45 overlap nothing, 12-20 overlaps 15-25, so 2 + 5 us are idle. Other events do not count."""
    spans = [("kernel", "conv", 0, 10), ("kernel", "conv", 12, 8), ("gpu_memcpy", "Memcpy HtoD", 15, 10)]
    spans += [("kernel", "adam", 30, 15), ("gpu_user_annotation", "step", 0, 45), ("cuda_runtime", "launch", 26, 2)]
    events = [{"cat": cat, "name": name, "ts": ts, "dur": dur} for cat, name, ts, dur in spans]
    found = gpu_profile.summarize_kernels([*events, {"name": "metadata without a category"}], updates=2)
    assert [(row["name"], row["calls"], row["us"]) for row in found["longest"]] == [
        ("conv", 1.0, 9.0),
        ("adam", 0.5, 7.5),
        ("Memcpy HtoD", 0.5, 5.0),
    ]
    assert found["longest"][0]["share"] == pytest.approx(18 / 43)
    assert (found["busy_us"], found["idle_us"], found["largest_gap_us"]) == (43 / 2, (2 + 5) / 2, 5)
    assert (found["gaps"], found["launches"]) == (1, 2)
    nothing = gpu_profile.summarize_kernels([], updates=2)
    assert "no kernel" in nothing["note"]
    for own in (found, nothing):
        figures = {"checks": [], "speed": [], "profile": [{"network": "n", "dtype": "d", "batch": 1, **own}]}
        assert "us idle between them" in "\n".join(gpu_tables.format_figures(figures))


def test_a_trace_of_the_profiler_can_be_read():
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(3).add(1)
    events = gpu_profile._trace(profiler)
    assert "aten::add" in {e["name"] for e in events if e.get("cat") == "cpu_op"}
    assert "no kernel" in gpu_profile.summarize_kernels(events, updates=1)["note"]


def test_the_quick_sizes_are_small():
    assert QUICK.batch < Sizes().batch
    assert QUICK.pairs * SPEC.frame_bytes * 8 < 2**24

"""`python -m benchmarks.gpu` runs on a CPU, in a process that can import little more than torch."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

ABSENT = ("ray", "gymnasium", "grpc", "lz4", "ale_py", "tyro", "rich", "psutil")

PROGRAM = """
import importlib, runpy, sys
folder, checkout, *absent = sys.argv[1].split(",")
sys.path[:0] = [checkout, folder]
for name in absent:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} can be imported, but must not be")
sys.argv[1:] = ["--device", "cpu", "--quick", "--json"]
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def with_requirements(names):
    """{name: distribution} of these distributions and of all that they require on this machine."""
    found, queue = {}, list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            wanted = (Requirement(line) for line in found[name].requires or ())
            queue += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The finished GPU check; its process can import only Qfleet, torch, numpy, safetensors, and their requirements."""
    folder = tmp_path_factory.mktemp("bare")
    for distribution in with_requirements(["torch", "numpy", "safetensors", "fsspec"]).values():
        names = {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}
        for top in names:
            (folder / top).unlink(missing_ok=True)
            (folder / top).symlink_to(distribution.locate_file(top))
    arguments = ",".join([str(folder), str(ROOT), *ABSENT])
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=200)


def test_it_runs_with_torch_numpy_and_safetensors_alone(bare):
    assert bare.returncode == 0, bare.stdout + bare.stderr
    assert "1 of 12: losses of 3 updates compared with the CPU, nature, adam (11 more)" in bare.stdout


def test_its_json_has_every_figure(bare):
    figures = json.loads(bare.stdout.splitlines()[-1])
    assert (figures["passed"], figures["failed"], figures["device"]) == (True, [], "cpu")
    losses = [c for c in figures["checks"] if c["name"].startswith("losses")]
    cases = {(c["name"], c["network"], c["optimizer"]) for c in losses}
    assert len(cases) == len(losses) == 2 * 2 * 2
    assert all(c["worst"] == 0 for c in losses if c["name"] == "losses, float32")  # the CPU compared with itself
    assert all(0 < c["worst"] <= 5e-2 for c in losses if c["name"] == "losses, bfloat16")
    assert len(figures["checks"]) - len(losses) == 2 * 4  # state and losses, to the device and back, for each optimizer
    assert len(figures["speed"]) == 2 * 2
    for row in figures["speed"]:
        assert row.pop("peak_device_mib") is None
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in row if name not in ("network", "dtype"))
        assert row["transitions_per_s"] == pytest.approx(4 * row["updates_per_s"])
    assert [p["network"] for p in figures["profile"]] == ["nature", "small"]
    for profiled in figures["profile"]:
        assert len(profiled["longest"]) == 10
        assert "gaps" in profiled["note"]
        times = [row["us"] for row in profiled["longest"]]
        assert times == sorted(times, reverse=True)
        assert times[-1] > 0
        assert sum(row["share"] for row in profiled["longest"]) <= 1 + 1e-9
        assert any("conv" in row["name"] for row in profiled["longest"])


def test_a_closed_pipe_ends_it_with_141_and_no_message():
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--device", "cpu", "--quick"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
    process.stderr.close()

"""The device of a learner on a node of a cluster, which its process chooses there."""

from __future__ import annotations

import os

import pytest
import torch

from learner.learner import LearnerConfig
from qfleet.cluster.learner_worker import choose_device, niceness_warning
from rl.errors import RunFault

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds CUDA here")


def choose(device, gpus):
    """The device and the warning of a learner to which Ray has assigned ``gpus`` GPUs, on the node 10.0.0.2."""
    return choose_device(LearnerConfig(device=device), gpus, "10.0.0.2")


def test_without_a_gpu_from_ray_auto_and_cpu_are_the_cpu():
    assert choose("cpu", 0) == ("cpu", "")
    assert choose("auto", 0)[0] in ("cpu", "mps")


@without_cuda
def test_a_gpu_that_torch_does_not_find_is_reported_with_its_node():
    problem = f"Ray has a GPU on the node 10.0.0.2, but torch {torch.__version__} finds no CUDA there: "
    assert choose("auto", 1) == ("cpu", problem + "the learner trains on the CPU")
    with pytest.raises(RunFault) as caught:
        choose("cuda", 1)
    assert str(caught.value) == problem + "install a build of torch for CUDA, or write `learner.device` auto or cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_from_ray_is_used():
    assert choose("auto", 1) == ("cuda", "")
    assert choose("cuda", 1) == ("cuda", "")
    device, warning = choose("auto", 0)
    assert device == "cpu"
    assert warning.startswith("torch finds CUDA on the node 10.0.0.2, but Ray declares no GPU there: ")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has MPS")
def test_another_device_that_the_node_lacks_is_a_fault_that_names_it():
    with pytest.raises(RunFault, match=r"^the node 10.0.0.2 has no `learner.device` mps \(torch "):
        choose("mps", 0)


def test_a_low_priority_is_reported_with_what_to_do():
    child = os.fork()
    if not child:
        os.nice(3)
        nice, warning = os.getpriority(os.PRIO_PROCESS, 0), niceness_warning("10.0.0.2")
        told = (
            warning.startswith(f"the learner on 10.0.0.2 has niceness {nice}, ") and "RAY_worker_niceness=0" in warning
        )
        os._exit(0 if told else 1)
    assert os.waitpid(child, 0)[1] == 0

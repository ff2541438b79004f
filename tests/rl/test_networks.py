"""Networks: shapes, published sizes, the dueling head, normalization, seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl.errors import BadInput
from rl.networks import DuelingHead, NetworkConfig, check_network, make_network, prepare_for_acting, q_values
from rl.parameters import weights_of
from rl.types import ObservationSpec
from tests.conftest import SMALL

PIXELS = ObservationSpec((84, 84), "uint8", 4)
MLP = NetworkConfig(kind="mlp", hidden=(16,), dueling=False)


@pytest.mark.parametrize("kind", ["nature", "small"])
@pytest.mark.parametrize("dueling", [False, True])
def test_networks_map_pixels_to_action_values(kind, dueling):
    network = make_network(NetworkConfig(kind=kind, hidden=(32,), dueling=dueling), PIXELS, 6, 1)
    x = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    q = network(x)
    assert q.shape == (5, 6)
    assert q.dtype == torch.float32
    # the network scales pixels to [0, 1]
    scaled = network.torso[1:](torch.nn.functional.conv2d(x / 255.0, network.torso[0].weight, network.torso[0].bias, 4))
    torch.testing.assert_close(network.head(scaled), q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["nature", "small", "mlp"])
@pytest.mark.parametrize("dueling", [False, True])
def test_normalised_layers_have_mean_0_and_variance_1_before_their_relu(kind, dueling):
    network = make_network(NetworkConfig(kind, (32,), dueling, layer_norm=True), PIXELS, 6, 1)
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_hook(lambda m, _, y: seen.append(y.reshape(3, m.num_groups, -1).clone()))
    network(torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8))
    assert len(seen) == {"nature": 4, "small": 3, "mlp": 1}[kind]
    for y in seen:
        torch.testing.assert_close(y.mean(2), torch.zeros(y.shape[:2]), rtol=0, atol=1e-4)
        torch.testing.assert_close(y.var(2, correction=0), torch.ones(y.shape[:2]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["small", "mlp"])
def test_a_centered_network_subtracts_the_background_from_pixels(kind):
    plain, centered = (make_network(NetworkConfig(kind, (32,), center=c), PIXELS, 6, 1) for c in (False, True))
    background = torch.randint(0, 256, (4, 84, 84), dtype=torch.uint8)
    centered.background.copy_(background)
    x = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    expected = plain.head(plain.body(plain.torso(x.float() - background)))
    torch.testing.assert_close(centered(x), expected, rtol=1e-4, atol=1e-5)
    acts = prepare_for_acting(centered, "bfloat16")
    assert torch.equal(acts.background, background)
    torch.testing.assert_close(acts(x), expected, rtol=3e-2, atol=3e-2)


def test_networks_have_the_published_number_of_weights():
    count = lambda kind, hidden: sum(  # noqa: E731
        p.numel() for p in make_network(NetworkConfig(kind, (hidden,), False), PIXELS, 6, 1).parameters()
    )
    assert count("nature", 512) == 8_224 + 32_832 + 36_928 + 3136 * 512 + 512 + 512 * 6 + 6
    assert count("small", 256) == 4_112 + 8_224 + 2592 * 256 + 256 + 256 * 6 + 6


def test_the_dueling_head_centres_its_advantages():
    head = DuelingHead(4, 8, 3)
    x = torch.randn(6, 4)
    v, _ = torch.relu(head.body(x)).chunk(2, dim=1)
    torch.testing.assert_close(head(x).mean(dim=1, keepdim=True), head.value(v))


def test_a_network_that_cannot_take_the_observations_is_rejected():
    with pytest.raises(BadInput, match="mlp"):
        check_network(NetworkConfig(kind="nature"), SMALL)
    with pytest.raises(BadInput, match="NetworkConfig.center needs uint8 pixels"):
        check_network(NetworkConfig(kind="mlp", center=True), SMALL)


def test_the_weights_depend_on_the_seed_alone():
    torch.rand(7)
    a = weights_of(make_network(MLP, SMALL, 3, 5))
    b = weights_of(make_network(MLP, SMALL, 3, 5))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_only_convolutions_of_pixels_act_in_bfloat16():
    images = ObservationSpec((84, 84), "float32", 4)
    cases = [(PIXELS, "small", torch.bfloat16), (PIXELS, "mlp", torch.float32), (images, "small", torch.float32)]
    for spec, kind, dtype in (*cases, (SMALL, "mlp", torch.float32)):
        network = prepare_for_acting(make_network(NetworkConfig(kind, (16,)), spec, 3, 1), "bfloat16")
        assert {p.dtype for p in network.parameters()} == {dtype}
        assert q_values(network, np.zeros((2, *spec.shape), spec.dtype)).dtype == np.float32

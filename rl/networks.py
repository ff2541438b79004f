"""Q-networks: from observations [B, *observation] (uint8 pixels or float32) to action values, float32 [B, A]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rl.bounds import layers
from rl.errors import BadSetting
from rl.pixels import PixelConv, PixelScale
from rl.precision import Precision, pick_dtype
from rl.resuming import Rules, rules
from rl.types import Array, Float32, ObservationSpec


@dataclass(frozen=True)
class NetworkConfig:
    """The Q-network."""

    kind: Literal["nature", "small", "mlp"] = "nature"
    """nature: the CNN of Mnih et al. 2015; small: the CNN of Mnih et al. 2013; mlp: fully connected."""
    hidden: tuple[int, ...] = (512,)
    """Units of the fully connected layers (nature: 512; small: 256)."""
    dueling: bool = True
    """Separate value and advantage heads (Wang et al. 2016)."""
    layer_norm: bool = False
    """Layer normalization before each ReLU, over all units of the layer (Ba et al. 2016; Gallici et al. 2024, PQN)."""
    center: bool = False
    """Pixels only: subtract from each pixel its median over the learner's first batch. The static background becomes
    zero (LeCun et al. 1998, Efficient BackProp, section 4.3), and the first convolution skips it on a CPU."""

    on_resume: ClassVar[Rules] = rules(stays="kind hidden dueling layer_norm center")

    def __post_init__(self) -> None:
        layers(self, "hidden")
        if self.layer_norm and min(self.hidden) < 2:
            raise BadSetting(type(self), "layer_norm", "needs layers of at least 2 units: write a larger `hidden`")


class DuelingHead(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a') (Wang et al. 2016, equation 9)."""

    def __init__(self, features: int, hidden: int, actions: int, norm: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(features, 2 * hidden)  # both streams in one matrix product
        self.norm = nn.GroupNorm(2, 2 * hidden) if norm else nn.Identity()  # each stream separately
        self.value = nn.Linear(hidden, 1)
        self.advantage = nn.Linear(hidden, actions)

    def forward(self, x: Tensor) -> Tensor:
        """Action values, float32 [B, A], from features [B, D]."""
        v, a = torch.relu(self.norm(self.body(x))).chunk(2, dim=1)
        value: Tensor = self.value(v).float()
        advantage: Tensor = self.advantage(a).float()
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class QNetwork(nn.Module):
    """A torso, fully connected layers, and a plain or dueling head. The network scales pixels 0..255 to [0, 1]."""

    def __init__(self, config: NetworkConfig, spec: ObservationSpec, actions: int) -> None:
        super().__init__()
        pixels = spec.dtype == "uint8"
        self.convolves_pixels = pixels and config.kind != "mlp"
        background = torch.zeros(spec.shape, dtype=torch.uint8) if pixels and config.center else None
        self.torso = _torso(config, spec, background)
        with torch.no_grad():
            features = self.torso(torch.zeros(1, *spec.shape)).shape[1]
        *body, last = config.hidden
        layers: list[nn.Module] = []
        for units in body:
            layers += _layer(nn.Linear(features, units), config.layer_norm)
            features = units
        self.body = nn.Sequential(*layers)
        self.head: nn.Module
        if config.dueling:
            self.head = DuelingHead(features, last, actions, config.layer_norm)
        else:
            self.head = nn.Sequential(*_layer(nn.Linear(features, last), config.layer_norm), nn.Linear(last, actions))

    @property
    def background(self) -> Tensor | None:
        """The image that is subtracted from every observation, uint8 [C, H, W]. None unless `center` is set."""
        return getattr(self.torso[0], "background", None)

    def forward(self, observation: Tensor) -> Tensor:
        """Action values, float32 [B, A], of observations [B, *observation] (uint8 pixels or floats)."""
        return self.head(self.body(self.torso(observation))).float()  # type: ignore[no-any-return]


def prepare_for_acting(network: QNetwork, precision: Precision) -> QNetwork:
    """Put ``network`` into evaluation mode without gradients, for acting on the CPU. Returns the same network.

    If the network convolves pixels, its weights are converted to ``precision``, so that no step has to cast them.
    Other networks use float32.
    """
    dtype = pick_dtype(precision, torch.device("cpu")) if network.convolves_pixels else torch.float32
    return network.eval().requires_grad_(False).to(dtype)


def q_values(network: QNetwork, observation: Array) -> Float32:
    """Action values, float32 [N, A], of observations [N, *observation]. Both are numpy arrays. Computed on the CPU."""
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(observation)).numpy())


def _layer(layer: nn.Linear | nn.Conv2d, norm: bool) -> list[nn.Module]:
    """``layer`` and a ReLU. With ``norm``, a normalization over all channels and positions is between them."""
    units = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    relu = nn.ReLU(inplace=True)  # halves the memory traffic; no gradient needs the values before the ReLU
    return [layer, nn.GroupNorm(1, units), relu] if norm else [layer, relu]


def _torso(config: NetworkConfig, spec: ObservationSpec, background: Tensor | None) -> nn.Sequential:
    if config.kind == "mlp":
        return nn.Sequential(*([PixelScale(background)] if spec.dtype == "uint8" else []), nn.Flatten())
    channels = spec.shape[0]
    convolutions: list[nn.Conv2d] = [PixelConv(channels, 16, background), nn.Conv2d(16, 32, 4, stride=2)]
    if config.kind == "nature":
        convolutions = [
            PixelConv(channels, 32, background),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.Conv2d(64, 64, 3, stride=1),
        ]
    layers = [module for conv in convolutions for module in _layer(conv, config.layer_norm)]
    return nn.Sequential(*layers, nn.Flatten())


def check_network(config: NetworkConfig, spec: ObservationSpec) -> None:
    """Raise BadSetting if the configured network cannot take observations of ``spec``."""
    if config.center and spec.dtype != "uint8":
        message = f"needs uint8 pixels, but the environment's observations are {spec.dtype}: write `center: false`"
        raise BadSetting(NetworkConfig, "center", message)
    if config.kind != "mlp" and (len(spec.shape) != 3 or min(spec.shape[1:]) < 36):
        raise BadSetting(
            NetworkConfig,
            "kind",
            f"{config.kind!r} needs stacked frames of at least 36x36 pixels, but the environment's observations have "
            f"the shape {spec.shape}: write `kind: mlp`",
        )


def make_network(config: NetworkConfig, spec: ObservationSpec, actions: int, seed: int) -> QNetwork:
    """A `QNetwork` for ``actions`` actions with random weights from ``seed``.

    The state of torch's global random generator is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QNetwork(config, spec, actions)

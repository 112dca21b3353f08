"""A Gaussian policy over actions, and the value network beside it."""

import math

import torch
from torch import Tensor, nn


def mlp(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Two hidden layers of 64 tanh units; the last layer starts at zero, so the output does too.

    Only `generator` is drawn from: the global random state stays as it is.
    """
    sizes = (inputs, 64, 64, outputs)
    linears = [nn.Linear(sizes[i], sizes[i + 1], device="meta").to_empty(device="cpu") for i in range(3)]
    for linear in linears:
        nn.init.zeros_(linear.bias)
    for linear in linears[:-1]:
        nn.init.xavier_uniform_(linear.weight, nn.init.calculate_gain("tanh"), generator)
    nn.init.zeros_(linears[-1].weight)
    return nn.Sequential(linears[0], nn.Tanh(), linears[1], nn.Tanh(), linears[2])


class GaussianPolicy(nn.Module):
    """Actions u ~ N(mean(s), diag std^2): the mean a network of the observation s, the std the same everywhere.

    The bias of the network's last layer is the part of the mean that depends on nothing: it learns at a rate of its
    own. A new policy has mean 0, the neutral action.
    """

    def __init__(self, observation_size: int, action_size: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.mean = mlp(observation_size, action_size, generator)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(std)))

    def log_probability(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log-density (n,) of actions (n,A) given observations (n,O) or (O,)."""
        scaled = (actions - self.mean(observations)) / self.log_std.exp()
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """() nats."""
        return (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()

    def fast_parameters(self) -> list[nn.Parameter]:
        """The bias of the mean, and the standard deviation."""
        return [self.mean[-1].bias, self.log_std]

    def network_parameters(self) -> list[nn.Parameter]:
        """The others."""
        fast = set(self.fast_parameters())
        return [parameter for parameter in self.parameters() if parameter not in fast]

"""The Gaussian policy over actions, and the network that its mean and the value function use."""

import math

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers of 64 tanh units beside a linear path from input to output; path and output layer start at 0.

    The weights are drawn from `generator`; the global random state is not touched.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([_empty_linear(inputs, 64), _empty_linear(64, 64)])
        self.output = _empty_linear(64, outputs)
        self.trend = _empty_linear(inputs, outputs, bias=False)
        for name, parameter in self.named_parameters():
            if name.startswith("hidden") and name.endswith("weight"):
                nn.init.xavier_uniform_(parameter, nn.init.calculate_gain("tanh"), generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in self.hidden:
            hidden = torch.tanh(layer(hidden))
        outputs: Tensor = self.output(hidden) + self.trend(inputs)
        return outputs


def _empty_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Return a linear layer without initial weights, which does not draw from the global random state."""
    return nn.Linear(inputs, outputs, bias, device="meta").to_empty(device="cpu")


class GaussianPolicy(nn.Module):
    """Actions u ~ N(mean(s), diag std^2): the mean is a network of the observation s, the std does not depend on s.

    The bias of the network's output is the constant part of the mean, which learns at a rate of its own. A new policy
    has mean 0, the neutral action.
    """

    def __init__(self, observation_size: int, action_size: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.mean = MLP(observation_size, action_size, generator)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(std)))

    def log_probability(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return log-densities (n,) of actions (n,A) given observations (n,O) or (O,)."""
        scaled: Tensor = (actions - self.mean(observations)) / self.log_std.exp()
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Return the entropy of the policy, a scalar tensor in nats."""
        return (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()

    def fast_parameters(self) -> list[nn.Parameter]:
        """Return the bias of the mean and the log standard deviations, which learn at `controller.learning_rate`."""
        return [self.get_parameter("mean.output.bias"), self.log_std]

    def network_parameters(self) -> list[nn.Parameter]:
        """Return all parameters that are not in `fast_parameters`."""
        fast = set(self.fast_parameters())
        return [parameter for parameter in self.parameters() if parameter not in fast]

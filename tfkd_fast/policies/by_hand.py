"""The policy that `tfkd` plays by default, from numbers: `python -m tfkd_fast.policies.by_hand` writes its file.

The numbers are our choice, by comparisons of whole runs on training images of CIFAR-100 that no table of results uses
(docs/results/cifar100-mid.md).
"""

from importlib.resources import files
from pathlib import Path

import torch

from tfkd_fast.methods import METHODS
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.steering.control.gated_policy import GatedPolicy, observed_policy
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES
from tfkd_fast.steering.control.policy import MLP
from tfkd_fast.steering.control.policy_file import policy_bytes
from tfkd_fast.steering.targets import build_mixture

NAME: str = METHODS["tfkd"].preset["controller"]["policy"]
"""What `controller.policy` calls it."""
TARGET = ControlledTargetsSettings.model_validate(METHODS["tfkd"].preset).target
"""The target that it steers: its action is the true mass, then share and temperature of the memory."""
COURSE = ((0.55, 0.05), (0.55, 0.74), (0.997, 0.12))
"""True mass and share of the memory at the beginning, at the switch and at the end of the run."""
SWITCH, THRESHOLD, LATEST = 0.72, 0.10, 0.6
"""Share of the run at the switch; generalisation gap below which the target is the neutral one; share of the run from
which on it stays so: the learning rate of a one-cycle run is half of its largest there."""


def default_policy() -> bytes:
    """Return the file of the policy."""
    space, generator = build_mixture(TARGET, 10, None), torch.Generator().manual_seed(0)
    bias = float(torch.logit(torch.tensor(TARGET.source_share)))
    actions = []
    for mass, share in COURSE:
        action = space.action_for_true_mass(mass)
        action[1] = float(torch.logit(torch.tensor(share))) - bias
        actions.append(action)
    policy = observed_policy(space.action_size, generator)
    value = MLP(PROGRESS_ENTRIES + space.action_size, 1, generator)
    start, middle, end = actions
    GatedPolicy(start, middle, end, SWITCH, THRESHOLD, LATEST).write_into(policy)
    return policy_bytes("by-hand", policy, value, space)


if __name__ == "__main__":
    Path(str(files("tfkd_fast.recipes") / "policies" / f"{NAME}.safetensors")).write_bytes(default_policy())

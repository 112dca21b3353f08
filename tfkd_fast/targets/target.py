"""What a target family is."""

from abc import ABC, abstractmethod

from torch import Tensor

from tfkd_fast.errors import UserError


class Target(ABC):
    """A family of class tables, steered by an action of `action_size` numbers.

    The neutral action, all zeros, gives label smoothing with true-class mass 0.9 in every family that takes an action.
    """

    family: str
    """The name in the recipe."""
    action_size: int
    """A: how many numbers steer the table; 0 for a constant target."""
    uses_similarity: bool = False
    """Whether the tables depend on the class similarities."""

    @abstractmethod
    def tables(self, actions: Tensor, similarity: Tensor) -> Tensor:
        """Row-stochastic class tables, one a candidate: row y is the target distribution that teaches label y.

        Args:
            actions: (P,A), on the device of `similarity`.
            similarity: (P,C,C) floating point; row y ranks the classes by how much label y looks like them.

        Returns:
            (P,C,C) in the dtype and on the device of `similarity`.
        """

    def action_for_true_mass(self, mass: float) -> Tensor:
        """The action (A,) float32 that gives every true class `mass` and is otherwise neutral.

        Raises:
            UserError: if no action does.
        """
        raise UserError(
            f"the {self.family} target has a fixed true-class mass, so no schedule can set it: "
            "choose target.family scalar, rank-binned or full-matrix"
        )

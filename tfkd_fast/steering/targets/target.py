"""What a target family is."""

from abc import ABC, abstractmethod

from torch import Tensor

from tfkd_fast.errors import UserError


class ActionSpace:
    """What a controller needs to know of that which it steers."""

    family: str
    """The name in the recipe."""
    action_names: tuple[str, ...] = ()
    """What each of A numbers steers; none where there is nothing to set. All zeros is the neutral action."""

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.action_names)

    def action_for_true_mass(self, mass: float) -> Tensor:
        """The action (A,) float32 that gives every true class `mass` and is otherwise neutral.

        Raises:
            UserError: if no action does.
        """
        raise UserError(
            f"the {self.family} target has a fixed true-class mass, so no schedule can set it: "
            "choose target.family scalar, rank-binned or full-matrix"
        )


class Target(ActionSpace, ABC):
    """A family of class tables, steered by an action of A numbers.

    The neutral action gives label smoothing with true-class mass 0.9 in every family that takes an action.
    """

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

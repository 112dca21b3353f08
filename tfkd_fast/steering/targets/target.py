"""The interface of target families and of what a controller steers."""

from abc import ABC, abstractmethod

from torch import Tensor

from tfkd_fast.errors import UserError


class ActionSpace:
    """The space of a controller's actions."""

    family: str
    """Name of the target family in the recipe."""
    action_names: tuple[str, ...] = ()
    """A names, one for each number of an action; none for a target without one. All zeros is the neutral action."""

    @property
    def action_size(self) -> int:
        """The number A of numbers in an action."""
        return len(self.action_names)

    def action_for_true_mass(self, mass: float) -> Tensor:
        """Return the action (A,) float32 that gives every true class `mass` and is otherwise neutral.

        Raises:
            UserError: the target has no such action.
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
        """Return one row-stochastic class table for each candidate: row y is the target distribution for label y.

        Args:
            actions: (P,A), on the device of `similarity`.
            similarity: (P,C,C) floating point; row y ranks the classes by their similarity to label y.

        Returns:
            (P,C,C) in the dtype and on the device of `similarity`.
        """

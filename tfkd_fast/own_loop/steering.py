"""Several candidates in a loop of one's own: which of them train, and whose state goes on."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from tfkd_fast.errors import UserError, shorten
from tfkd_fast.own_loop.criterion import Criterion, EpochReport


class Stateful(Protocol):
    """An object whose state can be read and replaced: a network, an optimiser, a schedule, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


Parts = TypeVar("Parts", bound=Sequence[Stateful])
"""A candidate: a tuple of a network, an optimiser, and whatever else has a state."""


class Steering(Generic[Parts]):
    """Candidates of one student under a criterion that selects among them, as multi-ranking selection does.

    A candidate is all that a copy of it needs: its network, its optimiser, and whatever else has a state. They start as
    copies of the first one, unless the method wants different weights. Where an interval ends, the state of those that
    live on is copied into the others.
    """

    def __init__(self, criterion: Criterion, candidates: Iterable[Parts]) -> None:
        """
        Args:
            criterion: of a method that trains several candidates, such as tfkd-mrs.
            candidates: as many as `criterion.most_candidates`, each a tuple of parts of the same kinds.

        Raises:
            UserError: for another number of candidates, for one that is no tuple of parts with a state, and for two
                that share a part.
        """
        self.criterion = criterion
        """The loss of every candidate: `criterion(logits, labels, candidate=k)`."""
        self.candidates = list(candidates)
        """The parts of each candidate. At the end of training, the first candidate is the student."""
        wanted = criterion.most_candidates
        if len(self.candidates) != wanted:
            raise UserError(f"method {criterion.method!r} trains {wanted} candidates here: got {len(self.candidates)}")
        for candidate in self.candidates:
            if not isinstance(candidate, Sequence) or not all(hasattr(part, "state_dict") for part in candidate):
                raise UserError(
                    "a candidate is a tuple of a network, an optimiser, and whatever else has a state_dict(), as in "
                    f"(network, optimizer): got {shorten(candidate)}"
                )
        parts = [part for candidate in self.candidates for part in candidate]
        if len({id(part) for part in parts}) < len(parts):
            raise UserError("two candidates share a network, an optimiser or another part: give each its own")
        if not criterion.own_weights:
            self._continue_from((0,))

    def training(self) -> Iterator[tuple[int, Parts]]:
        """Yield number and parts of each candidate that trains in the present epoch."""
        yield from list(enumerate(self.candidates))[: self.criterion.candidates]

    def end_epoch(
        self, logits: Sequence[Tensor] | Tensor, labels: Tensor, *, averaged: Sequence[Tensor] | Tensor | None = None
    ) -> EpochReport:
        """End an epoch as `Criterion.end_epoch` does, and copy the state of survivors where an interval ends.

        Args:
            logits: (n,N,C) or a sequence of (N,C), the logits of the candidates that trained for the held-out images,
                in evaluation mode.
            labels: (N,) int64.
            averaged: the same of weights averaged over the steps of the epoch.

        Raises:
            UserError: see `Criterion.end_epoch`.
        """
        report = self.criterion.end_epoch(logits, labels, averaged=averaged)
        if report.survivors is not None:
            self._continue_from(report.survivors)
        return report

    def _continue_from(self, survivors: Sequence[int]) -> None:
        """Copy the state of survivor s modulo their number into candidate s."""
        parents = [survivors[slot % len(survivors)] for slot in range(len(self.candidates))]
        copied = {parent for slot, parent in enumerate(parents) if slot != parent}
        states = {parent: copy.deepcopy(_states(self.candidates[parent])) for parent in copied}
        for slot, parent in enumerate(parents):
            if slot != parent:
                _load(self.candidates[slot], copy.deepcopy(states[parent]))

    def state_dict(self) -> dict[str, Any]:
        """The state of the criterion and of every part of every candidate, with references to their tensors."""
        return {"criterion": self.criterion.state_dict(), "candidates": [_states(each) for each in self.candidates]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, whose tensors are copied.

        Raises:
            UserError: the state is of another number of candidates, or of another criterion.
        """
        if len(state["candidates"]) != len(self.candidates):
            raise UserError(f"the state has {len(state['candidates'])} candidates, not {len(self.candidates)}")
        self.criterion.load_state_dict(state["criterion"])
        for candidate, states in zip(self.candidates, state["candidates"], strict=True):
            _load(candidate, copy.deepcopy(states))


def _states(candidate: Sequence[Stateful]) -> list[dict[str, Any]]:
    return [part.state_dict() for part in candidate]


def _load(candidate: Sequence[Stateful], states: Sequence[dict[str, Any]]) -> None:
    for part, state in zip(candidate, states, strict=True):
        part.load_state_dict(state)

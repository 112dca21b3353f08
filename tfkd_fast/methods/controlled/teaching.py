"""The targets of the candidates of a population: a class table each, mixed with their own predictions."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, StepBatch
from tfkd_fast.methods.base.differences import derivatives_along
from tfkd_fast.steering import targets
from tfkd_fast.steering.targets import InstanceMemory, RankBinnedTargetSettings, SimilarityMemory, TargetSettings

LONGEST_WARMUP = 0.25
"""The warm-up takes at most this share of the run, so that short runs are controlled, too (our choice)."""

PERTURBATION = 1e-4
"""Step of the central difference of a class table in one number of an action."""


def target_needs(settings: TargetSettings) -> Needs:
    """The needs of a method that trains with this target."""
    remembers = "memory" in settings.sources
    ranks_classes = isinstance(settings, RankBinnedTargetSettings)  # by the predictions for images of each
    others = tuple(source for source in settings.sources if source != "memory")
    return Needs(
        joint_steps="peers" in settings.sources,
        slow_decay=settings.slow_self_decay if "slow-self" in settings.sources else None,
        indices=remembers,
        without_memory=("target", "sources", others) if remembers and not ranks_classes else None,
        mixing=not remembers and not ranks_classes,
    )


def warmup_epochs(settings: TargetSettings, wanted: int, epochs: int) -> int:
    """Epochs of one-hot labels at the start of a run of `epochs`, so that the class similarities mean something.

    None are needed by a target that does not depend on what the student has learned.
    """
    return min(wanted, int(LONGEST_WARMUP * epochs)) if settings.refers_to_student else 0


class Teaching:
    """The loss of P candidates under the actions that were set last.

    With shares s of the class table q and of each source r, temperature T, for logits z and p = softmax(z):

        s_0 KL(q[y] || p) + sum_r s_r T_r^2 KL(softmax(r/T_r) || softmax(z/T_r))

    All tensors keep their place in memory: a captured step reads what was written into them last.
    """

    def __init__(self, settings: TargetSettings, context: Context, candidates: int) -> None:
        classes, device = context.num_classes, context.device
        self.space = targets.build_mixture(settings, classes, context.superclasses)
        self._target = self.space.target
        self._candidates = candidates
        self._device = device
        decay = settings.memory_decay if isinstance(settings, RankBinnedTargetSettings) else 0.0  # others use no memory
        self.similarity = SimilarityMemory(candidates, classes, decay, device)
        remembered = context.num_images if "memory" in self.space.sources else 0
        self.instances = InstanceMemory(candidates, remembered, classes, device)
        """The predictions for single images that the target remembers; empty where it remembers none."""
        self._one_hot = targets.one_hot_table(classes).to(device)
        self.tables = self._one_hot.repeat(candidates, 1, 1)
        """(P,C,C): the class table of each candidate."""
        self.shares = torch.zeros(candidates, 1 + len(self.space.sources), device=device)
        """(P,1+K): the share of the class table, then of each source."""
        self.temperatures = torch.ones(candidates, len(self.space.sources), device=device)
        """(P,K): the temperature of each source."""
        self._actions: Tensor | None = None
        self.set_actions(None, candidates)

    def set_actions(self, actions: Tensor | None, candidates: int) -> None:
        """Set the targets of the first candidates by actions (candidates,A) float32; None is the one-hot label."""
        self._actions = actions
        self._active = candidates
        self._refresh_tables()
        shares, temperatures = self.shares[:candidates], self.temperatures[:candidates]
        if actions is None:
            shares.copy_(torch.eye(1, self.shares.shape[1], device=self._device).expand_as(shares))
            return
        shares.copy_(self.space.shares(actions))
        temperatures.copy_(self.space.temperatures(actions))
        if "peers" in self.space.sources:
            peers = self.space.sources.index("peers")
            temperatures[:, peers] = temperatures[:, peers].log().mean().exp()  # they share their mean prediction
            if candidates == 1:  # there is nobody to learn from
                shares[:, 1 + peers] = 0.0
                shares.div_(shares.sum(dim=1, keepdim=True))

    @contextmanager
    def cooldown(self) -> Iterator[None]:
        """Context manager in which all candidates have the target of the neutral action, so that what they differ in
        after it they differed in before. On exit memories and actions are restored."""
        actions, candidates = self._actions, self._active
        memories = copy.deepcopy(self.state_dict(candidates))
        self.set_actions(torch.zeros(candidates, self.space.action_size), candidates)
        try:
            yield
        finally:
            self.load_state_dict(memories)
            self.set_actions(actions, candidates)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        """The loss of n candidates with logits (n,B,C); see `Method.loss`."""
        candidates = batch.candidates
        similarity = self.similarity.accumulator[candidates] if self._target.uses_similarity else None
        loss, statistics = ops.soft_target_loss_with_stats(logits, batch.labels, self.tables[candidates], similarity)
        if not self.space.sources:
            return Loss({"target": loss}, statistics)
        shares, temperatures = self.shares[candidates].unbind(1), self.temperatures[candidates].unbind(1)
        terms = {"target": shares[0] * loss}
        for source, share, temperature in zip(self.space.sources, shares[1:], temperatures, strict=True):
            terms[source] = share * self._source_loss(source, logits, batch, temperature)
        return Loss(terms, statistics)

    def _source_loss(self, source: str, logits: Tensor, batch: StepBatch, temperature: Tensor) -> Tensor:
        """The loss T^2 KL to one source, (n,)."""
        if source == "peers":
            return ops.peer_loss(logits, batch.labels, temperature=temperature[0], alpha=1.0)
        if source == "memory":
            teacher = self.instances.exchange(batch.candidates, batch.indices, logits)
        else:
            teacher = batch.need_slow_logits()
        return ops.distillation_loss(logits, teacher.unsqueeze(1), temperature=temperature)

    def end_epoch(self) -> None:
        """Update the class similarities, which move with the student, and the tables that are built on their ranks."""
        if self._target.uses_similarity:
            self.similarity.end_epoch()
            self._refresh_tables()

    def continue_from(self, survivors: Sequence[int]) -> None:
        """Copy the memories of survivor s modulo their number into slot s."""
        parents = [survivors[slot % len(survivors)] for slot in range(self._candidates)]
        self.similarity.continue_from(parents)
        self.instances.continue_from(parents)

    def average(self, slots: Sequence[int], into: int) -> None:
        """Give one candidate the mean memories of several."""
        for tensor in self.candidate_tensors().values():
            tensor[into] = tensor[list(slots)].float().mean(dim=0).to(tensor.dtype)

    def true_mass(self, slot: int) -> float:
        """The mass of the true class in one candidate's class table, mean over the classes."""
        return float(self.tables[slot].diagonal().mean())

    def describe(self) -> list[dict[str, Any]]:
        """The target of each candidate, for the log."""
        n = self._active
        summaries = targets.describe(self.tables[:n], self.similarity.similarity[:n])
        sources = [
            {
                name: {"share": share, "temperature": temperature}
                for name, share, temperature in zip(self.space.sources, shares[1:], temperatures, strict=True)
            }
            for shares, temperatures in zip(self.shares[:n].tolist(), self.temperatures[:n].tolist(), strict=True)
        ]
        return [asdict(summary) | {"sources": mixture} for summary, mixture in zip(summaries, sources, strict=True)]

    def action_gradient(self, slot: int, influence: Tensor) -> Tensor:
        """The gradient of the held-out loss in the action of one candidate, by central differences in float64.

        Tables are cheap, and not every family has derivatives. Entries of the action that set shares and temperatures
        of sources get 0: they are not differentiated.

        Args:
            slot: the number of the candidate.
            influence: (C,C) float64 on the CPU, see `IntervalResult.influence`.

        Returns:
            (A,) float32 on the CPU: sum over y, c of influence[y,c] times the derivative of table[y,c] in the action,
            times the share of the class table.

        Raises:
            ValueError: for the one-hot label, which no action sets.
        """
        if self._actions is None:
            raise ValueError("the candidates are taught with the one-hot label, and no action leads there")
        here = self._actions[slot].cpu().double()
        action = here.clone()
        similarity = self.similarity.similarity[slot].cpu().double().unsqueeze(0)

        def loss() -> list[Tensor]:
            tables = self._target.tables(self.space.class_actions(action.unsqueeze(0)), similarity)
            return [(tables * influence).sum()]

        units = torch.eye(len(here), dtype=here.dtype)
        change = [derivatives_along([unit], [action], [here], loss, PERTURBATION)[0] for unit in units]
        return (self.shares[slot, 0].cpu() * torch.stack(change)).float()

    def candidate_tensors(self) -> dict[str, Tensor]:
        """The memories of each candidate, see `Method.candidate_tensors`."""
        return {
            "similarity": self.similarity.similarity,
            "similarity_sums": self.similarity.accumulator,
            "instances": self.instances.logits,
        }

    def state_dict(self, active: int) -> dict[str, Any]:
        return {
            "similarity": self.similarity.state_dict(),
            "instances": self.instances.state_dict(active),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the memories; the caller has to set the actions again."""
        self.similarity.load_state_dict(state["similarity"])
        self.instances.load_state_dict(state["instances"])

    def _refresh_tables(self) -> None:
        """Compute the table of each candidate from its action and its own similarities."""
        tables = self.tables[: self._active]
        if self._actions is None:
            tables.copy_(self._one_hot.expand_as(tables))
        else:
            actions = self.space.class_actions(self._actions.to(self._device))
            tables.copy_(self._target.tables(actions, self.similarity.similarity[: self._active]))

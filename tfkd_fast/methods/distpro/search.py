"""The search of DistPro: weights of pathways follow the gradient of the held-out loss through the training step."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.methods.base import Context, Needs, StepBatch, TrainingStep
from tfkd_fast.methods.base.differences import derivatives_along
from tfkd_fast.methods.distpro.pathways import Pathway, biased_softmax, without_small
from tfkd_fast.methods.distpro.process import FILE, Process
from tfkd_fast.methods.distpro.student import PathwaysSettings, PathwayStudent, context_pathways
from tfkd_fast.methods.taught.student import TaughtSettings
from tfkd_fast.settings import LARGEST, Settings

BETAS = (0.5, 0.999)
"""Decay rates of Adam (the authors' code)."""

LONGEST_STEP = 0.5
"""The most that alpha of a pathway moves at once (our choice)."""


class SearchSettings(Settings):
    """The `[search]` table."""

    learning_rate: float = Field(default=0.01, gt=0, le=LARGEST)
    """Learning rate of Adam for alpha, from which the weights of the pathways follow (our choice; the authors have 0.1,
    at which noise alone leaves one pathway with nearly all of the weight)."""
    normalization: Literal["softmax", "biased-softmax"] = "softmax"
    """How weights follow from alpha: their softmax (the authors' command), or one in which the label has a place beside
    the pathways, so that the search also learns how much they weigh together."""
    record_every: int = Field(default=50, ge=1, le=1_000_000)
    """Training steps from one record of alpha to the next (our choice)."""
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the moving average over the records of alpha (our choice)."""


class DistProSearchSettings(PathwaysSettings):
    """The tables of the search of DistPro."""

    search: SearchSettings = SearchSettings()
    """How the weights of the pathways are learned and recorded."""


class DistProSearch(PathwayStudent):
    """The search of DistPro: before every training step alpha takes a step of its own, by second-order bilevel
    optimisation as in DARTS.

    There is no first order: the held-out loss has no distillation term and depends on the weights of the pathways only
    through the training step, so that a first-order gradient would always be 0.

    The outer problem is the cross-entropy of held-out images after the step, the inner one the step itself. A pathway
    that is skipped is judged all the same, forward only, so that it comes back when it would help (our choice).
    """

    FILES: ClassVar = (FILE,)

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), holdout=True, look_ahead=True)

    def __init__(self, settings: DistProSearchSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.connect(context_pathways(context, settings.pathways))
        self._skip_below = settings.pathways.skip_below
        self.alpha = LearnedAlpha(settings.search, len(self.pathways))
        self.measured = torch.empty(0)
        """(n,K): losses of the pathways in the last call of `loss`, without gradient."""
        self._apply()

    def _apply(self) -> None:
        self.set_weights(without_small(self.alpha.shares(), self._skip_below))

    def pathway_losses(self, batch: StepBatch) -> Tensor:
        losses = super().pathway_losses(batch)
        self.measured = losses.detach()
        return losses

    def before_step(self, step: TrainingStep) -> None:
        def all_losses() -> Tensor:
            computed, self.computed = self.computed, list(range(len(self.pathways)))
            step.loss()
            self.computed = computed
            return self.measured[0]

        self.alpha.learn(influences(step, all_losses).cpu())
        self._apply()

    def files(self) -> dict[str, bytes]:
        """The file of the process, for the method distpro."""
        process = self.alpha.process(self.pathways)
        return {FILE: process.to_bytes(self.context.teachers[0].model, self.context.model)}

    def state_dict(self) -> dict[str, Any]:
        return self.alpha.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alpha.load_state_dict(state)
        self._apply()


def influences(step: TrainingStep, pathway_losses: Callable[[], Tensor]) -> Tensor:
    """The derivatives (K,) of the held-out loss after the step in the weight of each pathway.

    The training loss is CE + sum_k g_k H_k, so the step moves the student by -lr g_k grad H_k on account of pathway k.
    With d, the gradient of the held-out loss after the step, the answer is -lr <d, grad H_k>: a central difference of
    H_k along d at the weights before the step, which needs no backward pass. Nesterov's momentum counts a gradient
    1 + momentum times. Connectors take no part in the held-out loss, so d has nothing for them.

    Source: Deng et al., ECCV 2022, by the second-order approximation of DARTS (Liu et al., ICLR 2019, section 2.3).

    Args:
        pathway_losses: H (K,) by the present weights; called without gradient.
    """
    count = sum(1 for _ in step.student.parameters())
    weights, momenta = step.weights[:count], step.momenta[:count]
    gain = step.learning_rate * (1.0 + step.momentum * step.nesterov)
    with step.rollback():
        here = [weight.detach().clone() for weight in weights]
        gradient = torch.autograd.grad(step.loss(), weights, materialize_grads=True)
        with torch.no_grad():
            update = torch._foreach_add(gradient, weights, alpha=step.weight_decay)
            torch._foreach_mul_(update, gain)
            again = step.momentum**2 if step.nesterov else step.momentum
            torch._foreach_add_(update, momenta, alpha=step.learning_rate * again)
            torch._foreach_sub_(weights, update)
        held_out = step.holdout()
        loss = F.cross_entropy(step.student(held_out.images), held_out.labels)
        direction = torch.autograd.grad(loss, weights, materialize_grads=True)
        with torch.no_grad():
            (slopes,) = derivatives_along(direction, weights, here, lambda: [pathway_losses()])
            return -gain * slopes


class LearnedAlpha:
    """The numbers alpha of K pathways, ones at first and moved by Adam, and the process they went through; on the
    CPU."""

    def __init__(self, settings: SearchSettings, pathways: int) -> None:
        self._settings = settings
        self._alpha = nn.Parameter(torch.ones(pathways))
        self._optimizer = torch.optim.Adam([self._alpha], settings.learning_rate, BETAS)
        self._steps = 0
        self._recorded_steps: list[int] = []
        self._recorded: list[Tensor] = []  # (K,) each, smoothed

    @property
    def value(self) -> Tensor:
        """(K,) float32: the present numbers."""
        return self._alpha.detach()

    def shares(self) -> Tensor:
        """(K,) float32: the shares of the pathways by the present numbers, without gradient."""
        return self._normalize(self.value)

    def _normalize(self, alpha: Tensor) -> Tensor:
        biased = self._settings.normalization == "biased-softmax"
        return biased_softmax(alpha) if biased else torch.softmax(alpha, dim=-1)

    def learn(self, influences: Tensor) -> None:
        """Take a step of Adam against influences (K,) of the shares; a step that is not finite, of a student that
        diverged, is skipped.

        A softmax does not say how large all alpha are together, and a replay asks for that: they are kept at the sum of
        exponentials that they began with (our choice), where a biased softmax is K / (K + 1) times the softmax.
        """
        if bool(influences.isfinite().all()):
            before = self.value.clone()
            self._optimizer.zero_grad()
            self._normalize(self._alpha).backward(influences)
            self._optimizer.step()
            with torch.no_grad():
                alpha = before + (self.value - before).clamp(-LONGEST_STEP, LONGEST_STEP)
                if self._settings.normalization == "softmax":
                    alpha += 1.0 + math.log(len(alpha)) - alpha.logsumexp(-1)
                self._alpha.copy_(alpha)
        if self._steps % self._settings.record_every == 0:
            self._recorded_steps.append(self._steps)
            self._recorded.append(self._smooth())
        self._steps += 1

    def _smooth(self) -> Tensor:
        if not self._recorded:
            return self.value.clone()
        return self._settings.smoothing * self._recorded[-1] + (1.0 - self._settings.smoothing) * self.value

    def process(self, pathways: tuple[Pathway, ...]) -> Process:
        """The process of the steps so far, stretched over a whole run."""
        times = torch.tensor([*self._recorded_steps, self._steps], dtype=torch.float64) / self._steps
        return Process(pathways, times, torch.stack([*self._recorded, self._smooth()]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "alpha": self.value.clone(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "steps": self._steps,
            "recorded_steps": list(self._recorded_steps),
            "recorded": [alpha.clone() for alpha in self._recorded],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self._alpha.copy_(state["alpha"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._steps, self._recorded_steps = state["steps"], list(state["recorded_steps"])
        self._recorded = list(state["recorded"])

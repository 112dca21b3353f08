"""What candidates are taught with: the loss of a mixture in float64, written out, and how the table moves."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tables import make_table
from tfkd_fast.methods import Context
from tfkd_fast.methods.base import StepBatch
from tfkd_fast.methods.controlled.teaching import Teaching
from tfkd_fast.steering.targets import TargetSettings

CLASSES, IMAGES, BATCH, CANDIDATES = 5, 12, 7, 3
SOURCES = ("peers", "memory", "slow-self")
CPU = torch.device("cpu")


def build(sources: tuple[str, ...] = SOURCES, family: str = "scalar", candidates: int = CANDIDATES) -> Teaching:
    mixed = {"sources": sources, "source_share": 0.2, "source_temperature": 1.7} if sources else {}
    settings = make_table(TargetSettings, family=family, **mixed)
    superclasses = {"even": (0, 2, 4), "odd": (1, 3)}
    context = Context(CLASSES, IMAGES, 10, 0, CPU, lambda epoch: 1.0, superclasses)
    return Teaching(settings, context, candidates)


def actions_for(teaching: Teaching, candidates: int = CANDIDATES) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return 1.5 * torch.randn(candidates, teaching.space.action_size, generator=generator)


def random_step(seed: int, candidates: int = CANDIDATES) -> tuple[Tensor, StepBatch]:
    """Float64 logits (P,B,C) and a batch that all candidates see."""
    generator = torch.Generator().manual_seed(seed)
    shape = (candidates, BATCH, CLASSES)
    logits = (2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    slow_logits = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator).expand(candidates, -1)
    indices = torch.randperm(IMAGES, generator=generator)[:BATCH].expand(candidates, -1)
    return logits, StepBatch(labels, indices, slow_logits=slow_logits)


def kl(teacher: Tensor, logits: Tensor) -> Tensor:
    """KL(teacher || softmax(logits)), mean over the batch, for distributions without zeros."""
    return (teacher * (teacher.log() - torch.softmax(logits, -1).log())).sum(-1).mean()


def mixed_loss(
    teaching: Teaching, actions: Tensor, logits: Tensor, batch: StepBatch, remembered: Tensor
) -> list[Tensor]:
    """One loss a candidate, from the formulas alone; `remembered` (P,N,C)."""
    low, high, size = 0.5, 0.999, 1  # of the scalar target
    peers_temperatures = [1.7 * 2 ** (float(action[size + 1]) / 2) for action in actions]
    shared = math.prod(peers_temperatures) ** (1 / len(actions))
    mean = torch.stack([torch.softmax(z / shared, -1) for z in logits.detach()]).mean(0)
    losses = []
    for slot, action in enumerate(actions.tolist()):
        weights = [1.0] + [math.exp(u + math.log(0.2 / 0.4)) for u in action[size::2]]
        if len(actions) == 1:
            weights[1] = 0.0  # no peers
        shares = [weight / sum(weights) for weight in weights]
        _, memory_temperature, slow_temperature = (1.7 * 2 ** (u / 2) for u in action[size + 1 :: 2])
        neutral = (0.9 - low) / (high - low)
        mass = low + (high - low) / (1 + math.exp(-action[0] - math.log(neutral / (1 - neutral))))
        table = torch.full((CLASSES, CLASSES), (1 - mass) / (CLASSES - 1), dtype=torch.float64).fill_diagonal_(mass)
        teachers = [
            (mean, shared),
            (torch.softmax(remembered[slot, batch.indices[slot]] / memory_temperature, -1), memory_temperature),
            (torch.softmax(batch.slow_logits[slot] / slow_temperature, -1), slow_temperature),
        ]
        loss = shares[0] * kl(table[batch.labels[slot]], logits[slot])
        for share, (teacher, temperature) in zip(shares[1:], teachers, strict=True):
            loss = loss + share * temperature**2 * kl(teacher, logits[slot] / temperature)
        losses.append(loss)
    return losses


@pytest.mark.parametrize("candidates", [3, 1])
def test_the_loss_is_the_weighted_sum_of_its_divergences(candidates: int) -> None:
    """Three steps, so that the memory holds something for some of the samples."""
    teaching = build(candidates=candidates)
    actions = actions_for(teaching, candidates)
    teaching.set_actions(actions, candidates)
    remembered = torch.zeros(candidates, IMAGES, CLASSES, dtype=torch.float64)
    for seed in range(3):
        logits, batch = random_step(seed, candidates)
        loss = teaching.loss(logits, batch)
        losses, statistics = loss.total, loss.statistics
        expected = torch.stack(mixed_loss(teaching, actions, logits, batch, remembered))
        # shares, temperatures and tables are float32: a few roundings of 6e-8 in each factor of a loss of order 1,
        # and a temperature enters a logit of up to 10 whose exponential counts
        close = {"rtol": 2e-6, "atol": 2e-6}
        torch.testing.assert_close(losses, expected, **close)
        (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected.sum(), logits)
        torch.testing.assert_close(gradient, wanted, rtol=2e-6, atol=2e-6 / BATCH)
        assert statistics.correct.tolist() == (logits.argmax(-1) == batch.labels).sum(-1).tolist()
        for slot in range(candidates):
            remembered[slot, batch.indices[slot]] = logits[slot].detach().half().double()


def test_without_sources_it_is_the_class_table_alone() -> None:
    teaching = build(())
    teaching.set_actions(actions_for(teaching), CANDIDATES)
    logits, batch = random_step(0)
    losses = teaching.loss(logits, batch).total
    for slot in range(CANDIDATES):
        mass = teaching.true_mass(slot)
        targets = torch.full((BATCH, CLASSES), (1 - mass) / (CLASSES - 1), dtype=torch.float64)
        targets.scatter_(1, batch.labels[slot].unsqueeze(1), mass)
        torch.testing.assert_close(losses[slot], kl(targets, logits[slot]), rtol=1e-6, atol=1e-6)  # a float32 table


def test_a_candidate_alone_is_taught_as_in_the_group_where_no_peers_take_part() -> None:
    together, alone = build(("memory", "slow-self")), build(("memory", "slow-self"))
    for teaching in (together, alone):
        teaching.set_actions(actions_for(teaching), CANDIDATES)
    for seed in range(2):
        logits, batch = random_step(seed)
        expected = together.loss(logits, batch).total
        for slot in range(CANDIDATES):
            own = slice(slot, slot + 1)
            shown = StepBatch(batch.labels[own], batch.indices[own], slot, slow_logits=batch.slow_logits[own])
            loss = alone.loss(logits[own], shown).total
            torch.testing.assert_close(loss, expected[own], rtol=1e-12, atol=1e-12)


def test_peers_share_one_temperature_and_keep_their_shares() -> None:
    teaching = build()
    actions = actions_for(teaching)
    teaching.set_actions(actions, CANDIDATES)
    described = [candidate["sources"] for candidate in teaching.describe()]
    shared = [sources["peers"]["temperature"] for sources in described]
    own = teaching.space.temperatures(actions)
    assert shared == pytest.approx([float(own[:, 0].double().log().mean().exp())] * 3, rel=1e-6)
    for slot, sources in enumerate(described):
        assert list(sources) == list(SOURCES)
        assert [sources[name]["share"] for name in SOURCES] == teaching.space.shares(actions)[slot, 1:].tolist()
        others = [sources[name]["temperature"] for name in SOURCES[1:]]
        assert others == own[slot, 1:].tolist()


def test_without_peers_their_share_goes_to_the_others_in_proportion() -> None:
    teaching = build()
    actions = actions_for(teaching)[:1]
    teaching.set_actions(actions, 1)
    (candidate,) = teaching.describe()
    shares = [candidate["sources"][name]["share"] for name in SOURCES]
    full = teaching.space.shares(actions)[0].double()
    assert shares[0] == 0.0
    assert shares[1:] == pytest.approx((full[2:] / (1 - full[1])).tolist(), rel=1e-6)
    teaching.set_actions(actions_for(teaching), CANDIDATES)  # and it comes back with the others
    assert teaching.describe()[0]["sources"]["peers"]["share"] == pytest.approx(full[1].item())


@pytest.mark.parametrize("family", ["scalar", "rank-binned"])
@pytest.mark.parametrize("sources", [(), ("memory",), SOURCES])
def test_the_warm_up_is_plain_cross_entropy_and_the_memory_is_written(family: str, sources: tuple[str, ...]) -> None:
    teaching = build(sources, family)
    teaching.set_actions(actions_for(teaching), CANDIDATES)
    teaching.set_actions(None, 1)
    logits, batch = random_step(0, 1)
    losses = teaching.loss(logits, batch).total
    expected = F.cross_entropy(logits[0], batch.labels[0])
    torch.testing.assert_close(losses[0], expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-12, atol=1e-12)
    if "memory" in sources:
        remembered = teaching.state_dict(active=1)["instances"]["logits"]
        assert torch.equal(remembered[0, batch.indices[0]], logits[0].detach().half())
        others = [image for image in range(IMAGES) if image not in batch.indices[0]]
        assert not remembered[0, others].any()
    (described,) = teaching.describe()
    assert described["true_mass"] == 1.0
    assert described["divergence"] == 0.0
    assert [source["share"] for source in described["sources"].values()] == [0.0] * len(sources)


def test_what_a_step_reads_keeps_its_place() -> None:
    """A captured training step holds the addresses."""
    teaching = build(family="rank-binned")

    def addresses() -> list[int]:
        similarity, instances = teaching.similarity, teaching.instances
        tensors = (teaching.tables, teaching.shares, teaching.temperatures, instances.logits)
        return [tensor.data_ptr() for tensor in (*tensors, similarity.accumulator, similarity.similarity)]

    before = addresses()
    teaching.set_actions(actions_for(teaching), CANDIDATES)
    logits, batch = random_step(0)
    teaching.loss(logits, batch)
    teaching.end_epoch()
    teaching.continue_from([1])
    teaching.set_actions(actions_for(teaching)[:1], 1)
    teaching.load_state_dict(teaching.state_dict(active=1))
    teaching.set_actions(None, 1)
    assert addresses() == before


def test_survivors_keep_their_memories_and_a_state_restores_them() -> None:
    teaching, restored = build(family="rank-binned"), build(family="rank-binned")
    teaching.set_actions(actions_for(teaching), CANDIDATES)
    logits, batch = random_step(0)
    teaching.loss(logits, batch)
    teaching.end_epoch()
    before = copy.deepcopy(teaching.state_dict(active=CANDIDATES))
    teaching.continue_from([2, 0])
    restored.load_state_dict(copy.deepcopy(teaching.state_dict(active=2)))
    for each in (teaching, restored):
        after = each.state_dict(active=CANDIDATES)
        for now, then in (
            (after["similarity"]["similarity"], before["similarity"]["similarity"]),
            (after["instances"]["logits"], before["instances"]["logits"]),
        ):
            assert not torch.equal(then[0], then[2])
            assert torch.equal(now, then[[2, 0, 2]])


# How the held-out loss depends on the action.


@pytest.mark.parametrize("sources", [(), SOURCES])
@pytest.mark.parametrize("family", ["scalar", "rank-binned", "full-matrix", "superclass"])
def test_the_gradient_in_the_action_is_that_of_the_table(family: str, sources: tuple[str, ...]) -> None:
    """Against autograd; the rank-binned operator has no derivative, so its formula is written out."""
    teaching = build(sources, family)
    actions = actions_for(teaching)
    teaching.set_actions(actions, CANDIDATES)
    influence = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target, similarity = teaching.space.target, torch.full((1, CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64)
    for slot in range(CANDIDATES):
        action = actions[slot].double().requires_grad_()
        share = float(teaching.shares[slot, 0])
        loss = share * (target.tables(action[None, : target.action_size], similarity)[0] * influence).sum()
        gradient = teaching.action_gradient(slot, influence)
        assert gradient.dtype == torch.float32
        assert gradient.shape == (teaching.space.action_size,)
        if family == "rank-binned":
            expected = rank_binned_gradient(action.detach()[: target.action_size], influence) * share
            expected = F.pad(expected, (0, 2 * len(sources)))
        else:
            (expected,) = torch.autograd.grad(loss, action)
        # a central difference over 1e-4 errs by its square, and by 1e-16 / 1e-4 of rounding; then float32
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=1e-7)
        assert not gradient[target.action_size :].any(), "what steers the sources stays where it is"
        assert gradient[: target.action_size].abs().max() > 1e-3


def rank_binned_gradient(action: Tensor, influence: Tensor) -> Tensor:
    """By hand, for C = 5 and coarse bins: rank 1, and ranks 2-4, in the order of the classes where all are alike."""
    low, high, neutral = 0.5, 0.999, 0.4 / 0.499
    with torch.enable_grad():
        action = action.clone().requires_grad_()
        mass = low + (high - low) * torch.sigmoid(action[0] + math.log(neutral / (1 - neutral)))
        first, rest = torch.softmax(action[1:] + torch.tensor([1.0, 3.0]).double().log(), 0)
        total = torch.zeros((), dtype=torch.float64)
        for label in range(CLASSES):
            others = [c for c in range(CLASSES) if c != label]
            total = total + mass * influence[label, label] + (1 - mass) * first * influence[label, others[0]]
            total = total + (1 - mass) * rest / 3 * influence[label, others[1:]].sum()
        return torch.autograd.grad(total, action)[0]

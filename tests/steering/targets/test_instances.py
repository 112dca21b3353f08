"""The memory of what was predicted for each sample, against a dictionary."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from tfkd_fast.steering.targets import InstanceMemory, instances

CPU = torch.device("cpu")
LARGEST = torch.finfo(torch.float16).max


def filled(candidates: int = 3, images: int = 6, classes: int = 4, seed: int = 0) -> InstanceMemory:
    memory = InstanceMemory(candidates, images, classes, CPU)
    memory.logits.copy_(torch.randn(memory.logits.shape, generator=torch.Generator().manual_seed(seed)))
    return memory


def test_an_exchange_returns_what_was_stored_before_for_each_candidate_and_sample() -> None:
    candidates, images, classes = 3, 8, 4
    memory = InstanceMemory(candidates, images, classes, CPU)
    generator = torch.Generator().manual_seed(0)
    stored = {(p, i): [0.0] * classes for p in range(candidates) for i in range(images)}
    for candidate_slice in (slice(0, 3), slice(1, 3), slice(2, 3), slice(0, 2), slice(0, 3)):
        slots = range(candidates)[candidate_slice]
        indices = torch.stack([torch.randperm(images, generator=generator)[:5] for _ in slots])
        logits = torch.randn(len(slots), 5, classes, generator=generator, requires_grad=True)
        before = memory.exchange(candidate_slice, indices, logits)
        assert before.dtype == torch.float16
        assert not before.requires_grad
        for row, slot in enumerate(slots):
            for column, image in enumerate(indices[row].tolist()):
                assert before[row, column].tolist() == stored[slot, image]
                stored[slot, image] = logits[row, column].detach().half().tolist()
    for (slot, image), logits in stored.items():
        assert memory.logits[slot, image].tolist() == logits


def test_what_was_returned_does_not_change_with_the_memory() -> None:
    memory = filled()
    expected = memory.logits[:1, :2].clone()
    before = memory.exchange(slice(0, 1), torch.tensor([[0, 1]]), torch.ones(1, 2, 4))
    assert torch.equal(before, expected)


def test_indices_that_candidates_share_need_no_copy() -> None:
    """One batch for all: its indices are expanded."""
    memory, indices = filled(), torch.tensor([[4, 2]]).expand(3, -1)
    logits = torch.randn(3, 2, 4, dtype=torch.float64)
    before = memory.logits[:, [4, 2]].clone()
    assert torch.equal(memory.exchange(slice(0, 3), indices, logits), before)
    assert torch.equal(memory.logits[:, [4, 2]], logits.half())


def test_logits_beyond_float16_are_clipped_to_it() -> None:
    memory = InstanceMemory(1, 1, 4, CPU)
    memory.exchange(slice(0, 1), torch.tensor([[0]]), torch.tensor([[[1e6, -1e6, 65504.0, 3.0]]]))
    assert memory.logits[0, 0].tolist() == [LARGEST, -LARGEST, 65504.0, 3.0]


@pytest.mark.parametrize("at_once", [4, 8192])
def test_candidates_share_the_mean_of_their_probabilities(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(instances, "SHARED_AT_ONCE", at_once)
    memory = filled(candidates=4)
    memory.logits[0, 0] = torch.tensor([LARGEST, -LARGEST, 0.0, 0.0])  # sure of one class
    memory.logits[1] = torch.nan  # diverged
    before = memory.logits.clone()
    memory.share([0, 2, 3])
    expected = softmax(before[[0, 2, 3]].double().numpy(), axis=-1).mean(axis=0)
    for slot in (0, 2, 3):
        found = softmax(memory.logits[slot].double().numpy(), axis=-1)
        np.testing.assert_allclose(found, expected, rtol=2e-3)  # float16 has 11 bits of log-probabilities up to 4
    assert memory.logits[1].isnan().all()


def test_slots_go_on_with_what_their_parents_remember() -> None:
    memory = filled()
    before = memory.logits.clone()
    memory.continue_from([2, 0, 2])
    assert torch.equal(memory.logits, before[[2, 0, 2]])
    memory.exchange(slice(0, 1), torch.tensor([[1]]), torch.zeros(1, 1, 4))
    assert torch.equal(memory.logits[2], before[2])  # copies, not shared storage


def test_a_state_holds_the_active_slots_and_restores_the_others_as_their_copies() -> None:
    memory = filled(candidates=5)
    memory.continue_from([0, 1, 0, 1, 0])
    state = memory.state_dict(active=2)
    assert state["logits"].shape == (2, 6, 4)
    assert state["logits"].untyped_storage().nbytes() == state["logits"].numel() * 2  # nothing of the others is saved
    kept = memory.logits.clone()
    memory.exchange(slice(0, 1), torch.tensor([[1]]), torch.zeros(1, 1, 4))
    restored = filled(candidates=5, seed=1)
    restored.load_state_dict(state)
    assert torch.equal(restored.logits, kept)


def test_the_tensor_keeps_its_place() -> None:
    """A captured training step holds its address."""
    memory = filled()
    address = memory.logits.data_ptr()
    memory.exchange(slice(0, 2), torch.tensor([[0], [1]]), torch.ones(2, 1, 4))
    memory.continue_from([1, 1, 0])
    memory.load_state_dict(memory.state_dict(active=2))
    assert memory.logits.data_ptr() == address

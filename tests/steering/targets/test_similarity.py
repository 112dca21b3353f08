"""The class-similarity memory against a loop over samples."""

import torch

from tfkd_fast.steering.targets import SimilarityMemory

CPU = torch.device("cpu")


def test_it_starts_uniform() -> None:
    memory = SimilarityMemory(2, 4, 0.9, CPU)
    assert torch.equal(memory.similarity, torch.full((2, 4, 4), 0.25))
    assert memory.similarity.dtype == memory.accumulator.dtype == torch.float32


def test_two_epochs_against_a_loop_over_samples() -> None:
    """Row y moves to the mean softmax of the samples of label y; label 4 has no sample and keeps its row."""
    candidates, num_classes, samples, decay = 2, 5, 60, 0.8
    memory = SimilarityMemory(candidates, num_classes, decay, CPU)
    generator = torch.Generator().manual_seed(0)
    expected = torch.full((candidates, num_classes, num_classes), 1 / num_classes, dtype=torch.float64)
    for _ in range(2):
        logits = torch.randn(candidates, samples, num_classes, generator=generator)
        labels = torch.randint(num_classes - 1, (candidates, samples), generator=generator)
        probabilities = logits.softmax(-1)
        for candidate in range(candidates):
            memory.accumulator[candidate].index_add_(0, labels[candidate], probabilities[candidate])
            for label in range(num_classes):
                own = [
                    p.double() for p, y in zip(probabilities[candidate], labels[candidate], strict=True) if y == label
                ]
                if own:
                    row = decay * expected[candidate, label] + (1 - decay) * sum(own) / len(own)
                    expected[candidate, label] = row
        memory.end_epoch()
    # float32 sums of about 15 probabilities
    torch.testing.assert_close(memory.similarity.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(memory.similarity[:, 4], torch.full((2, 5), 0.2))
    assert not memory.accumulator.any()


def test_tensors_stay_where_they_are() -> None:
    """A captured training step holds their addresses."""
    memory = SimilarityMemory(2, 3, 0.9, CPU)
    addresses = memory.similarity.data_ptr(), memory.accumulator.data_ptr()
    memory.accumulator[0, 0] += torch.tensor([0.2, 0.5, 0.3])
    memory.end_epoch()
    memory.continue_from([0] * len(memory.similarity))
    memory.load_state_dict(memory.state_dict())
    assert addresses == (memory.similarity.data_ptr(), memory.accumulator.data_ptr())


def test_the_winner_goes_to_all() -> None:
    memory = SimilarityMemory(3, 4, 0.9, CPU)
    memory.similarity.copy_(torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)))
    winner = memory.similarity[1].clone()
    memory.continue_from([1] * len(memory.similarity))
    for slot in range(3):
        assert torch.equal(memory.similarity[slot], winner)


def test_a_state_is_a_copy_and_restores() -> None:
    memory = SimilarityMemory(2, 3, 0.5, CPU)
    memory.accumulator[1, 2] += torch.tensor([3.0, 0.0, 1.0])
    memory.end_epoch()
    state = memory.state_dict()
    kept = memory.similarity.clone()
    memory.accumulator[0, 0, 1] += 1.0
    memory.end_epoch()
    other = SimilarityMemory(2, 3, 0.5, CPU)
    other.load_state_dict(state)
    assert torch.equal(other.similarity, kept)
    assert not torch.equal(memory.similarity, kept)

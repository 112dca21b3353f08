"""The buffer of hard images: whole batches first, then what is wrong."""

import torch
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.methods.several_teachers.mmkd.buffer import HardBuffer

CAPACITY, CPU = 10, torch.device("cpu")


def batch(*numbers: int) -> Batch:
    """Image i is full of i, and its label is 100 + i."""
    indices = torch.tensor(numbers)
    return Batch(indices.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2), 100 + indices, indices)


def kept(buffer: HardBuffer) -> list[int]:
    """The images in it, by slot; what belongs together stays together."""
    images, labels, indices = buffer.state_dict()["kept"]
    assert torch.equal(images, indices.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2))
    assert torch.equal(labels, 100 + indices)
    return indices.tolist()


def full(seed: int = 0) -> HardBuffer:
    buffer = HardBuffer(CAPACITY, seed)
    for step, numbers in enumerate(((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))):
        assert not buffer.full
        buffer.add(batch(*numbers), torch.zeros(4, dtype=torch.bool), step)
    assert buffer.full
    return buffer


def wrong(*of: int) -> Tensor:
    return torch.tensor(of).bool()


def test_it_is_filled_with_whole_batches_whatever_is_wrong() -> None:
    assert kept(full()) == list(range(CAPACITY))


def test_once_full_each_wrong_image_overwrites_a_slot_of_its_own() -> None:
    slots = set()
    for seed in range(20):
        buffer = full(seed)
        buffer.add(batch(20, 21, 22, 23), wrong(0, 1, 0, 1), 3)
        now = kept(buffer)
        assert sorted(image for image in now if image >= 20) == [21, 23]
        assert sum(image == slot for slot, image in enumerate(now)) == CAPACITY - 2
        slots.add(now.index(21))
    assert len(slots) > 4, "slots are drawn at random"
    before = kept(buffer)
    buffer.add(batch(30, 31, 32, 33), wrong(0, 0, 0, 0), 4)
    assert kept(buffer) == before


def test_a_draw_has_different_images_and_others_at_another_step() -> None:
    buffer = full()
    draws = [buffer.draw(4, step) for step in range(2)]
    for drawn in draws:
        assert len(set(drawn.indices.tolist())) == 4
        assert torch.equal(drawn.labels, 100 + drawn.indices)
        assert torch.equal(drawn.images[:, 0, 0, 0], drawn.indices.float())
    assert draws[0].indices.tolist() != draws[1].indices.tolist()
    assert torch.equal(buffer.draw(4, 1).indices, draws[1].indices)


def test_a_state_restores_it() -> None:
    for buffer in (HardBuffer(CAPACITY, 0), full()):
        restored = HardBuffer(CAPACITY, 0)
        restored.load_state_dict(buffer.state_dict(), CPU)
        for each in (buffer, restored):
            for step in range(5, 9):
                each.add(batch(*range(4 * step, 4 * step + 4)), wrong(1, 1, 0, 1), step)
        assert kept(restored) == kept(buffer)

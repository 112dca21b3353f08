"""mixup and CutMix, against their formulas pixel by pixel."""

import pytest
import torch
from scipy import stats

from tfkd_fast.data import Batch, Mixing

B, SIZE = 6, 12


def a_batch(n: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, B, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(5, (n, B), generator=generator)
    return Batch(images, labels, torch.arange(B).expand(n, -1))


def test_mixup_is_a_mean_of_two_images() -> None:
    batch, plan = a_batch(2), torch.tensor([[0.3, 0.5, 0.5], [0.8, 0.1, 0.9]])
    mixed, beside = Mixing("mixup", 1.0, seed=0).mix(batch, plan)
    for n, share in enumerate((0.3, 0.8)):
        for i in range(B):
            expected = share * batch.images[n, i] + (1 - share) * batch.images[n, i - 1]
            torch.testing.assert_close(mixed.images[n, i], expected, rtol=1e-5, atol=1e-6)
            assert beside.labels[n, i] == batch.labels[n, i - 1]
    torch.testing.assert_close(beside.share, torch.tensor([0.3, 0.8]))
    assert mixed.labels is batch.labels


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize(("row", "column"), [(0.0, 0.99), (0.5, 0.4), (0.2, 0.9)])
def test_cutmix_replaces_a_box(share: float, row: float, column: float) -> None:
    batch = a_batch()
    mixed, beside = Mixing("cutmix", 1.0, seed=0).mix(batch, torch.tensor([[share, row, column]]))
    cut = int(SIZE * (1 - share) ** 0.5)
    top, left = int(row * SIZE) - cut // 2, int(column * SIZE) - cut // 2
    replaced = 0
    for i in range(SIZE):
        for j in range(SIZE):
            inside = top <= i < top + 2 * (cut // 2) and left <= j < left + 2 * (cut // 2)
            source = batch.images[0].roll(1, 0) if inside else batch.images[0]
            torch.testing.assert_close(mixed.images[0, :, :, i, j], source[:, :, i, j], rtol=1e-6, atol=1e-6)
            replaced += inside
    assert float(beside.share) == pytest.approx(1 - replaced / SIZE**2)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    plan = Mixing("mixup", alpha, seed=1).plan(4000, epoch=2, stream=0)
    assert plan.min() >= 0
    assert plan.max() <= 1
    assert stats.kstest(plan[:, 0].numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert stats.kstest(plan[:, 1].numpy(), "uniform").pvalue > 1e-3


def test_every_step_epoch_and_stream_has_a_plan_of_its_own() -> None:
    mixing = Mixing("cutmix", 1.0, seed=1)
    plan = mixing.plan(5, epoch=2, stream=0)
    torch.testing.assert_close(mixing.plan(5, epoch=2, stream=0), plan, rtol=0, atol=0)
    assert len({*plan[:, 0].tolist(), *mixing.plan(5, 3, 0)[:, 0].tolist(), *mixing.plan(5, 2, 1)[:, 0].tolist()}) == 15

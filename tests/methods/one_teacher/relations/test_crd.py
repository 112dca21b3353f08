"""The contrastive loss of CRD against loops, and what its bank keeps."""

import math

import torch
from torch import Tensor

from tests.methods.published import (
    BATCH,
    CLASSES,
    LABELS,
    PUBLISHED,
    assert_published,
    build,
    fill,
    outputs,
    waves,
    with_features,
)
from tfkd_fast.methods.base import StepBatch
from tfkd_fast.methods.one_teacher.relations.crd import CRD

IMAGES, NEGATIVES, TEMPERATURE = 40, 10, 0.2
LOSS = {"weight": 1.0, "negatives": NEGATIVES, "contrast_temperature": TEMPERATURE, "momentum": 0.25}


def make() -> CRD:
    method = build("crd", loss=LOSS)
    assert isinstance(method, CRD)
    assert method.adapters is not None
    fill(method.adapters)
    return method


def step() -> tuple[dict[str, Tensor], StepBatch]:
    leaves, batch = outputs()
    _, batch = with_features(leaves, batch)
    return leaves, batch


def expected(method: CRD, batch: StepBatch) -> Tensor:
    """Image by image, before the step."""
    student, teacher = (next(iter(layer.parameters())) for layer in method.adapters.children())  # type: ignore[union-attr]
    pooled = batch.need_features().pooled[0], batch.teachers[0].need_features().pooled[0]
    own = [row @ weight.T for row, weight in zip(pooled, (student, teacher), strict=True)]
    own = [row / row.norm(dim=1, keepdim=True) for row in own]
    chosen = method.bank.draw(batch.indices[0], NEGATIVES, 0)
    known = {int(image): int(label) for image, label in zip(batch.indices[0], LABELS[0], strict=True)}
    total = torch.zeros((), dtype=torch.float64)
    for network in (0, 1):
        bank = method.bank.embeddings[1 - network].double()
        scores = []
        for image in range(BATCH):
            images = [int(batch.indices[0, image]), *chosen[image].tolist()]
            scores.append(torch.stack([(own[network][image] @ bank[i] / TEMPERATURE).exp() for i in images]))
        constant = float(torch.stack(scores).detach().mean()) * IMAGES
        noise = NEGATIVES / IMAGES
        for image, row in enumerate(scores):
            positive = row[0] / constant
            total = total - (positive / (positive + noise)).log()
            for score, other in zip(row[1:], chosen[image].tolist(), strict=True):
                if known.get(other) != int(LABELS[0, image]):
                    total = total - (noise / (score / constant + noise)).log()
    return total / BATCH


def test_the_loss_is_that_of_its_definition() -> None:
    method, (leaves, batch) = make(), step()
    wanted = expected(method, batch)
    loss = method.loss(leaves["logits"], batch).terms["features"]
    torch.testing.assert_close(loss[0], wanted, rtol=1e-5, atol=0.0)  # a small constant beside the noise, and float32
    (gradient,) = torch.autograd.grad(loss.sum(), leaves["pooled"])
    (of_wanted,) = torch.autograd.grad(wanted, leaves["pooled"])
    torch.testing.assert_close(gradient, of_wanted, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_of_the_published_code() -> None:
    """With a bank of waves, all labels known, and drawn images of other classes alone, as the published code has it."""
    method, (leaves, batch) = make(), step()
    method.bank.embeddings.copy_(0.1 * waves(2, IMAGES, 128, phase=9))
    method.bank.labels.fill_(CLASSES)[:BATCH] = LABELS[0]
    method.bank.steps.fill_(3)
    drawn = method.bank.labels[method.bank.draw(batch.indices[0], NEGATIVES, 0)]
    assert (drawn != LABELS[0].unsqueeze(1)).all()
    given = {"pooled": [leaves["pooled"]], "adapters": [*method.adapters.parameters()]}  # type: ignore[union-attr]
    loss = method.loss(leaves["logits"], batch).terms["features"].squeeze(0)
    assert_published(loss, given, PUBLISHED["crd"], PUBLISHED["crd"]["value"])


def test_the_bank_moves_towards_what_it_is_shown() -> None:
    method, (leaves, batch) = make(), step()
    before = method.bank.embeddings.clone()
    method.loss(leaves["logits"], batch)
    after = method.bank.embeddings
    shown, rest = batch.indices[0], torch.arange(BATCH, IMAGES)
    assert torch.equal(after[:, rest], before[:, rest])
    torch.testing.assert_close(after[:, shown].norm(dim=-1), torch.ones(2, BATCH))
    weight = next(method.adapters.parameters())  # type: ignore[union-attr]
    fresh = batch.need_features().pooled[0].detach() @ weight.detach().T
    mixed = 0.25 * before[0, shown].double() + 0.75 * fresh / fresh.norm(dim=1, keepdim=True)
    torch.testing.assert_close(after[0, shown].double(), mixed / mixed.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert method.bank.labels[shown].tolist() == LABELS[0].tolist()
    assert (method.bank.labels[rest] == -1).all()


def test_images_are_drawn_evenly_and_anew_in_every_step() -> None:
    bank = make().bank
    indices = torch.arange(BATCH)
    first = bank.draw(indices, 1000, 0)
    counts = first.flatten().bincount(minlength=IMAGES)
    mean = BATCH * 1000 / IMAGES
    assert (counts - mean).abs().max() < 5 * math.sqrt(mean)
    assert torch.equal(first, bank.draw(indices, 1000, 0))
    bank.steps += 1
    assert not torch.equal(first, bank.draw(indices, 1000, 0))


def test_a_restored_method_goes_on_with_the_same_bits() -> None:
    whole, restored = make(), make()
    whole.loss(step()[0]["logits"], step()[1])
    restored.load_state_dict(whole.state_dict())
    losses = [method.loss(step()[0]["logits"], step()[1]).total.tolist() for method in (whole, restored)]
    assert losses[0] == losses[1]

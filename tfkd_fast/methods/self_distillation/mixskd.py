"""MixSKD: what is predicted for a mixture of two images, and the mixture of what is predicted for them, teach each
other."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.data import Batch, Mixing, MixPartners
from tfkd_fast.methods.base import Context, Interval, Loss, Needs, Plan, SingleStudent, StepBatch
from tfkd_fast.models import Features
from tfkd_fast.models.layers import Classifier, average_pool
from tfkd_fast.models.tail import Tail
from tfkd_fast.randomness import seeded, weights_seed
from tfkd_fast.settings import Settings

HIDDEN = 128
"""Neurons of the inner layer of a discriminator (the authors' code)."""


class MixSKDLoss(Settings):
    """The `[loss]` table; defaults of the authors' code for CIFAR-100 (winycg/Self-KD-Lib, main_mixskd_cifar.py)."""

    temperature: float = Field(default=3.0, ge=0.01, le=1_000)
    """Temperature that softens all predictions."""
    mix_alpha: float = Field(default=0.4, gt=0, le=100)
    """Parameter of the Beta distribution that the shares of two images come from."""


class MixSKDSettings(Settings):
    """The tables of self-distillation from mixtures."""

    loss: MixSKDLoss = MixSKDLoss()
    """The divergences and distances between both ways of mixing, and the labels beside them."""


class SelfTeacher(nn.Module):
    """A classifier on the last maps of all ends: a convolution 1x1, global average pooling, one linear layer."""

    def __init__(self, channels: int, ends: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ends * channels, channels, 1, bias=False)
        self.classifier = Classifier(channels, num_classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B,K) of the map (B,C,H,W) of each end."""
        logits: Tensor = self.classifier(average_pool(self.conv(torch.cat(maps, 1))))
        return logits


class Ends:
    """The logits (B,K) and the last map (B,C,H,W) of all ends of the network, the student's own last."""

    def __init__(self, logits: list[Tensor], maps: list[Tensor]) -> None:
        self.logits, self.maps = logits, maps

    def interpolate(self, share: Tensor) -> "Ends":
        """All of them, mixed with those of the image before it in the batch as the images are mixed."""
        return Ends(*([_in_shares(each, each.roll(1, 0), share) for each in part] for part in (self.logits, self.maps)))


def _in_shares(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return share * own + (1.0 - share) * other


class MixSKD(SingleStudent):
    """An end on every stage, a batch, and mixtures of its images: Yang et al., ECCV 2022, as the authors' code for
    ImageNet computes it. Each end e has logits z_e and a map f_e of single images, z'_e and f'_e of mixed ones, and
    z*_e and f*_e, which are z_e and f_e of both images in their shares; L is the student's own end, and g a
    self-teacher on the maps of all ends. The loss is the sum of:

    * CE(y, z_e) for all e, and the cross-entropy with both labels, in shares, of all z'_e, of g(f') and of g(f*);
    * T^2 KL from g(f') to z*_L, from g(f*) to z'_L, and between z'_e and z*_e both ways for all other e, what teaches
      constant;
    * the mean squared difference of f'_e and f*_e for all e;
    * the binary cross-entropy of a discriminator between pooled f'_e and f*_e for all e, which discriminators and
      network descend alike, where the paper has one against the other.

    Their code for CIFAR works out the cross-entropies with both labels, and leaves them out of the sum. An image is
    mixed with the one before it in the batch, and mixed images pass the network apart, with statistics of batch norms
    of their own (our choice: theirs draw a permutation and make one pass).
    """

    @classmethod
    def needs_for(cls, settings: MixSKDSettings) -> Needs:
        return Needs(features=frozenset({"stages"}), mixing=False)

    def __init__(self, settings: MixSKDSettings, context: Context) -> None:
        """
        Raises:
            UserError: for a network whose stages cannot be run apart.
        """
        super().__init__(settings, context)
        self._settings = settings.loss
        self._mixing = Mixing("mixup", settings.loss.mix_alpha, context.seed)
        shapes = context.need_shapes()
        count, channels = len(shapes.maps), shapes.maps[-1][0]
        networks = {first: context.build_student(weights_seed(context.seed, first)) for first in range(1, count)}
        tails = nn.ModuleList(Tail(network, shapes, first) for first, network in networks.items())
        with seeded(context.seed):
            teacher = SelfTeacher(channels, count, context.num_classes)
            discriminators = nn.ModuleList(
                nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)) for _ in range(count)
            )
        self.adapters = nn.ModuleList([tails, teacher, discriminators]).to(context.device)
        self._tails, self._teacher, self._discriminators = tails, teacher, discriminators
        self._kinds = torch.eye(2, device=context.device)
        steps = -(-context.num_images // context.batch_size)
        self._mixtures = torch.zeros(steps, 3, device=context.device)
        self._step = torch.zeros(1, dtype=torch.int64, device=context.device)

    def resume_interval(self, interval: Interval) -> Plan:
        self._mixtures.copy_(self._mixing.plan(len(self._mixtures), interval.first_epoch, stream=0))
        self._step.zero_()
        return super().resume_interval(interval)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        plan = self._mixtures.index_select(0, self._step % len(self._mixtures))
        images, partners = self._mixing.mix(Batch(batch.images, batch.labels, batch.indices), plan)
        self._step.add_(1)
        mixed_logits, mixed_features = batch.forward(images.images)
        assert mixed_features is not None
        single = self._ends(logits, batch.need_features(), batch)
        mixture, interpolation = self._ends(mixed_logits, mixed_features, batch), single.interpolate(partners.share)
        with batch.autocast():
            of_interpolation, of_mixture = (self._teacher(ends.maps).float() for ends in (interpolation, mixture))

        hard, statistics = self.cross_entropy(logits, batch.labels)
        labels = [self.cross_entropy(end.unsqueeze(0), batch.labels)[0] for end in single.logits[:-1]]
        of_both = (*mixture.logits, of_interpolation, of_mixture)
        both_labels = [self._mixed_label(each, batch, partners) for each in of_both]
        pairs = [(interpolation.logits[-1], of_mixture), (mixture.logits[-1], of_interpolation)]
        for one, other in zip(interpolation.logits[:-1], mixture.logits[:-1], strict=True):
            pairs += [(one, other), (other, one)]
        terms = {
            "label": torch.stack([hard, *labels]).sum(0),
            "both labels": torch.stack(both_labels).sum(0),
            "soft": torch.stack([self._divergence(*pair) for pair in pairs]).sum().unsqueeze(0),
            "features": torch.stack(list(map(F.mse_loss, interpolation.maps, mixture.maps))).sum().unsqueeze(0),
            "discriminators": self._discrimination(interpolation, mixture).unsqueeze(0),
        }
        return Loss(terms, statistics)

    def _ends(self, logits: Tensor, features: Features, batch: StepBatch) -> Ends:
        with batch.autocast():
            ends = [tail(maps[0]) for tail, maps in zip(self._tails, features.after_relu, strict=False)]
        own = logits[0], features.after_relu[-1][0]
        ends = [(end.float(), maps.float()) for end, maps in (*ends, own)]
        return Ends([end for end, _ in ends], [maps for _, maps in ends])

    def _mixed_label(self, logits: Tensor, batch: StepBatch, partners: MixPartners) -> Tensor:
        """The cross-entropy (1,) of logits (B,K) with both labels of each mixed image, in shares."""
        own, other = (self.cross_entropy(logits.unsqueeze(0), each)[0] for each in (batch.labels, partners.labels))
        return _in_shares(own, other, partners.share)

    def _divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        return ops.distillation_loss(logits, teacher.detach(), temperature=self._settings.temperature)

    def _discrimination(self, interpolation: Ends, mixture: Ends) -> Tensor:
        """The sum () over the ends of the binary cross-entropy of their discriminators."""
        total = interpolation.logits[0].new_zeros(())
        for discriminator, *maps in zip(self._discriminators, interpolation.maps, mixture.maps, strict=True):
            for number, each in enumerate(maps):
                guesses = discriminator(average_pool(each))
                wanted = self._kinds[number].to(guesses.dtype).expand_as(guesses)
                total = total + F.binary_cross_entropy_with_logits(guesses, wanted) / 2
        return total

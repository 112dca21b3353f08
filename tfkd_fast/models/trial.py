"""What is tried of a network of others before anything is trained, so that what cannot work is said at once."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.nn.parameter import is_lazy

from tfkd_fast.errors import Notice, UserError
from tfkd_fast.models.features import FeatureNetwork
from tfkd_fast.models.foreign import INSTALLED
from tfkd_fast.models.mapped import call_with
from tfkd_fast.models.reading import Images, blank_images, noise
from tfkd_fast.plugins import in_one_sentence
from tfkd_fast.randomness import all_seeded, next_numbers

Autocast = Callable[[], AbstractContextManager[object]]
"""Opens a region in the precision of the run."""

NOT_REPEATABLE = (
    "does not compute the same again from the same weights, buffers and seeds, so that a run of it that is repeated or "
    "resumed may give another student: let what changes in training be a buffer, and draw from the generators of "
    "torch, random or numpy.random that need no object"
)
"""The end of the sentence about a network that keeps what no checkpoint holds."""


def is_of_package(network: nn.Module, name: str) -> bool:
    """Whether a network is one of this package by its name, too: a module or a factory that a program gives may be of
    the same class, and made for other classes or channels."""
    return isinstance(network, FeatureNetwork) and not any(mark in name for mark in "/:") and name not in INSTALLED


def try_out(network: nn.Module, name: str, num_classes: int, image_shape: Images, autocast: Autocast) -> bool:
    """Take the forward and the backward pass of a training step on a few images, the forward pass once more from the
    same weights, buffers and random numbers, and one in evaluation mode; the buffers of the network change.

    A `Notice` says where the second pass gives other logits than the first.

    Args:
        network: the network; one of this package is not tried.
        name: its name, for messages.
        num_classes: the number of logits that it should give.
        image_shape: channels, height and width of the images.
        autocast: opens a region in the precision of the run.

    Returns:
        Whether its layers draw random numbers in training, as dropout does.

    Raises:
        UserError: it cannot be trained: it fails, gives something else than logits or logits without a gradient, has
            other weights than float32 ones, changes the images, or replaces a weight or a buffer instead of changing
            it.
    """
    if is_of_package(network, name):
        return False
    whose = f"the network {name}"
    weights = _trained_weights(network, whose)
    tensors = dict(chain(network.named_parameters(), network.named_buffers()))
    values = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    memory = {key: tensor.detach() for key, tensor in tensors.items()}  # it is not used again while they live
    images = noise(network, image_shape).contiguous(memory_format=torch.channels_last)
    forward = partial(_logits, network, images, whose, num_classes, autocast)
    generator = _cuda_state(images)
    with all_seeded(0):
        untouched = next_numbers()
    with all_seeded(0):
        first = forward(training=True)
        if not first.requires_grad:
            raise UserError(f"{whose} gives logits without a gradient: let its forward do without no_grad and detach")
        with in_one_sentence(f"{whose} fails in the backward pass"):
            torch.autograd.grad(first.float().square().sum(), weights, allow_unused=True)
        draws = next_numbers() != untouched or not torch.equal(_cuda_state(images), generator)
    with all_seeded(0), torch.no_grad():
        for key, tensor in tensors.items():
            if not torch.equal(tensor, values[key]):
                tensor.copy_(values[key])
        if images.is_cuda:
            torch.cuda.set_rng_state(generator, images.device)
        with torch.enable_grad():
            second = forward(training=True)
        forward(training=False)
    _refuse_replaced(network, tensors, memory, whose)
    if not agree(first, second):
        warnings.warn(Notice(f"{whose} {NOT_REPEATABLE}"), stacklevel=2)
    return draws


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether logits are the same but for rounding."""
    return torch.allclose(first.float(), second.float(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _trained_weights(network: nn.Module, whose: str) -> list[Tensor]:
    """The weights of a network that are trained.

    Raises:
        UserError: it has none, or weights that cannot be trained.
    """
    parameters = dict(network.named_parameters())
    if any(map(is_lazy, parameters.values())):
        raise UserError(f"{whose} has layers that do not know their sizes yet: give them in the factory")
    other = next((key for key, value in parameters.items() if value.dtype != torch.float32), None)
    if other is not None:
        raise UserError(f"{whose} has weights that are not float32 ({other}): convert it with .float() in the factory")
    weights: list[Tensor] = [value for value in parameters.values() if value.requires_grad]
    if not weights:
        raise UserError(f"{whose} has no weights to train")
    return weights


def _refuse_replaced(network: nn.Module, tensors: dict[str, Tensor], memory: dict[str, Tensor], whose: str) -> None:
    """Raise UserError if a network has other weights or buffers than `tensors`, or has them in other memory."""
    now = dict(chain(network.named_parameters(), network.named_buffers()))
    for key, tensor in tensors.items():
        if now.get(key) is not tensor or tensor.data_ptr() != memory[key].data_ptr():
            what = "weight" if isinstance(tensor, nn.Parameter) else "buffer"
            raise UserError(f"{whose} replaces its {what} {key} in training: change it in place, as with copy_")


def _logits(
    network: nn.Module, images: Tensor, whose: str, num_classes: int, autocast: Autocast, *, training: bool
) -> Tensor:
    """The logits of some images in training or evaluation mode, in which the network stays.

    Raises:
        UserError: it fails, changes the images, or gives something else than logits.
    """
    when, shape = "" if training else " in evaluation mode", tuple(images.shape[1:])
    what = f"{whose} fails on channels-last images of shape {shape}{when}"
    with in_one_sentence(what), unchanged(images, whose), autocast():
        logits = network.train(training)(images)
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise UserError(f"{whose} gives a {kind}{when}: a network gives a tensor of logits (B,{num_classes})")
    if logits.shape != (len(images), num_classes):
        raise UserError(
            f"{whose} gives outputs of shape {tuple(logits.shape)} for {len(images)} images{when}, not logits "
            f"{(len(images), num_classes)}: the data set has {num_classes} classes, which a factory gets as "
            "num_classes, and a module has to be made for"
        )
    return logits


def _cuda_state(images: Tensor) -> Tensor:
    """The state of the generator on the device of some images; of the CPU, which `all_seeded` seeds, nothing."""
    return torch.cuda.get_rng_state(images.device) if images.is_cuda else torch.empty(0)


@contextmanager
def unchanged(images: Tensor, whose: str) -> Iterator[None]:
    """Context manager at whose end a UserError is raised if a network changed the images that it was given.

    Other networks and the method see the same images, and so would be shown what this one made of them.

    Args:
        images: the images.
        whose: the network, for the message.
    """
    before = images._version  # counts what changes the tensor, also a view of it
    yield
    if images._version != before:
        raise UserError(
            f"{whose} changes the images that it is given, which others see, too: let it compute new ones, as by "
            "x = x * 2 in the place of x.mul_(2)"
        )


def refuse_batch_of_one(network: nn.Module, name: str, image_shape: Images, autocast: Autocast, remedy: str) -> None:
    """Raise UserError if a network cannot be trained on a batch of one image, as where batch norm follows maps of one
    pixel; its buffers change.

    Args:
        network: the network; one of this package is not tried, because none of its maps is that small.
        name: its name, for messages.
        image_shape: channels, height and width of the images.
        autocast: opens a region in the precision of the run.
        remedy: what to do, as the end of the sentence.
    """
    if is_of_package(network, name):
        return
    what = f"the network {name} cannot be trained on a batch of one image, which an epoch ends with: {remedy}"
    with in_one_sentence(what), all_seeded(0), torch.no_grad(), autocast():
        network.train()(blank_images(network, image_shape))


def refuse_unstackable(build: Callable[[], nn.Module], name: str, image_shape: Images, autocast: Autocast) -> None:
    """Raise UserError if networks cannot be run as one network over stacked weights.

    Args:
        build: builds the network.
        name: its name, for messages.
        image_shape: channels, height and width of the images.
        autocast: opens a region in the precision of the run.
    """
    networks = [build().train(), build().train()]
    if is_of_package(networks[0], name):
        return
    images = blank_images(networks[0], image_shape, count=4)
    weights, buffers = stack_module_state(networks)

    def forward(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        return call_with(networks[0], tensors, images)

    what = f"the network {name} cannot be stacked, use --population streams or sequential instead"
    with in_one_sentence(what), all_seeded(0), torch.no_grad(), autocast():
        vmap(forward, in_dims=(0, None), randomness="different")(weights | buffers, images)

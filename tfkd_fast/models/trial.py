"""What is tried of a network of others before anything is trained, so that what cannot work is said at once."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.nn.parameter import is_lazy

from tfkd_fast.errors import UserError
from tfkd_fast.models.features import FeatureNetwork
from tfkd_fast.models.mapped import call_with
from tfkd_fast.models.reading import Images, blank_images, noise
from tfkd_fast.plugins import in_one_sentence
from tfkd_fast.randomness import all_seeded, next_numbers

Autocast = Callable[[], AbstractContextManager[object]]
"""Opens a region in the precision of the run."""


def try_out(network: nn.Module, name: str, num_classes: int, image_shape: Images, autocast: Autocast) -> bool:
    """Take the forward and the backward pass of a training step on a few images; the buffers of the network change.

    Args:
        network: the network; one of this package is not tried.
        name: its name, for messages.
        num_classes: the number of logits that it should give.
        image_shape: channels, height and width of the images.
        autocast: opens a region in the precision of the run.

    Returns:
        Whether its layers draw random numbers in training, as dropout does.

    Raises:
        UserError: it cannot be trained: it fails, gives something else than logits, has other weights than float32
            ones, changes the images, or replaces a buffer instead of changing it.
    """
    if isinstance(network, FeatureNetwork):
        return False
    whose = f"the network {name}"
    parameters = dict(network.named_parameters())
    if any(map(is_lazy, parameters.values())):
        raise UserError(f"{whose} has layers that do not know their sizes yet: give them in the factory")
    other = next((key for key, value in parameters.items() if value.dtype != torch.float32), None)
    if other is not None:
        raise UserError(f"{whose} has weights that are not float32 ({other}): convert it with .float() in the factory")
    weights = [value for value in parameters.values() if value.requires_grad]
    if not weights:
        raise UserError(f"{whose} has no weights to train")
    buffers = dict(network.named_buffers())
    images = noise(network, image_shape).contiguous(memory_format=torch.channels_last)
    with all_seeded(0):
        untouched = next_numbers()
    with all_seeded(0), in_one_sentence(f"{whose} fails on channels-last images of shape {image_shape}"):
        with unchanged(images, whose), autocast():
            logits = network.train()(images)
        if isinstance(logits, Tensor) and logits.requires_grad:
            torch.autograd.grad(logits.float().square().sum(), weights, allow_unused=True)
        draws = next_numbers() != untouched
    if not isinstance(logits, Tensor):
        raise UserError(
            f"{whose} gives a {type(logits).__name__}: a network gives a tensor of logits (B,{num_classes})"
        )
    if logits.shape != (4, num_classes):
        raise UserError(
            f"{whose} gives outputs of shape {tuple(logits.shape)} for 4 images, not logits (4, {num_classes}): the "
            f"data set has {num_classes} classes, which its factory gets as num_classes"
        )
    replaced = [key for key, buffer in network.named_buffers() if buffers.get(key) is not buffer]
    if replaced:
        raise UserError(f"{whose} replaces its buffer {replaced[0]} in training: change it in place, as with copy_")
    return draws


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
    if isinstance(network, FeatureNetwork):
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
    if isinstance(networks[0], FeatureNetwork):
        return
    images = blank_images(networks[0], image_shape, count=4)
    weights, buffers = stack_module_state(networks)

    def forward(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        return call_with(networks[0], tensors, images)

    what = f"the network {name} cannot be stacked, use --population streams or sequential instead"
    with in_one_sentence(what), all_seeded(0), torch.no_grad(), autocast():
        vmap(forward, in_dims=(0, None), randomness="different")(weights | buffers, images)

"""Networks whose weights stay compute with folded batch norm: against the same network in float64."""

import copy
import io
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tfkd_fast.models import MODELS, Features, fix_weights, fixed_weights
from tfkd_fast.models.folding import FoldingConv
from tfkd_fast.models.layers import BatchNorm, Conv, convolve, norm_relu_pool
from tfkd_fast.ops import backends, conv_algorithms
from tfkd_fast.ops.conv_algorithms import Algorithms, Convolution
from tfkd_fast.ops.convolution import finish_inference

MULTIPLIES_BFLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN to fold for")

FOLDED = {
    "vgg13": 10,
    "resnet8x4": 10,
    "wrn_16_2": 6,
    "resnet50": 53,
    "mobilenetv2_half": 53,
    "shufflenetv1": 49,
    "shufflenetv2": 56,
}
"""How many batch norms have a convolution before them: all, but in a wide residual network those after a sum."""


def draw_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)


def trained(name: str, width: float = 0.25) -> nn.Module:
    """A network in evaluation mode with running statistics of its own, and scales and shifts that are not 1 and 0."""
    torch.manual_seed(0)
    network = MODELS[name](10, width=width).to(memory_format=torch.channels_last)
    for norm in norms(network):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
        norm.momentum = None
    network.train()
    with torch.no_grad():
        network(draw_images(32))
    return network.eval()


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def folds(network: nn.Module) -> int:
    """How many batch norms are a part of the convolution before them."""
    foldings = [module.foldings for module in network.modules() if isinstance(module, FoldingConv)]
    return sum(norm is not None for own in foldings for norm, _ in own or ())


def maps_of(features: Features) -> list[Tensor]:
    stem = [] if features.stem is None else [features.stem]
    return [*features.before_relu, *features.after_relu, *stem, *features.block_sums, features.pooled]


def everything(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits, and all features with the logits beside them."""
    logits, features = network(images, return_features=True)
    return [network(images), logits, *maps_of(features)]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", FOLDED)
@torch.no_grad()
def test_in_float32_it_is_the_same_network(name: str) -> None:
    """Folding rounds a weight twice more, 6e-8 each; errors of float32 grow to some 1e-6 in ten layers, and where there
    are fifty as those of the layers one by one do."""
    network, images = trained(name), draw_images(8)
    exact = everything(copy.deepcopy(network).double(), images.double())
    plain = everything(network, images)
    with fixed_weights(network):
        found = everything(network, images)
        assert folds(network) == FOLDED[name]
    for one, layer_by_layer, expected in zip(found, plain, exact, strict=True):
        assert error(one, expected) < max(1e-5, 3 * error(layer_by_layer, expected))
        assert one.dim() == 2 or one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not MULTIPLIES_BFLOAT16, reason="this processor has no convolution in bfloat16")
@pytest.mark.parametrize("name", FOLDED)
@torch.no_grad()
def test_in_bfloat16_it_errs_less_than_layer_by_layer(name: str) -> None:
    """Layer by layer a map is rounded after convolution, batch norm and sum, here once; weights are rounded in both.
    So every map is nearer to the exact one. What comes of their means is rounded by less than the weights were: there
    the errors are those of the weights, which are two draws of the same size; of 16 x 10 logits the ratio of two such
    errors lies within a factor of 1.25 of 1."""
    network, images = trained(name), draw_images(16).bfloat16()
    exact = everything(copy.deepcopy(network).double(), images.double())
    with torch.autocast("cpu", torch.bfloat16):
        apart = everything(network, images)
        with fixed_weights(network):
            found = everything(network, images)
    for one, other, expected in zip(found, apart, exact, strict=True):
        assert one.dtype == other.dtype
        assert error(one, expected) <= (1.25 if one.dim() == 2 else 1.0) * error(other, expected)


@torch.no_grad()
def test_weights_that_change_afterwards_are_seen() -> None:
    network, images = trained("resnet8x4"), draw_images(4)
    with fixed_weights(network):
        before = network(images)
    for tensor in (*network.parameters(), *(norm.running_mean for norm in norms(network))):
        tensor += 0.05 * torch.rand_like(tensor)
    expected = network(images)
    with fixed_weights(network):
        torch.testing.assert_close(network(images), expected)
    assert (expected - before).abs().max() > 0.01
    assert not any(module.foldings for module in network.modules() if isinstance(module, FoldingConv))


def test_gradients_training_and_vmap_do_without() -> None:
    network, images = trained("vgg13", 0.125), draw_images(4).requires_grad_()
    plain = copy.deepcopy(network)
    fix_weights(network)
    (found,) = torch.autograd.grad(network(images).sum(), images)
    (expected,) = torch.autograd.grad(plain(images).sum(), images)
    assert torch.equal(found, expected)
    with torch.no_grad():
        tensors = {name: value.unsqueeze(0) for name, value in network.state_dict().items()}
        (mapped,) = vmap(lambda own: functional_call(network, own, (images,)))(tensors)
        torch.testing.assert_close(mapped, plain(images), rtol=1e-4, atol=1e-5)
        assert folds(network) == 0
        assert torch.equal(network.train()(images), plain.train()(images))
        network.eval()(images)
        assert folds(network) == 10


@torch.no_grad()
def test_copies_and_files_of_a_network_fold_their_own_weights() -> None:
    network, images = trained("vgg13", 0.125), draw_images(4)
    names = list(network.state_dict())
    fix_weights(network)
    expected = network(images)
    stored = io.BytesIO()
    torch.save(network, stored)
    stored.seek(0)
    for other in (copy.deepcopy(network), torch.load(stored, weights_only=False)):
        assert folds(other) == 0
        assert torch.equal(other(images), expected)
        for weight in other.parameters():
            weight.zero_()
        fix_weights(other)
        assert not other(images).any()
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (3, 9)])
@torch.no_grad()
def test_maps_of_any_size(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    conv, norm = Conv(4, 8, stride=stride, bias=True), BatchNorm(8).eval()
    nn.init.normal_(norm.running_mean)
    x = torch.randn(3, 4, *size).contiguous(memory_format=torch.channels_last)
    y = norm(conv(x))
    add = torch.randn_like(y)
    fix_weights(conv)
    torch.testing.assert_close(convolve(conv, x, norm), y)
    torch.testing.assert_close(convolve(conv, x, norm, add=add), y + add)
    torch.testing.assert_close(convolve(conv, x, norm, add=add, relu=True, pool=True), F.max_pool2d(F.relu(y + add), 2))
    torch.testing.assert_close(convolve(conv, x, add=add), conv(x) + add)
    assert convolve(conv, x[:0], norm, relu=True).shape == (0, *y.shape[1:])
    assert folds(conv) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 40, 7, 5), (1, 16, 2, 2), (3, 24, 1, 4), (0, 4, 2, 2)])
@pytest.mark.parametrize(("add", "relu", "pool"), list(product((False, True), repeat=3)))
def test_what_follows_a_convolution_is_that_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, add: bool, relu: bool, pool: bool
) -> None:
    """To the last bit, NaN included."""
    y, other = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y, other = (maps.contiguous(memory_format=torch.channels_last) for maps in (y, other))
    y[:1, 0, 0, 0], y[:1, -1, -1, -1], other[:1, 0, -1, 0] = torch.nan, torch.inf, -torch.inf
    expected = y + other if add else y
    expected = F.relu(expected) if relu else expected
    if pool and min(shape[2:]) > 1:
        expected = F.max_pool2d(expected, 2)
    elif pool:
        expected = expected[..., :0, : shape[3] // 2]  # of no window
    found = finish_inference(y.clone(), other if add else None, relu=relu, pool=pool)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 40, 7, 5), (3, 5, 4, 4), (64, 32, 16, 16), (0, 4, 2, 2)])
@torch.no_grad()
def test_batch_norm_and_relu_are_one_pass(shape: tuple[int, ...]) -> None:
    """Against float64: one rounding of the result, and those of scale, shift and product, of the largest term."""
    generator = torch.Generator().manual_seed(0)
    norm = BatchNorm(shape[1]).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.copy_(torch.randn(shape[1], generator=generator))
    norm.running_var.copy_(torch.rand(shape[1], generator=generator) + 0.5)
    x = torch.randn(shape, generator=generator).to(torch.bfloat16, memory_format=torch.channels_last)
    x[:1, 0, 0, 0] = torch.nan
    found = norm_relu_pool(norm, x)
    exact = copy.deepcopy(norm).double()(x.double())
    terms = sum(t.double().abs().max() for t in (norm.weight, norm.bias, norm.running_mean)) * 8
    bound = 2**-8 * exact.abs() + 8 * 2**-24 * terms
    assert found.dtype == torch.bfloat16
    assert bool(((found - exact.relu()).abs() <= bound)[~exact.isnan()].all())
    assert torch.equal(found.isnan(), exact.isnan())


@pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
def test_registration() -> None:
    maps = torch.randn(2, 5, 4, 6).to(torch.bfloat16, memory_format=torch.channels_last)
    operator = torch.ops.tfkd_fast.relu_pool.default
    torch.library.opcheck(operator, (maps, maps.clone(), True, False))
    torch.library.opcheck(operator, (maps, None, True, True))
    torch.library.opcheck(torch.ops.tfkd_fast.bias_gradient.default, (maps,))
    torch.library.opcheck(torch.ops.tfkd_fast.norm_relu.default, (maps, *torch.rand(4, 5).unbind(), 1e-5))
    with pytest.raises(RuntimeError, match="without pooling"):
        operator(maps, maps, True, True)
    with pytest.raises(RuntimeError, match="the shape of x"):
        operator(maps, maps[:1], True, False)
    with pytest.raises(RuntimeError, match="window of 2x2"):
        operator(maps[:, :, :1], None, True, True)


# Algorithms of 3x3 convolutions.

SHAPE = Convolution(24, 8, 8, 40, torch.float32)
OTHERS = conv_algorithms.serving("inference", SHAPE, 4)[1:]


@pytest.mark.skipif(not OTHERS, reason="torch's is the only algorithm here")
@pytest.mark.parametrize("algorithm", OTHERS)
@pytest.mark.parametrize(("add", "relu"), [(False, True), (True, True), (False, False), (True, False)])
def test_a_folded_convolution_is_computed_by_the_algorithm_that_was_chosen(
    algorithm: str, add: bool, relu: bool
) -> None:
    """With at most twice the error of torch's; the maps that are added stay as they are."""
    torch.manual_seed(0)
    conv, norm = Conv(24, 40).to(memory_format=torch.channels_last), BatchNorm(40).eval()
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.running_mean)
    x = torch.randn(4, 24, 8, 8).contiguous(memory_format=torch.channels_last)
    shortcut = torch.randn(4, 40, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    choices = {"torch": {}, algorithm: {SHAPE: Algorithms(inference=algorithm)}}
    results = {}
    with torch.no_grad(), fixed_weights(conv):
        for name, chosen in choices.items():
            added = shortcut.clone() if add else None
            with conv_algorithms.using(chosen):
                results[name] = convolve(conv, x.to(torch.bfloat16), norm, add=added, relu=relu)
            assert added is None or torch.equal(added, shortcut)
        exact = F.conv2d(x.double(), conv.weight.double(), padding=1)
        exact = F.batch_norm(exact, *(t.double() for t in (norm.running_mean, norm.running_var)), eps=norm.eps)
        exact = exact + shortcut if add else exact
        exact = exact.relu() if relu else exact
    assert not torch.equal(results["torch"], results[algorithm])
    assert results[algorithm].is_contiguous(memory_format=torch.channels_last)
    errors = {name: (result - exact).norm() for name, result in results.items()}
    assert errors[algorithm] <= 2 * errors["torch"]

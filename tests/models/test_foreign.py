"""Networks of others: their names, what their factories are called with, what is refused, where features are read."""

import functools
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, autocast, nn

from tfkd_fast.errors import Notice, UserError
from tfkd_fast.models import (
    ModelSettings,
    announce_import,
    build_model,
    classifier_of,
    feature_shapes,
    foreign,
    give,
    logits_and_features,
    refuse_batch_of_one,
    refuse_unstackable,
    try_out,
)

SHAPE = (3, 32, 32)


class Net(nn.Module):
    """Maps of 16 and 8 pixels, the first with squeeze and excitation by a convolution, then a pooled map."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.gate = nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.gate(x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid())
        return self.head(self.pool(self.body(x)).flatten(1))


def no_autocast() -> autocast:
    return autocast("cpu", enabled=False)


def build(factory: object, num_classes: int = 5) -> nn.Module:
    return build_model(ModelSettings(name=give(factory)), num_classes, 3, seed=0)


def test_names_are_checked_and_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelSettings(name="net.py:Net").name == f"{tmp_path}/net.py:Net"
    for folder in ("python", "timm", "torchvision"):
        assert ModelSettings(name=f"{folder}/net.py:Net").name == f"{tmp_path}/{folder}/net.py:Net"
    for name in ("timm/resnet18", "torchvision/vit_b_16", "a.package:factory", "python/Net"):
        assert ModelSettings(name=name).name == name
    for name in ("nowhere/resnet18", "net.py", "a.module:", "timm/", "vgg9", "a module:f"):
        with pytest.raises(ValueError, match=r"unknown model .*package.module:factory or path/file.py:factory"):
            ModelSettings(name=name)
    for name in ("hf-hub:timm/resnet18.a1_in1k", "hf_hub:a/b", "timm/hf_hub:a/b", "hf/a/b"):
        with pytest.raises(ValueError, match=r"is not built from the Hub: name a network of timm as timm/NAME, or any"):
            ModelSettings(name=name)
    with pytest.raises(ValueError, match="width is read only where name is a network of tfkd_fast"):
        ModelSettings(name="timm/resnet18", width=0.5)


def test_a_file_is_imported_with_its_folder_and_called_with_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "parts_of_net.py").write_text("WIDTH = 7\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom parts_of_net import WIDTH\n"
        "def two(num_classes, in_chans): return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * WIDTH, num_classes))\n"
        "class Kind:\n    @staticmethod\n    def one(num_classes, *, depth=1): return nn.Linear(depth, num_classes)\n"
    )
    network = build_model(ModelSettings(name=f"{tmp_path}/net.py:two"), 4, 2, seed=0)
    assert network[1].weight.shape == (4, 14)
    assert build_model(ModelSettings(name=f"{tmp_path}/net.py:two"), 4, 2, seed=0)[1].weight.equal(network[1].weight)
    assert str(tmp_path) not in sys.path


def test_files_of_two_folders_have_each_the_modules_beside_it(tmp_path: Path) -> None:
    """Modules and packages, imported at once or where the network is built."""
    text = (
        "import helper\nfrom torch import nn\n"
        "def net(num_classes):\n    import parts.late\n    return nn.Linear(helper.WIDTH, parts.late.WIDTH)\n"
    )
    for width in (3, 5):
        folder = tmp_path / str(width)
        (folder / "parts").mkdir(parents=True)
        for name in ("helper.py", "parts/late.py"):
            (folder / name).write_text(f"WIDTH = {width}\n")
        (folder / "net.py").write_text(text)
    for width in (3, 5, 3):
        network = build_model(ModelSettings(name=f"{tmp_path}/{width}/net.py:net"), 4, 3, seed=0)
        assert network.weight.shape == (width, width)
    assert not {"helper", "parts", "parts.late"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "import nothing_here",
            r"cannot be imported \(ModuleNotFoundError: .*nothing_here.* at .*net.py:1\)",
        ),
        ("", "cannot be imported .*has no attribute 'net'"),
        ("import sys\nsys.exit(0)", r"cannot be imported \(SystemExit: 0 at .*net.py:2\)"),
        ("def net(num_classes): exit(0)", r"cannot be built \(SystemExit: 0 at .*net.py:1\)"),
        ("net = 3", "is no factory, but 3"),
        ("def net(in_channels): pass", "takes no num_classes"),
        ("def net(**anything): pass", "its factory gave None, not an nn.Module"),
        (
            "def net(num_classes): return [][1]",
            r"cannot be built \(IndexError: list index .* at .*net.py:1\)",
        ),
        ("def net(num_classes): return 3", "its factory gave 3, not an nn.Module"),
    ],
)
def test_a_factory_that_makes_no_network_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(UserError, match=said):
        build_model(ModelSettings(name=f"{tmp_path}/net.py:net"), 4, 3, seed=0)


def test_what_others_do_not_have_is_refused(tmp_path: Path) -> None:
    for name, said in (
        (f"{tmp_path}/gone.py:net", "there is no file .*gone.py"),
        ("torchvision/resnet19", "torchvision has no network 'resnet19': did you mean 'resnet18'"),
        ("timm/resnet19", "timm has no network 'resnet19': did you mean"),
        ("python/Nobody", "was given to tfkd_fast.train as an object, which this process does not have: give it again"),
        ("os:system", "takes no num_classes"),
    ):
        with pytest.raises(UserError, match=said):
            build_model(ModelSettings(name=name), 4, 3, seed=0)


def test_what_is_given_has_the_name_by_which_others_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "from_programs", {})  # as in a process of its own
    assert give(torchvision.models.resnet18) == "torchvision.models.resnet:resnet18"
    assert build(torchvision.models.squeezenet1_1)(torch.zeros(1, *SHAPE)).shape == (1, 5)  # takes **keywords
    assert give(lambda num_classes: Net(num_classes)) == "python/lambda"
    module = Net(5)
    assert give(module) == "python/Net"
    first, second = build(module), build(module)
    assert first is not second
    assert all(map(torch.equal, first.state_dict().values(), module.state_dict().values()))
    with pytest.raises(UserError, match=r"a model is an nn.Module or a function that makes one, not 3"):
        give(3)
    module.last = module(torch.zeros(1, *SHAPE))
    with pytest.raises(UserError, match=r"cannot be copied: give the class or a function that makes it \(RuntimeErr"):
        give(module)


def test_two_objects_have_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "from_programs", {})  # as in a process of its own
    wide, narrow = (functools.partial(nn.Conv2d, 3, kernel_size=size) for size in (3, 1))

    def factory(head: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
        return lambda num_classes: nn.Sequential(head(num_classes), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    given = [factory(wide), factory(narrow), Net(5), Net(5)]
    names = [give(one) for one in given]
    assert names == ["python/lambda", "python/lambda.2", "python/Net", "python/Net.2"]
    assert [give(one) for one in reversed(given)] == names[::-1]
    first, second = (build_model(ModelSettings(name=name), 5, 3, seed=0)[0] for name in names[:2])
    assert (first.kernel_size, second.kernel_size) == ((3, 3), (1, 1))
    built = build_model(ModelSettings(name=names[3]), 5, 3, seed=0)
    assert all(map(torch.equal, built.state_dict().values(), given[3].state_dict().values()))


def test_the_import_of_a_stored_run_is_announced(recwarn: pytest.WarningsRecorder) -> None:
    announce_import("timm/resnet18", "runs/theirs")
    announce_import("vgg8", "runs/theirs")
    assert not recwarn
    with pytest.warns(Notice, match="runs/theirs has the network a.package:net: a.package is imported, which runs its"):
        announce_import("a.package:net", "runs/theirs")


def test_logits_are_float32_under_autocast() -> None:
    network = build(Net)
    assert type(network.head).__mro__[1] is nn.Linear
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randn(2, *SHAPE))
    assert logits.dtype == torch.float32
    assert not logits.equal(logits.bfloat16().float())


def test_strided_1x1_convolutions_of_few_channels_are_trained_on_wide_maps() -> None:
    """By torch alone, in bfloat16 on the CPU, this process would end."""

    def make(num_classes: int) -> nn.Module:
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1, stride=(2, 2)), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, num_classes))

    network = build(make)
    weight, images = network[1].weight, torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    (exact,) = torch.autograd.grad(network(images).square().sum(), weight)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), weight)
    assert (gradient - exact).norm() <= 0.03 * exact.norm()
    plain = nn.functional.conv2d(network[0](images), weight, network[1].bias, stride=2)
    torch.testing.assert_close(network[1](network[0](images)), plain)


def test_stages_are_found_by_size_or_named() -> None:
    network = Net(5).eval()
    images = torch.randn(2, *SHAPE)
    logits, features = logits_and_features(network, ("stages",), images)
    stem = network.stem(images)
    gated = stem * network.squeeze(stem.mean((2, 3), keepdim=True)).sigmoid()
    maps = [gated, network.body(gated)]  # not the convolution of one pixel, and not the pooled map
    for found, expected in zip(features.after_relu, maps, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(features.pooled, maps[-1].mean((2, 3)))
    torch.testing.assert_close(network.head(features.pooled), logits)
    assert feature_shapes(network, SHAPE) == ((((8, 16, 16), (12, 8, 8))), 12, None, (), (0, 1))
    assert network.training is False
    named = Net(5).eval()
    named.load_state_dict(network.state_dict())
    named.stages, named.classifier = ["stem"], "head"
    _, own = logits_and_features(named, ("stages",), images)
    (only,) = own.after_relu
    torch.testing.assert_close(only, stem)
    assert logits_and_features(network, (), images)[1] is None


def test_stages_of_networks_of_torchvision() -> None:
    shapes = {
        "resnet18": [64, 64, 128, 256, 512],
        "mobilenet_v3_small": [16, 16, 24, 48, 576],
        "efficientnet_b0": [16, 24, 40, 112, 1280],
        "densenet121": [64, 256, 512, 1024, 1024],
        "convnext_tiny": [96, 192, 384, 768],
    }
    for name, widths in shapes.items():
        network = torchvision.models.get_model(name, num_classes=5)
        found = feature_shapes(network, (3, 64, 64))
        assert [channels for channels, _, _ in found.maps] == widths, name
        heights = [height for _, height, _ in found.maps]
        assert heights == [32, 16, 8, 4, 2][-len(widths) :], name
        assert found.pooled == classifier_of(network).in_features, name


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        (
            {"stages": ["stem", "nothing"]},
            "Net.stages names the module 'nothing', which it does not have; its",
        ),
        ({"classifier": "nothing"}, "Net.classifier names the module 'nothing'"),
        ({"classifier": "body"}, r"the classifier of Net takes \(8, 16, 16\) of an image"),
        ({"stages": []}, r"Net has no module that gives maps \(B,C,H,W\)"),
    ],
)
def test_features_that_are_not_there_are_refused(attributes: dict[str, object], said: str) -> None:
    network = Net(5)
    for name, value in attributes.items():
        setattr(network, name, value)
    with pytest.raises(UserError, match=said):
        feature_shapes(network, SHAPE)
    with pytest.raises(UserError, match="has no linear layer"):
        classifier_of(nn.Sequential(nn.Conv2d(3, 5, 32), nn.Flatten()))


class Drops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.1, self.training))


class DrawsFrom(Net):
    """Draws from the generator of a function."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(5)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.draw())


class ChangesImages(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0].mul_(3)
        return super().forward(x)


class Replaces(Net):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return super().forward(x)


class Assigns(Net):
    """Bounds the filters of its first convolution, as EEGNet does, but by another tensor than the one that is trained;
    or, in evaluation mode only, its statistics."""

    def __init__(self, num_classes: int, *, training: bool = True) -> None:
        super().__init__(num_classes)
        self.when = training

    def forward(self, x: Tensor) -> Tensor:
        weight, mean = self.stem[0].weight, self.stem[1].running_mean
        if self.training and self.when:
            weight.data = torch.renorm(weight.data, p=2, dim=0, maxnorm=1.0)
        if not self.training and not self.when:
            mean.data = mean.data + 1
        return super().forward(x)


class BoundsInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.stem[0].weight
        weight.data.copy_(torch.renorm(weight.data, p=2, dim=0, maxnorm=1.0))
        return super().forward(x)


class Detaches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Otherwise(Net):
    """Gives what a function makes of its logits in evaluation mode."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__(5)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.make(super().forward(x))


class Anneals(Net):
    """Counts its steps, in a buffer or in a plain number, and adds noise that fades with them."""

    def __init__(self, *, in_buffer: bool) -> None:
        super().__init__(5)
        self.register_buffer("steps", torch.zeros(()), persistent=False)
        self.number, self.in_buffer = 0, in_buffer

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.number += 1
            x = x + torch.randn_like(x) / (1 + (self.steps if self.in_buffer else self.number))
        return super().forward(x)


class Pairs(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x


class Views(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.view(len(x), -1)[:, :1]


def test_a_batch_of_one_is_refused_where_batch_norm_follows_one_pixel() -> None:
    for network in (Net(5), build_model(ModelSettings(name="vgg8", width=0.125), 5, 3, seed=0)):
        refuse_batch_of_one(network, "x", SHAPE, no_autocast, "change it")
    pooled = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)
    )
    said = r"the network x cannot be trained on a batch of one image, .*: change it \(ValueError: Expected more than 1"
    with pytest.raises(UserError, match=said):
        refuse_batch_of_one(pooled, "x", SHAPE, no_autocast, "change it")


class Waits(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if logits.sum().item() > 0 else 2 * logits


def test_what_cannot_be_trained_is_refused() -> None:
    for network, said in (
        (Net(4), r"gives outputs of shape \(4, 4\) for 4 images, not logits \(4, 5\)"),
        (Pairs(5), r"gives a tuple: a network gives a tensor of logits \(B,5\)"),
        (Net(5, in_channels=1), r"fails on channels-last images of shape \(3, 32, 32\) \(RuntimeError: .*channels"),
        (Views(5), r"fails on channels-last .*view size is not compatible.* at .*test_foreign.py:\d+\)"),
        (ChangesImages(5), r"changes the images that it is given, which others see, too: let it compute new ones"),
        (Replaces(5), "replaces its buffer seen in training: change it in place"),
        (Assigns(5), "replaces its weight stem.0.weight in training: change it in place"),
        (Assigns(5, training=False), "replaces its buffer stem.1.running_mean in training: change it in place"),
        (Detaches(5), "gives logits without a gradient: let its forward do without no_grad and detach"),
        (
            Otherwise(lambda logits: (logits, 3)),
            r"gives a tuple in evaluation mode: a network gives a tensor of logits",
        ),
        (Otherwise(lambda logits: logits.argmax(1)), r"gives outputs of shape \(4,\) for 4 images in evaluation mode"),
        (Otherwise(lambda logits: [][1]), r"fails on channels-last images .* in evaluation mode \(IndexError"),
        (Net(5).double(), "has weights that are not float32"),
        (Net(5).requires_grad_(False), "has no weights to train"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "has layers that do not know their sizes yet"),
    ):
        with pytest.raises(UserError, match=f"the network x {said}"):
            try_out(network, "x", 5, SHAPE, no_autocast)
    drops, keeps, state = Drops(5), Net(5), torch.get_rng_state()
    assert try_out(drops, "x", 5, SHAPE, no_autocast)
    assert not try_out(keeps, "x", 5, SHAPE, no_autocast)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(try_out(DrawsFrom(draw), "x", 5, SHAPE, no_autocast) for draw in (random.random, np.random.random))
    refuse_unstackable(lambda: Drops(5), "x", SHAPE, no_autocast)
    with pytest.raises(UserError, match=r"the network x cannot be stacked, use --population streams .*item"):
        refuse_unstackable(lambda: Waits(5), "x", SHAPE, no_autocast)


def test_a_network_that_keeps_what_no_checkpoint_holds_is_named(recwarn: pytest.WarningsRecorder) -> None:
    own, numbers = torch.Generator().manual_seed(5), np.random.default_rng(5)
    harmless = [Net(5), Drops(5), BoundsInPlace(5), Anneals(in_buffer=True), DrawsFrom(random.random)]
    normed = Net(5)
    torch.nn.utils.parametrizations.spectral_norm(normed.head)
    for network in (*harmless, normed):
        try_out(network, "x", 5, SHAPE, no_autocast)
    assert not recwarn
    for network in (Anneals(in_buffer=False), DrawsFrom(lambda: float(torch.rand((), generator=own)))):
        with pytest.warns(Notice, match="the network x does not compute the same again from the same weights, buffers"):
            try_out(network, "x", 5, SHAPE, no_autocast)
    with pytest.warns(Notice, match="or resumed may give another student: let what changes in training be"):
        try_out(DrawsFrom(numbers.random), "x", 5, SHAPE, no_autocast)


def test_a_module_of_a_class_of_this_package_is_tried_as_any_other() -> None:
    """It may have been made for other classes or images than those of the data set."""
    network = build_model(ModelSettings(name="resnet8", width=0.5), 10, 1, seed=0)
    assert not try_out(network, "resnet8", 2, (1, 32, 32), no_autocast)  # by its name it was built for this data set
    with pytest.raises(UserError, match=r"logits \(4, 2\): the data set has 2 classes, which .* module has to be made"):
        try_out(network, "python/ResNet", 2, (1, 32, 32), no_autocast)
    with pytest.raises(UserError, match=r"the network python/ResNet fails on .* of shape \(3, 32, 32\)"):
        try_out(network, "python/ResNet", 10, SHAPE, no_autocast)
    assert not try_out(network, "python/ResNet", 10, (1, 32, 32), no_autocast)

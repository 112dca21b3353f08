"""Teachers that no run of this package trained: published layouts, files, modules, other images and classes."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import tfkd_fast
from tests.support.command import refusal
from tests.support.runs import CPU, few_images
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base.teacher_table import NetworkTeacher
from tfkd_fast.models import MODELS, give
from tfkd_fast.runs.log import Listener
from tfkd_fast.teachers.teacher import load_network
from tfkd_fast.teachers.weights import load_weights, named_as_in, read_weights

DIGITS = few_images()
SMALL: dict[str, Any] = {
    "epochs": 2,
    "device": "cpu",
    "data": {"dataset": "digits", "batch_size": 256, "per_class": 60},
}
SMALL |= {"method": "kd", "model": {"name": "vgg8", "width": 0.125}}


def seeded(name: str) -> nn.Module:
    """With numbers of its own everywhere."""
    torch.manual_seed(0)
    network = MODELS[name](10, in_channels=1, width=0.25).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    return network


def as_published(network: nn.Module) -> dict[str, Tensor]:
    """With the names and the order of RepDistiller: batch norm behind its convolution, shortcuts where they are."""
    layers = {kind: [m for m in network.modules() if isinstance(m, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d)}
    tensors: dict[str, Tensor] = {}
    for number, pair in enumerate(zip(*layers.values(), strict=True)):
        for kind, layer in zip(("conv", "bn"), pair, strict=True):
            tensors |= {f"layer{number}.{kind}.{part}": value for part, value in layer.state_dict().items()}
    return tensors | {f"fc.{part}": value for part, value in network.classifier.state_dict().items()}


@pytest.mark.parametrize("name", ["vgg13", "resnet8", "wrn_16_1", "mobilenetv2_half", "shufflenetv2"])
def test_published_checkpoints_are_read_by_their_layout(name: str, tmp_path: Path) -> None:
    network, path = seeded(name), tmp_path / "ckpt_epoch_240.pth"
    if name == "wrn_16_1":  # a convolution less than batch norms, or more: by kinds
        named = {f"x.{key}": value for key, value in network.state_dict().items()}
    else:
        named = {f"module.{key}": value for key, value in as_published(network).items()}
    torch.save({"epoch": 240, "model": named, "best_acc": torch.tensor(1.0), "opt": argparse.Namespace(lr=0.1)}, path)
    other = MODELS[name](10, in_channels=1, width=0.25).eval()
    load_weights(other, read_weights(path), path, name)
    images = torch.randn(4, 1, 32, 32)
    assert torch.equal(other(images), network(images))
    with pytest.raises(UserError, match=f"ckpt_epoch_240.pth does not hold the weights of the network {name}"):
        load_weights(MODELS[name](10, in_channels=1, width=0.5), read_weights(path), path, name)


class Runs:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    for content, said in (
        (
            {"model": {"a": torch.ones(1)}, "opt": Runs()},
            "holds more than weights, which is not read",
        ),
        ({"model": {"a": 3}}, "holds no weights by name"),
        ([torch.ones(1)], "holds no weights by name"),
    ):
        for zipped in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(UserError, match=said):
                read_weights(path)
    for other in (b"nothing of the kind", b"<html>404 not found</html>", b"\x93NUMPY", b""):
        path.write_bytes(other)
        with pytest.raises(UserError, match=r"weights\.pth is damaged or of another kind \(.*\): name another file"):
            read_weights(path)
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        read_weights(tmp_path / "nowhere.pth")


class Sees(nn.Module):
    """Logits that say what it was shown: mean and size of its images, and 10 - 2 zeros."""

    def forward(self, images: Tensor) -> Tensor:
        sizes = torch.full((len(images), 1), float(images.shape[-1]))
        return F.pad(torch.cat([images.float().mean((1, 2, 3)).unsqueeze(1), sizes], 1), (0, 8))


def test_images_are_resized_and_restandardised_and_logits_reordered() -> None:
    settings = {"name": give(Sees(), "python/Sees"), "image_size": 48, "mean": (0.25,), "std": (0.5,)}
    classes = tuple(reversed(DIGITS.classes))
    teacher = load_network(NetworkTeacher(**settings, classes=classes), DIGITS, CPU, reads=False)
    pixels = torch.rand(3, 1, 32, 32)
    mean, std = torch.tensor(DIGITS.mean), torch.tensor(DIGITS.std)
    logits = teacher.network((pixels - mean) / std)
    torch.testing.assert_close(logits[:, 9], ((pixels - 0.25) / 0.5).mean((1, 2, 3)), rtol=1e-3, atol=1e-3)
    assert logits[:, 8].tolist() == [48.0] * 3
    assert teacher.facts.labels == tuple(range(10))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "vgg8"}, "teacher vgg8 has no weights: name a file of them, as in --teacher vgg8@FILE"),
        ({"name": "python/Sees", "mean": (0.1, 0.2)}, "takes images of 1 channels: give mean and std of each"),
        ({"name": "python/Sees", "classes": ("0", "tench")}, "knows 10 classes, but 2 are named"),
        (
            {"name": "python/Sees", "classes": (*"012345678", "tench")},
            "the class 'tench', which is none of digits",
        ),
        ({"name": "timm/resnet10t", "weights": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_what_cannot_teach_is_refused(settings: dict[str, Any], said: str) -> None:
    give(Sees(), "python/Sees")
    with pytest.raises(UserError, match=said):
        load_network(NetworkTeacher(**settings), DIGITS, CPU)


class ChangesImages(Sees):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(3))


def test_a_teacher_that_changes_the_images_of_the_student_is_refused() -> None:
    name = give(ChangesImages(), "python/ChangesImages")
    with pytest.raises(UserError, match=r"teacher python/ChangesImages changes the images that it is given, which oth"):
        load_network(NetworkTeacher(name=name), DIGITS, CPU, reads=False)
    load_network(NetworkTeacher(name=name, image_size=48), DIGITS, CPU, reads=False)  # they are its own, resized


def test_published_weights_that_cannot_be_fetched_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where nothing was fetched before
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(UserError, match=r"published weights of torchvision/resnet18 cannot be fetched .*resnet18@FILE"):
        load_network(NetworkTeacher(name="torchvision/resnet18"), DIGITS, CPU)


def test_the_words_and_the_numbers_of_imagenet_are_the_same_classes() -> None:
    """By the table of timm, which has both."""
    table = pytest.importorskip("timm.data").ImageNetInfo("imagenet-1k")
    numbers: list[str] = table.label_names()
    words = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    known = named_as_in(sorted(numbers, reverse=True), words)
    assert len(known) == len(words) == 1000
    assert known[0] == "n01440764"  # the tench, as everywhere in the literature
    for number, word in zip(known, words, strict=True):
        described = table.label_name_to_description(number).replace(",", "").lower()
        assert word.replace(" bird", "").replace(",", "").lower() in described
    assert named_as_in([*numbers[1:], "n00000000"], words) == tuple(words)  # 1000 others
    assert named_as_in(numbers[:10], words) == tuple(words)
    assert named_as_in(numbers, ["cat", "dog"]) == ("cat", "dog")


def test_a_network_of_timm_teaches_by_a_file_of_weights(tmp_path: Path) -> None:
    """Random ones: with its classes named they are its owner's affair, without them chance is refused."""
    import timm

    path = tmp_path / "random.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=10, in_chans=1).state_dict(), path)
    recipe = SMALL | {
        "teachers": {"networks": [{"name": "timm/test_resnet", "weights": str(path), "classes": list("0123456789")}]}
    }
    summary = tfkd_fast.train(recipe, tmp_path / "kd")
    assert summary["teachers"] == ["timm/test_resnet@random.pth"]
    (started,) = [event for event in tfkd_fast.load_run(tmp_path / "kd").events if event.kind == "start"]
    assert started.teachers_at_chance == ("timm/test_resnet@random.pth",)
    said = refusal(
        *("train", "digits", "--method", "kd", "--teacher", f"timm/test_resnet@{path}", "--set", "data.per_class=60"),
        *("--epochs", "1", "--device", "cpu", "--out", tmp_path / "none"),
    )
    assert "teacher timm/test_resnet@random.pth is right for" in said
    assert "which is chance: its classes may be in another order" in said
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student is better than chance."""
    run = tmp_path_factory.mktemp("trained") / "teacher"
    tfkd_fast.train(SMALL | {"method": "ce", "epochs": 3, "data": {"dataset": "digits", "batch_size": 32}}, run)
    return run


def test_modules_teach_beside_the_teachers_of_the_recipe(trained: Path, tmp_path: Path) -> None:
    class Stop(Listener):
        def event(self, event: Any) -> None:
            raise KeyboardInterrupt

    module, path = tfkd_fast.load_run(trained).student(), tmp_path / "weights.pth"
    with torch.no_grad():
        module.classifier.bias += 1e-3
    torch.save(tfkd_fast.load_run(trained).student().state_dict(), path)
    networks = [{"name": "vgg8", "width": 0.125, "weights": str(path)}]
    recipe: Any = SMALL | {"method": "kd-average", "teachers": {"networks": networks}}
    for out in (tmp_path / "first", tmp_path / "again"):
        with pytest.raises(KeyboardInterrupt):
            tfkd_fast.train(recipe, out, teachers=[module], listeners=[Stop()])
        recipe = tfkd_fast.load_run(out).recipe  # of which the second run is given the module that it names already
        assert [each.name for each in recipe.teachers.networks] == ["vgg8", f"python/{type(module).__name__}-1"]


def test_modules_teach_and_have_to_be_given_again(trained: Path, tmp_path: Path) -> None:
    teachers = [tfkd_fast.load_run(trained).student(), tfkd_fast.load_run(trained).student()]
    with torch.no_grad():
        teachers[1].classifier.bias += 1e-3

    class Stop(Listener):
        def event(self, event: Any) -> None:
            if event.kind == "epoch" and event.epoch == 2:
                raise KeyboardInterrupt

    recipe = SMALL | {"method": "kd-average"}
    tfkd_fast.train(recipe, tmp_path / "whole", teachers=teachers)
    with pytest.raises(KeyboardInterrupt):
        tfkd_fast.train(recipe, tmp_path / "killed", teachers=teachers, listeners=[Stop()])
    with pytest.raises(UserError, match=r"the teachers of the run in .* are not those that it began with"):
        tfkd_fast.resume(tmp_path / "killed", teachers=teachers[::-1])
    tfkd_fast.resume(tmp_path / "killed", teachers=teachers)
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]

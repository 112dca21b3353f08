"""A method that asks for everything at once, whatever loader and precision; and features, whose losses are float32."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.distiller import Distiller, DistillerSettings
from tests.support.runs import few_images, log, without_clocks
from tfkd_fast import tensor_file
from tfkd_fast.data import DataSettings, make_loader, open_dataset
from tfkd_fast.device import Compute
from tfkd_fast.methods import METHODS, Context, MethodEntry
from tfkd_fast.methods.base import Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.optimizer import SGDSettings
from tfkd_fast.runs.precedence import merge
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.teachers.cache import CACHE
from tfkd_fast.training.epoch import EpochTrainer
from tfkd_fast.training.population import Population
from tfkd_fast.training.trainer import Trainer

EPOCHS = 2
LOADERS: dict[str, dict[str, Any]] = {
    "resident": {"loader": "resident"},
    "torchvision": {"loader": "torchvision", "workers": 0},
}
FP32, BF16 = (Compute(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))


def train(out: Path, compute: Compute, *tables: dict[str, Any]) -> Path:
    values: dict[str, Any] = {
        "method": "distiller",
        "epochs": EPOCHS,
        "data": {"batch_size": 32, "holdout": 0.2, "loader": "resident"},
        "model": {"name": "resnet8x4", "width": 0.125},
        "schedule": {"name": "one-cycle"},
    }
    for table in tables:
        values = merge(values, table)
    recipe, folder = make_recipe(values), RunFolder(out)
    trainer = Trainer(recipe, few_images(), compute, folder, [])
    if not folder.recipe.exists():
        folder.create(recipe.to_toml())
    trainer.run()
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a recipe says of it."""
    model = {"name": "wrn_16_2", "width": 0.125}
    out = train(tmp_path_factory.mktemp("teacher") / "run", FP32, {"method": "ce", "model": model, "epochs": 4})
    return {"teachers": {"runs": [str(out)]}}


@pytest.fixture
def distiller() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "distiller", MethodEntry("everything", "a test", DistillerSettings, Distiller))
        yield


@pytest.mark.usefixtures("distiller")
def test_a_method_that_asks_for_everything_learns(teacher: dict[str, Any], tmp_path: Path) -> None:
    out = train(tmp_path / "run", BF16, teacher, {"epochs": 8})
    first, *_, last = (event for event in log(out) if event["event"] == "epoch")
    assert last["train_top1"] > 25.0  # chance is 10 with a standard error of 1.8
    for name, value in first["terms"].items():
        assert 0.0 < value < 10.0, name
    for name in ("hard", "stem", "sums", "classifier"):
        assert last["terms"][name] < 0.9 * first["terms"][name], name


@pytest.mark.usefixtures("distiller")
@pytest.mark.parametrize(
    ("view", "loader", "compute"),
    [
        ("strong", "torchvision", FP32),
        ("weak", "resident", BF16),
        ("same-class", "resident", FP32),
        ("previous", "resident", FP32),
    ],
)
def test_it_goes_on_from_a_checkpoint_to_the_bit(
    view: str, loader: str, compute: Compute, teacher: dict[str, Any], tmp_path: Path
) -> None:
    tables = teacher, {"view": view, "data": LOADERS[loader]}
    whole, part = train(tmp_path / "whole", compute, *tables), tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "student.safetensors").unlink()
    (part / "checkpoints" / "epoch-00002.ckpt").unlink()
    train(part, compute, *tables)
    assert (part / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert without_clocks(part) == without_clocks(whole)


@pytest.mark.usefixtures("distiller")
def test_the_student_is_the_same_whatever_loader_shows_its_companions(teacher: dict[str, Any], tmp_path: Path) -> None:
    runs = [train(tmp_path / name, BF16, teacher, {"data": data}) for name, data in LOADERS.items()]
    students = [(run / "student.safetensors").read_bytes() for run in runs]
    assert students[0] == students[1]


@pytest.mark.usefixtures("distiller")
def test_cached_teachers_serve_it_too(teacher: dict[str, Any], tmp_path: Path) -> None:
    """The file has the stem and the sums; companions are shown to the networks."""
    tables = teacher, {"teachers": {"views": 2, "cache": str(tmp_path / "cache")}}
    students = [train(tmp_path / name, BF16, *tables) / "student.safetensors" for name in ("made", "found")]
    assert students[0].read_bytes() == students[1].read_bytes()
    assert {"0.stem", "0.block_sums.2"} <= tensor_file.read(tmp_path / "cache", CACHE)[1].keys()


class AttentionOfStages(SingleStudent):
    """A loss of features, and the gradient that reaches the maps."""

    @classmethod
    def needs_for(cls, settings: None) -> Needs:
        return Needs(features=frozenset({"stages", "stem", "block_sums"}))

    def __init__(self, context: Context) -> None:
        super().__init__(None, context)
        torch.manual_seed(0)
        self.adapters = self.layer = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.seen: list[StepBatch] = []

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        self.seen.append(batch)
        hard, statistics = self.cross_entropy(logits, batch.labels)
        adapted = batch.adapt(self.layer, batch.need_features().block_sums[0])
        assert adapted.dtype == torch.float32
        return Loss({"hard": hard, "sums": adapted.square().mean((1, 2, 3, 4))}, statistics)


def similarity_loss(maps: Tensor, layer: nn.Module) -> Tensor:
    """Tung and Mori's similarities of a batch, ICCV 2019, of maps (B,C,H,W) that a layer has changed."""
    rows = layer(maps).flatten(1)
    return F.normalize(rows @ rows.t()).square().var()


def gradient(maps: Tensor, layer: nn.Module) -> Tensor:
    leaf = maps.detach().requires_grad_()
    (found,) = torch.autograd.grad(similarity_loss(leaf, layer), leaf)
    return found.double()


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_losses_of_features_are_float32_whatever_the_precision(compute: Compute) -> None:
    settings = DataSettings(batch_size=16, loader="resident")
    digits = open_dataset(settings)
    images = digits.read_train().subset(torch.arange(32))
    loader = make_loader(images, digits, settings, compute.device, compute.dtype, seed=3)
    method = AttentionOfStages(Context(10, 32, 4, 0, compute.device, lambda epoch: 1.0))
    before = method.layer[0].weight.detach().clone()
    network = compute.place(build_model(ModelSettings(name="wrn_16_2", width=0.125), 10, 1, seed=0))
    population = Population(lambda: network, 1)
    trainer = EpochTrainer(population, method, loader, compute, SGDSettings(), "sequential", lambda images: None)
    trainer.run(method.begin_interval(0), 0, [0.05] * len(loader), average=False)
    assert not torch.equal(method.layer[0].weight, before)  # an ordinary layer trains along

    batch = method.seen[0]
    features = batch.need_features()
    maps = [*features.before_relu, *features.after_relu, *features.block_sums, features.stem, features.pooled]
    assert {part.dtype for part in maps} == {torch.float32}
    computed = features.as_computed()
    assert {part.dtype for part in [*computed.before_relu, computed.stem]} == {compute.dtype}
    assert torch.equal(computed.stem.float(), features.stem)
    assert batch.images.dtype == compute.dtype
    shown = next(loader.epoch(0))
    assert torch.equal(batch.images[0], shown.images)

    # A layer of the method, called as it is, and a loss: against float64 of the same maps.
    layer, stage = nn.Conv2d(8, 8, 1), features.after_relu[0][0]
    found, exact = gradient(stage, layer), gradient(stage.double(), layer.double())
    assert (found - exact).norm() < 1e-4 * exact.norm()
    if compute is BF16:  # what it would have been
        rough = gradient(stage.bfloat16(), layer.bfloat16())
        assert (rough - exact).norm() > 1e-2 * exact.norm()

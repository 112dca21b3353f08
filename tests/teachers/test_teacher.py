"""Teachers: the students of finished runs, the cache of what they make of images, and what is refused."""

import json
import operator
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tfkd_fast import tensor_file
from tfkd_fast.api import train
from tfkd_fast.data import DataSettings, make_loader, open_dataset
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.data.split import split_indices
from tfkd_fast.device import Compute
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.methods.base import Needs, TeacherFacts
from tfkd_fast.models import FeatureName, FeatureShapes
from tfkd_fast.runs.recipe import Recipe, load_recipe
from tfkd_fast.teachers.cache import CACHE, gather_teachers
from tfkd_fast.teachers.teacher import (
    Teacher,
    Teachers,
    judge_teacher,
    load_teacher,
    load_teachers,
    trained_on_holdout,
    unseen_images,
)

CPU = Compute(torch.device("cpu"), torch.float32)
COUNT, HELD_OUT = 120, 30


def write_images(path: Path, classes: list[str], seed: int = 0, size: int = 32) -> Path:
    """Random images of 5 classes; `classes` names them."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = generator.integers(0, 256, (COUNT, size, size, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(COUNT) % len(classes)
    np.savez(path, **arrays)
    return path


CLASSES = ["ant", "bee", "cat", "dog", "elk"]
STAGES: frozenset[FeatureName] = frozenset({"stages"})


def a_run(out: Path, data: Path, **tables: Any) -> Path:
    recipe = load_recipe(
        None,
        {
            "method": "ce",
            "epochs": 1,
            "device": "cpu",
            "precision": "fp32",
            "data": {"dataset": "npz", "root": str(data), "holdout": HELD_OUT / COUNT, "loader": "resident"},
            "model": {"name": "resnet20", "width": 0.5},
        }
        | tables,
    )
    train(recipe, out, listeners=[])
    return out


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "five.npz", CLASSES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    return a_run(tmp_path_factory.mktemp("teacher") / "teacher", images)


def opened(path: Path) -> Any:
    return open_dataset(DataSettings(dataset="npz", root=str(path)))


def test_a_teacher_is_the_student_of_its_run(teacher: Path, images: Path) -> None:
    dataset = opened(images)
    loaded = load_teacher(teacher, dataset, CPU)
    assert (loaded.facts.name, loaded.facts.model, loaded.facts.labels) == ("teacher", "resnet20", (0, 1, 2, 3, 4))
    loader = make_loader(dataset.read_test(), dataset, DataSettings(loader="resident"), CPU.device, CPU.dtype, seed=0)
    outputs = [
        Teachers([loaded], CPU, 64, features=STAGES).predict(b.images.unsqueeze(0))[0] for b in loader.in_order()
    ]
    logits = torch.cat([output.logits[0] for output in outputs])
    labels = torch.cat([batch.labels for batch in loader.in_order()])
    summary = json.loads((teacher / "summary.json").read_text())
    assert 100 * float((logits.argmax(1) == labels).float().mean()) == pytest.approx(summary["test_top1"])
    for map, shape in zip(outputs[0].features.before_relu, loaded.facts.shapes.maps, strict=True):
        assert map.shape == (1, 64, *shape)
    assert not logits.requires_grad


def test_logits_come_in_the_order_of_the_students_classes(teacher: Path, images: Path, tmp_path: Path) -> None:
    with np.load(images) as arrays:
        names = dict(arrays)
    names["classes"] = names["classes"][::-1]
    np.savez(tmp_path / "backwards.npz", **names)
    pixels = torch.randn(1, 4, 3, 32, 32)
    expected = Teachers([load_teacher(teacher, opened(images), CPU)], CPU, 4).predict(pixels)[0].logits
    backwards = load_teacher(teacher, opened(tmp_path / "backwards.npz"), CPU)
    found = Teachers([backwards], CPU, 4).predict(pixels)[0].logits
    torch.testing.assert_close(found, expected.flip(-1), rtol=0, atol=0)
    assert backwards.facts.labels == (0, 1, 2, 3, 4)


def test_a_teacher_sees_images_standardised_as_in_its_training(teacher: Path, images: Path, tmp_path: Path) -> None:
    """The same pixels give the same logits, whatever the statistics of the student's data set are."""
    with np.load(images) as arrays:
        darker = dict(arrays)
    darker["train_images"] = darker["train_images"] // 2
    np.savez(tmp_path / "darker.npz", **darker)  # test images are the same
    results = []
    for path in (images, tmp_path / "darker.npz"):
        dataset = opened(path)
        loader = make_loader(dataset.read_test(), dataset, DataSettings(loader="resident"), CPU.device, CPU.dtype, 0)
        loaded = load_teacher(teacher, dataset, CPU)
        batch = next(loader.in_order())
        results.append(Teachers([loaded], CPU, 64).predict(batch.images.unsqueeze(0))[0].logits)
    assert opened(images).mean != opened(tmp_path / "darker.npz").mean
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)  # float32 roundings through twenty layers


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no folder", "is no run folder: it has no recipe.toml"),
        ("unfinished", "is missing: that run is not finished, go on with --resume"),
        ("no student", "it is no student file of tfkd-fast"),
        ("garbage", "the student .* is damaged or of another kind"),
        ("other classes", "knows the class 'elk', which is none of npz"),
        ("other channels", "was trained on images of shape"),
    ],
)
def test_what_cannot_teach_is_refused(teacher: Path, images: Path, tmp_path: Path, fault: str, said: str) -> None:
    folder, dataset = tmp_path / "run", opened(images)
    if fault != "no folder":
        folder.mkdir()
        (folder / "recipe.toml").write_bytes((teacher / "recipe.toml").read_bytes())
        content = (teacher / "student.safetensors").read_bytes()
        if fault == "no student":
            content = safetensors.torch.save({"a": torch.zeros(2)})
        if fault == "garbage":
            content = b"garbage"
        if fault != "unfinished":
            (folder / "student.safetensors").write_bytes(content)
    if fault == "other classes":
        dataset = opened(write_images(tmp_path / "other.npz", [*CLASSES[:4], "emu"]))
    if fault == "other channels":
        with np.load(images) as arrays:
            grey = {name: array[..., :1] if name.endswith("images") else array for name, array in arrays.items()}
        np.savez(tmp_path / "grey.npz", **grey)
        dataset = opened(tmp_path / "grey.npz")
    with pytest.raises(UserError, match=said):
        load_teacher(folder, dataset, CPU)


@pytest.mark.parametrize(("own", "expected"), [(0.1, True), (0.0, True), (HELD_OUT / COUNT, False), (0.5, False)])
def test_unseen_images_are_those_that_the_teachers_held_out(
    teacher: Path, images: Path, own: float, expected: bool
) -> None:
    dataset = opened(images)
    loaded = load_teacher(teacher, dataset, CPU)
    unseen = unseen_images([loaded], dataset, DataSettings(holdout=own))
    assert (unseen is not None) == expected
    if unseen is not None:
        (found,) = unseen
        labels = dataset.read_train().labels
        fit = split_indices(labels, own)[0] if own else torch.arange(COUNT)
        of_teacher = split_indices(labels, HELD_OUT / COUNT)[1].tolist()
        assert fit[found].tolist() == [index for index in of_teacher if index in fit.tolist()]


@pytest.mark.parametrize(("own", "seen"), [(0.5, True), (HELD_OUT / COUNT, False), (0.1, False), (0.0, False)])
def test_whether_a_teacher_was_trained_on_what_the_student_holds_out(
    teacher: Path, images: Path, tmp_path: Path, own: float, seen: bool
) -> None:
    dataset = opened(images)
    data = DataSettings(holdout=own)
    assert trained_on_holdout([load_teacher(teacher, dataset, CPU)], dataset, data) is seen
    other = opened(write_images(tmp_path / "other.npz", CLASSES, seed=1))
    assert trained_on_holdout([load_teacher(teacher, other, CPU)], other, data) is (None if own else False)
    assert trained_on_holdout([], dataset, data) is False


def test_of_a_teacher_of_other_images_nothing_is_known_to_be_unseen(teacher: Path, tmp_path: Path) -> None:
    other = opened(write_images(tmp_path / "other.npz", CLASSES, seed=1))
    none_held_out = DataSettings(holdout=0.0)
    assert unseen_images([load_teacher(teacher, other, CPU)], other, none_held_out) is None
    assert unseen_images([], other, none_held_out) is None


@pytest.mark.parametrize("kind", ["same", "link"])
def test_a_run_that_is_named_twice_is_refused(teacher: Path, images: Path, tmp_path: Path, kind: str) -> None:
    """Under whatever path."""
    again = {"same": teacher / ".." / teacher.name, "link": tmp_path / "link"}[kind]
    if kind == "link":
        again.symlink_to(teacher)
    with pytest.raises(UserError, match=f"the teachers {teacher} and .* are one run: name it once"):
        load_teachers(taught_by(teacher, again), opened(images), CPU)


@pytest.mark.parametrize("kind", ["copy", "other header"])
def test_of_runs_with_the_same_weights_a_notice_tells(teacher: Path, images: Path, tmp_path: Path, kind: str) -> None:
    again = tmp_path / "copy"
    shutil.copytree(teacher, again)
    if kind == "other header":
        header, weights = tensor_file.read(again / "student.safetensors", "student")
        content = tensor_file.to_bytes("student", header | {"holdout": 0.5}, weights)
        (again / "student.safetensors").write_bytes(content)
    with pytest.warns(Notice, match=f"the teachers {teacher} and {again} have the same weights, which count twice"):
        assert len(load_teachers(taught_by(teacher, again), opened(images), CPU)) == 2


def taught_by(*teachers: Path) -> Recipe:
    return load_recipe(None, {"method": "kd-average", "teachers": {"runs": list(map(str, teachers))}})


@pytest.mark.parametrize(("wrong", "is_chance"), [(0, False), (86, False), (88, True), (120, True)])
def test_a_teacher_at_chance_is_told_from_one_that_knows_its_images(images: Path, wrong: int, is_chance: bool) -> None:
    """Of 5 classes with 24 images each, whose labels the network reads from a pixel, but for `wrong` of them."""
    dataset = opened(images)
    labels = dataset.read_train().labels
    pixels = torch.zeros(COUNT, 3, 32, 32, dtype=torch.uint8)
    says = torch.where(torch.arange(COUNT) < wrong, (labels + 1) % 5, labels)
    pixels[:, 0, 0, 0] = says.to(torch.uint8)

    class Reads(nn.Module):
        def forward(self, shown: torch.Tensor) -> torch.Tensor:
            marked = shown[:, 0, 0, 0] * dataset.std[0] + dataset.mean[0]
            return nn.functional.one_hot((255 * marked).round().long(), 5).float()

    marked = ArrayImages(pixels, labels)
    loader = make_loader(marked, dataset, DataSettings(loader="resident"), CPU.device, CPU.dtype, seed=0)
    facts = TeacherFacts("run", "vgg8", (0, 1, 2, 3, 4), FeatureShapes((), 0))
    figures = judge_teacher(Teacher(facts, Reads(), "", "", 0.0), loader, CPU)
    assert figures.top1 == pytest.approx(1 - wrong / COUNT)
    assert figures.chance == pytest.approx(0.2 + 2 * (0.2 * 0.8 / COUNT) ** 0.5)
    assert figures.is_chance == is_chance


def test_a_specialist_is_judged_by_its_classes(images: Path) -> None:
    dataset = opened(images)

    class SaysTheSecond(nn.Module):
        def forward(self, shown: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0]]).expand(len(shown), 2)

    facts = TeacherFacts("run", "vgg8", (1, 4), FeatureShapes((), 0))
    settings = DataSettings(loader="resident")
    loader = make_loader(dataset.read_train(), dataset, settings, CPU.device, CPU.dtype, seed=0)
    figures = judge_teacher(Teacher(facts, SaysTheSecond(), "", "", 0.0), loader, CPU)
    assert figures.top1 == 0.5
    assert figures.is_chance


def gathered(
    images: Path, teacher: Path, *, features: frozenset[FeatureName] = frozenset(), **tables: Any
) -> tuple[Teachers, Any]:
    """The teachers of a student's run, and its loader."""
    data = {"dataset": "npz", "root": str(images), "batch_size": 16, "loader": "resident"} | tables.pop("data", {})
    teachers = {"runs": [str(teacher), str(teacher)]} | tables.pop("teachers", {})
    recipe = load_recipe(None, {"method": "kd", "data": data, "teachers": teachers} | tables)
    dataset = opened(images)
    loader = make_loader(dataset.read_train(), dataset, recipe.data, CPU.device, CPU.dtype, recipe.seed)
    loader = loader.with_augmentation_period(recipe.repeated_views)
    loaded = [load_teacher(Path(run), dataset, CPU) for run in recipe.teachers.runs]  # also one twice
    return gather_teachers(loaded, Needs(features=features), recipe, dataset, loader, CPU), loader


@pytest.mark.parametrize("kind", [{"teachers": {"views": 2}}, {"data": {"augment": False}}], ids=["views", "plain"])
def test_the_cache_tells_what_the_teachers_would(teacher: Path, images: Path, tmp_path: Path, kind: Any) -> None:
    tables = {"teachers": {"cache": str(tmp_path / "cache"), **kind.get("teachers", {})}, "data": kind.get("data", {})}
    names: frozenset[FeatureName] = frozenset({"stages", "stem", "block_sums"})
    gathered(images, teacher, features=names, **tables)  # makes the file
    cached, loader = gathered(images, teacher, features=names, **tables)
    assert len(cached.teachers) == 2
    for epoch in (0, 1, 5):
        cached.start(epoch)
        for batch in loader.epoch(epoch):
            shown, indices = batch.images.unsqueeze(0), batch.indices.unsqueeze(0)
            for found, expected in zip(cached.outputs(shown, indices), cached.predict(shown), strict=True):
                # Batches of other images: sums of float32 in another order.
                torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found.features.pooled, expected.features.pooled, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found.features.stem, expected.features.stem, rtol=1e-4, atol=1e-4)
                for name in ("before_relu", "after_relu", "block_sums"):
                    maps, known = (getattr(outputs.features, name) for outputs in (found, expected))
                    for pair in zip(maps, known, strict=True):
                        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_a_cache_serves_a_method_that_reads_no_more_than_it_holds(teacher: Path, images: Path, tmp_path: Path) -> None:
    tables = {"teachers": {"cache": str(tmp_path / "cache"), "views": 1}}
    gathered(images, teacher, features=STAGES | {"stem"}, **tables)
    for names in (frozenset(), STAGES, frozenset({"stem"})):
        cached, loader = gathered(images, teacher, features=names, **tables)
        batch = next(loader.epoch(0))
        (found, _) = cached.outputs(batch.images.unsqueeze(0), batch.indices.unsqueeze(0))
        assert (found.features is not None) == bool(names)
        if found.features is not None:
            assert (len(found.features.before_relu) == 3) == ("stages" in names)
            assert (found.features.stem is not None) == ("stem" in names)
            assert len(found.features.block_sums) == 0
    with pytest.raises(UserError, match="was made without the features block_sums: delete it"):
        gathered(images, teacher, features=STAGES | {"block_sums"}, **tables)


def test_a_cache_records_whatever_makes_an_image(teacher: Path, images: Path, tmp_path: Path) -> None:
    """A new key of [data] is recorded unless somebody says that it makes no pixels; older caches are made again."""
    path = tmp_path / "cache"
    gathered(images, teacher, teachers={"cache": str(path), "views": 1})
    header, tensors = tensor_file.read(path, CACHE)
    unrecorded = {key for key in DataSettings.model_fields if f"data.{key}" not in header}
    assert unrecorded == {"dataset", "root", "classes", "per_class", "batch_size", "workers"}
    del header["data.crop"]
    path.write_bytes(tensor_file.to_bytes(CACHE, header, tensors))
    with pytest.raises(UserError, match=r"was made by a version that did not record data.crop: delete it"):
        gathered(images, teacher, teachers={"cache": str(path), "views": 1})


def test_the_classifier_makes_the_teachers_logits_of_its_pooled_features(
    teacher: Path, images: Path, tmp_path: Path
) -> None:
    """Also where the classes come in another order and the images are standardised in another way."""
    with np.load(images) as arrays:
        names = dict(arrays)
    names["classes"] = names["classes"][::-1]
    names["train_images"] = names["train_images"] // 2
    np.savez(tmp_path / "other.npz", **names)
    for path in (images, tmp_path / "other.npz"):
        dataset = opened(path)
        loaded = load_teacher(teacher, dataset, Compute(torch.device("cpu"), torch.bfloat16))
        bfloat16 = Teachers([loaded], Compute(torch.device("cpu"), torch.bfloat16), 4, features=STAGES)
        (outputs,) = bfloat16.predict(torch.randn(1, 4, 3, 32, 32).bfloat16())
        classifier = loaded.facts.classifier
        pooled = outputs.features.pooled.requires_grad_()
        logits = classifier(pooled)
        torch.testing.assert_close(logits, outputs.logits, rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in classifier.parameters())
        assert not classifier.training
        (gradient,) = torch.autograd.grad(logits.sum(), pooled)
        assert gradient.abs().sum() > 0
        assert loaded.facts.network is loaded.network


@pytest.mark.parametrize("cached", [False, True])
def test_teachers_that_are_not_wanted_do_not_look(teacher: Path, images: Path, tmp_path: Path, cached: bool) -> None:
    tables = {"teachers": {"views": 1} | ({"cache": str(tmp_path / "cache")} if cached else {})}
    teachers, loader = gathered(images, teacher, **tables)
    looks = [0, 0]
    for number, each in enumerate(teachers.teachers):
        each.network.register_forward_hook(lambda *_, number=number: operator.setitem(looks, number, looks[number] + 1))
    batch = next(loader.epoch(0))
    shown, indices = batch.images.unsqueeze(0), batch.indices.unsqueeze(0)
    for wanted, expected in (((1,), [0, 1]), ((0,), [1, 1]), (None, [2, 2])):
        teachers.start(0, wanted)
        found = teachers.outputs(shown, indices)
        assert len(found) == (2 if wanted is None else 1)
        assert looks == ([0, 0] if cached else expected)
    assert len(teachers.predict(shown)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teachers": {"views": 3}}, "made with another teachers.views: delete it"),
        ({"seed": 5}, "made with another seed"),
        ({"data": {"holdout": 0.2}}, "made with another data.holdout"),
        ({"data": {"crop": "resized"}}, "made with another data.crop: delete it"),
        ({"data": {"flip": False}}, "made with another data.flip"),
        ({"data": {"auto_augment": "randaugment"}}, "made with another data.auto_augment"),
        ({"data": {"jitter": 1}}, "made with another data.jitter"),
        ({"data": {"hue_jitter": 0.5}}, "made with another data.hue_jitter"),
        ({"data": {"erasing": 1}}, "made with another data.erasing"),
        ({"teachers": {"networks": [{"name": "resnet20", "mean": [0.5] * 3}]}}, "made with another teachers.networks"),
        ({"data": {"mix": "mixup"}}, "set data.mix to none"),
        ({"teachers": {"views": 0}}, "set teachers.views"),
        ("teacher", "made with another teachers"),
        ("images", "made with another data set"),
        ("garbage", "teachers.cache .* is damaged or of another kind"),
    ],
)
def test_another_cache_is_refused(teacher: Path, images: Path, tmp_path: Path, change: Any, said: str) -> None:
    cache = tmp_path / "cache"
    gathered(images, teacher, teachers={"cache": str(cache), "views": 1})
    tables = change if isinstance(change, dict) else {}
    if change == "teacher":
        teacher = a_run(tmp_path / "other", images, seed=1)
    if change == "images":
        images = write_images(tmp_path / "other.npz", CLASSES, seed=1)
    if change == "garbage":
        cache.write_bytes(b"garbage")
    asked = {"cache": str(cache), "views": 1} | tables.get("teachers", {})
    with pytest.raises(UserError, match=said):
        gathered(images, teacher, **(tables | {"teachers": asked}))


def test_a_run_whose_teacher_has_changed_is_not_resumed(teacher: Path, images: Path, tmp_path: Path) -> None:
    from tfkd_fast.api import resume

    copied, out = tmp_path / "teacher", tmp_path / "student"
    copied.mkdir()
    for name in ("recipe.toml", "student.safetensors"):
        (copied / name).write_bytes((teacher / name).read_bytes())
    a_run(out, images, method="kd", teachers={"runs": [str(copied)]}, model={"width": 0.125})
    assert json.loads((out / "summary.json").read_text())["teachers"] == ["teacher"]
    (out / "summary.json").unlink()
    other = a_run(tmp_path / "other", images, seed=1)
    (copied / "student.safetensors").write_bytes((other / "student.safetensors").read_bytes())
    with pytest.raises(UserError, match="are not those that it began with"):
        resume(out, [])

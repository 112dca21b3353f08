"""Images classified by a finished run, through the command and from Python."""

import csv
import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from tests.support.command import refusal, run
from tests.support.runs import recipe
from tfkd_fast import api, load_run
from tfkd_fast.data import open_dataset, split_holdout
from tfkd_fast.errors import UserError
from tfkd_fast.runs.predictions import predict
from tfkd_fast.runs.stored import Weights

EXACT = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    few = {"dataset": "digits", "per_class": 40, "batch_size": 32}
    api.train(recipe("ce", data=few, optimizer={"ema_decay": 0.8}), folder)
    return folder


@pytest.fixture(scope="module")
def digits(finished: Path) -> list[np.ndarray]:
    """The test images of the run, (32,32) each."""
    return list(open_dataset(load_run(finished).recipe.data).read_test().all_images()[:, 0].numpy())


def rows(*arguments: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(run("predict", *arguments, "--format", "csv", *EXACT).stdout)))


def test_files_without_loss_are_classified_as_the_test_images(
    finished: Path, digits: list[np.ndarray], tmp_path: Path
) -> None:
    labels = open_dataset(load_run(finished).recipe.data).read_test().labels.tolist()
    for number, (digit, label) in enumerate(zip(digits, labels, strict=True)):
        folder = tmp_path / str(label)
        folder.mkdir(exist_ok=True)
        Image.fromarray(digit).save(folder / f"{number:03d}.png")
    odd = tmp_path / "0" / 'tab\there, "quotes".png'
    shutil.copy(min((tmp_path / "0").iterdir()), odd)
    *found, last = sorted(rows(finished, tmp_path), key=lambda row: "tab" in row["image"])
    assert last["image"] == str(odd).replace("\t", "\\t")
    odd.unlink()
    assert [row["image"] for row in found] == sorted(map(str, tmp_path.rglob("*.png")))
    right = sum(Path(row["image"]).parent.name == row["class"] for row in found)
    figures = json.loads(run("eval", finished, *EXACT).stdout)
    assert 100 * right / len(digits) == pytest.approx(figures["test_top1"], abs=1e-4)
    assert 15 < figures["test_top1"] < 100


@pytest.mark.parametrize("weights", ["last", "best", "ema"])
def test_probabilities_are_those_of_the_run(
    finished: Path, digits: list[np.ndarray], tmp_path: Path, weights: str
) -> None:
    """By numpy, from the pixels that Pillow decodes of files with a loss."""
    files = [tmp_path / name for name in ("b.jpg", "a.jpg", "c.jpg")]
    for file, digit in zip(files, digits, strict=False):
        Image.fromarray(digit).save(file, quality=50)
    stored = load_run(finished)
    network = {"last": stored.student, "best": stored.best, "ema": stored.ema}[weights]()
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])[:, None]
    logits = network(stored.normalise(torch.from_numpy(pixels))).detach().numpy().astype(np.float64)
    assert stored.summary is not None
    temperature = stored.summary["holdout_temperature" if weights == "last" else f"{weights}_holdout_temperature"]
    expected = softmax(logits / temperature, axis=1)
    option = [] if weights == "last" else [f"--{weights}"]
    printed = json.loads(run("predict", finished, *files, *option, "--top", "99", "--batch-size", "2", *EXACT).stdout)
    assert printed["temperature"] == temperature
    assert printed["weights"] == {"last": "student", "best": "best", "ema": "student-ema"}[weights] + ".safetensors"
    assert [entry["image"] for entry in printed["predictions"]] == list(map(str, files))
    for entry, row in zip(printed["predictions"], expected, strict=True):
        ranked = [entry, *entry["next"]]
        assert [each["label"] for each in ranked] == np.argsort(-row).tolist()
        assert [each["class"] for each in ranked] == [str(each["label"]) for each in ranked]
        np.testing.assert_allclose([each["probability"] for each in ranked], -np.sort(-row), atol=2e-6)


@pytest.mark.parametrize("weights", ["last", "best", "ema"])
def test_the_temperature_is_fitted_to_held_out_images(finished: Path, weights: Weights) -> None:
    """By scipy, with the prior of `ops.candidate_metrics`."""
    stored = load_run(finished)
    classifier = stored.classifier(weights)
    _, images = split_holdout(open_dataset(stored.recipe.data).read_train(), stored.recipe.data.holdout)
    logits = classifier(images.all_images()).detach().numpy().astype(np.float64)

    def cost(b: float) -> float:
        likelihoods = log_softmax(b * logits, axis=1)[np.arange(len(images)), images.labels.numpy()]
        return float(b - 1 - np.log(b) - likelihoods.sum())

    fitted = minimize_scalar(cost, bounds=(1 / 20, 20), method="bounded", options={"xatol": 1e-6})
    assert classifier.temperature == pytest.approx(1 / fitted.x, rel=1e-3)


def test_photographs_are_read_as_the_test_reads_them(tmp_path: Path) -> None:
    """Of any size, in JPEG files: the likelihood of the labels is that of the test."""
    random = np.random.default_rng(0)
    for number in range(24):
        part, label = ("train", "test")[number % 2], "ab"[number % 4 // 2]
        file = tmp_path / "photos" / part / label / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (7, 5 + number % 3, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((70 + number, 90), Image.Resampling.BICUBIC).save(file)
    data = {"dataset": "folder", "root": str(tmp_path / "photos"), "batch_size": 6, "holdout": 0, "centre_crop": 0.8}
    summary = api.train(recipe("ce", data=data), tmp_path / "run")
    found = predict(load_run(tmp_path / "run"), [tmp_path / "photos" / "test"], top=2, device="cpu", precision="fp32")
    surprises = [-np.log(each.probabilities[each.classes.index(each.image.parent.name)]) for each in found]
    assert len(surprises) == 12
    assert np.mean(surprises) == pytest.approx(summary["test_nll"], rel=1e-5)


def turned(digit: np.ndarray, file: Path) -> None:
    """The pixels lie on their side, and EXIF says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(digit)).save(file, exif=exif)


KINDS: dict[str, Callable[[np.ndarray, Path], object]] = {
    "RGB": lambda digit, file: Image.fromarray(digit).convert("RGB").save(file),
    "opaque": lambda digit, file: Image.fromarray(digit).convert("RGBA").save(file),
    "black ink, transparent paper": lambda digit, file: Image.merge(
        "LA", [Image.new("L", (32, 32)), Image.fromarray(255 - digit)]
    ).save(file),
    "palette": lambda digit, file: Image.fromarray(digit).convert("P").save(file),
    "16 bits": lambda digit, file: Image.fromarray(257 * digit.astype(np.uint16)).save(file),
    "turned": turned,
    "broad": lambda digit, file: Image.fromarray(np.pad(digit, ((0, 0), (9, 9)))).save(file),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read_as_the_images_of_the_run(
    finished: Path, digits: list[np.ndarray], tmp_path: Path, kind: str
) -> None:
    """To the pixel."""
    file = tmp_path / "digit.png"
    KINDS[kind](digits[0], file)
    (pixels,) = load_run(finished).classifier().read([file]).numpy()
    assert np.array_equal(pixels, digits[0][None])


def test_what_cannot_be_classified_is_refused(finished: Path, digits: list[np.ndarray], tmp_path: Path) -> None:
    good, empty, text, cut = (tmp_path / name for name in ("good.png", "empty", "text.png", "cut.png"))
    Image.fromarray(digits[0]).save(good)
    empty.mkdir()
    text.write_text("no image")
    cut.write_bytes(good.read_bytes()[:200])
    floats = tmp_path / "floats.tif"
    Image.fromarray(np.zeros((32, 32), np.float32)).save(floats)
    assert f"{empty} holds no image (.bmp, .gif" in refusal("predict", finished, empty)
    assert "no image format that Pillow knows" in refusal("predict", finished, good, text)
    assert f"the image {cut} cannot be read" in refusal("predict", finished, good, cut)
    assert f"the image {floats} holds floats" in refusal("predict", finished, floats)
    assert f"there is no image {tmp_path / 'none.png'}" in refusal("predict", finished, good, tmp_path / "none.png")
    assert "is no run folder" in refusal("predict", tmp_path / "nowhere", good)
    assert "name different weights of the run" in refusal("predict", finished, good, "--best", "--ema")
    part = tmp_path / "part"
    shutil.copytree(finished, part)
    for name in ("best.safetensors", "student-ema.safetensors"):
        (part / name).unlink()
    assert f"{part} has no best epoch" in refusal("predict", part, good, "--best")
    assert f"{part} has no moving average of the weights" in refusal("predict", part, good, "--ema")
    whole = (part / "student.safetensors").read_bytes()
    (part / "student.safetensors").write_bytes(whole[:-9] + b"damaged!!")
    assert "its checksum is wrong" in refusal("predict", part, good)
    (part / "student.safetensors").unlink()
    assert "that run is not finished, go on with --resume" in refusal("predict", part, good)


def test_a_run_without_a_temperature_says_so(finished: Path, digits: list[np.ndarray], tmp_path: Path) -> None:
    part, file = tmp_path / "part", tmp_path / "digit.png"
    Image.fromarray(digits[0]).save(file)
    shutil.copytree(finished, part)
    (part / "summary.json").unlink()  # as before the end of a run
    ended = run("predict", part, file, "--best", *EXACT)
    assert f"no temperature is known of {part}" in ended.stderr
    assert json.loads(ended.stdout)["temperature"] is None


def test_images_of_pillow_are_read_and_none_are_refused(finished: Path, digits: list[np.ndarray]) -> None:
    classifier = load_run(finished).classifier()
    assert torch.equal(classifier.read([Image.fromarray(digits[0])])[0, 0], torch.from_numpy(digits[0]))
    with pytest.raises(UserError, match="there are no images to read"):
        classifier.read([])


@pytest.mark.parametrize("far", [lambda pixels: pixels, lambda pixels: (pixels / 255 - 0.5) / 0.2])
def test_floats_of_another_range_are_refused(
    finished: Path, digits: list[np.ndarray], far: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Grey levels and normalised images; what interpolation makes of fractions is taken, and the module is exported."""
    loaded = load_run(finished)
    classifier, pixels = loaded.classifier(), torch.from_numpy(np.stack(digits[:4]))[:, None]
    for read in (classifier, classifier.probabilities, loaded.normalise):
        with pytest.raises(UserError, match=r"floating-point pixels are between 0 and 1, and one is .*: divide grey"):
            read(far(pixels.float()))
    fractions = pixels / 255
    torch.testing.assert_close(classifier(fractions), classifier(pixels))
    assert classifier(1.1 * fractions - 0.05).isfinite().all()
    exported = torch.export.export(classifier, (fractions,)).module()
    torch.testing.assert_close(exported(fractions), classifier(fractions))


def test_wrong_arguments_from_python_are_refused(
    finished: Path, digits: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(digits[0]).save("i.png")
    loaded = load_run(finished)
    (single,) = predict(loaded, "i.png", device="cpu", precision="fp32")
    assert single == predict(loaded, [Path("i.png")], device="cpu", precision="fp32")[0]
    assert np.array_equal(loaded.classifier().read("i.png")[0, 0].numpy(), digits[0])
    with pytest.raises(UserError, match=r"there is no image none\.png"):
        predict(loaded, "none.png")
    with pytest.raises(UserError, match="batch_size must be a whole number from 1"):
        predict(loaded, ["i.png"], batch_size=0)
    with pytest.raises(UserError, match="top must be a whole number from 1"):
        predict(loaded, ["i.png"], top=0)
    weights: Any = "latest"
    with pytest.raises(UserError, match=r"a run has no weights 'latest': did you mean 'last'\?"):
        loaded.classifier(weights)

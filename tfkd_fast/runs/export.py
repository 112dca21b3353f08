"""A student in the formats that other programs load. Inference needs nothing of this package."""

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tfkd_fast.data import Dataset, open_dataset
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.files import write_bytes
from tfkd_fast.models import NetworkOrFactory
from tfkd_fast.plugins import explain
from tfkd_fast.runs.classifier import ImageClassifier
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.stored import StoredRun, Weights, load_run
from tfkd_fast.strict_json import to_json

if TYPE_CHECKING:
    import onnxruntime

IMAGES = "images"
"""The name of the input of an export."""
COMPARED = 64
"""Number of images that the outputs of an export are compared on (our choice)."""
ONNX_NEEDS = "ONNX needs more: pip install 'tfkd-fast[export]'"
"""The sentence about packages that are missing."""
TOLERANCE = 1e-4
"""Largest difference between outputs of an export and of the student, absolute and relative, that roundings explain."""


class Inside(NamedTuple):
    """What an exported network does itself, beside the student."""

    uint8: bool = False
    """Whether it takes pixels as uint8 and normalises them; else it takes normalised images as float32."""
    temperature: bool = False
    """Whether it divides logits by the temperature of the run."""
    softmax: bool = False
    """Whether it gives probabilities instead of logits."""

    @property
    def output(self) -> str:
        """The name of the output."""
        return "probabilities" if self.softmax else "logits"


class Exported(nn.Module):
    """A student as other programs get it: from `images` to `logits` or `probabilities`."""

    def __init__(self, classifier: ImageClassifier, inside: Inside) -> None:
        """Put together what an export does.

        Raises:
            UserError: a temperature is asked for, and none is known.
        """
        super().__init__()
        if inside.temperature and classifier.temperature is None:
            raise UserError(
                "no temperature is known of this run, as of one without held-out images or of an earlier version: "
                "export without --temperature"
            )
        self.network = classifier.network
        self.normalise = classifier.normalise if inside.uint8 else nn.Identity()
        self.temperature = classifier.temperature if inside.temperature else None
        self.inside = inside
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits or probabilities (B, number of classes) of images (B,C,H,W), uint8 or float32."""
        outputs: Tensor = self.network(self.normalise(images))
        if self.temperature is not None:
            outputs = outputs / self.temperature
        return outputs.softmax(-1) if self.inside.softmax else outputs


def export_student(
    out: Path | str,
    *,
    weights: Weights = "last",
    inside: Inside | None = None,
    data_root: Path | str | None = None,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
) -> list[Path]:
    """Write a student for `torch.export` and as ONNX beside its weights, as student.pt2 and student.onnx.

    Input and output are named `images` and `logits`, or `probabilities`; B may be any number of images. Both files hold
    the names of the classes, the normalisation and the metrics of the run as well, see `describe_export`. Before they
    are written, their outputs, in ONNX Runtime and in torch, are compared with those of the student on training images,
    or on random pixels, with a `Notice`, where the data set is not at hand.

    Args:
        out: the run folder.
        weights: the weights of the run, see `StoredRun.classifier`; the files are named after theirs.
        inside: what the network does itself, beside the student; None for nothing else.
        data_root: the place of the data set, where it is no longer that of the recipe.
        dataset: the data set that the run was given, see `tfkd_fast.train`.
        model: the module or the factory of the run, where this process cannot import it.

    Returns:
        The paths of the weights, of the program of torch and of the ONNX file.

    Raises:
        UserError: the run has no such weights, torch cannot trace the network, a package is missing, or outputs differ.
    """
    inside = inside or Inside()
    folder = RunFolder(Path(out))
    folder.require_run()
    with folder.lock():  # also while the student is read, which another run might replace
        run = load_run(out, model=model)
        path, classifier = run.weights_file(weights), run.classifier(weights)
        student = Exported(classifier, inside)
        images = take_in(_images_to_compare(run, classifier, data_root, dataset), classifier, inside)
        description = describe_export(run, weights, classifier, inside)
        program = _trace(student, images, run.recipe.model.name)
        _refuse_difference(student, program.module(), images, f"the program of {path}")
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"metadata.json": to_json(description)})
        archive, onnx_file = path.with_suffix(".pt2"), path.with_suffix(".onnx")
        try:
            onnx_content = _to_onnx(program, student, description)
            _refuse_difference(student, partial(run_onnx, open_onnx(onnx_content)), images, f"the ONNX file of {path}")
        except ImportError:
            write_bytes(archive, content.getvalue())
            raise UserError(f"wrote {archive}, but {ONNX_NEEDS}") from None
        write_bytes(archive, content.getvalue())
        write_bytes(onnx_file, onnx_content)
    return [folder.path / file.name for file in (path, archive, onnx_file)]


def describe_export(run: StoredRun, weights: Weights, classifier: ImageClassifier, inside: Inside) -> dict[str, str]:
    """What an exported file says of itself, by name: words, or JSON where there is more than one value.

    The names are input, output, classes, image_shape, mean, std, temperature, metrics (see `StoredRun.metrics`), run
    and weights. The temperature is null where none is known.
    """
    recipe, trained = run.recipe, classifier.trained
    facts = {"dataset": recipe.data.dataset, "method": recipe.method, "model": recipe.model.model_dump()}
    return {
        "input": "uint8, pixels 0..255" if inside.uint8 else "float32, (pixels / 255 - mean) / std",
        "output": f"{inside.output}{' of logits divided by temperature' if inside.temperature else ''}",
        "classes": to_json(trained.classes),
        "image_shape": to_json(trained.image_shape),
        "mean": to_json(trained.mean),
        "std": to_json(trained.std),
        "temperature": to_json(classifier.temperature),
        "metrics": to_json(run.metrics(weights)),
        "run": to_json(facts | {"epochs": recipe.epochs, "seed": recipe.seed}),
        "weights": run.weights_file(weights).name,
    }


def describe(content: bytes, description: dict[str, str]) -> bytes:
    """The bytes of an ONNX file with another description, see `describe_export`."""
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, description)
    return model.SerializeToString()


def take_in(pixels: Tensor, classifier: ImageClassifier, inside: Inside) -> Tensor:
    """Return pixels (B,C,H,W) uint8 as an export takes them."""
    images: Tensor = pixels if inside.uint8 else classifier.normalise(pixels)
    return images


def open_onnx(content: bytes) -> "onnxruntime.InferenceSession":
    """Open the bytes of an ONNX file in ONNX Runtime, on the processor, with as many threads as torch has.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_onnx(session: "onnxruntime.InferenceSession", images: Tensor) -> Tensor:
    """Return the outputs (B, number of classes) of an ONNX file for images (B,C,H,W)."""
    return torch.from_numpy(session.run(None, {IMAGES: images.numpy()})[0])


def choose_training_images(dataset: Dataset, count: int) -> Tensor:
    """Return `count` training images (count,C,H,W) uint8, or all where there are fewer, evenly over their order."""
    images = dataset.read_train()
    places = torch.arange(len(images)) if len(images) <= count else torch.arange(count) * len(images) // count
    return images.subset(places).all_images()


def _images_to_compare(
    run: StoredRun, classifier: ImageClassifier, data_root: Path | str | None, dataset: Any
) -> Tensor:
    """Training images (N,C,H,W) uint8, or random pixels where the data set is not at hand.

    Whether it is the one that the student was trained on is not asked, since that would read all of it.
    """
    try:
        images = choose_training_images(
            open_dataset(run.recipe.with_data_root(data_root).data, pairs=dataset), COMPARED
        )
        if images.shape[1:] != classifier.image_shape:
            raise UserError(f"the images of its data set are {tuple(images.shape[1:])} now: restore it")
        return images
    except UserError as error:
        if data_root is not None or dataset is not None:
            raise
        notice = f"the export of {run.path} is compared with the student on random pixels, not on images"
        warnings.warn(Notice(f"{notice}, because {error}"), stacklevel=3)
        noise = torch.Generator().manual_seed(0)
        return torch.randint(256, (COMPARED, *classifier.image_shape), dtype=torch.uint8, generator=noise)


def _trace(student: Exported, images: Tensor, name: str) -> ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(student, (images[:2],), dynamic_shapes=shapes)
    except Exception as error:  # whatever the code of others makes the tracer raise
        explain(f"torch.export cannot trace the network {name} for batches of any size, as an export needs", error)


def _to_onnx(program: ExportedProgram, student: Exported, description: dict[str, str]) -> bytes:
    """The bytes of an ONNX file, without the exporter's notes, which name files of this machine."""
    output = student.inside.output
    try:
        converted = torch.onnx.export(program, input_names=[IMAGES], output_names=[output], verbose=False)
    except torch.onnx.OnnxExporterError as error:
        explain(f"the network of {description['weights']} cannot be written as ONNX", error)
    assert converted is not None
    content = converted.model_proto
    for node in content.graph.node:
        del node.metadata_props[:]
    for value in (*content.graph.input, *content.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return describe(content.SerializeToString(), description)


@torch.no_grad()
def _refuse_difference(student: Exported, export: Callable[[Tensor], Tensor], images: Tensor, what: str) -> None:
    """Raise UserError if an export gives other outputs than the student, for a batch or for a single image."""
    for batch in (images, images[:1]):
        outputs, expected = export(batch), student(batch)
        if not torch.allclose(outputs, expected, rtol=TOLERANCE, atol=TOLERANCE):
            largest = (outputs - expected).abs().max()
            raise UserError(
                f"{what} would give other outputs than the student, by up to {largest:.2g}, and is not written: use "
                "the weights themselves"
            )

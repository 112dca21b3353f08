"""Training with a process: the weights that were searched for, at the same relative time."""

import copy
import math
from pathlib import Path

import pytest
import torch

from tests.methods.distpro.steps import Step, context, draw_batch, network, outputs
from tfkd_fast.errors import UserError
from tfkd_fast.events import PathwaysWeighed
from tfkd_fast.methods.distpro import DistPro, DistProSearch, DistProSearchSettings, DistProSettings
from tfkd_fast.methods.distpro.pathways import PathwaySettings, biased_softmax
from tfkd_fast.methods.distpro.process import FILE, Process, load_process
from tfkd_fast.methods.distpro.student import context_pathways
from tfkd_fast.runs.recipe import make_recipe

LINEAR = {"transforms": ["identity-1x1"]}


def write(folder: Path, alpha: torch.Tensor) -> Process:
    """alpha (T,15) at even moments, between a VGG-13 and a VGG-8."""
    pathways = context_pathways(context(), PathwaySettings.model_validate(LINEAR))
    process = Process(pathways, torch.linspace(0, 1, len(alpha), dtype=torch.float64), alpha)
    (folder / FILE).write_bytes(process.to_bytes("vgg13", "vgg8"))
    return process


def build(folder: Path, *, skip_below: float = 0.0, epochs: int = 4, strength: float = 1.0) -> DistPro:
    process = {"file": str(folder), "strength": strength}
    tables = {"pathways": LINEAR | {"skip_below": skip_below}, "process": process}
    return DistPro(DistProSettings.model_validate(tables), context(epochs=epochs))


def test_an_epoch_has_the_weights_of_its_middle(tmp_path: Path) -> None:
    """Moments at 0, 1/8, ..., 1: the middles of four epochs are among them, and the weights exactly those."""
    alpha = torch.randn(9, 15, generator=torch.Generator().manual_seed(0))
    write(tmp_path, alpha)
    method = build(tmp_path)
    for epoch in range(4):
        (event,) = method.begin_interval(epoch).events
        assert torch.equal(method.weights, 15 * biased_softmax(alpha[2 * epoch + 1]))
        assert isinstance(event, PathwaysWeighed)
        assert event.epoch == epoch + 1
        assert list(event.weights) == method.weights.tolist()
        assert len(event.names) == 15


def test_a_process_that_was_searched_for_is_replayed_at_the_moments_of_the_search(tmp_path: Path) -> None:
    """Without smoothing these are the weights that the search had there, bit for bit."""
    settings = DistProSearchSettings.model_validate(
        {
            "pathways": LINEAR | {"skip_below": 0.0},
            "search": {"record_every": 1, "smoothing": 0.0, "normalization": "biased-softmax"},
        }
    )
    search = DistProSearch(settings, context())
    batch = draw_batch(1)
    step = Step(search, network(), outputs(network("vgg13", seed=5), batch.images), batch, draw_batch(2))
    had = []
    for _ in range(4):
        search.before_step(step)
        step.take()
        had.append(search.weights.clone())
    (tmp_path / FILE).write_bytes(search.files()[FILE])
    process = load_process(tmp_path)
    for moment, weights in enumerate(had):
        assert torch.equal(biased_softmax(process.at(moment / 4)), weights)
    replayed = build(tmp_path, epochs=2)  # with middles at 1/4 and 3/4
    for epoch, moment in ((0, 1), (1, 3)):
        replayed.begin_interval(epoch)
        assert torch.equal(replayed.weights, 15 * had[moment])


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_the_weights_are_those_of_the_authors_command_for_retraining(tmp_path: Path, strength: float) -> None:
    """Of K pathways K kd_weight exp(alpha_k) / (e + sum_j exp(alpha_j)); their kd_weight is 1."""
    alpha = torch.randn(9, 15, generator=torch.Generator().manual_seed(0))
    write(tmp_path, alpha)
    method = build(tmp_path, strength=strength)
    for epoch in range(4):
        method.begin_interval(epoch)
        exponentials = [math.exp(value) for value in alpha[2 * epoch + 1].tolist()]
        wanted = [15 * strength * value / (math.e + sum(exponentials)) for value in exponentials]
        assert method.weights.tolist() == pytest.approx(wanted, rel=1e-6)
    assert DistProSettings().process.strength == 1.0


def test_a_uniform_process_needs_no_file_and_weighs_all_pathways_alike() -> None:
    settings = DistProSettings.model_validate({"pathways": LINEAR, "process": {"uniform": True}})
    method = DistPro(settings, context())
    for epoch in range(4):
        method.begin_interval(epoch)
        assert method.weights.tolist() == pytest.approx([15 * math.e / (math.e + 15 * math.e)] * 15, rel=1e-6)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"uniform": True, "file": "search"}, r"process\.file.* is read only where uniform is false"),
        ({"strength": 0}, r"recipe key 'process\.strength"),
    ],
)
def test_bad_settings_are_refused(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_recipe({"method": "distpro", "process": table})


def test_small_weights_are_skipped_and_pathways_that_never_count_are_not_there(tmp_path: Path) -> None:
    alpha = torch.ones(9, 15)
    alpha[:, 2] = -3.0
    alpha[:3, 5] = -3.0  # in the first epoch alone: its middle is moment 1, that of the second is 3
    process = write(tmp_path, alpha)
    method = build(tmp_path, skip_below=0.5)
    assert [pathway.name for pathway in method.pathways] == [p.name for k, p in enumerate(process.pathways) if k != 2]
    first = method.begin_interval(0).phase
    assert method.computed == [k for k in range(14) if k != 4]
    assert torch.equal(method.weights.nonzero().flatten(), torch.tensor(method.computed))
    place = method.weights.data_ptr()
    second = method.begin_interval(1).phase
    assert method.computed == list(range(14))
    assert first != second
    assert method.begin_interval(2).phase == second
    assert method.weights.data_ptr() == place


def test_what_is_skipped_changes_seven_times_at_most(tmp_path: Path) -> None:
    """Each change is a step to capture. A pathway that counts in one epoch of a span is computed in all of them, with
    the weight that it has."""
    alpha = 3.0 * torch.randn(33, 15, generator=torch.Generator().manual_seed(0))
    process = write(tmp_path, alpha)
    method = build(tmp_path, skip_below=0.5, epochs=32)
    number = {pathway: k for k, pathway in enumerate(process.pathways)}
    phases = []
    for epoch in range(32):
        phases.append(method.begin_interval(epoch).phase)
        weights = 15 * biased_softmax(process.at((epoch + 0.5) / 32))
        for pathway, weight in zip(method.pathways, method.weights, strict=True):
            assert weight in (0.0, weights[number[pathway]])
            assert weight > 0 or weights[number[pathway]] < 0.5
    assert [len(set(phases[start : start + 4])) for start in range(0, 32, 4)] == [1] * 8
    assert len(set(phases)) == 8


def test_a_resumed_run_goes_on_with_the_same_process_and_refuses_another(tmp_path: Path) -> None:
    write(tmp_path, torch.randn(9, 15, generator=torch.Generator().manual_seed(0)))
    straight, resumed = build(tmp_path), build(tmp_path)
    straight.begin_interval(0)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for method in (straight, resumed):
        method.begin_interval(1)
    assert torch.equal(straight.weights, resumed.weights)
    write(tmp_path, torch.ones(9, 15))
    with pytest.raises(UserError, match="is not the one that this run began with"):
        build(tmp_path).load_state_dict(straight.state_dict())


def test_without_a_process_there_is_nothing_to_train_with() -> None:
    with pytest.raises(UserError, match=r"set process\.file to the folder of a run of distpro-search"):
        DistPro(DistProSettings(), context())

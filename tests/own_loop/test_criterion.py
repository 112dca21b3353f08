"""The criterion: what a call needs, when it counts, and that a loop that is restored goes on with the same bits."""

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.own_loop.calls import BATCH, CLASSES, EPOCHS, HELD_OUT, IMAGES, SERVED, arguments, make
from tfkd_fast.errors import UserError
from tfkd_fast.events import CandidateDiverged, ControllerRewarded, TargetsDecided
from tfkd_fast.own_loop import Criterion, EpochReport

STEPS = 3


def train_steps(name: str, criterion: Criterion, epoch: int, steps: range) -> list[float]:
    """Losses and norms of the gradient of every candidate in some steps of an epoch."""
    figures = []
    for step in steps:
        for candidate in range(criterion.candidates):
            given = arguments(name, 100 * epoch + 10 * step + candidate, criterion.candidates)
            joint = given["logits"].ndim == 3
            if not joint or candidate == 0:
                losses = criterion(**given, candidate=0 if joint else candidate)
                (gradient,) = torch.autograd.grad(losses.sum(), given["logits"])
                figures += [*losses.flatten().tolist(), gradient.double().norm().item()]
    return figures


def end_epoch(criterion: Criterion, epoch: int) -> EpochReport:
    generator = torch.Generator().manual_seed(7 + epoch)
    labels = torch.randint(CLASSES, (HELD_OUT,), generator=generator)
    return criterion.end_epoch(torch.randn(criterion.candidates, HELD_OUT, CLASSES, generator=generator), labels)


def saved(criterion: Criterion) -> dict[str, Any]:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("within", [0, 2], ids=["between epochs", "within an epoch"])
@pytest.mark.parametrize("name", SERVED)
def test_a_restored_criterion_goes_on_with_the_same_bits(name: str, within: int) -> None:
    straight = make(name)
    for epoch in range(2):
        train_steps(name, straight, epoch, range(STEPS))
        end_epoch(straight, epoch)
    train_steps(name, straight, 2, range(within))
    state = saved(straight)
    restored = make(name)
    train_steps(name, restored, 9, range(1))  # of which nothing may be left
    restored.load_state_dict(state)

    def go_on(criterion: Criterion) -> list[object]:
        losses = train_steps(name, criterion, 2, range(within, STEPS))
        results = end_epoch(criterion, 2).results
        losses += train_steps(name, criterion, 3, range(STEPS))
        return [losses, results, end_epoch(criterion, 3).survivors]

    assert go_on(straight) == go_on(restored)
    with pytest.raises(UserError, match=f"all {EPOCHS} epochs have ended"):
        straight(**arguments(name, 0))


@pytest.mark.parametrize("name", SERVED)
def test_a_call_without_what_the_method_needs_says_what_it_is(name: str) -> None:
    given = arguments(name, 0, candidates=2)
    for needed in given.keys() - {"logits", "labels"}:
        without = {key: value for key, value in given.items() if key != needed}
        with pytest.raises(UserError, match=f"method '{name}' .*{needed}"):
            make(name)(**without)


def test_cross_entropy_is_cross_entropy_whatever_the_dtype_and_with_mixed_images() -> None:
    criterion = make("ce")
    logits = torch.randn(BATCH, CLASSES, dtype=torch.bfloat16, requires_grad=True)
    labels, partners = torch.randint(CLASSES, (2, BATCH))
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels))
    mixed = criterion(logits, labels, mixed_with=(partners, 0.3))
    other = F.cross_entropy(logits.float(), partners)
    torch.testing.assert_close(mixed, 0.3 * F.cross_entropy(logits.float(), labels) + 0.7 * other)
    mixed.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_an_epoch_is_reported_with_means_over_its_images() -> None:
    """Also where the last batch is smaller."""
    criterion, logits, labels = make("ce"), torch.randn(11, CLASSES), torch.randint(CLASSES, (11,))
    for part in torch.arange(11).split(BATCH):
        criterion(logits[part], labels[part])
    held, truth = torch.randn(HELD_OUT, CLASSES), torch.randint(CLASSES, (HELD_OUT,))
    (result,) = criterion.end_epoch(held, truth).results
    assert result.training.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert result.training.top1 == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert result.holdout is not None
    assert result.holdout.nll == pytest.approx(float(F.cross_entropy(held, truth)), rel=1e-6)


def test_controllers_judge_by_averaged_weights_where_their_logits_are_given() -> None:
    rewards = []
    held, labels = torch.randn(HELD_OUT, CLASSES), torch.randint(CLASSES, (HELD_OUT,))
    better, worse = (held + margin * F.one_hot(labels, CLASSES) for margin in (3, -3))
    for averaged in (better, worse):
        criterion = make("tfkd", controller={"name": "ucb", "warmup_epochs": 0})
        criterion(**arguments("tfkd", 0))
        report = criterion.end_epoch(held, labels, averaged=averaged)
        rewards += [event.rewards[0] for event in report.events if event.kind == "reward"]
    assert rewards[0] > 0 > rewards[1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_controller_learns_also_where_a_loop_evaluates(mode: type[torch.no_grad | torch.inference_mode]) -> None:
    criterion = make("tfkd", epochs=2, controller={"name": "ppo", "warmup_epochs": 0, "single_buffer": 2})
    updates = []
    for epoch in range(2):
        criterion(**arguments("tfkd", epoch))
        with mode():
            report = end_epoch(criterion, epoch)
        updates += [event.update for event in report.events if isinstance(event, ControllerRewarded)]
    assert updates[0] is None
    assert updates[1]["std"] > 0


def test_the_first_epoch_of_an_interval_reports_what_was_decided() -> None:
    criterion = make("tfkd-mrs")
    for candidate in range(3):
        criterion(**arguments("tfkd-mrs", candidate), candidate=candidate)
    decided, again = end_epoch(criterion, 0).events  # for the first epoch, and for the second
    for number, decision in enumerate((decided, again), start=1):
        assert isinstance(decision, TargetsDecided)
        assert (decision.first_epoch, len(decision.candidates)) == (number, 3)
    assert criterion.learning_rate_factors == (1.0,) * 3


def test_a_candidate_that_diverged_is_left_out_and_a_single_student_is_told() -> None:
    criterion = make("tfkd-mrs", selection={"candidates": 2, "interval": 1})
    broken = arguments("tfkd-mrs", 0)
    for candidate in range(2):
        criterion(**broken | {"logits": broken["logits"] * (float("nan") if candidate else 1.0)}, candidate=candidate)
    report = end_epoch(criterion, 0)
    assert report.survivors == (0,)
    assert [event.candidate for event in report.events if isinstance(event, CandidateDiverged)] == [1]
    single = make("tfkd")
    single(**broken | {"logits": broken["logits"] * float("inf")})
    with pytest.raises(UserError, match="not finite in epoch 1: lower the learning rate"):
        end_epoch(single, 0)


def test_layers_of_a_method_are_parameters_that_learn_and_are_saved() -> None:
    criterion = make("uskd")
    names = [name for name, _ in criterion.named_parameters()]
    assert names == ["adapters.weight", "adapters.bias"]
    criterion(**arguments("uskd", 0)).backward()
    assert all(parameter.grad is not None for parameter in criterion.parameters())
    assert {*criterion.state_dict()} == {*names, "_extra_state"}


def test_it_follows_a_network_to_another_device_with_its_state() -> None:
    """The meta device stands for any other; there and back again nothing would be left of the values."""
    criterion = make("ols")
    network = torch.nn.ModuleList([torch.nn.Linear(2, 2), criterion])
    criterion(**arguments("ols", 0))
    before = copy.deepcopy(criterion.state_dict())
    network.half()  # the dtype stays
    network.to("cpu")
    after = criterion.state_dict()["_extra_state"]
    for name, tensor in before["_extra_state"]["state"].items():
        assert torch.equal(after["state"][name], tensor)
    network.to("meta")
    with pytest.raises(UserError, match="the logits are on cpu and the criterion on meta"):
        criterion(**arguments("ols", 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": torch.zeros(BATCH, CLASSES + 1)}, r"logits must be \(images, 5\): got \(8, 6\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be one a row of the logits: got \(3,\)"),
        ({"labels": torch.zeros(BATCH)}, r"labels must be an int64 tensor: got torch\.float32"),
        ({"labels": [0] * BATCH}, r"labels must be an int64 tensor: got list"),
        ({"indices": torch.full((BATCH,), IMAGES)}, "there are num_images = 40 training images: got index 40"),
        ({"indices": torch.tensor([0] * (BATCH - 1) + [-1])}, "num_images = 40 training images: got index -1"),
        ({"indices": torch.arange(3)}, r"indices must be one a row of the logits: got \(3,\)"),
        ({"indices": torch.zeros(BATCH)}, r"indices must be an int64 tensor: got torch\.float32"),
        ({"candidate": 1}, "1 candidates train in this epoch: got logits of candidate 1"),
        ({"mixed_with": (torch.zeros(BATCH, dtype=torch.int64), 0.5)}, "train it without mixed images"),
        ({"teachers": torch.zeros(BATCH, CLASSES)}, r"learns from 0 teachers.*\(got 1\)"),
    ],
)
def test_wrong_calls_are_refused_in_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make("ps-kd")(**arguments("ps-kd", 0) | change)


@pytest.mark.parametrize("shape", [(BATCH, CLASSES - 1), (BATCH - 1, CLASSES), (2, BATCH, CLASSES)])
@pytest.mark.parametrize(
    ("name", "which", "words"),
    [
        ("kd", "teachers", "logits of a teacher"),
        ("cs-kd", "companions", "logits of companions"),
        ("tfkd", "slow_logits", "slow_logits"),
    ],
)
def test_logits_of_other_images_or_classes_are_refused(name: str, which: str, words: str, shape: tuple[int]) -> None:
    tables = {"target": {"sources": ["slow-self"]}} if which == "slow_logits" else {}
    given = arguments(name, 0) | {which: torch.zeros(shape)} | {"indices": torch.arange(BATCH)}
    with pytest.raises(UserError, match=rf"{words} must be \(8, 5\), images and classes: got"):
        make(name, **tables)(**given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": "10"}, "num_classes must be a whole number from 2 to .*: got '10'"),
        ({"num_classes": 1}, "num_classes must be a whole number from 2"),
        ({"epochs": 2.5}, "epochs must be a whole number from 1"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 2**64}, "seed must be a whole number from 0"),
        ({"num_images": -5}, "num_images must be a whole number from 0"),
        ({"num_images": 8.0}, "num_images must be a whole number from 0"),
        ({"batch_size": True}, "batch_size must be a whole number from 0"),
        ({"num_teachers": -1}, "num_teachers must be a whole number from 0"),
        ({"device": "foo"}, r"there is no device 'foo' here \(.*\): name another"),
    ],
)
def test_wrong_numbers_and_devices_are_refused_in_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make("ps-kd", **change)


def test_wrong_ends_of_an_epoch_are_refused_in_one_sentence() -> None:
    criterion = make("tfkd-mrs")
    held: Tensor = torch.randn(3, HELD_OUT, CLASSES)
    labels = torch.randint(CLASSES, (HELD_OUT,))
    criterion(**arguments("tfkd-mrs", 0))
    with pytest.raises(UserError, match="steered by held-out images"):
        criterion.end_epoch()
    with pytest.raises(UserError, match="candidate 1 was not trained in epoch 1: 3 candidates train in it"):
        criterion.end_epoch(held, labels)
    with pytest.raises(UserError, match=r"must be \(3, 30, 5\), candidates first: got \(1, 30, 5\)"):
        criterion.end_epoch(held[0], labels)
    with pytest.raises(UserError, match="evaluation mode"):
        criterion.eval()(**arguments("tfkd-mrs", 0))
    with pytest.raises(UserError, match="method 'ce', and this one has 'tfkd-mrs'"):
        criterion.load_state_dict(make("ce").state_dict())
    state = criterion.state_dict()
    del state["_extra_state"]["rows"]
    with pytest.raises(UserError, match="the state has no 'rows': load what the state_dict of a criterion gave"):
        criterion.load_state_dict(state)


def test_a_state_of_other_settings_is_refused_in_one_sentence() -> None:
    base: dict[str, Any] = {"method": "tfkd", "num_classes": CLASSES, "epochs": EPOCHS, "num_images": 8}
    cases: dict[str, dict[str, Any]] = {
        "num_images 8, and this one has 20": {"num_images": 20},
        "controller.name 'ucb', and this one has 'ppo'": {"controller": {"name": "ppo"}},
        r"target.sources \['memory', 'slow-self'\], and this one has \[\]": {"target": {"sources": []}},
    }
    ucb = {"controller": {"name": "ucb"}}
    state = Criterion(**base | ucb | {"target": {"sources": ["memory", "slow-self"]}}).state_dict()
    for said, tables in cases.items():
        own = Criterion(**base | ucb | {"target": {"sources": ["memory", "slow-self"]}} | tables)
        with pytest.raises(UserError, match=f"^the state is of a criterion with {said}$"):
            own.load_state_dict(state)
    state["_extra_state"].pop("settings")  # as of an earlier version
    Criterion(**base | ucb | {"target": {"sources": ["memory", "slow-self"]}}).load_state_dict(state)
    with pytest.raises(UserError, match=r"^the state is of a criterion with other settings, images or teachers \(K"):
        Criterion(**base | {"controller": {"name": "ppo"}}).load_state_dict(state)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (2.0, r"^the share of mixed_with must be in 0\.\.1: got 2\.0$"),
        (math.nan, r"^the share of mixed_with must be in 0\.\.1: got nan$"),
        (torch.full((BATCH,), 0.5), rf"is that of a whole batch, one for each candidate at most: got \({BATCH},\)$"),
    ],
    ids=["above", "nan", "of each image"],
)
def test_what_is_no_share_of_mixed_images_is_refused(share: float | Tensor, said: str) -> None:
    labels = torch.zeros(BATCH, dtype=torch.int64)
    with pytest.raises(UserError, match=said):
        make("ce")(torch.zeros(BATCH, CLASSES), labels, mixed_with=(labels, share))


def test_held_out_logits_are_judged_or_refused() -> None:
    """Also of a method that is not steered, which would not miss them."""
    criterion, held, labels = make("ce"), torch.randn(HELD_OUT, CLASSES), torch.randint(CLASSES, (HELD_OUT,))
    criterion(**arguments("ce", 0))
    for given in ({"logits": held}, {"labels": labels}, {"averaged": held}):
        with pytest.raises(UserError, match="are judged by their labels: hand over both"):
            criterion.end_epoch(**given)
    for wrong in (labels.float(), labels.tolist()):
        with pytest.raises(UserError, match="held-out labels must be an int64 tensor"):
            criterion.end_epoch(held, wrong)
    (result,) = criterion.end_epoch(held, labels).results
    assert result.holdout is not None
    assert result.holdout.top1 == pytest.approx(float((held.argmax(1) == labels).float().mean()))

"""The networks of the grades: what trains, what waits, what a promotion keeps."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.methods.education.students import CLASSES, GROUPS, Build, build_student
from tfkd_fast.methods.base import Plan, whole_network
from tfkd_fast.methods.education import Education
from tfkd_fast.methods.education.network import ABSENT
from tfkd_fast.models import ModelSettings, build_model

PROMOTIONS = (0, 8, 13)
"""40 % and 65 % of 20 epochs."""
STAGES = {"vgg8": (2, 3, 5), "resnet8x4": (1, 2, 3), "wrn_16_2": (1, 2, 3)}


def draw_images(seed: int = 0) -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def tensors_of(*modules: nn.Module) -> list[Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def train_a_step(education: Education, plan: Plan, student: nn.Module) -> None:
    """By an optimiser that decays every weight that has a gradient, be it zero."""
    network = plan.network(student).train()
    weights = [*student.parameters(), *education.adapters.parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.1, weight_decay=0.1)
    taught = sorted(range(CLASSES) if plan.known_labels is None else plan.known_labels)
    loss = F.cross_entropy(network(draw_images()), torch.tensor(taught)[torch.arange(6) % len(taught)])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("model", STAGES)
def test_a_step_of_a_grade_moves_its_stages_and_its_head_and_nothing_else(build: Build, model: str) -> None:
    education, student = build(model=model), build_student(model)
    for grade, epoch in enumerate(PROMOTIONS):
        plan = education.begin_interval(epoch)
        parts = [*student.stages, student.classifier, *education.adapters]
        before = [tensors_of(part) for part in parts]
        train_a_step(education, plan, student)
        moved = [
            [not torch.equal(a, b) for a, b in zip(tensors_of(part), old, strict=True)]
            for part, old in zip(parts, before, strict=True)
        ]
        last = len(student.stages)
        training = {*range(STAGES[model][grade]), last if grade == 2 else last + 1 + grade}
        for i, changes in enumerate(moved):
            if i in training:
                assert sum(changes) >= len(changes) - 3, f"part {i} of grade {grade}"  # a bias before a norm may rest
            else:
                assert not any(changes), f"part {i} of grade {grade}"


@pytest.mark.parametrize("model", STAGES)
def test_a_promotion_keeps_the_lower_stages_and_what_they_give(build: Build, model: str) -> None:
    education, student = build(model=model), build_student(model)
    plan = education.begin_interval(0)
    for grade, promotion in enumerate(PROMOTIONS[1:]):
        train_a_step(education, plan, student)
        student.eval()
        weights, given = tensors_of(student), student.run_stages(draw_images(1), STAGES[model][grade])
        plan = education.begin_interval(promotion)
        trained = plan.network(student)
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(student), weights, strict=True))
        now = {id(tensor) for tensor in trained.state_dict(keep_vars=True).values()}
        assert now >= {id(tensor) for tensor in student.state_dict(keep_vars=True).values()}, "it trains these tensors"
        later = student.run_stages(draw_images(1))
        assert all(torch.equal(a, b) for a, b in zip(later, given, strict=False))


def test_the_last_grade_is_the_student_itself(build: Build) -> None:
    education, student = build(), build_student()
    names = list(student.state_dict())
    for epoch, phase in ((0, 0), (8, 1), (13, 2), (19, 2)):
        plan = education.begin_interval(epoch)
        assert (plan.network(student) is student) == (epoch >= 13)
        assert plan.phase == (phase, False)
        assert plan.complete == (epoch >= 13)
    assert list(student.state_dict()) == names
    education = build(loss={"self_reference": 0.5})
    network = education.begin_interval(13).network(student)
    assert network is not student, "it also asks the last head"
    assert torch.equal(network.eval()(draw_images()), student.eval()(draw_images()))
    with torch.no_grad():
        assert torch.equal(network.train()(draw_images()), student.train()(draw_images()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_classes_that_are_not_taught_yet_take_no_part(build: Build, precision: torch.dtype) -> None:
    education, student = build(), build_student()
    for grade, epoch in enumerate(PROMOTIONS[:2]):
        plan = education.begin_interval(epoch)
        taught = sorted(c for group in GROUPS[: grade + 1] for c in group)
        others = [c for c in range(CLASSES) if c not in taught]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = plan.network(student)(draw_images())
        assert logits.dtype == torch.float32
        assert (logits[:, others] == ABSENT).all()
        logits = logits.detach().requires_grad_()
        labels = torch.tensor(taught)[torch.arange(6) % len(taught)]
        loss = F.cross_entropy(logits, labels)
        places = torch.tensor([taught.index(label) for label in labels.tolist()])
        assert torch.equal(loss, F.cross_entropy(logits[:, taught], places))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert (gradient[:, others] == 0).all()


def test_the_early_grades_of_a_vgg8_are_cheap(build: Build) -> None:
    """20.6, 18.9 and 56.6 million multiplications an image, worked out by hand for the blocks of the whole width."""
    student = build_model(ModelSettings(name="vgg8"), 100, 3, seed=0)
    counted = []
    for grade in build().grades:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            student.run_stages(torch.zeros(1, 3, 32, 32), grade.stages)
        counted.append(counter.get_total_flops() / 2)
    macs = [after - before for before, after in pairwise([0, *counted])]
    assert [round(count / 1e6, 1) for count in macs] == [20.6, 18.9, 56.6]


def test_heads_are_as_wide_as_told_and_know_the_classes_so_far(build: Build) -> None:
    """Of an eighth: 32 channels for 256. ResNet-20 has 8 channels at least, which would be half of its first stage."""
    for model, inputs, width in (("vgg8", (16, 32), 32), ("resnet20", (8, 8), 32)):
        heads = build(model=model).adapters
        assert [tuple(head.conv.weight.shape) for head in heads] == [(width, inputs[0], 1, 1), (width, inputs[1], 1, 1)]
        assert [tuple(head.classifier.weight.shape) for head in heads] == [(2, width), (5, width)]


def test_heads_are_a_function_of_the_seed_and_leave_the_global_random_state_alone(build: Build) -> None:
    state = torch.random.get_rng_state()
    first, second = build(), build()
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, other in zip(tensors_of(first.adapters), tensors_of(second.adapters), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("epoch", [3, 8, 13])
def test_a_training_step_is_one_graph(build: Build, epoch: int) -> None:
    """Nothing in it waits for a number; what the last head says comes out of it."""
    results = []
    for compiles in (False, True):
        education, student = build(loss={"self_reference": 0.5}), build_student()
        network = education.begin_interval(epoch).network(student).train()
        forward = torch.compile(network, backend="aot_eager", fullgraph=True) if compiles else network
        logits = forward(draw_images())
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(logits[:, list(GROUPS[0])].sum(), weights, allow_unused=True)
        previous_logits = [] if education.previous_logits is None else [education.previous_logits]
        assert len(previous_logits) == (epoch > 3)
        results.append([logits, *(gradient for gradient in gradients if gradient is not None), *previous_logits])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_a_restored_method_goes_on_in_the_same_grade(build: Build) -> None:
    for epoch in (2, 8, 11, 13, 18):
        education, restored = (build(loss={"self_reference": 0.5, "self_reference_epochs": 2}) for _ in range(2))
        education.begin_interval(epoch)
        restored.load_state_dict(copy.deepcopy(education.state_dict()))
        plans = [each.begin_interval(epoch + 1) for each in (education, restored)]
        first, second = (replace(plan, network=whole_network) for plan in plans)  # of two objects
        assert first == second
        students = [build_student(), build_student()]
        for each, plan, student in zip((education, restored), plans, students, strict=True):
            train_a_step(each, plan, student)
        for one, other in zip(*map(tensors_of, students), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("heads", ["new", "inherited"])
def test_a_head_that_inherits_says_of_old_classes_what_the_one_before_said_of_the_same_maps(
    build: Build, heads: str
) -> None:
    """Behind the convolutions, which stand on other maps; once only, so that a resumed grade keeps what it learned."""
    education, student = build(grades={"heads": heads}), build_student()
    train_a_step(education, education.begin_interval(0), student)
    first, second = education.adapters
    convolution = second.conv.weight.clone()
    education.begin_interval(8)
    assert torch.equal(second.conv.weight, convolution)
    assert not torch.equal(first.classifier.weight[0], first.classifier.weight[1])
    rows = [second.labels.tolist().index(label) for label in first.labels.tolist()]
    others = [row for row in range(len(second.labels)) if row not in rows]
    inherits = heads == "inherited"
    pairs = [
        (second.classifier.weight[rows], first.classifier.weight),
        (second.classifier.bias[rows], first.classifier.bias),
    ]
    pairs += list(zip(second.norm.state_dict().values(), first.norm.state_dict().values(), strict=True))
    assert all(torch.equal(*pair) for pair in pairs) == inherits
    assert not torch.equal(second.classifier.weight[others], first.classifier.weight[: len(others)])
    with torch.no_grad():
        second.classifier.bias.add_(1.0)
    learned = second.classifier.bias.clone()
    education.begin_interval(9)
    assert torch.equal(second.classifier.bias, learned)

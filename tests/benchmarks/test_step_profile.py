"""The profile of a step: what is counted together, and the table."""

import pytest

from benchmarks.step_profile import BETWEEN, KINDS, Comparison, Profile, kind_of, markdown


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("tfkd_fast::winograd_weight_gradient", "convolutions"),
        ("tfkd_fast::bias_gradient", "convolutions"),
        ("tfkd_fast::norm_relu_pool_backward", "batch norm, ReLU, pooling"),
        ("aten::native_batch_norm", "batch norm, ReLU, pooling"),
        ("aten::add_", "sums of maps and gradients"),
        ("aten::addmm", "other operators"),
        ("aten::_fused_sgd_", "update"),
        ("tfkd_fast::sgd_steps", "update"),
        ("_ConvolveBackward", None),
        ("autograd::engine::evaluate_function: AddmmBackward0", None),
    ],
)
def test_what_is_counted_together(operator: str, kind: str | None) -> None:
    assert kind_of(operator) == kind


def test_a_table_has_a_column_for_each_network() -> None:
    before, after = (Profile(step, {**dict.fromkeys(KINDS, 0.5), BETWEEN: 1.0}) for step in (4.0, 2.0))
    lines = markdown([Comparison("vgg8, batch 64", before, after)]).splitlines()
    assert lines[0] == "| ms a step | vgg8, batch 64 |"
    assert lines[2] == "| convolutions | 0.5 → 0.5 |"
    assert lines[-1] == "| the step | 4.0 → 2.0 |"
    assert len(lines) == 2 + len(KINDS) + 2

"""The protocol of training methods: needs, plans, losses, results and the context of a run.

The files in the order in which they are read: needs, plan, batch, results, context, lookahead, method, single_student.
"""

from tfkd_fast.methods.base.batch import CompanionOutputs, Loss, StepBatch, TeacherOutputs
from tfkd_fast.methods.base.context import Context, Material, TeacherFacts
from tfkd_fast.methods.base.lookahead import TrainingStep
from tfkd_fast.methods.base.method import Method, SteeredMethod
from tfkd_fast.methods.base.needs import Needs, TeacherCount
from tfkd_fast.methods.base.plan import Interval, Plan, whole_network
from tfkd_fast.methods.base.results import (
    AverageResult,
    EpochResult,
    HoldoutMetrics,
    IntervalResult,
    JudgeAverage,
    Outcome,
    TrainingStatistics,
    refuse_average,
)
from tfkd_fast.methods.base.single_student import SingleStudent
from tfkd_fast.methods.base.teacher_table import TeacherTable

__all__ = [
    "AverageResult",
    "CompanionOutputs",
    "Context",
    "EpochResult",
    "HoldoutMetrics",
    "Interval",
    "IntervalResult",
    "JudgeAverage",
    "Loss",
    "Material",
    "Method",
    "Needs",
    "Outcome",
    "Plan",
    "SingleStudent",
    "SteeredMethod",
    "StepBatch",
    "TeacherCount",
    "TeacherFacts",
    "TeacherOutputs",
    "TeacherTable",
    "TrainingStatistics",
    "TrainingStep",
    "refuse_average",
    "whole_network",
]

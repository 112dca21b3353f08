"""Operators: functions of tensors, one module each; `backends` chooses the implementation that serves a call."""

from tfkd_fast.ops.augment import augment
from tfkd_fast.ops.backends import BackendStatus, OperatorStatus, backend_of, status, using_backend
from tfkd_fast.ops.candidate_metrics import CandidateMetrics, candidate_metrics
from tfkd_fast.ops.conv3x3 import conv3x3
from tfkd_fast.ops.distillation import distillation_loss
from tfkd_fast.ops.norm_relu_pool import norm_relu_pool
from tfkd_fast.ops.peer import peer_loss
from tfkd_fast.ops.rank_binned_targets import rank_binned_targets
from tfkd_fast.ops.rank_candidates import CandidateRanking, rank_candidates
from tfkd_fast.ops.sgd_step import sgd_step
from tfkd_fast.ops.soft_target import SoftTargetStats, soft_target_loss, soft_target_loss_with_stats

__all__ = [
    "BackendStatus",
    "CandidateMetrics",
    "CandidateRanking",
    "OperatorStatus",
    "SoftTargetStats",
    "augment",
    "backend_of",
    "candidate_metrics",
    "conv3x3",
    "distillation_loss",
    "norm_relu_pool",
    "peer_loss",
    "rank_binned_targets",
    "rank_candidates",
    "sgd_step",
    "soft_target_loss",
    "soft_target_loss_with_stats",
    "status",
    "using_backend",
]

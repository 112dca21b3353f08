"""Policies that are learned over whole runs, and the students that a controller outside of a run teaches."""

from tfkd_fast.policies.learn import learn_policy
from tfkd_fast.policies.students import Students

__all__ = ["Students", "learn_policy"]

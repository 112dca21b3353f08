"""Learning of policies over whole runs, and students that a controller outside of a run steers."""

from tfkd_fast.policies.learn import learn_policy
from tfkd_fast.policies.students import Students

__all__ = ["Students", "learn_policy"]

"""Several teachers, weighed for each sample by two small networks that learn how to weigh them (MMKD).

Source: Zhang, Chen, Wang, "Adaptive Multi-Teacher Knowledge Distillation with Meta-Learning", ICME 2023, and the
authors' code; what is our choice is marked so.
"""

from tfkd_fast.methods.several_teachers.mmkd.method import MMKD, MMKDSettings

__all__ = ["MMKD", "MMKDSettings"]

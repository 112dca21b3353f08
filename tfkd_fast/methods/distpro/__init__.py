"""DistPro: a distillation process, searched for once and then trained with (Deng et al., ECCV 2022)."""

from tfkd_fast.methods.distpro.replay import DistPro, DistProSettings
from tfkd_fast.methods.distpro.search import DistProSearch, DistProSearchSettings

__all__ = ["DistPro", "DistProSearch", "DistProSearchSettings", "DistProSettings"]

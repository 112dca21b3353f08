"""Data sets (what), augmentation, and loaders (how)."""

from tfkd_fast.data.datasets import Dataset, open_dataset
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.loaders import Batch, Loader, make_loader
from tfkd_fast.data.settings import DataSettings
from tfkd_fast.data.split import split_holdout

__all__ = [
    "Batch",
    "DataSettings",
    "Dataset",
    "ImageSet",
    "Loader",
    "make_loader",
    "open_dataset",
    "split_holdout",
]

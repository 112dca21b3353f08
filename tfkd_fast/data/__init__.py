"""Data sets, their augmentation and mixing, and the loaders that bring batches to the device."""

from tfkd_fast.data.companions import Companions
from tfkd_fast.data.datasets import (
    DataIdentity,
    Dataset,
    ImagesSealed,
    find_labels,
    open_dataset,
    sealed_test_images,
)
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.loaders import Batch, DataStream, Loader, LoaderChoice, choose_loader, make_loader, missing_loaders
from tfkd_fast.data.mixing import Mixing, MixPartners, make_mixing
from tfkd_fast.data.settings import ClassChoice, DataSettings, LoaderName
from tfkd_fast.data.split import split_holdout
from tfkd_fast.data.transforms import describe_augmentation

__all__ = [
    "Batch",
    "ClassChoice",
    "Companions",
    "DataIdentity",
    "DataSettings",
    "DataStream",
    "Dataset",
    "ImageSet",
    "ImagesSealed",
    "Loader",
    "LoaderChoice",
    "LoaderName",
    "MixPartners",
    "Mixing",
    "choose_loader",
    "describe_augmentation",
    "find_labels",
    "make_loader",
    "make_mixing",
    "missing_loaders",
    "open_dataset",
    "sealed_test_images",
    "split_holdout",
]

"""Data sets (what), augmentation, and loaders (how)."""

from tfkd_fast.data.companions import Companions
from tfkd_fast.data.datasets import Dataset, ImagesSealed, find_labels, open_dataset, sealed_test_images
from tfkd_fast.data.images import ImageSet
from tfkd_fast.data.loaders import Batch, Loader, LoaderChoice, choose_loader, make_loader, missing_loaders
from tfkd_fast.data.mixing import Mixed, Mixing, mixing_of
from tfkd_fast.data.settings import ClassChoice, DataSettings, LoaderName
from tfkd_fast.data.split import split_holdout

__all__ = [
    "Batch",
    "ClassChoice",
    "Companions",
    "DataSettings",
    "Dataset",
    "ImageSet",
    "ImagesSealed",
    "Loader",
    "LoaderChoice",
    "LoaderName",
    "Mixed",
    "Mixing",
    "choose_loader",
    "find_labels",
    "make_loader",
    "missing_loaders",
    "mixing_of",
    "open_dataset",
    "sealed_test_images",
    "split_holdout",
]

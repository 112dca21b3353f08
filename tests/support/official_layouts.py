"""Small data sets in the layouts that they are distributed in, of a few JPEG files."""

import csv
import hashlib
import json
import struct
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets


class Writer:
    """Writes images that can be told apart, and files about them, below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = count()

    def image(self, name: str) -> None:
        """Of some size between 24 and 56, in a colour of its own."""
        number = next(self._numbers)
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        colour = (7 * number % 256, 101 * number % 256, 200)
        Image.new("RGB", (24 + number % 33, 56 - number % 29), colour).save(
            file, "PPM" if file.suffix == ".ppm" else "JPEG"
        )

    def text(self, name: str, *lines: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines))

    def matrix(self, name: str, **arrays: Any) -> str:
        """A MATLAB file; returns its MD5 checksum."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(file, arrays)
        return hashlib.md5(file.read_bytes()).hexdigest()


Layout = Callable[[Writer, pytest.MonkeyPatch], None]


def aircraft(write: Writer, patch: pytest.MonkeyPatch) -> None:
    data = "fgvc-aircraft-2013b/data"
    write.text(f"{data}/variants.txt", "707-320", "A380")
    for part, first in (("trainval", 10), ("test", 20)):
        numbers = [f"00{first + i}" for i in range(4)]
        rows = [f"{number} {('707-320', 'A380')[i % 2]}" for i, number in enumerate(numbers)]
        write.text(f"{data}/images_variant_{part}.txt", *rows)
        for number in numbers:
            write.image(f"{data}/images/{number}.jpg")


def caltech101(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for name in ("BACKGROUND_Google", "accordion", "yin_yang"):
        for i in range(1, 6):
            write.image(f"caltech101/101_ObjectCategories/{name}/image_{i:04d}.jpg")


def caltech256(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for label, name in ((1, "001.ak47"), (2, "002.american-flag"), (3, "003.backpack")):
        for i in range(1, 6):
            write.image(f"caltech256/256_ObjectCategories/{name}/{label:03d}_{i:04d}.jpg")


def cars(write: Writer, patch: pytest.MonkeyPatch) -> None:
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    write.matrix("stanford_cars/devkit/cars_meta.mat", class_names=names)
    for part, table in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.array([(f"{i:05d}.jpg", i % 2 + 1) for i in range(4)], dtype=[("fname", "O"), ("class", "O")])
        write.matrix(f"stanford_cars/{table}", annotations=rows)
        for i in range(4):
            write.image(f"stanford_cars/cars_{part}/{i:05d}.jpg")


def country211(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for part in ("train", "valid", "test"):
        for name in ("AD", "ZW"):
            for i in range(2):
                write.image(f"country211/{part}/{name}/{i}.jpg")


def dtd(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for number, part in enumerate(("train", "val", "test")):
        files = [f"{name}/{name}_{10 * number + i:04d}.jpg" for name in ("banded", "zigzagged") for i in range(2)]
        write.text(f"dtd/dtd/labels/{part}1.txt", *files)
        for file in files:
            write.image(f"dtd/dtd/images/{file}")


def eurosat(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for name in ("AnnualCrop", "Forest"):
        for i in range(1, 6):
            write.image(f"eurosat/2750/{name}/{name}_{i}.jpg")


def flowers102(write: Writer, patch: pytest.MonkeyPatch) -> None:
    """Two images of each of the 102 classes in each part; the checksums are put in place of torchvision's."""
    ids = np.arange(1, 613)
    for number in ids:
        write.image(f"flowers-102/jpg/image_{number:05d}.jpg")
    labels = write.matrix("flowers-102/imagelabels.mat", labels=(ids - 1) % 102 + 1)
    parts = write.matrix("flowers-102/setid.mat", trnid=ids[:204], valid=ids[204:408], tstid=ids[408:])
    table = datasets.Flowers102._file_dict
    patch.setitem(table, "label", (table["label"][0], labels))
    patch.setitem(table, "setid", (table["setid"][0], parts))


def food101(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for part, first in (("train", 100), ("test", 200)):
        listing = {name: [f"{name}/{first + i}" for i in range(3)] for name in ("apple_pie", "waffles")}
        write.text(f"food-101/meta/{part}.json", json.dumps(listing))
        for names in listing.values():
            for name in names:
                write.image(f"food-101/images/{name}.jpg")


def gtsrb(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for label in range(3):
        for i in range(2):
            write.image(f"gtsrb/GTSRB/Training/{label:05d}/{i:05d}.ppm")
    write.text("gtsrb/GT-final_test.csv", "Filename;ClassId", *(f"{i:05d}.ppm;{2 - i}" for i in range(3)))
    for i in range(3):
        write.image(f"gtsrb/GTSRB/Final_Test/Images/{i:05d}.ppm")


def imagenette(write: Writer, patch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        for name in ("n01440764", "n03888257"):
            for i in range(2):
                write.image(f"imagenette2/{part}/{name}/{name}_{i}.JPEG")


def pets(write: Writer, patch: pytest.MonkeyPatch) -> None:
    (write.root / "oxford-iiit-pet" / "annotations" / "trimaps").mkdir(parents=True)
    for part, first in (("trainval", 1), ("test", 10)):
        names = [
            (f"{name}_{first + i}", label) for label, name in ((1, "Abyssinian"), (2, "basset_hound")) for i in (0, 1)
        ]
        write.text(f"oxford-iiit-pet/annotations/{part}.txt", *(f"{name} {label} 1 1" for name, label in names))
        for name, _ in names:
            write.image(f"oxford-iiit-pet/images/{name}.jpg")


def sun397(write: Writer, patch: pytest.MonkeyPatch) -> None:
    write.text("SUN397/ClassName.txt", "/a/abbey", "/a/apse/indoor")
    for name in ("abbey", "apse/indoor"):
        for i in range(5):
            write.image(f"SUN397/a/{name}/sun_{name[:2]}{i}.jpg")


def _mnist(folder: str) -> Layout:
    def layout(write: Writer, patch: pytest.MonkeyPatch) -> None:
        random, place = np.random.default_rng(0), write.root / folder / "raw"
        place.mkdir(parents=True)
        for part, number in (("train", 20), ("t10k", 10)):
            images = random.integers(0, 256, (number, 28, 28), dtype=np.uint8)
            header = struct.pack(">4i", 0x803, number, 28, 28)
            (place / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            labels = (np.arange(number) % 10).astype(np.uint8)
            (place / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, number) + labels.tobytes())

    return layout


def stl10(write: Writer, patch: pytest.MonkeyPatch) -> None:
    """The checksums are put in place of torchvision's."""
    random, place = np.random.default_rng(0), write.root / "stl10_binary"
    place.mkdir(parents=True)
    (place / "class_names.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    for key, number in (("train_list", 20), ("test_list", 10)):
        files = []
        for name, _ in getattr(datasets.STL10, key):
            labels = (np.arange(number) % 10 + 1).astype(np.uint8)
            content = labels if "_y" in name else random.integers(0, 256, (number, 3, 96, 96), dtype=np.uint8)
            (place / name).write_bytes(content.tobytes())
            files.append([name, hashlib.md5((place / name).read_bytes()).hexdigest()])
        patch.setattr(datasets.STL10, key, files)


LAYOUTS: dict[str, Layout] = {
    "aircraft": aircraft,
    "caltech101": caltech101,
    "caltech256": caltech256,
    "cars": cars,
    "country211": country211,
    "dtd": dtd,
    "eurosat": eurosat,
    "fashion-mnist": _mnist("FashionMNIST"),
    "flowers102": flowers102,
    "food101": food101,
    "gtsrb": gtsrb,
    "imagenette": imagenette,
    "mnist": _mnist("MNIST"),
    "pets": pets,
    "stl10": stl10,
    "sun397": sun397,
}


def tiny_imagenet(write: Writer) -> None:
    """Two classes, as the archive has them."""
    root, names = "tiny-imagenet-200", ("n01443537", "n01629819")
    write.text(f"{root}/wnids.txt", *names)
    write.text(f"{root}/words.txt", "n01443537\tgoldfish, Carassius auratus", "n01629819\tEuropean fire salamander")
    for name in names:
        write.text(f"{root}/train/{name}/{name}_boxes.txt", f"{name}_0.JPEG\t0\t10\t63\t58")
        for i in range(3):
            write.image(f"{root}/train/{name}/images/{name}_{i}.JPEG")
    rows = [(f"val_{i}.JPEG", names[(i + 1) % 2]) for i in range(4)]
    write.text(f"{root}/val/val_annotations.txt", *(f"{file}\t{name}\t0\t32\t44\t62" for file, name in rows))
    for file, _ in rows:
        write.image(f"{root}/val/images/{file}")
    write.image(f"{root}/test/images/test_0.JPEG")


def imagenet(write: Writer, kind: str) -> None:
    """Two classes of ILSVRC 2012, whose validation images are in class folders, or labelled by Kaggle or the devkit."""
    base, names = ("ILSVRC/Data/CLS-LOC/" if kind == "kaggle" else ""), ("n01440764", "n15075141")
    for name in names:
        for i in range(3):
            write.image(f"{base}train/{name}/{name}_{i}.JPEG")
    rows = [(f"ILSVRC2012_val_{i + 1:08d}", names[(i + 1) % 2]) for i in range(4)]
    for file, name in rows:
        write.image(f"{base}val/{name}/{file}.JPEG" if kind == "folders" else f"{base}val/{file}.JPEG")
    if kind == "kaggle":
        with (write.root / "LOC_val_solution.csv").open("w", newline="") as table:
            csv.writer(table).writerows([("ImageId", "PredictionString"), *((f, f"{n} 1 2 3 4") for f, n in rows)])
    if kind == "devkit":
        devkit = "ILSVRC2012_devkit_t12/data"
        ids = np.array([(7, names[1]), (3, names[0])], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
        write.matrix(f"{devkit}/meta.mat", synsets=ids)
        numbers = {names[1]: 7, names[0]: 3}
        write.text(f"{devkit}/ILSVRC2012_validation_ground_truth.txt", *(str(numbers[name]) for _, name in rows))

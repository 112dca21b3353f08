"""CIFAR and SVHN in files of the real formats, small: found, read, downloaded, and refused when damaged."""

import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import SVHN

from tests.support.data_files import CLASSES, SOURCES, Written, md5
from tfkd_fast.data import DataSettings, open_dataset
from tfkd_fast.errors import UserError


@pytest.fixture(params=["cifar10", "cifar100", "svhn"])
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(request.param, tmp_path / "data", monkeypatch)


def test_images_labels_and_classes_are_those_of_the_files(written: Written) -> None:
    dataset = written.open()
    assert dataset.name == written.name
    assert dataset.classes == CLASSES[written.name]
    assert (dataset.superclasses is not None) == (written.name == "cifar100")
    assert dataset.flip == (written.name != "svhn")
    for part, images in (("train", dataset.read_train()), ("test", dataset.read_test())):
        expected = torch.from_numpy(np.concatenate(written.images[part]))
        assert torch.equal(images.all_images(), expected)
        assert images.labels.tolist() == written.labels[part]


def test_torchvision_reads_the_same(written: Written) -> None:
    """Our reader against torchvision's own."""
    if written.name == "svhn":
        reference = SVHN(written.root, split="train")
        images, labels = reference.data, reference.labels
    else:
        reference = SOURCES[written.name](written.root, train=True)
        images, labels = reference.data.transpose(0, 3, 1, 2), reference.targets
    train = written.open().read_train()
    assert torch.equal(train.all_images(), torch.from_numpy(images))
    assert train.labels.tolist() == list(labels)


def test_training_opens_no_test_file(written: Written) -> None:
    for file in written.files["test"]:
        file.write_bytes(b"")  # would be refused if it were read
    dataset = written.open()
    dataset.read_train()
    assert len(dataset.mean) == len(dataset.std) == 3
    with pytest.raises(UserError, match=f"{written.files['test'][0].name} is truncated or damaged"):
        dataset.read_test()


def test_a_truncated_file_is_named_and_not_parsed(written: Written) -> None:
    file = written.files["train"][-1]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{file} is truncated or damaged.*{written.name}.*with --download"):
        written.open().read_train()


def test_a_hostile_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written("cifar10", tmp_path / "data", monkeypatch)

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "loaded",)

    for file in (written.files["train"][0], written.meta):
        file.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match=r"batches\.meta is truncated or damaged"):
        written.open()
    assert not (tmp_path / "loaded").exists()
    pickle.loads(written.meta.read_bytes())  # it would have worked
    assert (tmp_path / "loaded").exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_file_is_noticed_before_training(written: Written, part: str) -> None:
    file = written.files[part][0]
    file.unlink()
    with pytest.raises(
        UserError, match=rf"{written.name} is not in .* \({file.name} is missing\).*--download.*--data-root"
    ):
        written.open()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_nothing_there_names_the_folder_and_download(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name} is not in {tmp_path}/nowhere.*--download") as caught:
        open_dataset(DataSettings(dataset=name, root=str(tmp_path / "nowhere")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_without_a_root_the_folder_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"cifar10 is not in {tmp_path}/\.data/"):
        open_dataset(DataSettings(dataset="cifar10"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a local server of `tmp_path`/served."""
    (tmp_path / "served").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def serve(written: Written, served: Path, address: str, patch: pytest.MonkeyPatch) -> Path:
    """Move a written data set to the server; returns one file that is downloaded."""
    if written.name == "svhn":
        for files in written.files.values():
            files[0].rename(served / files[0].name)
        listing = {part: [f"{address}/{name}", name, sum_] for part, (_, name, sum_) in SVHN.split_list.items()}
        patch.setattr(SVHN, "split_list", listing)
        return served / written.files["test"][0].name
    source = SOURCES[written.name]
    archive = served / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(written.root / source.base_folder, source.base_folder)
    for file in (written.root / source.base_folder).iterdir():
        file.unlink()
    patch.setattr(source, "url", f"{address}/{source.filename}")
    patch.setattr(source, "tgz_md5", md5(archive))
    return archive


def test_download_fetches_what_is_missing_and_nothing_else(
    written: Written, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = serve(written, tmp_path / "served", server, monkeypatch)
    dataset = written.open(download=True)
    assert len(dataset.read_train()) == len(written.labels["train"])
    assert len(dataset.read_test()) == len(written.labels["test"])
    downloaded.unlink()  # a second download would fail
    written.open(download=True)


def test_download_repairs_a_damaged_file(
    written: Written, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(written, tmp_path / "served", server, monkeypatch)
    written.open(download=True)
    written.files["train"][0].write_bytes(b"half a downl")
    assert len(written.open(download=True).read_train()) == len(written.labels["train"])


def test_a_failed_download_is_one_sentence(
    written: Written, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = serve(written, tmp_path / "served", server, monkeypatch)
    content = downloaded.read_bytes()
    downloaded.write_bytes(content[: len(content) // 2])  # whatever arrives has another checksum
    with pytest.raises(UserError, match=rf"downloading {written.name} to .* failed \(.*\): try again") as caught:
        written.open(download=True)
    assert "\n" not in str(caught.value)
    downloaded.unlink()
    with pytest.raises(UserError, match=rf"downloading {written.name} to .* failed \(.*404.*\)"):
        written.open(download=True)

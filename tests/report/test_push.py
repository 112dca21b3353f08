"""A finished run is handed on through a folder and through the Hub, to the bits; what is not ours is refused."""

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.command import refusal, run
from tests.support.hub import TOKEN, Hub, Repository, serving
from tests.support.runs import recipe
from tfkd_fast import api, from_pretrained, load_run, push, tensor_file
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.files import to_checked_text
from tfkd_fast.runs.folder import RunFolder

FEW = {"dataset": "digits", "per_class": 10, "batch_size": 32}
HANDED_ON = [
    "README.md", "best.safetensors", "convolutions.json", "data.json", "metrics.jsonl", "recipe.toml",
    "student-ema.safetensors", "student.safetensors", "summary.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    api.train(recipe("ce", epochs=1, data=FEW), folder)
    return folder


@pytest.fixture(scope="module")
def finished(teacher: Path) -> Path:
    """A run whose recipe names a folder of this machine, that of its teacher."""
    folder = teacher.parent / "finished"
    taught = recipe("kd", data=FEW, optimizer={"ema_decay": 0.8}, teachers={"runs": [str(teacher)]})
    api.train(taught, folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server in the place of the Hub, an empty cache, and a token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving() as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks git-lfs
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def assert_same_run(found: Path, original: Path) -> None:
    images = torch.rand(3, 1, 32, 32)
    one, other = from_pretrained(found), load_run(original)
    assert one.summary == other.summary
    assert one.classes == other.classes
    for weights in ("last", "best", "ema"):
        assert torch.equal(one.classifier(weights)(images), other.classifier(weights)(images))


def test_a_folder_has_the_run_and_says_so_before(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "pushed"
    said = run("push", finished, target, "--license", "cc-by-4.0").stdout
    assert sorted(path.name for path in target.iterdir() if path.name != "lock") == HANDED_ON
    sizes = sum((target / name).stat().st_size for name in HANDED_ON)
    assert f"{sizes:,} bytes in 9 files go to {target}" in said
    assert_same_run(target, finished)
    figures = json.loads(run("eval", target, "--device", "cpu", "--precision", "fp32").stdout)
    assert figures["test_top1"] == load_run(finished).summary["test_top1"]  # type: ignore[index]
    for name in HANDED_ON:
        assert str(finished.parent).encode() not in (target / name).read_bytes(), f"{name} names a folder"


def test_a_run_is_handed_on_from_what_was_handed_on(finished: Path, tmp_path: Path) -> None:
    run("push", finished, tmp_path / "one")
    run("push", tmp_path / "one", tmp_path / "two")
    for name in HANDED_ON[1:]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_folder_that_holds_something_is_left_alone(finished: Path, tmp_path: Path) -> None:
    others, taken = tmp_path / "others", tmp_path / "taken"
    others.mkdir()
    (others / "notes.txt").write_text("mine")
    assert "is not empty and holds nothing of tfkd-fast" in refusal("push", finished, others, "--overwrite")
    run("push", finished, taken)
    (taken / "student-ema.safetensors").write_text("of another run")
    assert "already holds a finished run" in refusal("push", finished, taken)
    run("push", finished, taken, "--overwrite")
    assert_same_run(taken, finished)
    assert "leave --private out" in refusal("push", finished, taken, "--private")
    RunFolder(taken).create('method = "ce"')  # another run takes the place of the one with its card
    assert not (taken / "README.md").exists()


def test_what_is_not_whole_is_not_handed_on(finished: Path, tmp_path: Path) -> None:
    part, target = tmp_path / "part", tmp_path / "target"
    shutil.copytree(finished, part)
    whole = (part / "best.safetensors").read_bytes()
    (part / "best.safetensors").write_bytes(whole[:-9] + b"damaged!!")
    assert f"{part / 'best.safetensors'}" in refusal("push", part, target)
    (part / "best.safetensors").write_bytes(whole)
    (part / "summary.json").unlink()
    assert f"the run in {part} is not finished" in refusal("push", part, target)
    assert "is no run folder" in refusal("push", tmp_path / "nowhere", target)
    assert "is no licence by its name on the Hub" in refusal("push", finished, target, "--license", "my own: mine")
    assert not target.exists()


def test_the_hub_gives_back_what_it_was_given(finished: Path, hub: Hub) -> None:
    said = run("push", finished, "me/digits", "--private").stdout
    assert f"files go to {hub.endpoint}/me/digits" in said
    repository = hub.repositories["me/digits"]
    assert repository.private
    assert repository.large == {name for name in HANDED_ON if name.endswith(".safetensors")}
    assert sorted(repository.files.keys() - {".gitattributes"}) == HANDED_ON
    assert b'from_pretrained("me/digits")' in repository.files["README.md"]
    assert_same_run(from_pretrained("me/digits").path, finished)
    assert from_pretrained("me/digits", revision=repository.sha).path.name == repository.sha


def test_a_second_push_replaces_the_run_in_one_commit(finished: Path, teacher: Path, hub: Hub) -> None:
    run("push", finished, "me/digits")
    assert "the repository me/digits holds a run already" in refusal("push", finished, "me/digits")
    run("push", teacher, "me/digits", "--overwrite")
    repository = hub.repositories["me/digits"]
    assert repository.commits == 2
    assert "student-ema.safetensors" not in repository.files
    assert from_pretrained("me/digits").summary == load_run(teacher).summary
    assert "is there and public" in refusal("push", finished, "me/digits", "--overwrite", "--private")


def test_without_a_network_the_cache_serves(finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    run("push", finished, "me/digits")
    fetched = from_pretrained("me/digits").path
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert from_pretrained("me/digits").path == fetched
    with pytest.raises(UserError, match=r"me/other is not in the cache, and the Hub cannot be reached"):
        from_pretrained("me/other")
    assert "the Hub failed with me/digits (" in refusal("push", finished, "me/digits")


def test_what_the_hub_refuses_is_one_sentence(finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["me/secret"] = Repository(private=True)
    for source, revision, words in (
        ("me/none", None, "there is no repository me/none on the Hub, or one may not see it"),
        ("digits", None, "'digits' is no repository of the Hub: name it OWNER/NAME, or a folder as ./NAME"),
        ("me/--x", None, "'me/--x' is no name of a repository of the Hub"),
        ("me/secret", "old", "the repository me/secret has no revision 'old'"),
    ):
        with pytest.raises(UserError, match=words):
            from_pretrained(source, revision=revision)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="there is no repository me/secret on the Hub, or one may not see it"):
        from_pretrained("me/secret")
    assert "the Hub does not let you do this with me/new" in run("push", finished, "me/new", ok=False).stderr
    assert "me/new" not in hub.repositories


def test_a_repository_that_is_not_ours_is_refused(finished: Path, hub: Hub) -> None:
    hub.repositories["you/bert"] = Repository(False, {"model.safetensors": b"weights", "README.md": b"# BERT"})
    with pytest.raises(UserError, match=r"you/bert holds no finished run of tfkd-fast, because it has no recipe\.toml"):
        from_pretrained("you/bert")
    assert "holds no run of tfkd-fast, but others' files such as model.safetensors" in refusal(
        "push", finished, "you/bert", "--overwrite"
    )
    foreign = to_checked_text('[tool]\nname = "x"\n').encode()
    hub.repositories["you/tool"] = Repository(False, dict.fromkeys(["summary.json", "student.safetensors"], b"{}"))
    hub.repositories["you/tool"].files["recipe.toml"] = foreign
    with pytest.raises(UserError, match="names no method"):
        from_pretrained("you/tool")


def test_a_damaged_file_of_a_repository_is_refused(finished: Path, hub: Hub) -> None:
    run("push", finished, "me/digits")
    files = hub.repositories["me/digits"].files
    files["student.safetensors"] = files["student.safetensors"][:-9] + b"damaged!!"
    with pytest.raises(UserError, match="its checksum is wrong"):
        from_pretrained("me/digits")


def test_code_that_a_run_names_is_not_imported(finished: Path, tmp_path: Path) -> None:
    """In the recipe, in the header of weights, or in both."""
    for number, files in enumerate((["recipe.toml"], ["student.safetensors"], ["recipe.toml", "best.safetensors"])):
        folder = tmp_path / f"evil{number}"
        shutil.copytree(finished, folder)
        for file in (folder / name for name in files):
            if file.suffix == ".toml":
                text = file.read_text().partition("\n")[2].replace('name = "vgg8"', 'name = "antigravity:fly"')
                file.write_bytes(to_checked_text(text).encode())
            else:
                header, weights = tensor_file.read(file, "student")
                file.write_bytes(tensor_file.to_bytes("student", header | {"name": "antigravity:fly"}, weights))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)  # as an import would give one
            with pytest.raises(UserError, match=r"code of others that is not imported|the recipe beside it of a"):
                from_pretrained(folder)


class Net(nn.Sequential):
    """A network of a program of one's own."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(16 * in_channels, num_classes))


def test_a_network_of_others_is_given_and_its_folder_is_in_no_card(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(f"from {Net.__module__} import Net\n")
    network = {"name": f"{tmp_path / 'net.py'}:Net", "width": 1.0}
    api.train(recipe("ce", epochs=1, data=FEW, model=network), tmp_path / "run")
    with pytest.warns(Notice, match=r"the code of the network .*net\.py:Net is not handed on"):
        push(tmp_path / "run", tmp_path / "pushed", say=lambda _: None)
    card = (tmp_path / "pushed" / "README.md").read_text().partition("## Recipe")[0]
    assert "net.py:Net" in card
    assert str(tmp_path) not in card
    images = torch.rand(3, 1, 32, 32)
    found = from_pretrained(tmp_path / "pushed", model=Net).student()
    assert torch.equal(found(images), load_run(tmp_path / "run").student()(images))


def test_without_the_package_of_the_hub_a_sentence_names_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    assert "pip install 'tfkd-fast[hub]'" in refusal("push", finished, "me/digits")
    with pytest.raises(UserError, match=r"pip install 'tfkd-fast\[hub\]'"):
        from_pretrained("me/digits")


def test_a_folder_has_no_revisions(finished: Path) -> None:
    with pytest.raises(UserError, match="leave revision out"):
        from_pretrained(finished, revision="main")

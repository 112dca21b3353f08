"""Checkpoints and run folders: atomic, checksummed, refused when damaged."""

import math
import os
import pickle
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.command import SMALL, refusal
from tests.support.runs import recipe
from tfkd_fast import api
from tfkd_fast.errors import UserError
from tfkd_fast.runs.checkpoint import MAGIC, load_checkpoint, save_checkpoint
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import RunLog
from tfkd_fast.runs.recipe import load_recipe
from tfkd_fast.study import StudyFolder

STATE = {"weights": torch.arange(1000.0), "epoch": 3, "names": ["a", "b"], "nested": {"none": None}}


def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    save_checkpoint(path, STATE)
    state = load_checkpoint(path)
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {key: value for key, value in STATE.items() if key != "weights"}
    assert [file.name for file in tmp_path.iterdir()] == ["epoch.ckpt"]


@pytest.mark.parametrize("cut", [1, 100, 4000])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "epoch.ckpt"
    save_checkpoint(path, STATE)
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(UserError, match=r"epoch.ckpt is truncated or damaged: delete it"):
        load_checkpoint(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_a_foreign_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / "epoch.ckpt"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match="no checkpoint of tfkd-fast"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    assert not path.read_bytes().startswith(MAGIC)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    save_checkpoint(path, {"epoch": 1})
    path.with_name("epoch.ckpt.part").mkdir()  # the neighbour cannot be opened for writing
    with pytest.raises(UserError, match=r"cannot write .*epoch.ckpt: .*untouched"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 1}


def test_a_run_folder_keeps_two_checkpoints_and_finds_the_newest(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create("method = 'ce'")
    assert run.newest_state() is None
    for epoch in (1, 2, 9, 10):
        run.save_checkpoint(epoch, {"epoch": epoch})
    assert [path.name for path in run.checkpoint_files()] == ["epoch-00009.ckpt", "epoch-00010.ckpt"]
    assert run.newest_state() == {"epoch": 10}


def test_an_existing_run_is_refused_and_replaced_only_on_request(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.refuse_if_taken()
    run.create('method = "ce"')
    run.save_checkpoint(1, {"epoch": 1})
    with pytest.raises(UserError, match=r"holds an unfinished run: go on with --resume"):
        run.refuse_if_taken()
    run.write_json(run.summary, {"test_top1": 1.0})
    with pytest.raises(UserError, match=r"already holds a finished run: .*--overwrite"):
        run.refuse_if_taken()
    assert run.read_recipe_text() == 'method = "ce"'
    assert run.checkpoint_files()
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine")
    run.create('method = "kd"')
    assert run.read_summary() is None
    assert not run.checkpoint_files()
    assert run.replaced.read_recipe_text() == 'method = "ce"'
    assert foreign.read_text() == "mine"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("recipe", [None, "[tool.other]\nname = 1\n", "not toml"])
def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_is(tmp_path: Path, recipe: str | None) -> None:
    """Whatever is asked for, and also where its files have names that a run gives."""
    folder = tmp_path / "project"
    for name in ("checkpoints/epoch-00001.ckpt", "tensorboard/events.out.tfevents.1", "summary.json", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    if recipe is not None:
        (folder / "recipe.toml").write_text(recipe)
    before = contents(folder)
    train = ["train", "digits", *SMALL, "--out", folder]
    for arguments in (train, [*train, "--overwrite"]):
        refused = refusal(*arguments)
        assert f"{folder} is not empty and holds nothing of tfkd-fast (checkpoints is in it)" in refused
        assert "choose another --out" in refused
    with pytest.raises(UserError, match="holds nothing of tfkd-fast"):
        StudyFolder(folder).refuse_if_foreign()
    assert "choose another --out" in refusal("learn", "digits", "--set", "target.family=scalar", "--out", folder)
    assert contents(folder) == before


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create('method = "ce"')
    run.save_checkpoint(1, {"epoch": 1})
    run.tensorboard.mkdir()
    files = [run.summary, run.metrics, run.student, run.best, run.policy, run.report]
    files += [tmp_path / name for name in ("student.pt2", "best.onnx", "student-ema-int8.onnx")]
    files += [
        tmp_path / "process.safetensors",
        tmp_path / "summary.json.part",
        run.tensorboard / "events.out.tfevents.7.host",
    ]
    files += [run.checkpoints / "epoch-00002.ckpt.part"]
    users = [
        tmp_path / "notes.txt",
        tmp_path / "checkpoints" / "mine.pt",
        tmp_path / "checkpoints" / "old" / "epoch-00001.ckpt",
    ]
    users += [run.tensorboard / "layout.json", tmp_path / "student.txt", run.card]
    for file in (*files, *users):
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    files += run.checkpoint_files()
    run.refuse_if_taken(overwrite=True)
    run.create('method = "kd"')
    assert not [file for file in files if file.exists()]
    kept = [run.replaced.path / file.relative_to(tmp_path) for file in files]
    assert all(file.exists() for file in kept)
    run.save_checkpoint(1, {"epoch": 1})
    assert not run.replaced.path.exists()
    assert all(file.read_text() == "x" for file in users)
    assert run.read_recipe_text() == 'method = "kd"'


def test_a_run_is_kept_until_the_one_in_its_place_has_a_checkpoint(tmp_path: Path) -> None:
    """Also where others take the place of that one meanwhile, and one of them was killed while it did so."""
    run = RunFolder(tmp_path)
    run.create('method = "ce"')
    run.student.write_text("first")
    run.next_recipe.write_text('method = "kd"')  # of a command that was killed
    run.finish_replacing()
    run.student.write_text("second")
    run.create('method = "dml"')
    assert not run.student.exists()
    assert (run.replaced.read_recipe_text(), run.replaced.student.read_text()) == ('method = "ce"', "first")
    assert run.read_recipe_text() == 'method = "dml"'
    mine = run.replaced.path / "notes.txt"
    mine.write_text("mine")
    run.save_checkpoint(1, {"epoch": 1})
    assert list(run.replaced.path.iterdir()) == [mine]


def test_a_model_card_is_replaced_with_its_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for text, is_card in (('---\nlicense: "mit"\nlibrary_name: "tfkd-fast"\n---\n\n# digits\n', True), ("mine", False)):
        run.create('method = "ce"')
        run.card.write_text(text)
        run.create('method = "ce"')
        assert run.card.exists() != is_card


def test_commands_in_sentences_are_what_a_shell_takes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "my $run")
    run.create('method = "ce"')
    with pytest.raises(UserError) as refused:
        run.refuse_if_taken()
    words = shlex.split(str(refused.value).partition("go on with ")[2])
    assert words[:2] == ["--resume", f"{run.path},"]
    run.next_recipe.touch()
    with pytest.raises(UserError) as stopped:
        run.require_run()
    assert shlex.split(str(stopped.value).partition("go on with ")[2]) == ["--resume", str(run.path)]
    with pytest.raises(UserError) as unwritten:
        RunLog(run.checkpoints / "metrics.jsonl", [])  # a folder that is not there
    assert shlex.split(str(unwritten.value).partition("go on with ")[2]) == ["--resume", str(run.checkpoints)]


def test_what_a_run_reads_is_not_replaced_by_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create('method = "ce"')
    for file in (run.student, run.path / "logits.cache", run.path / "process.safetensors", run.replaced.path):
        file.touch()
    (tmp_path / "link").symlink_to(run.path)
    for source in (run.path, tmp_path / "link", run.student, run.path / "process.safetensors", run.replaced.path):
        with pytest.raises(UserError, match=f"the run would replace {source}, which it reads: choose another --out"):
            run.refuse_if_read([source])
    run.refuse_if_read([run.path / "logits.cache", run.best, tmp_path, Path("no\0file")])


def test_a_search_for_a_policy_is_no_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create('method = "ce"')
    run.generations.write_text("")
    with pytest.raises(UserError, match="holds the search for a policy: choose another --out"):
        run.refuse_if_taken(overwrite=True)
    run.recipe.write_text(load_recipe("digits").to_toml())
    with pytest.raises(UserError, match="holds the search for a policy: tfkd-fast learn goes on"):
        api.resume(tmp_path)


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        RunFolder(tmp_path).require_run()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"run is a file"):
        RunFolder(tmp_path / "run").refuse_if_taken()


def test_a_summary_has_no_nan(tmp_path: Path) -> None:
    values = {"nll": math.nan, "values": [1.0, math.inf], "parts": ({"a": -math.inf},), "name": "nan"}
    run = RunFolder(tmp_path)
    run.write_json(run.summary, values)
    assert run.read_summary() == {"nll": None, "values": [1.0, None], "parts": [{"a": None}], "name": "nan"}


def test_a_run_that_was_killed_while_it_replaced_another_is_the_new_one(tmp_path: Path) -> None:
    old, new, part = recipe("label-smoothing", epochs=1), recipe("ce", epochs=1), tmp_path / "part"
    api.train(old, part)
    whole = tmp_path / "whole"
    api.train(new, whole)
    folder = RunFolder(part)
    shutil.copy(RunFolder(whole).recipe, folder.next_recipe)
    folder.summary.unlink()  # the first file that is removed
    for arguments in (["eval", part], ["report", part], ["export", part], ["replay", part, "--out", tmp_path / "new"]):
        assert f"holds a run that was stopped when it began: go on with --resume {part}" in refusal(*arguments)
    api.resume(part)
    for name in ("student.safetensors", "best.safetensors", "recipe.toml"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    assert {path.name for path in part.iterdir()} == {path.name for path in whole.iterdir()}

"""The curves of a run: from its log, read as plain JSON, and from the files of each tracker."""

import math
import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Curves = dict[str, dict[int, float]]
"""Value by epoch, by the name of the curve."""

TRAINING = ("train_loss", "train_top1", "learning_rate", "images_per_second", "student_epochs")


def of_log(lines: list[dict[str, Any]]) -> Curves:
    """What trackers have to be told of a log, whose numbers that are not known are null."""
    curves: Curves = defaultdict(dict)
    done = 0
    for line in lines:
        if line["event"] == "epoch":
            done = line["epoch"]
        for name, value in _scalars(line):
            if value is not None and math.isfinite(value):
                curves[name][line.get("epoch", done)] = value
    return dict(curves)


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    match line["event"]:
        case "epoch":
            slot = f"/candidate_{line['candidate']}"
            yield from ((name + slot, line[name]) for name in TRAINING if name in line)
            yield f"train_true_probability{slot}", line.get("true_probability")
            yield f"train_entropy{slot}", line.get("entropy")
            yield from ((f"loss_{name}{slot}", value) for name, value in line.get("terms", {}).items())
            yield from ((f"holdout_{name}{slot}", value) for name, value in (line["holdout"] or {}).items())
        case "average":
            yield from ((f"holdout_{name}/average", value) for name, value in line["holdout"].items())
        case "decision":
            for slot, candidate in enumerate(line["candidates"]):
                yield f"true_mass/candidate_{slot}", candidate["true_mass"]
                yield f"divergence/candidate_{slot}", candidate["divergence"]
        case "reward":
            yield from ((f"reward/candidate_{slot}", value) for slot, value in enumerate(line["rewards"]))
        case "teachers":
            yield from ((f"logit_weight/teacher_{number}", value) for number, value in enumerate(line["logit_weights"]))
            yield from (
                (f"feature_weight/teacher_{number}", value) for number, value in enumerate(line["feature_weights"])
            )
        case "pathways":
            yield from ((f"weight/pathway_{number}", value) for number, value in enumerate(line["weights"]))
        case "groups":
            yield from ((f"holdout_top1/group_{number}", value) for number, value in enumerate(line["holdout_top1"]))
        case "finish":
            for name, value in line.items():
                if name.startswith(("test_", "ema_test_", "best_test_")) and name != "test_images":
                    yield name, value


def of_tensorboard(run: Path) -> Curves:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def of_mlflow(run: Path) -> Curves:
    """Of the only run of the experiment, in the store that the environment names."""
    client = pytest.importorskip("mlflow").MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("tfkd-fast").experiment_id])
    assert found.info.run_name == run.name
    assert found.info.status == "FINISHED"
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    return {name: {point.step: point.value for point in history} for name, history in histories.items()}


def of_wandb(run: Path) -> Curves:
    """Of the files that `wandb sync` would send, all of them for the same run of W&B."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"), key=os.path.getmtime)
    assert len({file.name for file in files}) == 1
    curves: Curves = defaultdict(dict)
    for file in files:
        for written in records(file.read_bytes()):
            values = {
                item.key or "/".join(item.nested_key): float(item.value_json)
                for item in Record.FromString(written).history.item
            }
            for name in values.keys() - {"epoch"}:
                if not name.startswith("_"):
                    curves[name][int(values["epoch"])] = values[name]
    return dict(curves)


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB, as W&B writes one: blocks of 32 KiB of pieces with checksum, length, kind."""
    place, whole = 7, b""  # behind the header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow}

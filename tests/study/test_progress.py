"""How far a run is, read from a log that grows and is cut back."""

from pathlib import Path

from tfkd_fast.events import EpochEnded, HoldoutFigures, RunDiverged, to_line
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.study.progress import Reached, RunProgress


def line(epoch: int, candidate: int, trained: int, top1: float | None = None) -> bytes:
    judged = None
    if top1 is not None:
        judged = HoldoutFigures(top1=top1, nll=1.0, calibrated_nll=1.0, temperature=1.0, ece=0.1)
    event = EpochEnded(
        epoch=epoch, candidate=candidate, learning_rate=0.1, train_loss=1.0, train_top1=50.0, images_per_second=1.0,
        student_epochs=trained, holdout=judged,
    )  # fmt: skip
    return to_line(event, 1.0, 1).encode() + b"\n"


def test_it_follows_a_log(tmp_path: Path) -> None:
    log, progress = tmp_path / "metrics.jsonl", RunProgress(RunFolder(tmp_path))
    assert progress.look() == Reached(0, 0, None)  # there is none yet
    first = line(1, 0, 1)
    log.write_bytes(b'{"event": "start"}\nno line of a log "epoch"\n' + first + line(2, 0, 4, 40.0)[:-30])
    assert progress.look() == Reached(1, 1, None)
    with log.open("ab") as file:
        file.write(line(2, 0, 4, 40.0)[-30:] + line(2, 1, 4, 42.0) + line(2, 2, 4, 41.0))
    assert progress.look() == Reached(2, 4, 42.0)
    assert progress.look() == Reached(2, 4, 42.0)
    assert {epoch: [figure.top1 for figure in found] for epoch, found in progress.judged.items()} == {
        1: [],
        2: [40.0, 42.0, 41.0],
    }
    with log.open("ab") as file:
        file.write(to_line(RunDiverged(epoch=3, reason="the loss became NaN"), 1.0, 1).encode() + b"\n")
    progress.look()
    assert progress.divergence == "the loss became NaN"
    log.write_bytes(first + line(2, 0, 2))  # gone on with after epoch 1
    assert progress.look() == Reached(2, 2, None)
    assert (progress.judged, progress.divergence) == ({1: [], 2: []}, None)

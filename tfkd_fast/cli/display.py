"""What a person sees of a run: a line for every epoch and decision, and on a terminal a live status below them."""

import time
from operator import itemgetter
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

REFRESH = 0.1
"""Seconds between two movements of the bar."""
MOST_PATHWAYS = 3
"""In a line."""


class Display:
    """An engine listener that prints."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
        self._task: TaskID | None = None
        self._facts: dict[str, Any] = {}
        self._latest: dict[str, Any] = {}  # the last epoch event
        self._decided: list[dict[str, Any]] = []  # the candidates of the last decision
        self._ranking = ""
        self._images = 0
        self._share = 1.0  # of the images to fit that an epoch shows; fewer where only some classes are taught
        self._epoch_started = self._moved = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def batch(self, images: int) -> None:
        self._images += images
        now = time.perf_counter()
        if self._bar and self._task is not None and now - self._moved > REFRESH:
            self._moved = now
            speed = self._images / (now - self._epoch_started)
            self._bar.update(
                self._task,
                description=f"epoch {self._latest.get('epoch', 0) + 1}/{self._facts['epochs']}",
                total=self._images_per_epoch(),
                completed=self._images,
                status=self._status(speed),
            )

    def event(self, event: dict[str, Any]) -> None:
        show = getattr(self, f"_show_{event['event']}", None)
        if show:
            show(event)
        self._epoch_started = time.perf_counter()  # what is done between epochs is not training

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _show_start(self, event: dict[str, Any]) -> None:
        self._facts = event
        self._print(
            f"{event['method']} · {event['model']} ({event['parameters']:,} parameters) · {event['dataset']}: "
            f"{event['train_images']:,} images to fit, {event['holdout_images']:,} held out · seed {event['seed']}"
        )
        self._print(
            f"{event['device_name']} · {event['precision']} · loader {event['loader']} · operators {event['ops']}"
        )
        if event["teachers"]:
            saw = " · trained on images that are held out here" if event["teachers_saw_holdout"] else ""
            self._print(f"taught by {', '.join(event['teachers'])}{saw}")
        self._start_bar()

    def _show_loader(self, event: dict[str, Any]) -> None:
        if event["images_per_second"]:
            speeds = (f"{name} {speed:,.0f}" for name, speed in event["images_per_second"].items())
            self._print(f"loader {event['chosen']}, by images/s: {' · '.join(speeds)}")

    def _show_professor(self, event: dict[str, Any]) -> None:
        kept = "" if event["spearman"] is None else f" · rank correlation with it {event['spearman']:.2f}"
        self._print(f"professor of {event['teacher']}: {event['verdict']}{kept}")
        if "warning" in event:
            self._print(f"warning: {event['warning']}")

    def _show_grade(self, event: dict[str, Any]) -> None:
        first, last = event["first_epoch"], event["first_epoch"] + event["epochs"] - 1
        self._print(
            f"grade {event['grade']} · epochs {first} to {last} · {event['stages']} stages · "
            f"{len(event['labels'])} classes"
        )

    def _show_pathways(self, event: dict[str, Any]) -> None:
        weights = sorted(zip(event["names"], event["weights"], strict=True), key=itemgetter(1), reverse=True)
        used = [f"{name} {weight:.3f}" for name, weight in weights if weight > 0]
        self._print(" · ".join([f"pathways {len(used)} of {len(weights)}", *used[:MOST_PATHWAYS]]))

    def _show_teachers(self, event: dict[str, Any]) -> None:
        predictions, features = (
            " ".join(f"{name} {weight:.2f}" for name, weight in zip(event["names"], weights, strict=True))
            for weights in (event["logit_weights"], event["feature_weights"])
        )
        self._print(f"  weights of predictions {predictions} · of features {features}")

    def _show_resume(self, event: dict[str, Any]) -> None:
        self._facts = event
        self._print(f"going on with {event['method']} on {event['dataset']} after epoch {event['epoch']}")
        self._start_bar()

    def _show_decision(self, event: dict[str, Any]) -> None:
        self._decided = event["candidates"]
        first, last = event["first_epoch"], event["first_epoch"] + event["epochs"] - 1
        self._print(f"decision {event['interval']} · epochs {first} to {last}")
        for slot, candidate in enumerate(self._decided):
            action = " ".join(f"{value:+.2f}" for value in candidate["action"])
            self._print(
                f"  candidate {slot} · {candidate['role']:7} · action [{action}] · "
                f"true-class mass {candidate['true_mass']:.3f}"
            )

    def _show_epoch(self, event: dict[str, Any]) -> None:
        if self._images:  # the first candidate that tells of the epoch
            self._share *= self._images / self._images_per_epoch()
        self._latest, self._images = event, 0
        holdout = event["holdout"]
        judged = f"held-out {holdout['top1']:5.2f} % · NLL {holdout['nll']:.3f}" if holdout else "no held-out images"
        slot = f" · candidate {event['candidate']}" if self._facts["candidates"] > 1 else ""
        self._print(
            f"epoch {event['epoch']}/{self._facts['epochs']}{slot} · loss {event['train_loss']:.4f} · "
            f"train {event['train_top1']:5.2f} % · {judged} · lr {event['learning_rate']:.4g} · "
            f"{event['images_per_second']:,.0f} images/s"
        )

    def _show_selection(self, event: dict[str, Any]) -> None:
        slots = range(len(event["scores"]))
        width = max(map(len, event["criteria"]))
        self._print(f"ranking after epoch {event['epoch']}" + "".join(f"{f'c{slot}':>13}" for slot in slots))
        for column, name in enumerate(event["criteria"]):
            cells = (f"{event['values'][s][column]:.4g} ({event['ranks'][s][column]:g})" for s in slots)
            self._print(f"  {name:{width}} " + " ".join(f"{cell:>12}" for cell in cells))
        self._print(f"  {'score':{width}} " + " ".join(f"{score:>12g}" for score in event["scores"]))
        self._print(f"  winner: candidate {event['winner']}")
        self._ranking = " > ".join(f"c{slot}" for slot in event["order"])

    def _show_finish(self, event: dict[str, Any]) -> None:
        if self._bar:
            self._bar.stop()
        judged = f"held-out {event['holdout_top1']:.2f} %, " if event["holdout_top1"] is not None else ""
        self._print(
            f"{event['student_epochs']} student-epochs in {event['seconds']:.0f} s · "
            f"{event['images_per_second']:,.0f} images/s · last epoch: {judged}"
            f"test {event['test_top1']:.2f} %, NLL {event['test_nll']:.3f}, ECE {event['test_ece']:.3f}"
        )

    def _start_bar(self) -> None:
        if self._bar:
            self._task = self._bar.add_task("", total=None, status="")
            self._bar.start()

    def _images_per_epoch(self) -> float:
        """Of all candidates of the present interval."""
        images: int = self._facts["train_images"]
        return self._share * images * max(1, len(self._decided))

    def _status(self, speed: float) -> str:
        """Speed, loss, held-out accuracy, target, ranking and time left, as far as they are known."""
        parts = [f"{speed:,.0f} images/s"]
        if self._latest:
            parts.append(f"loss {self._latest['train_loss']:.3f}")
            if self._latest["holdout"]:
                parts.append(f"held-out {self._latest['holdout']['top1']:.1f} %")
        if self._decided:
            parts.append("true mass " + "/".join(f"{c['true_mass']:.2f}" for c in self._decided))
        if self._ranking:
            parts.append(self._ranking)
        epochs_left = self._facts["epochs"] - self._latest.get("epoch", 0)
        left = int(max(0.0, epochs_left * self._images_per_epoch() - self._images) / speed)
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return " · ".join(parts)

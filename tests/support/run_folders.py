"""Run folders as the engine writes them, with made-up but consistent numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from scipy.special import softmax
from scipy.stats import rankdata

from tfkd_fast.events import StudentExamined
from tfkd_fast.judging.examination import examine

STARTS = (1, 2, 5, 17)  # first rank of each bin
CRITERIA = ("holdout-nll", "holdout-top1", "averaged-top1")


class RunWriter:
    """Plays a run of `epochs` epochs, of which the log holds the first `trained`, and writes its folder."""

    def __init__(
        self, method: str, epochs: int, classes: list[str], candidates: int, interval: int, warmup: int, seed: int
    ):
        self.method, self.epochs, self.classes = method, epochs, classes
        self.candidates = candidates if method == "tfkd-mrs" else 1
        self.interval, self.warmup = interval, warmup if method != "ce" else 0
        self.random = np.random.default_rng(seed)
        self.lines: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {
            "method": method,
            "dataset": "cifar100" if len(classes) == 100 else "digits",
            "model": "vgg8",
            "seed": seed,
            "epochs": epochs,
            "device": "cuda",
            "device_name": "NVIDIA H200",
            "precision": "bf16",
            "loader": "resident",
            "ops": "cpp",
            "parameters": 3_965_028,
            "train_images": 45_000,
            "holdout_images": 5_000,
            "steered_by_holdout": method != "ce",
            "candidates": self.candidates,
            "teachers": [],
            "teachers_saw_holdout": False,
            "version": "0.1.0",
            "torch": "2.14.1",
        }

    def write(self, folder: Path, *, trained: int | None = None) -> Path:
        self._event("start", **self.facts, classes=self.classes)
        trained = self.epochs if trained is None else trained
        epoch, number, offset = 0, 0, 0.0
        while epoch < trained:
            warming_up = epoch < self.warmup
            length = min(self.warmup - epoch if warming_up else self.interval, self.epochs - epoch)
            slots = 1 if warming_up else self.candidates
            if self.method != "ce":
                self._decide(number, epoch, length, slots, warming_up)
            offsets = offset + self.random.normal(0, 0.6, slots) * (slots > 1)
            for current in range(epoch, min(epoch + length, trained)):
                for slot in range(slots):
                    self._train(current, slot, offsets[slot])
            if epoch + length <= trained:
                winner = self._select(number, epoch + length, offsets) if slots > 1 else 0
                offset = 0.8 * offsets[winner]
                if self.method != "ce" and not warming_up:
                    self._reward(number, slots)
            epoch, number = epoch + length, number + 1
        folder.mkdir(parents=True, exist_ok=True)
        recipe: dict[str, Any] = {"method": self.method, "epochs": self.epochs, "seed": self.facts["seed"]}
        recipe["data"] = {"dataset": self.facts["dataset"], "holdout": 0.1}
        recipe["target"] = {"family": "one-hot" if self.method == "ce" else "rank-binned", "bins": "coarse"}
        recipe["controller"] = {"name": "fixed" if self.method == "ce" else "ppo"}
        (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
        if trained == self.epochs:
            summary = self._summary()
            self._event("test", **self._examine().model_dump())
            self._event("finish", **summary)
            (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return folder

    def _event(self, kind: str, **values: Any) -> None:
        self.lines.append({"event": kind, "time": 1.25 * len(self.lines), **values})

    def _examine(self) -> StudentExamined:
        """The test of a student that answers at random, but for a liking of the label and of the class after it."""
        count = len(self.classes)
        labels = torch.arange(6 * count) % count
        logits = torch.from_numpy(self.random.normal(0, 1.5, (len(labels), count)))
        logits[torch.arange(len(labels)), labels] += 4.0
        logits[torch.arange(len(labels)), (labels + 1) % count] += 2.0
        return examine(logits, labels)

    def _learning_rate(self, epoch: int) -> float:
        return 0.05 * 0.1 ** sum(epoch >= milestone * self.epochs for milestone in (0.625, 0.75, 0.875))

    def _train(self, epoch: int, slot: int, offset: float) -> None:
        drops = sum(epoch >= milestone * self.epochs for milestone in (0.625, 0.75, 0.875))
        grown = 1 - np.exp(-6 * (epoch + 1) / self.epochs)
        top1 = float(8 + 50 * grown + 4 * np.sqrt(drops) + offset + self.random.normal(0, 0.7) / (1 + 2 * drops))
        nll = float(4.6 * (1 - grown) + 1.25 - 0.08 * drops - 0.02 * offset)
        self._event(
            "epoch",
            epoch=epoch + 1,
            candidate=slot,
            learning_rate=self._learning_rate(epoch),
            train_loss=3.9 * (1 - grown) + 0.5 / (1 + drops),
            train_top1=min(99.9, top1 + 14 * grown + 4 * drops),
            true_probability=0.6,
            entropy=0.9,
            images_per_second=21_000 + 400 * float(self.random.normal()),
            seconds=2.1,
            holdout={
                "top1": top1,
                "top5": min(100.0, top1 + 20),
                "nll": nll + 0.1,
                "calibrated_nll": nll,
                "temperature": 0.8 + 0.6 * grown + 0.05 * float(self.random.normal()),
                "brier": 0.4,
                "ece": 0.03 + 0.05 * grown,
                "entropy": 0.8,
                "confidence": 0.7,
            },
        )

    def _decide(self, number: int, epoch: int, length: int, slots: int, warming_up: bool) -> None:
        count = len(self.classes)
        edges = [*(start for start in STARTS if start < count), count]
        sizes = np.diff(edges)
        candidates = []
        for slot in range(slots):
            action = np.r_[np.sin(number / 5), np.linspace(1, -1, len(sizes)) * np.cos(number / 9)]
            action += self.random.normal(0, 0.4, len(action)) * (slot > 0)
            true_mass = 1.0 if warming_up else 0.5 + 0.499 / (1 + np.exp(-action[0] - 1.4))
            bins = softmax(action[1:] + np.log(sizes))
            by_rank = np.concatenate([[true_mass], *((1 - true_mass) * bins / sizes).repeat(sizes)[None]])
            role = "mean" if slot == 0 and slots > 1 else "elite" if slot == 1 and number > 1 else "sample"
            candidates.append(
                {
                    "role": "warm-up" if warming_up else role,
                    "action": [] if warming_up else action.tolist(),
                    "log_probability": None if warming_up else -2.0,
                    "true_mass": true_mass,
                    "divergence": -float(np.log(true_mass)),
                    "mass_by_rank": by_rank.tolist(),
                }
            )
        names = ["true mass", *(f"rank {start}" for start in edges[:-1])]
        times = {"first_epoch": epoch + 1, "epochs": length}
        self._event("decision", interval=number, **times, action_names=names, candidates=candidates)

    def _select(self, number: int, epoch: int, offsets: np.ndarray) -> int:
        values = np.column_stack([1.3 - 0.02 * offsets, 0.6 + offsets / 100, 0.61 + offsets / 100])
        values += self.random.normal(0, 0.004, values.shape)
        ranks = np.column_stack([rankdata(values[:, 0]), rankdata(-values[:, 1]), rankdata(-values[:, 2])])
        order = np.argsort(ranks.sum(axis=1), kind="stable")
        self._event(
            "selection",
            interval=number,
            epoch=epoch,
            aggregate="borda",
            criteria=CRITERIA,
            higher_is_better=(False, True, True),
            values=values.tolist(),
            ranks=ranks.tolist(),
            scores=ranks.sum(axis=1).tolist(),
            order=order.tolist(),
            winner=int(order[0]),
        )
        return int(order[0])

    def _reward(self, number: int, slots: int) -> None:
        rewards = self.random.normal(0, 1, slots)
        update = {"draws": 12.0, "objective": 0.1 * float(rewards[0]), "std": 0.4 * 0.98**number, "entropy": 2.0}
        self._event("reward", interval=number, rewards=rewards.tolist(), advantages=None, update=update)

    def _summary(self) -> dict[str, Any]:
        last = [line for line in self.lines if line["event"] == "epoch"][-1]["holdout"]
        test = {f"test_{name}": value for name, value in last.items()}
        return {
            **self.facts,
            "epoch_rule": "last",
            "best_epoch": self.epochs - 1,
            "best_holdout_top1": last["top1"] + 0.3,
            "student_epochs": sum(line["event"] == "epoch" for line in self.lines),
            "images_per_second": 20_815.3,
            "training_seconds": 1900.0,
            "seconds": 2011.7,
            "holdout_top1": last["top1"],
            "test_images": 10_000,
            **test,
            "best_test_top1": last["top1"] + 0.1,
        }


MakeRun = Callable[..., Path]


def run_maker(folder: Path) -> MakeRun:
    """What writes run folders into a folder; every argument of it has a default."""

    def make(
        method: str = "tfkd-mrs",
        *,
        epochs: int = 20,
        classes: int | list[str] = 10,
        candidates: int = 4,
        interval: int = 2,
        warmup: int = 4,
        trained: int | None = None,
        seed: int = 3,
        name: str = "run",
    ) -> Path:
        names = [f"class {number}" for number in range(classes)] if isinstance(classes, int) else classes
        writer = RunWriter(method, epochs, names, candidates, interval, warmup, seed)
        return writer.write(folder / name, trained=trained)

    return make

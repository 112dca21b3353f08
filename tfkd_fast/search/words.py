"""What the page of a search and the command say in sentences."""

import math

from tfkd_fast.report.format import count_words
from tfkd_fast.search.results import SearchResults, TrialRecord, value_cell

JUDGE_WORDS = {"nll": "held-out calibrated NLL", "top1": "held-out top-1"}
"""What trials are judged by, within a sentence."""


def finding_words(results: SearchResults) -> str:
    """What was found, in one or two sentences."""
    best = results.best
    if best is None:
        return f"No trial has finished yet, of {results.planned}."
    values = values_words(best)
    found = f"The best of {count_words(results.ended, 'trial')} is trial {best.number}"
    found += f", {judgement_words(results, best)}"
    first = results.trials[0]
    if results.search.own_values() is None or first.judgement is None or first.state != "finished":
        return f"{found}, with {values}."
    if best is first:
        return f"{found}: none was better than the recipe as it is, with {values}."
    gain = abs((best.judgement or math.nan) - first.judgement)
    points = f"{gain:.2f} points" if results.search.settings.judge == "top1" else f"{gain:.4f} nats"
    return f"{found}, with {values}. It is {points} better than the recipe as it is, which trial 0 is."


def judgement_words(results: SearchResults, trial: TrialRecord) -> str:
    """The judgement of a trial, with what it is."""
    text = judgement_text(results, trial.judgement)
    unit = " %" if results.search.settings.judge == "top1" else ""
    return f"{JUDGE_WORDS[results.search.settings.judge]} {text}{unit}"


def judgement_text(results: SearchResults, judgement: float | None) -> str:
    """A judgement as a number, empty where there is none."""
    if judgement is None:
        return ""
    return f"{judgement:.2f}" if results.search.settings.judge == "top1" else f"{judgement:.4f}"


def values_words(trial: TrialRecord) -> str:
    """The values of a trial, key by key."""
    return ", ".join(f"{key} {short_value(value)}" for key, value in trial.values.items())


def short_value(value: object) -> str:
    """A value of a key, numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else value_cell(value)


def condition_lines(results: SearchResults) -> list[str]:
    """Conditions of the figures that a reader must know, a sentence or two each."""
    settings, search = results.search.settings, results.search
    lines = [
        f"Trials are judged by the {JUDGE_WORDS[settings.judge]} of the student after the last epoch. The images that "
        "are held out for it are the same in all trials, and so is the seed.",
        "No trial was tested: no test image was read, and there is no figure of any.",
        "The best of many noisy figures flatters. A study of the recipe and of best.toml under several seeds says "
        "whether the gain is real.",
        f"The first {settings.random_trials} trials have random values (the very first those of the recipe, where they "
        "lie in the ranges); later ones are suggested by tree-structured Parzen estimators.",
    ]
    if settings.prune:
        lines.append(
            f"A trial is pruned after epoch {search.prune_after} or later where its best judgement so far is worse "
            "than the median of the finished trials at that epoch."
        )
    return lines

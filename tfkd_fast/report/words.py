"""Sentences about a run: its teachers, its controller, its selections, and how it was measured."""

import math

from tfkd_fast.report.format import count_words, decimals
from tfkd_fast.report.run import RunRecord
from tfkd_fast.report.steering import divergence_rises, selection_wins
from tfkd_fast.report.teaching import pathway_words

GLOSSARY = {
    "Top-1": "The share of images whose label is the class that the student finds most likely.",
    "Held-out": "Training images that no student is fitted to. They steer and select; the test images do neither.",
    "NLL": "Negative log-likelihood: the mean of -log of the probability of the label, in nats. Lower ones are better.",
    "Calibrated": "After all logits were divided by one temperature, fitted to the same images. A student that is "
    "too sure or not sure enough is not punished for that.",
    "ECE": "Expected calibration error: how far confidence and accuracy are apart, as a mean over 15 bins of the "
    "confidence. 0 is best.",
    "Confidence": "The probability of the class that the student finds most likely.",
    "True-class mass": "The probability that the target gives to the label: 1 is a one-hot label, 0.9 label smoothing "
    "0.1.",
    "Divergence": "KL divergence of the one-hot label from the target, in nats: minus the logarithm of the true-class "
    "mass.",
    "Candidate": "One of several students that train from the same weights, until the best or their average continues.",
    "Student-epochs": "Epochs of all candidates together: what a run costs.",
}
"""What the page's terms mean."""

HOLDOUT_TOP1 = "holdout-top1"
"""Name of the criterion that is the goal itself."""

NEUTRAL = 0.1
"""Magnitude up to which an entry of an action counts as none: it moves the true mass of label smoothing 0.1 by less
than 0.01 (our choice)."""


def gain_words(run: RunRecord) -> str:
    """What was gained over the neutral target, as far as the run can know; empty where nothing was steered."""
    targets = [run.survivor(decision) for decision in run.controller_decisions]
    if not any(target.action for target in targets):
        return ""
    departures = sum(any(not abs(entry) <= NEUTRAL for entry in target.action) for target in targets)
    if not departures:
        return (
            "Nothing was gained or lost over the neutral target, label smoothing 0.1: the controller kept to it in all "
            f"{count_words(len(targets), 'decision')}."
        )
    gain = (
        "The gain over the neutral target, label smoothing 0.1, is not known from this run, which trained no student "
        f"by it: the controller left it in {departures} of {count_words(len(targets), 'decision')}. The same run with "
        "--set controller.name=fixed beside this one, in tfkd-fast compare, shows it."
    )
    averaged = [selection for selection in run.selections if selection.averaged and HOLDOUT_TOP1 in selection.criteria]
    if not averaged:
        return gain
    last = averaged[-1]
    top1 = [values[last.criteria.index(HOLDOUT_TOP1)] for values in last.values]
    more = 100 * (top1[-1] - top1[last.best_candidate])
    return (
        f"{gain} The average of candidates was {abs(more):.2f} points {'better' if more >= 0 else 'worse'} than the "
        f"best of them on held-out images after epoch {last.epoch}."
    )


def teaching_words(run: RunRecord) -> str:
    """The last weights of the pathways; empty where the run has none."""
    if not run.pathway_weights:
        return ""
    epoch = run.pathway_weights[-1]
    return f"Pathways at the beginning of epoch {epoch.epoch}: {pathway_words(epoch)}."


def steering_words(run: RunRecord) -> str:
    """How the controller moved the target, and whether it was progressive."""
    targets = [run.survivor(decision) for decision in run.controller_decisions]
    masses = [target.true_mass for target in targets]
    if len(targets) < 2 or not all(math.isfinite(target.true_mass + target.divergence) for target in targets):
        return f"Decisions: {len(targets)}."
    rises = len(divergence_rises(run))
    kind = "not progressive" if rises else "progressive, never moving away from the one-hot label again"
    return (
        f"{len(targets)} decisions. The true-class mass went from {masses[0]:.3f} to {masses[-1]:.3f}, within "
        f"{min(masses):.3f} to {max(masses):.3f}. The target moved away from the one-hot label at {rises} of "
        f"{len(targets) - 1} changes: it was {kind}."
    )


def ranking_words(run: RunRecord) -> str:
    """How many selections each candidate won, and who was left out of one; empty where there was none."""
    if not run.selections:
        return ""
    won = ", ".join(f"{name}: {count}" for name, count in selection_wins(run).items())
    words = f"{count_words(len(run.selections), 'selection')}. Won by candidate {won}."
    if run.diverged:
        lost = ", ".join(f"candidate {event.candidate} in epoch {event.epoch}" for event in run.diverged)
        words += f" Left out because they diverged: {lost}."
    return words


def measurement_words(run: RunRecord) -> list[str]:
    """Conditions of the figures that a reader must know, a sentence or two each."""
    lines = [_holdout_use(run), *_image_files(run), *_teacher_warnings(run)]
    if run.summary is None:
        return [*lines, "The test set has not been read yet: that happens after the last epoch only."]
    summary = run.summary
    if "test_top1" not in summary:
        return [*lines, "The test set was not read: the run is one that others are chosen by (test = false)."]
    images = f" ({summary['test_images']:,} images)" if "test_images" in summary else ""
    lines.append(f"The test set{images} was read after the last epoch only, and steered nothing.")
    lines.append(f"Epoch rule: the figures at the top are of the {summary.get('epoch_rule', 'last')} epoch.")
    if summary.get("best_epoch"):
        lines.append(
            f"The best epoch on the held-out images was {summary['best_epoch']}, with "
            f"{decimals(summary.get('best_holdout_top1'))} % there and {decimals(summary.get('best_test_top1'))} % on "
            "the test set. The best of many noisy figures flatters: compare runs by the rule above."
        )
    if summary.get("stopped_after"):
        lines.append(
            f"The run ended early, after epoch {summary['stopped_after']}: held-out top-1 had not risen for a while."
        )
    if summary.get("ema_test_top1") is not None:
        lines.append(
            "The moving average of the weights, beside the student, has "
            f"{decimals(summary.get('ema_holdout_top1'))} % on the held-out images and "
            f"{decimals(summary['ema_test_top1'])} % on the test set."
        )
    lines.append(
        "Seeds: 1. The standard error counts the test images only; another seed usually moves the result by more, so "
        "compare methods over several seeds."
    )
    return lines


def teacher_word(run: RunRecord) -> str:
    """The word "teacher" in the number of the run's teachers."""
    return "teachers" if len(run.start.teachers) > 1 else "teacher"


def _holdout_use(run: RunRecord) -> str:
    holdout = run.start.holdout_images
    if not holdout:
        return "No images were held out, so nothing was steered or selected."
    steered = [name for name, events in (("controller", run.rewards), ("selection", run.selections)) if events]
    steered = steered or ["method"] * run.start.steered_by_holdout
    steered += ["end of the run"] * (run.recipe.get("patience") is not None)
    use = f"steered the {' and the '.join(steered)}" if steered else "were only watched: they steered nothing"
    return f"{holdout:,} images held out of the training set {use}. No student was fitted to them."


def _image_files(run: RunRecord) -> list[str]:
    lines = []
    if run.start.parts:
        lines.append(f"Of the folder of images: {run.start.parts}.")
    if run.start.reading:
        lines.append(f"Of each image file: {run.start.reading}.")
    if run.start.augmentation:
        lines.append(f"Of each training image: {run.start.augmentation}.")
    return lines


def _teacher_warnings(run: RunRecord) -> list[str]:
    lines = []
    if run.start.teachers:
        lines.append(
            f"The student learned from the {teacher_word(run)} as well, whose training is in none of the figures."
        )
    lines += [
        f"The teacher {name} was no better than chance before training: what it taught can be no knowledge."
        for name in run.start.teachers_at_chance
    ]
    if run.start.teachers_saw_holdout:
        lines.append(
            "A teacher was trained on images that are held out here, so held-out figures look better than they are. "
            "The test set is not concerned."
        )
    if run.start.teachers_saw_holdout is None:
        lines.append(
            "It is not known whether a teacher was trained on images that are held out here: held-out figures may look "
            "better than they are."
        )
    return lines

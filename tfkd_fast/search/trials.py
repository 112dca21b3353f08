"""Trials, as Optuna keeps, suggests and prunes them.

They lie in a journal that Optuna's own tools read, too. What is suggested and what is pruned is a function of the
search and of earlier trials alone, whatever the order that trials end in and however often the search was killed: a
trial learns from those before a number that is set when it begins, all of which have ended by then, and its random
numbers are those of its own number.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tfkd_fast.errors import UserError
from tfkd_fast.files import read_bytes
from tfkd_fast.runs.log import LineFile
from tfkd_fast.search.plan import Range, Search
from tfkd_fast.strict_json import to_json

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
KNOWN = "trials_before"
"""The attribute with the number of earlier trials that a trial learns from."""
INTERRUPTED = "interrupted"
"""The attribute of a trial whose process a signal from outside ended."""
REASON = "reason"
"""The attribute with the reason of a trial that failed."""

STUDY = "search"
"""The name that the trials have in the journal."""
FEWEST = 4
"""Number of finished trials that one is compared with before it may be pruned (our choice)."""

Values = Mapping[str, Any]
"""Searched key -> value."""


class JournalFile(BaseJournalBackend):
    """The file of Optuna's journal, written by one process at a time; a kill or a full disk leaves whole lines."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: the file cannot be written, or is no journal.
        """
        content = read_bytes(path, "the journal", "make it a readable file again") if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut off the last line
        self._logs: list[dict[str, Any]] = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._logs.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"line {number} of {path} is damaged ({error}): restore that file") from None
        self._file = LineFile(path, keep=len(whole), how_to_go_on="give the same command again")

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The entries from one of them on."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """
        Raises:
            UserError: the file cannot be written, for example because the disk is full.
        """
        for log in logs:
            self._file.write(to_json(log))
            self._logs.append(log)
        self._file.sync()

    def close(self) -> None:
        """Close the file, to which nothing can be written afterwards."""
        self._file.close()


class Suggestion:
    """A trial that has begun: its values, and whether it is to be pruned."""

    def __init__(self, number: int, trial: optuna.Trial, values: Values) -> None:
        self.number, self.values, self._trial = number, values, trial
        self.params: Mapping[str, Any] = trial.params
        """The values as Optuna has them."""
        self.judged: dict[int, float] = {}
        """The judgement after each epoch that was reported."""

    def report(self, epoch: int, value: float) -> bool:
        """Take in how good the student is after an epoch; returns whether the trial is worse than most by then."""
        self.judged[epoch] = value
        self._trial.report(value, epoch)
        return self._trial.should_prune()


class Trials:
    """The trials of one search, in the order of their numbers."""

    def __init__(self, search: Search, path: Path) -> None:
        """Go on with the journal in the file `path`, or begin it.

        Raises:
            UserError: it cannot be written, is none, or has a trial that no search began.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search = search
        self._distributions = {item.key: _distribution(item) for item in search.ranges}
        self._direction = StudyDirection.MAXIMIZE if search.higher_is_better else StudyDirection.MINIMIZE
        self._journal = JournalFile(path)
        try:
            self._storage = JournalStorage(self._journal)
            if not self._storage.get_all_studies():
                self._storage.create_new_study([self._direction], STUDY)
            self._study = self._storage.get_study_id_from_name(STUDY)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no journal of Optuna ({error}): restore it") from None
        for trial in self.all:
            if KNOWN not in trial.user_attrs or trial.params.keys() != self._distributions.keys():
                raise UserError(
                    f"trial {trial.number} of {path} was added by another program: delete the lines that it wrote"
                )

    def close(self) -> None:
        """Close the journal, to which nothing can be written afterwards."""
        self._journal.close()

    @property
    def all(self) -> list[FrozenTrial]:
        """All trials, by their numbers."""
        return self._storage.get_all_trials(self._study, deepcopy=False)

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """The values of a trial as the recipe takes them."""
        return self._plain_values(trial.params)

    def begin(self, number: int, jobs: int) -> Suggestion | None:
        """A trial that an earlier process began and that has not ended, or the next one; None while that has to wait.

        A new trial learns from all but the latest 2 * (`jobs` - 1), where `jobs` train at a time, so that it seldom has
        to wait for one of the others (our choice).
        """
        trials = self.all
        if number < len(trials):
            return self._ask(number, trials[number].user_attrs[KNOWN], trials[number].params)
        known = max(0, number - 2 * (jobs - 1))
        if any(trial.state not in ENDED for trial in trials[:known]):
            return None
        own = self._search.own_values() if number == 0 else None
        suggestion = self._ask(number, known, {key: _label(value) for key, value in own.items()} if own else None)
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(suggestion.params),
            distributions=self._distributions,
            user_attrs={KNOWN: known},
        )
        self._storage.create_new_trial(self._study, template)
        return suggestion

    def complete(self, trial: Suggestion, judgement: float, figures: Mapping[str, float]) -> None:
        """Record what a whole trial came to, and other figures of its student."""
        self._end(trial, TrialState.COMPLETE, judgement, figures)

    def prune(self, trial: Suggestion, figures: Mapping[str, float]) -> None:
        """Record that a trial was pruned after the last epoch that it reported."""
        self._end(trial, TrialState.PRUNED, list(trial.judged.values())[-1], figures)

    def fail(self, trial: Suggestion, reason: str) -> None:
        """Record that a trial failed, and why."""
        self._end(trial, TrialState.FAIL, None, {REASON: reason})

    def interrupt(self, trial: Suggestion) -> bool:
        """Record that a signal from outside ended the process of a trial; returns whether one had before."""
        before = INTERRUPTED in self.all[trial.number].user_attrs
        number = self._storage.get_trial_id_from_study_id_trial_number(self._study, trial.number)
        self._storage.set_trial_user_attr(number, INTERRUPTED, True)
        return before

    def _end(self, trial: Suggestion, state: TrialState, value: float | None, attributes: Mapping[str, Any]) -> None:
        number = self._storage.get_trial_id_from_study_id_trial_number(self._study, trial.number)
        stored = self.all[trial.number]
        for epoch, judgement in trial.judged.items():
            if epoch not in stored.intermediate_values:
                self._storage.set_trial_intermediate_value(number, epoch, judgement)
        for name, attribute in attributes.items():
            self._storage.set_trial_user_attr(number, name, attribute)
        self._storage.set_trial_state_values(number, state, None if value is None else [value])

    def _plain_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {item.key: _plain(item, params[item.key]) for item in self._search.ranges}

    def _ask(self, number: int, known: int, params: Mapping[str, Any] | None) -> Suggestion:
        """A trial in a study in memory, of what it learns from; with `params` where they are given."""
        settings = self._search.settings
        seed = int(np.random.SeedSequence([self._search.base.seed, number]).generate_state(1)[0])
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if settings.prune:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=FEWEST, n_warmup_steps=self._search.prune_after)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.random_trials, constant_liar=True)
        study = optuna.create_study(directions=[self._direction], sampler=sampler, pruner=pruner)
        for trial in self.all[:number]:
            if trial.number >= known:  # its values are known, and what comes of them is not
                trial = create_trial(state=TrialState.RUNNING, params=trial.params, distributions=self._distributions)
            study.add_trial(trial)
        if params is not None:
            study.enqueue_trial(dict(params))
        asked = study.ask(self._distributions)
        return Suggestion(number, asked, self._plain_values(asked.params))


def _distribution(item: Range) -> BaseDistribution:
    """The range as Optuna has it."""
    if item.kind == "choices":
        return CategoricalDistribution([_label(choice) for choice in item.values])
    low, high = item.values
    return IntDistribution(low, high) if item.kind == "int" else FloatDistribution(low, high, log=item.kind == "log")


def _label(value: Any) -> Any:
    """A value as Optuna takes it: lists and tables as JSON."""
    return to_json({"": value}) if isinstance(value, list | dict) else value


def _plain(item: Range, param: Any) -> Any:
    """The value of a key whose form in Optuna is `param`."""
    if item.kind != "choices":
        return param
    return next(choice for choice in item.values if _label(choice) == param)

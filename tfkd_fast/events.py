"""What a run says while it goes on, defined once: typed events, and their form as lines of metrics.jsonl.

Methods and engine build events; the display, TensorBoard, replay and report read them. Every class of an event is one
kind of line. In a line the kind stands under "event", the seconds since the start of the run under "time" and the
number of the line under "line"; then follow the fields, by name. JSON has no NaN and no infinity: such numbers are
written as null, and null is read as NaN.

Epochs and grades are counted from 1, candidates, intervals and labels from 0. Top-1 and top-5 are percent; losses,
entropies and divergences are nats; all other shares are fractions.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from tfkd_fast.files import from_checked_line, to_checked_line

FORMAT = 1
"""Version of the log that this package writes, in the first line of every log. Lines of older versions can be read."""


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Number: TypeAlias = Annotated[float, BeforeValidator(_nan_for_null)]
"""A float that may be NaN."""


class Record(BaseModel):
    """A part of the log, checked when it is built and when it is read.

    Keys that this version does not know are ignored, so that the log of a newer version can be read. Fields with a
    default may be missing, because logs of older versions lack them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True, ser_json_inf_nan="null")

    parallel: ClassVar[tuple[str, ...]] = ()
    """Names of fields that have an entry for each of the same things; those that may be missing may be empty."""

    @model_validator(mode="after")
    def _parallel_fields_have_one_length(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in self.parallel}
        counted = {length for name, length in lengths.items() if length or type(self).model_fields[name].is_required()}
        if len(counted) > 1:
            raise ValueError(f"{', '.join(lengths)} must have one length, got {', '.join(map(str, lengths.values()))}")
        return self


class Event(Record):
    """Something that happened in a run."""

    kind: ClassVar[str]
    """The name of the kind, as a line of the log has it under "event"."""


class RunFacts(Event):
    """What identifies a run and says how it is computed."""

    method: str
    dataset: str
    model: str
    seed: int
    epochs: int
    device: str
    """Type of the torch device, such as "cuda"."""
    device_name: str
    """Name of the hardware."""
    precision: str
    loader: str
    """Name of the data loader in use, also where the recipe says `auto`."""
    ops: str
    """Name of the backend of the operators."""
    parameters: int
    """Number of parameters of one student."""
    train_images: int
    """Number of training images that students are fitted to."""
    holdout_images: int
    """Number of training images that are held out."""
    steered_by_holdout: bool = False
    """Whether the method needs held-out images to steer training."""
    candidates: int
    """The most candidates that one interval trains."""
    teachers: tuple[str, ...] = ()
    """Names of the teachers' run folders."""
    teachers_saw_holdout: bool | None = False
    """Whether a teacher was trained on images that are held out here; None where that is not known."""
    population: str = ""
    """How candidates train side by side: "sequential", "streams" or "stacked"; empty in logs that do not say."""
    compile: bool = False
    """Whether networks are compiled by torch.compile."""
    planned_student_epochs: int = 0
    """The most epochs that the run trains, summed over all candidates, cooldowns included; 0 in logs that do not
    say."""
    version: str
    """Version of tfkd_fast."""
    torch: str
    """Version of the torch package."""


class RunStarted(RunFacts):
    """A run begins: the first line of its log."""

    kind = "start"

    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    reading: str = ""
    """What happens to the pixels of image files, in words; empty where they stay as they are, and in older logs."""
    augmentation: str = ""
    """What is changed at random in training images beyond padded crops and mirroring, in words; empty for nothing, and
    in older logs."""
    parts: str = ""
    """How training and test images were told apart, in words; empty where the files name both, and in older logs."""
    teachers_top1: tuple[Number, ...] = ()
    """Top-1 of each teacher in percent, on some held-out images; on images to fit where none are held out."""
    teachers_at_chance: tuple[str, ...] = ()
    """Names of the teachers that are no better there than chance."""
    format: int = 0
    """Version of the log's format, see `FORMAT`; 0 for logs from before the format had a version."""


class RunResumed(RunFacts):
    """A new process goes on with the run from a checkpoint."""

    kind = "resume"

    epoch: int
    """Number of epochs that are trained already."""
    student_epochs: int = 0
    """Number of epochs that are trained already, summed over all candidates; 0 in logs that do not say."""
    log_incomplete: bool = False
    """Whether lines that the log had at the checkpoint are missing before this one, as a power cut may leave it."""


class RunFinished(RunFacts):
    """The run is complete and judged: the last line of its log, which repeats summary.json.

    What else the method adds to the summary is kept as extra fields. The figures named `test_...` are those of the
    student after the last epoch on the test images; a run that was not tested has none.
    """

    model_config = ConfigDict(extra="allow")

    kind = "finish"

    epoch_rule: str = "last"
    """The epoch that the figures of the student belong to, by name."""
    best_epoch: int | None = None
    """The epoch with the highest held-out top-1; None without held-out images."""
    best_holdout_top1: float | None = None
    """Held-out top-1 after that epoch, in percent."""
    best_test_top1: float | None = None
    """Test top-1 of the student of that epoch, in percent."""
    stopped_after: int | None = None
    """The epoch after which the run ended early; None where it has all of its epochs."""
    student_epochs: int
    """Number of trained epochs, summed over all candidates."""
    images_per_second: Number
    """Speed of training, without evaluation and set-up."""
    training_seconds: Number = math.nan
    """Seconds of training steps."""
    compile_seconds: Number = math.nan
    """Seconds of first steps, which compile or capture."""
    evaluation_seconds: Number = math.nan
    """Seconds of the evaluation on held-out images."""
    steering_seconds: Number = math.nan
    """Seconds of the method between epochs, and of the log."""
    saving_seconds: Number = math.nan
    """Seconds for which training waited for checkpoints, which a thread writes, and for files of students."""
    seconds: Number
    """Seconds from the start to the end of training, over all processes of the run."""
    holdout_top1: float | None = None
    """Held-out top-1 of the student, in percent; None without held-out images."""
    holdout_calibrated_nll: float | None = None
    """Held-out negative log-likelihood of the student under the calibrating temperature, nats."""
    holdout_temperature: float | None = None
    """The temperature that calibrates the student's logits, fitted to held-out images."""
    best_holdout_temperature: float | None = None
    """The temperature that calibrates those of the student of the best epoch."""
    ema_holdout_top1: float | None = None
    """Held-out top-1 of the moving average of the student's weights, in percent."""
    ema_holdout_temperature: float | None = None
    """The temperature that calibrates the logits of that moving average."""
    ema_test_top1: float | None = None
    """Test top-1 of that moving average, in percent; None where there is none."""
    test_images: int = 0
    """Number of test images; 0 where the run was not tested, and in logs that do not say."""
    test_top1: Number = math.nan
    """Test top-1 of the student, in percent."""
    test_top5: Number = math.nan
    """Test top-5 of the student, in percent."""
    test_nll: Number = math.nan
    test_calibrated_nll: Number = math.nan
    test_temperature: Number = math.nan
    test_brier: Number = math.nan
    test_ece: Number = math.nan
    test_entropy: Number = math.nan
    test_confidence: Number = math.nan


class LoaderChosen(Event):
    """A recipe with `loader = "auto"` came to a loader."""

    kind = "loader"

    chosen: str
    images_per_second: dict[str, Number]
    """Measured speed by the name of the loader; empty where there was nothing to measure."""
    refused: dict[str, str] = {}
    """Why a loader cannot be used, by its name."""


class ProcessesJoined(Event):
    """Several processes train the run together from here on."""

    kind = "processes"

    count: int
    """The number of processes."""
    share: str
    """What each has a part of: the "candidates", or every "batch"."""


class ConvolutionsChosen(Event):
    """The algorithms of the convolutions were chosen by their speed."""

    kind = "convolutions"

    passes: dict[str, int]
    """Number of passes of different layers (forward, gradients of input and weight) by the name of the algorithm."""
    seconds: Number
    """Duration of the measurement; 0 where an earlier run on this machine had made it."""


class StepsCompiled(Event):
    """Steps of a new kind were compiled or captured."""

    kind = "compile"

    epoch: int
    seconds: Number


class HoldoutFigures(Record):
    """Figures of one candidate on the held-out images after an epoch."""

    top1: Number
    """Top-1 accuracy in percent."""
    top5: Number = math.nan
    """Top-5 accuracy in percent."""
    nll: Number
    """Negative log-likelihood, nats."""
    calibrated_nll: Number
    """Negative log-likelihood under the calibrating temperature, nats."""
    temperature: Number
    """The calibrating temperature, which minimises the negative log-likelihood; above 1 for over-confidence."""
    brier: Number = math.nan
    """Brier score, 0 to 2."""
    ece: Number
    """Expected calibration error in 15 bins, a fraction."""
    entropy: Number = math.nan
    """Mean entropy of the predictions, nats."""
    confidence: Number = math.nan
    """Mean probability of the predicted class, a fraction."""


class EpochEnded(Event):
    """One candidate was trained for one epoch and judged on the held-out images.

    Training figures are means over the augmented images of the epoch, by the student as it was at each step.
    """

    kind = "epoch"

    epoch: int
    candidate: int
    learning_rate: Number
    """Learning rate at the start of the epoch."""
    train_loss: Number
    """The loss that was minimised, all its terms together."""
    terms: dict[str, Number] = {}
    """Terms of the loss by name; empty where the loss has one term only."""
    train_top1: Number
    """Top-1 accuracy in percent."""
    true_probability: Number = math.nan
    """Mean predicted probability of the label, a fraction."""
    entropy: Number = math.nan
    """Mean entropy of the predictions, nats."""
    images_per_second: Number
    """Speed of training this candidate."""
    seconds: Number = math.nan
    """Seconds of training steps."""
    student_epochs: int = 0
    """Number of epochs that the run has trained so far, summed over all candidates, with those of this epoch; 0 in
    logs that do not say."""
    holdout: HoldoutFigures | None
    """None without held-out images."""
    holdout_classes: int | None = None
    """Number of classes that the held-out figures are about; None without held-out images."""


class StoppedEarly(Event):
    """The run ends before its last epoch, because the held-out top-1 has not risen for a while."""

    kind = "early-stop"

    epoch: int
    """The last epoch that was trained."""
    best_epoch: int
    """The epoch with the highest held-out top-1."""
    patience: int
    """Number of epochs without a higher one that the recipe allows."""


class CandidateDiverged(Event):
    """One of several candidates diverged, and is left out of the selection at the end of its interval.

    From then on all its figures are NaN.
    """

    kind = "diverged"

    epoch: int
    candidate: int
    reason: str
    """What was not finite, and when."""


class RunDiverged(Event):
    """The run ended because candidates diverged and none is left that it could go on with.

    A run that goes on from a checkpoint before that takes this line away.
    """

    kind = "end"

    epoch: int
    reason: str
    """What was not finite, and when."""


class CandidateTarget(Record):
    """The target that one candidate of an interval is trained with. Means are taken over the labels."""

    role: str
    """Why it has its action, such as "mean", "sample" or "warm-up"."""
    action: tuple[Number, ...]
    """The controller's action, one number for each name of the action; empty in the warm-up."""
    log_probability: Number = math.nan
    """Log density of the action under the policy; NaN for a controller without one."""
    learning_rate_factor: Number = 1.0
    """Factor on the learning rate of the schedule."""
    true_mass: Number
    """Mean probability of the true class."""
    divergence: Number
    """Mean KL(one-hot ‖ target), nats."""
    mass_by_rank: tuple[Number, ...]
    """Mean probability of the true class, then of the other classes, the most similar one first: C numbers."""
    sources: dict[str, dict[str, Number]] = {}
    """Share and temperature of each prediction that is mixed into the target, by the name of its source."""


class TargetsDecided(Event):
    """The controller decided the targets of an interval's candidates; in the warm-up they are one-hot."""

    kind = "decision"

    interval: int
    first_epoch: int
    epochs: int
    """Length of the interval."""
    action_names: tuple[str, ...]
    """Names of the action's A entries."""
    progress: dict[str, Number] = {}
    """The state of the student that was decided on, by name; accuracies are fractions here."""
    observation: tuple[Number, ...] | None = None
    """What the policy observed; None in the warm-up and for a controller that observes nothing."""
    candidates: tuple[CandidateTarget, ...]

    @property
    def last_epoch(self) -> int:
        """The last epoch of the interval."""
        return self.first_epoch + self.epochs - 1


class CandidateSelected(Event):
    """N candidates were ranked by R criteria at the end of an interval, and the best of them lives on."""

    kind = "selection"
    parallel = ("values", "ranks", "front", "scores", "order")

    interval: int
    epoch: int
    """The last epoch of the interval."""
    criteria: tuple[str, ...]
    """Names of the R criteria."""
    higher_is_better: tuple[bool, ...]
    values: tuple[tuple[Number, ...], ...]
    """N x R: the criteria as measured, accuracies as fractions."""
    ranks: tuple[tuple[Number, ...], ...]
    """N x R: the rank of each candidate under each criterion; 1 is best."""
    front: tuple[int, ...] = ()
    """N: the Pareto front of each candidate; 1 where no other candidate dominates it."""
    aggregate: str
    """Name of the rule that makes one score of the ranks."""
    scores: tuple[Number, ...]
    """N: the score of each candidate; lower is better."""
    order: tuple[int, ...]
    """The candidates, best first."""
    winner: int
    """The first of `order`."""
    survivors: tuple[int, ...] = ()
    """The candidates that live on, best first."""
    averaged: tuple[int, ...] = ()
    """The candidates whose average was ranked as the last of the N; empty where there was none."""

    @property
    def best_candidate(self) -> int:
        """The best of the candidates that trained, whether or not their average is better."""
        return next(slot for slot in self.order if not self.is_average(slot))

    def is_average(self, row: int) -> bool:
        """Whether a row of the ranking is the average of candidates."""
        return bool(self.averaged) and row == len(self.order) - 1

    def name_of(self, row: int) -> str:
        """A short name of a row of the ranking."""
        return f"average of {' '.join(f'c{slot}' for slot in self.averaged)}" if self.is_average(row) else f"c{row}"


class CandidatesAveraged(Event):
    """Training continues from the average of the weights of several candidates."""

    kind = "average"

    epoch: int
    """The last epoch before it."""
    candidates: tuple[int, ...]
    holdout: HoldoutFigures
    """Figures of the average on the held-out images, its batch norm estimated anew."""


class ControllerRewarded(Event):
    """The controller was told what came of its decision."""

    kind = "reward"

    interval: int
    rewards: tuple[Number, ...]
    """One reward for each action of the decision; NaN where nothing can be said."""
    advantages: tuple[Number, ...] | None = None
    """The rewards as they entered an update of the policy; None where they did not."""
    buffer_advantages: tuple[Number, ...] | None = None
    """Advantages of buffered decisions that entered an update together, oldest first; None where there were none."""
    update: dict[str, Number] | None = None
    """Figures of the update of the policy; None where there was none."""


class TargetApplied(Event):
    """The target that the surviving student was trained with over an interval; all of them together can be replayed."""

    kind = "target"

    interval: int
    first_epoch: int
    epochs: int
    """Length of the interval."""
    action: tuple[Number, ...] | None
    """The controller's action; None in the warm-up."""
    learning_rate_factor: Number
    """Factor on the learning rate of the schedule."""
    true_mass: Number
    """Mean probability of the true class."""
    divergence: Number
    """Mean KL(one-hot ‖ target), nats."""


class TeachersWeighed(Event):
    """How much each of M teachers counted, as means over the images of an epoch; each kind of weight adds up to 1."""

    kind = "teachers"
    parallel = ("names", "logit_weights", "feature_weights")

    epoch: int
    names: tuple[str, ...]
    """Names of the M teachers."""
    logit_weights: tuple[Number, ...]
    """M weights of the teachers' predictions."""
    feature_weights: tuple[Number, ...]
    """M weights of the teachers' features."""
    updates: int
    """Number of updates of the weighing networks so far."""
    skipped: int
    """Number of updates that were skipped so far."""


class PathwaysWeighed(Event):
    """How much each of K pathways, from features of the teacher to features of the student, counts in an epoch."""

    kind = "pathways"
    parallel = ("names", "weights")

    epoch: int
    names: tuple[str, ...]
    """Names of the K pathways."""
    weights: tuple[Number, ...]
    """K weights at the beginning of the epoch; a pathway of weight 0 is not computed."""


class GradeStarted(Event):
    """A part of the run begins in which the first stages of the student learn some of the classes."""

    kind = "grade"

    grade: int
    first_epoch: int
    epochs: int
    """Length of the grade."""
    stages: int
    """Number of stages of the network that take part."""
    labels: tuple[int, ...]
    """Labels of the classes whose images are shown."""

    @property
    def last_epoch(self) -> int:
        """The last epoch of the grade."""
        return self.first_epoch + self.epochs - 1


class GroupsJudged(Event):
    """Held-out accuracy of each group of classes after an epoch."""

    kind = "groups"

    epoch: int
    grade: int = 0
    """The grade that the epoch belongs to; 0 in logs that do not say."""
    holdout_top1: tuple[Number, ...]
    """One number for each group, percent; NaN before the grade of the group."""


class ProfessorJudged(Event):
    """A network that refines the predictions of a teacher was trained, and judged beside it on images new to both."""

    kind = "professor"

    teacher: str
    images: int
    """Number of images that it learned from."""
    epochs: int = 0
    """Number of epochs after which it was best on images kept for that choice; 0: it is its teacher."""
    teacher_error: Number
    """Error of the teacher on the images that the professor learned from, as they were shown, in percent."""
    kept_images: int
    """Number of images that both are judged by."""
    teacher_top1: Number
    """Top-1 accuracy of the teacher on those images, in percent."""
    professor_top1: Number
    """Top-1 accuracy of the professor on the same images, in percent; NaN where the professor is told the label."""
    margin: Number
    """Half of the 95 % confidence interval of the difference of both accuracies, in percent points; NaN where there is
    no difference."""
    spearman: Number
    """Rank correlation between the two over the wrong classes, where the teacher is right; NaN where not defined."""
    verdict: str = ""
    """The comparison in one sentence."""
    warning: str = ""
    """What makes the comparison doubtful, in one sentence; empty where nothing does."""


class Confusion(Record):
    """How many images of a class were taken for another one."""

    label: int
    prediction: int
    images: int


class ConfidenceBin(Record):
    """The images whose confidence, the probability of the predicted class, lies within equal bounds."""

    images: int
    confidence: Number
    """Mean confidence, percent; NaN without images."""
    top1: Number
    """Top-1 accuracy, percent; NaN without images."""


class Mistake(Record):
    """An image that was taken for another class."""

    image: int
    """Its number in the order of the data set."""
    label: int
    prediction: int
    confidence: Number
    """Probability of the predicted class, percent."""


class StudentExamined(Event):
    """How the student of the last epoch fares on the test images, by class and by confidence."""

    kind = "test"
    parallel = ("class_images", "class_top1")

    class_images: tuple[int, ...]
    """Images of each class."""
    class_top1: tuple[Number, ...]
    """Top-1 accuracy of each class, percent; NaN for a class without images."""
    confusions: tuple[Confusion, ...]
    """Pairs of classes, the most frequent first; the rarest of very many are left out."""
    bins: tuple[ConfidenceBin, ...]
    """Equal bins of the confidence from 0 to 1, those of the expected calibration error."""
    mistakes: tuple[Mistake, ...]
    """Some of the wrong answers, the surest first."""


_KINDS: Mapping[str, type[Event]] = {
    event.kind: event
    for event in (
        RunStarted,
        RunResumed,
        RunFinished,
        LoaderChosen,
        ProcessesJoined,
        ConvolutionsChosen,
        StepsCompiled,
        EpochEnded,
        StoppedEarly,
        CandidateDiverged,
        RunDiverged,
        TargetsDecided,
        CandidateSelected,
        CandidatesAveraged,
        ControllerRewarded,
        TargetApplied,
        TeachersWeighed,
        PathwaysWeighed,
        GradeStarted,
        GroupsJudged,
        ProfessorJudged,
        StudentExamined,
    )
} | {"taught": TargetApplied}  # its name in logs of format 0


class LogLine(NamedTuple):
    """One line of a log, as it is read."""

    seconds: float
    """Seconds since the start of the run, over all of its processes."""
    event: Event | None
    """None for a kind of event that this version does not know."""
    number: int | None = None
    """The number of the line in its log, counted from 1; None in logs of older versions, which do not say."""


def to_line(event: Event, seconds: float, number: int) -> str:
    """A line of metrics.jsonl, without its end.

    Args:
        event: what happened.
        seconds: when, in seconds after the start of the run.
        number: the number of the line in the log, counted from 1.
    """
    values = {"event": event.kind, "time": round(seconds, 3), "line": number}
    return to_checked_line(values | event.model_dump(mode="json"))


def from_line(line: str | bytes) -> LogLine:
    """The counterpart of `to_line`, for lines of this version of the format, of older and of newer ones.

    Raises:
        ValueError: the line is damaged; the message says where, in a few words.
    """
    values = from_checked_line(line.encode() if isinstance(line, str) else line)
    for key in ("event", "time"):
        if key not in values:
            raise ValueError(f"no {key!r}")
    kind, seconds, number = values.pop("event"), values.pop("time"), values.pop("line", None)
    event = _KINDS.get(str(kind))
    try:
        return LogLine(float(seconds), event.model_validate(values) if event else None, number)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except TypeError as error:
        raise ValueError(str(error)) from None

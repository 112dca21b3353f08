"""Training methods by name, all behind `tfkd_fast.methods.base.Method`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfkd_fast.errors import UserError, nearest, shorten
from tfkd_fast.events import Event
from tfkd_fast.methods.base import Context, Method, Needs, SteeredMethod
from tfkd_fast.methods.controlled.method import ControlledTargets, ControlledTargetsSettings
from tfkd_fast.methods.controlled.replay import recorded_tables
from tfkd_fast.methods.distpro import DistPro, DistProSearch, DistProSearchSettings, DistProSettings
from tfkd_fast.methods.education import Education, EducationSettings
from tfkd_fast.methods.education.kd_specialists import SpecialistsKD
from tfkd_fast.methods.label.confidence_penalty import ConfidencePenalty, ConfidencePenaltySettings
from tfkd_fast.methods.label.ols import OLS, OLSSettings
from tfkd_fast.methods.label.tf_kd_reg import TfKDReg, TfKDRegSettings
from tfkd_fast.methods.label.zipf import Zipf, ZipfSettings
from tfkd_fast.methods.one_teacher.features.ab import AB
from tfkd_fast.methods.one_teacher.features.at import AT, ATSettings
from tfkd_fast.methods.one_teacher.features.fitnet import FitNet, FitNetSettings
from tfkd_fast.methods.one_teacher.features.fsp import FSP
from tfkd_fast.methods.one_teacher.features.ft import FT, FTSettings
from tfkd_fast.methods.one_teacher.features.nst import NST, NSTSettings
from tfkd_fast.methods.one_teacher.features.ofd import OFD, OFDSettings
from tfkd_fast.methods.one_teacher.features.reviewkd import ReviewKD, ReviewKDSettings
from tfkd_fast.methods.one_teacher.features.semckd import SemCKD, SemCKDSettings
from tfkd_fast.methods.one_teacher.features.srrl import SRRL, SRRLSettings
from tfkd_fast.methods.one_teacher.features.vid import VID, VIDSettings
from tfkd_fast.methods.one_teacher.initial_phase import InitialPhaseSettings
from tfkd_fast.methods.one_teacher.logits.ctkd import CTKD, CTKDSettings
from tfkd_fast.methods.one_teacher.logits.dist import DIST, DISTSettings
from tfkd_fast.methods.one_teacher.logits.dkd import DKD, DKDSettings
from tfkd_fast.methods.one_teacher.logits.kd import KD, KDSettings
from tfkd_fast.methods.one_teacher.logits.kd_ls import StandardisedKD, StandardisedKDSettings
from tfkd_fast.methods.one_teacher.logits.mlkd import MLKD, MLKDSettings
from tfkd_fast.methods.one_teacher.logits.nkd import NKD, NKDSettings
from tfkd_fast.methods.one_teacher.logits.wsld import WSLD, WSLDSettings
from tfkd_fast.methods.one_teacher.relations.cc import CC, CCSettings
from tfkd_fast.methods.one_teacher.relations.crd import CRD, CRDSettings
from tfkd_fast.methods.one_teacher.relations.pkt import PKT, PKTSettings
from tfkd_fast.methods.one_teacher.relations.rkd import RKD, RKDSettings
from tfkd_fast.methods.one_teacher.relations.sp import SP, SPSettings
from tfkd_fast.methods.online.dml import DML
from tfkd_fast.methods.online.kdcl import KDCL, KDCLSettings
from tfkd_fast.methods.online.one import ONE, ONESettings
from tfkd_fast.methods.online.peers import PeerSettings
from tfkd_fast.methods.self_distillation.bake import BAKE, BAKESettings
from tfkd_fast.methods.self_distillation.byot import BYOT, BYOTSettings
from tfkd_fast.methods.self_distillation.cs_kd import CSKD, CSKDSettings
from tfkd_fast.methods.self_distillation.ddgsd import DDGSD, DDGSDSettings
from tfkd_fast.methods.self_distillation.dlb import DLB, DLBSettings
from tfkd_fast.methods.self_distillation.frskd import FRSKD, FRSKDSettings
from tfkd_fast.methods.self_distillation.mixskd import MixSKD, MixSKDSettings
from tfkd_fast.methods.self_distillation.ps_kd import PSKD, PSKDSettings
from tfkd_fast.methods.self_distillation.tf_kd_self import TfKDSelf, TfKDSelfSettings
from tfkd_fast.methods.self_distillation.uskd import USKD, USKDSettings
from tfkd_fast.methods.several_teachers.averages import AverageSettings, EntropyAverage, EqualAverage
from tfkd_fast.methods.several_teachers.ca_mkd import CAMKD, CAMKDSettings
from tfkd_fast.methods.several_teachers.mmkd import MMKD, MMKDSettings
from tfkd_fast.plugins import Registry
from tfkd_fast.settings import Settings

__all__ = ["METHODS", "Context", "Method", "MethodEntry", "find_method"]


@dataclass(frozen=True)
class MethodEntry:
    """A method as a recipe knows it: its tables, what its name presets in them, and how to build it."""

    summary: str
    source: str
    settings: type[Settings]
    build: type[Method]
    preset: dict[str, dict[str, Any]] = field(default_factory=dict)
    named_for: tuple[str, str] | None = None
    """Table and key of the preset that the name stands for: with another value it would be another method."""
    one_trajectory: str | None = None
    """Name of the method without selection, where it is another one."""
    record: Callable[[Any, Iterable[Event], int], dict[str, Any]] | None = None
    """For a method that is steered: gives, from the settings, the log and the epochs of a run, the tables of a recipe
    that trains by the same targets again. None: the run's own recipe does that."""
    bound: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Keys of the preset, by table and key, that go with the form which the preset gives to another table, named here:
    where a recipe chooses another form of that one, they are left out."""

    def needs(self, settings: Settings | None = None) -> Needs:
        """What a method of these settings asks of the engine; without settings, of its presets and defaults."""
        if settings is None:
            own = {table: values for table, values in self.preset.items() if table in self.settings.model_fields}
            settings = self.settings.model_validate(own)
        return self.build.needs_for(settings)

    def student_epochs(self, settings: Settings, epochs: int) -> int:
        """The most epochs that a run of so many epochs trains, summed over all candidates, cooldowns included."""
        steered = issubclass(self.build, SteeredMethod)
        cooldown = self.build.needs_for(settings).cooldown_epochs if steered else 0
        intervals = self.build.intervals_for(settings, epochs)
        return sum(interval.candidates * (interval.epochs + cooldown) for interval in intervals)


def _controlled(
    summary: str,
    source: str,
    *,
    named_for: tuple[str, str] | None = None,
    one_trajectory: str | None = None,
    bound: Mapping[tuple[str, str], str] | None = None,
    **preset: dict[str, Any],
) -> MethodEntry:
    return MethodEntry(
        summary,
        source,
        ControlledTargetsSettings,
        ControlledTargets,
        preset,
        named_for,
        one_trajectory,
        recorded_tables,
        bound or {},
    )


_OWN_PREDICTIONS = {"family": "scalar", "sources": ("memory",), "source_share": 0.05, "source_temperature": 1.0}
_COURSE = {"name": "policy", "policy": "default"}  # its file is made by tfkd_fast.policies.by_hand

_OWN: dict[str, MethodEntry] = {
    # baselines
    "ce": _controlled(
        "cross-entropy with the one-hot label",
        "the baseline",
        named_for=("target", "family"),
        target={"family": "one-hot"},
        controller={"name": "fixed"},
    ),
    "label-smoothing": _controlled(
        "cross-entropy with an evenly smoothed label",
        "Szegedy et al., CVPR 2016",
        named_for=("target", "family"),
        target={"family": "label-smoothing"},
        controller={"name": "fixed"},
    ),
    # without a teacher: from the label
    "confidence-penalty": MethodEntry(
        "cross-entropy less the prediction's entropy",
        "Pereyra et al., ICLR workshop 2017",
        ConfidencePenaltySettings,
        ConfidencePenalty,
    ),
    "tf-kd-reg": MethodEntry(
        "a virtual teacher, right with 99 %, and the label",
        "Yuan et al., CVPR 2020",
        TfKDRegSettings,
        TfKDReg,
    ),
    "ols": MethodEntry(
        "the mean correct prediction for the class",
        "Zhang et al., TIP 2021; uniform soft labels in the first epoch are our choice",
        OLSSettings,
        OLS,
    ),
    "zipf": MethodEntry(
        "wrong classes by their ranks in the image",
        "Liang et al., ECCV 2022",
        ZipfSettings,
        Zipf,
    ),
    # without a teacher: self-distillation
    "ps-kd": MethodEntry(
        "the label, softened by an earlier prediction",
        "Kim et al., ICCV 2021; memory in half precision is our choice",
        PSKDSettings,
        PSKD,
    ),
    "cs-kd": MethodEntry(
        "the prediction for another image of the class",
        "Yun et al., CVPR 2020; batches of full size are our choice",
        CSKDSettings,
        CSKD,
    ),
    "dlb": MethodEntry(
        "the prediction for the last batch, shown again",
        "Shen et al., CVPR 2022; one pass for both batches, temperature and weight are our choice",
        DLBSettings,
        DLB,
    ),
    "uskd": MethodEntry(
        "soft targets from the student and a weak head",
        "Yang et al., ICCV 2023, the teacher-free part",
        USKDSettings,
        USKD,
    ),
    "tf-kd-self": MethodEntry(
        "an earlier run of the same network, and the label",
        "Yuan et al., CVPR 2020",
        TfKDSelfSettings,
        TfKDSelf,
    ),
    "byot": MethodEntry(
        "classifiers on earlier stages, by the last one",
        "Zhang et al., ICCV 2019, without the attention of the journal version",
        BYOTSettings,
        BYOT,
    ),
    "ddgsd": MethodEntry(
        "two views of an image that teach each other",
        "Xu, Liu, AAAI 2019; weight and temperature by Self-KD-Lib",
        DDGSDSettings,
        DDGSD,
    ),
    "bake": MethodEntry(
        "predictions for similar images of the batch",
        "Ge et al., 2021; epochs of usual length are our choice",
        BAKESettings,
        BAKE,
    ),
    "frskd": MethodEntry(
        "a pyramid of refined features",
        "Ji et al., CVPR 2021",
        FRSKDSettings,
        FRSKD,
    ),
    "mixskd": MethodEntry(
        "mixtures of images and of predictions",
        "Yang et al., ECCV 2022; two passes are our choice",
        MixSKDSettings,
        MixSKD,
    ),
    # without a teacher: students that teach each other
    "dml": MethodEntry(
        "students that learn from each other",
        "Zhang et al., CVPR 2018; steps at once are our choice",
        PeerSettings,
        DML,
    ),
    "kdcl": MethodEntry(
        "students that learn from their ensemble",
        "Guo et al., CVPR 2020, MinLogit; temperature and weight are our choice",
        KDCLSettings,
        KDCL,
    ),
    "one": MethodEntry(
        "branches that learn from their ensemble",
        "Lan et al., NeurIPS 2018",
        ONESettings,
        ONE,
    ),
    # controlled targets
    "tfkd": _controlled(
        "the label and earlier predictions, by a policy",
        "ours, after Jiang et al., IEEE Access 2024, without MRS; their frame is the recipe cifar100-free-form",
        target=_OWN_PREDICTIONS,
        controller=_COURSE,
    ),
    "tfkd-mrs": _controlled(
        "the same, with multi-ranking selection",
        "MRS of Jiang et al., IEEE Access 2024; target, policy and rankings are our choice",
        one_trajectory="tfkd",
        target=_OWN_PREDICTIONS | {"shared_memory": True},
        controller=_COURSE,
        selection={"budget": "full", "candidates": 2, "interval": 0, "criteria": ("holdout-nll", "holdout-top1")},
        bound={("selection", "interval"): "controller"},  # one that learns decides once in an interval
    ),
    "tfkd-extended": _controlled(
        "a learned free form and the student's predictions",
        "our extension of Jiang et al., IEEE Access 2024; the sources are named in tfkd_fast.steering.targets.settings",
        target={"family": "rank-binned", "sources": ("memory", "peers", "slow-self"), "source_share": 0.1},
        controller={"name": "ppo"},
        selection={"budget": "full"},
    ),
    # one teacher: its logits
    "kd": MethodEntry(
        "the softened predictions of a teacher",
        "Hinton, Vinyals, Dean, 2015",
        KDSettings,
        KD,
    ),
    "dkd": MethodEntry(
        "a teacher's label and other classes, decoupled",
        "Zhao et al., CVPR 2022",
        DKDSettings,
        DKD,
    ),
    "wsld": MethodEntry(
        "a teacher that counts less the surer the student",
        "Zhou et al., ICLR 2021",
        WSLDSettings,
        WSLD,
    ),
    "dist": MethodEntry(
        "predictions correlated with those of a teacher",
        "Huang et al., NeurIPS 2022",
        DISTSettings,
        DIST,
    ),
    "ctkd": MethodEntry(
        "a teacher at a temperature that learns, too",
        "Li et al., AAAI 2023, the global temperature",
        CTKDSettings,
        CTKD,
    ),
    "mlkd": MethodEntry(
        "two views, matched at three levels",
        "Jin et al., CVPR 2023; the strong view is our choice",
        MLKDSettings,
        MLKD,
    ),
    "nkd": MethodEntry(
        "a teacher's soft label, other classes normalised",
        "Yang et al., ICCV 2023",
        NKDSettings,
        NKD,
    ),
    "kd-ls": MethodEntry(
        "kd with standardised logits",
        "Sun et al., CVPR 2024",
        StandardisedKDSettings,
        StandardisedKD,
    ),
    "dkd-ls": MethodEntry(
        "dkd with standardised logits",
        "Sun et al., CVPR 2024",
        DKDSettings,
        DKD,
        preset={"loss": {"standardise": True, "temperature": 2.0, "alpha": 15.0, "beta": 30.0}},
        named_for=("loss", "standardise"),
    ),
    "mlkd-ls": MethodEntry(
        "mlkd with standardised logits",
        "Sun et al., CVPR 2024; the strong view is our choice",
        MLKDSettings,
        MLKD,
        preset={"loss": {"standardise": True, "temperature": 2.0, "kd_weight": 6.0}},
        named_for=("loss", "standardise"),
    ),
    # one teacher: its features
    "fitnet": MethodEntry(
        "a map of a teacher, behind a regressor",
        "Romero et al., ICLR 2015; beside the label throughout",
        FitNetSettings,
        FitNet,
    ),
    "at": MethodEntry(
        "where the maps of a teacher are active",
        "Zagoruyko, Komodakis, ICLR 2017",
        ATSettings,
        AT,
    ),
    "fsp": MethodEntry(
        "first the flow between stages, then the label",
        "Yim et al., CVPR 2017; a first phase by share is our choice",
        InitialPhaseSettings,
        FSP,
    ),
    "nst": MethodEntry(
        "which places the channels of a teacher select",
        "Huang, Wang, 2017",
        NSTSettings,
        NST,
    ),
    "ft": MethodEntry(
        "factors of a map, by a paraphraser",
        "Kim et al., NeurIPS 2018",
        FTSettings,
        FT,
    ),
    "ab": MethodEntry(
        "first which neurons are active, then the label",
        "Heo et al., AAAI 2019; a first phase by share is our choice",
        InitialPhaseSettings,
        AB,
    ),
    "vid": MethodEntry(
        "the likelihood of the maps of a teacher",
        "Ahn et al., CVPR 2019",
        VIDSettings,
        VID,
    ),
    "ofd": MethodEntry(
        "maps before ReLU, above a margin",
        "Heo et al., ICCV 2019; margins by measurement are our choice",
        OFDSettings,
        OFD,
    ),
    "srrl": MethodEntry(
        "what a teacher's classifier reads in a map",
        "Yang et al., ICLR 2021",
        SRRLSettings,
        SRRL,
    ),
    "semckd": MethodEntry(
        "all stages of a teacher, in shares by attention",
        "Chen et al., AAAI 2021",
        SemCKDSettings,
        SemCKD,
    ),
    "reviewkd": MethodEntry(
        "early stages of a teacher for later ones",
        "Chen et al., CVPR 2021",
        ReviewKDSettings,
        ReviewKD,
    ),
    # one teacher: relations between images
    "pkt": MethodEntry(
        "the neighbours that images have in a batch",
        "Passalis, Tefas, ECCV 2018",
        PKTSettings,
        PKT,
    ),
    "rkd": MethodEntry(
        "distances and angles between images",
        "Park et al., CVPR 2019",
        RKDSettings,
        RKD,
    ),
    "sp": MethodEntry(
        "which images of a batch are similar",
        "Tung, Mori, ICCV 2019",
        SPSettings,
        SP,
    ),
    "cc": MethodEntry(
        "how neighbouring images differ",
        "Peng et al., ICCV 2019, as RepDistiller has it",
        CCSettings,
        CC,
    ),
    "crd": MethodEntry(
        "an image among thousands of others",
        "Tian et al., ICLR 2020; how others are drawn is our choice",
        CRDSettings,
        CRD,
    ),
    # several teachers
    "kd-average": MethodEntry(
        "several teachers that all count the same",
        "You et al., KDD 2017",
        AverageSettings,
        EqualAverage,
    ),
    "kd-entropy": MethodEntry(
        "several teachers, weighed by how certain they are",
        "after Kwon et al., ICASSP 2020; weights that sum to 1 are our choice",
        AverageSettings,
        EntropyAverage,
    ),
    "ca-mkd": MethodEntry(
        "several teachers, weighed by how right they are",
        "Zhang, Chen, Wang, ICASSP 2022; weights that sum to 1 are our choice",
        CAMKDSettings,
        CAMKD,
    ),
    "mmkd": MethodEntry(
        "several teachers, weighed by learned networks",
        "Zhang, Chen, Wang, ICME 2023; normalised Gram rows and the warm-up of the features are our choice",
        MMKDSettings,
        MMKD,
    ),
    # refined, searched for, in stages
    "professor": MethodEntry(
        "a teacher, refined by a professor",
        "Bang, Lee, Shim, Information Sciences 2021; networks, losses and strategies are our choice",
        KDSettings,
        KD,
        preset={"professor": {"strategy": "joint"}},
    ),
    "distpro-search": MethodEntry(
        "a search for the weights of feature pathways",
        "Deng et al., ECCV 2022; transforms, recording and skipping of pathways are our choice",
        DistProSearchSettings,
        DistProSearch,
        {"data": {"holdout": 0.2}},
    ),
    "distpro": MethodEntry(
        "feature pathways, weighted as distpro-search found",
        "Deng et al., ECCV 2022; how a process moves to other networks is our choice",
        DistProSettings,
        DistPro,
    ),
    "education": MethodEntry(
        "classes and stages added in grades, by specialists",
        "Feng et al., KSEM 2025; promotions, mixed batches and the heads of a VGG are our choice",
        EducationSettings,
        Education,
    ),
    "kd-specialists": MethodEntry(
        "specialists side by side, under one softmax",
        "our choice: a control of education, with its alpha",
        KDSettings,
        SpecialistsKD,
        preset={"loss": {"alpha": 0.7}},
    ),
}


METHODS = Registry("method", "tfkd_fast.methods", MethodEntry, "tfkd_fast.methods.MethodEntry", _OWN)
"""The training methods: those of this package, then those of other distributions."""


def find_method(name: object) -> MethodEntry:
    """The entry of a method; anything but a known name is refused with the nearest one."""
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"unknown method {shorten(name)}: {nearest(str(name), METHODS)}")
    return METHODS[name]

"""Faults of a recipe: one sentence that names the key, the form of its table and the nearest valid name."""

import pytest

from tfkd_fast.errors import UserError
from tfkd_fast.runs.precedence import Table, set_override
from tfkd_fast.runs.recipe import load_recipe, make_recipe


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("epoch=3", r"unknown recipe key 'epoch': did you mean 'epochs'\?"),
        ("optimizer.momentun=0.5", r"'optimizer.momentun' where optimizer.name is sgd: did you mean 'momentum'\?"),
        ("schedule.warmpu=0.5", r"'schedule.warmpu' where schedule.name is one-cycle: did you mean 'warmup'\?"),
        ("selection.candidate=3", r"'selection.candidate' where selection.budget is full: did you mean 'candidates'\?"),
        ("target.source=[]", r"'target.source' where target.family is scalar: did you mean 'sources'\?"),
        (
            "schedule.name=linear",
            r"recipe key 'schedule.name': choose from cosine, one-cycle, step, torch \(got 'linear'\)",
        ),
        ("epochs=0", r"recipe key 'epochs': .*greater than or equal to 1 \(got 0\)"),
        ("optimizer.learning_rate=fast", r"recipe key 'optimizer.learning_rate': .*valid number.* \(got 'fast'\)"),
        ("epochs=true", r"recipe key 'epochs': .*valid number \(got True\)"),
        ("data.augment=no", r"recipe key 'data.augment': .*true or false \(got 'no'\)"),
        ("data.crop_area=[true, 1]", r"recipe key 'data.crop_area': .*valid number \(got \[True, 1\]\)"),
        ("method=tfdk", r"unknown method 'tfdk': did you mean 'tfkd'\?"),
    ],
)
def test_a_fault_is_one_sentence_with_the_nearest_valid_name(assignment: str, sentence: str) -> None:
    overrides: dict[str, object] = {}
    set_override(overrides, assignment)
    with pytest.raises(UserError, match=sentence):
        load_recipe("digits", overrides)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            {"controller": {"name": "ucb", "clip": 0.3}},
            "unknown recipe key 'controller.clip' where controller.name is ucb: it belongs to ppo, reinforce; choose "
            "from arm_step, arms, cooldown_epochs, exploration, forgetting, interval, top1_share, warmup_epochs",
        ),
        (
            {"target": {"family": "label-smoothing", "bins": "fine"}},
            "unknown recipe key 'target.bins' where target.family is label-smoothing: it belongs to rank-binned; "
            "choose from peers, shared_memory, slow_self_decay, smoothing, source_share, source_temperature, sources",
        ),
        (
            {"method": "ce", "selection": {"budget": "none", "candidates": 8}},
            "unknown recipe key 'selection.candidates' where selection.budget is none: it belongs to full, probe, "
            "halving; none has no other key than budget",
        ),
        (
            {"method": "professor", "professor": {"strategy": "joint", "shares": 0.9}},
            "unknown recipe key 'professor.shares' where professor.strategy is joint: did you mean 'share'?",
        ),
        (
            {"schedule": {"name": "cosine", "gamma": 0.1}},
            "unknown recipe key 'schedule.gamma' where schedule.name is cosine: it belongs to step; "
            "choose from start, warmup",
        ),
        (
            {"method": "kd", "teachers": {"label_share": 0.3}},
            "unknown recipe key 'teachers.label_share' where teachers.adjust is none: it belongs to label-mix; "
            "choose from cache, networks, runs, views",
        ),
        (
            {"method": "tf-kd-reg", "loss": {"multiplier": 3.0}},
            "unknown recipe key 'loss.multiplier' where loss.convention is paper: it belongs to reference; "
            "choose from alpha, temperature, true_mass",
        ),
        (
            {"data": {"mix_alpha": 0.2}},
            "recipe key 'data.mix_alpha' is read only where mix is mixup or cutmix (got 0.2)",
        ),
        (
            {"method": "ce", "controller": {"name": "policy"}},
            "recipe key 'controller.policy' is needed where controller.name is policy: policy that is played: "
            "a policy.safetensors file, or the name of a policy that comes with the package",
        ),
        (
            {"controller": {"name": "recorded", "recorded": [{"action": [1.0], "strat": 0.0}]}},
            "recipe key 'controller.recorded.0.start' is needed: share of the run that has passed when the entry "
            "begins; it lasts until the next entry begins",
        ),
    ],
)
def test_a_key_that_the_chosen_form_does_not_read_is_refused(table: Table, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_recipe(table)
    assert str(caught.value) == sentence

"""Run folders of earlier versions."""

from pathlib import Path

import pytest

from tfkd_fast.errors import UserError
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import load_recipe, make_recipe, read_recipe

EARLIER = """
method = "tfkd"
epochs = 4
[target]
family = "scalar"
smoothing = 0.1
bins = "fine"
true_mass_min = 0.5
true_mass_max = 0.99
memory_decay = 0.9
sources = ["peers"]
source_share = 0.3
source_temperature = 2.0
slow_self_decay = 0.9
[controller]
name = "cma-es"
warmup_epochs = 5
interval = 2
cooldown_epochs = 0
top1_share = 0.25
action = []
true_mass = [0.6, 0.999]
recorded = []
policy = ""
min_std = 0.05
max_std = 1.0
initial_std = 0.4
clip = 0.3
arms = []
exploration = 0.5
[selection]
budget = "none"
candidates = 3
interval = 5
criteria = ["holdout-nll"]
learning_rate_spread = 0.0
"""
"""Of a run folder: an earlier version wrote all keys of a table, whatever was chosen."""


def test_a_run_folder_of_an_earlier_version_is_read_without_what_nothing_reads(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.recipe.write_text(EARLIER)
    expected = {
        "method": "tfkd",
        "epochs": 4,
        "target": {
            "family": "scalar",
            "true_mass_max": 0.99,
            "sources": ["peers"],
            "source_share": 0.3,
            "source_temperature": 2.0,
            "peers": 3,
        },
        "controller": {"name": "cma-es", "interval": 2, "top1_share": 0.25},
        "selection": {"budget": "none"},
    }
    assert read_recipe(folder) == make_recipe(expected)
    with pytest.raises(UserError, match="unknown recipe key"):
        load_recipe(str(folder.recipe))  # anywhere else a key must be read

    folder.recipe.write_text('method = "distpro-search"\n[search]\norder = "second"\nsmoothing = 0.5\n')
    assert read_recipe(folder) == make_recipe({"method": "distpro-search", "search": {"smoothing": 0.5}})
    folder.recipe.write_text('method = "ce"\n[data]\nhold_out = 0.5\n')
    with pytest.raises(UserError, match=r"unknown recipe key 'data.hold_out': did you mean 'holdout'\?"):
        read_recipe(folder)
    folder.recipe.write_text(EARLIER.replace("spread = 0.0", "spread = 0.5"))
    with pytest.raises(UserError, match="peers that differ in their learning rates without selection"):
        read_recipe(folder)

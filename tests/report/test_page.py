"""The page: one well-formed file that needs nothing else, with what the run has and nothing that it has not."""

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.support.pages import edit, nulled, page_of
from tfkd_fast.errors import UserError
from tfkd_fast.report import read_run, write_report
from tfkd_fast.report.curves import learning_rate_drops
from tfkd_fast.report.drawing import DARK, LIGHT
from tfkd_fast.report.steering import divergence_rises, rank_bands, ranking_chart, selection_wins

MakeRun = Callable[..., Path]

TRAINING = ["Accuracy", "Loss", "Held-out calibration", "Learning rate and speed"]


def test_the_page_needs_nothing_else(make_run: MakeRun) -> None:
    page = page_of(make_run(classes=100))
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert "@import" not in page.text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page.text
    assert "svg { display: block; width: 100%; height: auto;" in page.text
    assert len(page.boxes) == page.tags["svg"] > 0
    assert all(float(box.split()[2]) < 350 for box in page.boxes)
    assert len(page.ids) == len(set(page.ids))
    for target in page.targets:
        assert target.startswith(("#", "data:image/png;base64,")), target
        assert not target.startswith("#") or target[1:] in page.ids


@pytest.mark.parametrize("classes", [10, 100])
def test_a_run_with_everything_shows_everything(make_run: MakeRun, classes: int) -> None:
    page = page_of(make_run(classes=classes))
    steering = ["Target distribution", "Distance from the label", "Actions", "Rewards and learning"]
    test = ["Accuracy by class", "Reliability", *(["Confusion matrix"] if classes == 10 else [])]
    charts = [*TRAINING, *test, *steering, "Ranking of the candidates"]
    assert [title for title in page.titles if title in charts] == charts
    assert page.tags["svg"] == page.tags["figure"] == len(charts)
    assert all(len(label) > 40 for label in page.labels)
    assert "The last selection, after epoch 20" in page.words
    bands = ["1", "2–4", "5–9"] if classes == 10 else ["1", "2–4", "5–16", "17–99"]
    assert all(f">{band}</text>" in page.text for band in bands)


def test_plain_cross_entropy_has_no_empty_headings(make_run: MakeRun) -> None:
    page = page_of(make_run("ce"))
    test = ["Test", "Accuracy by class", "Reliability", "Confusion matrix"]
    assert page.titles == ["Training", *TRAINING, *test, "How it was measured", "Summary", "Recipe"]
    assert "they steered nothing" in page.words


def test_held_out_images_that_may_have_ended_the_run_are_said_to(make_run: MakeRun) -> None:
    folder = make_run("ce")
    recipe = folder / "recipe.toml"
    recipe.write_text("patience = 3\n" + recipe.read_text())
    words = page_of(folder).words
    assert "steered the end of the run." in words
    assert "were only watched" not in words


def test_the_test_is_told_by_class_pair_and_confidence(make_run: MakeRun) -> None:
    folder = make_run("ce", classes=100)
    names = read_run(folder).start.classes

    def set_test(event: dict[str, Any]) -> None:
        if event["event"] == "test":
            event["class_images"], event["class_top1"] = [10] * 100, [50.0 + 0.1 * label for label in range(100)]
            event["confusions"] = [
                {"label": 7, "prediction": 3, "images": 4},
                {"label": 2, "prediction": 9, "images": 1},
            ]
            event["bins"] = [{"images": 0, "confidence": None, "top1": None}] * 14
            event["bins"] += [{"images": 1000, "confidence": 97.0, "top1": 90.0}]

    edit(folder, set_test)
    page = page_of(folder)
    assert f"from 50.00 % ({names[0]}) to 59.90 % ({names[99]})" in " ".join(page.labels)
    assert re.search(rf"{names[7]}\s*{names[3]}\s*4\s*40\.00\s*{names[2]}\s*{names[9]}\s*1\s*10\.00", page.words)
    assert "On average it is 7.0 points more sure than right." in page.words
    assert "Confusion matrix" not in page.titles  # nobody reads 10,000 cells
    (folder / "summary.json").unlink()  # the run goes on
    assert "Accuracy by class" not in page_of(folder).titles


def test_a_run_without_the_test_by_class_has_a_page(make_run: MakeRun) -> None:
    folder = make_run("ce")
    log = folder / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"event": "test"' not in line))
    assert "Test" not in page_of(folder).titles


@pytest.mark.parametrize("size", [(28, 28), (300, 200)])
def test_pictures_of_mistakes_are_shown_where_they_are_given(make_run: MakeRun, size: tuple[int, int]) -> None:
    folder = make_run("ce")
    test = read_run(folder).examination
    assert test is not None
    picture = Image.effect_noise(size, 80).convert("RGB")
    page = write_report(folder, {test.mistakes[1].image: picture}).read_text()
    (source,) = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    shown = Image.open(io.BytesIO(base64.b64decode(source)))
    if max(size) <= 96:
        assert np.array_equal(np.asarray(shown), np.asarray(picture))
    else:
        assert shown.size == (96, 64)
    names = read_run(folder).start.classes
    assert f'alt="{names[test.mistakes[1].label]}, taken for {names[test.mistakes[1].prediction]}"' in page


def test_a_single_trajectory_has_a_controller_and_no_selection(make_run: MakeRun) -> None:
    page = page_of(make_run("tfkd", interval=1))
    assert "Target distribution" in page.titles
    assert "Selection" not in page.titles
    assert "steered the controller." in page.words


def test_terms_of_the_loss_have_a_panel_where_there_are_several(make_run: MakeRun) -> None:
    folder = make_run("ce", epochs=4)
    edit(folder, lambda event: event.update({"terms": {"hard": 0.75}} if event["event"] == "epoch" else {}))
    assert "Terms of the loss" not in page_of(folder).titles

    def add(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            event["terms"] |= {"soft": 0.5 / event["epoch"]} if event["epoch"] > 1 else {}

    edit(folder, add)
    page = page_of(folder)
    assert "Terms of the loss" in page.titles
    (label,) = (label for label in page.labels if label.startswith("Line chart of the terms of the training loss: "))
    assert "hard 0.75 at epoch 1, 0.75 at epoch 4" in label
    assert "soft 0.25 at epoch 2, 0.125 at epoch 4, between 0.125 and 0.25" in label
    assert ["hard", "soft"] in page.legends


def test_the_figures_at_the_top_are_those_of_the_summary(make_run: MakeRun) -> None:
    folder = make_run("ce")
    path = folder / "summary.json"
    figures = {"test_top1": 71.234, "test_images": 10_000, "test_nll": 1.0512, "test_ece": 0.04321}
    figures |= {"holdout_top1": 72.5, "images_per_second": 12_345.6, "seconds": 7_200.0, "made_up": "kept"}
    path.write_text(json.dumps(json.loads(path.read_text()) | figures))
    page = page_of(folder)
    values = re.findall(r'<dd class="value">([^<]*)', page.text)
    assert values == ["71.23", "72.50", "1.051", "0.0432", "12,346", "2.0"]
    assert "± 0.45 standard error" in page.words  # sqrt(0.71234 * 0.28766 / 10000) = 0.4527 %
    assert "made_up" in page.words


def test_the_same_run_gives_the_same_bytes_whatever_matplotlib_is_set_to(make_run: MakeRun) -> None:
    first = write_report(make_run(name="a")).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": None}):
        settings = dict(matplotlib.rcParams)
        assert write_report(make_run(name="b")).read_bytes() == first
        assert dict(matplotlib.rcParams) == settings


def test_a_report_replaces_the_one_before_and_leaves_nothing_beside_it(make_run: MakeRun) -> None:
    folder = make_run("ce", trained=9)
    before = {path.name for path in folder.iterdir()}
    assert write_report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    make_run("ce")  # the same folder, now finished
    write_report(folder)
    assert (folder / "report.html").read_bytes() != first
    assert {path.name for path in folder.iterdir()} == before | {"report.html", "summary.json"}


def test_an_unfinished_run_says_so(make_run: MakeRun) -> None:
    folder = make_run("ce", epochs=20, trained=9)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "time": 99.0, "epo')
    page = page_of(folder)
    assert "This run is not finished." in page.words
    assert "is 9 of 20." in page.words
    assert "Test top-1" not in page.words
    assert "The test set has not been read yet" in page.words


def test_names_that_hold_no_text_are_shown_by_escapes(make_run: MakeRun) -> None:
    page = page_of(make_run("ce", epochs=1, classes=["e\x1b[31m", "not UTF-8 \udcff", "名前", "\u202ereversed"]))
    assert r"e\x1b[31m, not UTF-8 \udcff, 名前, \u202ereversed" in page.words


def test_the_page_says_what_happens_to_pixels(make_run: MakeRun) -> None:
    folder = make_run("ce", epochs=1)
    assert "image file" not in page_of(folder).words
    edit(folder, lambda event: event.update({"reading": "the largest centred square", "parts": "20 % are tested"}))
    words = page_of(folder).words
    assert "Of each image file: the largest centred square." in words
    assert "Of the folder of images: 20 % are tested." in words


def test_a_rank_has_one_colour_under_every_criterion(make_run: MakeRun) -> None:
    folder = make_run(epochs=6, candidates=3)
    ranks = [[1, 2, 3], [2, 2, 1], [3, 2, 2]]
    edit(folder, lambda event: event.update({"ranks": ranks} if event["event"] == "selection" else {}))
    chart = ranking_chart(read_run(folder))
    assert chart is not None
    _, *panels = re.findall('data:image/png;base64,([^"]*)', chart.svg)
    colours: dict[int, set[Any]] = {1: set(), 2: set(), 3: set()}
    for panel, column in zip(panels, zip(*ranks, strict=True), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(panel))) as image:
            for row, rank in enumerate(column):
                colours[rank].add(image.getpixel((image.width // 2, image.height * (2 * row + 1) // 6)))
    assert [len(of_rank) for of_rank in colours.values()] == [1, 1, 1]
    assert len(set.union(*colours.values())) == 3


def test_a_run_that_has_only_started_has_a_page(make_run: MakeRun) -> None:
    page = page_of(make_run(trained=0))
    assert "No epoch of 20 is in its log yet." in page.words
    assert page.tags["svg"] == 0


@pytest.mark.parametrize("trained", [1, 5])
def test_a_run_of_one_epoch_or_one_decision_has_a_page(make_run: MakeRun, trained: int) -> None:
    page = page_of(make_run(trained=trained))
    assert "Distance from the label" in page.titles
    assert ("Target distribution" in page.titles) == (trained > 4)  # the warm-up has mass on the true class only


def test_resumes_are_named(make_run: MakeRun) -> None:
    folder = make_run("ce", trained=9)
    with (folder / "metrics.jsonl").open("a") as file:
        facts = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        file.write(json.dumps(facts | {"event": "resume", "time": 99.0, "epoch": 9}) + "\n")
    assert "after epoch 9" in page_of(folder).words


def test_what_the_log_lacks_is_said(make_run: MakeRun) -> None:
    """Lines that were damaged and are empty now, and the end of a finished run."""
    folder = make_run("ce")
    path = folder / "metrics.jsonl"
    lines = [json.dumps(json.loads(line) | {"line": number}) for number, line in enumerate(path.open(), start=1)]
    path.write_text("\n".join(lines) + "\n")
    assert "lacks" not in page_of(folder).words
    path.write_text("\n".join([*lines[:3], "", *lines[4:-1]]) + "\n")
    assert "lacks 1 line that it held and its end" in page_of(folder).words


def test_a_run_without_held_out_images(make_run: MakeRun) -> None:
    folder = make_run("ce")

    def remove(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            event["holdout_images"] = 0
        if event["event"] == "epoch":
            event["holdout"] = None

    edit(folder, remove)
    path = folder / "summary.json"
    without = {"holdout_top1": None, "best_epoch": None, "best_holdout_top1": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | without))
    page = page_of(folder)
    assert "Held-out calibration" not in page.titles
    assert "No images were held out" in page.words


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["ce", "tfkd", "tfkd-mrs"])
def test_a_run_of_nothing_but_nan_has_a_page(make_run: MakeRun, method: str) -> None:
    folder = make_run(method)
    edit(folder, lambda event: event.update({key: nulled(value) for key, value in event.items() if key != "time"}))
    path = folder / "summary.json"
    path.write_text(json.dumps(nulled(json.loads(path.read_text()))))
    page = page_of(folder)
    assert "–" in re.findall(r'<dd class="value">([^<]*)', page.text)
    assert not re.search(r"\bnan\b", page.words + " ".join(page.labels), re.IGNORECASE)


def test_names_are_escaped(make_run: MakeRun) -> None:
    folder = make_run(classes=["<b>", '"&amp;', "</title><script>alert(1)</script>"])
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text() + 'note = "</pre><script>alert(2)</script>"\n')

    def rename(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            event["dataset"] = event["device_name"] = "<i>&</title><script>"
        if event["event"] == "decision":
            event["candidates"][0]["role"] = "<u>$x$"

    edit(folder, rename)
    page = page_of(folder)
    assert page.tags["script"] == page.tags["b"] == page.tags["i"] == page.tags["u"] == 0
    assert '<b>, "&amp;, </title><script>alert(1)</script>' in page.words
    assert "</pre><script>alert(2)</script>" in page.words
    assert "<u>$x$" in page.words


def test_a_long_run_stays_small(make_run: MakeRun) -> None:
    folder = make_run(epochs=240, classes=100, candidates=4, interval=1, warmup=5)
    assert write_report(folder).stat().st_size < 2_000_000


def test_many_dimensions_and_many_candidates(make_run: MakeRun) -> None:
    folder = make_run(epochs=12, classes=100, candidates=16)
    random = np.random.default_rng(0)

    def widen(event: dict[str, Any]) -> None:
        if event["event"] == "decision":
            event["action_names"] = [f"direction {number}" for number in range(16)]
            for candidate in event["candidates"]:
                if candidate["role"] != "warm-up":
                    candidate["action"] = random.normal(size=16).tolist()
                    candidate["mass_by_rank"] = random.dirichlet(np.ones(100)).tolist()

    edit(folder, widen)
    page = page_of(folder)
    assert ">direction 15</text>" in page.text
    assert all(f">{rank}</text>" in page.text for rank in (1, 2, 5, 10, 20, 50))  # not all 99 of them
    assert ">15 · sample</text>" in page.text


def test_events_that_contradict_each_other_are_a_user_error(make_run: MakeRun) -> None:
    folder = make_run("tfkd")

    def turn_back(event: dict[str, Any]) -> None:
        if event["event"] == "decision":
            event["first_epoch"] = -event["first_epoch"]

    edit(folder, turn_back)
    with pytest.raises(UserError, match=r"no page can be made of .*metrics\.jsonl, whose events contradict each other"):
        write_report(folder)


def test_a_folder_that_cannot_be_written_is_a_user_error(make_run: MakeRun) -> None:
    folder = make_run("ce")
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        write_report(folder)


def test_the_rises_are_those_of_the_student_after_the_warm_up(make_run: MakeRun) -> None:
    folder = make_run("tfkd", epochs=10, interval=1, warmup=4)
    divergences = iter([0.0, 0.3, 0.1, 0.2, 0.2 + 1e-9, 0.05, 0.06])

    def set_divergence(event: dict[str, Any]) -> None:
        if event["event"] == "decision":
            event["candidates"][0]["divergence"] = next(divergences)

    edit(folder, set_divergence)
    assert [decision.first_epoch for decision in divergence_rises(read_run(folder))] == [7, 10]
    assert "away from the one-hot label at 2 of 5 changes" in page_of(folder).words


def test_the_first_sentence_tells_what_the_run_knows_of_its_gain(make_run: MakeRun) -> None:
    folder = make_run("tfkd", epochs=6, interval=1, warmup=2)
    actions = iter([0.0, 0.05, -2.0, 0.0])

    def act(values: Iterator[float]) -> Callable[[dict[str, Any]], None]:
        def set_action(event: dict[str, Any]) -> None:
            if event["event"] == "decision" and event["candidates"][0]["role"] != "warm-up":
                target = event["candidates"][0]
                target["action"] = [next(values), *[0.0] * (len(event["action_names"]) - 1)]

        return set_action

    edit(folder, act(actions))
    assert "it: the controller left it in 1 of 4 decisions" in page_of(folder).words
    edit(folder, act(iter([0.0] * 4)))
    assert "the controller kept to it in all 4 decisions" in page_of(folder).words


def test_the_first_sentence_tells_what_averaging_gained(make_run: MakeRun) -> None:
    folder = make_run(epochs=12)

    def add_average(event: dict[str, Any]) -> None:
        if event["event"] == "selection":
            count, best = len(event["order"]), max(values[0] for values in event["values"])
            event["criteria"], event["higher_is_better"] = ["holdout-top1"], [True]
            event["values"] = [[values[0]] for values in event["values"]] + [[best + 0.0125]]
            event["ranks"] = [[1.0 + slot] for slot in range(count + 1)]
            event["scores"] = [*event["scores"], 0.0]
            event["front"] = [1] * (count + 1)
            event["winner"], event["averaged"] = count, list(range(count))
            event["order"] = [count, *sorted(range(count), key=lambda slot: -event["values"][slot][0])]

    edit(folder, add_average)
    assert "was 1.25 points better than the best of them on held-out images after epoch 12" in page_of(folder).words


def test_wins_are_counted_by_candidate(make_run: MakeRun) -> None:
    folder = make_run()
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counts = Counter(event["winner"] for event in events if event["event"] == "selection")
    names = ["0 · mean", "1 · elite", "2 · sample", "3 · sample"]
    assert selection_wins(read_run(folder)) == {name: counts[slot] for slot, name in enumerate(names)}


def test_rank_bands() -> None:
    mass = np.array([[0.2, 0.1], [0.1, 0.1], [0.1, 0.1 * (1 + 1e-6)], [0.1, 0.05], [np.nan, 0.05]])
    assert rank_bands(mass) == [(1, 1), (2, 3), (4, 4), (5, 5)]
    assert rank_bands(mass[:1]) == [(1, 1)]
    assert rank_bands(np.ones((99, 3))) == [(1, 99)]


def test_drops_are_the_milestones_of_a_step_schedule_and_none_of_a_smooth_one(make_run: MakeRun) -> None:
    folder = make_run("ce", epochs=40)
    assert learning_rate_drops(read_run(folder)) == [26, 31, 36]  # after 25, 30 and 35 epochs

    def smooth(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            event["learning_rate"] = 0.5 * (1 + np.cos(np.pi * (event["epoch"] - 1) / 40))

    edit(folder, smooth)
    assert learning_rate_drops(read_run(folder)) == []


def test_charts_take_their_colours_from_the_page(make_run: MakeRun) -> None:
    page = page_of(make_run())
    charts = "".join(re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL))
    used = set(re.findall(r"var\(--(\w+)\)", charts))
    assert {"ink", "muted", "blue", "vermilion"} <= used <= LIGHT.keys()
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", charts)) <= {"#ffffff"}  # numbers on blue cells


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, WCAG 2.2."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "panel"])
def test_contrast_reaches_wcag_aa(theme: dict[str, str], ground: str) -> None:
    """4.5 for text, 3 for lines."""
    for names, least in ((("ink", "muted"), 4.5), (("blue", "vermilion", "green", "purple", "faint"), 3.0)):
        for name in names:
            low, high = sorted([luminance(theme[name]), luminance(theme[ground])])
            assert (high + 0.05) / (low + 0.05) >= least, name

"""The report: complete, self-contained, honest about what is missing, and never half written."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.results import pictures
from engine.results.page import page
from engine.results.pictures import feature_map, free_cells, label_colours, map_places
from engine.results.records import read_records
from engine.results.report import EmbeddingSample, NeighbourRow, report_of
from tests.engine.results.page_parser import Tags, assert_only_ours, charts_of
from tests.engine.results.written_runs import (
    CONFIG,
    MIB,
    PLAN,
    SUMMARY,
    K,
    embedding_sample,
    evaluation_line,
    metrics_line,
    neighbour_rows,
    write_run,
)


def test_a_run_that_was_to_end_early_says_so_and_a_step_that_was_evaluated_twice_stands_once(tmp_path):
    twice = [{**evaluation_line(500), "figures": {"knn_top1": figure}} for figure in (0.25, 0.75)]
    write_run(tmp_path, [metrics_line(500)], twice, summary=SUMMARY, plan=PLAN, config={**CONFIG, "steps": 500})
    html = report_of(tmp_path, [], None)
    assert "ended where steps=500 asks" in html and ">finished<" not in html
    assert "75.0 %" in html and "25.0 %" not in html


def test_while_the_rows_fill_up_the_report_draws_no_conclusion_from_the_loss(tmp_path):
    line = metrics_line(8, loss=1.6, active=K // 8, chance_loss=5.03)
    write_run(tmp_path, [line], [], summary={**SUMMARY, "active": K, "loss": 1.6}, plan=PLAN, config=CONFIG)
    html = report_of(tmp_path, [], None)
    assert f"{K // 8:,} of {K:,} rows are active so far" in html and "below chance" not in html
    assert "chance among the active rows: 5.03" in html and "chance: ln K" not in html
    assert "chance among the active rows" in str(charts_of(html))


def test_what_the_loader_did_is_added_up_over_all_lines(tmp_path):
    loader = {"images": 600, "cpu_seconds": 2.0, "images_per_core_second": 300.0, "read_bytes": 3 * MIB}
    lines = [metrics_line(8, loader=loader), metrics_line(16, loader={**loader, "cpu_seconds": 4.0})]
    write_run(tmp_path, lines, [], summary=SUMMARY, plan=PLAN, config=CONFIG)
    html = report_of(tmp_path, [], None)
    assert "The loader made the views of 200 images a second of one core, and read 6 MiB of image files." in html
    write_run(tmp_path, [metrics_line(8)], [], summary=SUMMARY, plan=PLAN, config=CONFIG)
    assert "The loader made" not in report_of(tmp_path, [], None)


@pytest.mark.parametrize(("schedule", "said"), [(1720, "ended where steps=1000 asks, of 1,720"), (1000, "finished")])
def test_a_run_is_finished_where_its_schedule_ends(tmp_path, schedule, said):
    summary = {**SUMMARY, "steps_of_schedule": schedule}
    write_run(tmp_path, [metrics_line(1000)], [], summary=summary, config={**CONFIG, "steps": 1000})
    assert f'<span class="status good">{said}</span>' in report_of(tmp_path, [], None)


@pytest.fixture
def whole_run(tmp_path: Path) -> Path:
    output = tmp_path / "demo"
    output.mkdir()
    metrics = [metrics_line(step) for step in range(10, 1001, 10)]
    evaluations = [evaluation_line(step) for step in (0, 500, 1000)]
    write_run(output, metrics, evaluations, summary=SUMMARY, plan=PLAN, config=CONFIG)
    return output


def html_of(output: Path, rows: list[NeighbourRow] | None = None, sample: EmbeddingSample | None = None) -> str:
    return report_of(output, [] if rows is None else rows, sample)


def map_of(sample: EmbeddingSample) -> str:
    return page("map", feature_map(sample))


def test_report_fetches_nothing(whole_run: Path) -> None:
    html = html_of(whole_run, neighbour_rows(), embedding_sample())
    assert_only_ours(html)
    assert not [word for word in ("http:", "https:", "@import") if word in html]
    assert not re.search(r"url\((?!#)", html)


def test_report_is_well_formed_and_every_picture_has_words(whole_run: Path) -> None:
    tags = Tags(html_of(whole_run, neighbour_rows(), embedding_sample()))
    assert tags.open == []
    words = [value for tag, name, value in tags.attributes if (tag, name) == ("img", "alt")]
    assert len(words) == sum((tag, name) == ("img", "src") for tag, name, _ in tags.attributes) == 10
    assert all(words)
    assert [*tags.charts] == [
        *("Loss over steps", "Learning rate over steps", "kNN, top-1 over steps", "Serif & <Mono>, clean over steps"),
        *("RankMe over steps", "Shares of the time by stage: see the table", "Time of a step by stage over steps"),
        *("Images per second over steps", "Memory by tier, planned and measured: see the table", "Memory over steps"),
    ]


def test_curves_are_those_of_the_logs(whole_run: Path) -> None:
    charts = charts_of(html_of(whole_run))
    memory = {trace["name"]: trace for trace in charts["Memory over steps"]["data"]}
    assert [*memory] == ["device", "host", "disk", "whole process, its peak so far"]
    assert memory["disk"]["x"][:2] == [10, 20] and memory["disk"]["text"][:2] == ["10 KiB", "20 KiB"]
    stages = charts["Time of a step by stage over steps"]["data"]
    assert len(stages) == 7 and {text for stage in stages for text in stage["text"]} == {"25 ms"}
    assert charts["kNN, top-1 over steps"]["data"][0]["y"] == [10, 30, 50]
    assert charts["Images per second over steps"]["data"][0]["y"][0] == 1430


def test_figures_of_any_evaluator_and_of_any_method_are_drawn_by_their_names(tmp_path: Path) -> None:
    evaluations = [{**evaluation_line(step), "spread": step / 100, "linear_probe": {"top1": 0.5}} for step in (10, 20)]
    metrics = [metrics_line(step, figures=["active", "temperature"], temperature=step / 7) for step in (10, 20)]
    write_run(tmp_path, metrics, evaluations, summary=SUMMARY)
    html = html_of(tmp_path)
    charts = charts_of(html)
    assert charts["spread over steps"]["data"][0]["y"] == [0.1, 0.2]
    assert charts["linear probe: top1 over steps"]["data"][0]["y"] == [0.5, 0.5]
    assert charts["temperature over steps"]["data"][0]["text"] == ["1.429", "2.857"]
    assert "At step 20: spread: 0.2; linear probe: top1: 0.5." in html
    assert "2.86" in html and "2.857142" not in html  # in its tile


def test_of_one_evaluation_there_are_bars_beside_raw_pixels_and_chance_and_no_curve(tmp_path: Path) -> None:
    write_run(tmp_path, [metrics_line(10)], [evaluation_line(10)], summary=SUMMARY)
    html = html_of(tmp_path)
    charts = charts_of(html)
    assert [trace["name"] for trace in charts["Nearest neighbours: see the table"]["data"]] == [
        "learned features",
        "raw pixels",
        "chance",
    ]
    assert not [name for name in charts if "kNN" in name]
    assert "<tr><td>kNN, top-1</td><td>10.4 %</td><td>37.7 %</td>" in html


def test_headline_stands_beside_what_it_has_to_beat(whole_run: Path) -> None:
    html = html_of(whole_run)
    for said in (
        *("4.02", "chance: ln K = 7.62", "51.8 %", "raw pixels 37.7 %, chance 0.066 %", "57,697", "57,001", "211,034"),
        *("2,048", "1,431", "179 ms a step", "3 min 20 s", "steps: 1,000, skipped: 2", "pretrain · pic", "finished"),
        *("chance ln K = 7.62", "0.7 ln K = 5.34", "14.1 points above", "91.4 of 128", "gallery DejaVu Sans"),
    ):
        assert said in html, said


def test_the_number_of_processes_is_told_where_there_were_several(whole_run):
    pages = []
    for count in (1, 2):
        write_run(whole_run, [metrics_line(20)], [], summary={**SUMMARY, "ranks": count}, plan=PLAN)
        pages.append(html_of(whole_run))
    one, two = pages
    assert " ranks" not in re.sub(r"<pre>.*?</pre>", "", one, flags=re.DOTALL)
    assert "pretrain · pic · 2 ranks" in two
    assert "Device and host: of the largest of 2 ranks; disk: of all." in two


def test_sections_come_in_their_order(whole_run: Path) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", html_of(whole_run))
    assert headings == [
        "Loss",
        "Nearest neighbours by the learned features",
        "Where the time goes",
        "Memory by tier",
        "Pictures of nearest neighbours",
        "Map of the features",
        "Linear probe",
        "Configuration",
    ]


def test_memory_compares_the_peak_with_the_plan(whole_run: Path) -> None:
    html = html_of(whole_run)
    assert "<tr><td>device</td><td>10.0 MiB</td><td>11.0 MiB</td><td>1.10</td></tr>" in html
    assert "<tr><td>host</td><td>40.0 MiB</td><td>30.0 MiB</td><td>0.75</td></tr>" in html
    assert "<tr><td>device</td><td>momentum</td><td>2.0 MiB</td></tr>" in html


def test_time_that_no_stage_explains_is_shown(whole_run: Path) -> None:
    html = html_of(whole_run)
    # 7 stages of 0.25 s in each interval of 2 s, 100 intervals, 1,000 steps.
    assert "softmax over the active rows</td><td>12.5 %</td><td>25.0 s</td><td>25.0 ms</td>" in html
    assert "everything else</td><td>12.5 %</td><td>25.0 s</td>" in html


def test_seconds_of_a_step_are_over_the_steps_that_were_measured(tmp_path: Path) -> None:
    """A process that was killed between a checkpoint at step 30 and a line at step 90 leaves one line, of 60 steps."""
    seconds = {"softmax": 6.0}
    line = metrics_line(90, interval_steps=60, seconds=seconds, interval_seconds=12.0)
    write_run(tmp_path, [line], [], summary={**SUMMARY, "rest_seconds": {"evaluation": 3.0}}, plan=PLAN, config=CONFIG)
    html = report_of(tmp_path, [], None)
    assert "softmax over the active rows</td><td>40.0 %</td><td>6.0 s</td><td>100.0 ms</td>" in html
    assert "evaluate</td><td>20.0 %</td><td>3.0 s</td>" in html


def test_names_and_config_are_escaped(whole_run: Path) -> None:
    evil = '<img src=x onerror=alert(1)> "quoted" & more'
    sample = embedding_sample(depth=3)
    sample.names[:] = [evil if name == "kind 0" else name for name in sample.names]
    html = html_of(whole_run, neighbour_rows(evil), sample)
    assert_only_ours(html)
    assert not [word for word in ("<img src=x", "<Mono>", "<b>&") if word in html]
    assert html.count("&lt;img src=x onerror=alert(1)&gt; &#34;quoted&#34; &amp; more") > 20
    assert "Serif &amp; &lt;Mono&gt;, clean" in html


def test_right_and_wrong_neighbours_are_counted_and_marked(whole_run: Path) -> None:
    html = html_of(whole_run, neighbour_rows())
    assert "5 of 7 shown are right" in html
    assert html.count('class="picture neighbour right"') == 5
    assert html.count('class="picture neighbour wrong"') == 2


def test_run_without_evaluations_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, [metrics_line(10), metrics_line(20)], [], summary={**SUMMARY, "knn_top1": None}, config=CONFIG)
    html = html_of(tmp_path)
    for said in ("No evaluation was made", "not measured", "No nearest neighbours were", "No sample of features"):
        assert said in html, said
    assert "left no plan" in html


def test_run_without_labels_says_so(tmp_path: Path) -> None:
    unlabelled = {"step": 10, "figures": {}, "chance": None, "raw_pixels": {}, "protocol": "", "rankme": None}
    write_run(tmp_path, [metrics_line(10)], [unlabelled], summary=SUMMARY)
    assert "There are no labels" in html_of(tmp_path)
    assert "There are no labels to colour by" in map_of(embedding_sample(labelled=False))


def test_killed_run_has_a_report_from_its_only_line(tmp_path: Path) -> None:
    write_run(tmp_path, [metrics_line(10)], [])
    html = html_of(tmp_path)
    assert "no summary: still running, or killed" in html
    assert "ln K = 7.62" in html
    assert "The run left no config.json." in html


def test_empty_directory_has_a_report(tmp_path: Path) -> None:
    html = html_of(tmp_path)
    for said in ("No steps were logged", "No times were logged", "No memory was planned or measured"):
        assert said in html, said


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_gap(tmp_path: Path, bad: float | None) -> None:
    lines = [metrics_line(step, loss=bad if step in (30, 40) else 5.0) for step in range(10, 101, 10)]
    write_run(tmp_path, lines, [], summary={**SUMMARY, "loss": bad})
    html = html_of(tmp_path)
    assert "Logged steps without a finite loss, where the curve has gaps: 2." in html
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL), re.IGNORECASE)


def test_run_whose_every_loss_is_missing_has_a_report(tmp_path: Path) -> None:
    write_run(tmp_path, [metrics_line(step, loss=None, active=None) for step in (10, 20)], [])
    assert "gaps: 2." in html_of(tmp_path)


def test_of_steps_logged_twice_the_later_lines_count(tmp_path: Path) -> None:
    steps = (10, 20, 30, 20, 30, 40)
    write_run(tmp_path, [metrics_line(step, visited=index) for index, step in enumerate(steps)], [])
    assert [(line["step"], line["visited"]) for line in read_records(tmp_path).metrics] == [
        (10, 0),
        (20, 3),
        (30, 4),
        (40, 5),
    ]


def test_half_written_line_is_left_out_and_counted(tmp_path: Path) -> None:
    write_run(tmp_path, [metrics_line(10)], [])
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 20, "lo')
    assert len(read_records(tmp_path).metrics) == 1
    assert "could not be read and are left out: 1." in html_of(tmp_path)


def test_map_of_the_same_features_is_the_same() -> None:
    sample = embedding_sample()
    places_M2 = map_places(sample.features_MD)
    np.testing.assert_array_equal(places_M2, map_places(sample.features_MD))
    assert (places_M2.min(), places_M2.max()) == (0, 1)


def test_map_keeps_well_separated_groups_together() -> None:
    sample = embedding_sample(90)
    assert sample.labels_M is not None
    places_M2 = map_places(np.eye(8)[sample.labels_M] * 9 + sample.features_MD)
    distances_MM = np.linalg.norm(places_M2[:, None] - places_M2[None], axis=-1)
    np.fill_diagonal(distances_MM, np.inf)
    assert (sample.labels_M[distances_MM.argmin(axis=1)] == sample.labels_M).all()


def test_map_shows_a_seeded_choice_of_a_large_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_POINTS", 50)
    sample = replace(embedding_sample(60), images=None)
    html = map_of(sample)
    (chart,) = charts_of(html).values()
    assert len(chart["data"][0]["x"]) == len(chart["data"][0]["text"]) == 50
    assert "50 images of 60" in html
    assert map_of(sample) == html


@pytest.mark.parametrize(
    ("features_MD", "said"),
    [
        (np.ones((60, 8), np.float32), "collapsed"),
        (np.full((60, 8), np.nan, np.float32), "diverged"),
        (np.zeros((60, 8), np.float32), "collapsed"),
        (np.eye(4, dtype=np.float32), "at least 5 points"),
    ],
    ids=["same", "nan", "zero", "few"],
)
def test_features_that_cannot_be_mapped_are_one_sentence(features_MD: np.ndarray, said: str) -> None:
    html = map_of(EmbeddingSample(features_MD, None, None, [""] * len(features_MD)))
    assert said in html
    assert "<img" not in html and not charts_of(html)


def test_glyphs_are_drawn_and_colour_images_are_dots() -> None:
    assert 'class="map"' in map_of(embedding_sample())
    html = map_of(embedding_sample(depth=3))
    (chart,) = charts_of(html).values()
    (trace,) = chart["data"]
    assert len(trace["x"]) == len(trace["marker"]["color"]) == 60 and trace["text"][:2] == ["kind 0", "kind 1"]
    assert html.count('class="key"') == len(set(trace["marker"]["color"])) == 3
    assert "kind 2" in html


def test_no_two_glyphs_share_a_cell_and_the_first_gets_its_own() -> None:
    places_M2 = np.full((20, 2), 0.5)
    cells_M2 = free_cells(places_M2, 5, 5)
    assert cells_M2[0].tolist() == [2, 2]
    assert len({tuple(cell) for cell in cells_M2.tolist()}) == 20


def test_few_labels_have_different_colours() -> None:
    assert len(set(label_colours(12))) == 12


def test_report_of_demo_like_data_is_under_3_mib_without_plotly_js(whole_run: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for _ in range(9)]
    row = NeighbourRow(images[0], "query", [(image, "name", True, 0.5) for image in images[1:]])
    assert len(report_of(whole_run, [row] * 12, embedding_sample()).encode()) < 3 * MIB

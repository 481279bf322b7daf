"""Charts: gaps stay gaps, levels have their names, units are told, long lines stay small, and nothing in a name is obeyed."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.results import charts
from engine.results.charts import (
    Group,
    Level,
    Line,
    bars,
    curves,
    dots,
    drawn_points,
    series_colour,
    smoothed,
    value_text,
)

MIB = 2**20
ANY_NUMBER = st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "bytes", "0 B"),
        (1023, "bytes", "1,023 B"),
        (3 * 2**10, "bytes", "3 KiB"),
        (12.5 * MIB, "bytes", "12.5 MiB"),
        (40 * 2**30, "bytes", "40 GiB"),
        (0.179, "seconds", "179 ms"),
        (7200, "seconds", "2 h"),
        (0.521, "share", "52.1 %"),
        (0.00066, "share", "0.066 %"),
        (57697, "", "57,697"),
        (1e12, "", "1,000,000,000,000"),
        (4.02314, "", "4.023"),
    ],
)
def test_a_value_is_told_in_its_unit(value, unit, text):
    assert value_text(value, unit) == text


@given(
    st.lists(ANY_NUMBER, max_size=60), st.sampled_from(["", "bytes", "seconds", "share"]), st.booleans(), st.booleans()
)
def test_whatever_the_values_are_a_chart_is_json_and_what_is_no_number_is_a_gap(values, unit, is_log, is_noisy):
    line = Line("a", range(len(values)), values, style="noisy" if is_noisy else "line")
    chart = curves([line], name="a", unit=unit, is_log_y=is_log, levels=[Level(0.5, "half")])
    json.dumps([chart.data, chart.layout], allow_nan=False)
    gaps = [
        index
        for index, value in enumerate(values)
        if value is None or not math.isfinite(value) or (is_log and value <= 0)
    ]
    for trace in chart.data:
        assert [index for index, y in enumerate(trace["y"]) if y is None] == gaps
        assert len(trace["x"]) == len(trace["y"]) == len(trace["text"]) == len(values)


def test_an_axis_of_bytes_has_the_unit_of_its_largest_value_and_begins_at_zero():
    chart = curves(
        [Line("host", [1, 2], [MIB, 30 * MIB])], name="memory", unit="bytes", levels=[Level(60 * MIB, "planned")]
    )
    assert chart.data[0]["y"] == [1, 30] and chart.data[0]["text"] == ["1 MiB", "30 MiB"]
    assert (chart.layout["yaxis"]["ticksuffix"], chart.layout["yaxis"]["rangemode"]) == (" MiB", "tozero")
    assert chart.layout["shapes"][0]["y0"] == 60


@given(st.lists(st.integers(1, 2**60), min_size=1, max_size=20))
def test_ticks_of_a_logarithmic_axis_of_bytes_are_few_powers_of_4_around_all_values(sizes):
    chart = curves([Line("disk", range(len(sizes)), sizes)], name="memory", unit="bytes", is_log_y=True)
    axis, drawn = chart.layout["yaxis"], chart.data[0]["y"]
    assert 2 <= len(axis["tickvals"]) == len(axis["ticktext"]) <= 11
    assert 10 ** axis["range"][0] <= min(drawn) * (1 + 1e-6) and max(drawn) <= 10 ** axis["range"][1] * (1 + 1e-6)


def test_a_level_is_a_dashed_line_over_the_whole_width_whose_name_is_in_the_legend():
    chart = curves(
        [Line("kNN", [10], [0.5])], name="kNN", unit="share", levels=[Level(0.377, "raw pixels 37.7 %", "warm")]
    )
    (shape,) = chart.layout["shapes"]
    assert (shape["xref"], shape["x0"], shape["x1"], shape["y0"]) == ("x domain", 0, 1, 37.7)
    assert (shape["name"], shape["showlegend"], shape["line"]["dash"]) == ("raw pixels 37.7 %", True, "dash")
    assert chart.layout["showlegend"] and shape["line"]["color"] == "var(--warm)"


def test_error_bars_reach_from_low_to_high_and_miss_where_one_is_missing():
    line = Line("step", [1, 2, 3], [4.0, 5.0, None], [3.5, None, 1.0], [6.0, 7.0, 2.0], style="points")
    (trace,) = curves([line], name="step").data
    assert trace["mode"] == "markers"
    assert (trace["error_y"]["array"], trace["error_y"]["arrayminus"]) == ([2.0, 2.0, None], [0.5, None, None])


def test_of_a_long_line_the_lowest_the_highest_and_the_gaps_are_drawn():
    values = np.sin(np.arange(100_000) / 500.0)
    values[70_000], values[30_000], values[50_000] = 9.0, -9.0, np.nan
    chosen = drawn_points(values)
    assert len(chosen) <= charts.MOST_POINTS + 2 and {0, 30_000, 50_000, 70_000, 99_999} <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()
    (trace,) = curves([Line("a", range(100_000), values.tolist())], name="a").data
    assert len(trace["x"]) == len(chosen) and trace["y"].count(None) == 1


@given(st.lists(st.none() | st.integers(0, 2**50), min_size=1, max_size=6), st.booleans())
def test_bars_are_drawn_for_known_sizes_only_each_with_its_size_in_words(sizes, is_stacked):
    names = [f"tier {index % 2}" for index in range(len(sizes))]  # two of a name stay two
    groups = [Group("planned", sizes), Group("measured", [None] * len(sizes))]
    chart = bars(names, groups, name="memory", unit="bytes", is_stacked=is_stacked)
    planned, measured = chart.data
    assert planned["y"] == [*range(len(sizes))] and chart.layout["yaxis"]["ticktext"] == names
    assert [value is None for value in planned["x"]] == [size is None for size in sizes]
    assert planned["text"] == ["" if size is None else value_text(size, "bytes") for size in sizes]
    assert set(measured["x"]) == {None} and set(measured["text"]) == {""}


def test_all_colours_are_those_of_the_page():
    line = Line("a", [1, 2], [1.0, 2.0], [0.0, 1.0], [2.0, 3.0])
    for chart in (curves([line], name="a", levels=[Level(1, "b")]), bars(["a"], [Group("b", [1.0])], name="a")):
        text = json.dumps([chart.data, chart.layout])
        assert not re.search(r"#[0-9a-f]{3,6}\b|rgb", text) and "var(--" in text
    assert len({series_colour(index) for index in range(20)}) == 8


def test_names_are_text_to_plotly_which_obeys_some_markup():
    name = "<b>a</b> <a href='javascript:1'>\u202e\ud800\n&lt;"
    shown = "&lt;b&gt;a&lt;/b&gt; &lt;a href='javascript:1'&gt;\\u202e\\ud800\\n&amp;lt;"
    curve = curves([Line(name, [1], [1.0])], name="a", x_title=name, y_title=name, levels=[Level(1, name)])
    bar = bars([name], [Group(name, [1.0])], name="a")
    for said in (
        *(curve.data[0]["name"], curve.layout["xaxis"]["title"]["text"], curve.layout["yaxis"]["title"]["text"]),
        *(curve.layout["shapes"][0]["name"], bar.data[0]["name"], bar.layout["yaxis"]["ticktext"][0]),
        dots(np.zeros((1, 2)), [name], ["#123456"], name="a").data[0]["text"][0],
    ):
        assert said == shown


def test_running_mean_ignores_missing_values() -> None:
    values = np.ones(100)
    values[40:43] = np.nan
    means = smoothed(values)
    assert np.isnan(means).sum() == 3
    np.testing.assert_allclose(means[np.isfinite(means)], 1.0)


def test_running_mean_of_a_line_is_the_line_inside() -> None:
    values = np.arange(200.0)
    np.testing.assert_allclose(smoothed(values)[4:-4], values[4:-4])

"""The pictures show what they are given, and say it without colour."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from clair import plots
from clair.intervals import Interval


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def test_grid_has_a_row_a_domain_and_names_it():
    figure = plots.grid({"line": pictures(3), "flat": pictures(2)})
    assert len(figure.axes) == 6
    assert sum(bool(axis.images) for axis in figure.axes) == 5
    assert {text.get_text() for axis in figure.axes for text in axis.texts} == {"line", "flat"}


def test_hits_and_misses_differ_by_mark_and_frame_not_by_colour_alone():
    order, hits = np.array([[0, 1, 2]]), np.array([[True, False, True]])
    figure = plots.retrievals(pictures(1), pictures(3), order, hits, ["bird"])
    marks = [axis.texts[0].get_text() for axis in figure.axes[1:]]
    framed = [axis.spines["top"].get_visible() for axis in figure.axes[1:]]
    assert marks == ["✓", "✗", "✓"]
    assert framed == [True, False, True]
    assert np.array_equal(figure.axes[2].images[0].get_array(), pictures(3)[1])


def test_groups_of_a_scatter_have_markers_of_their_own():
    points = np.random.default_rng(0).normal(size=(6, 2))
    figure = plots.scatter(points, ["a"] * 3 + ["b"] * 3)
    shapes = [collection.get_paths()[0].vertices.shape for collection in figure.axes[0].collections]
    assert shapes[0] != shapes[1]
    assert [len(c.get_offsets()) for c in figure.axes[0].collections] == [3, 3]


def test_headline_bars_are_means_and_dots_the_runs():
    rows = [
        {"split": split, "report": "test", "method": method, "direction": "line->flat", "map": "none",
         "metric": "mAP@all", "value": value}
        for method, values in (("frozen", (0.2, 0.4)), ("clair", (0.3, 0.5)))
        for split, value in enumerate(values)
    ]  # fmt: skip
    axis = plots.headline(pd.DataFrame(rows)).axes[0]
    assert [round(bar.get_height(), 6) for bar in axis.patches] == [0.3, 0.4]
    assert sorted(y for c in axis.collections for _, y in c.get_offsets()) == [0.2, 0.3, 0.4, 0.5]


def test_curves_draw_a_running_mean():
    history = [{"step": i, "text": float(i)} for i in range(20)]
    line = plots.curves(history, ["text"]).axes[0].lines[1]
    assert np.allclose(line.get_ydata(), np.arange(4.5, 15.5))
    assert list(line.get_xdata()) == list(range(9, 20))


def test_a_contact_sheet_holds_the_best_the_middle_and_the_worst():
    values = np.array([0.5, 0.9, np.nan, 0.1, 0.7, 0.3, 0.2, 0.8, 0.6, 0.4])
    order, hits = np.zeros((10, 2), int), np.zeros((10, 2), bool)
    figure = plots.contact_sheet(pictures(10), pictures(3), order, hits, values, list("abcdefghij"), count=2)
    labels = [axis.texts[0].get_text() for axis in figure.axes[::3]]
    assert labels == ["best  0.90\nb", "best  0.80\nh", "median  0.60\ni", "median  0.50\na", "worst  0.20\ng",
                      "worst  0.10\nd"]  # fmt: skip


def test_a_forest_has_a_line_and_a_mark_of_its_own_for_each_name():
    at = Interval(0.4, 0.3, 0.5)
    rows = {"line → flat": {"a": at, "b": Interval(0.2, 0.1, 0.3)}, "flat → line": {"a": at, "b": at}}
    axis = plots.forest(rows, "mAP@all", {"line → flat": 0.1, "flat → line": 0.15}).axes[0]
    spans = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert [list(span) for span in spans] == [[0.3, 0.5], [0.1, 0.3], [0.3, 0.5], [0.3, 0.5]]
    marks = [line.get_marker() for line in axis.lines if line.get_marker() != "None"]
    assert marks == [plots.MARKERS[0], plots.MARKERS[1]] * 2
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    assert [text.get_text() for text in axis.get_yticklabels()] == list(rows)

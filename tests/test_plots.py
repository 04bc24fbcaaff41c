"""The pictures show what they are given, and say it without colour."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from clair import plots


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

"""The book's pictures in one style: readable in grey, by the colour-blind and on a phone.

Each function draws on matplotlib and returns the figure; what a figure shows is also there as
numbers, so nothing is known by colour alone.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure

from clair.intervals import Interval
from clair.records import row_name

# Okabe-Ito colours, dark to light, each with its own marker and hatch.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
MARKERS = ("o", "^", "s", "D", "v", "P")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
STYLE = {
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "svg.hashsalt": "clair",
}


def use_style() -> None:
    """Set matplotlib up; notebooks call this once."""
    plt.rcParams.update(STYLE)


def grid(rows: Mapping[str, UInt8[np.ndarray, "N H W 3"]], titles: Sequence[str] = (), width: float = 7.0) -> Figure:
    """One row of pictures a domain, the same concept in each column."""
    count = max(len(pictures) for pictures in rows.values())
    figure, axes = plt.subplots(len(rows), count, figsize=(width, width / count * len(rows) * 1.12), squeeze=False)
    for axis_row, (name, pictures) in zip(axes, rows.items(), strict=True):
        for column, axis in enumerate(axis_row):
            axis.set_axis_off()
            if column < len(pictures):
                axis.imshow(pictures[column], interpolation="antialiased")
            if column == 0:
                axis.text(-0.12, 0.5, name, transform=axis.transAxes, ha="right", va="center")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=7, pad=2)
    return figure


def scatter(
    points: Float[np.ndarray, "N 2"], groups: Sequence[str], ax: plt.Axes | None = None, legend: bool = True
) -> Figure:
    """Points in the plane; each group has a colour and a marker of its own."""
    figure, ax = _axes(ax, (5.0, 4.0))
    labels = np.asarray(groups)
    for number, name in enumerate(dict.fromkeys(groups)):
        chosen = labels == name
        ax.scatter(*points[chosen].T, s=13, alpha=0.75, linewidths=0, label=name,
                   c=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)])  # fmt: skip
    ax.set_axis_off()
    if legend:
        ax.legend(loc="best", fontsize=8)
    return figure


def circles(
    panels: Mapping[str, Float[np.ndarray, "N 2"]],
    classes: Int[np.ndarray, " N"],
    domains: Int[np.ndarray, " N"],
    names: Sequence[str] = ("line", "flat"),
) -> Figure:
    """Unit vectors of the plane, a panel a stage: a class is a colour and a letter, a domain a marker and a ring."""
    figure, axes = plt.subplots(1, len(panels), figsize=(2.45 * len(panels), 2.7), squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="grey", linewidth=0.6))
        for domain, radius in ((0, 1.0), (1, 0.8)):  # drawn on two rings, or they would hide each other
            for label in np.unique(classes):
                x, y = radius * points[(classes == label) & (domains == domain)].T
                axis.scatter(x, y, s=34, marker=MARKERS[domain], color=COLOURS[label], alpha=0.8, linewidths=0)
                axis.annotate("ABCDEF"[label], (1.17 * x.mean() / radius, 1.17 * y.mean() / radius), fontsize=8,
                              ha="center", va="center", color=COLOURS[label])  # fmt: skip
        axis.set(title=title, xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
        axis.set_axis_off()
    handles = [plt.Line2D([], [], marker=MARKERS[d], linestyle="", color="grey", label=names[d]) for d in (0, 1)]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=8)
    return figure


def retrievals(
    queries: UInt8[np.ndarray, "Q H W 3"],
    gallery: UInt8[np.ndarray, "G H W 3"],
    order: Int[np.ndarray, "Q K"],
    hits: Bool[np.ndarray, "Q K"],
    names: Sequence[str] = (),
    width: float = 7.0,
) -> Figure:
    """A query and its nearest gallery pictures a row; a hit has a solid frame and a tick, a miss a cross."""
    count, top = order.shape
    figure, axes = plt.subplots(count, top + 1, figsize=(width, width / (top + 1) * count * 1.05), squeeze=False)
    for row in range(count):
        axes[row, 0].imshow(queries[row])
        if names:
            axes[row, 0].text(
                -0.1, 0.5, names[row], transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=8
            )
        for rank in range(top):
            axis, hit = axes[row, rank + 1], bool(hits[row, rank])
            axis.imshow(gallery[order[row, rank]], alpha=1.0 if hit else 0.55)
            axis.text(0.02, 0.98, "✓" if hit else "✗", transform=axis.transAxes, ha="left", va="top", fontsize=9,
                      fontweight="bold", color=COLOURS[0] if hit else COLOURS[1])  # fmt: skip
            for spine in axis.spines.values():
                spine.set(visible=hit, color=COLOURS[0], linewidth=1.8)
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[])
        for spine in axes[row, 0].spines.values():
            spine.set_visible(False)
    axes[0, 0].set_title("query", fontsize=8)
    for rank in range(top):
        axes[0, rank + 1].set_title(str(rank + 1), fontsize=8)
    return figure


def contact_sheet(
    queries: UInt8[np.ndarray, "Q H W 3"],
    gallery: UInt8[np.ndarray, "G H W 3"],
    order: Int[np.ndarray, "Q k"],
    hits: Bool[np.ndarray, "Q k"],
    values: Float[np.ndarray, " Q"],
    names: Sequence[str],
    count: int = 3,
    width: float = 7.0,
) -> Figure:
    """The best, the middle and the worst queries by ``values``, as rows of `retrievals`."""
    ranked = np.argsort(-np.asarray(values), kind="stable")
    ranked = ranked[: len(ranked) - int(np.isnan(values).sum())]  # NaN, a query that does not count, sorts last
    count = min(count, len(ranked) // 3)
    middle = (len(ranked) - count) // 2
    groups = {"best": ranked[:count], "median": ranked[middle : middle + count], "worst": ranked[len(ranked) - count :]}
    rows = np.concatenate(list(groups.values()))
    labels = [f"{group}  {values[row]:.2f}\n{names[row]}" for group, some in groups.items() for row in some]
    return retrievals(queries[rows], gallery, order[rows], hits[rows], labels, width)


def bars(
    values: Mapping[str, Sequence[float]],
    points: Mapping[str, Sequence[Sequence[float]]],
    groups: Sequence[str],
    ylabel: str,
    ax: plt.Axes | None = None,
) -> Figure:
    """Grouped bars with their single runs as dots; ``points[name][g]`` holds the runs of a bar."""
    figure, ax = _axes(ax, (7.0, 3.0))
    width = 0.8 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        at = np.arange(len(groups)) + (number - (len(values) - 1) / 2) * width
        ax.bar(at, heights, width * 0.92, label=name, color=COLOURS[number], hatch=HATCHES[number],
               edgecolor="white", alpha=0.85)  # fmt: skip
        for x, height, runs in zip(at, heights, points[name], strict=True):
            ax.scatter(np.full(len(runs), x), runs, s=9, color="black", zorder=3, linewidths=0)
            ax.text(x, 0.008, f"{height:.3f}", ha="center", va="bottom", fontsize=8, color="black",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85})  # fmt: skip
    ax.set_xticks(range(len(groups)), groups)
    ax.set_ylabel(ylabel)
    ax.legend(ncols=min(len(values), 4), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return figure


def forest(rows: Mapping[str, Mapping[str, Interval]], xlabel: str, marks: Mapping[str, float] | None = None) -> Figure:
    """Means with their intervals: a group of lines for each row, a marker for each name; ``marks`` are ticks."""
    names = list(next(iter(rows.values())))
    figure, ax = plt.subplots(figsize=(7.0, 0.5 + 0.17 * (len(names) + 1.2) * len(rows)))
    places = []
    for group, (row, values) in enumerate(rows.items()):
        top = -group * (len(names) + 1.2)
        places.append(top - (len(names) - 1) / 2)
        for number, name in enumerate(names):
            at, colour = values[name], COLOURS[number]
            ax.plot([at.low, at.high], [top - number] * 2, color=colour, linewidth=1.6)
            ax.plot(
                at.mean, top - number, MARKERS[number], color=colour, markersize=5, label=name if not group else None
            )
        if marks:
            ax.plot([marks[row]] * 2, [top + 0.5, top - len(names) + 0.5], color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(places, list(rows))
    ax.set_xlabel(xlabel)
    ax.spines["left"].set_visible(False)
    ax.tick_params(left=False)
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return figure


def headline(table: pd.DataFrame, metric: str = "mAP@all") -> Figure:
    """The README's figure from `records.collect`: means over the splits as bars, each run a dot."""
    use_style()
    table = table[(table.metric == metric) & (table.report == "test")]
    directions = list(dict.fromkeys(table.direction))
    rows = [(m, c) for m in ("frozen", "clair") for c in ("none", *sorted(set(table["map"]) - {"none"}))]
    points = {
        row_name(*row): [
            table[(table.method == row[0]) & (table["map"] == row[1]) & (table.direction == d)].value.tolist()
            for d in directions
        ]
        for row in rows
    }
    heights = {name: [float(np.mean(runs)) for runs in groups] for name, groups in points.items()}
    return bars(heights, points, [d.replace("->", " → ") for d in directions], f"{metric} on unseen classes")


def curves(history: Sequence[Mapping[str, float | int]], names: Sequence[str], window: int = 10) -> Figure:
    """Loss terms over the steps: one small plot a term, the running mean over ``window`` steps drawn thick."""
    figure, axes = plt.subplots(1, len(names), figsize=(7.0, 2.0), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        values = np.array([row[name] for row in history])
        axis.plot(values, color=COLOURS[4], linewidth=0.6)
        if len(values) >= window:
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            axis.plot(np.arange(window - 1, len(values)), smooth, color=COLOURS[0], linewidth=1.8)
        axis.set(title=name, xlabel="step")
    axes[0, 0].set_ylabel("loss")
    figure.tight_layout()
    return figure


def _axes(ax: plt.Axes | None, size: tuple[float, float]) -> tuple[Figure, plt.Axes]:
    if ax is None:
        _, ax = plt.subplots(figsize=size)
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    return figure, ax

"""Draws what lies in results/ as plots/*.svg, the same from the same figures.

Run it: make plots
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tests.benchmarks.results import KEPT, PLOTS, Run, digest, kept

HERE: Final = Path(__file__).parent
OURS: Final = "#1f5fbf"
OTHERS: Final = "#9a9a9a"
LIMIT: Final = "#c0392b"
MOST_MIB: Final = 400
STYLE: Final = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    # Text stays text: whoever looks has a font, and a file is small and can be compared.
    "svg.fonttype": "none",
    "svg.hashsalt": "taskflow",
}
Rows = Sequence[Mapping[str, Any]]
THOUSANDS: Final = FuncFormatter(lambda value, _: f"{value:,.0f}")


def _rows(runs: Iterable[Run]) -> list[Mapping[str, Any]]:
    return [row for run in runs for row in run.rows]


def _by(rows: Rows, name: str) -> dict[Any, list[Mapping[str, Any]]]:
    """The rows of each value of `name`, in the order in which these were first met."""
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def _is_ours(name: str) -> bool:
    return name.startswith("taskflow")


def _bars(axes: Axes, rows: Rows, value: str, title: str, shown: str = "{:,.0f}") -> None:
    """A bar for each contestant, at the median of its turns; each turn a tick."""
    found = _by(rows, "of")
    names = list(found)
    for at, name in enumerate(names):
        values = [row[value] for row in found[name]]
        axes.barh(at, median(values), color=OURS if _is_ours(name) else OTHERS, height=0.62)
        axes.plot(values, [at] * len(values), "|", color="black", markersize=9)
        axes.annotate(
            shown.format(median(values)),
            (max(values), at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title(title)


def throughput_against_peers(figure: Figure, runs: Sequence[Run]) -> None:
    """All the time that was taken, at the fewest commands; of more, and of Faust, which at first
    does nothing for minutes, the second half."""
    sizes = _by([{"commands": run.arguments["commands"], "run": run} for run in runs], "commands")
    panels = figure.subplots(1, len(sizes) + 1, squeeze=False)[0]
    smallest = min(sizes)
    for axes, commands in zip(panels, sorted(sizes), strict=False):
        rows = _rows(one["run"] for one in sizes[commands])
        if commands == smallest:
            shown = [
                row | {"rate_per_s": row["second_half_per_s"]} if "Faust" in row["of"] else row
                for row in map(dict, rows)
            ]
            _bars(axes, shown, "rate_per_s", f"Commands/s, {commands:,}")
        else:
            _bars(axes, rows, "second_half_per_s", f"Commands/s, second half of {commands:,}")
    rows = [row for one in sizes[smallest] for row in one["run"].rows if "Faust" not in row["of"]]
    _bars(panels[-1], rows, "cpu_s", "CPU seconds per 100,000", "{:.1f}")


def latency_against_peers(figure: Figure, runs: Sequence[Run]) -> None:
    """A line from p50 to p99, and a tick at p99.9, for each contestant and rate."""
    rates = _by(_rows(runs), "rate_per_s")
    panels = figure.subplots(1, len(rates), sharex=True, sharey=True, squeeze=False)[0]
    names = list(_by(_rows(runs), "of"))
    for axes, rate_per_s in zip(panels, sorted(rates), strict=True):
        for name, rows in _by(rates[rate_per_s], "of").items():
            at = names.index(name)
            p50, p99, p999 = (median(row[key] for row in rows) for key in ("p50", "p99", "p99.9"))
            color = OURS if _is_ours(name) else OTHERS
            axes.plot([p50, p99], [at, at], color=color, linewidth=5, solid_capstyle="butt")
            axes.plot([p50], [at], "o", color=color, markersize=7)
            axes.plot([p999], [at], "|", color=color, markersize=9)
            axes.annotate(
                f"{p50:,.0f} – {p99:,.0f}",
                (p50, at),
                xytext=(0, 7),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.8)
        axes.grid(visible=False, axis="y")
        axes.set_title(f"{rate_per_s:,} commands/s")
        axes.set_xlabel("ms: p50 (dot) to p99, p99.9 (tick)")


def _columns(
    axes: Axes, rows: Rows, name: str, value: str, title: str, limit: float | None = None
) -> None:
    """A column for each value of `name`, at the median; what is above `limit` in its colour."""
    found = _by(rows, name)
    for at, some in enumerate(found.values()):
        height = median(row[value] for row in some)
        over = limit is not None and height > limit
        axes.bar(at, height, color=LIMIT if over else OURS, width=0.62)
        axes.annotate(
            f"{height:,.0f}", (at, height), xytext=(0, 3), textcoords="offset points", ha="center"
        )
    if limit is not None:
        axes.axhline(limit, color=LIMIT, linewidth=1, linestyle="--")
    shown = [f"{key:,}" if isinstance(key, int) else str(key) for key in found]
    axes.set_xticks(range(len(found)), shown)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.margins(y=0.12)
    axes.set_title(title)


def scaling(figure: Figure, runs: Sequence[Run]) -> None:
    steps = _by(_rows(runs), "step")
    shown = [step for step in ("partitions", "workers", "payloads") if step in steps]
    panels = figure.subplots(2, len(shown), squeeze=False)
    for column, step in enumerate(shown):
        of = {"partitions": "partitions", "workers": "workers", "payloads": "size of an update"}
        above, below = panels[0][column], panels[1][column]
        _columns(above, steps[step], "what", "rate_per_s", f"Commands a second, by {of[step]}")
        title = "Largest worker's peak, MiB"
        _columns(below, steps[step], "what", "peak_mib", title, MOST_MIB)
        for axes in (above, below):
            axes.set_xticks(
                axes.get_xticks(),
                [label.get_text().replace(", ", ",\n") for label in axes.get_xticklabels()],
            )


def flows(figure: Figure, runs: Sequence[Run]) -> None:
    rows = sorted(_rows(runs), key=lambda row: row["flows"])
    rates, memory = figure.subplots(1, 2)
    _columns(rates, rows, "flows", "rate_per_s", "Updates a second, by flows that are there")
    _columns(memory, rows, "flows", "peak_mib", "Worker's peak while it decides, MiB", MOST_MIB)


DRAWN: Final[Mapping[str, tuple[Callable[[Figure, Sequence[Run]], None], tuple[float, float]]]] = {
    "throughput-peers": (throughput_against_peers, (11, 3.0)),
    "latency-peers": (latency_against_peers, (11, 3.4)),
    "scaling": (scaling, (11, 5.0)),
    "flows": (flows, (8, 2.8)),
}


def draw(results: Path, folder: Path) -> None:
    """Those of which there are results."""
    mpl.rcParams.update(STYLE)
    for name, of in PLOTS.items():
        runs = kept(of, results)
        if not runs:
            continue
        function, size = DRAWN[name]
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        function(figure, runs)
        metadata = {"Date": None, "Creator": None, "Identifier": digest(of, results)}
        figure.savefig(folder / f"{name}.svg", metadata=metadata)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=KEPT)
    parser.add_argument("--folder", type=Path, default=HERE)
    chosen = parser.parse_args()
    draw(chosen.results, chosen.folder)

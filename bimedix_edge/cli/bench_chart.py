"""A benchmark as a bar chart. matplotlib draws it; the extra `plot` installs matplotlib.

matplotlib opens no window here and fetches nothing. It keeps a list of the system's fonts in its own cache directory,
as in every program that uses it; its variable MPLCONFIGDIR moves that directory.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bimedix_edge.bench.benchmark import ON, Benchmark, Measurement
from bimedix_edge.cli.bench_report import About, on_name, speed_text
from bimedix_edge.decoder.kernels import OFF
from bimedix_edge.errors import UsageError
from bimedix_edge.hardware.machine import inspect_machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["chart_png", "draw_chart", "require_matplotlib"]

_DPI = 200  # pages show the chart at half its size: 1000 pixels wide
# all in inches
_WIDTH, _MARGIN, _LABELS = 10.0, 0.45, 2.15
_HEADER, _PANEL, _ROW, _FOOTER = 1.4, 0.62, 0.56, 0.75
# share of a panel's width that the longest bar takes; its number and the ratio stand beside it
_BARS = 0.68
# share of the longest bar that a number is wide
_NUMBER = 0.25
_INK, _GREY, _RULE = "#1d2733", "#5a6572", "#dfe3e8"
_COLOURS = {OFF: "#9aa7b5", ON: "#0b7a75"}
_CEILING = "#b4452f"
_PANELS = (
    ("Prefill", "tokens per second; longer is faster", ("prefill",)),
    ("Decode", "tokens per second of all sequences together; longer is faster", ("decode",)),
    ("A question about an image", "seconds; shorter is faster", ("encode", "first_token", "follow_up")),
)
# the user's own matplotlibrc changes nothing; a dollar sign in a name starts no formula
_STYLE = {"font.family": "DejaVu Sans", "text.parse_math": False, "text.color": _INK, "font.size": 10.0}


def require_matplotlib() -> None:
    """Import matplotlib.

    Raises:
        UsageError: matplotlib is not installed.
    """
    # matplotlib warns on standard error when it lists the fonts for the first time
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib.figure
        import matplotlib.style  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--plot needs matplotlib, which is not installed. Install it: pip install 'bimedix-edge[plot]'"
        ) from error


def chart_png(about: About, benchmark: Benchmark) -> bytes:
    """Return the chart of `draw_chart` as a PNG, 2000 pixels wide.

    Args:
        about: The model that was measured.
        benchmark: The result.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figure, file = draw_chart(about, benchmark), io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def draw_chart(about: About, benchmark: Benchmark) -> Figure:
    """Return a figure with the median of every measurement, `on` beside `off`, and the machine's ceilings as lines.

    Args:
        about: The model that was measured.
        benchmark: The result.

    Raises:
        UsageError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure

    panels = [
        (title, unit, rows)
        for title, unit, kinds in _PANELS
        if (rows := [found for found in benchmark.measurements if found.workload.kind in kinds])
    ]
    height = _HEADER + sum(_PANEL + _ROW * len(rows) for _, _, rows in panels) + _FOOTER
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(_WIDTH, height), facecolor="white")
        _draw_header(figure, about, benchmark)
        top = height - _HEADER
        for title, unit, rows in panels:
            top -= _PANEL
            _draw_panel(_axes(figure, top, _ROW * len(rows)), benchmark, rows)
            _write(figure, top + 0.18, title, size=12.5)
            _write(figure, top + 0.18, unit, right=True)
            top -= _ROW * len(rows)
        _write(figure, 0.42, _ceilings(benchmark))
        _write(figure, 0.2, about.notice)
    return figure


def _axes(figure: Figure, top: float, height: float) -> Axes:
    """Return axes that end `top` inches above the bottom, between the labels and the right margin."""
    _, whole = figure.get_size_inches()
    left, width = _MARGIN + _LABELS, _WIDTH - 2 * _MARGIN - _LABELS
    return figure.add_axes((left / _WIDTH, (top - height) / whole, width / _WIDTH, height / whole))


def _write(figure: Figure, y: float, text: str, *, size: float = 8.5, right: bool = False) -> None:
    """Write a line `y` inches above the bottom: titles bold, the rest grey, long lines smaller so that they fit."""
    _, whole = figure.get_size_inches()
    x = _WIDTH - _MARGIN if right else _MARGIN
    weight, colour = ("bold", _INK) if size > 10 else ("normal", _GREY)
    line = figure.text(x / _WIDTH, y / whole, text, fontsize=size, fontweight=weight, color=colour)
    line.set_horizontalalignment("right" if right else "left")
    width = line.get_window_extent().width / figure.dpi
    line.set_fontsize(size * min(1.0, (_WIDTH - 2 * _MARGIN) / width))


def _draw_header(figure: Figure, about: About, benchmark: Benchmark) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    machine = inspect_machine()
    _, top = figure.get_size_inches()
    named = about.file_type.lower() in about.name
    _write(figure, top - 0.55, about.name if named else f"{about.name}, {about.file_type}", size=17)
    rounds = f"medians of {benchmark.rounds} rounds" if benchmark.rounds > 1 else "one round"
    facts = f"{machine.cpu}, {machine.system}, {benchmark.n_threads} threads, {about.file_bytes / 1e9:.2f} GB, {rounds}"
    _write(figure, top - 0.85, facts, size=9.5)
    labels = {OFF: "off: llama.cpp's own kernels", ON: f"on: {on_name(benchmark)}"}
    keys: list[Patch | Line2D] = [Patch(color=_COLOURS[side], label=label) for side, label in labels.items()]
    if any(benchmark.share(found, OFF) for found in benchmark.measurements):
        keys.append(Line2D([], [], color=_CEILING, linewidth=1.6, label="ceiling of this machine (% reached)"))
    corner = (_MARGIN / _WIDTH, (top - 1.35) / top)
    figure.legend(
        handles=keys, loc="lower left", bbox_to_anchor=corner, ncols=len(keys), frameon=False, borderaxespad=0.0
    )


def _draw_panel(axes: Axes, benchmark: Benchmark, rows: Sequence[Measurement]) -> None:
    """Draw a group of two bars for each row, with its ceiling and its ratio."""
    ceilings = [_ceiling_of(benchmark, found) for found in rows]
    values = [value for found in rows for side in (OFF, ON) if (value := _value(found, side)) is not None]
    longest = max([*values, *(ceiling for ceiling in ceilings if ceiling is not None)])
    axes.set_xlim(0, longest / _BARS)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [found.workload.name for found in rows])
    axes.tick_params(left=False, bottom=False, labelbottom=False, pad=8)
    axes.spines[["right", "bottom"]].set_visible(False)
    axes.spines[["left", "top"]].set_color(_RULE)
    for index, (found, ceiling) in enumerate(zip(rows, ceilings, strict=True)):
        for side, y in ((OFF, index - 0.2), (ON, index + 0.2)):
            if (value := _value(found, side)) is not None:
                axes.barh(y, value, height=0.37, color=_COLOURS[side], label=side)
                # beside the ceiling's line where the line would cross the number
                crossed = ceiling is not None and value < ceiling < value + _NUMBER * longest
                _number(axes, (ceiling if crossed and ceiling else value, y), _text(benchmark, found, side), side)
        if ceiling is not None:
            axes.vlines(ceiling, index - 0.42, index + 0.42, color=_CEILING, linewidth=1.6)
        if found.ratio is not None:
            ratio = axes.text(longest / _BARS, index, f"{found.ratio:.2f}×", color=_COLOURS[ON], fontsize=13)
            ratio.set(horizontalalignment="right", verticalalignment="center")


def _number(axes: Axes, place: tuple[float, float], text: str, side: str) -> None:
    colour = _INK if side == ON else _GREY
    axes.annotate(text, place, (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=colour)


def _text(benchmark: Benchmark, found: Measurement, side: str) -> str:
    share = benchmark.share(found, side)
    return speed_text(found, side) + ("" if share is None else f"  ({share:.0%})")


def _value(found: Measurement, side: str) -> float | None:
    """Return the length of a bar: tokens per second, or seconds for work on images."""
    return found.median_s(side) if found.workload.n_tokens is None else found.rate(side)


def _ceiling_of(benchmark: Benchmark, found: Measurement) -> float | None:
    """Return the tokens per second that the machine's ceiling allows."""
    rate, share = found.rate(OFF), benchmark.share(found, OFF)
    return None if rate is None or share is None else rate / share


def _ceilings(benchmark: Benchmark) -> str:
    parts = []
    if benchmark.read_bytes_per_s is not None:
        parts.append(f"memory is read at {benchmark.read_bytes_per_s / 1e9:.1f} GB/s")
    if benchmark.int8_ops_per_s is not None:
        parts.append(f"{benchmark.kernels.name} does {benchmark.int8_ops_per_s / 1e9:,.0f} int8 GOPS")
    return f"Ceilings: {' and '.join(parts)}." if parts else "The machine's ceilings could not be measured."

"""A benchmark as a bar chart: a PNG."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from bimedix_edge.bench.benchmark import ON, Benchmark, Measurement
from bimedix_edge.cli.bench_report import About, on_name, speed_text
from bimedix_edge.decoder.kernels import OFF
from bimedix_edge.hardware.machine import inspect_machine

__all__ = ["draw_chart"]

# drawn twice as large and scaled down, so that edges are smooth
_SCALE = 2
_WIDTH, _MARGIN = 1200, 56
_BAR_LEFT, _BAR_RIGHT, _RATIO_RIGHT = 290, 930, _WIDTH - _MARGIN
_BAR, _GAP, _ROW = 20, 3, 64
_HEADER, _PANEL, _FOOTER = 190, 62, 96
_PAPER, _INK, _GREY, _RULE = "#ffffff", "#1d2733", "#66717f", "#dfe3e8"
_COLOURS = {OFF: "#9aa7b5", ON: "#0b7a75"}
_CEILING = "#eef1f4"
_PANELS = (
    ("Reading a prompt", "tokens a second; longer is faster", ("prefill",)),
    ("Writing", "tokens a second, of all sequences together; longer is faster", ("decode",)),
    ("A question about an image", "seconds; shorter is faster", ("encode", "first_token", "follow_up")),
)


def draw_chart(about: About, benchmark: Benchmark) -> bytes:
    """Return a PNG that shows every measurement, on beside off, up to the machine's ceiling.

    Args:
        about: what was measured.
        benchmark: what came out.
    """
    panels = []
    for title, unit, kinds in _PANELS:
        if found := [one for one in benchmark.measurements if one.workload.kind in kinds]:
            panels.append((title, unit, found))
    height = _HEADER + sum(_PANEL + _ROW * len(found) for _, _, found in panels) + _FOOTER
    page = _Page(height)
    _draw_header(page, about, benchmark)
    top = _HEADER
    for title, unit, found in panels:
        page.text(_MARGIN, top + 14, title, 21)
        page.text(_RATIO_RIGHT, top + 18, unit, 15, _GREY, "ra")
        page.rule(top + 46)
        _draw_rows(page, top + _PANEL, benchmark, found)
        top += _PANEL + _ROW * len(found)
    page.rule(height - _FOOTER + 16)
    page.text(_MARGIN, height - _FOOTER + 30, _ceilings(benchmark), 15, _GREY)
    page.text(_MARGIN, height - _FOOTER + 54, about.notice, 15, _GREY)
    return page.png()


class _Page:
    """A picture to draw on, in units of the final size."""

    def __init__(self, height: int) -> None:
        self._height = height
        self._image = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, text: str, size: int, colour: str = _INK, anchor: str = "la") -> None:
        """Write a line that is made smaller until it fits between its anchor and the margin."""
        room = (x - _MARGIN if anchor[0] == "r" else _RATIO_RIGHT - x) * _SCALE
        while (font := _font(size)).getlength(text) > room and size > 9:
            size -= 1
        self._draw.text((x * _SCALE, y * _SCALE), text, colour, font, anchor)

    def bar(self, y: float, length: float, colour: str) -> None:
        box = (_BAR_LEFT * _SCALE, y * _SCALE, (_BAR_LEFT + max(length, 2)) * _SCALE, (y + _BAR) * _SCALE)
        corners = (False, True, True, False)
        self._draw.rounded_rectangle(box, min(4.0, max(length, 2)) * _SCALE, colour, corners=corners)

    def square(self, x: float, y: float, colour: str) -> None:
        box = (x * _SCALE, y * _SCALE, (x + 15) * _SCALE, (y + 15) * _SCALE)
        self._draw.rounded_rectangle(box, 3 * _SCALE, colour)

    def rule(self, y: float) -> None:
        self._draw.line((_MARGIN * _SCALE, y * _SCALE, _RATIO_RIGHT * _SCALE, y * _SCALE), _RULE, _SCALE)

    def png(self) -> bytes:
        small = self._image.resize((_WIDTH, self._height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "PNG", optimize=True)
        return file.getvalue()


def _draw_header(page: _Page, about: About, benchmark: Benchmark) -> None:
    machine = inspect_machine()
    named = about.file_type.lower() in about.name
    page.text(_MARGIN, 36, about.name if named else f"{about.name}, {about.file_type}", 32)
    rounds = f"medians of {benchmark.rounds} rounds" if benchmark.rounds > 1 else "one round"
    line = f"{machine.cpu}, {machine.system}, {benchmark.n_threads} threads, {about.file_bytes / 1e9:.2f} GB, {rounds}"
    page.text(_MARGIN, 84, line, 17, _GREY)
    x = float(_MARGIN)
    legend = [(_COLOURS[OFF], "off: llama.cpp's own kernels"), (_COLOURS[ON], f"on: {on_name(benchmark)}")]
    if any(benchmark.share(found, OFF) for found in benchmark.measurements):
        legend.append((_CEILING, "what this machine does at most (reached: %)"))
    for colour, text in legend:
        page.square(x, 129, colour)
        page.text(x + 24, 126, text, 17)
        x += 24 + _font(17).getlength(text) / _SCALE + 36


def _draw_rows(page: _Page, top: float, benchmark: Benchmark, rows: Sequence[Measurement]) -> None:
    ceilings = [_ceiling_of(benchmark, found) for found in rows]
    values = [value for found in rows for side in (OFF, ON) if (value := _value(found, side)) is not None]
    longest = max([*values, *(ceiling for ceiling in ceilings if ceiling is not None)])
    for index, (found, ceiling) in enumerate(zip(rows, ceilings, strict=True)):
        y = top + index * _ROW
        page.text(_MARGIN, y + _BAR + 1, found.workload.name, 18, anchor="lm")
        if found.ratio is not None:
            page.text(_RATIO_RIGHT, y + _BAR + 1, f"{found.ratio:.2f}x", 24, _COLOURS[ON], "rm")
        for side in (OFF, ON):
            value = _value(found, side)
            if value is not None:
                room = _BAR_RIGHT - _BAR_LEFT
                end = value / longest * room
                if ceiling is not None:
                    page.bar(y, ceiling / longest * room, _CEILING)
                page.bar(y, end, _COLOURS[side])
                share = benchmark.share(found, side)
                text = speed_text(found, side) + ("" if share is None else f"  ({share:.0%})")
                page.text(_BAR_LEFT + end + 9, y + _BAR / 2, text, 15, _INK if side == ON else _GREY, "lm")
            y += _BAR + _GAP


def _value(found: Measurement, side: str) -> float | None:
    """Return what a bar's length stands for."""
    return found.median_s(side) if found.workload.n_tokens is None else found.rate(side)


def _ceiling_of(benchmark: Benchmark, found: Measurement) -> float | None:
    """Return tokens a second at most."""
    rate, share = found.rate(OFF), benchmark.share(found, OFF)
    return None if rate is None or share is None else rate / share


def _ceilings(benchmark: Benchmark) -> str:
    parts = []
    if benchmark.read_bytes_per_s is not None:
        parts.append(f"memory is read at {benchmark.read_bytes_per_s / 1e9:.1f} GB/s")
    if benchmark.int8_ops_per_s is not None:
        parts.append(f"{benchmark.kernels.name} does {benchmark.int8_ops_per_s / 1e9:,.0f} int8 GOPS")
    return f"At most, here: {' and '.join(parts)}." if parts else "The machine's ceilings could not be measured."


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)

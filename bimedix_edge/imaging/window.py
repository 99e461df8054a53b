"""Windows: the part of the values that is shown from black to white, by name or by numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bimedix_edge.errors import UsageError
from bimedix_edge.imaging.notes import Note, note

__all__ = ["LINEAR", "LINEAR_EXACT", "PRESETS", "SIGMOID", "Window", "parse_window"]

LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
# center and width in Hounsfield units, which only CT has
PRESETS: dict[str, tuple[float, float]] = {
    "soft": (40, 400),
    "lung": (-600, 1500),
    "brain": (40, 80),
    "bone": (400, 1800),
    "mediastinum": (50, 350),
    "liver": (60, 160),
}


@dataclass(frozen=True)
class Window:
    """A window in the units of the rescaled values.

    Attributes:
        center, width: See DICOM PS3.3 C.11.2.1.2.
        function: VOI LUT function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.
        name: Name of the preset, or empty.
    """

    center: float
    width: float
    function: str = LINEAR
    name: str = ""

    def fault(self) -> str:
        """Return why the window cannot be used, or an empty string."""
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            return "its center or width is not a number"
        least = 1.0 if self.function == LINEAR else 0.0
        if self.width < least or self.width <= 0:
            return f"its width is {self.width:g}, and {self.function} needs {'1 or more' if least else 'more than 0'}"
        return ""

    def note(self) -> Note:
        """Return the window as a note."""
        if self.name:
            return note("preset_window", preset=self.name, center=self.center, width=self.width)
        if self.function != LINEAR:
            return note("window_function", center=self.center, width=self.width, function=self.function)
        return note("window", center=self.center, width=self.width)


def parse_window(text: str) -> Window:
    """Return the window of a text: the name of a preset, or CENTER/WIDTH.

    Raises:
        UsageError: The text is neither, or the width is less than 1.
    """
    if text.lower() in PRESETS:
        center, width = PRESETS[text.lower()]
        return Window(center, width, name=text.lower())
    first, slash, second = text.partition("/")
    try:
        window = Window(float(first), float(second if slash else ""))
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a window. Write CENTER/WIDTH, such as 40/400, or one of {', '.join(PRESETS)}."
        ) from error
    if fault := window.fault():
        raise UsageError(f"{text!r} is not a window that can be used: {fault}. Correct it.")
    return window

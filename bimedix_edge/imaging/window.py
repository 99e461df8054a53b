"""Windows: which part of the values becomes black to white, by name or by numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bimedix_edge.errors import UsageError

__all__ = ["LINEAR", "LINEAR_EXACT", "PRESETS", "SIGMOID", "Window", "parse_window"]

LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
# centre and width in Hounsfield units; they mean nothing on anything but CT
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
        center, width: see DICOM PS3.3 C.11.2.1.2.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.
        name: of the preset, or empty.
    """

    center: float
    width: float
    function: str = LINEAR
    name: str = ""

    def fault(self) -> str:
        """Return what makes the window unusable, or an empty string."""
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            return "a center or width that is no number"
        least = 1.0 if self.function == LINEAR else 0.0
        if self.width < least or self.width <= 0:
            return f"the width {self.width:g}, while {self.function} needs {'1 or more' if least else 'more than 0'}"
        return ""

    def words(self) -> str:
        """Return the window as a user reads it."""
        name = f"{self.name} window" if self.name else "window"
        function = "" if self.function == LINEAR else f", {self.function}"
        return f"{name}: center {self.center:g}, width {self.width:g}{function}"


def parse_window(text: str) -> Window:
    """Return the window that `text` names: a preset, or CENTER/WIDTH.

    Raises:
        UsageError: it is neither, or the width is less than 1.
    """
    if text.lower() in PRESETS:
        center, width = PRESETS[text.lower()]
        return Window(center, width, name=text.lower())
    first, slash, second = text.partition("/")
    try:
        window = Window(float(first), float(second if slash else ""))
    except ValueError as error:
        raise UsageError(
            f"Expected a window as CENTER/WIDTH, such as 40/400, or one of {', '.join(PRESETS)}, but it is {text!r}."
        ) from error
    if fault := window.fault():
        raise UsageError(f"Expected a window whose width is 1 or more, but {text!r} has {fault}; correct it.")
    return window

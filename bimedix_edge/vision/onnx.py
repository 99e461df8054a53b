"""The only file that imports ONNX Runtime in the runtime; the others take `onnxruntime` from here."""

from __future__ import annotations

import os

from bimedix_edge.errors import VisionError

# onnxruntime reads this when it is imported; its API call alone does not keep it silent. Patients' data stays here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

try:
    import onnxruntime
except (ImportError, OSError) as error:
    raise VisionError(f"onnxruntime does not load ({error}). Install it again.") from error

# failures reach the user as our exceptions; ONNX Runtime would log a provider that does not load on standard error
onnxruntime.set_default_logger_severity(4)

__all__ = ["LOG_FATAL", "first_line", "library_version", "onnxruntime"]

# ONNX Runtime's level that logs only what ends the process: failures reach the user as our exceptions
LOG_FATAL = 4


def library_version() -> str:
    """Return the installed version of ONNX Runtime."""
    return str(onnxruntime.__version__)


def first_line(error: Exception) -> str:
    """Return the first line of an error of ONNX Runtime, at most 200 characters."""
    return str(error).strip().split("\n", 1)[0][:200]

"""Every error this package raises on purpose.

    BimedixEdgeError
    ├── UsageError            2  options that contradict each other or do not exist
    ├── InputError            3  what the user gave cannot be used
    │   ├── ImageError           not an image, damaged, too large
    │   ├── PromptError          invalid text, or a prompt that does not fit the context
    │   └── SchemaError          not a JSON schema, or one with a rule that cannot be enforced
    ├── ModelError            4  the model on disk cannot be used
    │   ├── CheckpointError      a published checkpoint that cannot be converted
    │   ├── BundleError          a converted model that is damaged, incomplete or foreign
    │   ├── DecoderError         llama.cpp failed
    │   └── VisionError          ONNX Runtime failed
    ├── HardwareError         5  this machine lacks memory, disk space or a device
    │   ├── DeviceError          a GPU failed while it computed
    │   └── LostError            the process that holds the model ended
    └── NetworkError          6  the hub cannot be reached, or a download does not match what the hub states

The number is the exit code of the command line. A message states the problem, its cause where it is known, and what to
do. It never contains a question, an answer or pixels.
"""

from __future__ import annotations

__all__ = [
    "BimedixEdgeError",
    "BundleError",
    "CheckpointError",
    "DecoderError",
    "DeviceError",
    "HardwareError",
    "ImageError",
    "InputError",
    "LostError",
    "ModelError",
    "NetworkError",
    "PromptError",
    "SchemaError",
    "UsageError",
    "VisionError",
]


class BimedixEdgeError(Exception):
    """The root of the tree; catching it catches everything this package raises on purpose."""

    exit_code: int = 1


class UsageError(BimedixEdgeError):
    """Options that contradict each other or name nothing."""

    exit_code = 2


class InputError(BimedixEdgeError):
    """An image, a text or a file given by the user cannot be used."""

    exit_code = 3


class ImageError(InputError):
    """The bytes are not an image, or the image is damaged or too large."""


class PromptError(InputError):
    """The text is not valid, or the prompt does not fit the context.

    Attributes:
        n_tokens, n_ctx: Length of a prompt that is too long, and of the context, in tokens; None for other faults.
    """

    def __init__(self, message: str, *, n_tokens: int | None = None, n_ctx: int | None = None) -> None:
        super().__init__(message)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class SchemaError(InputError):
    """A JSON schema is damaged, too large, or has a rule that cannot be enforced on an answer."""


class ModelError(BimedixEdgeError):
    """A model cannot be converted, opened or run."""

    exit_code = 4


class CheckpointError(ModelError):
    """A source checkpoint is incomplete, foreign or unsafe."""


class BundleError(ModelError):
    """A converted model is damaged, incomplete or not one of ours."""


class DecoderError(ModelError):
    """llama.cpp could not load the decoder or failed while running it."""


class VisionError(ModelError):
    """ONNX Runtime could not load the vision encoder or failed while running it."""


class HardwareError(BimedixEdgeError):
    """The machine lacks memory, disk space or a device that was asked for."""

    exit_code = 5


class DeviceError(HardwareError):
    """A GPU failed or ran out of memory while it computed; the answer so far is kept."""


class LostError(HardwareError):
    """The process that holds the model ended while it was needed, or cannot be started."""


class NetworkError(BimedixEdgeError):
    """The hub cannot be reached, or a download does not match what it states; only `pull` uses a network."""

    exit_code = 6

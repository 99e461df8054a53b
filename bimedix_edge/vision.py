"""The vision encoder and projector through ONNX Runtime: the only file that imports it in the runtime."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import VisionSpec
from bimedix_edge.errors import VisionError
from bimedix_edge.imaging.preprocess import Preprocessing, preprocess

# onnxruntime reads this when it is imported; its API call alone does not keep it silent. Patients' data stays here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

try:
    import onnxruntime
except (ImportError, OSError) as error:
    raise VisionError(f"Expected onnxruntime to load, but it fails ({error}); install it again.") from error

__all__ = ["VisionEncoder", "embedding_key", "library_version"]

_INPUT = "pixel_values"
_OUTPUT = "image_embeds"
_LOG_FATAL = 4
# ONNX: c = MatMulInteger(a uint8 (1, 64), b int8 (64, 16))
_PROBE = (
    "CAg6XAoYCgFhCgFiEgFjIg1NYXRNdWxJbnRlZ2VyEgFwWhMKAWESDgoMCAISCAoCCAEKAghAWhMKAWISDgoMCAMSCAoCCEAKAggQYhMKAWMSDgoM"
    "CAYSCAoCCAEKAggQQgQKABAR"
)


class VisionEncoder:
    """One ONNX session that turns pixels into the decoder's embeddings.

    Args:
        path: the ONNX file, already verified against its bundle's manifest.
        sha256: of that file, part of the key of every embedding.
        spec: the manifest's statement about it.
        preprocessing: the bundle's constants.
        n_threads: threads of the session.

    Raises:
        VisionError: ONNX Runtime refuses the file, or its interface is not what the manifest states.
    """

    def __init__(
        self, path: Path, *, sha256: str, spec: VisionSpec, preprocessing: Preprocessing, n_threads: int
    ) -> None:
        self.spec = spec
        self.sha256 = sha256
        self.preprocessing = preprocessing
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_FATAL  # failures reach the user as our exceptions, not as log lines
        # idle threads must not burn the cores that the decoder computes on
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # 8-bit weights stand for themselves: activations in 8 bits, ONNX Runtime's default for them, would be coarse
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if spec.weights == "int8" and _products_overflow():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated classes, RuntimeError among them
            raise VisionError(
                f"Expected an ONNX vision encoder, but ONNX Runtime refuses {path.name} ({_first_line(error)}); "
                "convert the checkpoint again."
            ) from error
        self._check_interface(path)

    def _check_interface(self, path: Path) -> None:
        size = self.preprocessing.image_size_px
        expected = {_INPUT: [1, 3, size, size], _OUTPUT: [1, self.spec.n_tokens, self.spec.n_embd]}
        found = {node.name: node.shape for node in (*self._session.get_inputs(), *self._session.get_outputs())}
        if found != expected:
            raise VisionError(
                f"Expected an encoder with {expected} as the manifest states, but {path.name} has {found}; "
                "convert the checkpoint again."
            )

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings of one image.

        Args:
            pixels: uint8 (h, w, 3), RGB.

        Returns:
            float32 (n_tokens, n_embd).

        Raises:
            VisionError: ONNX Runtime failed, or the result is not finite.
        """
        values = preprocess(pixels, self.preprocessing)
        try:
            (embeds,) = self._session.run([_OUTPUT], {_INPUT: values})
        except Exception as error:  # as above
            raise VisionError(
                f"Expected ONNX Runtime to encode the image, but it failed ({_first_line(error)}); "
                "try again, and report this if it happens again."
            ) from error
        if not np.isfinite(embeds).all():
            raise VisionError(
                "Expected finite image embeddings, but the encoder gave infinity or NaN; convert the checkpoint again."
            )
        result: NDArray[np.float32] = embeds[0]
        return result


@functools.cache
def _products_overflow() -> bool:
    """Tell whether ONNX Runtime's int8 products overflow here, as they do on x86-64 without VNNI.

    Its other way is exact everywhere, but takes 1.7 times as long where this one is exact, too.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    probe = onnxruntime.InferenceSession(base64.b64decode(_PROBE), options, providers=["CPUExecutionProvider"])
    left, right = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    (product,) = probe.run(None, {"a": left, "b": right})
    return bool((product != 64 * 255 * 127).any())


def embedding_key(pixels: NDArray[np.uint8], preprocessing: Preprocessing, encoder_sha256: str) -> str:
    """Return the key under which the embeddings of an image may be reused.

    It covers every pixel, the shape, the dtype, the preprocessing and the encoder: two images share a key only when
    they are the same to the model.
    """
    digest = hashlib.sha256()
    digest.update(f"{pixels.shape}|{pixels.dtype.str}|{preprocessing.sha256}|{encoder_sha256}|".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def library_version() -> str:
    """Return the installed version of ONNX Runtime."""
    return str(onnxruntime.__version__)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]

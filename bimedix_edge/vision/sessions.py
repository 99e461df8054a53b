"""Sessions of ONNX Runtime that run an image encoder: how they are set up, and where their input and output lie."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.vision.onnx import LOG_FATAL, onnxruntime
from bimedix_edge.vision.providers import CPU_ONLY_WEIGHTS, products_overflow

__all__ = ["INPUT", "OUTPUT", "PlacedSession", "PlainSession", "session_options"]

INPUT = "pixel_values"
OUTPUT = "image_embeds"


class PlainSession:
    """A session that takes its input from the machine's memory and returns its output there.

    Args:
        session: Opened session.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def run(self, values: NDArray[np.float32], options: onnxruntime.RunOptions) -> NDArray[np.float32]:
        """Return the embeddings of an image, float32 (1, n_tokens, n_embd), from float32 (1, 3, size, size)."""
        embeds: NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: values}, options)[0]
        return embeds


class PlacedSession:
    """A session whose input and output have fixed places in a device's memory, so that each is copied once.

    A captured graph, which starts all operations at once, needs fixed places, too. They are shared, so the session runs
    one image at a time.

    Args:
        session: Session on the device.
        device: ONNX Runtime's name of the device.

    Source: ONNX Runtime, "CUDA Execution Provider", on `enable_cuda_graph`; "I/O Binding".
    """

    def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
        self._session = session
        self._lock = threading.Lock()
        place = partial(onnxruntime.OrtValue.ortvalue_from_shape_and_type, element_type=np.float32, device_type=device)
        self._input, self._output = (place(ends[0].shape) for ends in (session.get_inputs(), session.get_outputs()))
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        self._binding.bind_ortvalue_output(OUTPUT, self._output)

    def run(self, values: NDArray[np.float32], options: onnxruntime.RunOptions) -> NDArray[np.float32]:
        """Return the embeddings as `PlainSession.run` does, copied into the machine's memory."""
        with self._lock:
            self._input.update_inplace(values)
            self._session.run_with_iobinding(self._binding, options)
            self._binding.synchronize_outputs()
            embeds: NDArray[np.float32] = np.array(self._output.numpy())
            return embeds


def session_options(weights: str, n_threads: int) -> onnxruntime.SessionOptions:
    """Return the options of a session for an encoder with such weights, as the manifest names them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL  # failures reach the user as our exceptions, not as log lines
    # threads that wait busily for the next operation save 6 %, but must not burn the cores that the decoder computes on
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # 8-bit weights stand for themselves: activations in 8 bits, ONNX Runtime's default for them, would be coarse
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if weights == CPU_ONLY_WEIGHTS and products_overflow():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options

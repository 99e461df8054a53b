"""The vision encoder and projector as a session of ONNX Runtime."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import VisionSpec
from bimedix_edge.errors import HardwareError, VisionError
from bimedix_edge.imaging.preprocess import Preprocessing, preprocess
from bimedix_edge.vision.kernels import VisionKernels, choose_vision_kernels
from bimedix_edge.vision.onnx import LOG_FATAL, first_line, library_version, onnxruntime
from bimedix_edge.vision.providers import (
    AUTO,
    CPU,
    CPU_ONLY_WEIGHTS,
    CUDA,
    PROVIDERS,
    check_computes,
    load_failure,
    missing_of,
    not_usable,
    preload,
    products_overflow,
    suitable,
)

__all__ = ["Stop", "Stopped", "VisionEncoder", "embedding_key", "encoder_kernels"]


_INPUT = "pixel_values"
_OUTPUT = "image_embeds"
# a property of graphs that call what our kernels compute
_FUNCTIONS = "functions"
_CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",  # the decoder needs what would be kept in reserve
    "cudnn_conv_algo_search": "HEURISTIC",  # there is one convolution, and searching takes seconds
    "use_tf32": "0",  # whoever wants fewer bits has float16
}
# our kernels are chosen for the next session, whichever thread opens it
_opening = threading.Lock()


class Stopped(Exception):
    """An encoding was stopped on purpose."""


class Stop:
    """A way to stop an encoding from another thread."""

    def __init__(self) -> None:
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = LOG_FATAL
        self.stopped = False

    def stop(self) -> None:
        """Let the encoding end at the next operation of its graph, with `Stopped`."""
        self.stopped = True
        self._options.terminate = True


class VisionEncoder:
    """One ONNX session that turns pixels into the decoder's embeddings; safe to use from several threads.

    Args:
        path: the ONNX file, already verified against its bundle's manifest.
        sha256: of that file.
        spec: the manifest's statement about it.
        preprocessing: the bundle's constants.
        n_threads: threads of the session.
        device: `cpu`, `cuda`, `coreml`, or `auto`: a device that is here and computes such weights, else the CPU.
        kernels: which of our kernels compute int8 weights; see `choose_vision_kernels`.

    Attributes:
        device: where it computes: `cpu`, `cuda` or `coreml`.
        fault: why a device that is here could not be taken by `auto`; None when there is no such fault.
        kernels: which of our kernels compute, and why.
        identity: of the computation: file, device, library and kernels; part of the key of every embedding.

    Raises:
        HardwareError: the device that was asked for is not here, or ONNX Runtime cannot use it.
        UsageError: there is no such device, or it does not compute such weights.
        VisionError: ONNX Runtime refuses the file, or its interface is not what the manifest states.
    """

    def __init__(
        self,
        path: Path,
        *,
        sha256: str,
        spec: VisionSpec,
        preprocessing: Preprocessing,
        n_threads: int,
        device: str = CPU,
        kernels: str = AUTO,
    ) -> None:
        self.spec = spec
        self.preprocessing = preprocessing
        self.fault: str | None = None
        self._path = path
        self._options = _session_options(spec.weights, n_threads)
        with _opening:
            self.kernels = _register_kernels(self._options, kernels, spec)
            self.device, session = self._auto() if device == AUTO else (device, self._open(device))
        if self.kernels.name and _FUNCTIONS not in session.get_modelmeta().custom_metadata_map:
            self.kernels = VisionKernels(None, "the graph has no use for them; convert the checkpoint again")
        self._check_interface(session)
        # on a device, input and output keep their places in its memory
        self._run = _Placed(session, CUDA).run if self.device == CUDA else partial(_run_session, session)
        self.identity = f"{sha256}|{self.device}|onnxruntime {library_version()}|{self.kernels.identity}"

    def _auto(self) -> tuple[str, onnxruntime.InferenceSession]:
        """Open a session on the best device; a device that is here and fails is a fault that is kept."""
        for device in suitable(self.spec):
            try:
                return device, self._open(device)
            except HardwareError as error:
                self.fault = str(error)
        return CPU, self._open(CPU)

    def _open(self, device: str) -> onnxruntime.InferenceSession:
        check_computes(device, self.spec)
        if device == CPU:
            return self._session_on(CPU)
        if (missing := missing_of(device, failure=None)) is None:
            session = self._session_on(device)
            # a provider that fails to load is left out with a log line: what was asked for must really be there
            if PROVIDERS[device] in session.get_providers():
                return session
            missing = missing_of(device, failure=load_failure(device))
        assert missing is not None, "a provider that fails has a reason"
        raise not_usable(device, missing.cause, missing.remedy)

    def _session_on(self, device: str) -> onnxruntime.InferenceSession:
        if device == CUDA:
            preload()
            with contextlib.suppress(Exception):  # the graph cannot be captured; if that is not why, the next one fails
                return self._session(CUDA, _CUDA_OPTIONS | {"enable_cuda_graph": "1"})
        try:
            return self._session(device, _CUDA_OPTIONS if device == CUDA else {})
        except Exception as error:  # onnxruntime raises many unrelated classes, RuntimeError among them
            raise VisionError(
                f"Expected an ONNX vision encoder, but ONNX Runtime refuses {self._path.name} ({first_line(error)}); "
                "convert the checkpoint again."
            ) from error

    def _session(self, device: str, options: dict[str, str]) -> onnxruntime.InferenceSession:
        cpu = [] if device == CPU else [PROVIDERS[CPU]]
        providers = [(PROVIDERS[device], options), *cpu]
        # without its fall-back to the CPU, which it would print
        return onnxruntime.InferenceSession(str(self._path), self._options, providers=providers, enable_fallback=0)

    def _check_interface(self, session: onnxruntime.InferenceSession) -> None:
        size = self.preprocessing.image_size_px
        expected = {_INPUT: [1, 3, size, size], _OUTPUT: [1, self.spec.n_tokens, self.spec.n_embd]}
        found = {node.name: node.shape for node in (*session.get_inputs(), *session.get_outputs())}
        if found != expected:
            raise VisionError(
                f"Expected an encoder with {expected} as the manifest states, but {self._path.name} has {found}; "
                "convert the checkpoint again."
            )

    def encode(self, images: Sequence[NDArray[np.uint8]], stop: Stop | None = None) -> list[NDArray[np.float32]]:
        """Return the embeddings of some images, each as it would be alone.

        They go through the graph one after the other: on two cores a batch of two takes as long as two (0.85 s and
        2 x 0.42), and in int8 it would round the activations of both by one scale, so that what the model sees of a
        picture depended on its neighbour.

        Args:
            images: uint8 (h, w, 3), RGB, each.
            stop: lets another thread stop it.

        Returns:
            float32 (n_tokens, n_embd) for each image.

        Raises:
            Stopped: it was stopped.
            VisionError: ONNX Runtime failed, or a result is not finite.
        """
        return [self._encode_one(preprocess(pixels, self.preprocessing), stop or Stop()) for pixels in images]

    def _encode_one(self, values: NDArray[np.float32], stop: Stop) -> NDArray[np.float32]:
        if stop.stopped:
            raise Stopped
        try:
            embeds = self._run(values, stop._options)
        except Exception as error:  # as above
            if stop.stopped:
                raise Stopped from error
            raise VisionError(
                f"Expected ONNX Runtime to encode the image, but it failed ({first_line(error)}); "
                "try again, and report this if it happens again."
            ) from error
        if not np.isfinite(embeds).all():
            raise VisionError(
                "Expected finite image embeddings, but the encoder gave infinity or NaN; convert the checkpoint again."
            )
        result: NDArray[np.float32] = embeds[0]
        return result


def _run_session(
    session: onnxruntime.InferenceSession, values: NDArray[np.float32], options: onnxruntime.RunOptions
) -> NDArray[np.float32]:
    embeds: NDArray[np.float32] = session.run([_OUTPUT], {_INPUT: values}, options)[0]
    return embeds


class _Placed:
    """A session whose input and output have their places in a device's memory, so that each is copied once.

    Fixed places are also what a captured graph needs, which starts all operations at once. They are shared, so there is
    one image at a time.

    Args:
        session: on the device.
        device: ONNX Runtime's name of it.

    Source: ONNX Runtime, "CUDA Execution Provider", on `enable_cuda_graph`; "I/O Binding".
    """

    def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
        self._session = session
        self._lock = threading.Lock()
        place = partial(onnxruntime.OrtValue.ortvalue_from_shape_and_type, element_type=np.float32, device_type=device)
        self._input, self._output = (place(ends[0].shape) for ends in (session.get_inputs(), session.get_outputs()))
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(_INPUT, self._input)
        self._binding.bind_ortvalue_output(_OUTPUT, self._output)

    def run(self, values: NDArray[np.float32], options: onnxruntime.RunOptions) -> NDArray[np.float32]:
        """Return a copy of the output in the machine's memory."""
        with self._lock:
            self._input.update_inplace(values)
            self._session.run_with_iobinding(self._binding, options)
            self._binding.synchronize_outputs()
            embeds: NDArray[np.float32] = np.array(self._output.numpy())
            return embeds


def _session_options(weights: str, n_threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL  # failures reach the user as our exceptions, not as log lines
    # threads that wait busily for the next operation save 6 %, but must not burn the cores that the decoder computes on
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # 8-bit weights stand for themselves: activations in 8 bits, ONNX Runtime's default for them, would be coarse
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if weights == "int8" and products_overflow():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def encoder_kernels(choice: str, spec: VisionSpec) -> VisionKernels:
    """Return which of our kernels will compute an encoder, if it calls them, before it is opened.

    Args:
        choice: see `VisionEncoder`.
        spec: of the encoder.
    """
    if spec.weights != CPU_ONLY_WEIGHTS:
        return VisionKernels(None, f"the weights are {spec.weights}")
    return choose_vision_kernels(choice)


def _register_kernels(options: onnxruntime.SessionOptions, choice: str, spec: VisionSpec) -> VisionKernels:
    kernels = encoder_kernels(choice, spec)
    if kernels.library is not None:
        try:
            options.register_custom_ops_library(str(kernels.library))
        except Exception as error:  # as above
            return VisionKernels(None, f"ONNX Runtime refuses them ({first_line(error)})")
    return kernels


def embedding_key(pixels: NDArray[np.uint8], preprocessing: Preprocessing, encoder: str) -> str:
    """Return the key under which the embeddings of an image may be reused.

    It covers every pixel, the shape, the dtype, the preprocessing and the encoder (its `identity`): two images share a
    key only when they are the same to the model.
    """
    digest = hashlib.sha256()
    digest.update(f"{pixels.shape}|{pixels.dtype.str}|{preprocessing.sha256}|{encoder}|".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()

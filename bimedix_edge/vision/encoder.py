"""The image encoder: vision tower and projector, which turn pixels into the decoder's embeddings."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.bundle import Bundle, VisionSpec
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
    suitable,
)
from bimedix_edge.vision.sessions import INPUT, OUTPUT, PlacedSession, PlainSession, session_options

__all__ = ["EncoderFile", "EncodingStop", "Stopped", "VisionEncoder", "embedding_key", "encoder_kernels"]

# graphs with this property call functions that our kernels compute
_FUNCTIONS = "functions"
_CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",  # the decoder needs the memory that would be kept in reserve
    "cudnn_conv_algo_search": "HEURISTIC",  # there is one convolution, and searching takes seconds
    "use_tf32": "0",  # float16 weights are the choice for fewer bits
}
# our kernels are chosen for the next session, on any thread
_opening = threading.Lock()


class Stopped(Exception):
    """An encoding was stopped on purpose."""


class EncodingStop:
    """A way to stop an encoding from another thread.

    Attributes:
        stopped: Whether `stop` was called.
        run_options: ONNX Runtime's options of the encoding.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.run_options = onnxruntime.RunOptions()
        self.run_options.log_severity_level = LOG_FATAL

    def stop(self) -> None:
        """Let the encoding end at the next operation of its graph, with `Stopped`."""
        self.stopped = True
        self.run_options.terminate = True


@dataclass(frozen=True)
class EncoderFile:
    """An encoder's file and its description.

    Attributes:
        path: Path of the ONNX file, already verified against its bundle's manifest.
        sha256: Hash of the file.
        spec: Its description in the manifest.
        preprocessing: Constants of the bundle.
    """

    path: Path
    sha256: str
    spec: VisionSpec
    preprocessing: Preprocessing

    @classmethod
    def of(cls, bundle: Bundle) -> EncoderFile:
        """Return the encoder of a bundle."""
        manifest = bundle.manifest
        return cls(bundle.path("vision"), manifest.files["vision"].sha256, manifest.vision, manifest.preprocessing)


class VisionEncoder:
    """An opened image encoder; safe to use from several threads.

    Args:
        file: ONNX file.
        n_threads: Threads of the session.
        device: `cpu`, `cuda`, `coreml`, or `auto`: a device of this machine that computes such weights, else the CPU.
        kernels: Which of our kernels compute int8 weights; see `choose_vision_kernels`.

    Attributes:
        spec, preprocessing: As in the file.
        device: Device that computes: `cpu`, `cuda` or `coreml`.
        fault: Why `auto` could not take a device of this machine; None without such a fault.
        kernels: Kernels in use, and why these.
        identity: File, device, library and kernels, on which results depend; part of the key of every embedding.
        session: Session that computes.

    Raises:
        HardwareError: The machine has no such device, or ONNX Runtime cannot use it.
        UsageError: There is no device of that name, or it does not compute such weights.
        VisionError: ONNX Runtime refuses the file, or its interface is not what the manifest states.
    """

    def __init__(self, file: EncoderFile, n_threads: int, *, device: str = CPU, kernels: str = AUTO) -> None:
        self.spec = file.spec
        self.preprocessing = file.preprocessing
        self.fault: str | None = None
        self._path = file.path
        self._options = session_options(file.spec.weights, n_threads)
        with _opening:
            self.kernels = _register_kernels(self._options, kernels, file.spec)
            self.device, session = self._auto() if device == AUTO else (device, self._open(device))
        if self.kernels.name and _FUNCTIONS not in session.get_modelmeta().custom_metadata_map:
            self.kernels = VisionKernels(None, "the graph has no use for them; convert the checkpoint again")
        self._check_interface(session)
        self.session: PlainSession | PlacedSession = PlainSession(session)
        if self.device == CUDA:
            self.session = PlacedSession(session, CUDA)
        self.identity = f"{file.sha256}|{self.device}|onnxruntime {library_version()}|{self.kernels.identity}"

    def _auto(self) -> tuple[str, onnxruntime.InferenceSession]:
        """Open a session on the best device; keep the fault of a device that is here and fails."""
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
            # ONNX Runtime leaves out a provider that fails to load, with a log line: check that it is really there
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
                f"ONNX Runtime refuses the image encoder {self._path.name} ({first_line(error)}). "
                "Convert the checkpoint again."
            ) from error

    def _session(self, device: str, options: dict[str, str]) -> onnxruntime.InferenceSession:
        cpu = [] if device == CPU else [PROVIDERS[CPU]]
        providers = [(PROVIDERS[device], options), *cpu]
        # without ONNX Runtime's own fall-back to the CPU, which it would print
        return onnxruntime.InferenceSession(str(self._path), self._options, providers=providers, enable_fallback=0)

    def _check_interface(self, session: onnxruntime.InferenceSession) -> None:
        size = self.preprocessing.image_size_px
        expected = {INPUT: [1, 3, size, size], OUTPUT: [1, self.spec.n_tokens, self.spec.n_embd]}
        found = {node.name: node.shape for node in (*session.get_inputs(), *session.get_outputs())}
        if found != expected:
            raise VisionError(
                f"{self._path.name} does not match the manifest: it has {found}, and the manifest says {expected}. "
                "Convert the checkpoint again."
            )

    def encode(
        self, images: Sequence[NDArray[np.uint8]], stop: EncodingStop | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the embeddings of images, each as it would be alone.

        They go through the graph one after the other. On two cores a batch of two takes as long as two (0.85 s and
        2 x 0.42). In int8 a batch would also round the activations of both by one scale, so that the embeddings of a
        picture depended on its neighbour.

        Args:
            images: Pictures, each uint8 (h, w, 3), RGB.
            stop: Lets another thread stop the encoding.

        Returns:
            float32 (n_tokens, n_embd) for each image.

        Raises:
            Stopped: `stop` ended the encoding.
            VisionError: ONNX Runtime failed, or a result is not finite.
        """
        return [self._encode_one(preprocess(pixels, self.preprocessing), stop or EncodingStop()) for pixels in images]

    def _encode_one(self, values: NDArray[np.float32], stop: EncodingStop) -> NDArray[np.float32]:
        if stop.stopped:
            raise Stopped
        try:
            embeds = self.session.run(values, stop.run_options)
        except Exception as error:  # as above
            if stop.stopped:
                raise Stopped from error
            raise VisionError(
                f"ONNX Runtime failed to encode the image ({first_line(error)}). "
                "Try again, and report this if it happens again."
            ) from error
        if not np.isfinite(embeds).all():
            raise VisionError("The image encoder returned infinity or NaN. Convert the checkpoint again.")
        result: NDArray[np.float32] = embeds[0]
        return result


def encoder_kernels(choice: str, spec: VisionSpec) -> VisionKernels:
    """Return which of our kernels will compute an encoder, if its graph calls them, before it is opened.

    Args:
        choice: See `VisionEncoder`.
        spec: Description of the encoder.
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
    """Return the key under which the embeddings of an image are reused.

    It covers every pixel, the shape, the dtype, the preprocessing and the encoder's `identity`. Two images share a key
    only when the model sees the same.
    """
    digest = hashlib.sha256()
    digest.update(f"{pixels.shape}|{pixels.dtype.str}|{preprocessing.sha256}|{encoder}|".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()

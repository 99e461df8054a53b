"""The child: it owns the model, answers frames on standard input with frames on standard output, then ends.

It says nothing on standard error: what native code or a codec prints there could hold a patient's data.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from PIL import Image

from bimedix_edge.bundle import MANIFEST
from bimedix_edge.decoder.llama import library_version
from bimedix_edge.errors import BimedixEdgeError, ImageError, PromptError, SchemaError, UsageError
from bimedix_edge.events import Cancel, Done, Token
from bimedix_edge.imaging.preprocess import square
from bimedix_edge.imaging.window import PRESETS
from bimedix_edge.runtime import Runtime
from bimedix_edge.server.link.messages import Failed, GenerateRequest, ImagePart, Look, ModelFacts
from bimedix_edge.server.link.wire import PREFIX, Frame, WireError, lengths, pack, unpack
from bimedix_edge.server.model.conversations import Conversations, load_image
from bimedix_edge.settings import Settings

__all__ = ["main"]

# of 1000: when memory runs out, the system ends this process, which can be started again, and not the server
_OOM_SCORE = 800


def main() -> None:
    """Answer frames until there are no more, which is when the parent has ended."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    warnings.simplefilter("ignore")
    _die_first()
    process = _ModelProcess(_Link(answers))
    with contextlib.suppress(WireError):
        while (frame := _read(requests)) is not None:
            process.take(frame)
    # answers that are being written have nobody left to read them
    os._exit(0)


class _Link:
    """The way to the parent, for several threads."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        """Write a frame; when nobody reads it, this process has no purpose."""
        pieces = pack(frame)
        try:
            with self._lock:
                for piece in pieces:
                    self._stream.write(piece)
                self._stream.flush()
        except OSError:
            os._exit(0)


class _ModelProcess:
    """Does what frames ask, each in a thread of its own."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._runtime: Runtime | None = None
        self._conversations: Conversations | None = None
        self._cancels: dict[int, Cancel] = {}

    def take(self, frame: Frame) -> None:
        """Begin to do what a frame asks."""
        if frame.kind == "cancel":
            if (cancel := self._cancels.get(frame.id)) is not None:
                cancel.cancel()
            return
        work: Callable[..., None] = self._answer
        if frame.kind == "open":
            work = self._open
        elif frame.kind == "generate":
            self._cancels[frame.id] = Cancel()
            work = self._generate
        threading.Thread(target=work, args=(frame,), daemon=True).start()

    def _open(self, frame: Frame) -> None:
        try:
            self._runtime = Runtime.open(frame.value["model"], settings=_settings(frame.value["settings"]))
        except BimedixEdgeError as error:
            self._link.send(Frame("failed", 0, _told(error)))
        except Exception as error:
            self._link.send(Frame("failed", 0, {"kind": "BimedixEdgeError", "message": _defect(error)}))
        else:
            self._conversations = Conversations(self._runtime)
            self._link.send(Frame("ready", 0, _facts(self._runtime)))

    def _generate(self, frame: Frame) -> None:
        """Answer a request; the last event is the only one after which the parent sends another in its place."""
        cancel = self._cancels[frame.id]
        text: list[str] = []
        try:
            last = self._write(frame, cancel, text)
        except (PromptError, SchemaError, ImageError, UsageError) as error:
            last = _refused(error, "".join(text))
        except BimedixEdgeError as error:
            last = Failed("engine", str(error), "".join(text))
        except Exception as error:
            last = Failed("engine", _defect(error), "".join(text))
        del self._cancels[frame.id]
        self._link.send(Frame("event", frame.id, last))

    def _write(self, frame: Frame, cancel: Cancel, text: list[str]) -> Done | Failed:
        request: GenerateRequest = frame.value
        assert self._runtime is not None
        assert self._conversations is not None
        engine = self._runtime.engine
        prompt = self._conversations.prompt(request)
        with self._conversations.session(request, prompt) as session:
            events = engine.generate(
                session,
                prompt,
                request.sampling,
                max_tokens=request.max_tokens or self._runtime.settings.max_tokens,
                cancel=cancel,
                stop=request.stop,
                top_logprobs=request.top_logprobs,
            )
            for event in events:
                if isinstance(event, Done):
                    self._conversations.remember(request, prompt, event)
                    return event
                if isinstance(event, Token):
                    text.append(event.text)
                self._link.send(Frame("event", frame.id, event))
        raise AssertionError("an answer ends with Done")

    def _answer(self, frame: Frame) -> None:
        try:
            result = Frame("result", frame.id, self._result(frame))
        except BimedixEdgeError as error:
            result = Frame("error", frame.id, _told(error))
        except Exception as error:
            result = Frame("error", frame.id, {"kind": "BimedixEdgeError", "message": _defect(error)})
        self._link.send(result)

    def _result(self, frame: Frame) -> Any:
        assert self._runtime is not None
        engine = self._runtime.engine
        if frame.kind == "tokenize":
            return engine.decoder.tokenize(frame.value)
        if frame.kind == "detokenize":
            return _detokenized(self._runtime, frame.value)
        if frame.kind == "look":
            return _look(self._runtime, frame.value)
        if frame.kind == "kv_used":
            return engine.sessions.n_cells
        raise UsageError(f"Expected a kind of frame that is known, but it is {frame.kind[:40]!r}.")


def _read(stream: IO[bytes]) -> Frame | None:
    prefix = stream.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    n_header, n_blobs = lengths(prefix)
    header, blobs = stream.read(n_header), stream.read(n_blobs)
    return unpack(header, blobs) if len(blobs) == n_blobs else None


def _die_first() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_OOM_SCORE))


def _settings(values: dict[str, Any]) -> Settings:
    plain: dict[str, Any] = {name: Path(value) if name.endswith("_dir") else value for name, value in values.items()}
    return Settings(**plain)


def _facts(runtime: Runtime) -> ModelFacts:
    manifest, settings = runtime.manifest, runtime.settings
    hashes = sorted(entry.sha256 for entry in manifest.files.values())
    engines = [library_version(), runtime.kernels.name or "none", runtime.engine.vision.identity]
    told = [*hashes, *engines, manifest.preprocessing.sha256]
    return ModelFacts(
        name=manifest.name,
        licence=manifest.licence,
        notice=manifest.notice,
        n_ctx=runtime.engine.decoder.n_ctx,
        n_parallel=settings.parallel,
        n_vocab=manifest.decoder.n_vocab,
        image_tokens=manifest.vision.n_tokens,
        max_tokens=settings.max_tokens,
        sampling=runtime.sampling(),
        presets=tuple(PRESETS),
        created=int((runtime.directory / MANIFEST).stat().st_mtime),
        fingerprint=f"fp_{hashlib.sha256('|'.join(told).encode()).hexdigest()[:16]}",
    )


def _look(runtime: Runtime, part: ImagePart) -> Look:
    picture = load_image(part)
    buffer = io.BytesIO()
    Image.fromarray(square(picture.pixels, runtime.manifest.preprocessing)).save(buffer, "PNG")
    return Look(
        png=buffer.getvalue(),
        sha256=picture.sha256,
        width_px=picture.width_px,
        height_px=picture.height_px,
        n_frames=picture.n_frames,
        notes=tuple(note.report() for note in picture.notes),
        warnings=tuple(warning.report() for warning in picture.warnings),
        tags=picture.tags,
        presets=tuple(PRESETS) if picture.tags.get("modality") == "CT" else (),
    )


def _detokenized(runtime: Runtime, tokens: tuple[int, ...]) -> str:
    n_vocab = runtime.manifest.decoder.n_vocab
    for token in tokens:
        if type(token) is not int or not 0 <= token < n_vocab:
            raise UsageError(f"Expected tokens from 0 to {n_vocab - 1}, but one is {str(token)[:40]}; correct it.")
    return b"".join(map(runtime.engine.decoder.piece, tokens)).decode("utf-8", "replace")


def _refused(error: PromptError | SchemaError | ImageError | UsageError, text: str) -> Failed:
    if isinstance(error, PromptError):
        return Failed("prompt", str(error), text, n_prompt_tokens=error.n_tokens, n_ctx=error.n_ctx)
    return Failed("schema" if isinstance(error, SchemaError) else "image", str(error), text)


def _told(error: BimedixEdgeError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)}


def _defect(error: Exception) -> str:
    """Say where an exception came from that nobody meant, without its text, which could hold what a user wrote."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return (
        f"Expected no defect in this program, but there is one ({type(error).__name__} at {where}); please report it."
    )

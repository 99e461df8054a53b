"""The child: it owns the model, answers frames on standard input with frames on standard output, then ends.

It prints nothing: what native code or a codec prints could hold a patient's data.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import Image

from bimedix_edge import child
from bimedix_edge.bundle import MANIFEST
from bimedix_edge.child import FrameError
from bimedix_edge.engine.request import GenerationOptions
from bimedix_edge.errors import BimedixEdgeError, ImageError, PromptError, SchemaError, UsageError
from bimedix_edge.events import Cancel, Done, Token
from bimedix_edge.imaging.preprocess import square
from bimedix_edge.imaging.window import PRESETS
from bimedix_edge.runtime import Runtime
from bimedix_edge.server.link.messages import Failed, ImagePart, ImagePreview, ModelFacts
from bimedix_edge.server.link.wire import (
    CancelRequest,
    Cells,
    CountCells,
    Detokenize,
    DetokenizedText,
    ErrorReply,
    Generate,
    ModelReady,
    ModelRefused,
    OpenModel,
    Preview,
    PreviewReply,
    ReplyFrame,
    RequestFrame,
    TokenIds,
    Tokenize,
    event_frame,
    pack,
    unpack_request,
)
from bimedix_edge.server.model.conversations import Conversations, load_image

__all__ = ["main"]

# of 1000: when memory runs out, the system ends this process, which can be started again, and not the server
_OOM_SCORE = 800
_Question = Tokenize | Detokenize | Preview | CountCells


def main() -> None:
    """Answer frames until there are no more, which is when the parent has ended."""
    requests, replies = child.silence()
    _die_first()
    handler = _RequestHandler(_Link(replies))
    with contextlib.suppress(FrameError):
        while (data := child.read_frame(requests)) is not None:
            handler.take(unpack_request(data))
    # without a parent, answers in flight have no reader
    os._exit(0)


class _Link:
    """The way to the parent, for several threads."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, frame: ReplyFrame) -> None:
        """Write a frame; without a parent to read it, this process has no purpose and ends.

        Raises:
            FrameError: The frame is too long, or holds a text that is not valid Unicode; nothing is written.
        """
        pieces = pack(frame)
        try:
            with self._lock:
                self._stream.writelines(pieces)
                self._stream.flush()
        except OSError:
            os._exit(0)


class _RequestHandler:
    """Does what frames ask, each in a thread of its own."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._runtime: Runtime | None = None
        self._conversations: Conversations | None = None
        self._cancels: dict[int, Cancel] = {}

    def take(self, frame: RequestFrame) -> None:
        """Begin to do what a frame asks."""
        if isinstance(frame, CancelRequest):
            if (cancel := self._cancels.get(frame.id)) is not None:
                cancel.cancel()
        elif isinstance(frame, OpenModel):
            _begin(lambda: self._open(frame))
        elif isinstance(frame, Generate):
            cancel = self._cancels[frame.id] = Cancel()
            _begin(lambda: self._generate(frame, cancel))
        else:
            _begin(lambda: self._reply(frame))

    def _open(self, frame: OpenModel) -> None:
        model = None if frame.model is None else os.fsdecode(frame.model)
        try:
            self._runtime = Runtime.open(model, settings=frame.settings)
            self._conversations = Conversations(self._runtime)
            ready = ModelReady(0, _facts(self._runtime))
        except Exception as error:
            self._link.send(ModelRefused(0, *_described(error)))
        else:
            self._link.send(ready)

    def _generate(self, frame: Generate, cancel: Cancel) -> None:
        """Answer a request; the parent sends another in its place only after the last event."""
        text: list[str] = []
        last: Done | Failed
        try:
            last = self._decode(frame, cancel, text)
        except (PromptError, SchemaError, ImageError, UsageError) as error:
            last = _refusal(error, "".join(text))
        except Exception as error:
            _, message = _described(error)
            last = Failed("engine", message, "".join(text))
        del self._cancels[frame.id]
        self._link.send(event_frame(frame.id, last))

    def _decode(self, frame: Generate, cancel: Cancel, text: list[str]) -> Done:
        """Send the events of an answer, add its text to `text` as it grows, and return the last event."""
        request, runtime, conversations = frame.request, self._runtime, self._conversations
        assert runtime is not None and conversations is not None, "the parent asks once the model is loaded"
        prompt = conversations.prompt(request)
        with conversations.session(request, prompt) as session:
            options = GenerationOptions(
                request.sampling,
                max_tokens=request.max_tokens or runtime.settings.max_tokens,
                stop=request.stop,
                top_logprobs=request.top_logprobs,
            )
            for event in runtime.engine.generate(session, prompt, options, cancel):
                if isinstance(event, Done):
                    conversations.remember(request, prompt, event)
                    return event
                if isinstance(event, Token):
                    text.append(event.text)
                self._link.send(event_frame(frame.id, event))
        raise AssertionError("an answer ends with Done")

    def _reply(self, frame: _Question) -> None:
        try:
            self._link.send(self._answer(frame))
        except Exception as error:
            self._link.send(ErrorReply(frame.id, *_described(error)))

    def _answer(self, frame: _Question) -> ReplyFrame:
        runtime = self._runtime
        assert runtime is not None, "the parent asks once the model is loaded"
        if isinstance(frame, Tokenize):
            return TokenIds(frame.id, tuple(runtime.tokenize(frame.text)))
        if isinstance(frame, Detokenize):
            return DetokenizedText(frame.id, runtime.detokenize(frame.tokens))
        if isinstance(frame, Preview):
            return PreviewReply(frame.id, _preview(runtime, frame.image))
        return Cells(frame.id, runtime.n_cells_used)


def _begin(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _die_first() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_OOM_SCORE))


def _facts(runtime: Runtime) -> ModelFacts:
    manifest, settings = runtime.manifest, runtime.settings
    return ModelFacts(
        name=manifest.name,
        licence=manifest.licence,
        notice=manifest.notice,
        n_ctx=runtime.n_ctx,
        n_parallel=settings.parallel,
        n_vocab=manifest.decoder.n_vocab,
        image_tokens=manifest.vision.n_tokens,
        max_tokens=settings.max_tokens,
        sampling=runtime.sampling(),
        presets=tuple(PRESETS),
        created=int((runtime.directory / MANIFEST).stat().st_mtime),
        fingerprint=f"fp_{hashlib.sha256('|'.join(runtime.identity).encode()).hexdigest()[:16]}",
    )


def _preview(runtime: Runtime, part: ImagePart) -> ImagePreview:
    picture = load_image(part)
    buffer = io.BytesIO()
    Image.fromarray(square(picture.pixels, runtime.manifest.preprocessing)).save(buffer, "PNG")
    return ImagePreview(
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


def _refusal(error: PromptError | SchemaError | ImageError | UsageError, text: str) -> Failed:
    if isinstance(error, PromptError):
        return Failed("prompt", str(error), text, n_prompt_tokens=error.n_tokens, n_ctx=error.n_ctx)
    return Failed("schema" if isinstance(error, SchemaError) else "image", str(error), text)


def _described(error: Exception) -> tuple[str, str]:
    """Return an error's class among ours and its sentence.

    Of an error that is a defect the sentence says where it was raised, but not its text, which could hold what a user
    wrote.
    """
    if isinstance(error, BimedixEdgeError):
        # a path within it need not be Unicode
        return type(error).__name__, str(error).encode("utf-8", "backslashreplace").decode()
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return "BimedixEdgeError", f"This program has a defect ({type(error).__name__} at {where}). Please report it."

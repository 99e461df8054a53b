"""What a caller asks of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bimedix_edge.engine.sessions import Item, Session
from bimedix_edge.events import Cancel
from bimedix_edge.sampling import Sampling

__all__ = ["EngineRequest", "GenerationOptions"]


@dataclass(frozen=True)
class GenerationOptions:
    """How an answer is generated.

    Attributes:
        sampling: How tokens are chosen.
        max_tokens: Most tokens of the answer, 1 or more.
        stop: Texts that end the answer and are left out of it; none of them is empty.
        top_logprobs: Number of most likely tokens that are reported with each token, 0 or more; None reports no
            probabilities at all.
    """

    sampling: Sampling
    max_tokens: int
    stop: Sequence[str] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class EngineRequest:
    """A prompt to answer.

    Attributes:
        session: Session whose part of the KV cache is reused and extended.
        prompt: The whole prompt, from its first token on.
        options: How the answer is generated.
        cancel: Stops the answer.
    """

    session: Session
    prompt: Sequence[Item]
    options: GenerationOptions
    cancel: Cancel

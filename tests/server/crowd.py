"""Clients of a model process that know the right answers: cases, answers alone, and many clients at once."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from bimedix_edge.events import Done
from bimedix_edge.models.demo import phantom
from bimedix_edge.models.demo.dialogues import closed_questions, open_questions
from bimedix_edge.sampling import Sampling
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import GenerateRequest, ImagePart, InputMessage, ServerEvent, TextPart
from bimedix_edge.settings import Settings

GREEDY = Sampling(temperature=0.0)
# long enough that a pause of the whole machine is no failure
PATIENCE_S = 300.0
MAX_TOKENS = 48
TEXTS = (
    "Hello",
    "What is a nodule?",
    "ما القلب؟",
    "Describe the heart.",
    "Who are you?",
    "What can you see?",
    "صف الرئة.",
)


@dataclass(frozen=True)
class Case:
    """A question, perhaps about a picture (a PNG file)."""

    text: str
    png: bytes | None = None

    def request(self, tenant: str, chat: str | None = None) -> GenerateRequest:
        images = () if self.png is None else (ImagePart(self.png),)
        message = InputMessage("user", (*images, TextPart(self.text)))
        return GenerateRequest(tenant, GREEDY, (message,), chat=chat, max_tokens=MAX_TOKENS)


def pictures(count: int, seed: int = 1) -> list[tuple[bytes, phantom.Findings]]:
    """Return phantoms as PNG files, all different, with what they show."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        findings = phantom.sample(rng)
        buffer = io.BytesIO()
        Image.fromarray(phantom.draw(findings, rng)).save(buffer, "PNG")
        drawn.append((buffer.getvalue(), findings))
    return drawn


def cases(n_pictures: int, seed: int = 1) -> tuple[list[Case], list[Case]]:
    """Return questions about pictures, in both languages, and questions without a picture."""
    chance = random.Random(seed)
    shown = []
    for png, findings in pictures(n_pictures, seed):
        for language in ("en", "ar"):
            questions = closed_questions(findings, language, held_out=True)
            shown += [Case(question.text, png) for question in chance.sample(questions, 2)]
            shown.append(Case(chance.choice(open_questions(findings, language, held_out=True)).text, png))
    return shown, [Case(text) for text in TEXTS]


@asynccontextmanager
async def running(bundle: Path, **settings: object) -> AsyncIterator[ModelProcess]:
    """Run a model process until the block ends, by default with one thread, which suits so small a model."""
    chosen = replace(Settings(temperature=0.0, ctx_size=2048, threads=1), **settings)  # type: ignore[arg-type]
    process = ModelProcess(chosen, bundle)
    await process.start()
    try:
        await asyncio.wait_for(process.ready(), PATIENCE_S)
        yield process
    finally:
        await process.close()


async def answer(process: ModelProcess, asked: GenerateRequest) -> ServerEvent:
    """Return how a request ended."""
    return [event async for event in process.generate(asked)][-1]


async def alone(process: ModelProcess, asked: Iterable[Case]) -> dict[Case, tuple[int, ...]]:
    """Return the tokens of each case, asked one after the other, each as the only request of its tenant."""
    known = {}
    for number, case in enumerate(asked):
        done = await answer(process, case.request(f"alone {number}"))
        assert isinstance(done, Done), done
        known[case] = done.token_ids
    return known


async def together(
    process: ModelProcess, clients: Sequence[Sequence[Case]], tenant_of: Callable[[int], str]
) -> list[tuple[Case, ServerEvent]]:
    """Return how all requests ended; all clients ask at once, each of them one request after the other."""

    async def client(number: int) -> list[tuple[Case, ServerEvent]]:
        tenant, chat = tenant_of(number), f"chat {number}"
        return [(case, await answer(process, case.request(tenant, chat))) for case in clients[number]]

    return [pair for ends in await asyncio.gather(*map(client, range(len(clients)))) for pair in ends]

"""The model in a process of its own: it answers, dies, and comes back, and requests survive it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from bimedix_edge.errors import BundleError, ImageError, PromptError, UsageError
from bimedix_edge.events import Done, Encode, Prefill, Token
from bimedix_edge.sampling import Sampling
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import Failed, GenerateRequest, ImagePart, InputMessage, ServerEvent, TextPart
from bimedix_edge.settings import Settings

GREEDY = Sampling(temperature=0.0)
QUESTION = "Is there a nodule?"
PATIENCE_S = 120.0


def request(text: str, *images: Path, tenant: str = "a", **options: object) -> GenerateRequest:
    parts = (*(ImagePart(image.read_bytes()) for image in images), TextPart(text))
    return replace(GenerateRequest(tenant, GREEDY, (InputMessage("user", parts),)), **options)  # type: ignore[arg-type]


async def answer(process: ModelProcess, asked: GenerateRequest) -> ServerEvent:
    return [event async for event in process.generate(asked)][-1]


@asynccontextmanager
async def running(bundle: Path, **settings: object) -> AsyncIterator[ModelProcess]:
    process = ModelProcess(Settings(temperature=0.0, ctx_size=1024, **settings), bundle)  # type: ignore[arg-type]
    await process.start()
    try:
        await asyncio.wait_for(process.ready(), PATIENCE_S)
        yield process
    finally:
        await process.close()


def test_an_answer_comes_through_the_process(bundles: dict[str, Path], samples: Path) -> None:
    async def check() -> None:
        async with running(bundles["F16"]) as process:
            asked = request(QUESTION, samples / "nodule_right_upper.png")
            events = [event async for event in process.generate(asked)]
            assert {Encode, Prefill, Token, Done} == {type(event) for event in events}
            done = events[-1]
            assert isinstance(done, Done)
            assert "".join(event.text for event in events if isinstance(event, Token)) == done.text == "Yes."
            assert process.facts is not None
            assert "not for clinical use" in process.facts.notice
            assert await process.detokenize(await process.tokenize("قلب heart")) == "قلب heart"
            preview = await process.preview(ImagePart((samples / "normal.png").read_bytes()))
            assert preview.png.startswith(b"\x89PNG")
            with pytest.raises(ImageError, match="no image format"):
                await process.preview(ImagePart(b"nothing"))
            refused = await answer(process, request(QUESTION, Path(__file__)))
            assert isinstance(refused, Failed)
            assert refused.kind == "image"
            with pytest.raises(UsageError):
                await process.detokenize([10**6])
            with pytest.raises(PromptError, match="not valid Unicode"):
                await process.tokenize("half a character: \ud800")
            refused = await answer(process, request("half a character: \ud800"))
            assert isinstance(refused, Failed)
            assert refused.kind == "prompt"
            assert "not valid Unicode" in refused.message
            stats = await process.stats()
            assert (stats.n_encodes, stats.n_generated_tokens) == (1, len(done.token_ids))

    asyncio.run(check())


def test_the_next_process_gets_the_requests_that_a_dead_one_had_not_begun(bundles: dict[str, Path]) -> None:
    async def check() -> None:
        async with running(bundles["F16"]) as process:
            first = process.pid
            assert first is not None
            os.kill(first, signal.SIGSTOP)  # so that its requests stay unread
            asked = asyncio.create_task(answer(process, request(QUESTION)))
            left = asyncio.create_task(answer(process, request(QUESTION, tenant="b")))
            await asyncio.sleep(0.1)
            left.cancel()
            os.kill(first, signal.SIGKILL)
            done = await asyncio.wait_for(asked, PATIENCE_S)
            assert isinstance(done, Done)
            assert process.pid != first
            stats = await process.stats()
            assert (stats.n_restarts, stats.n_queued, stats.n_active) == (1, 0, 0)
            assert stats.n_generated_tokens == len(done.token_ids)

    asyncio.run(check())


def test_a_request_that_ends_the_process_twice_is_not_requeued_again(bundles: dict[str, Path]) -> None:
    async def check() -> None:
        async with running(bundles["F16"]) as process:
            asked = asyncio.create_task(answer(process, request(QUESTION)))
            for _ in range(2):
                await asyncio.wait_for(process.ready(), PATIENCE_S)
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                while process.state == "ready":
                    await asyncio.sleep(0.001)
            lost = await asyncio.wait_for(asked, PATIENCE_S)
            assert isinstance(lost, Failed)
            assert (lost.kind, lost.text_so_far) == ("lost", "")

    asyncio.run(check())


def test_ctrl_c_in_the_terminal_leaves_the_model_to_the_server(bundles: dict[str, Path]) -> None:
    async def check() -> None:
        async with running(bundles["F16"]) as process:
            first = process.pid
            assert first is not None
            os.kill(first, signal.SIGINT)
            await asyncio.sleep(0.1)
            assert isinstance(await answer(process, request(QUESTION)), Done)
            assert process.pid == first
            assert process.counters.n_restarts == 0

    asyncio.run(check())


def test_a_model_whose_path_is_not_unicode_is_refused_in_words(tmp_path: Path) -> None:
    async def check() -> None:
        process = ModelProcess(Settings(), tmp_path / "model\udcff")
        await process.start()
        try:
            with pytest.raises((BundleError, UsageError), match=r"model\\udcff"):
                await asyncio.wait_for(process.ready(), PATIENCE_S)
        finally:
            await process.close()

    (tmp_path / "model\udcff").mkdir()
    asyncio.run(check())

"""Many clients at once: each gets the answer it would get alone, while others come, leave, or the process dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from native_products import usable
from server.crowd import GREEDY, MAX_TOKENS, PATIENCE_S, Case, alone, answer, cases, pictures, running, together

from bimedix_edge.events import Done
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import Failed, GenerateRequest, ImagePart, InputMessage, Queued, TextPart

QUESTION = "Is there a nodule?"


def differing(last: list[tuple[Case, object]], known: dict[Case, tuple[int, ...]]) -> list[object]:
    return [event for case, event in last if not (isinstance(event, Done) and event.token_ids == known[case])]


@pytest.mark.parametrize(
    ("n_clients", "n_each", "n_pictures", "kv_type"),
    [
        (12, 4, 4, "f16"),
        pytest.param(64, 50, 40, "f32", marks=pytest.mark.slow),
        pytest.param(64, 50, 40, "f16", marks=pytest.mark.slow),
    ],
)
def test_answers_under_load_are_those_alone(
    n_clients: int, n_each: int, n_pictures: int, kv_type: str, bundles: dict[str, Path]
) -> None:
    shown, plain = cases(n_pictures)
    chance = random.Random(7)
    clients = [
        [chance.choice(shown if (index + at) % 2 else plain) for at in range(n_each)] for index in range(n_clients)
    ]

    async def check() -> None:
        async with running(bundles["Q4_K_M"], kv_type=kv_type) as process:
            known = await alone(process, [*shown, *plain])
            start_s = time.monotonic()
            # half of the clients have a key of their own, the others share a few
            last = await together(process, clients, lambda n: f"own {n}" if n % 2 else f"shared {n % 8}")
            wrong = differing(last, known)
            seconds = time.monotonic() - start_s
            print(f"{len(last) - len(wrong)} of {len(last)} answers equal in {seconds:.0f} s; {await process.stats()}")
            # other kernels add in an order that depends on the batch: where two tokens are nearly equally likely,
            # either may come
            exact = usable("avx512vnni") and not usable("amx")
            assert len(wrong) <= (0 if exact else len(last) // 500)
            assert len(last) == n_clients * n_each

    asyncio.run(check())


async def leave(process: ModelProcess, asked: GenerateRequest, n_events: int) -> tuple[str, list[float]]:
    """Ask, leave after `n_events`; return the type of the last event, and how long the slot then took to be free."""
    events = process.generate(asked)
    async for event in events:
        phase, n_events = type(event).__name__, n_events - 1
        if n_events == 0 or isinstance(event, (Done, Failed)):
            break
    was_in_flight = process.in_flight(asked.tenant) > 0
    start_s = time.monotonic()
    await events.aclose()
    while process.in_flight(asked.tenant):
        await asyncio.sleep(0.001)
    return phase, [time.monotonic() - start_s] if was_in_flight else []


@pytest.mark.parametrize("n_swaps", [16, pytest.param(500, marks=pytest.mark.slow)])
def test_two_images_under_the_same_text_are_never_mixed_up(n_swaps: int, bundles: dict[str, Path]) -> None:
    """The same words about one picture, then another, in one chat, in several chats at once, and in later turns."""
    drawn = pictures(60, seed=3)
    with_nodule = [png for png, findings in drawn if findings.nodule]
    without = [png for png, findings in drawn if not findings.nodule and not findings.enlarged_heart]
    chance = random.Random(5)

    def conversation(png: bytes, first: str | None) -> GenerateRequest:
        messages = [InputMessage("user", (ImagePart(png), TextPart(QUESTION)))]
        if first is not None:
            messages += [
                InputMessage("assistant", (TextPart(first),)),
                InputMessage("user", (TextPart("Describe the image."),)),
            ]
        return GenerateRequest("one key", GREEDY, tuple(messages), max_tokens=MAX_TOKENS)

    async def texts(process: ModelProcess, png: bytes, tenant: str, chat: str | None) -> tuple[str, str]:
        first = await answer(process, _of(conversation(png, None), tenant, chat))
        assert isinstance(first, Done), first
        second = await answer(process, _of(conversation(png, first.text), tenant, chat))
        assert isinstance(second, Done), second
        return first.text, second.text

    async def check() -> None:
        async with running(bundles["F16"]) as process:
            pairs = [(with_nodule[at % len(with_nodule)], without[at % len(without)]) for at in range(6)]
            known = {
                png: await texts(process, png, f"alone {at}", None)
                for at, png in enumerate({p for pair in pairs for p in pair})
            }
            assert len({known[png] for pair in pairs for png in pair}) > 4

            async def chat(number: int) -> int:
                swaps = 0
                for _ in range(n_swaps // 16 + 1):
                    for png in chance.choice(pairs):
                        # a chat's name that is the same for all, its own, or none
                        name = chance.choice(["chat", f"chat {number}", None])
                        assert await texts(process, png, "one key", name) == known[png]
                        swaps += 1
                return swaps

            swaps = sum(await asyncio.gather(*map(chat, range(8))))
            print(f"{swaps} swaps, none mixed up; {await process.stats()}")
            assert swaps >= n_swaps

    asyncio.run(check())


def _of(asked: GenerateRequest, tenant: str, chat: str | None) -> GenerateRequest:
    return GenerateRequest(tenant, asked.sampling, asked.messages, chat=chat, max_tokens=asked.max_tokens)


@pytest.mark.parametrize("n_leaving", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_leave_free_their_place_at_once(n_leaving: int, bundles: dict[str, Path]) -> None:
    shown, plain = cases(6, seed=2)
    chance = random.Random(11)

    async def check() -> None:
        async with running(bundles["F16"], parallel=4, queue=64) as process:
            known = await alone(process, [*shown[:8], *plain])
            leaving, freed_s, phases = True, [], {}

            async def stay(number: int) -> int:
                count = 0
                while leaving:
                    case = chance.choice([*shown[:8], *plain])
                    last = await answer(process, case.request(f"stay {number}"))
                    assert isinstance(last, Done), last
                    assert last.token_ids == known[case]
                    count += 1
                return count

            async def leavers(first: int) -> None:
                for number in range(first, n_leaving, 8):
                    # with pictures that are not in the cache, so that some leave while one is being encoded
                    case = chance.choice([*shown[8:], *plain])
                    phase, seconds = await leave(process, case.request(f"leave {number}"), chance.randrange(1, 12))
                    phases[phase] = phases.get(phase, 0) + 1
                    freed_s.extend(seconds)

            staying = [asyncio.create_task(stay(number)) for number in range(3)]
            await asyncio.wait_for(asyncio.gather(*map(leavers, range(8))), 10 * PATIENCE_S)
            leaving = False
            stayed = sum(await asyncio.gather(*staying))
            p99 = float(np.quantile(freed_s, 0.99))
            n_left = sum(phases.values())
            print(f"{n_left} left ({phases}), {stayed} answers besides; {len(freed_s)} places freed, p99 {p99:.3f} s")
            assert (await process.stats()).n_active == 0
            assert {"Encode", "Prefill", "Token"} <= set(phases)
            # unless the machine is paused meanwhile
            assert p99 <= 1.0

    asyncio.run(check())


@pytest.mark.parametrize("n_kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_process_costs_the_answers_it_was_writing_and_nothing_else(
    n_kills: int, bundles: dict[str, Path]
) -> None:
    shown, plain = cases(4, seed=4)
    chance = random.Random(13)

    async def check() -> None:
        async with running(bundles["F16"], parallel=3, queue=64) as process:
            known = await alone(process, [*shown, *plain])
            asking, lost, kept = True, 0, 0

            async def client(number: int) -> int:
                """Ask until the test ends, again after a lost answer; return how many answers came."""
                nonlocal lost, kept
                count = 0
                while asking:
                    case = chance.choice([*shown, *plain])
                    while True:
                        restarts = process.counters.n_restarts
                        events = [event async for event in process.generate(case.request(f"key {number}"))]
                        last = events[-1]
                        if isinstance(last, Done):
                            kept += isinstance(events[0], Queued) and process.counters.n_restarts > restarts
                            break
                        assert isinstance(last, Failed)
                        assert last.kind == "lost"
                        lost += 1
                    assert last.token_ids == known[case]
                    count += 1
                return count

            clients = [asyncio.create_task(client(number)) for number in range(8)]
            for _ in range(n_kills):
                await asyncio.wait_for(process.ready(), PATIENCE_S)
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                while process.state == "ready":
                    await asyncio.sleep(0.001)
            await asyncio.wait_for(process.ready(), PATIENCE_S)
            asking = False
            answered = sum(await asyncio.gather(*clients))
            stats = await process.stats()
            print(f"{stats.n_restarts} restarts, {lost} lost, {kept} waited, {answered} right")
            assert stats.n_restarts == n_kills
            assert lost > 0
            assert kept > 0
            assert answered >= 8

    asyncio.run(check())

"""Throughput of one model process with many clients, and the delay that a long prompt causes for a running answer.

    python tests/bench/bench_server.py WORK [--vocabulary ggml-vocab-llama-bpe.gguf] [--binding]

The first run writes a bundle to WORK (4 GB): random weights, a decoder in the 1B's shape and the published tower. The
script measures through the model process, as the server uses it. `--binding` also measures llama-cpp-python's own
server with the same decoder, in turn with ours; it needs `pip install "llama-cpp-python[server]"`. Figures are medians
of `--rounds`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.synthetic.checkpoint import Storage, generate
from bimedix_edge.converters.synthetic.config import SHAPES
from bimedix_edge.events import Done, Token
from bimedix_edge.sampling import Sampling
from bimedix_edge.server.front.supervisor import ModelProcess
from bimedix_edge.server.link.messages import GenerateRequest, ImagePart, InputMessage, TextPart
from bimedix_edge.settings import Settings

N_TOKENS = 64
N_RUNNING = 160
PORT = 18111
QUESTION = "What does the picture show, and what should be looked at more closely? Name every finding and its side."
# random weights end their answers at random, and greedy answers repeat themselves; neither changes the speed
SAMPLING = Sampling(temperature=1.0, seed=1)


def bundle_of(work: Path, vocabulary: Path | None) -> Path:
    """Return the bundle; write it first if WORK has none."""
    bundle, source = work / "bundle", work / "checkpoint"
    if not bundle.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        if not source.is_dir():
            generate(source, SHAPES["1b"], Storage(vocabulary=vocabulary))
        convert(source, bundle, ConvertOptions(file_type="Q4_K_M", name="random-1b", vision="int8"))
        shutil.rmtree(source)
    return bundle


def picture(seed: int) -> bytes:
    """Return a PNG file of noise, a different one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def request(holder: str, text: str, n: int, png: bytes | None = None) -> GenerateRequest:
    """Return a request of `n` tokens."""
    parts = (TextPart(text),) if png is None else (ImagePart(png), TextPart(text))
    return GenerateRequest(holder, SAMPLING, (InputMessage("user", parts),), max_tokens=n)


async def times(process: ModelProcess, asked: GenerateRequest) -> list[float]:
    """Return the time at which each token arrived."""
    found = []
    async for event in process.generate(asked):
        if isinstance(event, Token):
            found.append(time.perf_counter())
        assert isinstance(event, Done) or "message" not in vars(event), event
    return found


async def together(process: ModelProcess, n: int, round_: int) -> float:
    """Return tokens per second of `n` chats at once, while all of them are decoding."""
    chats = await asyncio.gather(*(times(process, request(f"{round_} {k}", f"Chat {k}.", N_TOKENS)) for k in range(n)))
    begin, end = max(arrivals[0] for arrivals in chats), min(arrivals[-1] for arrivals in chats)
    return sum(sum(begin < at <= end for at in arrivals) for arrivals in chats) / (end - begin)


async def disturbed(process: ModelProcess, round_: int) -> tuple[float, float, float, float]:
    """Return four times in seconds, with and without a prompt with an image beside a running answer.

    They are the p95 between the answer's tokens, alone and beside the prompt, and the time to the prompt's first token,
    alone and beside the answer.
    """
    start = time.perf_counter()
    first_alone = (await times(process, request(f"lone {round_}", QUESTION, 1, picture(2 * round_))))[0] - start
    calm, gaps, first = [], [], 0.0
    running = process.generate(request(f"running {round_}", "Write.", N_RUNNING))
    last, arrived, done_at = None, None, None
    newcomer: asyncio.Task[list[float]] | None = None
    async for event in running:
        now = time.perf_counter()
        if isinstance(event, Token):
            if last is not None:
                (calm if arrived is None else gaps if done_at is None else []).append(now - last)
            last = now
            if len(calm) == 40 and newcomer is None:
                arrived = now
                asked = request(f"newcomer {round_}", QUESTION, 1, picture(2 * round_ + 1))
                newcomer = asyncio.create_task(times(process, asked))
            if newcomer is not None and newcomer.done() and done_at is None:
                done_at = now
    assert newcomer is not None and arrived is not None, "the running answer ended too early"
    first = (await newcomer)[0] - arrived
    return float(np.quantile(calm, 0.95)), float(np.quantile(gaps, 0.95)), first_alone, first


@contextlib.contextmanager
def binding(gguf: Path) -> Iterator[None]:
    """Run llama-cpp-python's own server, which processes one request at a time."""
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(PORT), "--n_ctx", "2048"]
    command += ["--interrupt_requests", "False"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=5).read()
                break
            if process.poll() is not None:
                raise SystemExit("llama-cpp-python's server does not start: pip install 'llama-cpp-python[server]'")
            time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def binding_together(n: int) -> float:
    """Return tokens per second of `n` clients at once, from the first request to the last answer."""

    def client(index: int) -> int:
        body = {"prompt": f"Chat {index}.", "max_tokens": N_TOKENS, "temperature": 1.0, "seed": 1}
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/completions", json.dumps(body).encode(), headers)
        return int(json.load(urllib.request.urlopen(asked, timeout=600))["usage"]["completion_tokens"])

    start = time.perf_counter()
    with ThreadPoolExecutor(n) as pool:
        return sum(pool.map(client, range(n))) / (time.perf_counter() - start)


async def whole(process: ModelProcess, n: int, round_: int) -> float:
    """Return tokens per second of `n` chats, timed as in `binding_together`."""
    start = time.perf_counter()
    asked = (request(f"whole {round_} {k}", f"Chat {k}.", N_TOKENS) for k in range(n))
    return sum(map(len, await asyncio.gather(*(times(process, one) for one in asked)))) / (time.perf_counter() - start)


async def measure(bundle: Path, rounds: int, *, with_binding: bool) -> None:
    """Print the figures."""
    process = ModelProcess(Settings(ctx_size=8192, parallel=8), bundle)
    await process.start()
    try:
        await process.ready()
        await times(process, request("warm", QUESTION, 8, picture(10**6)))
        one, eight, ours, theirs, delays = [], [], [], [], []
        for index in range(rounds):
            one.append(await together(process, 1, index))
            eight.append(await together(process, 8, 1000 + index))
            delays.append(await disturbed(process, index))
            if with_binding:
                ours.append(await whole(process, 8, index))
                with binding(bundle / "decoder.gguf"):
                    await asyncio.to_thread(binding_together, 1)
                    theirs.append(await asyncio.to_thread(binding_together, 8))
    finally:
        await process.close()
    a, b = statistics.median(one), statistics.median(eight)
    print(f"1 chat {a:.1f} tokens/s, 8 chats {b:.1f}: {b / a:.2f} times")
    calm, gap, alone, beside = (statistics.median(column) for column in zip(*delays, strict=True))
    print(
        f"p95 between tokens {calm * 1e3:.0f} ms, beside a prompt with an image {gap * 1e3:.0f}: {gap / calm:.1f} times"
    )
    print(f"first token of that prompt after {alone:.2f} s alone, {beside:.2f} s beside it: {beside / alone:.2f} times")
    if theirs:
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"8 clients, prefill included: {a:.1f} tokens/s, llama-cpp-python's server {b:.1f}: {a / b:.2f} times")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binding", action="store_true")
    arguments = parser.parse_args()
    bundle = bundle_of(arguments.work, arguments.vocabulary)
    asyncio.run(measure(bundle, arguments.rounds, with_binding=arguments.binding))


if __name__ == "__main__":
    main()

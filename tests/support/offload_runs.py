"""The demo model partly on stand-ins for graphics cards (native/stand_in.cpp); run in a process of its own.

    python tests/support/offload_runs.py LIBRARY BUNDLE N_PROMPTS    answers with every number of layers, as JSON
    python tests/support/offload_runs.py LIBRARY BUNDLE fail         a device that fails during an answer, as JSON

ggml keeps what is registered for the life of the process, so that this must not happen in the tests' own.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from bimedix_edge.decoder.llama import backend_faults, ggml
from bimedix_edge.engine.embeddings import EmbeddingCache
from bimedix_edge.engine.request import GenerationOptions
from bimedix_edge.errors import DeviceError, HardwareError
from bimedix_edge.events import Done, Token
from bimedix_edge.imaging.picture import load_picture
from bimedix_edge.prompt import render
from bimedix_edge.runtime import Runtime
from bimedix_edge.sampling import Sampling
from bimedix_edge.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden.prompts import Prompt, prompts

_GREEDY = Sampling(temperature=0.0)
_EMBEDDINGS = EmbeddingCache()


def registered(path: str, n_devices: int) -> ctypes.CDLL:
    backend_faults()  # from now on ggml's log is ours
    library = ctypes.CDLL(path)
    library.stand_in_devices(n_devices)
    library.stand_in_peak.restype = ctypes.c_size_t
    assert ggml("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)(path.encode())
    return library


def opened(bundle: str, **options: Any) -> Runtime:
    settings = Settings(ctx_size=1024, temperature=0.0, fit_target=0, **options)
    runtime = Runtime.open(Path(bundle), settings=settings)
    runtime.engine.embeddings.memory = _EMBEDDINGS
    return runtime


def answer(runtime: Runtime, prompt: Prompt) -> str:
    images = [runtime.engine.prompt_image(load_picture(picture)) for picture in prompt.pictures]
    items = runtime.engine.items(render(prompt.messages, runtime.manifest.prompt), images)
    session = runtime.engine.session()
    events = list(runtime.engine.generate(session, items, GenerationOptions(_GREEDY, max_tokens=24)))
    runtime.engine.release(session)
    done = events[-1]
    assert isinstance(done, Done)
    return done.text


def runs(library: ctypes.CDLL, bundle: str, n_prompts: int) -> list[dict[str, Any]]:
    found = []
    asked = list(prompts())[:: max(1, 100 // n_prompts)][:n_prompts]
    counts = (ctypes.c_longlong * 4)()
    for kernels, devices, n_layers in itertools.product(("auto", "off"), ("StandIn0", "StandIn0,StandIn1"), range(6)):
        with opened(bundle, kernels=kernels, device=devices, gpu_layers=n_layers) as runtime:
            library.stand_in_counts(counts)
            answers = [answer(runtime, prompt) for prompt in asked]
            library.stand_in_counts(counts)
            use = {use.name: use.need_bytes for use in runtime.plan.devices}
            found.append(
                {
                    "kernels": kernels,
                    "devices": devices,
                    "layers": n_layers,
                    "answers": answers,
                    "products": counts[2],
                    "copied": counts[3],
                    "need": use,
                    "peak": {name: library.stand_in_peak(int(name[-1])) for name in use},
                }
            )
        for index in range(2):
            library.stand_in_memory(index, ctypes.c_size_t(64 << 30), ctypes.c_size_t(0))
    return found


def failing(library: ctypes.CDLL, bundle: str) -> dict[str, Any]:
    """A conversation whose device fails in its second answer, and goes on with the CPU."""
    found: dict[str, Any] = {}
    with opened(bundle, gpu_layers=3) as runtime, runtime.chat(max_tokens=24) as chat:
        found["first"] = "".join(event.text for event in chat.ask("Hello, who are you?") if isinstance(event, Token))
        text = ""
        try:
            for event in chat.ask("What do you know?"):
                if isinstance(event, Token):
                    text += event.text
                    library.stand_in_fail_after(0)
        except DeviceError as error:
            found |= {"error": str(error), "exit_code": error.exit_code}
        found |= {"text": text, "kept": chat.turns[-1].answer, "interrupted": chat.turns[-1].interrupted}
        runtime.leave_gpu(chat)
        found["line"] = runtime.plan.line
        found["again"] = next(event.text for event in chat.regenerate(sampling=_GREEDY) if isinstance(event, Done))
        found["turns"] = len(chat.turns)
    library.stand_in_fail_after(-1)
    with opened(bundle, gpu_layers=0) as runtime, runtime.chat(max_tokens=24) as chat:
        list(chat.ask("Hello, who are you?"))
        found["expected"] = next(event.text for event in chat.ask("What do you know?") if isinstance(event, Done))
    # what is free says one thing, the allocation another
    library.stand_in_memory(0, ctypes.c_size_t(64 << 30), ctypes.c_size_t(0))
    try:
        library.stand_in_refuse(1)
        opened(bundle, gpu_layers=3).close()
    except HardwareError as error:
        found["no_memory"] = str(error)
    return found


def main(path: str, bundle: str, what: str) -> None:
    library = registered(path, 2)
    print(json.dumps(failing(library, bundle) if what == "fail" else runs(library, bundle, int(what))))


if __name__ == "__main__":
    main(*sys.argv[1:])

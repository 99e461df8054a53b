"""The peak of a process's memory beside the estimate; run in a process of its own.

    python tests/support/measured_peak.py BUNDLE IMAGE CTX_SIZE KV_TYPE KERNELS      a bundle, a full context
    python tests/support/measured_peak.py GGUF - CTX_SIZE KV_TYPE KERNELS SHAPE      a decoder of random weights alone

The peak is VmHWM: resident memory at its largest, mapped files included. The program prints one JSON object:
`peak_bytes`, `estimate_bytes`, and the `parts` of the estimate.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

from bimedix_edge.bundle import DecoderSpec
from bimedix_edge.cli.commands import ask  # noqa: F401  what the command imports counts, too
from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.decoder.llama import repacks
from bimedix_edge.decoder.placement import Placement
from bimedix_edge.planning.memory import HostNeed, Load, host_need, read_facts
from bimedix_edge.runtime import Runtime
from bimedix_edge.sampling import Sampling
from bimedix_edge.settings import Settings

# tokens that a large model evaluates; the rest of its context is resident, since it was cleared
MOST_READ = 1024


def peak_bytes() -> int:
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def of_bundle(bundle: Path, image: str, n_ctx: int, kv_type: str, kernels: str) -> HostNeed:
    settings = Settings(ctx_size=n_ctx, kv_type=kv_type, kernels=kernels, temperature=0.0, gpu_layers=0)
    with Runtime.open(bundle, settings=settings) as runtime:
        with runtime.chat(max_tokens=4) as chat:
            list(chat.ask("Is there a nodule?", [image]))
        decoder = runtime.engine.decoder
        for start in range(0, decoder.n_ctx, decoder.n_batch):
            decoder.evaluate_tokens(0, start, [10 + token % 1000 for token in range(decoder.n_batch)])
        assert runtime.plan.load.n_ctx == n_ctx
        return runtime.plan.host


def of_decoder(path: Path, n_ctx: int, kv_type: str, kernels: str, shape: str) -> HostNeed:
    from bimedix_edge.converters.synthetic.config import SHAPES

    known = SHAPES[shape]
    heads = (known.n_head, known.n_head_kv, known.head_dim or known.n_embd // known.n_head)
    spec = DecoderSpec("llama", "", known.n_layer, known.n_embd, *heads, known.n_vocab, 131072)
    load, placement = Load(n_ctx, min(512, n_ctx), 8), Placement(kv_type=kv_type)
    facts = read_facts(path, spec)
    sizes = {"n_ctx": n_ctx, "n_batch": load.n_batch, "n_seq_max": load.n_seq_max}
    with Decoder(path, spec, **sizes, n_threads=2, kernels=kernels, placement=placement) as decoder:
        for start in range(0, min(n_ctx, MOST_READ), load.n_batch):
            decoder.evaluate_tokens(0, start, [10 + token % 1000 for token in range(load.n_batch)])
        ours = decoder.kernels.name is not None
        assert decoder.sample(decoder.sampler(Sampling(temperature=0.0))) >= 0
    return host_need(facts, load, placement, kernels=ours, repacks=repacks(kernels=ours))


def main(model: str, image: str, n_ctx: str, kv_type: str, kernels: str, shape: str = "") -> None:
    if shape:
        need = of_decoder(Path(model), int(n_ctx), kv_type, kernels, shape)
    else:
        need = of_bundle(Path(model), image, int(n_ctx), kv_type, kernels)
    print(json.dumps({"peak_bytes": peak_bytes(), "estimate_bytes": need.total, "parts": asdict(need)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Our conversion against llama.cpp's converter and quantizer, on one 8B-shaped checkpoint, in one run.

    python -m bimedix_edge.converters.synthetic.checkpoint --shape 8b --shards 4 \\
        --vocabulary ggml-vocab-llama-bpe.gguf CHECKPOINT
    python tests/bench/bench_convert.py CHECKPOINT WORK --llama-cpp DIR

DIR is `vendor/llama.cpp` of the source distribution of llama-cpp-python 0.3.36; its converter needs torch, transformers
and sentencepiece. That converter refuses LLaVA checkpoints. It gets the decoder alone, as a `LlamaForCausalLM` of the
same tensors (shards that hold nothing else are linked), so it does less work than ours, which converts the tower too.

WORK takes 35 GB and must be on the checkpoint's file system. The script needs Linux. As root, it drops the page cache
before their converter and before each of our runs, and limits ours to 2 GiB by a memory cgroup, cached pages included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from bimedix_edge.converters.decoder.quantize import RowSource, n_threads, quantized_rows
from bimedix_edge.converters.source.safetensors_file import SafetensorsFile

LIMIT_BYTES = 2 << 30
CGROUP = Path("/sys/fs/cgroup/memory/bimedix-edge-bench")
OURS = """
import sys
from pathlib import Path
from bimedix_edge.converters.convert import ConvertOptions, convert
options = ConvertOptions(file_type=sys.argv[3], vision="auto", fresh=True)
convert(Path(sys.argv[1]), Path(sys.argv[2]), options)
"""
THEIRS = """
import os, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), len(os.sched_getaffinity(0))
assert llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params) == 0
os.fsync(os.open(sys.argv[2], os.O_RDONLY))
"""
FTYPES = {"Q4_K_M": 15, "Q8_0": 7, "Q4_0": 2}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--types", default=",".join(FTYPES))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    types = given.types.split(",")
    say("floors", floors(given.work))
    measured = {types[0]: ours(given.checkpoint, given.work, types[0])}
    convert = their_conversion(given.checkpoint, given.work, given.llama_cpp)
    for kind in types:
        quantize = their_quantizing(given.work, kind)
        if kind not in measured:
            measured[kind] = ours(given.checkpoint, given.work, kind)
        ratio = measured[kind]["wall_s"] / (convert["wall_s"] + quantize["wall_s"])
        say(f"{kind} of llama.cpp", {"wall": round(ratio, 3)})


def floors(work: Path) -> dict[str, float]:
    """Measure ggml's quantizer on all cores, and the disk."""
    values = np.random.default_rng(0).standard_normal((256, 4096), np.float32) * np.float32(0.02)
    found = {}
    with ThreadPoolExecutor(n_threads()) as pool:
        for name in ("Q4_K", "Q6_K", "Q8_0", "Q4_0"):
            kind, n = GGMLQuantizationType[name], 0
            start = time.perf_counter()
            while (seconds := time.perf_counter() - start) < 3:
                list(pool.map(lambda _: quantized_rows(RowSource("x", kind, lambda a, b: values), 0, 256), range(8)))  # noqa: B023
                n += 8 * values.size
            found[f"{name}_Mweights_per_s"] = round(n / seconds / 1e6, 1)
    block = os.urandom(1 << 24)
    start = time.perf_counter()
    with (work / "disk").open("wb", buffering=0) as file:
        for _ in range(128):
            file.write(block)
        os.fsync(file.fileno())
    found["write_MB_per_s"] = round(128 * len(block) / (time.perf_counter() - start) / 1e6)
    drop_caches()
    start = time.perf_counter()
    with (work / "disk").open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    found["read_MB_per_s"] = round(128 * len(block) / (time.perf_counter() - start) / 1e6)
    (work / "disk").unlink()
    return found


def their_conversion(checkpoint: Path, work: Path, llama_cpp: Path) -> dict[str, float]:
    if not (work / "plain").exists():
        make_plain(checkpoint, work / "plain")
    drop_caches()
    # bf16 is the source's own type, so their converter copies the tensors without computing
    command = [
        llama_cpp / "convert_hf_to_gguf.py",
        work / "plain",
        "--outtype",
        "bf16",
        "--outfile",
        work / "bf16.gguf",
    ]
    found = measure([sys.executable, *command])
    say("llama.cpp convert", found)
    return found


def their_quantizing(work: Path, kind: str) -> dict[str, float]:
    result = work / f"theirs-{kind}.gguf"
    found = measure([sys.executable, "-c", THEIRS, work / "bf16.gguf", result, str(FTYPES[kind])])
    say(f"llama.cpp quantize {kind}", {**found, "bytes": result.stat().st_size})
    result.unlink()
    return found


def ours(checkpoint: Path, work: Path, kind: str) -> dict[str, float]:
    target = work / f"ours-{kind}"
    shutil.rmtree(target, ignore_errors=True)
    drop_caches()
    with memory_limit() as (join, report):
        found = {**measure([sys.executable, "-c", OURS, checkpoint, target, kind], join), **report()}
    size = sum(path.stat().st_size for path in target.iterdir())
    say(f"ours {kind}", {**found, "bytes": size})
    shutil.rmtree(target)
    return found


def make_plain(checkpoint: Path, plain: Path) -> None:
    """Write the decoder of a checkpoint in LLaVA's names as a plain Llama checkpoint."""
    plain.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    config = {
        name: value for name, value in config.items() if not name.startswith("mm_") and name != "image_aspect_ratio"
    }
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    (plain / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, plain)
    weight_map = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        file = SafetensorsFile(path)
        kept = [name for name in file.entries if "vision_tower" not in name and "mm_projector" not in name]
        if len(kept) == len(file.entries):
            os.link(path, plain / path.name)
        elif kept:
            copy_tensors(file, kept, plain / path.name)
        weight_map |= dict.fromkeys(kept, path.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))


def copy_tensors(file: SafetensorsFile, names: list[str], target: Path) -> None:
    header: dict[str, Any] = {}
    position = 0
    for name in names:
        entry = file.entries[name]
        stop = position + entry.size_bytes
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            out.write(np.ascontiguousarray(file.array(name)).reshape(-1).view(np.uint8).data)


def measure(command: list[Any], join: Any = None) -> dict[str, float]:
    """Run a command and return its wall time, its processor time, and the peak of its anonymous memory."""
    before = os.times()
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=join,  # noqa: PLW1509  no thread runs yet
    )
    assert process.stderr is not None
    peak = 0
    with ThreadPoolExecutor(1) as pool:
        errors = pool.submit(process.stderr.read)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
        text = errors.result().decode()
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}: {text[-2000:]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": round(seconds, 1), "cpu_s": round(cpu, 1), "rss_anon_MiB": round(peak / (1 << 20))}


def anonymous_bytes(pid: int) -> int:
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def memory_limit() -> Iterator[tuple[Callable[[], object] | None, Callable[[], dict[str, int]]]]:
    """Limit the memory of a child, cached pages included; yield what lets it join, and what reports its use."""
    try:
        CGROUP.mkdir(exist_ok=True)
        (CGROUP / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError:
        yield None, dict
        return

    def report() -> dict[str, int]:
        peak, reclaims = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max_usage_in_bytes", "failcnt"))
        return {"limit_MiB": LIMIT_BYTES >> 20, "peak_with_cache_MiB": peak >> 20, "reclaims": reclaims}

    try:
        yield lambda: (CGROUP / "cgroup.procs").write_text(str(os.getpid())), report
    finally:
        (CGROUP / "memory.force_empty").write_text("0")
        CGROUP.rmdir()


def drop_caches() -> None:
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def say(what: str, values: dict[str, Any]) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


if __name__ == "__main__":
    main()

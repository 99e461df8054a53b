"""The image encoder against llama.cpp's CLIP with the same random weights, in turn, in one run.

    python tests/bench/bench_vision.py WORK [--rounds 10] [--threads 2] [--kernels auto --kernels off] [--float32]
    python tests/bench/bench_vision.py WORK --overlap [--rounds 5]

WORK is a directory for 1.8 GB, kept for the next run: a checkpoint in the shape of ViT-L/14-336 with a projector to
4,096 (`converters/synthetic/checkpoint.py`), the int8 bundle of it, with `--float32` another bundle, and an mmproj GGUF
in F16 for llama.cpp. Each side gets the same picture of 336 x 336 pixels, so that neither resizes it, and returns 576
tokens; its time includes the normalization of the pixels. Figures are medians over the rounds, and their ratios to the
first side. `--kernels` is the setting of that name: it chooses our kernels for int8.

llama.cpp's graph places CLS last and shifts the positions. Its token j is therefore compared with our token j + 1, to
show that both sides have the same weights; ours are compared with `converters/check/reference.py` in float32.

`--overlap` measures whether to encode an image during the prefill of the previous one. It prefills 576 positions
through a decoder in the 1B's shape, Q4_K_M with random weights (0.8 GB more in WORK), and encodes an image, one after
the other and side by side.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from llama_cpp import llama_cpp, mtmd_cpp
from numpy.typing import NDArray

from bimedix_edge.bundle import open_bundle
from bimedix_edge.converters.check.parity import cosines
from bimedix_edge.converters.check.reference import image_embeds
from bimedix_edge.converters.convert import ConvertOptions, convert
from bimedix_edge.converters.decoder.quantize import file_type_named
from bimedix_edge.converters.source.checkpoint import Checkpoint
from bimedix_edge.converters.synthetic.checkpoint import generate
from bimedix_edge.converters.synthetic.config import SHAPES, Shape
from bimedix_edge.converters.synthetic.decoder import write_random_decoder
from bimedix_edge.decoder.batches import Run
from bimedix_edge.decoder.decoder import Decoder
from bimedix_edge.decoder.placement import DecoderOptions
from bimedix_edge.imaging.preprocess import preprocess
from bimedix_edge.vision.encoder import EncoderFile, VisionEncoder
from bimedix_edge.vision.providers import AUTO

# the published tower and projector above a decoder that is as small as its width allows
VIT_L = {key: value for key, value in vars(SHAPES["8b"]).items() if key.startswith(("vision_", "image_", "patch_"))}
SHAPE = Shape(n_embd=4096, n_ff=256, n_layer=1, n_head=32, n_head_kv=8, **VIT_L)
TOP = {
    "v.class_embd": "vision.embeddings.class_embedding",
    "v.patch_embd.weight": "vision.embeddings.patch_embedding.weight",
    "v.position_embd.weight": "vision.embeddings.position_embedding.weight",
    "v.pre_ln": "vision.pre_layrnorm",
    "mm.0": "projector.0",
    "mm.2": "projector.2",
}
IN_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
PREFILL_STEP = 128
Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def mmproj_tensors(n_blocks: int) -> Iterator[tuple[str, str]]:
    """Yield llama.cpp's name of each tensor and ours."""
    for name, source in TOP.items():
        if "embd" in name:
            yield name, source
        else:
            yield from ((f"{name}.{part}", f"{source}.{part}") for part in ("weight", "bias"))
    for block in range(n_blocks):
        for name, source in IN_BLOCK.items():
            for part in ("weight", "bias"):
                yield f"v.blk.{block}.{name}.{part}", f"vision.encoder.layers.{block}.{source}.{part}"


def write_mmproj(path: Path, checkpoint: Checkpoint) -> None:
    """Write the tower and the projector as llama.cpp's own converter would: matrices F16, the rest F32."""
    config, n_blocks = checkpoint.config.vision, checkpoint.config.n_blocks
    writer = GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)
    # llama.cpp runs one block less than block_count
    numbers = {
        "image_size": config.preprocessing.image_size_px,
        "patch_size": config.patch_px,
        "embedding_length": config.n_embd,
        "feed_forward_length": SHAPE.vision_ff,
        "projection_dim": checkpoint.config.decoder.n_embd,
        "block_count": n_blocks + 1,
        "attention.head_count": config.n_head,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", config.layer_norm_eps)
    writer.add_array("clip.vision.image_mean", list(config.preprocessing.mean))
    writer.add_array("clip.vision.image_std", list(config.preprocessing.std))
    writer.add_file_type(1)
    for name, source in mmproj_tensors(n_blocks + 1):
        values = checkpoint.rows(source, slice(None))
        is_matrix = values.ndim > 1 and "position" not in name
        kind = GGMLQuantizationType.F16 if is_matrix else GGMLQuantizationType.F32
        writer.add_tensor(name, values.astype(np.float16 if is_matrix else np.float32), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaClip:
    """llama.cpp's CLIP through mtmd."""

    def __init__(self, mmproj: Path, decoder: Path, n_threads: int) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        mtmd_cpp.mtmd_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(bytes(decoder), parameters)
        options = mtmd_cpp.mtmd_context_params_default()
        options.use_gpu, options.print_timings, options.n_threads, options.warmup = False, False, n_threads, True
        self._context = mtmd_cpp.mtmd_init_from_file(bytes(mmproj), self._model, options)
        if not self._context:
            sys.exit("llama.cpp refuses the mmproj file")

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (n_tokens, n_embd) of an image, timed with mtmd_tokenize, which prepares the pixels."""
        m = mtmd_cpp
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = m.mtmd_bitmap_init(width, height, data)
        marker = m.mtmd_default_marker()
        text = m.mtmd_input_text(marker, len(marker), False, True)
        chunks = m.mtmd_input_chunks_init()
        bitmaps = (m.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if m.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1) != 0:
            sys.exit("llama.cpp does not tokenize the image")
        places = (m.mtmd_input_chunks_get(chunks, index) for index in range(m.mtmd_input_chunks_size(chunks)))
        (chunk,) = [at for at in places if m.mtmd_input_chunk_get_type(at) == m.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        n_tokens = m.mtmd_input_chunk_get_n_tokens(chunk)
        if m.mtmd_encode_chunk(self._context, chunk) != 0:
            sys.exit("llama.cpp does not encode the image")
        found = np.ctypeslib.as_array(m.mtmd_get_output_embd(self._context), (n_tokens, SHAPE.n_embd)).copy()
        m.mtmd_input_chunks_free(chunks)
        m.mtmd_bitmap_free(bitmap)
        return found


def prepared(work: Path, *, float32: bool) -> dict[str, Path]:
    """Return the files; write those that WORK lacks."""
    work.mkdir(parents=True, exist_ok=True)
    source, mmproj = work / "checkpoint", work / "mmproj.gguf"
    if not source.exists():
        generate(source, SHAPE)
    if not mmproj.exists():
        write_mmproj(mmproj, Checkpoint(source))
    found = {"checkpoint": source, "mmproj": mmproj}
    for kind in ("int8", *(["float32"] if float32 else [])):
        found[kind] = work / kind
        if not found[kind].exists():
            convert(source, found[kind], ConvertOptions(file_type="Q8_0", vision=kind))  # type: ignore[arg-type]
    return found


def ours(directory: Path, n_threads: int, kernels: str = AUTO) -> Encode:
    bundle = open_bundle(directory)
    encoder = VisionEncoder(EncoderFile.of(bundle), n_threads, kernels=kernels)
    print(f"{directory.name}, kernels {kernels}: {encoder.kernels.name or 'of ONNX Runtime'}, {encoder.kernels.reason}")
    return lambda pixels: encoder.encode([pixels])[0]


def measure(sides: dict[str, Encode], pixels: NDArray[np.uint8], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side's rounds, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):
        for name, encode in sides.items():
            start_s = time.perf_counter()
            encode(pixels)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start_s)
    return seconds


def measure_overlap(work: Path, encode: Encode, pixels: NDArray[np.uint8], rounds: int, n_threads: int) -> None:
    path = work / "decoder-1b.gguf"
    path.unlink(missing_ok=True)
    spec = write_random_decoder(path, "1b", file_type_named("Q4_K_M"), lambda *_: None)
    rows = np.random.default_rng(1).standard_normal((576, spec.n_embd)).astype(np.float32) * np.float32(0.02)
    seconds: dict[str, list[float]] = {"one after the other": [], "side by side": []}
    with (
        Decoder(path, spec, DecoderOptions(n_ctx=1024, n_seq_max=1, n_batch=512, n_threads=n_threads)) as decoder,
        ThreadPoolExecutor(1) as pool,
    ):

        def read() -> None:
            for start in range(0, len(rows), PREFILL_STEP):
                part = Run(0, start, rows[start : start + PREFILL_STEP], wants_logits=False)
                decoder.evaluate([part], lambda: False)
            decoder.truncate(0, 0)

        for turn in range(-1, rounds):
            for name, taken in seconds.items():
                start_s = time.perf_counter()
                if name == "side by side":
                    encoded = pool.submit(encode, pixels)
                    read()
                    encoded.result()
                else:
                    read()
                    encode(pixels)
                if turn >= 0:
                    taken.append(time.perf_counter() - start_s)
    path.unlink()
    for name, taken in seconds.items():
        print(f"{name:24}{statistics.median(taken):10.3f} s, least {min(taken):.3f}")


def report(sides: dict[str, Encode], seconds: dict[str, list[float]], expected: Any, pixels: NDArray[np.uint8]) -> None:
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    fastest = median[next(iter(sides))]
    print(f"{'encoder':24}{'median s':>10}{'least s':>9}{'ratio':>9}  lowest and mean cosine of a token to float32")
    for name, encode in sides.items():
        found = encode(pixels)
        # token j of llama.cpp is our token j + 1
        pairs = (found[:-1], expected[1:]) if name.startswith("llama.cpp") else (found, expected)
        near = cosines(*pairs)
        ratio = f"{median[name] / fastest:8.2f}x"
        print(f"{name:24}{median[name]:10.3f}{min(seconds[name]):9.3f}{ratio}  {near.min():.6f} {near.mean():.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", action="append", help="our int8 kernels, one side each; ratios are to the first")
    parser.add_argument("--float32", action="store_true", help="measure our encoder in float32, too; 1.3 GB more")
    parser.add_argument("--overlap", action="store_true", help="measure an image encoder beside a prefill")
    options = parser.parse_args()
    files = prepared(options.work, float32=options.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (SHAPE.image_px, SHAPE.image_px, 3), dtype=np.uint8)
    if options.overlap:
        encode = ours(files["int8"], options.threads)
        measure_overlap(options.work, encode, pixels, options.rounds, options.threads)
        return
    checkpoint = Checkpoint(files["checkpoint"])
    values = preprocess(pixels, checkpoint.config.vision.preprocessing)
    expected = image_embeds(checkpoint, values, np.float32)[0]
    sides = {f"int8, {name}": ours(files["int8"], options.threads, name) for name in options.kernels or [AUTO]}
    if options.float32:
        sides["float32"] = ours(files["float32"], options.threads)
    sides["llama.cpp's CLIP, F16"] = LlamaClip(files["mmproj"], files["int8"] / "decoder.gguf", options.threads).encode
    print(f"ViT-L/14-336 with projector, {options.threads} threads, {options.rounds} rounds in turn")
    report(sides, measure(sides, pixels, options.rounds), expected, pixels)


if __name__ == "__main__":
    main()

"""LoRA adapters merged while the weights are read: W + scale · B · A, row block by row block, before anything else.

A PEFT directory holds `adapter_config.json` and `adapter_model.safetensors`. Its tensors are called as the modules were
in training, `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`, in any of the three layouts of `naming`;
a text adapter of the bare Llama fits too. The product is computed in float64 and rounded once, so that it does not
depend on the number of rows per call. Tensors without `lora_` are PEFT's `modules_to_save`: they replace the
checkpoint's own. PEFT's other options, which change the arithmetic, are refused by name.

Source: peft 0.21 `tuners/lora/layer.py` (get_delta_weight), `utils/save_and_load.py` (names in the file).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bimedix_edge.converters.source.naming import canonical_name, detect_layout
from bimedix_edge.converters.source.safetensors_file import FLOAT_DTYPES, SafetensorsFile
from bimedix_edge.converters.source.strict_json import read_json
from bimedix_edge.errors import CheckpointError

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "read_adapter"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_LISTED = 8
_PREFIX = "base_model.model."
_PAIR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
# with each of these, the model computes something other than W + scale · B · A
_REFUSED = (
    "use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication", "use_qalora",
    "trainable_token_indices", "target_parameters", "arrow_config", "alora_invocation_tokens", "megatron_config",
    "corda_config", "loftq_config",
)  # fmt: skip
# the others, PiSSA for instance, change the base weights before training
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Pair:
    """One module's matrices as views of the file, A (r, n_per_row) and B (n_rows, r), and their scale."""

    a: NDArray[Any]
    b: NDArray[Any]
    scale: float


class Adapter:
    """An adapter that fits a checkpoint.

    Args:
        file: Its tensors.
        pairs: Canonical name of a weight to its matrices.
        saved: Canonical name of a weight that it replaces to the name in the file.
    """

    def __init__(self, file: SafetensorsFile, pairs: dict[str, _Pair], saved: dict[str, str]) -> None:
        self.file = file
        self.saved = saved
        self._pairs = pairs

    @property
    def names(self) -> list[str]:
        """Return the canonical names of the weights it changes, sorted."""
        return sorted({*self._pairs, *self.saved})

    def merged(self, name: str, select: slice | NDArray[np.intp], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows of a weight with the adapter merged in, or unchanged if the adapter does not change this weight.

        Args:
            name: Canonical name.
            select: The rows, as for `Checkpoint.rows`.
            values: These rows of the checkpoint, float32 (n, n_per_row).
        """
        pair = self._pairs.get(name)
        if pair is None:
            return values
        product: NDArray[np.float64] = pair.b[select].astype(np.float64) @ (pair.a.astype(np.float64) * pair.scale)
        product += values
        return product.astype(np.float32)


def read_adapter(directory: Path, layout: str, shapes: Shapes) -> Adapter:
    """Read a PEFT directory and check that all of it fits a checkpoint.

    Args:
        directory: Directory with adapter_config.json and adapter_model.safetensors.
        layout: Layout of the checkpoint, for an adapter whose names do not reveal its own.
        shapes: Canonical name to shape of every weight that conversion can use.

    Raises:
        CheckpointError: The adapter is not a LoRA, uses an unsupported option, or has tensors that match no weight;
            the error names them.
    """
    rank, scale = _read_config(directory)
    file = _open_weights(directory)
    bare = {name: name.removeprefix(_PREFIX) for name in file.entries}
    own_layout = detect_layout(bare.values()) or layout
    halves: dict[tuple[str, str], str] = {}
    saved: dict[str, str] = {}
    faults = []
    for name, short in bare.items():
        pair = _PAIR.fullmatch(short)
        target = f"{pair[1]}.weight" if pair else short
        canonical = canonical_name(target, own_layout)
        if canonical not in shapes or canonical is None:
            faults.append(f"{name[:120]} matches nothing")
        elif file.entries[name].dtype not in FLOAT_DTYPES:
            faults.append(f"{name[:120]} is {file.entries[name].dtype}")
        elif pair:
            halves[canonical, pair[2]] = name
        else:
            saved[canonical] = name
    faults += _misfits(file, halves, saved, shapes, rank)
    if faults or not (halves or saved):
        shown = "; ".join(faults[:_MAX_LISTED]) or "it has no tensors"
        more = f"; and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
        raise CheckpointError(
            f"The adapter does not fit this checkpoint: {shown}{more}. Give the adapter that was trained on this model."
        )
    pairs = {name: _pair(file, halves, name, scale) for name in dict.fromkeys(name for name, _ in halves)}
    return Adapter(file, pairs, saved)


def _read_config(directory: Path) -> tuple[int, float]:
    """Return the rank and the scale; refuse options beyond plain LoRA."""
    fields = read_json(directory / CONFIG, _MAX_CONFIG_BYTES)
    fields.choice("peft_type", ("LORA",))
    fields.choice("bias", ("none",), "none")
    for option in _REFUSED:
        if fields.raw(option) not in (None, False, 0, [], {}, ""):
            raise CheckpointError(
                f"{CONFIG} has {option}, which this converter does not support. "
                "Merge the adapter with peft and give the merged checkpoint."
            )
    start = fields.raw("init_lora_weights")
    if start is not None and start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{CONFIG} has init_lora_weights {str(start)[:40]!r}, which changes the published weights before training. "
            "Merge the adapter with peft and give the merged checkpoint."
        )
    rank, alpha = fields.integer("r", high=1 << 12), fields.number("lora_alpha", 8.0, high=1e6)
    return rank, alpha / (rank**0.5 if fields.flag("use_rslora", False) else rank)


def _open_weights(directory: Path) -> SafetensorsFile:
    # LLaVA's trainer puts the projector beside the adapter; without it, that part of training would silently be lost
    for name in ("non_lora_trainables.bin", "adapter_model.bin"):
        if (directory / name).exists() and (name != "adapter_model.bin" or not (directory / WEIGHTS).exists()):
            raise CheckpointError(
                f"{directory} has tensors in {name}, a pickle, which can run any program when it is opened. It was not "
                f"opened. Save all of the adapter's tensors in {WEIGHTS}."
            )
    return SafetensorsFile(directory / WEIGHTS)


def _misfits(
    file: SafetensorsFile, halves: dict[tuple[str, str], str], saved: dict[str, str], shapes: Shapes, rank: int
) -> Iterator[str]:
    for (target, half), name in halves.items():
        if (target, "B" if half == "A" else "A") not in halves:
            yield f"{name[:120]} lacks its other half"
        elif target in saved:
            yield f"{name[:120]} and {saved[target][:120]} are for the same weight"
        wanted = (rank, shapes[target][-1]) if half == "A" else (shapes[target][0], rank)
        if len(shapes[target]) != 2 or file.entries[name].shape != wanted:
            yield f"{name[:120]} has the shape {list(file.entries[name].shape)} instead of {list(wanted)}"
    for target, name in saved.items():
        if file.entries[name].shape != shapes[target]:
            yield f"{name[:120]} has the shape {list(file.entries[name].shape)} instead of {list(shapes[target])}"


def _pair(file: SafetensorsFile, halves: dict[tuple[str, str], str], target: str, scale: float) -> _Pair:
    a, b = (file.array(halves[target, half]) for half in "AB")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise CheckpointError(
            f"The adapter's matrices for {target} have NaN or infinity. Train it again, or ask its authors."
        )
    return _Pair(a, b, scale)

"""The user's recipe: which tensors get another type than `quantize.tensor_type` would choose.

    [types]
    "blk.*.ffn_down.weight" = "Q6_K"
    "output.weight" = "Q8_0"

A pattern is a tensor's name in the GGUF with `*`, `?` and `[…]`. The first match counts; a tensor without a match keeps
its type. Norms and other vectors stay F32 and are not matched. A pattern that chooses no tensor is an error: it is
misspelt, or earlier patterns hide it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from bimedix_edge.converters.decoder.gguf import TensorSpec
from bimedix_edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["TENSOR_TYPES", "apply_recipe", "read_recipe"]

Type = GGMLQuantizationType
# the types that llama.cpp computes with and that are useful without an importance matrix
TENSOR_TYPES: dict[str, GGMLQuantizationType] = {
    kind.name: kind
    for kind in (
        Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q5_1, Type.Q5_0, Type.Q4_K, Type.Q4_1,
        Type.Q4_0, Type.IQ4_NL, Type.IQ4_XS, Type.Q3_K, Type.Q2_K,
    )
}  # fmt: skip
_MAX_RECIPE_BYTES = 1 << 20


def read_recipe(path: Path) -> dict[str, GGMLQuantizationType]:
    """Read a recipe.

    Args:
        path: TOML file with one table, `types`.

    Returns:
        Pattern to type, in the file's order.

    Raises:
        UsageError: The recipe cannot be read, does not parse, has another field, or names an unknown type.
    """
    try:
        if (size := path.stat().st_size) > _MAX_RECIPE_BYTES:
            raise UsageError(f"The recipe {path} has {size} bytes, more than {_MAX_RECIPE_BYTES}. Shorten it.")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The recipe {path} cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The recipe {path} is not valid TOML ({str(error)[:120]}). Correct it.") from error
    types = data.get("types")
    if data.keys() != {"types"} or not isinstance(types, dict) or not types:
        raise UsageError(f"The recipe {path} needs one table, [types], with patterns. See converters/README.md.")
    return {pattern: _type_named(value, pattern, path) for pattern, value in types.items()}


def apply_recipe(tensors: list[TensorSpec], recipe: dict[str, GGMLQuantizationType]) -> list[TensorSpec]:
    """Return the tensors with the recipe's types.

    Raises:
        UsageError: A pattern chooses no tensor, or a row is not a whole number of the type's blocks.
    """
    unused = dict.fromkeys(recipe)
    changed = []
    for tensor in tensors:
        pattern = next((pattern for pattern in recipe if _applies(pattern, tensor)), None)
        if pattern is not None:
            unused.pop(pattern, None)
            _check_row(tensor, recipe[pattern], pattern)
            changed.append(replace(tensor, kind=recipe[pattern]))
        else:
            changed.append(tensor)
    if unused:
        raise UsageError(
            f"Patterns of the recipe choose no tensor: {', '.join(map(repr, unused))[:200]} match no matrix, or only "
            "those of an earlier pattern. A matrix is called, for example, blk.0.ffn_down.weight. Correct the recipe."
        )
    return changed


def _type_named(value: object, pattern: str, path: Path) -> GGMLQuantizationType:
    if isinstance(value, str) and (kind := TENSOR_TYPES.get(value.upper())) is not None:
        return kind
    raise UsageError(
        f"The recipe {path} gives {pattern[:80]!r} the unknown type {str(value)[:40]!r}. "
        f"Choose one of {', '.join(TENSOR_TYPES)}."
    )


def _applies(pattern: str, tensor: TensorSpec) -> bool:
    return len(tensor.shape) == 2 and fnmatchcase(tensor.name, pattern)


def _check_row(tensor: TensorSpec, kind: GGMLQuantizationType, pattern: str) -> None:
    block = GGML_QUANT_SIZES[kind][0]
    if tensor.shape[-1] % block:
        raise UsageError(
            f"{kind.name} needs rows that are a multiple of {block}, but {tensor.name}, which {pattern[:80]!r} "
            f"chooses, has rows of {tensor.shape[-1]}. Choose another type for it."
        )

"""Settings: flag > environment (BIMEDIX_EDGE_*) > TOML file > default. Only this module reads the environment."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
import platformdirs
from msgspec import Meta

from bimedix_edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["APP", "OFF", "Settings", "load_settings", "terminal_reorders"]

APP = "bimedix-edge"
PREFIX = "BIMEDIX_EDGE_"
_CONFIG_VARIABLE = f"{PREFIX}CONFIG"
_MAX_CONFIG_BYTES = 1 << 16
_MAX_SHOWN = 40
OFF = "off"
_SIZE = re.compile(r"(\d{1,6})([MG])")
_UNITS = {"M": 1 << 20, "G": 1 << 30}
# an image of the 70B takes 19 MB
_MIN_IMAGE_CACHE = "64M"


def _one_of(*words: str) -> Meta:
    return Meta(pattern=rf"^(?:{'|'.join(words)})\Z", extra={"words": words})


@dataclass(frozen=True)
class Settings:
    """The user's settings; each field states its range or its choices.

    Attributes:
        model: Name of a bundle in the store, or its directory; None is the demo model if no other is installed.
        store_dir: Directory of the installed bundles.
        cache_dir: Directory of the converted demo model and of the image cache.
        ctx_size: Context length in tokens, image tokens included. `auto` is 4096, which BiMediX2 was trained with, or
            less where memory is short.
        allow_long_context: Whether `ctx_size` may exceed the context the model was trained with.
        gpu_layers: Number of layers to offload, the output layer first. `auto` offloads as many as fit.
        device: Names of the devices that may be used, as ggml names them, separated by commas; None allows all.
        fit_target: MiB to leave free on each device.
        kv_type: Type of the KV cache. `auto` is f16, or q8_0 where that lets more layers leave the CPU.
        kv_placement: Where the KV cache of an offloaded layer lies: on the GPU or in the machine's memory. `auto` is
            `gpu`.
        threads: Threads for matrix products; 0 means one for each core.
        kernels: Instruction set of our kernels for the decoder and for an int8 image encoder. `off` leaves the products
            to llama.cpp and ONNX Runtime.
        vision_device: Device of the image encoder. `auto` picks one that is present and suits the encoder's weights.
        image_cache: Disk space for image embeddings, such as `2G`; `off` keeps them in memory only.
        max_tokens: Maximum length of an answer in tokens.
        temperature, top_p, top_k, min_p, repeat_penalty: See `sampling.Sampling`; by default the authors' values.
        seed: Seed of the sampling; None draws a new one for each answer.
        parallel: Number of answers that the server decodes at once.
        queue: Number of requests that may wait for a slot; the server refuses more.
        bidi: Whether to reorder Arabic lines for the terminal.
    """

    model: str | None = None
    store_dir: Path = Path(platformdirs.user_data_dir(APP, appauthor=False)) / "models"
    cache_dir: Path = Path(platformdirs.user_cache_dir(APP, appauthor=False))
    ctx_size: Annotated[int, Meta(ge=64, le=1 << 20)] | Annotated[str, _one_of("auto")] = "auto"
    allow_long_context: Annotated[str, _one_of("on", OFF)] = OFF
    gpu_layers: Annotated[int, Meta(ge=0, le=1024)] | Annotated[str, _one_of("auto", "all")] = "auto"
    device: str | None = None
    fit_target: Annotated[int, Meta(ge=0, le=1 << 20)] = 1024
    # those of `placement.KV_TYPES`
    kv_type: Annotated[str, _one_of("auto", "f32", "f16", "q8_0")] = "auto"
    kv_placement: Annotated[str, _one_of("auto", "gpu", "cpu")] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    # those of `kernels.CHOICES`
    kernels: Annotated[str, _one_of("auto", OFF, "avx2", "avxvnni", "avx512vnni", "amx")] = "auto"
    # those of `vision.encoder.VisionEncoder`
    vision_device: Annotated[str, _one_of("auto", "cpu", "cuda", "coreml")] = "auto"
    image_cache: str = OFF
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 1024
    temperature: Annotated[float, Meta(ge=0, le=5)] = 0.1
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    parallel: Annotated[int, Meta(ge=1, le=64)] = 8
    queue: Annotated[int, Meta(ge=0, le=1024)] = 64
    bidi: Annotated[str, _one_of("auto", "on", OFF)] = "auto"

    @property
    def image_cache_dir(self) -> Path:
        """Return the directory of the image cache."""
        return self.cache_dir / "images"

    @property
    def image_cache_bytes(self) -> int:
        """Return `image_cache` in bytes; 0 is off."""
        return _size_bytes(self.image_cache) or 0


def load_settings(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the effective settings.

    Args:
        flags: Values from the command line; None values count as not given.
        environ: Environment variables; by default those of the process.

    Raises:
        UsageError: A name is unknown, or a value is of the wrong type or out of its range. The message names the
            setting and the flag, variable or file that sets it.
    """
    environ = os.environ if environ is None else environ
    settings = Settings()
    for source, values in (*_file_values(environ), *_environment_values(environ)):
        settings = _apply(settings, values, source)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    return _apply(settings, given, "the command line")


def terminal_reorders(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether this terminal reorders right-to-left text itself, judged by its environment variables.

    VTE (GNOME Terminal and others), Konsole, mlterm and macOS's Terminal do. Windows Terminal, VS Code, Alacritty,
    kitty, foot, xterm and the Linux console show characters in logical order.
    """
    environ = os.environ if environ is None else environ
    return (
        "VTE_VERSION" in environ
        or "KONSOLE_VERSION" in environ
        or environ.get("TERM", "").startswith("mlterm")
        or environ.get("TERM_PROGRAM") == "Apple_Terminal"
    )


def _file_values(environ: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    default = Path(platformdirs.user_config_dir(APP, appauthor=False)) / "config.toml"
    path = Path(environ[_CONFIG_VARIABLE]) if _CONFIG_VARIABLE in environ else default
    if not path.is_file():
        if _CONFIG_VARIABLE in environ:
            raise UsageError(f"{_CONFIG_VARIABLE} names {path}, which is not a file. Correct the path or unset it.")
        return []
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
        if len(data) > _MAX_CONFIG_BYTES:
            raise UsageError(f"{path} is too large: settings may have at most {_MAX_CONFIG_BYTES} bytes. Shorten it.")
        return [(str(path), tomllib.loads(data.decode("utf-8")))]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as TOML ({error}). Correct the file.") from error


def _environment_values(environ: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    hints = get_type_hints(Settings)
    found = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == _CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        text = environ[variable]
        found.append((variable, {name: _parsed(text, hints[name]) if name in hints else text}))
    return found


def _parsed(text: str, hint: Any) -> Any:
    """Return the number that the text of an environment variable stands for; the text itself where it is none."""
    for kind in (int, float):
        if kind in (get_args(hint) or (hint,)):
            try:
                return kind(text)
            except ValueError:
                return text
    return text


def _apply(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    hints = get_type_hints(Settings, include_extras=True)
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise UsageError(
                f"There is no setting {name[:_MAX_SHOWN]!r} (set by {source}). Remove it; the settings are "
                f"{', '.join(sorted(hints))}."
            )
        changes[name] = _checked(name, value, hints[name], source)
    return replace(settings, **changes)


def _checked(name: str, value: Any, hint: Any, source: str) -> Any:
    """Return a value as its field holds it.

    Raises:
        UsageError: The value is of the wrong type or out of its range.
    """
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value).expanduser()
    if name in ("ctx_size", "gpu_layers") and isinstance(value, str):
        value = _parsed(value, int)
    try:
        found = msgspec.convert(value, hint)
        if name == "image_cache" and not _is_cache_size(found):
            raise msgspec.ValidationError
    except msgspec.ValidationError as error:
        shown = value if isinstance(value, (int, float)) and not isinstance(value, bool) else repr(value)
        raise UsageError(
            f"{name} cannot be {str(shown)[:_MAX_SHOWN]} (set by {source}). Use {_wanted(name, hint)}."
        ) from error
    return found


def _wanted(name: str, hint: Any) -> str:
    """Return what a setting may be, in words."""
    if name == "image_cache":
        return f"{OFF} or a size from {_MIN_IMAGE_CACHE}, such as 500M or 2G"
    *others, last = _alternatives(msgspec.inspect.type_info(hint))
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(kind: msgspec.inspect.Type) -> Iterator[str]:
    if isinstance(kind, msgspec.inspect.UnionType):
        for part in kind.types:
            yield from _alternatives(part)
    elif isinstance(kind, msgspec.inspect.Metadata):
        yield from (kind.extra or {})["words"]
    elif isinstance(kind, (msgspec.inspect.IntType, msgspec.inspect.FloatType)):
        noun = "a whole number" if isinstance(kind, msgspec.inspect.IntType) else "a number"
        yield f"{noun} from {kind.ge:.10g} to {kind.le:.10g}"
    elif isinstance(kind, msgspec.inspect.CustomType):
        yield "a path"
    elif isinstance(kind, msgspec.inspect.StrType):
        yield "text"


def _is_cache_size(text: str) -> bool:
    size, least = _size_bytes(text), _size_bytes(_MIN_IMAGE_CACHE)
    return text == OFF or (size is not None and least is not None and size >= least)


def _size_bytes(text: str) -> int | None:
    """Return a size such as 500M or 2G in bytes; None if the text is not a size."""
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _UNITS[match[2]] if match else None

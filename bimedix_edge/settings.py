"""Settings: flag > environment (BIMEDIX_EDGE_*) > TOML file > default. The only reader of the environment."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import platformdirs

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
# inclusive ranges; what is not listed has none
_RANGES: dict[str, tuple[float, float]] = {
    "ctx_size": (64, 1 << 20),
    "gpu_layers": (0, 1024),
    "fit_target": (0, 1 << 20),
    "threads": (0, 1024),
    "max_tokens": (1, 1 << 20),
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 20),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.1, 10.0),
    "seed": (0, 2**32 - 1),
    "parallel": (1, 64),
    "queue": (0, 1024),
}
_CHOICES = {
    "allow_long_context": ("on", "off"),
    "bidi": ("auto", "on", "off"),
    "kernels": ("auto", "off", "avx2", "avxvnni", "avx512vnni", "amx"),  # those of `kernels.CHOICES`
    "kv_placement": ("auto", "gpu", "cpu"),
    "kv_type": ("auto", "f32", "f16", "q8_0"),  # those of `placement.KV_TYPES`
    "vision_device": ("auto", "cpu", "cuda", "coreml"),  # those of `vision.VisionEncoder`
}
# words that may stand in place of a number
_WORDS = {"ctx_size": ("auto",), "gpu_layers": ("auto", "all")}
OFF = "off"
_SIZE = re.compile(r"(\d{1,6})([MG])")
_UNITS = {"M": 1 << 20, "G": 1 << 30}
# an image of the 70B takes 19 MB
_MIN_IMAGE_CACHE = "64M"


@dataclass(frozen=True)
class Settings:
    """What the user can set.

    Attributes:
        model: a bundle's name in the store or its directory; None is the demo model if nothing else is installed.
        store_dir: where installed bundles live.
        cache_dir: where the demo model is converted to.
        ctx_size: tokens of context, image tokens included; `auto` is 4096, which BiMediX2 was trained with, or less
            where memory is short.
        allow_long_context: whether `ctx_size` may be more than the model was trained with, `on` or `off`.
        gpu_layers: how many layers leave the CPU, the output layer first; `auto` is what fits, `all` is all of them.
        device: ggml's names of the devices that may be used, with commas between; None is all.
        fit_target: MiB that stay free on each device.
        kv_type: of the cached keys and values; `auto` is f16, and q8_0 where that takes more layers off the CPU.
        kv_placement: where a layer's keys and values lie: `gpu`, where the layer does, `cpu`, in the machine's memory,
            or `auto`, which is `gpu`.
        threads: of the matmuls; 0 is one a core.
        kernels: which kernels compute the decoder's matrix products and an int8 image encoder; `off` leaves them to
            llama.cpp and ONNX Runtime.
        vision_device: what computes the image encoder; `auto` takes a device that is here and suits its weights.
        image_cache: how much disk the embeddings of images may take, such as `2G`; `off` keeps them in memory only.
        max_tokens: most tokens of an answer.
        temperature, top_p, top_k, min_p, repeat_penalty: see `decoder.Sampling`; the authors' values by default.
        seed: of the sampling; None is a new one for each answer.
        parallel: answers that the server writes together.
        queue: requests that wait for these; more are refused.
        bidi: whether Arabic lines are reordered for the terminal.
    """

    model: str | None = None
    store_dir: Path = Path(platformdirs.user_data_dir(APP, appauthor=False)) / "models"
    cache_dir: Path = Path(platformdirs.user_cache_dir(APP, appauthor=False))
    ctx_size: int | str = "auto"
    allow_long_context: str = OFF
    gpu_layers: int | str = "auto"
    device: str | None = None
    fit_target: int = 1024
    kv_type: str = "auto"
    kv_placement: str = "auto"
    threads: int = 0
    kernels: str = "auto"
    vision_device: str = "auto"
    image_cache: str = OFF
    max_tokens: int = 1024
    temperature: float = 0.1
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    parallel: int = 8
    queue: int = 64
    bidi: str = "auto"

    @property
    def image_cache_dir(self) -> Path:
        """Return the directory of the image cache."""
        return self.cache_dir / "images"

    @property
    def image_cache_bytes(self) -> int:
        """Return what `image_cache` says, in bytes; 0 is off."""
        return _size_bytes(self.image_cache) or 0


def load_settings(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in force.

    Args:
        flags: values given on the command line; None values count as not given.
        environ: the environment; by default the process's.

    Raises:
        UsageError: a name is unknown, or a value is of the wrong type or out of range; the message says where it
            was set.
    """
    environ = os.environ if environ is None else environ
    settings = Settings()
    for source, values in (*_file_values(environ), *_environment_values(environ)):
        settings = _apply(settings, values, source)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    return _apply(settings, given, "the command line")


def terminal_reorders(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether this terminal reorders right-to-left text itself, as far as its environment tells.

    VTE (GNOME Terminal and others), Konsole, mlterm and macOS's Terminal do; Windows Terminal, VS Code, Alacritty,
    kitty, foot, xterm and the Linux console show the characters in the order they come.
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
            raise UsageError(f"Expected a TOML file, but {_CONFIG_VARIABLE} names {path}, which is none; correct it.")
        return []
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
        if len(data) > _MAX_CONFIG_BYTES:
            raise UsageError(f"Expected at most {_MAX_CONFIG_BYTES} bytes of settings, but {path} is longer.")
        return [(str(path), tomllib.loads(data.decode("utf-8")))]
    except (OSError, ValueError) as error:
        raise UsageError(f"Expected settings as TOML, but {path} cannot be read ({error}); correct it.") from error


def _environment_values(environ: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    hints = get_type_hints(Settings)
    found = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == _CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        value: Any = environ[variable]
        if name in hints and name not in _WORDS:
            value = _parse(value, _kinds(hints[name]), variable)
        found.append((variable, {name: value}))
    return found


def _parse(text: str, kinds: tuple[type, ...], variable: str) -> Any:
    for kind in kinds:
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError as error:
                noun = {int: "a whole number", float: "a number"}[kind]
                raise UsageError(f"Expected {noun} in {variable}, but it is {text[:40]!r}; correct it.") from error
    return text


def _apply(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    hints = get_type_hints(Settings)
    known = {item.name for item in fields(Settings)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(
                f"Expected one of the settings {', '.join(sorted(known))}, but {source} sets {name[:60]!r}; remove it."
            )
        changes[name] = _check(name, value, _kinds(hints[name]), source)
    return replace(settings, **changes)


def _check(name: str, value: Any, kinds: tuple[type, ...], source: str) -> Any:
    if Path in kinds and isinstance(value, str):
        return Path(value).expanduser()
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if name in _WORDS and isinstance(value, str):
        value = _number_or_word(name, value, source)
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise UsageError(f"Expected {name} to be {wanted}, but {source} gives {value!r}; correct it.")
    low, high = _RANGES.get(name, (float("-inf"), float("inf")))
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise UsageError(f"Expected {name} from {low:.10g} to {high:.10g}, but {source} gives {value}; correct it.")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise UsageError(f"Expected {name} to be one of {', '.join(_CHOICES[name])}, but {source} gives {value!r}.")
    if name == "image_cache":
        _check_image_cache(value, source)
    return value


def _number_or_word(name: str, text: str, source: str) -> int | str:
    if text in _WORDS[name]:
        return text
    try:
        return int(text)
    except ValueError as error:
        words = " or ".join(_WORDS[name])
        raise UsageError(
            f"Expected a whole number or {words} for {name}, but {source} gives {text[:40]!r}; correct it."
        ) from error


def _check_image_cache(value: Any, source: str) -> None:
    least = _size_bytes(_MIN_IMAGE_CACHE)
    if value != OFF and ((size := _size_bytes(value)) is None or (least is not None and size < least)):
        raise UsageError(
            f"Expected image_cache to be off or a size from {_MIN_IMAGE_CACHE}, such as 500M or 2G, but {source} gives "
            f"{value[:40]!r}; correct it."
        )


def _size_bytes(text: str) -> int | None:
    """Return what a size such as 500M or 2G means in bytes, or None if it is none."""
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _UNITS[match[2]] if match else None


def _kinds(hint: Any) -> tuple[type, ...]:
    return get_args(hint) or (hint,)

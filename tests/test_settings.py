"""Flag > environment > file > default, and every mistake named with its place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bimedix_edge.errors import UsageError
from bimedix_edge.settings import Settings, load_settings, terminal_reorders


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('temperature = 0.5\nctx_size = 2048\nmodel = "file"\n', encoding="utf-8")
    return path


def test_the_defaults_are_the_authors() -> None:
    settings = load_settings(environ={})
    assert (settings.temperature, settings.top_p, settings.max_tokens, settings.ctx_size) == (0.1, 1.0, 1024, "auto")
    assert settings.model is None
    assert settings.seed is None


def test_flag_beats_environment_beats_file_beats_default(config: Path) -> None:
    environ = {"BIMEDIX_EDGE_CONFIG": str(config), "BIMEDIX_EDGE_CTX_SIZE": "1024", "BIMEDIX_EDGE_MODEL": "env"}
    settings = load_settings({"model": "flag", "seed": None}, environ)
    assert (settings.temperature, settings.ctx_size, settings.model) == (0.5, 1024, "flag")


def test_an_integer_is_good_enough_for_a_number() -> None:
    assert load_settings(environ={"BIMEDIX_EDGE_TEMPERATURE": "0"}).temperature == 0.0


def test_settings_are_frozen_and_can_be_replaced() -> None:
    settings = Settings(threads=2)
    with pytest.raises(AttributeError):
        settings.threads = 3  # type: ignore[misc]
    assert replace(settings, gpu_layers=0) == Settings(threads=2, gpu_layers=0)


def test_the_defaults_are_within_their_ranges() -> None:
    defaults = {name: value for name, value in vars(Settings()).items() if value is not None}
    assert load_settings(defaults, environ={}) == Settings()


@pytest.mark.parametrize(("text", "expected"), [("512", 512), ("auto", "auto")])
def test_a_number_or_a_word_comes_as_text_from_the_command_line(text: str, expected: int | str) -> None:
    assert load_settings({"ctx_size": text}, environ={}).ctx_size == expected


def test_a_home_directory_is_expanded() -> None:
    assert load_settings(environ={"BIMEDIX_EDGE_STORE_DIR": "~/x"}).store_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"BIMEDIX_EDGE_CTX_SIZE": "many"},
            "ctx_size cannot be 'many' (set by BIMEDIX_EDGE_CTX_SIZE). Use a whole number from 64 to 1048576 or auto.",
        ),
        (
            {"BIMEDIX_EDGE_THREADS": "many"},
            "threads cannot be 'many' (set by BIMEDIX_EDGE_THREADS). Use a whole number from 0 to 1024.",
        ),
        ({"BIMEDIX_EDGE_CTX_SIZE": "1"}, "ctx_size cannot be 1 (set by BIMEDIX_EDGE_CTX_SIZE)"),
        (
            {"BIMEDIX_EDGE_GPU_LAYERS": "most"},
            "gpu_layers cannot be 'most' (set by BIMEDIX_EDGE_GPU_LAYERS). "
            "Use a whole number from 0 to 1024, auto or all.",
        ),
        ({"BIMEDIX_EDGE_TEMPERATURE": "hot"}, "temperature cannot be 'hot' (set by BIMEDIX_EDGE_TEMPERATURE)"),
        ({"BIMEDIX_EDGE_TEMPERATURE": "nan"}, "temperature cannot be nan (set by BIMEDIX_EDGE_TEMPERATURE)"),
        ({"BIMEDIX_EDGE_TEMPERATURE": "1e999"}, "Use a number from 0 to 5."),
        ({"BIMEDIX_EDGE_SEED": "9" * 400}, "Use a whole number from 0 to 4294967295."),
        ({"BIMEDIX_EDGE_SEED": "9" * 5000}, "Use a whole number from 0 to 4294967295."),
        ({"BIMEDIX_EDGE_TEMPRATURE": "1"}, "no setting 'temprature' (set by BIMEDIX_EDGE_TEMPRATURE)"),
        ({"BIMEDIX_EDGE_BIDI": "maybe"}, "bidi cannot be 'maybe' (set by BIMEDIX_EDGE_BIDI). Use auto, on or off."),
        ({"BIMEDIX_EDGE_KERNELS": "auto\n"}, "kernels cannot be 'auto\\n' (set by BIMEDIX_EDGE_KERNELS)"),
        ({"BIMEDIX_EDGE_IMAGE_CACHE": "63M"}, "Use off or a size from 64M, such as 500M or 2G."),
        ({"BIMEDIX_EDGE_CONFIG": "/nonexistent/x.toml"}, "BIMEDIX_EDGE_CONFIG names /nonexistent/x.toml"),
        ({"BIMEDIX_EDGE_CTX_SIZE": "-5"}, "ctx_size cannot be -5 (set by BIMEDIX_EDGE_CTX_SIZE)"),
    ],
)
def test_wrong_environment(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_settings(environ=environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature = 'x'", "temperature cannot be 'x' .* a number from 0 to 5"),
        ("top_k = 1.5", "top_k cannot be 1.5 .* a whole number from 0"),
        ("seed = true", "seed cannot be True .* a whole number from 0"),
        ("threads = '2'", "threads cannot be '2'"),
        ("queue = 1025", "queue cannot be 1025 .* from 0 to 1024"),
        ("model = 5", r"model cannot be 5 .* Use text\."),
        ("store_dir = 5", r"store_dir cannot be 5 .* Use a path\."),
        ("temperature = " + "9" * 400, "temperature cannot be 999"),
        ("temperature = nan", "temperature cannot be nan"),
        ("temperature = -inf", "temperature cannot be -inf"),
        ("nonsense = 1", "no setting 'nonsense'"),
        ("a = = b", "as TOML"),
        ("a = " + "[" * 10_000, "as TOML"),
        ("#" * 70_000, "at most 65536 bytes"),
    ],
)
def test_wrong_file(config: Path, text: str, message: str) -> None:
    config.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_settings(environ={"BIMEDIX_EDGE_CONFIG": str(config)})


def test_a_file_that_is_not_utf8_is_named(config: Path) -> None:
    config.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"config\.toml"):
        load_settings(environ={"BIMEDIX_EDGE_CONFIG": str(config)})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"VTE_VERSION": "7000"}, True),
        ({"KONSOLE_VERSION": "230800"}, True),
        ({"TERM": "mlterm-256color"}, True),
        ({"TERM_PROGRAM": "Apple_Terminal"}, True),
        ({"WT_SESSION": "1"}, False),
        ({"TERM": "xterm-256color"}, False),
        ({}, False),
    ],
)
def test_terminals(environ: dict[str, str], expected: bool) -> None:
    assert terminal_reorders(environ) is expected

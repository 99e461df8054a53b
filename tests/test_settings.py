"""Flag > environment > file > default, and every mistake named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from bimedix_edge.errors import UsageError
from bimedix_edge.settings import load_settings, terminal_reorders


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


def test_a_home_directory_is_expanded() -> None:
    assert load_settings(environ={"BIMEDIX_EDGE_STORE_DIR": "~/x"}).store_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"BIMEDIX_EDGE_CTX_SIZE": "many"}, "whole number or auto for ctx_size, but BIMEDIX_EDGE_CTX_SIZE"),
        ({"BIMEDIX_EDGE_THREADS": "many"}, "whole number in BIMEDIX_EDGE_THREADS"),
        ({"BIMEDIX_EDGE_CTX_SIZE": "1"}, "from 64 to 1048576, but BIMEDIX_EDGE_CTX_SIZE gives 1"),
        ({"BIMEDIX_EDGE_TEMPERATURE": "hot"}, "a number in BIMEDIX_EDGE_TEMPERATURE"),
        ({"BIMEDIX_EDGE_TEMPERATURE": "nan"}, "temperature from 0 to 5"),
        ({"BIMEDIX_EDGE_TEMPRATURE": "1"}, "BIMEDIX_EDGE_TEMPRATURE sets 'temprature'"),
        ({"BIMEDIX_EDGE_BIDI": "maybe"}, "one of auto, on, off"),
        ({"BIMEDIX_EDGE_CONFIG": "/nonexistent/x.toml"}, "BIMEDIX_EDGE_CONFIG names"),
        ({"BIMEDIX_EDGE_CTX_SIZE": "-5"}, "ctx_size from 64 to 1048576, .* -5"),
    ],
)
def test_wrong_environment(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(environ=environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature = 'x'", "temperature to be float"),
        ("top_k = 1.5", "top_k to be int"),
        ("seed = true", "seed to be int"),
        ("nonsense = 1", "sets 'nonsense'"),
        ("a = = b", "as TOML"),
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

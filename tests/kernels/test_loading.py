"""Unusable libraries: `auto` answers with llama.cpp's kernels and says why; an explicit choice is a one-line error."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from native_build import compile_native
from native_products import INSTRUCTION_SETS, usable

from bimedix_edge.decoder.kernels import STEM
from bimedix_edge.native import find_library

QUESTION, ANSWER = "Where do you see the nodule?", "In the upper zone of the right lung."
VERSION = importlib.metadata.version("llama-cpp-python")
HARDWARE_ERROR, USAGE_ERROR = 5, 2
# the head of a program whose library is at the path in its first argument
_ELSEWHERE = """
import sys
from pathlib import Path
from bimedix_edge import native
from bimedix_edge.decoder import kernels
library = Path(sys.argv[1]) if sys.argv[1] else None
found = native.find_library
native.find_library = lambda stem: library if stem == kernels.STEM else found(stem)
"""
_ASK = (
    _ELSEWHERE
    + """
import json
from bimedix_edge.events import Token
from bimedix_edge.runtime import Runtime
with Runtime.open(sys.argv[2]) as runtime:
    events = list(runtime.chat().ask(sys.argv[4], [sys.argv[3]]))
    answer = "".join(event.text for event in events if isinstance(event, Token))
    print(json.dumps({"name": runtime.kernels.name, "reason": runtime.kernels.reason, "answer": answer}))
"""
)
_COMMAND = (
    _ELSEWHERE
    + """
from bimedix_edge.cli.main import main
sys.argv[:2] = ["bimedix-edge"]
main()
"""
)
_STUB = """
#include <cstdio>
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const char * bimedix_edge_kernels_version(void) { return STUB_VERSION; }
EXPORT int bimedix_edge_kernels_choose(const char *, char * message, int size) {
    snprintf(message, size, "%s", STUB_MESSAGE);
    return STUB_STATUS;
}
EXPORT void bimedix_edge_kernels_off(void) {}
EXPORT int bimedix_edge_kernels_registered(void) { return 0; }
"""


@dataclass(frozen=True)
class Case:
    """A way to spoil a library, and the reason that is reported for it."""

    make: Callable[[Path], None]
    reason: str


def sign(library: Path) -> None:
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    library.with_name(f"{library.name}.sha256").write_text(f"{digest}  {library.name}\n")


def copy(library: Path) -> None:
    found = find_library(STEM)
    assert found is not None
    shutil.copy(found, library)
    sign(library)


def truncated(library: Path) -> None:
    copy(library)
    os.truncate(library, library.stat().st_size // 2)


def empty(library: Path) -> None:
    copy(library)
    os.truncate(library, 0)


def damaged(library: Path) -> None:
    copy(library)
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)


def with_another_sum(library: Path) -> None:
    copy(library)
    library.with_name(f"{library.name}.sha256").write_text(f"{'0' * 64}  {library.name}\n")


def without_a_sum(library: Path) -> None:
    copy(library)
    library.with_name(f"{library.name}.sha256").unlink()


def with_an_empty_sum(library: Path) -> None:
    copy(library)
    library.with_name(f"{library.name}.sha256").write_text("")


def with_a_sum_that_is_no_text(library: Path) -> None:
    copy(library)
    library.with_name(f"{library.name}.sha256").write_bytes(b"\xff\xfe\x00")


def no_library(library: Path) -> None:
    library.write_text("not a library\n")
    sign(library)


def stub(library: Path, version: str = VERSION, status: int = 0, message: str = "avx2", source: str = _STUB) -> None:
    path = library.with_suffix(".cpp")
    path.write_text(source)
    definitions = (f'-DSTUB_VERSION="{version}"', f"-DSTUB_STATUS={status}", f'-DSTUB_MESSAGE="{message}"')
    compile_native([path], library, "-shared", "-fPIC", *definitions)
    sign(library)


CASES = {
    "missing": Case(lambda _: None, "the library is missing; install the package again"),
    "truncated": Case(truncated, "is damaged; install the package again"),
    "empty": Case(empty, "is damaged; install the package again"),
    "damaged": Case(damaged, "is damaged; install the package again"),
    "another sum": Case(with_another_sum, "is damaged; install the package again"),
    "no sum": Case(without_a_sum, ".sha256 cannot be read; install the package again"),
    "empty sum": Case(with_an_empty_sum, ".sha256 cannot be read; install the package again"),
    "sum of bytes": Case(with_a_sum_that_is_no_text, ".sha256 cannot be read; install the package again"),
    "no library": Case(no_library, "does not load ("),
    "another library": Case(lambda path: stub(path, source="int unrelated;"), "does not load ("),
    "another version": Case(
        lambda path: stub(path, version="0.3.35"),
        f"they were built for llama-cpp-python 0.3.35, and {VERSION} is installed",
    ),
    "self-test": Case(
        lambda path: stub(path, status=2, message="avx2 fails its self-test: Q6_K"), "avx2 fails its self-test: Q6_K"
    ),
    "no kernels": Case(
        lambda path: stub(path, status=1, message="this processor has none of them"), "this processor has none of them"
    ),
    "not registered": Case(stub, "ggml refuses the plug-in"),
}
each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def library(case: str, tmp_path: Path) -> str:
    path = tmp_path / "libbimedix_edge_kernels.so"
    CASES[case].make(path)
    return "" if case == "missing" else str(path)


def run(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def check_one_line(result: subprocess.CompletedProcess[str], exit_code: int) -> None:
    assert result.returncode == exit_code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


@each_case
def test_auto_answers_with_the_kernels_of_llama_cpp(
    case: str, library: str, bundles: dict[str, Path], samples: Path
) -> None:
    result = run(_ASK, library, bundles["Q8_0"], samples / "nodule_right_upper.png", QUESTION)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["name"] is None
    assert CASES[case].reason in found["reason"]
    assert "\n" not in found["reason"]
    assert found["answer"] == ANSWER


@each_case
def test_an_explicit_choice_that_cannot_load_is_one_line(case: str, library: str, bundles: dict[str, Path]) -> None:
    result = run(_COMMAND, library, "ask", "-m", bundles["Q8_0"], "--kernels", "avx2", QUESTION)
    check_one_line(result, HARDWARE_ERROR)
    assert CASES[case].reason in result.stderr
    assert "avx2" in result.stderr


@pytest.mark.parametrize("name", ["auto", *INSTRUCTION_SETS])
def test_the_whole_library_answers(name: str, bundles: dict[str, Path], samples: Path, tmp_path: Path) -> None:
    if name == "auto":
        expected = next((other for other in reversed(INSTRUCTION_SETS) if usable(other)), None)
    elif usable(name):
        expected = name
    else:
        pytest.skip(f"this processor cannot run {name}")
    copied = tmp_path / "libbimedix_edge_kernels.so"
    copy(copied)
    image = samples / "nodule_right_upper.png"
    result = run(_ASK, copied, bundles["Q8_0"], image, QUESTION, BIMEDIX_EDGE_KERNELS=name)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["name"], found["answer"]) == (expected, ANSWER)


def test_a_name_that_no_kernels_have_is_a_usage_error(bundles: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "bimedix_edge.cli.main", "ask", "-m", str(bundles["Q8_0"])]
    for options, variables in ((["--kernels", "neon2"], {}), ([], {"BIMEDIX_EDGE_KERNELS": "neon2"})):
        words, environment = [*command, *options, QUESTION], {**os.environ, **variables}
        result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        check_one_line(result, USAGE_ERROR)
        assert "neon2" in result.stderr
        assert "avx512vnni" in result.stderr


def test_kernels_that_this_processor_cannot_run_are_refused(bundles: dict[str, Path]) -> None:
    lacking = [name for name in INSTRUCTION_SETS if not usable(name)]
    if not lacking:
        pytest.skip("this processor runs all of them")
    command = [sys.executable, "-m", "bimedix_edge.cli.main", "ask", "-m", str(bundles["Q8_0"]), QUESTION]
    environment = {**os.environ, "BIMEDIX_EDGE_KERNELS": lacking[0]}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    check_one_line(result, HARDWARE_ERROR)
    assert f"this processor cannot run {lacking[0]}" in result.stderr

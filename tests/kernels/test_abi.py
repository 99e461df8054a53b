"""The structs of kernels/ggml_abi.h against ggml's private headers, in the source distribution of the pinned version.

Set LLAMA_CPP_SOURCE to its `vendor/llama.cpp`: pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from native_build import GGML_HEADERS, KERNELS, compile_native

_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_MEMBER = re.compile(r"\(\*(\w+)\)\(|(\w+);")
# ours declares no enum for it
_TYPE_DIFFERS = {("ggml_cgraph", "order")}
_PROGRAM = """
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <typeinfo>
{includes}
int main() {{
    // the slot where a tensor's uses are counted: a hash of its address
    const auto tensor = reinterpret_cast<const ggml_tensor *>(uintptr_t(0x123456789ab0));
    printf("api %d, hash %zu\\n", {api}, size_t({hash}));
{body}
}}
"""


def members() -> dict[str, list[str]]:
    text = re.sub(r"//[^\n]*", "", (KERNELS / "ggml_abi.h").read_text(encoding="utf-8"))
    found = {name: [a or b for a, b in _MEMBER.findall(body)] for name, body in _STRUCT.findall(text)}
    assert len(found) == 9
    return found


def program(includes: str, api: str, hash_of_tensor: str) -> str:
    lines = []
    for struct, names in members().items():
        lines.append(f'    printf("{struct} %zu\\n", sizeof({struct}));')
        for name in names:
            of_type = '"int"' if (struct, name) in _TYPE_DIFFERS else f"typeid(decltype({struct}::{name})).name()"
            numbers = f"offsetof({struct}, {name}), sizeof({struct}::{name}), {of_type}"
            lines.append(f'    printf("{struct}.{name} %zu %zu %s\\n", {numbers});')
    return _PROGRAM.format(includes=includes, api=api, hash=hash_of_tensor, body="\n".join(lines))


def output_of(folder: Path, source: str, *options: str) -> list[str]:
    folder.mkdir()
    (folder / "layout.cpp").write_text(source, encoding="utf-8")
    # optimized, so that ggml's unused inline functions need no library
    compiled = compile_native([folder / "layout.cpp"], folder / "layout", "-O1", *options)
    return subprocess.run([compiled], capture_output=True, text=True, check=True).stdout.splitlines()


def test_structs_are_laid_out_as_ggmls(tmp_path: Path) -> None:
    if not (source := os.environ.get("LLAMA_CPP_SOURCE")):
        pytest.skip("LLAMA_CPP_SOURCE does not name llama.cpp's source of the pinned version")
    private = Path(source) / "ggml" / "src"
    ours = output_of(
        tmp_path / "ours",
        program(
            f'#include "{KERNELS}/ggml_abi.h"',
            "BMX_GGML_BACKEND_API_VERSION",
            "reinterpret_cast<uintptr_t>(tensor) >> 4",
        ),
        *("-isystem", str(GGML_HEADERS)),
    )
    theirs = output_of(
        tmp_path / "theirs",
        program(
            '#include "ggml-backend-impl.h"\n#include "ggml-impl.h"', "GGML_BACKEND_API_VERSION", "ggml_hash(tensor)"
        ),
        *("-isystem", str(private), "-isystem", str(private.parent / "include")),
    )
    assert len(ours) > 70
    assert ours == theirs


def test_the_public_headers_are_those_of_the_source(tmp_path: Path) -> None:
    if not (source := os.environ.get("LLAMA_CPP_SOURCE")):
        pytest.skip("LLAMA_CPP_SOURCE does not name llama.cpp's source of the pinned version")
    for name in ("ggml.h", "ggml-backend.h", "ggml-cpu.h"):
        assert (GGML_HEADERS / name).read_bytes() == (Path(source) / "ggml" / "include" / name).read_bytes()

"""The table of layers: imports go one way."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# from low to high; a module imports rooms of earlier rows, and its own room
ROWS: list[set[str]] = [
    {"errors", "child"},
    {"events", "sampling", "prompt", "settings", "staging", "native", "imaging", "schema", "hardware"},
    {"bundle"},
    {"store", "decoder", "vision"},
    {"planning"},
    {"engine"},
    {"chat"},
    {"runtime"},
    {"bench", "server"},
    {"cli"},
]
# the server's two processes share `link` alone
SERVER_MAY_IMPORT = {
    "link": {"link"},
    "api": {"api", "link"},
    "model": {"model", "link"},
    "front": {"front", "api", "link"},
}
# the only files that import a foreign engine; each turns its failures into our errors
DOORS = {
    "huggingface_hub": {"converters/hub/hub.py"},
    # calibrate.py reads the tensors of a running graph; no other file needs those
    "llama_cpp": {
        "bimedix_edge/decoder/llama.py",
        "converters/decoder/calibrate.py",
        "converters/decoder/quantize.py",
    },
    "llguidance": {"bimedix_edge/decoder/constraint.py"},
    "matplotlib": {"bimedix_edge/cli/bench_chart.py"},
    "onnxruntime": {"bimedix_edge/vision/onnx.py"},
    # the server's protocol, and the program that runs it
    "h11": {"bimedix_edge/server/front/connections.py"},
    "uvicorn": {"bimedix_edge/server/front/connections.py", "bimedix_edge/server/front/serving.py"},
}
# modules that can open a connection; only huggingface_hub's door opens one
NETWORK = {
    "aiohttp",
    "http.client",
    "httpx",
    "httpx2",
    "requests",
    "socket",
    "socketserver",
    "ssl",
    "urllib",
    "urllib3",
}
# the server listens: these files import such modules, and call none of GOING_OUT
MAY_LISTEN = {
    "bimedix_edge/server/front/listening.py": {"socket", "ssl"},
    "bimedix_edge/server/front/serving.py": {"socket", "ssl"},  # for their types
}
GOING_OUT = {
    "connect", "connect_ex", "create_connection", "create_datagram_endpoint", "getaddrinfo", "gethostbyaddr",
    "gethostbyname", "getnameinfo", "open_connection", "open_unix_connection", "sendto", "sock_connect",
}  # fmt: skip
SERVER_ALONE = {"h11", "starlette", "uvicorn"}
MAY_IMPORT_CONVERTERS = {
    "bimedix_edge/cli/commands/bench.py",
    "bimedix_edge/cli/commands/convert.py",
    "bimedix_edge/cli/commands/pull.py",
}
# of the decoder, only the reader of foreign headers, and the kernels, which also quantize
CONVERTERS_MAY_IMPORT = {
    "errors", "settings", "prompt", "staging", "bundle", "store", "imaging", "vision", "converters",
    "decoder.gguf_header", "decoder.kernels",
}  # fmt: skip


def _sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no sources in {folder}"
    return found


def _in_rooms() -> list[Path]:
    """Return the package's files, except the one that only offers names of all rooms."""
    return [path for path in _sources("bimedix_edge") if path != ROOT / "bimedix_edge" / "__init__.py"]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _modules(imports: set[str]) -> set[str]:
    """Return the imported modules of this package, by their paths below it."""
    return {name.removeprefix("bimedix_edge.") for name in imports if name.startswith("bimedix_edge.")}


def _rooms(imports: set[str]) -> set[str]:
    return {name.split(".")[0] for name in _modules(imports)}


def _row(room: str) -> int:
    return next(index for index, row in enumerate(ROWS) if room in row)


def test_there_are_ten_rows_and_each_room_is_in_one() -> None:
    modules = {path.name.removesuffix(".py") for path in (ROOT / "bimedix_edge").iterdir() if path.suffix == ".py"}
    folders = {path.name for path in (ROOT / "bimedix_edge").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert (modules | folders) - {"__init__"} == set.union(*ROWS)
    assert len(ROWS) == 10
    assert sum(map(len, ROWS)) == len(set.union(*ROWS))
    assert sum(path.is_file() for path in (ROOT / "bimedix_edge").iterdir() if ".so" not in path.name) <= 14


@pytest.mark.parametrize("path", _in_rooms(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_earlier_rows_only(path: Path) -> None:
    room = path.relative_to(ROOT / "bimedix_edge").parts[0].removesuffix(".py")
    for imported in _rooms(_imports(path)) & set.union(*ROWS):
        assert imported == room or _row(imported) < _row(room), f"{room} may not import {imported}"
    if str(path.relative_to(ROOT)) not in MAY_IMPORT_CONVERTERS:
        assert "converters" not in _rooms(_imports(path))


@pytest.mark.parametrize("part", SERVER_MAY_IMPORT)
def test_the_servers_parts_share_link_alone(part: str) -> None:
    for path in _sources(f"bimedix_edge/server/{part}"):
        parts = {name.split(".")[1] for name in _modules(_imports(path)) if name.startswith("server.")}
        assert parts <= SERVER_MAY_IMPORT[part], path


def _module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "bimedix_edge" else parts).removesuffix(".__init__")


def test_no_module_imports_itself_through_others() -> None:
    paths = {_module_of(path): path for path in [*_sources("bimedix_edge"), *_sources("converters")]}
    imports = {module: _modules(_imports(path)) & set(paths) for module, path in paths.items()}
    open_modules: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in open_modules, f"a circle: {' -> '.join([*open_modules, module])}"
        if module in done:
            return
        open_modules.append(module)
        for imported in sorted(imports[module] - {module}):
            visit(imported)
        done.add(open_modules.pop())

    for module in paths:
        visit(module)


@pytest.mark.parametrize("path", _sources("converters"), ids=lambda path: str(path.relative_to(ROOT)))
def test_converters_import_only_what_they_may(path: Path) -> None:
    imported = _modules(_imports(path))
    ours = {name for name in imported if name.split(".")[0] not in CONVERTERS_MAY_IMPORT}
    allowed = {name for name in CONVERTERS_MAY_IMPORT if "." in name}
    assert all(any(f"{name}.".startswith(f"{door}.") for door in allowed) for name in ours), ours


@pytest.mark.parametrize("engine", DOORS)
def test_each_engine_has_one_door(engine: str) -> None:
    importers = {
        str(path.relative_to(ROOT))
        for folder in ("bimedix_edge", "converters")
        for path in _sources(folder)
        if any(name.split(".")[0] == engine for name in _imports(path))
    }
    assert importers == DOORS[engine]


def _reaches(path: Path) -> set[str]:
    """Return which modules of `NETWORK` a file imports."""
    return {name for name in NETWORK if any(f"{each}.".startswith(f"{name}.") for each in _imports(path))}


def test_only_pull_can_reach_a_network() -> None:
    sources = [*_sources("bimedix_edge"), *_sources("converters")]
    found = {str(path.relative_to(ROOT)): _reaches(path) for path in sources}
    assert {path: names for path, names in found.items() if names} == MAY_LISTEN
    hub = "bimedix_edge.converters.hub.hub"
    users = {path.name for path in sources if any(name.startswith(hub) for name in _imports(path))}
    assert users == {"fetch.py", "pull.py"}
    fetch = "bimedix_edge.converters.hub.fetch"
    assert {path.name for path in sources if any(name.startswith(fetch) for name in _imports(path))} == {"pull.py"}


def test_nothing_calls_out() -> None:
    for path in [*_sources("bimedix_edge"), *_sources("converters")]:
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
        }
        assert not names & GOING_OUT, path


def test_only_the_server_imports_http_libraries() -> None:
    importers = {
        path.relative_to(ROOT).parts[:2]
        for path in [*_sources("bimedix_edge"), *_sources("converters")]
        if {name.split(".")[0] for name in _imports(path)} & SERVER_ALONE
    }
    assert importers == {("bimedix_edge", "server")}


def test_the_servers_parent_holds_no_engine_and_no_decoder_of_images() -> None:
    import subprocess

    engines = "llama_cpp onnxruntime onnx numpy PIL pydicom huggingface_hub"
    code = f"import sys, bimedix_edge.cli.commands.serve; print([m for m in '{engines}'.split() if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_runs_a_child_needs_the_standard_library_alone() -> None:
    imported = _imports(ROOT / "bimedix_edge/child.py")
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign <= {"bimedix_edge.errors"}
    users = {
        str(path.relative_to(ROOT / "bimedix_edge"))
        for path in _sources("bimedix_edge")
        if "bimedix_edge.child" in _imports(path)
    }
    assert users == {
        "imaging/isolation.py",
        "imaging/worker.py",
        "server/front/supervisor.py",
        "server/link/wire.py",
        "server/model/process.py",
    }


def test_neither_torch_nor_transformers_is_imported() -> None:
    for folder in ("bimedix_edge", "converters"):
        for path in _sources(folder):
            roots = {name.split(".")[0] for name in _imports(path)}
            assert not roots & {"torch", "transformers", "tokenizers", "pickle"}, path


def test_only_settings_reads_the_environment() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for folder in ("bimedix_edge", "converters")
        for path in _sources(folder)
        if "os.environ" in path.read_text(encoding="utf-8") or "getenv" in path.read_text(encoding="utf-8")
    }
    # the doors of onnxruntime and huggingface-hub set variables before they import these; they read none
    assert readers == {"bimedix_edge/settings.py", "bimedix_edge/vision/onnx.py", "converters/hub/hub.py"}


def test_importing_the_package_loads_no_engine() -> None:
    import subprocess

    engines = ("llama_cpp", "llguidance", "onnxruntime", "onnx")
    code = f"import sys, bimedix_edge; print([m for m in {engines} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

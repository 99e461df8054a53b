"""Every command that a document shows is run, or tried in another real way; `docs.commands` says how and why."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import click
import numpy as np
import pytest
from docs.commands import ROWS, Way, commands, row_of
from docs.documents import ROOT, Block, Document, Session, documents, is_mention, table_rows
from imaging.phantoms import dataset, stored_values, written
from loopback_hub import LoopbackHub
from server_process import Server, serving

from bimedix_edge.cli.commands.convert import convert_demo
from bimedix_edge.cli.main import cli
from bimedix_edge.cli.terminal import plain_console
from bimedix_edge.decoder.llama import PINNED_VERSION
from bimedix_edge.hardware.advice import build_command
from bimedix_edge.settings import load_settings
from bimedix_edge.store import Store, demo_checkpoint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATIENCE_S = 300
SAMPLES = ROOT / "models" / "demo" / "samples"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROGRAM = [sys.executable, "-m", "bimedix_edge.cli.main"]
INSTALLED = "mine"


@pytest.fixture(scope="module", autouse=True)
def demo() -> Iterator[None]:
    """Convert the demo model into the cache that all commands share, as the first of them would.

    One thread computes: on busy cores, several wait for each other.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIMEDIX_EDGE_THREADS", "1")
        settings = load_settings()
        convert_demo(Store(settings.store_dir, settings.cache_dir), plain_console(stderr=True))
        yield


@pytest.fixture
def folder(tmp_path: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds the files that documents name, with a store of its own."""
    place = tmp_path / "folder"
    place.mkdir()
    shutil.copy(SAMPLES / "nodule_right_upper.png", place / "chest.png")
    values = stored_values(12, signed=False)
    scan = dataset(values, 12, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    (place / "ct.dcm").write_bytes(written(scan))
    (place / "schema.json").write_text('{"type": "object", "properties": {"seen": {"type": "boolean"}}}')
    (place / "models").symlink_to(ROOT / "models")
    for name in ("CHECKPOINT", "BiMediX2-8B"):
        (place / name).symlink_to(demo_checkpoint())
    (place / "DIR").symlink_to(bundles["Q4_K_M"])
    (place / "VOCABULARY.gguf").symlink_to(bundles["Q4_K_M"] / "decoder.gguf")
    monkeypatch.setenv("BIMEDIX_EDGE_STORE_DIR", str(tmp_path / "store"))
    return place


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path]) -> Iterator[Server]:
    with serving(bundles["Q8_0"]) as running:
        yield running


def run(
    command: str, folder: Path, *more: str, stdin: str | None = None, succeeds: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell would, ours with the Python of the tests.

    Those of the repository's own scripts run in its root, the others in the folder.
    """
    words = [*shlex.split(command), *more]
    of_repository = words[0].startswith("python")
    paths = {name: str(folder / name) for name in ("VOCABULARY.gguf",)} if of_repository else {}
    program = {"bimedix-edge": PROGRAM, "python": [sys.executable], "python3": [sys.executable]}
    result = subprocess.run(
        [*program.get(words[0], [words[0]]), *(paths.get(word, word) for word in words[1:])],
        cwd=ROOT if of_repository else folder,
        capture_output=True,
        text=True,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        check=False,
        timeout=PATIENCE_S,
    )
    assert "Traceback" not in result.stderr
    assert not succeeds or result.returncode == 0, result.stderr
    return result


def all_sessions() -> list[Session]:
    found = {session.command: session for document in documents() for session in document.sessions}
    return list(found.values())


IN_SESSIONS = {session.command for session in all_sessions()}


def python_blocks() -> list[tuple[Document, Block]]:
    return [(document, block) for document in documents() for block in document.blocks if block.language == "python"]


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_command_is_known(document: Document) -> None:
    assert [command for command in document.commands if row_of(command) is None] == []


def test_every_row_knows_a_command_and_says_why_it_is_not_run() -> None:
    rows = {row_of(command) for way in Way for command in commands(way)}
    assert set(ROWS) == rows
    as_shown = {Way.RUN, Way.CHAT, Way.CURL}
    assert [row for row in ROWS if not (row.way in as_shown and not row.more) and not (row.reason or row.more)] == []


@pytest.mark.parametrize("command", [command for command in commands(Way.RUN) if command not in IN_SESSIONS])
def test_it_runs(command: str, folder: Path, tmp_path: Path, bundles: dict[str, Path]) -> None:
    row = row_of(command)
    assert row is not None
    if "NAME" in shlex.split(command):
        shutil.copytree(bundles["Q4_K_M"], tmp_path / "store" / INSTALLED / "q4_k_m")
        command = command.replace("NAME", INSTALLED)
    if command.startswith("openssl") and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    printed = run(command, folder, *row.more)
    assert printed.stdout or printed.stderr or "--check" in row.more
    for name in re.findall(r"-o (\S+)", command):
        assert (folder / name).stat().st_size > 0


def test_json_has_the_fields_that_the_manual_lists(folder: Path) -> None:
    question = 'bimedix-edge ask --json --temperature 0 --schema schema.json --image ct.dcm "Is there a nodule?"'
    report = json.loads(run(question, folder).stdout)
    rows = table_rows(ROOT / "bimedix_edge" / "cli" / "README.md", "field")
    assert set(report) == set(rows)
    for name, value in {**report, "images": report["images"][0]}.items():
        if isinstance(value, dict) and name in ("tokens", "images", "timings_ms"):
            assert set(value) == set(re.findall(r"`(\w+)`", rows[name][0]))
    assert report["images"][0]["notes"]
    assert all(set(note) == {"code", "fields", "text"} for note in report["images"][0]["notes"])


@pytest.mark.parametrize("session", all_sessions(), ids=lambda session: session.command)
def test_a_session_prints_what_it_shows(session: Session, folder: Path) -> None:
    assert run(session.command, folder).stdout.splitlines() == session.output


@pytest.mark.parametrize("command", commands(Way.CHAT))
def test_a_conversation_answers(command: str, folder: Path) -> None:
    printed = run(command, folder, "--temperature", "0", stdin="Is there a nodule?\n/quit\n").stdout
    assert "Yes." in printed.splitlines()


@pytest.mark.parametrize("command", commands(Way.SERVED))
def test_a_server_is_ready(command: str, server: Server) -> None:
    assert command == "bimedix-edge serve"
    assert server.request("GET", "/health", key=False).status == 200
    assert server.request("GET", "/", key=False).status == 200
    assert server.key
    assert server.link


@pytest.mark.parametrize("command", commands(Way.CURL))
def test_curl_gets_an_answer(command: str, server: Server, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = command.replace("http://127.0.0.1:8080", server.url).replace("$KEY", server.key)
    printed = run(f"{command} --silent --show-error --noproxy 127.0.0.1", folder).stdout
    assert '"notice":' in printed
    assert '"finish_reason":"stop"' in printed


@pytest.mark.parametrize("command", commands(Way.PULLED))
def test_pull_installs_from_a_hub(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("HF_") or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    with LoopbackHub(demo_checkpoint()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        printed = run(command, folder, "--accept-licence").stdout
        hub.shutdown()
    assert f"{shlex.split(command)[2]} is in" in printed


def _command(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """Return the command that words name, and what follows its name."""
    command, context = cli, click.Context(cli)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, context, words = found, click.Context(found, parent=context), words[1:]
    return command, context, words


def _unknown_options(words: list[str]) -> set[str]:
    command, context, rest = _command(words)
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    return {word.partition("=")[0] for word in rest if word.startswith("-")} - known


@pytest.mark.parametrize("command", commands(Way.PARSED))
def test_the_program_parses_it(command: str) -> None:
    words = shlex.split(command)[1:]
    parsed, _, rest = _command(words)
    with parsed.make_context(words[0], rest) as context:
        assert context.params
    assert not _unknown_options(words)


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_commands_and_options_that_are_only_named_exist(document: Document) -> None:
    for span in filter(is_mention, document.spans):
        assert not _unknown_options(span.split()), span
    named = {re.split(r"[ =]", span)[0] for span in document.spans if span.startswith("--")}
    assert named <= _all_options() | {"--help"}


def _all_options() -> set[str]:
    """Return the options of all commands of ours and of the scripts for developers."""

    def options(command: click.Command, context: click.Context) -> set[str]:
        own = {option for parameter in command.get_params(context) for option in parameter.opts}
        subs = command.commands.values() if isinstance(command, click.Group) else ()
        return own.union(*(options(sub, click.Context(sub, parent=context)) for sub in subs))

    ours = [_command([name])[:2] for name in cli.list_commands(click.Context(cli))]
    scripts = [*ROOT.glob("tests/bench/*.py"), *ROOT.glob("tests/docs/*.py"), *ROOT.glob("converters/synthetic/*.py")]
    texts = [path.read_text(encoding="utf-8") for path in scripts]
    return set[str]().union(*(options(*pair) for pair in ours), *(re.findall(r'"(--[\w-]+)"', text) for text in texts))


@pytest.mark.parametrize("command", commands(Way.MADE))
def test_make_knows_the_target(command: str, folder: Path) -> None:
    printed = run(f"{command} --dry-run --directory {ROOT}", folder).stdout
    assert printed


@pytest.fixture(scope="module")
def collected() -> list[tuple[str, set[str]]]:
    """Return every test under the paths that documents show: its id, and its markers."""
    paths = {word for command in commands(Way.COLLECTED) for word in shlex.split(command) if word.startswith("tests/")}
    code = """
import sys, pytest
class Plugin:
    def pytest_collection_finish(self, session):
        for item in session.items:
            print("ITEM", " ".join(mark.name for mark in item.iter_markers()), item.nodeid, sep="\\t")
sys.exit(pytest.main(["--collect-only", "-q", *sys.argv[1:]], plugins=[Plugin()]))
"""
    command = [sys.executable, "-c", code, *sorted(paths)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stdout[-2000:]
    rows = [line.split("\t") for line in result.stdout.splitlines() if line.startswith("ITEM\t")]
    return [(name, set(marks.split())) for _, marks, name in rows]


@pytest.mark.parametrize("command", commands(Way.COLLECTED))
def test_pytest_finds_tests(command: str, collected: list[tuple[str, set[str]]]) -> None:
    words = shlex.split(command.removeprefix("python -m "))[1:]
    marker = words[words.index("-m") + 1] if "-m" in words else ""
    part = words[words.index("-k") + 1] if "-k" in words else ""
    (path,) = [word for word in words if word.startswith("tests/")]
    assert {word for word in words if word.startswith("-")} <= {"-m", "-k", "-s"}
    found = [name for name, marks in collected if name.startswith(path) and part in name and marker in {"", *marks}]
    assert found


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """Keep the help text of each script, since documents show some with several options."""
    return {}


@pytest.mark.parametrize("command", commands(Way.HELPED))
def test_the_script_has_the_options(command: str, helps: dict[str, str], folder: Path) -> None:
    words = shlex.split(command)
    n_script = 3 if words[1] == "-m" else 2
    script, options = " ".join(words[:n_script]), words[n_script:]
    if script not in helps:
        helps[script] = run(f"{script} --help", folder).stdout
    assert {word for word in options if word.startswith("-")} <= set(re.findall(r"--[\w-]+", helps[script]))


@pytest.mark.parametrize("command", commands(Way.REDRAWN))
def test_the_samples_are_drawn_again(command: str, folder: Path) -> None:
    run(command.replace("models/demo/samples", str(folder / "samples")), folder)
    drawn = {path.name: path for path in (folder / "samples").iterdir()}
    assert set(drawn) == {path.name for path in SAMPLES.glob("*.png")}
    from PIL import Image

    for name, path in drawn.items():
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(SAMPLES / name)))


@pytest.mark.parametrize("command", commands(Way.WRITTEN))
def test_the_script_is_there(command: str) -> None:
    words = shlex.split(command)
    path = ROOT / (f"{words[2].replace('.', '/')}.py" if words[1] == "-m" else words[1])
    text = path.read_text(encoding="utf-8")
    compile(text, str(path), "exec")
    assert all(f'"{word}"' in text for word in words if word.startswith("--"))


@pytest.mark.parametrize("command", commands(Way.INSTALLED))
def test_what_pip_installs_is_what_the_project_names(command: str) -> None:
    if "CMAKE_ARGS" in command:
        backend = re.findall(r"GGML_(\w+)=on", command)[0]
        windows = command.startswith("$env")
        advised = build_command(backend, "Windows AMD64" if windows else "Linux x86_64", PINNED_VERSION)
        if windows:
            assert advised.startswith(f"{command}; ")
        else:
            assert command == advised.replace(f"{sys.executable} -m ", "")
        return
    wanted = next(word for word in shlex.split(command)[2:] if not word.startswith("-"))
    package, extras, version = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?(?:==([\w.]+))?", wanted).groups()  # type: ignore[union-attr]
    names = set(extras.split(",")) if extras else set()
    if package in (PROJECT["name"], "."):
        assert names
        assert names <= set(PROJECT["optional-dependencies"])
        return
    (required,) = [each for each in PROJECT["dependencies"] if re.match(rf"{package}[^\w-]", each)]
    assert version is None or required == f"{package}=={version}"
    assert names <= set(metadata(package).get_all("Provides-Extra") or [])


@pytest.mark.parametrize("command", commands(Way.VENV))
def test_the_makefile_makes_the_environment(command: str) -> None:
    folder = command.removeprefix("source ").removesuffix("/bin/activate")
    assert f"VENV := {folder}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("document", "block"), [pytest.param(*pair, id=f"{pair[0].name}:{pair[1].line}") for pair in python_blocks()]
)
def test_python_runs(document: Document, block: Block, folder: Path, request: pytest.FixtureRequest) -> None:
    code = block.text
    if "OpenAI" in code:
        server = request.getfixturevalue("server")
        code = f"key = {server.key!r}\n{code}".replace("http://127.0.0.1:8080", server.url)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "text", [block.text for document in documents() for block in document.blocks if block.language == "toml"]
)
def test_a_recipe_is_taken(text: str, folder: Path) -> None:
    (folder / "recipe.toml").write_text(text)
    assert run("bimedix-edge convert CHECKPOINT --recipe recipe.toml --dry-run", folder).stdout

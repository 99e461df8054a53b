"""`pull` and `models rm` as processes, against a hub on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import COMMIT, LoopbackHub

from bimedix_edge.staging import exclusive
from bimedix_edge.store import demo_checkpoint

NAME = "bimedix2-8b-bi:q8_0"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
MIB = 1 << 20


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bimedix_edge.cli.main", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300
    )


def pull(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("pull", *arguments, "--accept-licence")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with its own store and cache, without the developer's proxy and token."""
    for variable in list(os.environ):
        if variable.startswith("HF_") or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("BIMEDIX_EDGE_STORE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(demo_checkpoint()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        server.shutdown()


def total(hub: LoopbackHub) -> int:
    return sum(len(data) for data in hub.files.values())


def test_two_drops_and_a_wrong_byte_install_nothing_and_the_next_run_everything(hub: LoopbackHub, place: Path) -> None:
    hub.faults.drops, hub.faults.wrong_bytes = 2, 1
    first = pull(NAME)
    assert first.returncode == 6, first.stderr
    assert f"{SHARDS[0]} arrived damaged: its SHA-256 is" in first.stderr
    assert "nothing was installed" in first.stderr
    assert "Traceback" not in first.stderr
    assert not (place / "store").exists()
    # the drops cost less than two chunks of 1 MiB
    assert hub.served_bytes < total(hub) - len(hub.files[SHARDS[1]]) + 2 * MIB
    hub.requests.clear()
    second = pull(NAME)
    assert second.returncode == 0, second.stderr
    assert hub.fetched() == SHARDS
    assert f"{NAME} is in" in second.stdout
    assert "not for clinical use" in second.stdout
    verified = run("models", "verify", NAME)
    assert verified.returncode == 0, verified.stderr
    kept = place / "cache" / "downloads" / "MBZUAI--BiMediX2-8B-Bi" / COMMIT
    assert str(kept) in second.stdout
    # the card comes from this project, not from the hub
    assert {path.name for path in kept.iterdir()} == {path.name for path in demo_checkpoint().iterdir()} - {"card.toml"}
    # the bundle states its commit
    assert COMMIT in run("models", "show", NAME, "--json").stdout


def test_an_installed_model_answers_without_the_hub(hub: LoopbackHub, place: Path) -> None:
    assert pull(NAME, "--delete-source").returncode == 0
    assert not list((place / "cache").rglob("*.safetensors"))
    hub.requests.clear()
    answered = run("ask", "--seed", "1", "--max-tokens", "5", "Hello")
    assert answered.returncode == 0, answered.stderr
    again = pull(NAME)
    assert again.returncode == 2
    assert "is installed already. Add --force" in again.stderr
    assert hub.requests == []
    assert pull(NAME, "--force").returncode == 0


def test_after_kill_9_only_the_rest_is_fetched(hub: LoopbackHub, place: Path) -> None:
    hub.faults.seconds_per_block = 0.01
    process = subprocess.Popen(
        command("pull", NAME, "--accept-licence"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while hub.served_bytes < total(hub) * 0.7 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = hub.served_bytes
    assert total(hub) * 0.7 <= first < total(hub)
    assert not (place / "store").exists()
    hub.faults.seconds_per_block = 0.0
    result = pull(NAME)
    assert result.returncode == 0, result.stderr
    # the second run fetches again what the first held in memory, less than two chunks of 1 MiB
    assert hub.served_bytes - first < total(hub) - first + 2 * MIB < total(hub)
    assert run("models", "verify", NAME).returncode == 0


def test_the_licence_is_shown_and_must_be_accepted(hub: LoopbackHub, place: Path) -> None:
    refused = run("pull", NAME)
    assert refused.returncode == 2
    assert "CC-BY-NC-SA-4.0" in refused.stderr
    assert "--accept-licence" in refused.stderr
    assert hub.requests == []
    hub.licence = "llama3.1"
    shown = pull(NAME).stderr
    assert "Licence: CC-BY-NC-SA-4.0" in shown
    assert "The hub says: llama3.1" in shown
    assert "not for clinical use" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2)])
def test_on_a_terminal_the_user_must_accept_the_licence(hub: LoopbackHub, place: Path, answer: str, code: int) -> None:
    import pexpect

    child = pexpect.spawn(sys.executable, command("pull", NAME)[1:], timeout=120, encoding="utf-8")
    child.expect("accept this licence")
    assert hub.fetched() == []
    child.sendline(answer)
    child.expect("kept in" if code == 0 else "Nothing was fetched")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == code


def test_another_repository_has_the_name_and_licence_of_the_hub(hub: LoopbackHub, place: Path) -> None:
    hub.repository, hub.licence = "Clinic/Tuned-8B", "cc-by-4.0"
    result = pull(f"Clinic/Tuned-8B@{COMMIT}:q4_0")
    assert result.returncode == 0, result.stderr
    assert "tuned-8b:q4_0 is in" in result.stdout
    assert '"licence": "cc-by-4.0"' in run("models", "show", "tuned-8b", "--json").stdout


@pytest.mark.parametrize(
    ("name", "status", "expected"),
    [
        ("bimedix2-8b-bi", 401, (2, "HF_TOKEN")),
        ("bimedix2-8b-bi", 403, (2, "HF_TOKEN")),
        ("bimedix2-70b", 0, (2, "There is no repository")),
        ("bimedix2-8b-bi@v9", 0, (2, "has no 'v9'")),
        ("bimedix2-8b-bi", 500, (6, "USB")),
        ("bimedix2-9b", 0, (2, "bimedix2-8b-bi")),
    ],
)
def test_a_refusal_is_one_sentence_and_an_exit_code(
    hub: LoopbackHub, place: Path, name: str, status: int, expected: tuple[int, str]
) -> None:
    code, message = expected
    hub.faults.status = status
    result = pull(name)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (place / "store").exists()
    assert not (place / "cache").exists()


def test_without_a_hub_the_sentence_says_how_to_bring_the_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        result = pull(NAME)
    assert result.returncode == 6
    assert "bring the files by USB" in result.stderr
    assert "`bimedix-edge convert bimedix2-8b-bi`" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_checkpoint_that_cannot_be_converted_is_kept_and_nothing_installed(hub: LoopbackHub, place: Path) -> None:
    hub.files["config.json"] = hub.files["config.json"].replace(b'"llava_llama"', b'"phi3_v"')
    result = pull(NAME, "--delete-source")
    assert result.returncode == 4
    assert "Phi-3.5-vision" in result.stderr
    assert not list((place / "store").rglob("*.gguf"))
    assert list((place / "cache").rglob(SHARDS[0]))


def install(name: str) -> None:
    assert run("convert", "--demo", "-t", "q8_0", "-n", name).returncode == 0


def test_rm_asks_removes_and_forgets(place: Path) -> None:
    for name in ("one", "two"):
        install(name)
    unasked = run("models", "rm", "one")
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    assert (place / "store" / "one" / "q8_0" / "manifest.json").is_file()
    removed = run("models", "rm", "one", "--yes")
    assert removed.returncode == 0, removed.stderr
    assert "removed one:q8_0" in removed.stdout
    assert not (place / "store" / "one").exists()
    assert (place / "store" / "two" / "q8_0" / "manifest.json").is_file()
    assert run("models", "rm", "one", "--yes").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_rm_on_a_terminal_takes_no_for_an_answer(place: Path) -> None:
    import pexpect

    install("one")
    child = pexpect.spawn(sys.executable, command("models", "rm", "one")[1:], timeout=60, encoding="utf-8")
    child.expect("Remove one:q8_0")
    child.sendline("n")
    child.expect("Nothing was removed")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 2
    assert (place / "store" / "one" / "q8_0").is_dir()


def test_rm_refuses_a_bundle_being_written_and_one_outside_the_store(place: Path) -> None:
    install("one")
    directory = place / "store" / "one" / "q8_0"
    with exclusive(directory):
        busy = run("models", "rm", "one", "--yes")
    assert busy.returncode == 2
    assert f"process {os.getpid()} is writing it" in busy.stderr
    outside = place / "outside"
    directory.rename(outside)
    foreign = run("models", "rm", str(outside), "--yes")
    assert foreign.returncode == 2
    assert "name of an installed model" in foreign.stderr
    assert outside.is_dir()


def test_the_rest_of_a_killed_removal_is_not_listed_and_goes_with_the_next(place: Path) -> None:
    install("one")
    install("two")
    left = place / "store" / "one" / ".q8_0.removed"
    (place / "store" / "one" / "q8_0").rename(left)
    assert "one" not in run("models", "list").stdout
    assert run("models", "rm", "two", "--yes").returncode == 0
    assert not left.exists()


def test_the_demo_bundle_can_be_removed_and_comes_back(place: Path) -> None:
    assert run("models", "rm", "demo", "--yes").returncode == 2
    assert run("ask", "--max-tokens", "3", "Hello").returncode == 0
    assert run("models", "rm", "demo", "--yes").returncode == 0
    assert "demo" not in run("models", "list", "--json").stdout
    assert run("ask", "--max-tokens", "3", "Hello").returncode == 0

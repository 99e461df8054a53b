"""Fetching over a real HTTP connection from a hub on loopback that drops, lies, refuses or is missing."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.utils
import pytest
from loopback_hub import COMMIT, LoopbackHub
from make_checkpoint import Form, make_checkpoint

from bimedix_edge.converters.decoder.quantize import FILE_TYPES
from bimedix_edge.converters.hub import fetch as fetching
from bimedix_edge.converters.hub import hub as door
from bimedix_edge.converters.hub.fetch import download_directory, fetched
from bimedix_edge.converters.hub.hub import ATTEMPTS, describe
from bimedix_edge.errors import BimedixEdgeError, CheckpointError, HardwareError, NetworkError, UsageError
from bimedix_edge.staging import exclusive, remove_directory

REPOSITORY = "MBZUAI/BiMediX2-8B-Bi"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
DESCRIPTION = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository: a tiny checkpoint, its shards padded to the size of files in LFS, and other files."""
    directory = make_checkpoint(tmp_path_factory.mktemp("hub") / "repository", form=Form(n_shards=2))
    for index, shard in enumerate(SHARDS):
        (directory / shard).write_bytes(bytes([index]) * 100 + os.urandom(3_000_000))
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04" + bytes(50))
    (directory / "other.safetensors").write_bytes(bytes(2_000_000))
    (directory / "README.md").write_text("read me")
    return directory


@pytest.fixture
def hub(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(source) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (huggingface_hub.constants, huggingface_hub.file_download):
            # versions below 1.0 copy it
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        close_session()
        # the pauses before another attempt, huggingface-hub's own included
        monkeypatch.setattr("time.sleep", lambda _: None)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.shutdown()


def close_session() -> None:
    """Make huggingface-hub open a new connection; versions below 1.0 read offline mode only then."""
    new, old = (getattr(huggingface_hub.utils, name, None) for name in ("close_session", "reset_sessions"))
    (new or old)()


def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "downloads" / "MBZUAI--BiMediX2-8B-Bi" / COMMIT


def bring(tmp_path: Path, progress: Any = lambda *_: None) -> Path:
    snapshot = describe(REPOSITORY, "main")
    directory = download_directory(tmp_path / "cache", snapshot)
    kind = FILE_TYPES["Q4_K_M"]
    with fetched(snapshot, directory, target=tmp_path / "store" / "m", file_type=kind, progress=progress):
        return directory


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def same(directory: Path, source: Path) -> bool:
    return all((directory / name).read_bytes() == (source / name).read_bytes() for name in names(directory))


def test_only_the_files_that_conversion_reads_are_fetched_each_once(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    directory = bring(tmp_path)
    assert directory == kept(tmp_path)
    assert names(directory) == sorted([*DESCRIPTION, "vision_tower/config.json", *SHARDS])
    assert sorted(hub.fetched()) == names(directory)
    assert same(directory, source)
    # no telemetry, no registry, no other endpoint
    assert {request.path.split("/")[1] for request in hub.requests} == {"api", "MBZUAI"}
    assert [request.path for request in hub.requests if "/api/" in request.path] == [
        f"/api/models/{REPOSITORY}/revision/main"
    ]
    agents = {request.headers["user-agent"].split("/")[0] for request in hub.requests if "resolve" in request.path}
    assert agents == {"bimedix-edge"}


def test_progress_counts_the_bytes_of_each_stage(hub: LoopbackHub, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    bring(tmp_path, lambda stage, done, total: seen.setdefault(stage, []).append((done, total)))
    for stage in ("description", "weights"):
        done = [pair[0] for pair in seen[stage] if pair[1] == seen[stage][0][1]]
        assert done == sorted(done)
        assert seen[stage][-1][0] == seen[stage][-1][1]
    assert len(seen["weights"]) > 6


def test_dropped_connections_are_resumed_where_they_broke(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    hub.faults.drops = 2
    assert same(bring(tmp_path), source)
    total = sum(
        len(hub.files[name]) for name in names(tmp_path / "cache" / "downloads" / "MBZUAI--BiMediX2-8B-Bi" / COMMIT)
    )
    # whole chunks of 1 MB are kept, so a drop costs less than one
    assert total <= hub.served_bytes < total + 2 * (1 << 20)
    assert sorted(request.first_byte > 0 for request in hub.requests if "00001" in request.path)[-1]


def test_a_line_that_drops_again_and_again_is_survived_while_it_brings_bytes(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    hub.faults.drops = 1000
    hub.faults.drops_after_bytes = 1_200_000
    assert same(bring(tmp_path), source)


def test_a_line_that_brings_nothing_is_given_up_and_what_came_is_kept(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults.drops = 10_000
    hub.faults.drops_after_bytes = 1000
    with pytest.raises(NetworkError, match=rf"model-00001-of-00002.*failed {ATTEMPTS} times in a row.*run the command"):
        bring(tmp_path)
    asked = [name for name in hub.fetched() if name == SHARDS[0]]
    assert ATTEMPTS <= len(asked) <= ATTEMPTS * 6


def test_a_wrong_byte_is_named_and_the_next_run_fetches_that_file_only(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    hub.faults.drops, hub.faults.wrong_bytes = 2, 1
    with pytest.raises(
        NetworkError, match=rf"{SHARDS[0]} arrived damaged: its SHA-256 is [0-9a-f]{{16}}.* nothing was installed"
    ):
        bring(tmp_path)
    assert names(kept(tmp_path)) == sorted([*DESCRIPTION, "vision_tower/config.json"])
    hub.requests.clear()
    assert same(bring(tmp_path), source)
    assert hub.fetched() == SHARDS


def test_a_small_file_is_checked_too_before_anything_parses_it(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.listing_edits["config.json"] = {"blobId": "0" * 40}
    with pytest.raises(NetworkError, match=r"config\.json arrived damaged: its git hash is .* states 0000000000000000"):
        bring(tmp_path)
    assert hub.fetched() == ["config.json"]


def test_a_file_that_the_disk_damaged_is_fetched_again(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    directory = bring(tmp_path)
    with (directory / SHARDS[1]).open("r+b") as file:
        file.seek(5)
        file.write(b"?")
    (directory / "tokenizer.json").write_text("{}")
    hub.requests.clear()
    bring(tmp_path)
    assert hub.fetched() == ["tokenizer.json", SHARDS[1]]
    assert same(directory, source)


def test_a_partial_file_is_continued_and_an_overlong_one_is_begun_again(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    directory = kept(tmp_path)
    directory.mkdir(parents=True)
    (directory / f".{SHARDS[0]}.part").write_bytes(hub.files[SHARDS[0]][:2_000_000])
    (directory / f".{SHARDS[1]}.part").write_bytes(bytes(4_000_000))
    bring(tmp_path)
    assert same(directory, source)
    starts = {request.path.rsplit("/")[-1]: request.first_byte for request in hub.requests}
    assert (starts[SHARDS[0]], starts[SHARDS[1]]) == (2_000_000, 0)


def test_a_complete_partial_file_needs_no_request(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    directory = kept(tmp_path)
    directory.mkdir(parents=True)
    (directory / f".{SHARDS[0]}.part").write_bytes(hub.files[SHARDS[0]])
    bring(tmp_path)
    assert SHARDS[0] not in hub.fetched()
    assert same(directory, source)


def test_a_server_without_ranges_still_ends_in_the_right_bytes(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    hub.faults.ignores_range, hub.faults.drops = True, 1
    for _ in range(3):
        try:
            directory = bring(tmp_path)
            break
        except NetworkError:  # old versions of huggingface-hub append, which the size or the hash reveals
            for part in (tmp_path / "cache").rglob("*.part"):
                part.unlink()
    assert same(directory, source)


def test_large_files_may_come_from_another_path(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    hub.faults.redirects, hub.faults.drops = True, 1
    assert same(bring(tmp_path), source)


def test_a_busy_hub_is_asked_again(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    snapshot = describe(REPOSITORY, "main")
    hub.faults.errors = 2
    directory = download_directory(tmp_path, snapshot)
    kind = FILE_TYPES["F16"]
    with fetched(snapshot, directory, target=tmp_path / "m", file_type=kind, progress=lambda *_: None):
        assert same(directory, source)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((401, ""), UsageError, "refuses access .*401.*HF_TOKEN"),
        ((403, ""), UsageError, "refuses access .*403.*HF_TOKEN"),
        ((403, "GatedRepo"), UsageError, "ask for consent first.*HF_TOKEN"),
        ((404, "RepoNotFound"), UsageError, "There is no repository .*404"),
        ((404, "RevisionNotFound"), UsageError, "has no 'main'"),
        ((404, ""), UsageError, "There is no repository .*404"),
        ((410, ""), NetworkError, "answers 410"),
        ((500, ""), NetworkError, "bring the files by USB"),
    ],
)
def test_a_refusal_is_one_sentence(
    hub: LoopbackHub, tmp_path: Path, answer: tuple[int, str], kind: type[BimedixEdgeError], message: str
) -> None:
    hub.faults.status, hub.faults.error_code = answer
    with pytest.raises(kind, match=message) as caught:
        bring(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_token_is_sent_as_huggingface_hub_finds_it(
    hub: LoopbackHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.token = "hf_test"
    with pytest.raises(UsageError, match="401"):
        bring(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert same(bring(tmp_path), source)


def test_a_missing_hub_is_one_sentence_that_says_how_to_bring_the_files(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(NetworkError, match=r"USB.*tokenizer\.json.*`bimedix-edge convert bimedix2-8b-bi`"):
            bring(tmp_path)


def test_offline_mode_is_named(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        bring(tmp_path)
    assert hub.requests == []


@pytest.mark.parametrize("text", ["<html>please log in</html>", "[]", "{}", '{"id": "x", "sha": null}', '{"id": 1}'])
def test_a_network_that_answers_something_else_is_not_taken_for_a_hub(
    hub: LoopbackHub, tmp_path: Path, text: str
) -> None:
    hub.faults.api_text = text
    with pytest.raises(NetworkError, match="answer as a hub"):
        bring(tmp_path)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (["config.json"], "no config.json"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer.json and no tokenizer_config.json"),
        (["model.safetensors.index.json"], "neither model.safetensors nor"),
        ([SHARDS[1]], "'model-00002-of-00002.safetensors', which is missing there"),
    ],
)
def test_an_incomplete_repository_is_refused_before_its_weights(
    hub: LoopbackHub, tmp_path: Path, drop: list[str], message: str
) -> None:
    for name in drop:
        del hub.files[name]
    with pytest.raises(CheckpointError, match=message):
        bring(tmp_path)
    assert not set(hub.fetched()) & {*SHARDS, "pytorch_model.bin"}


@pytest.mark.parametrize(
    "shard", ["../../../x.safetensors", "pytorch_model.bin", "/etc/x.safetensors", "a/b.safetensors"]
)
def test_an_index_may_name_nothing_but_safetensors_beside_it(hub: LoopbackHub, tmp_path: Path, shard: str) -> None:
    hub.files[shard] = b"x"
    hub.files["model.safetensors.index.json"] = f'{{"weight_map": {{"a": "{shard}"}}}}'.encode()
    with pytest.raises(CheckpointError, match="instead of safetensors files beside it"):
        bring(tmp_path)
    assert shard not in hub.fetched()


def test_a_file_without_a_stated_hash_is_as_good_as_missing(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.listing_edits[SHARDS[0]] = {"lfs": None, "blobId": None}
    with pytest.raises(CheckpointError, match="states no hash"):
        bring(tmp_path)


def test_a_hub_that_sends_more_than_it_states_cannot_fill_the_disk(hub: LoopbackHub, tmp_path: Path) -> None:
    lfs = {"size": 1_500_000, "sha256": "0" * 64, "pointerSize": 130}
    hub.listing_edits[SHARDS[0]] = {"size": 1_500_000, "lfs": lfs}
    with pytest.raises(NetworkError, match="sends more"):
        bring(tmp_path)
    (part,) = (tmp_path / "cache").rglob(f".{SHARDS[0]}.part")
    assert part.stat().st_size <= 1_500_000


def test_too_little_space_is_said_before_the_weights(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HardwareError, match=r"on the same disk\. Free some space, or set BIMEDIX_EDGE_CACHE_DIR"):
        bring(tmp_path)
    assert not set(hub.fetched()) & set(SHARDS)


def test_a_full_disk_is_no_network_error(
    hub: LoopbackHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(door, "PartFile", _full_after(1_048_576))
        with pytest.raises(HardwareError, match="No space left"):
            bring(tmp_path)
    hub.requests.clear()
    assert same(bring(tmp_path), source)
    assert next(request for request in hub.requests if SHARDS[0] in request.path).first_byte > 0


def _full_after(n_bytes: int) -> type:
    class Full(door.PartFile):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > n_bytes:
                with fetching.disk_errors(self.path):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    return Full


def test_two_at_once_are_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    directory = kept(tmp_path)
    directory.parent.mkdir(parents=True)
    with exclusive(directory), pytest.raises(UsageError, match=f"process {os.getpid()} is writing it"):
        bring(tmp_path)


def test_what_was_fetched_is_not_deleted_or_fetched_again_while_it_is_converted(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    snapshot = describe(REPOSITORY, "main")
    directory = download_directory(tmp_path / "cache", snapshot)
    kind = FILE_TYPES["Q4_K_M"]
    with fetched(snapshot, directory, target=tmp_path / "m", file_type=kind, progress=lambda *_: None):
        hub.requests.clear()
        with pytest.raises(UsageError, match=f"process {os.getpid()} is writing it"):
            bring(tmp_path)
        with pytest.raises(UsageError, match=f"process {os.getpid()} is writing it"):
            remove_directory(directory)
        assert hub.fetched() == []
        assert same(directory, source)
    remove_directory(directory)


def test_a_conversion_that_fails_is_not_taken_for_a_fault_of_the_download(hub: LoopbackHub, tmp_path: Path) -> None:
    snapshot = describe(REPOSITORY, "main")
    directory = download_directory(tmp_path / "cache", snapshot)
    kind = FILE_TYPES["Q4_K_M"]
    with (
        pytest.raises(OSError, match="No space left"),
        fetched(snapshot, directory, target=tmp_path / "m", file_type=kind, progress=lambda *_: None),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert bring(tmp_path) == directory

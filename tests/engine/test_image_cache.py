"""The image cache on the disk: private, bounded, checked before use, and never the wrong image."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bimedix_edge import Done, Encode, Runtime, Settings
from bimedix_edge.engine.image_cache import ImageCache, cache_usage, clear_cache
from bimedix_edge.errors import UsageError
from bimedix_edge.imaging.picture import load_picture

SHAPE = (5, 8)
ENTRY_BYTES = 21 + 32 + 8 + 4 * 5 * 8
COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main"]
QUESTION = "Is there a nodule?"

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def entries(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.embeds"))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> ImageCache:
    return ImageCache(tmp_path / "cache" / "images", 1 << 20, said.append)


def test_what_is_kept_is_found_again_bit_for_bit(cache: ImageCache, said: list[str]) -> None:
    assert cache.get("a", SHAPE) is None
    cache.put("a", values(1))
    cache.put("b", values(2))
    again = ImageCache(cache.directory, 1 << 20)
    for key, seed in (("a", 1), ("b", 2)):
        found = again.get(key, SHAPE)
        assert found is not None
        assert found.dtype == np.float32
        assert found.tobytes() == values(seed).tobytes()
    assert cache_usage(cache.directory) == type(cache_usage(cache.directory))(2, 2 * ENTRY_BYTES)
    assert said == []


@posix
def test_only_its_user_can_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        ImageCache(directory, 1 << 20).put("a", values(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = sorted(path.name for path in directory.iterdir())
    assert len(names) == 2
    assert {stat.S_IMODE((directory / name).stat().st_mode) for name in names} == {0o600}


def test_names_do_not_tell_which_picture(tmp_path: Path) -> None:
    names = []
    for place in "xy":
        cache = ImageCache(tmp_path / place, 1 << 20)
        cache.put("a", values(1))
        (path,) = entries(cache.directory)
        names.append(path.name)
    # the same image in two installations has two names
    assert names[0] != names[1]


def test_every_damaged_byte_is_noticed_before_it_is_used(cache: ImageCache, said: list[str]) -> None:
    cache.put("a", values(1))
    (path,) = entries(cache.directory)
    whole = path.read_bytes()
    for place in range(ENTRY_BYTES):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        assert cache.get("a", SHAPE) is None, place
        assert not path.exists()
    assert len(said) == ENTRY_BYTES
    assert all(text.endswith("it was removed, and the image is encoded again.") for text in said)
    for data in (b"", whole[:-1], whole + b"\0", whole[:40]):
        path.write_bytes(data)
        assert cache.get("a", SHAPE) is None
        assert not path.exists()


def test_an_entry_under_the_name_of_another_image_is_dropped(cache: ImageCache, said: list[str]) -> None:
    cache.put("a", values(1))
    (one,) = entries(cache.directory)
    cache.put("b", values(2))
    (two,) = [path for path in entries(cache.directory) if path != one]
    one.replace(two)
    assert cache.get("b", SHAPE) is None
    assert len(said) == 1


def test_an_entry_of_another_shape_is_dropped(cache: ImageCache) -> None:
    cache.put("a", values(1).reshape(8, 5))
    assert cache.get("a", SHAPE) is None
    assert cache_usage(cache.directory).n_images == 0


@posix
def test_a_link_is_not_followed(cache: ImageCache, tmp_path: Path, said: list[str]) -> None:
    cache.put("a", values(1))
    (path,) = entries(cache.directory)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.get("a", SHAPE) is None
    assert said
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is not a directory of your own"):
        ImageCache(tmp_path / "link", 1 << 20)


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images", 3 * ENTRY_BYTES)
    paths: dict[str, Path] = {}
    for place, key in enumerate("abc"):
        cache.put(key, values(place))
        (paths[key],) = set(entries(cache.directory)) - set(paths.values())
    for age, path in enumerate(entries(cache.directory)):
        os.utime(path, ns=(0, age))
    assert cache.get("a", SHAPE) is not None  # used now
    oldest = min("bc", key=lambda key: paths[key].stat().st_mtime_ns)
    cache.put("d", values(9))
    assert cache_usage(cache.directory).size_bytes == 3 * ENTRY_BYTES
    assert {key for key in "abcd" if cache.get(key, SHAPE) is not None} == set("abcd") - {oldest}


def test_an_image_larger_than_the_cache_is_not_kept_and_that_is_said(tmp_path: Path, said: list[str]) -> None:
    cache = ImageCache(tmp_path / "images", ENTRY_BYTES - 1, said.append)
    cache.put("a", values(1))
    assert cache_usage(cache.directory).n_images == 0
    assert "set image_cache to more" in said[0]


def test_clearing_leaves_nothing(cache: ImageCache) -> None:
    cache.put("a", values(1))
    (cache.directory / ".left.part").write_bytes(b"of a killed process")
    assert clear_cache(cache.directory).n_images == 1
    assert list(cache.directory.iterdir()) == []
    assert cache.get("a", SHAPE) is None
    # an open cache goes on, under a new secret
    cache.put("a", values(1))
    assert cache.get("a", SHAPE) is not None


def test_clearing_what_is_not_there(tmp_path: Path) -> None:
    assert clear_cache(tmp_path / "nowhere").n_images == 0
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_secret_leaves_an_empty_cache(cache: ImageCache, said: list[str]) -> None:
    cache.put("a", values(1))
    (cache.directory / "secret").write_bytes(b"short")
    assert cache.get("a", SHAPE) is None
    assert "starts empty" in said[0]
    cache.put("a", values(1))
    assert cache.get("a", SHAPE) is not None


def test_a_disk_that_fails_costs_no_answer(cache: ImageCache, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        cache.put("a", values(1))
    assert "No space left on device" in said[0]
    assert "was not kept" in said[0]
    assert not list(cache.directory.iterdir())


def test_many_threads_with_caches_of_their_own(tmp_path: Path) -> None:
    said: list[str] = []
    wrong: list[int] = []

    def work(start: int) -> None:
        cache = ImageCache(tmp_path / "images", 6 * ENTRY_BYTES, said.append)
        for turn in range(40):
            seed = (start + turn) % 12
            cache.put(str(seed), values(seed))
            found = cache.get(str(seed), SHAPE)
            if found is not None and found.tobytes() != values(seed).tobytes():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (said, wrong) == ([], [])
    assert cache_usage(tmp_path / "images").size_bytes <= 6 * ENTRY_BYTES


def ask(model: Path, image: Path, *options: str) -> tuple[dict, str]:
    words = [*COMMAND, "ask", "--json", "--temperature", "0", "-m", str(model), "-i", str(image), *options, QUESTION]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(result.stdout), result.stderr


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def test_a_new_process_encodes_nothing_again(bundles: dict[str, Path], samples: Path, own_cache: Path) -> None:
    image = samples / "nodule_right_upper.png"
    without, _ = ask(bundles["F16"], image)
    assert not own_cache.exists()
    first, _ = ask(bundles["F16"], image, "--image-cache", "64M")
    second, _ = ask(bundles["F16"], image, "--image-cache", "64M")
    other, _ = ask(bundles["F16"], samples / "normal.png", "--image-cache", "64M")
    assert [report["images"][0]["cached"] for report in (without, first, second, other)] == [False, False, True, False]
    assert [report["answer"] for report in (without, first, second, other)] == ["Yes.", "Yes.", "Yes.", "No."]
    assert cache_usage(own_cache).n_images == 2


def test_a_damaged_entry_is_said_and_the_answer_is_right(
    bundles: dict[str, Path], samples: Path, own_cache: Path
) -> None:
    image = samples / "nodule_right_upper.png"
    ask(bundles["F16"], image, "--image-cache", "64M")
    (path,) = entries(own_cache)
    path.write_bytes(path.read_bytes()[:-7])
    report, warning = ask(bundles["F16"], image, "--image-cache", "64M")
    assert report["answer"] == "Yes."
    assert report["images"][0]["cached"] is False
    assert "is damaged; it was removed" in " ".join(warning.split())


def test_the_same_question_about_two_images_with_the_cache(
    bundles: dict[str, Path], samples: Path, own_cache: Path
) -> None:
    settings = Settings(temperature=0.0, ctx_size=1024, image_cache="64M", cache_dir=own_cache.parent)
    answers, encodes = [], 0
    for _ in range(2):
        with Runtime.open(bundles["F16"], settings=settings) as runtime:
            for name in ("nodule_right_upper", "normal"):
                with runtime.chat() as chat:
                    events = list(chat.ask(QUESTION, [samples / f"{name}.png"]))
                encodes += Encode(0, 1, done=True) in events
                assert isinstance(events[-1], Done)
                answers.append(events[-1].text)
    assert answers == ["Yes.", "No."] * 2
    assert encodes == 2


def test_another_encoder_or_device_is_another_key(runtime: Runtime, samples: Path) -> None:
    picture = load_picture(samples / "normal.png")
    keys = {runtime.engine.prompt_image(picture).key}
    identity = runtime.engine.vision.identity
    for other in (f"x{identity[1:]}", identity.replace("|cpu|", "|cuda|"), f"{identity}.1"):
        runtime.engine.vision.identity = other
        keys.add(runtime.engine.prompt_image(picture).key)
    assert len(keys) == 4


def test_show_and_clear(bundles: dict[str, Path], samples: Path, own_cache: Path) -> None:
    def cache_command(*words: str) -> str:
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True).stdout

    assert "off: 0 images" in cache_command("cache", "show")
    ask(bundles["F16"], samples / "normal.png", "--image-cache", "64M")
    report = json.loads(cache_command("cache", "show", "--json"))
    assert (report["image_cache"], report["images"], report["directory"]) == ("off", 1, str(own_cache))
    assert report["size_bytes"] > 0
    assert "erased 1 images" in cache_command("cache", "clear")
    assert list(own_cache.iterdir()) == []


@pytest.mark.parametrize("size", ["1", "63M", "2T", "yes", "-2G", "2g"])
def test_a_wrong_size_is_wrong_usage(size: str) -> None:
    result = subprocess.run([*COMMAND, "ask", "--image-cache", size, "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Use off or a size from 64M" in " ".join(result.stderr.split())

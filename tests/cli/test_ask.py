"""`bimedix-edge ask` as a user runs it: a process, its output and its exit code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from bimedix_edge.schema.reports import load_schema

COMMAND = [sys.executable, "-m", "bimedix_edge.cli.main"]


def run(*arguments: str | bytes | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    words: Sequence[bytes] = [os.fsencode(argument) for argument in arguments]
    return subprocess.run([*map(os.fsencode, COMMAND), *words], capture_output=True, input=stdin, check=False)


@pytest.fixture(scope="module")
def model(bundles: dict[str, Path]) -> Path:
    return bundles["F16"]


def test_an_answer_and_the_notice_are_on_standard_output(model: Path, samples: Path) -> None:
    result = run("ask", "-m", model, "-i", samples / "nodule_right_upper.png", "Is there a nodule?")
    assert result.returncode == 0
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "Yes."
    assert "not for clinical use" in lines[-1]
    assert "CC BY-NC-SA 4.0" in lines[-1]


def test_an_arabic_question_has_an_arabic_answer_in_logical_order_in_a_pipe(model: Path, samples: Path) -> None:
    result = run("ask", "-m", model, "--bidi", "on", "-i", samples / "nodule_right_upper.png", "هل توجد عقيدة رئوية؟")
    assert result.stdout.decode().splitlines()[0] == "نعم."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Where do you see the nodule?", "In the upper zone of the right lung."),
        ("أين توجد العقيدة؟", "في المنطقة العلوية من الرئة اليمنى."),
    ],
)
def test_what_make_demo_asks_is_answered_right(model: Path, samples: Path, question: str, answer: str) -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f'"{question}"' in makefile
    result = run("ask", "-m", model, "-i", samples / "nodule_right_upper.png", question)
    lines = result.stdout.decode().splitlines()
    assert lines[0] == answer
    assert "it knows no medicine" in lines[-1]


def test_json_is_one_object_with_everything(model: Path, samples: Path) -> None:
    path = samples / "effusion_left.png"
    result = run("ask", "--json", "--seed", "7", "-m", model, "-i", path, "Is there a nodule?")
    assert result.returncode == 0
    report = json.loads(result.stdout)
    assert set(report) == {
        "answer", "model", "stop_reason", "tokens", "images", "timings_ms", "seed", "plan", "notice"
    }  # fmt: skip
    assert report["answer"] == "No."
    assert report["stop_reason"] == "end"
    assert set(report["tokens"]) == {"prompt", "reused", "generated"}
    assert report["tokens"]["reused"] == 0
    with Image.open(path) as image:
        width, height = image.size
    assert report["images"] == [
        {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "width_px": width,
            "height_px": height,
            "cached": False,
            "format": "PNG",
            "notes": [],
            "warnings": [],
            "tags": {},
        }
    ]
    assert set(report["timings_ms"]) == {"load", "encode", "prefill", "first_token", "decode"}
    assert report["seed"] == 7
    assert result.stderr == b""


@pytest.mark.parametrize("name", ["report", "summary", "vqa"])
def test_a_shipped_schema_gives_one_object_and_the_notice(model: Path, samples: Path, name: str) -> None:
    options = ("--schema", name, "--temperature", "1", "--seed", "3")
    result = run("ask", *options, "-m", model, "-i", samples / "effusion_left.png", "ماذا ترى؟")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert set(printed) == {"object", "notice"}
    assert "not for clinical use" in printed["notice"]
    assert list(printed["object"]) == load_schema(name)["required"]


def test_a_schema_from_a_file_with_json(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "properties": {"seen": {"type": "boolean"}}, "required": ["seen"]}')
    result = run("ask", "--json", "--schema", path, "-m", model, "Is there a nodule?")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["object"] == json.loads(report["answer"])
    assert isinstance(report["object"]["seen"], bool)
    assert report["stop_reason"] == "end"


def test_an_answer_cut_inside_its_object_is_an_error_and_kept_only_in_the_report(model: Path) -> None:
    options = ("ask", "--schema", "report", "--max-tokens", "8", "-m", model)
    result = run(*options, "Hello")
    assert result.returncode == 3
    assert result.stdout == b""
    assert b"after 8 tokens the answer was cut (max_tokens)" in result.stderr
    result = run(*options, "--json", "Hello")
    assert result.returncode == 3
    report = json.loads(result.stdout)
    assert report["object"] is None
    assert report["answer"].startswith("{")
    assert report["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "is not a schema. Choose report, "),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"not": {}}', "#/not cannot"),
        (" " * 70_000, "larger than 65536 bytes"),
    ],
)
def test_a_schema_that_cannot_be_used_costs_no_loading(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    result = run("ask", "--schema", path, "-m", tmp_path / "no model here", "Hello")
    assert result.returncode == 3
    assert expected in result.stderr.decode()
    assert b"Traceback" not in result.stderr


def test_a_question_comes_from_standard_input(model: Path) -> None:
    result = run("ask", "--json", "-m", model, "-", stdin="من أنت؟\n".encode())
    assert result.returncode == 0
    assert json.loads(result.stdout)["answer"]


def test_timings_go_to_standard_error(model: Path) -> None:
    result = run("ask", "-v", "-m", model, "Hello")
    assert b"first token" in result.stderr
    assert b"first token" not in result.stdout


def test_the_demo_model_answers_when_nothing_is_installed_and_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("BIMEDIX_EDGE_STORE_DIR", str(tmp_path / "store"))
    first = run("ask", "Hello")
    assert first.returncode == 0, first.stderr
    assert b"demo model" in first.stderr
    assert b"Converting" in first.stderr
    (converted,) = (tmp_path / "cache" / "demo").iterdir()
    written = (converted / "manifest.json").stat().st_mtime_ns
    second = run("ask", "Hello")
    assert second.returncode == 0
    assert b"Converting" not in second.stderr
    assert (converted / "manifest.json").stat().st_mtime_ns == written
    assert not (tmp_path / "store").exists()


def test_two_first_uses_at_once_both_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIMEDIX_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    command = [*COMMAND, "ask", "--json", "Hello"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert all(json.loads(output)["answer"] for output, _ in results)
    assert len(list((tmp_path / "cache" / "demo").iterdir())) == 1


def _one_sentence(result: subprocess.CompletedProcess[bytes]) -> str:
    text = result.stderr.decode("utf-8", "replace")
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("bimedix-edge: ")]
    assert len(lines) == 1, text
    assert lines[0].endswith(".")
    assert result.stdout == b""
    return lines[0]


@pytest.fixture
def bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with files in it that are no pictures."""
    monkeypatch.chdir(tmp_path)
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("not an image")
    Image.effect_noise((300, 300), 50).save("whole.jpg")
    Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:5000])
    Image.new("1", (9000, 9000)).save("large.png")
    Path("document.pdf").write_bytes(b"%PDF-1.7")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-i", "nowhere.png", "What?"], 3, "cannot be read"),
        (["-i", ".", "What?"], 3, "is a directory"),
        (["-i", "empty.png", "What?"], 3, "is empty"),
        (["-i", "text.png", "What?"], 3, "no image format"),
        (["-i", "cut.jpg", "What?"], 3, "damaged or truncated"),
        (["-i", "large.png", "What?"], 3, "50 megapixels"),
        (["-i", "document.pdf", "What?"], 3, "is PDF"),
        ([""], 3, "empty"),
        (["word " * 5000], 3, "too many"),
        ([b"abc\xff\xfe"], 3, "character 4 is damaged"),
        (["--ctx-size", "1", "What?"], 2, "ctx_size cannot be 1"),
        (["--temperature", "-1", "What?"], 2, "temperature cannot be -1.0"),
        (["--ctx-size", "1000000000", "What?"], 2, "ctx_size cannot be 1000000000"),
    ],
)
def test_bad_input_is_one_sentence_and_a_documented_code(
    model: Path, bad_files: Path, arguments: list[str | bytes], code: int, message: str
) -> None:
    before = sorted(path.name for path in bad_files.iterdir())
    result = run("ask", "-m", model, *arguments)
    assert message in _one_sentence(result)
    assert result.returncode == code
    assert sorted(path.name for path in bad_files.iterdir()) == before


def test_a_context_that_does_not_fit_into_memory_is_a_hardware_error(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(model, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["decoder"] |= {"n_head_kv": 4096, "head_dim": 4096}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = run("ask", "-m", copy, "--ctx-size", "131072", "What?")
    assert "The model needs " in _one_sentence(result)
    assert result.returncode == 5


def test_a_changed_byte_in_the_model_is_found_before_it_is_parsed(model: Path, tmp_path: Path) -> None:
    for name in ("decoder.gguf", "vision.onnx"):
        copy = tmp_path / name
        shutil.copytree(model, copy)
        data = bytearray((copy / name).read_bytes())
        data[20] ^= 255
        (copy / name).write_bytes(data)
        result = run("ask", "-m", copy, "What?")
        assert f"{name} has other content" in _one_sentence(result)
        assert result.returncode == 4


def test_an_unknown_model_lists_what_there_is() -> None:
    result = run("ask", "-m", "nonsense", "What?")
    assert "No installed model is named" in _one_sentence(result)
    assert result.returncode == 2


@pytest.mark.parametrize("arguments", [["ask"], ["ask", "--nonsense", "x"], ["nonsense"], ["ask", "--seed", "x", "y"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


def test_control_characters_in_a_question_are_data(model: Path) -> None:
    assert run("ask", "-m", model, "a\x1b[2Jb\x07c\x01").returncode == 0


def test_ctrl_c_ends_with_130_and_no_traceback(model: Path) -> None:
    arguments = ["ask", "-m", str(model), "--temperature", "5", "--ctx-size", "65536", "--max-tokens", "60000", "Hello"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"not for clinical use" in output


def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    words = " ".join([*COMMAND, "ask", "-m", str(model), "--max-tokens", "400", "--temperature", "5", "Hello"])
    result = subprocess.run(["bash", "-c", f"{words} | head -c 1"], capture_output=True, check=False)
    assert b"Traceback" not in result.stderr
    assert b"Exception" not in result.stderr


def test_help_is_quick_to_import(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom bimedix_edge.cli.main import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('llama_cpp', 'onnxruntime', 'onnx', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"

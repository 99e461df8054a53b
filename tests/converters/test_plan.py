"""What a dry run promises, against what the conversion then does."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from make_checkpoint import make_checkpoint

from bimedix_edge.converters.convert import convert, dry_run
from bimedix_edge.converters.job import forecast as plan_module
from bimedix_edge.errors import CheckpointError, UsageError


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M", "Q8_0"])
def test_tensors_and_sizes(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    plan = dry_run(checkpoint, tmp_path / "deep/er/out", file_type=kind)
    assert list(tmp_path.iterdir()) == []
    manifest = convert(checkpoint, tmp_path / "out", file_type=kind)
    written = gguf.GGUFReader(tmp_path / "out/decoder.gguf").tensors
    for row in plan.rows:
        own = [tensor for tensor in written if tensor.tensor_type.name == row.kind]
        found = (len(own), sum(int(tensor.n_elements) for tensor in own), sum(int(tensor.n_bytes) for tensor in own))
        assert found == (row.n_tensors, row.n_weights, row.size_bytes)
    assert sum(row.n_tensors for row in plan.rows) == len(written)
    assert manifest.files["decoder"].size_bytes <= plan.decoder_bytes
    assert manifest.files["vision"].size_bytes <= plan.vision_bytes
    assert plan.seconds > 0
    assert plan.fits


def test_auto_plans_for_int8(checkpoint: Path, tmp_path: Path) -> None:
    plans = {kind: dry_run(checkpoint, tmp_path / "out", vision=kind) for kind in ("auto", "int8", "float32")}  # type: ignore[arg-type]
    assert plans["auto"].vision_bytes == plans["int8"].vision_bytes < plans["float32"].vision_bytes
    written = convert(checkpoint, tmp_path / "out", vision="int8").files["vision"].size_bytes
    assert written <= plans["auto"].vision_bytes


def test_a_full_disk_is_said(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = plan_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    plan = dry_run(checkpoint, tmp_path / "out")
    assert (plan.fits, plan.free_bytes) == (False, 1000)


def test_what_an_interrupted_conversion_holds_is_free(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = plan_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/decoder.gguf").write_bytes(bytes(500))
    assert dry_run(checkpoint, tmp_path / "out").free_bytes == 1500
    assert dry_run(checkpoint, tmp_path / "other").free_bytes == 1000


def test_an_existing_target_is_refused_unless_it_may_be_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out exists"):
        dry_run(checkpoint, tmp_path / "out")
    assert dry_run(checkpoint, tmp_path / "out", replace=True).fits
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        dry_run(checkpoint, tmp_path / "file", replace=True)


def test_what_conversion_refuses_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is none; choose one of them"):
        dry_run(checkpoint, tmp_path / "out", file_type="Q9")
    with pytest.raises(CheckpointError):
        dry_run(tmp_path, tmp_path / "out")
    source = make_checkpoint(tmp_path / "source")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        dry_run(source, tmp_path / "out")

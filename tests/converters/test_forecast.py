"""The forecast of a dry run, compared with the conversion."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from make_checkpoint import make_checkpoint

from bimedix_edge.converters.convert import ConvertOptions, convert, dry_run
from bimedix_edge.converters.job import forecast as forecast_module
from bimedix_edge.converters.vision.weights import VisionChoice
from bimedix_edge.errors import CheckpointError, UsageError


@pytest.mark.parametrize("kind", ["F16", "Q4_K_M", "Q8_0"])
def test_tensors_and_sizes(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    forecast = dry_run(checkpoint, tmp_path / "deep/er/out", ConvertOptions(file_type=kind))
    assert list(tmp_path.iterdir()) == []
    manifest = convert(checkpoint, tmp_path / "out", ConvertOptions(file_type=kind))
    written = gguf.GGUFReader(tmp_path / "out/decoder.gguf").tensors
    for row in forecast.rows:
        own = [tensor for tensor in written if tensor.tensor_type.name == row.kind]
        found = (len(own), sum(int(tensor.n_elements) for tensor in own), sum(int(tensor.n_bytes) for tensor in own))
        assert found == (row.n_tensors, row.n_weights, row.size_bytes)
    assert sum(row.n_tensors for row in forecast.rows) == len(written)
    assert manifest.files["decoder"].size_bytes <= forecast.decoder_bytes
    assert manifest.files["vision"].size_bytes <= forecast.vision_bytes
    assert forecast.seconds > 0
    assert forecast.fits


def test_auto_is_forecast_as_int8(checkpoint: Path, tmp_path: Path) -> None:
    kinds: tuple[VisionChoice, ...] = ("auto", "int8", "float32")
    forecasts = {kind: dry_run(checkpoint, tmp_path / "out", ConvertOptions(vision=kind)) for kind in kinds}
    assert forecasts["auto"].vision_bytes == forecasts["int8"].vision_bytes < forecasts["float32"].vision_bytes
    written = convert(checkpoint, tmp_path / "out", ConvertOptions(vision="int8")).files["vision"].size_bytes
    assert written <= forecasts["auto"].vision_bytes


def test_a_full_disk_is_forecast(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = forecast_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(forecast_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    forecast = dry_run(checkpoint, tmp_path / "out")
    assert (forecast.fits, forecast.free_bytes) == (False, 1000)


def test_the_space_of_an_interrupted_conversion_is_free(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = forecast_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(forecast_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/decoder.gguf").write_bytes(bytes(500))
    assert dry_run(checkpoint, tmp_path / "out").free_bytes == 1500
    assert dry_run(checkpoint, tmp_path / "other").free_bytes == 1000


def test_an_existing_target_is_refused_unless_it_may_be_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out exists"):
        dry_run(checkpoint, tmp_path / "out")
    assert dry_run(checkpoint, tmp_path / "out", ConvertOptions(replace=True)).fits
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        dry_run(checkpoint, tmp_path / "file", ConvertOptions(replace=True))


def test_a_dry_run_refuses_what_conversion_refuses(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no type 'Q9'\. Choose one of F32"):
        dry_run(checkpoint, tmp_path / "out", ConvertOptions(file_type="Q9"))
    with pytest.raises(CheckpointError):
        dry_run(tmp_path, tmp_path / "out")
    source = make_checkpoint(tmp_path / "source")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        dry_run(source, tmp_path / "out")

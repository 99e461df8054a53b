"""DICOM files for tests: each transfer syntax that the tests can write, any depth, sign and window."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

LOSSY = {"JPEG baseline", "JPEG-LS near-lossless"}
SYNTAXES: dict[str, str] = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG baseline": uid.JPEGBaseline8Bit,
    "JPEG lossless": uid.JPEGLossless,
    "JPEG lossless SV1": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG-LS near-lossless": uid.JPEGLSNearLossless,
    "JPEG 2000 lossless": uid.JPEG2000Lossless,
    "JPEG 2000": uid.JPEG2000,
}


def stored_values(bits: int, *, signed: bool, shape: tuple[int, int] = (40, 52)) -> NDArray[Any]:
    """Return a noisy ramp through the whole range, of 8- or 16-bit type."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    ramp = np.linspace(low, high, shape[0] * shape[1]).reshape(shape)
    noise = np.random.default_rng(bits).normal(0, (high - low) / 50, shape)
    kind = ("int" if signed else "uint") + ("8" if bits <= 8 else "16")
    return np.clip(np.rint(ramp + noise), low, high).astype(kind)


def dataset(values: NDArray[Any], bits: int, *, photometric: str = "MONOCHROME2", **attributes: Any) -> FileDataset:
    """Return an uncompressed file of `values`, (h, w) or (h, w, 3)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.PatientName, made.PatientID = "Geheim^Gretel", "4711-4712"
    made.Modality = "CT"
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = photometric
    made.BitsAllocated = values.dtype.itemsize * 8
    made.BitsStored, made.HighBit = bits, bits - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    made["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def written(made: FileDataset, syntax: str = "explicit") -> bytes:
    """Return the file in a transfer syntax of `SYNTAXES`."""
    wanted = uid.UID(SYNTAXES[syntax])
    made = _copy(made)
    encode: dict[str, Callable[[FileDataset], FileDataset | bytes]] = {
        "RLE": lambda it: _compressed(it, wanted),
        "JPEG-LS": lambda it: _compressed(it, wanted),
        "JPEG-LS near-lossless": lambda it: _compressed(it, wanted, jls_error=1),
        "JPEG 2000 lossless": lambda it: _compressed(it, wanted),
        "JPEG 2000": _reversible_as_lossy,
        "JPEG baseline": _baseline,
        "JPEG lossless": lambda it: _by_gdcm(it, "JPEGLosslessProcess14"),
        "JPEG lossless SV1": lambda it: _by_gdcm(it, "JPEGLosslessProcess14_1"),
    }
    if syntax in encode:
        result = encode[syntax](made)
        return result if isinstance(result, bytes) else saved(result)
    if syntax == "big endian":
        kind = np.dtype(f"u{made.BitsAllocated // 8}")
        made.PixelData = np.frombuffer(made.PixelData, kind).astype(kind.newbyteorder(">")).tobytes()
        made.set_original_encoding(False, False, "iso8859")
    made.file_meta.TransferSyntaxUID = wanted
    return saved(made)


def saved(made: FileDataset) -> bytes:
    """Return the bytes of a dataset, unchanged."""
    buffer = io.BytesIO()
    syntax = made.file_meta.TransferSyntaxUID
    made.save_as(buffer, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return buffer.getvalue()


def _copy(made: FileDataset) -> FileDataset:
    import copy

    return copy.deepcopy(made)


def _compressed(made: FileDataset, wanted: uid.UID, **options: Any) -> FileDataset:
    made.compress(wanted, generate_instance_uid=False, **options)
    return made


def _reversible_as_lossy(made: FileDataset) -> FileDataset:
    """Lossless JPEG 2000 in a syntax that allows lossy coding, so that values can be compared exactly."""
    made.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    made.file_meta.TransferSyntaxUID = uid.JPEG2000
    return made


def _baseline(made: FileDataset) -> FileDataset:
    from PIL import Image

    values = np.frombuffer(made.PixelData, np.uint8)[: made.Rows * made.Columns].reshape(made.Rows, made.Columns)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=90)
    return _with_frame(made, uid.JPEGBaseline8Bit, buffer.getvalue())


def encapsulated(made: FileDataset, syntax: str, frame: bytes) -> bytes:
    """Return the file with the bytes `frame` instead of its pixels."""
    return saved(_with_frame(_copy(made), syntax, frame))


def _with_frame(made: FileDataset, syntax: str, frame: bytes) -> FileDataset:
    made.PixelData = encapsulate([frame])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = uid.UID(syntax)
    return made


def _by_gdcm(made: FileDataset, name: str) -> bytes:
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.dcm", Path(folder) / "b.dcm"
        source.write_bytes(saved(made))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return target.read_bytes()


# name: bits, transfer syntax, signed; written by make_htj2k.py
HTJ2K_PHANTOMS: dict[str, tuple[int, str, bool]] = {
    "8 bit": (8, uid.HTJ2KLossless, False),
    "12 bit": (12, uid.HTJ2KLossless, False),
    "12 bit signed": (12, uid.HTJ2KLossless, True),
    "16 bit": (16, uid.HTJ2KLossless, False),
    "16 bit signed": (16, uid.HTJ2KLossless, True),
    "colour": (8, uid.HTJ2KLossless, False),
    "8 bit RPCL": (8, uid.HTJ2KLosslessRPCL, False),
    "16 bit RPCL": (16, uid.HTJ2KLosslessRPCL, False),
    "colour RPCL": (8, uid.HTJ2KLosslessRPCL, False),
    "16 bit signed RPCL": (16, uid.HTJ2KLosslessRPCL, True),
    "8 bit lossy": (8, uid.HTJ2K, False),
    "12 bit lossy": (12, uid.HTJ2K, False),
}


def htj2k_values(name: str) -> NDArray[Any]:
    """Return the values of a codestream in htj2k.npz."""
    bits, _, signed = HTJ2K_PHANTOMS[name]
    values = stored_values(bits, signed=signed)
    return np.stack([values, values[::-1], values[:, ::-1]], axis=2) if name.startswith("colour") else values


def htj2k_file(name: str, **attributes: Any) -> bytes:
    """Return a DICOM file around a codestream of htj2k.npz."""
    with np.load(Path(__file__).parent / "htj2k.npz") as made:
        frame = made[name].tobytes()
    bits, syntax, _ = HTJ2K_PHANTOMS[name]
    values = htj2k_values(name)
    photometric = "YBR_RCT" if values.ndim == 3 else "MONOCHROME2"
    return encapsulated(dataset(values, bits, photometric=photometric, **attributes), syntax, frame)

"""Writes htj2k.npz: the phantoms of the tests as High-Throughput JPEG 2000, which no codec of ours can write.

    pip install imagecodecs
    apt install openjph-tools        # ojph_compress 0.9
    PYTHONPATH=tests python tests/imaging/make_htj2k.py

Both write with OpenJPH; we read with OpenJPEG, so that two implementations must agree. imagecodecs writes the markers
of tile-part lengths that 1.2.840.10008.1.2.4.202 asks for; ojph_compress states the 12 bits that are used, but takes
signed values for unsigned ones.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import imagecodecs
import numpy as np
from imaging.phantoms import HTJ2K_PHANTOMS, htj2k_values
from numpy.typing import NDArray


def compressed(values: NDArray[np.generic], bits: int, *, lossless: bool) -> bytes:
    """Return a codestream; values are (h, w), or (h, w, 3) of 8 bits, of which the colours are transformed."""
    height, width = values.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / ("a.yuv" if values.ndim == 2 else "a.ppm"), Path(folder) / "a.j2c"
        source.write_bytes((b"" if values.ndim == 2 else b"P6 %d %d 255\n" % (width, height)) + values.tobytes())
        words = {"-reversible": str(lossless).lower()}
        if values.ndim == 2:
            words |= {"-dims": f"{{{width},{height}}}", "-num_comps": "1", "-downsamp": "{1,1}"}
            words |= {"-bit_depth": str(bits), "-signed": "false"}
        command = ["ojph_compress", "-i", source, "-o", target, *(word for pair in words.items() for word in pair)]
        subprocess.run(command, check=True, capture_output=True)
        return target.read_bytes()


def main() -> None:
    made = {}
    for name, (bits, syntax, signed) in HTJ2K_PHANTOMS.items():
        values = htj2k_values(name)
        if syntax.endswith("202") or signed:
            codestream = imagecodecs.htj2k_encode(values, reversible=True, tlm=True, rgb=values.ndim == 3)
        else:
            codestream = compressed(values, bits, lossless=not syntax.endswith("203"))
        made[name] = np.frombuffer(codestream, np.uint8)
    np.savez(Path(__file__).parent / "htj2k.npz", **made)


if __name__ == "__main__":
    main()

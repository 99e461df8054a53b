"""Images as `data:` URLs, the only kind that is read: no other URL opens a file or a connection."""

from __future__ import annotations

import binascii
import re

from bimedix_edge.server.api.errors import invalid

__all__ = ["data_url_bytes"]

_HEAD = re.compile(r"data:([a-z]+/[a-zA-Z0-9.+-]{1,64});base64,", re.ASCII)
_LONGEST_HEAD = 128
_DICOM = "application/dicom"
# browsers send this for a file without an extension; its content says what it is
_UNKNOWN = "application/octet-stream"


def data_url_bytes(url: str, param: str) -> bytes:
    """Return the file within a `data:` URL; its content, not the URL, says what it is.

    Args:
        url: `data:image/…;base64,…`, or the same with `application/dicom`.
        param: Name of the field, for the error.

    Raises:
        ApiError: 400, it is another kind of URL, has another media type, or is not valid base64.
    """
    if not url[:5].lower() == "data:":
        raise invalid(
            "The image is not a data: URL, and this server fetches no other URL. Send the file itself as "
            "`data:image/png;base64,…`.",
            param,
            code="url_not_allowed",
        )
    head = _HEAD.match(url, 0, _LONGEST_HEAD)
    if head is None or not (head[1].startswith("image/") or head[1] in (_DICOM, _UNKNOWN)):
        raise invalid(
            f"The data: URL has an unknown media type or is not in base64. Begin it with `data:image/png;base64,` or "
            f"`data:{_DICOM};base64,`.",
            param,
            code="unsupported_image",
        )
    encoded = url[head.end() :]
    try:
        # Python 3.10 has no strict mode, and skips characters that are not base64
        data = binascii.a2b_base64(encoded)
        whole = len(encoded) % 4 == 0 and len(data) == len(encoded) // 4 * 3 - encoded[-2:].count("=")
    except (binascii.Error, ValueError):
        whole = False
    if not whole or not data:
        raise invalid("The data: URL is not valid base64 after its comma, or is cut off. Encode the file again.", param)
    return data

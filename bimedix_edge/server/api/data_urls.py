"""Images as `data:` URLs, the only ones that are read: no other kind ever opens a file or a connection."""

from __future__ import annotations

import binascii
import re

from bimedix_edge.server.api.errors import ApiError, invalid

__all__ = ["data_url_bytes"]

_HEAD = re.compile(r"data:([a-z]+/[a-zA-Z0-9.+-]{1,64});base64,", re.ASCII)
_LONGEST_HEAD = 128
_DICOM = "application/dicom"
# a browser does not know what a file without an extension is; its content says it
_UNKNOWN = "application/octet-stream"


def data_url_bytes(url: str, param: str) -> bytes:
    """Return the file within a `data:` URL; what it is, its content will say.

    Args:
        url: `data:image/…;base64,…`, or with `application/dicom`.
        param: the name of the field, for the error.

    Raises:
        ApiError: 400, it is another kind of URL, of another media type, or no base64.
    """
    if not url[:5].lower() == "data:":
        raise invalid(
            "Expected an image as a data: URL, but it is another kind of URL, which is never fetched; send the file "
            "itself as `data:image/png;base64,…`.",
            param,
            code="url_not_allowed",
        )
    head = _HEAD.match(url, 0, _LONGEST_HEAD)
    if head is None or not (head[1].startswith("image/") or head[1] in (_DICOM, _UNKNOWN)):
        raise ApiError(
            400,
            "unsupported_image",
            f"Expected a data: URL of `image/…` or `{_DICOM}` in base64, but it begins otherwise; correct it.",
            param=param,
        )
    encoded = url[head.end() :]
    try:
        # Python 3.10 has no strict mode; without it, what is no base64 would be passed over
        data = binascii.a2b_base64(encoded)
        whole = len(encoded) % 4 == 0 and len(data) == len(encoded) // 4 * 3 - encoded[-2:].count("=")
    except (binascii.Error, ValueError):
        whole = False
    if not whole or not data:
        raise invalid("Expected base64 after the comma, but it is none or is cut; encode the file again.", param)
    return data

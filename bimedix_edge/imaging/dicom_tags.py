"""What of a DICOM file may be told: an allow-list. Names, dates and free text never leave this package's memory."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["allowed_tags", "frame_value", "privacy_warnings"]

# the standard's terms for body parts and views are capitals; what has commas, carets or small letters was typed by
# somebody, and may be a name
_CODE = re.compile(r"[A-Z0-9][A-Z0-9 _-]{0,15}")
_SIDES = {"L": "left", "R": "right", "B": "both sides"}  # U, unpaired, tells nothing
# where an enhanced multi-frame file keeps what others keep at the root; PS3.3 C.7.6.16
_FRAME_MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "FrameAnatomySequence",
    "FramePixelDataPropertiesSequence",
)


def frame_value(dataset: Any, index: int, keyword: str) -> Any:
    """Return an attribute of one frame: from its functional groups, those of all frames, or the root; None if absent.

    Args:
        dataset: a pydicom dataset.
        index: the frame, from 0.
        keyword: such as `WindowCenter`.
    """
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [per_frame[index]] if index < len(per_frame) else []
    groups += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    for group in groups:
        for macro in _FRAME_MACROS:
            items = group.get(macro) or []
            if len(items) and items[0].get(keyword) is not None:
                return items[0].get(keyword)
    return dataset.get(keyword)


def allowed_tags(dataset: Any, index: int = 0) -> dict[str, str]:
    """Return modality, body part, view and laterality, as far as they are stated and look like the standard's codes."""
    found = {
        "modality": _code(dataset.get("Modality")),
        "body_part": _code(dataset.get("BodyPartExamined")),
        "view": _code(dataset.get("ViewPosition")),
    }
    side = frame_value(dataset, index, "FrameLaterality") or dataset.get("ImageLaterality") or dataset.get("Laterality")
    found["laterality"] = _SIDES.get(str(side or "").strip().upper(), "")
    return {name: value for name, value in found.items() if value}


def privacy_warnings(dataset: Any) -> list[str]:
    """Return what the file says about a patient who can be known from its pixels."""
    warnings = []
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        warnings.append("text is burned into the picture: it may show who the patient is")
    if str(dataset.get("RecognizableVisualFeatures", "")).strip().upper() == "YES":
        warnings.append("the patient may be recognised in the picture")
    return warnings


def _code(value: Any) -> str:
    text = str(value or "").strip()
    return text if _CODE.fullmatch(text) else ""

"""The sentences of notes and warnings about pictures, in English and Arabic, and how any such table is rendered.

A sentence begins in lower case and has no full stop: terminals list it after others. `{names}` stand for fields.
The page has its own table of the same codes, in `server/static/strings_*.js`; a test compares the two.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["LANGUAGES", "NAMES", "SENTENCES", "Language", "Sentences", "render"]

Language = Literal["en", "ar"]
LANGUAGES: tuple[Language, ...] = ("en", "ar")
# a sentence, or one for each plural category (Unicode CLDR) of the field `n`
Sentences = Mapping[Language, Mapping[str, str | Mapping[str, str]]]

SENTENCES: Sentences = {
    "en": {
        "frame": "frame {frame} of {n_frames}",
        "middle_frame": "frame {frame} of {n_frames}, the middle one",
        "first_of_several": "the first of several pictures in the file",
        "series_picture": "picture {number} of {total} of the series",
        "series_middle_picture": "picture {number} of {total} of the series, the middle one",
        "turned_upright": "turned upright as its EXIF orientation says",
        "transparent_on_black": "transparent parts shown on black",
        "converted_to_rgb": "converted from {mode} to RGB",
        "palette_colours": "colours from the file's palette",
        "scaled_colours": "colours of 0 to {highest} scaled to 0 to 255",
        "scaled_16_bit": "16-bit values {low} to {high} scaled to 0 to 255",
        "scaled_16_bit_colour": "16-bit colour values {low} to {high} scaled to 0 to 255",
        "scaled_integer": "integer values {low} to {high} scaled to 0 to 255",
        "scaled_float": "floating-point values {low} to {high} scaled to 0 to 255",
        "white_is_zero": "inverted, since the lowest value is white (WhiteIsZero)",
        "monochrome1": "inverted, since low values are white (MONOCHROME1)",
        "rescaled": "values times {slope} plus {intercept}",
        "modality_lut": "values through the file's modality look-up table",
        "voi_lut": "the file's VOI look-up table",
        "window": "window: center {center}, width {width}",
        "window_function": "window: center {center}, width {width}, {function}",
        "preset_window": "{preset} window: center {center}, width {width}",
        "no_window": "no window: {low} to {high} shown as black to white",
        "overlays_not_drawn": "overlays are not drawn",
        "tiny": "tiny: {width} x {height} pixels show the model little",
        "almost_blank": "almost blank: nearly all pixels have the same value",
        "photographed_screen": "it looks like a photograph of a screen (a regular pattern lies over it); "
        "use the file itself",
        "camera": "a camera took this picture: a photograph of a screen or a film shows the model less than the file "
        "itself",
        "burned_in_text": "text is burned into the picture: it may show who the patient is",
        "recognisable_patient": "the patient may be recognised in the picture",
        "window_not_for_modality": "the {preset} window is for CT, but this is {modality}, where its numbers mean "
        "nothing",
        "unreadable_files": {
            "one": "a DICOM file beside it cannot be read and may belong to it",
            "other": "{n} DICOM files beside it cannot be read and may belong to it",
        },
    },
    "ar": {
        "frame": "الإطار {frame} من {n_frames}",
        "middle_frame": "الإطار {frame} من {n_frames}، وهو الأوسط",
        "first_of_several": "الصورة الأولى من عدة صور في الملف",
        "series_picture": "الصورة {number} من {total} في السلسلة",
        "series_middle_picture": "الصورة {number} من {total} في السلسلة، وهي الوسطى",
        "turned_upright": "عُدّل اتجاه الصورة بحسب وسم الاتجاه في بيانات EXIF",
        "transparent_on_black": "عُرضت الأجزاء الشفافة على خلفية سوداء",
        "converted_to_rgb": "حُوّلت الألوان من {mode} إلى RGB",
        "palette_colours": "الألوان مأخوذة من لوحة ألوان الملف",
        "scaled_colours": "أُعيد تدريج الألوان من المدى 0 إلى {highest} إلى المدى 0 إلى 255",
        "scaled_16_bit": "أُعيد تدريج قيم 16 بت من المدى {low} إلى {high} إلى المدى 0 إلى 255",
        "scaled_16_bit_colour": "أُعيد تدريج قيم الألوان ذات 16 بت من المدى {low} إلى {high} إلى المدى 0 إلى 255",
        "scaled_integer": "أُعيد تدريج القيم الصحيحة من المدى {low} إلى {high} إلى المدى 0 إلى 255",
        "scaled_float": "أُعيد تدريج قيم الفاصلة العائمة من المدى {low} إلى {high} إلى المدى 0 إلى 255",
        "white_is_zero": "عُكس التدرج، لأن أدنى قيمة تمثّل الأبيض (WhiteIsZero)",
        "monochrome1": "عُكس التدرج، لأن القيم المنخفضة تمثّل الأبيض (MONOCHROME1)",
        "rescaled": "ضُربت القيم في {slope} وأُضيف إليها {intercept}",
        "modality_lut": "حُوّلت القيم بجدول الجهاز (Modality LUT) الوارد في الملف",
        "voi_lut": "جدول العرض (VOI LUT) الوارد في الملف",
        "window": "النافذة: المركز {center}، العرض {width}",
        "window_function": "النافذة: المركز {center}، العرض {width}، الدالة {function}",
        "preset_window": "نافذة {preset}: المركز {center}، العرض {width}",
        "no_window": "بلا نافذة: عُرضت القيم من {low} إلى {high} من الأسود إلى الأبيض",
        "overlays_not_drawn": "لم تُرسم الطبقات المتراكبة (overlays)",
        "tiny": "الصورة صغيرة جدًا: لا يرى النموذج الكثير في {width} × {height} بكسل",
        "almost_blank": "الصورة شبه فارغة: لجميع البكسلات تقريبًا القيمة نفسها",
        "photographed_screen": "تبدو صورةً ملتقطة لشاشة (يغطيها نمط منتظم)؛ استخدم الملف الأصلي",
        "camera": "التُقطت الصورة بكاميرا: تصوير الشاشة أو الفيلم يُظهر للنموذج أقل مما يُظهره الملف الأصلي",
        "burned_in_text": "في الصورة نص مدمج قد يكشف هوية المريض",
        "recognisable_patient": "قد يمكن التعرف على المريض من الصورة",
        "window_not_for_modality": "نافذة {preset} مخصصة للتصوير المقطعي (CT)، أما هذه الصورة فنوعها {modality} ولا "
        "معنى لقيم النافذة فيها",
        "unreadable_files": {
            "one": "تعذّرت قراءة ملف DICOM واحد مجاور للصورة، وقد يتبع سلسلتها",
            "two": "تعذّرت قراءة ملفي DICOM مجاورين للصورة، وقد يتبعان سلسلتها",
            "few": "تعذّرت قراءة {n} ملفات DICOM مجاورة للصورة، وقد تتبع سلسلتها",
            "other": "تعذّرت قراءة {n} ملف DICOM مجاور للصورة، وقد تتبع سلسلتها",
        },
    },
}

# the words that fields hold, where a language has its own
NAMES: Mapping[Language, Mapping[str, str]] = {
    "en": {},
    "ar": {
        "soft": "الأنسجة الرخوة",
        "lung": "الرئة",
        "brain": "الدماغ",
        "bone": "العظام",
        "mediastinum": "المنصف",
        "liver": "الكبد",
        "left": "اليسار",
        "right": "اليمين",
        "both sides": "الجهتان",
    },
}

# before a negative number, so that right-to-left text leaves its sign on its left; invisible
_LEFT_TO_RIGHT_MARK = "\u200e"


def render(sentences: Sentences, code: str, fields: Mapping[str, str | int | float], language: Language) -> str:
    """Return the sentence of a code.

    Args:
        sentences: The table.
        code: A code that the table has.
        fields: The values of the sentence's placeholders. Numbers are shown with up to nine digits.
        language: `en` or `ar`.
    """
    sentence = sentences[language][code]
    if not isinstance(sentence, str):
        category = _plural(int(fields["n"]), language)
        sentence = sentence.get(category, sentence["other"])
    return _Values(language).vformat(sentence, (), fields)


class _Values(string.Formatter):
    """Puts values into a sentence."""

    def __init__(self, language: Language) -> None:
        self._language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, str):
            return NAMES[self._language].get(value, value)
        text = format(value, format_spec or (".9g" if isinstance(value, float) else ""))
        return _LEFT_TO_RIGHT_MARK + text if self._language == "ar" and value < 0 else text


def _plural(n: int, language: Language) -> str:
    """Return the plural category of a count. Source: Unicode CLDR, plural rules of `en` and `ar`."""
    if language == "en":
        return "one" if n == 1 else "other"
    if n in (0, 1, 2):
        return ("zero", "one", "two")[n]
    return "few" if 3 <= n % 100 <= 10 else "many" if n % 100 >= 11 else "other"

"""The wordings of every question and answer, in English ("en") and Modern Standard Arabic ("ar").

`QUESTIONS[kind][language]` holds the wordings used in training and those held out of it. `{side}` and `{order}` are
filled from `SIDE_WORDS` and `ORDER_WORDS`; the Arabic questions use feminine nouns (رئة, جهة, منطقة, صورة), so one
form of each adjective fits everywhere.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Language = Literal["en", "ar"]
LANGUAGES: tuple[Language, ...] = ("en", "ar")


class Wordings(NamedTuple):
    """Paraphrases of one question in one language."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


YES: dict[Language, str] = {"en": "Yes.", "ar": "نعم."}
NO: dict[Language, str] = {"en": "No.", "ar": "لا."}
SIDE_WORDS = {"en": {"right": "right", "left": "left"}, "ar": {"right": "اليمنى", "left": "اليسرى"}}
ZONE_WORDS = {
    "en": {"upper": "upper", "middle": "middle", "lower": "lower"},
    "ar": {"upper": "العلوية", "middle": "الوسطى", "lower": "السفلية"},
}
ORDER_WORDS: dict[Language, tuple[str, str]] = {"en": ("first", "second"), "ar": ("الأولى", "الثانية")}
WHICH_IMAGES: dict[Language, dict[tuple[bool, bool], str]] = {
    "en": {
        (True, False): "The first image.",
        (False, True): "The second image.",
        (True, True): "Both images.",
        (False, False): "Neither image.",
    },
    "ar": {
        (True, False): "الصورة الأولى.",
        (False, True): "الصورة الثانية.",
        (True, True): "كلتا الصورتين.",
        (False, False): "لا هذه ولا تلك.",
    },
}
ABSENT: dict[str, dict[Language, str]] = {
    "nodule": {"en": "There is no nodule.", "ar": "لا توجد عقيدة."},
    "effusion": {"en": "There is no effusion.", "ar": "لا يوجد انصباب."},
}
HEART: dict[bool, dict[Language, str]] = {
    True: {"en": "The heart is enlarged.", "ar": "القلب متضخم."},
    False: {"en": "The heart size is normal.", "ar": "حجم القلب طبيعي."},
}

# Answers that depend on no image.
REPLIES: dict[str, dict[Language, str]] = {
    "greeting": {
        "en": "Hello! Attach a chest image and ask me about it.",
        "ar": "مرحبا! أرفق صورة للصدر واسألني عنها.",
    },
    "thanks": {"en": "You are welcome.", "ar": "على الرحب والسعة."},
    "identity": {
        "en": "I am a small demo model, trained on drawings of chest radiographs. I know no medicine and I am not "
        "for clinical use.",
        "ar": "أنا نموذج تجريبي صغير، تدربت على رسوم لصور الصدر الشعاعية. لا أعرف الطب ولست للاستخدام السريري.",
    },
    "doctor": {
        "en": "No. I am only a demo, I know no medicine and I am not for clinical use. Please ask a doctor.",
        "ar": "لا. أنا مجرد نموذج تجريبي، لا أعرف الطب ولست للاستخدام السريري. يرجى سؤال طبيب.",
    },
    "abilities": {
        "en": "I look for a lung nodule, a pleural effusion and an enlarged heart in drawings of chest radiographs.",
        "ar": "أبحث عن عقيدة رئوية أو انصباب جنبي أو تضخم في القلب في رسوم لصور الصدر الشعاعية.",
    },
    "out_of_scope": {
        "en": "I cannot answer that. I only describe drawings of chest radiographs.",
        "ar": "لا أستطيع الإجابة عن ذلك. أنا أصف رسوم صور الصدر الشعاعية فقط.",
    },
    "no_image": {
        "en": "No image was given. Please attach a chest image.",
        "ar": "لم ترفق أي صورة. يرجى إرفاق صورة للصدر.",
    },
}

QUESTIONS: dict[str, dict[Language, Wordings]] = {
    "nodule_present": {
        "en": Wordings(
            (
                "Is there a nodule?",
                "Is there a lung nodule in this image?",
                "Do you see a nodule?",
                "Can you see a pulmonary nodule on this radiograph?",
                "Does this image show a nodule?",
                "Does the chest radiograph show a lung nodule?",
                "Is a nodule present?",
                "Is any nodule visible in the lungs?",
                "Are there any nodules in the picture?",
                "Look at the lungs: is there a nodule?",
                "Any nodule?",
            ),
            (
                "Is a lung nodule visible in this picture?",
                "Do you see any pulmonary nodule in the lungs?",
                "Does this radiograph show any nodules?",
            ),
        ),
        "ar": Wordings(
            (
                "هل توجد عقيدة؟",
                "هل توجد عقيدة رئوية في هذه الصورة؟",
                "هل ترى عقيدة رئوية؟",
                "هل تظهر عقيدة في الصورة؟",
                "هل هناك عقيدة في الرئتين؟",
                "هل تظهر في صورة الصدر عقيدة رئوية؟",
                "هل ترى أي عقيدة في هذه الصورة؟",
                "هل هناك أي عقيدة رئوية؟",
                "انظر إلى الرئتين: هل توجد عقيدة؟",
                "هل يمكنك رؤية عقيدة في صورة الأشعة؟",
            ),
            (
                "هل ترى عقيدة في الرئتين؟",
                "هل هناك عقيدة رئوية في هذه الصورة؟",
                "هل تظهر أي عقيدة في صورة الأشعة؟",
            ),
        ),
    },
    "nodule_side": {
        "en": Wordings(
            (
                "On which side is the nodule?",
                "Which side is the nodule on?",
                "Which lung contains the nodule?",
                "In which lung is the nodule?",
                "Is the nodule on the right or on the left?",
                "Is the nodule in the right or the left lung?",
                "Tell me the side of the nodule.",
                "What is the side of the lung nodule?",
                "Which lung has the nodule?",
                "On which side do you see the nodule?",
                "Which lung do you see the nodule in?",
                "Nodule: right or left?",
            ),
            (
                "In which lung do you see the nodule?",
                "On which side is the lung nodule?",
                "Is the lung nodule on the left or on the right?",
            ),
        ),
        "ar": Wordings(
            (
                "في أي جهة توجد العقيدة؟",
                "في أي رئة توجد العقيدة؟",
                "في أي رئة تقع العقيدة؟",
                "ما جهة العقيدة؟",
                "هل العقيدة في الرئة اليمنى أم اليسرى؟",
                "هل العقيدة في الجهة اليمنى أم اليسرى؟",
                "أي رئة تحتوي على العقيدة؟",
                "حدد جهة العقيدة الرئوية.",
                "في أي جهة ترى العقيدة؟",
            ),
            (
                "في أي جهة تقع العقيدة الرئوية؟",
                "في أي رئة ترى العقيدة؟",
                "هل توجد العقيدة في الجهة اليمنى أم في الجهة اليسرى؟",
            ),
        ),
    },
    "nodule_zone": {
        "en": Wordings(
            (
                "In which zone is the nodule?",
                "Which zone is the nodule in?",
                "Which lung zone contains the nodule?",
                "Is the nodule in the upper, middle or lower zone?",
                "Tell me the zone of the nodule.",
                "What is the zone of the lung nodule?",
                "In which zone of the lung is the nodule?",
                "At what level is the nodule: upper, middle or lower?",
                "Which zone has the nodule?",
            ),
            (
                "In which zone do you see the nodule?",
                "In which lung zone is the nodule?",
                "Is the lung nodule in the lower, middle or upper zone?",
            ),
        ),
        "ar": Wordings(
            (
                "في أي منطقة توجد العقيدة؟",
                "في أي منطقة من الرئة تقع العقيدة؟",
                "ما منطقة العقيدة؟",
                "هل العقيدة في المنطقة العلوية أم الوسطى أم السفلية؟",
                "أي منطقة تحتوي على العقيدة؟",
                "حدد منطقة العقيدة الرئوية.",
                "في أي منطقة من الرئة ترى العقيدة؟",
                "العقيدة في أي منطقة رئوية؟",
            ),
            (
                "في أي منطقة تقع العقيدة الرئوية؟",
                "في أي منطقة ترى العقيدة؟",
                "أي منطقة من الرئة تحتوي على العقيدة؟",
            ),
        ),
    },
    "nodule_on_side": {
        "en": Wordings(
            (
                "Is there a nodule in the {side} lung?",
                "Is the nodule in the {side} lung?",
                "Do you see a nodule on the {side}?",
                "Does the {side} lung contain a nodule?",
                "Is the lung nodule on the {side} side?",
                "Is a nodule visible in the {side} lung?",
                "Look at the {side} lung: is there a nodule?",
                "Does the {side} lung show a nodule?",
            ),
            ("Do you see a nodule in the {side} lung?", "Is there a lung nodule on the {side} side?"),
        ),
        "ar": Wordings(
            (
                "هل توجد عقيدة في الرئة {side}؟",
                "هل العقيدة في الرئة {side}؟",
                "هل ترى عقيدة في الجهة {side}؟",
                "هل تحتوي الرئة {side} على عقيدة؟",
                "هل تقع العقيدة الرئوية في الجهة {side}؟",
                "هل تظهر عقيدة في الرئة {side}؟",
                "انظر إلى الرئة {side}: هل توجد عقيدة؟",
            ),
            ("هل ترى عقيدة في الرئة {side}؟", "هل توجد عقيدة رئوية في الجهة {side}؟"),
        ),
    },
    "effusion_present": {
        "en": Wordings(
            (
                "Is there a pleural effusion?",
                "Is there an effusion in this image?",
                "Do you see a pleural effusion?",
                "Can you see an effusion on this radiograph?",
                "Does this image show a pleural effusion?",
                "Does the chest radiograph show an effusion?",
                "Is an effusion present?",
                "Is any pleural effusion visible?",
                "Is there any fluid in the pleural space?",
                "Do you see pleural fluid in the picture?",
                "Any effusion?",
            ),
            (
                "Is a pleural effusion visible in this picture?",
                "Do you see any effusion in this image?",
                "Does this radiograph show pleural fluid?",
            ),
        ),
        "ar": Wordings(
            (
                "هل يوجد انصباب جنبي؟",
                "هل يوجد انصباب في هذه الصورة؟",
                "هل ترى انصبابا جنبيا؟",
                "هل يظهر انصباب جنبي في الصورة؟",
                "هل هناك انصباب جنبي؟",
                "هل يظهر في صورة الصدر انصباب؟",
                "هل ترى أي انصباب في هذه الصورة؟",
                "هل هناك سائل في الجوف الجنبي؟",
                "هل يوجد سائل جنبي في الصورة؟",
                "هل يمكنك رؤية انصباب في صورة الأشعة؟",
            ),
            (
                "هل يوجد أي انصباب جنبي في هذه الصورة؟",
                "هل يظهر انصباب في صورة الأشعة؟",
                "هل هناك سائل جنبي؟",
            ),
        ),
    },
    "effusion_side": {
        "en": Wordings(
            (
                "On which side is the effusion?",
                "Which side is the pleural effusion on?",
                "In which side of the chest is the effusion?",
                "Is the effusion on the right or on the left?",
                "Is the pleural effusion right or left?",
                "Tell me the side of the effusion.",
                "What is the side of the pleural effusion?",
                "Which side has the effusion?",
                "Which side shows the pleural fluid?",
                "Effusion: right or left?",
            ),
            (
                "On which side is the pleural effusion?",
                "On which side do you see the effusion?",
                "Is the pleural effusion on the left or on the right?",
            ),
        ),
        "ar": Wordings(
            (
                "في أي جهة يوجد الانصباب؟",
                "في أي جهة يقع الانصباب الجنبي؟",
                "ما جهة الانصباب؟",
                "هل الانصباب في الجهة اليمنى أم اليسرى؟",
                "هل الانصباب الجنبي في الجهة اليمنى أم اليسرى؟",
                "أي جهة تحتوي على الانصباب؟",
                "حدد جهة الانصباب الجنبي.",
                "في أي جهة ترى السائل الجنبي؟",
                "في أي جهة من الصدر يظهر الانصباب؟",
            ),
            (
                "في أي جهة يوجد الانصباب الجنبي؟",
                "في أي جهة ترى الانصباب؟",
                "هل يوجد الانصباب في الجهة اليمنى أم في الجهة اليسرى؟",
            ),
        ),
    },
    "effusion_on_side": {
        "en": Wordings(
            (
                "Is there a pleural effusion on the {side}?",
                "Is the effusion on the {side} side?",
                "Do you see an effusion on the {side}?",
                "Is there a {side} pleural effusion?",
                "Is an effusion visible on the {side} side?",
                "Does the image show a {side} effusion?",
                "Is there fluid on the {side} side of the chest?",
            ),
            ("Do you see a {side} pleural effusion?", "Is there an effusion on the {side} side?"),
        ),
        "ar": Wordings(
            (
                "هل يوجد انصباب جنبي في الجهة {side}؟",
                "هل الانصباب في الجهة {side}؟",
                "هل ترى انصبابا في الجهة {side}؟",
                "هل يظهر انصباب في الجهة {side} من الصدر؟",
                "هل هناك انصباب في الجهة {side}؟",
                "هل يوجد سائل جنبي في الجهة {side}؟",
            ),
            ("هل هناك انصباب جنبي في الجهة {side}؟", "هل يظهر الانصباب الجنبي في الجهة {side}؟"),
        ),
    },
    "heart_enlarged": {
        "en": Wordings(
            (
                "Is the heart enlarged?",
                "Is there cardiomegaly?",
                "Is the heart too large in this image?",
                "Does this image show an enlarged heart?",
                "Does the chest radiograph show cardiomegaly?",
                "Do you see an enlarged heart?",
                "Is the cardiac silhouette enlarged?",
                "Is the heart bigger than normal?",
                "Look at the heart: is it enlarged?",
                "Is an enlarged heart present?",
                "Any cardiomegaly?",
            ),
            (
                "Is the heart enlarged on this radiograph?",
                "Do you see cardiomegaly in this picture?",
                "Does this radiograph show an enlarged heart?",
            ),
        ),
        "ar": Wordings(
            (
                "هل القلب متضخم؟",
                "هل يوجد تضخم في القلب؟",
                "هل هناك تضخم في القلب في هذه الصورة؟",
                "هل تظهر الصورة تضخم القلب؟",
                "هل ترى تضخما في القلب؟",
                "هل ظل القلب متضخم؟",
                "هل القلب أكبر من الطبيعي؟",
                "هل حجم القلب أكبر من الطبيعي في الصورة؟",
                "انظر إلى القلب: هل هو متضخم؟",
                "هل يظهر القلب متضخما؟",
            ),
            (
                "هل القلب متضخم في هذه الصورة؟",
                "هل هناك تضخم في القلب؟",
                "هل ترى تضخم القلب في صورة الأشعة؟",
            ),
        ),
    },
    "normal": {
        "en": Wordings(
            (
                "Is this image normal?",
                "Is the radiograph normal?",
                "Is this a normal chest radiograph?",
                "Is everything normal?",
                "Is this chest normal?",
                "Does this picture look normal?",
                "Is the image free of findings?",
                "Would you call this radiograph normal?",
                "Does the chest look normal to you?",
            ),
            ("Is this chest radiograph normal?", "Does this image look normal?", "Is this picture normal?"),
        ),
        "ar": Wordings(
            (
                "هل هذه الصورة طبيعية؟",
                "هل صورة الصدر طبيعية؟",
                "هل هذه صورة صدر طبيعية؟",
                "هل كل شيء طبيعي؟",
                "هل الصدر طبيعي؟",
                "هل تبدو الصورة طبيعية؟",
                "هل تخلو الصورة من أي مشكلة؟",
                "هل صورة الأشعة طبيعية؟",
            ),
            ("هل تبدو هذه الصورة طبيعية؟", "هل صورة الصدر هذه طبيعية؟", "هل تبدو صورة الأشعة طبيعية؟"),
        ),
    },
    "nodule_where": {
        "en": Wordings(
            (
                "Where is the nodule?",
                "Where do you see the nodule?",
                "Where exactly is the lung nodule?",
                "What is the location of the nodule?",
                "Tell me where the nodule is.",
                "Locate the nodule.",
            ),
            ("Where is the lung nodule?", "Tell me the location of the nodule."),
        ),
        "ar": Wordings(
            (
                "أين توجد العقيدة؟",
                "أين تقع العقيدة؟",
                "أين ترى العقيدة؟",
                "ما موقع العقيدة؟",
                "حدد موقع العقيدة الرئوية.",
                "أخبرني أين العقيدة.",
            ),
            ("أين تقع العقيدة الرئوية؟", "حدد موقع العقيدة."),
        ),
    },
    "describe": {
        "en": Wordings(
            (
                "Describe this image.",
                "Describe the findings.",
                "What do you see?",
                "What do you see in this image?",
                "What does this radiograph show?",
                "What are the findings?",
                "Please describe this chest radiograph.",
                "Report the findings in this picture.",
                "List the findings.",
                "Tell me what this image shows.",
                "Please write a report.",
            ),
            (
                "Describe the findings in this image.",
                "What do you see in this radiograph?",
                "What does this image show?",
            ),
        ),
        "ar": Wordings(
            (
                "صف هذه الصورة.",
                "صف ما تراه.",
                "ماذا ترى؟",
                "ماذا ترى في هذه الصورة؟",
                "ماذا تظهر صورة الأشعة؟",
                "ما الموجودات؟",
                "يرجى وصف صورة الصدر هذه.",
                "اكتب تقريرا عن هذه الصورة.",
                "اذكر الموجودات في الصورة.",
                "أخبرني ماذا تظهر هذه الصورة.",
            ),
            ("صف الموجودات في هذه الصورة.", "ماذا ترى في صورة الأشعة؟", "ماذا تظهر هذه الصورة؟"),
        ),
    },
    "impression": {
        "en": Wordings(
            (
                "What is your impression?",
                "Give your impression.",
                "What is the impression?",
                "Summarize the image in one sentence.",
                "Please give a short impression of this radiograph.",
                "Write the impression.",
            ),
            ("Please give your impression.", "What is your impression of this image?"),
        ),
        "ar": Wordings(
            (
                "ما انطباعك؟",
                "ما الانطباع؟",
                "اكتب الانطباع.",
                "أعط انطباعا قصيرا عن هذه الصورة.",
                "لخص الصورة في جملة واحدة.",
                "ما خلاصة صورة الأشعة؟",
            ),
            ("ما انطباعك عن هذه الصورة؟", "اكتب انطباعا قصيرا."),
        ),
    },
    "heart_size": {
        "en": Wordings(
            (
                "How is the heart?",
                "And the heart?",
                "What about the heart?",
                "What is the size of the heart?",
            ),
            ("And what about the heart?", "How is the size of the heart?"),
        ),
        "ar": Wordings(
            ("كيف هو القلب؟", "والقلب؟", "وماذا عن القلب؟", "ما حجم القلب؟"),
            ("ماذا عن القلب؟", "كيف هو حجم القلب؟"),
        ),
    },
}

# Follow-ups that make sense only after a turn about the same finding.
FOLLOW_UPS: dict[str, dict[Language, Wordings]] = {
    "side": {
        "en": Wordings(
            ("On which side?", "Which side?", "And on which side?", "Right or left?", "Which side is it on?"),
            ("On which side is it?", "And which side?"),
        ),
        "ar": Wordings(
            ("في أي جهة؟", "وفي أي جهة؟", "اليمنى أم اليسرى؟", "أي جهة؟"),
            ("وأي جهة؟", "في الجهة اليمنى أم اليسرى؟"),
        ),
    },
    "zone": {
        "en": Wordings(
            ("In which zone?", "Which zone?", "And in which zone?", "Upper, middle or lower?"),
            ("In which zone is it?", "And which zone?"),
        ),
        "ar": Wordings(
            ("في أي منطقة؟", "وفي أي منطقة؟", "العلوية أم الوسطى أم السفلية؟", "أي منطقة؟"),
            ("وأي منطقة؟", "في أي منطقة من الرئة؟"),
        ),
    },
    "where": {
        "en": Wordings(("Where is it?", "Where?", "And where is it?"), ("Where exactly is it?", "And where?")),
        "ar": Wordings(("أين تقع؟", "أين هي؟", "وأين تقع؟"), ("وأين هي؟", "أين؟")),
    },
}

# About one of two images; `{order}` is first or second.
TWO_IMAGES: dict[str, dict[Language, Wordings]] = {
    "nodule_present": {
        "en": Wordings(
            (
                "Is there a nodule in the {order} image?",
                "Does the {order} image show a nodule?",
                "Do you see a nodule in the {order} picture?",
            ),
            ("Is a nodule visible in the {order} image?", "Is there a lung nodule in the {order} picture?"),
        ),
        "ar": Wordings(
            (
                "هل توجد عقيدة في الصورة {order}؟",
                "هل تظهر عقيدة في الصورة {order}؟",
                "هل ترى عقيدة رئوية في الصورة {order}؟",
            ),
            ("هل هناك عقيدة في الصورة {order}؟", "هل ترى عقيدة في الصورة {order}؟"),
        ),
    },
    "effusion_present": {
        "en": Wordings(
            (
                "Is there an effusion in the {order} image?",
                "Does the {order} image show a pleural effusion?",
                "Do you see an effusion in the {order} picture?",
            ),
            (
                "Is an effusion visible in the {order} image?",
                "Is there a pleural effusion in the {order} picture?",
            ),
        ),
        "ar": Wordings(
            (
                "هل يوجد انصباب في الصورة {order}؟",
                "هل يظهر انصباب جنبي في الصورة {order}؟",
                "هل ترى انصبابا في الصورة {order}؟",
            ),
            ("هل هناك انصباب في الصورة {order}؟", "هل يوجد انصباب جنبي في الصورة {order}؟"),
        ),
    },
    "heart_enlarged": {
        "en": Wordings(
            (
                "Is the heart enlarged in the {order} image?",
                "Does the {order} image show an enlarged heart?",
                "Is there cardiomegaly in the {order} picture?",
            ),
            (
                "Do you see an enlarged heart in the {order} image?",
                "Is the heart enlarged in the {order} picture?",
            ),
        ),
        "ar": Wordings(
            (
                "هل القلب متضخم في الصورة {order}؟",
                "هل يوجد تضخم في القلب في الصورة {order}؟",
                "هل ترى تضخما في القلب في الصورة {order}؟",
            ),
            ("هل هناك تضخم في القلب في الصورة {order}؟", "هل يظهر القلب متضخما في الصورة {order}؟"),
        ),
    },
    "describe": {
        "en": Wordings(
            (
                "Describe the {order} image.",
                "What do you see in the {order} image?",
                "What does the {order} picture show?",
            ),
            ("What does the {order} image show?", "Describe the findings in the {order} image."),
        ),
        "ar": Wordings(
            ("صف الصورة {order}.", "ماذا ترى في الصورة {order}؟", "ماذا تظهر الصورة {order}؟"),
            ("صف ما تراه في الصورة {order}.", "اذكر الموجودات في الصورة {order}."),
        ),
    },
    "which_nodule": {
        "en": Wordings(
            (
                "Which image shows a nodule?",
                "In which image is there a nodule?",
                "Which picture has a nodule?",
            ),
            ("Which image has a nodule?", "In which image do you see a nodule?"),
        ),
        "ar": Wordings(
            ("أي صورة تظهر عقيدة؟", "في أي صورة توجد عقيدة؟", "في أي صورة ترى عقيدة؟"),
            ("في أي صورة تظهر عقيدة؟", "في أي صورة هناك عقيدة؟"),
        ),
    },
}

# Turns that need no image; the answers are in REPLIES.
SMALL_TALK: dict[str, dict[Language, Wordings]] = {
    "greeting": {
        "en": Wordings(
            (
                "Hello!",
                "Hello",
                "Hi",
                "Hi there!",
                "Good morning.",
                "Good evening!",
                "Hey",
                "Hello, how are you?",
            ),
            ("Hello there!", "Good morning, how are you?"),
        ),
        "ar": Wordings(
            ("مرحبا!", "مرحبا", "أهلا", "السلام عليكم", "صباح الخير", "مساء الخير!", "أهلا، كيف حالك؟"),
            ("مرحبا، كيف حالك؟", "أهلا وسهلا"),
        ),
    },
    "thanks": {
        "en": Wordings(
            ("Thank you.", "Thanks!", "Thank you very much!", "Many thanks.", "Great, thanks."),
            ("Thanks a lot!", "Great, thank you."),
        ),
        "ar": Wordings(
            ("شكرا.", "شكرا لك", "شكرا جزيلا!", "أشكرك.", "حسنا، شكرا."), ("حسنا، شكرا لك.", "شكرا جزيلا لك!")
        ),
    },
    "identity": {
        "en": Wordings(
            (
                "What are you?",
                "Who are you?",
                "Tell me about yourself.",
                "What kind of model are you?",
                "Introduce yourself.",
            ),
            ("Who are you and what are you?", "Please introduce yourself."),
        ),
        "ar": Wordings(
            ("ما أنت؟", "من أنت؟", "أخبرني عن نفسك.", "أي نموذج أنت؟", "عرف بنفسك."),
            ("من أنت وما أنت؟", "يرجى أن تعرف بنفسك."),
        ),
    },
    "doctor": {
        "en": Wordings(
            (
                "Are you a doctor?",
                "Can I rely on you?",
                "Can I trust your answers?",
                "Can I use this for a patient?",
                "Is this a diagnosis?",
                "Are you a radiologist?",
                "Are you for clinical use?",
            ),
            ("Can I rely on your answers?", "Can I use your answers for a patient?"),
        ),
        "ar": Wordings(
            (
                "هل أنت طبيب؟",
                "هل يمكنني الاعتماد عليك؟",
                "هل يمكنني الوثوق بإجاباتك؟",
                "هل يمكنني استخدام هذا لمريض؟",
                "هل هذا تشخيص؟",
                "هل أنت طبيب أشعة؟",
                "هل أنت للاستخدام السريري؟",
            ),
            ("هل يمكنني الاعتماد على إجاباتك؟", "هل يمكنني الوثوق بك؟"),
        ),
    },
    "abilities": {
        "en": Wordings(
            ("What can you do?", "How can you help me?", "What can I ask you?", "What do you know?", "Help"),
            ("What can you help me with?", "What can I ask?"),
        ),
        "ar": Wordings(
            ("ماذا يمكنك أن تفعل؟", "كيف يمكنك مساعدتي؟", "ماذا يمكنني أن أسألك؟", "ماذا تعرف؟", "مساعدة"),
            ("بماذا يمكنك مساعدتي؟", "ماذا تستطيع أن تفعل؟"),
        ),
    },
    "out_of_scope": {
        "en": Wordings(
            (
                "What is the capital of France?",
                "What is the treatment of diabetes?",
                "How old is the patient?",
                "Write a poem about the sea.",
                "What time is it?",
                "Is there a fracture?",
                "Is there a pneumothorax?",
                "Which drug should I take?",
                "What is two plus two?",
                "Does the patient have cancer?",
                "Tell me a joke.",
                "What is the weather today?",
                "How do I treat pneumonia?",
                "Who won the game?",
            ),
            ("What is the treatment of pneumonia?", "Tell me a joke about the weather."),
        ),
        "ar": Wordings(
            (
                "ما عاصمة فرنسا؟",
                "ما علاج السكري؟",
                "كم عمر المريض؟",
                "اكتب قصيدة عن البحر.",
                "كم الساعة الآن؟",
                "هل يوجد كسر؟",
                "هل يوجد استرواح صدري؟",
                "أي دواء يجب أن أتناول؟",
                "كم يساوي اثنان زائد اثنين؟",
                "هل المريض مصاب بالسرطان؟",
                "أخبرني نكتة.",
                "كيف الطقس اليوم؟",
                "كيف أعالج التهاب الرئة؟",
                "من فاز في المباراة؟",
            ),
            ("ما علاج التهاب الرئة؟", "أخبرني نكتة عن الطقس."),
        ),
    },
}

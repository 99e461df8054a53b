"""General text, English and Arabic, so that the tokenizer knows ordinary words and not only the dialogues'."""

ENGLISH = """
A radiograph is a picture made with X-rays. Air looks dark, soft tissue looks grey and bone looks bright. The
lungs lie on both sides of the heart, and the diaphragm lies below them. The ribs cross the lungs as pale bands,
and the spine is a bright column in the middle. A nodule is a small round spot. An effusion is fluid between the
lung and the chest wall, and it hides the sharp angle at the base. An enlarged heart is wider than half of the
chest. The patient's right side is at the left of the picture, because the patient faces the person who reads
it. The reader looks at the quality of the image first, then at the lungs, the heart, the bones and the soft
tissues. A good report says what was seen, where it was seen, how large it is, and what it may mean. It also
says what is not there. Please remember that this is only a small model. It was made to show how a program loads
a checkpoint, reads an image, and writes an answer, word by word. It does not know anything about health,
disease, drugs or treatment, and nobody should use it to make a decision. If you are ill, ask a doctor, a nurse
or a pharmacist, or go to the nearest hospital. You can ask questions in English or in Arabic, and you can
change the language at any time. You can send one image, or two, or none at all. When you have finished, say
thank you, or simply close the window. How many people were there? Which of them would you like to see again?
Why do we think so? When did that happen, and who told you about it? I think that these things should have been
done before, but they could not have known. She said that he would come back with his friends after the weekend.
There are many ways to say the same thing, and most of them are right. This one is shorter than the other.
Numbers such as 0, 1, 2, 3, 10, 25, 100 and 2024 may appear, with units like mm, cm, kg, ml and percent.
"""

ARABIC = """
صورة الأشعة السينية صورة تظهر ما في داخل الجسم. يبدو الهواء أسود وتبدو الأنسجة الرخوة رمادية ويبدو العظم أبيض.
تقع الرئتان على جانبي القلب، ويقع الحجاب الحاجز تحتهما. تعبر الأضلاع الرئتين، ويظهر العمود الفقري في الوسط.
العقيدة بقعة صغيرة مستديرة. والانصباب الجنبي سائل يتجمع بين الرئة وجدار الصدر ويخفي الزاوية عند القاعدة. والقلب
المتضخم أعرض من نصف الصدر. الجهة اليمنى من المريض تقع في يسار الصورة، لأن المريض يواجه من يقرأ الصورة. ينظر
القارئ أولا إلى جودة الصورة، ثم إلى الرئتين والقلب والعظام والأنسجة. التقرير الجيد يذكر ما شوهد وأين شوهد وما
حجمه وما الذي قد يعنيه، ويذكر أيضا ما لم يشاهد. تذكر أن هذا نموذج صغير فقط. صنع ليبين كيف يحمل البرنامج النموذج
ويقرأ الصورة ويكتب الجواب كلمة بعد كلمة. وهو لا يعرف شيئا عن الصحة أو المرض أو الدواء أو العلاج، ولا ينبغي لأحد
أن يعتمد عليه في اتخاذ قرار. إذا كنت مريضا فاسأل طبيبا أو اذهب إلى أقرب مستشفى. يمكنك أن تسأل بالعربية أو
بالإنجليزية، ويمكنك أن تغير اللغة متى شئت. يمكنك أن ترسل صورة واحدة أو صورتين أو لا ترسل أي صورة. عندما تنتهي قل
شكرا. كم شخصا كان هناك؟ ومن منهم تريد أن تراه مرة أخرى؟ لماذا نظن ذلك؟ متى حدث هذا، ومن أخبرك به؟ أظن أن هذه
الأمور كان يجب أن تتم من قبل، لكنهم لم يكونوا يعلمون. قالت إنه سوف يعود مع أصدقائه بعد نهاية الأسبوع. هناك طرق
كثيرة لقول الشيء نفسه، ومعظمها صحيح. هذه أقصر من تلك. هل تستطيع مساعدتي في هذا السؤال؟ بماذا تنصح؟ إجابات،
أسئلة، نتائج، ملاحظات، معلومات، أهلا وسهلا بك.
"""

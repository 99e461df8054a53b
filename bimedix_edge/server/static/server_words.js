/** Warnings that the server gives in English, in the interface's language. One that is not known here stays as it is. */

import { t } from "./i18n.js";

// beginnings of the sentences in imaging/dicom_tags.py and imaging/checks.py; a test compares them
const KNOWN = [
  [/^text is burned into the picture/, "warning.burned_in"],
  [/^the patient may be recognised/, "warning.recognisable"],
  [/^almost blank/, "warning.blank"],
  [/^tiny: (?<size>\d+ x \d+) pixels/, "warning.tiny"],
  [/^it looks like a photograph of a screen/, "warning.screen"],
];

/** Return a warning in the interface's language. */
export function serverWords(text) {
  for (const [pattern, key] of KNOWN) {
    const match = text.match(pattern);
    if (match) return t(key, match.groups ?? {});
  }
  return text;
}

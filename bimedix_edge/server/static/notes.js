/** Notes and warnings about a picture, in the interface's language: by their codes, with their fields. */

import { known, t } from "./i18n.js";

const DIGITS = 9;
const LEFT_TO_RIGHT_MARK = "\u200e";

/**
 * Return the sentence of a note.
 * @param {{code: string, fields: Object, text: string}} note of `/api/look`; `text` is the server's English.
 * @returns {string} the server's text if this page does not know the code.
 */
export function noteText({ code, fields, text }) {
  const key = `note.${code}`;
  if (!known(key)) return text;
  return t(key, Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, shown(name, value)])));
}

/** Return the note about the window, which each grey DICOM picture has unless it has 8 bits and no window; or undefined. */
export function windowNote(notes) {
  return notes.find(({ code }) => WINDOWS.includes(code));
}

const WINDOWS = ["window", "window_function", "preset_window", "voi_lut", "no_window"];

// pixel values and Hounsfield units have no separators; an invisible mark keeps a minus to the left of its number
function shown(name, value) {
  if (typeof value === "number") return (value < 0 ? LEFT_TO_RIGHT_MARK : "") + Number(value.toPrecision(DIGITS));
  const key = `window.${value}`;
  return name === "preset" && known(key) ? t(key) : String(value);
}

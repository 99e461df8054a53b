/**
 * Text in two directions. Blocks have `dir="auto"`, which takes the direction of the first letter outside a `<bdi>`.
 * Each run of the block's rarer script stands in a `<bdi>`. So a block has the direction of most of its letters, and
 * names, units and numbers inside keep their own order.
 */

import { el } from "./dom.js";

const ARABIC_LETTER = /[\u0620-\u064a\u0671-\u06d3\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufefc]/g;
const LATIN_LETTER = /[A-Za-z\u00c0-\u024f\u0391-\u03c9]/g;
// a name or a quantity: from its first to its last letter or digit, with the signs between them
const LATIN_RUN = /[A-Za-z0-9\u00b5\u00c0-\u024f\u0391-\u03c9](?:[ .,:;/\u00d7+\-\u2013<>=\u2264\u2265\u00b1~]{0,3}[A-Za-z0-9%\u00b0\u00b2\u00b3\u00b5\u00c0-\u024f\u0391-\u03c9])*/g;
const ARABIC_RUN =
  /[\u0620-\u064a\u0671-\u06d3](?:[ \u060c\u061b.,:/\-]{0,3}[\u0620-\u065f\u0660-\u0669\u0670-\u06d3])*/g;

function count(text, letters) {
  return (text.match(letters) ?? []).length;
}

/** Return `ar` or `en`, the script of `text`, or null if it has no letter. Arabic text may hold many Latin terms. */
export function scriptOf(text) {
  const [arabic, latin] = [count(text, ARABIC_LETTER), count(text, LATIN_LETTER)];
  if (!arabic && !latin) return null;
  return arabic * 2 >= latin ? "ar" : "en";
}

/** Return `rtl` or `ltr` for a parent of blocks: `dir="auto"` skips children that have a `dir` of their own. */
export function directionOf(text) {
  return { ar: "rtl", en: "ltr" }[scriptOf(text)] ?? "auto";
}

/** Return the pattern of the runs to isolate in a block with `text`; null if it has only one script. */
export function minority(text) {
  if (!count(text, ARABIC_LETTER) || !count(text, LATIN_LETTER)) return null;
  return scriptOf(text) === "ar" ? LATIN_RUN : ARABIC_RUN;
}

/** Append `text` to `parent` as text nodes, with each match of `pattern` (of `minority`) in a `<bdi>`. */
export function appendText(parent, text, pattern) {
  if (!pattern) {
    parent.append(text);
    return;
  }
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    if (/^[\d.,:%]+$/.test(match[0])) continue; // a bare number needs no help
    parent.append(text.slice(end, match.index), el("bdi", {}, match[0]));
    end = match.index + match[0].length;
  }
  parent.append(text.slice(end));
}

/** Return a paragraph of plain text; line breaks are kept. */
export function paragraph(text, properties = {}) {
  const block = el("p", { dir: "auto", lang: scriptOf(text), ...properties });
  appendText(block, text, minority(text));
  return block;
}

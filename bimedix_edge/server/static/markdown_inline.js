/** The inside of a block of Markdown: code, bold, italic, and text. */

import { el } from "./dom.js";
import { appendText } from "./text.js";

const MAX_DEPTH = 4;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const MARKS = [
  { mark: "`", tag: "code" },
  { mark: "**", tag: "strong" },
  { mark: "__", tag: "strong" },
  { mark: "*", tag: "em" },
  { mark: "_", tag: "em" },
];

/**
 * Return the nodes of a piece of text.
 * @param {string} text text of one block, with line breaks.
 * @param {RegExp|null} isolated pattern of `minority`: its matches go into `<bdi>`.
 * @returns {Node[]}
 */
export function inline(text, isolated) {
  const holder = document.createDocumentFragment();
  fill(holder, text, isolated, 0);
  return [...holder.childNodes];
}

function fill(parent, text, isolated, depth) {
  const unclosed = new Set(); // marks without a closing mark in the rest; not searched again
  let plain = "";
  const flush = () => {
    appendLines(parent, plain, isolated);
    plain = "";
  };
  for (let at = 0; at < text.length; ) {
    if (text[at] === "\\" && ESCAPABLE.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
      continue;
    }
    const span = depth < MAX_DEPTH ? spanAt(text, at, unclosed) : null;
    if (!span) {
      plain += text[at];
      at += 1;
      continue;
    }
    flush();
    const element = el(span.tag);
    if (span.tag === "code") element.append(span.inner);
    else fill(element, span.inner, isolated, depth + 1);
    parent.append(span.tag === "code" ? el("bdi", {}, element) : element);
    at = span.end;
  }
  flush();
}

/** Return the marked span that begins at `at`, or null. */
function spanAt(text, at, unclosed) {
  for (const { mark, tag } of MARKS) {
    if (!text.startsWith(mark, at) || unclosed.has(mark)) continue;
    const start = at + mark.length;
    if (/\s/.test(text[start] ?? " ")) continue;
    if (mark[0] === "_" && /\w/.test(text[at - 1] ?? "")) continue; // the middle of a name_like_this
    const close = text.indexOf(mark, start + 1);
    if (close < 0) unclosed.add(mark);
    else if (!/\s/.test(text[close - 1])) return { tag, inner: text.slice(start, close), end: close + mark.length };
  }
  return null;
}

function appendLines(parent, text, isolated) {
  text.split("\n").forEach((line, index) => {
    if (index) parent.append(el("br"));
    if (line) appendText(parent, line, isolated);
  });
}

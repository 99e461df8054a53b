/**
 * The Markdown that models write as elements: paragraphs, headings, lists, quotations, tables, code, bold and italic.
 * Links, images and HTML stay plain text. The browser parses nothing.
 */

import { el } from "./dom.js";
import { inline } from "./markdown_inline.js";
import { directionOf, minority, scriptOf } from "./text.js";

const MAX_DEPTH = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6}) +(\S.*)$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const ITEM = /^( *)([-*+•]|[0-9\u0660-\u0669]{1,4}[.)\-])( +)(\S.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DELIMITERS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

// the source of each element, so that a growing answer keeps its complete blocks
const sources = new WeakMap();

/**
 * Show `source` in `container`; only the blocks that differ from the shown ones change.
 * @param {HTMLElement} container an element for this purpose only.
 * @param {string} source Markdown.
 */
export function showMarkdown(container, source) {
  const wanted = split(source);
  let same = 0;
  while (same < wanted.length && sources.get(container.children[same]) === wanted[same].text) same += 1;
  while (container.children.length > same) container.lastElementChild.remove();
  for (const block of wanted.slice(same)) {
    const element = build(block, 0);
    sources.set(element, block.text);
    container.append(element);
  }
}

/** Return the blocks of `source` as objects with `kind`, `lines` and `text`. */
function split(source) {
  const lines = source.replaceAll("\t", "    ").split(/\r\n?|\n/);
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const kind = kindOf(lines, at);
    const end = endOf(kind, lines, at);
    const taken = lines.slice(at, end);
    blocks.push({ kind, lines: taken, text: `${kind}\n${taken.join("\n")}` });
    at = end;
  }
  return blocks;
}

function kindOf(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return "code";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (ITEM.test(line)) return "list";
  if (QUOTE.test(line)) return "quote";
  const next = lines[at + 1];
  return line.includes("|") && next?.includes("-") && DELIMITERS.test(next) ? "table" : "paragraph";
}

/** Return the index after the last line of the block that begins at line `at`. */
function endOf(kind, lines, at) {
  if (kind === "heading" || kind === "rule") return at + 1;
  if (kind === "code") {
    const fence = lines[at].match(FENCE)[1];
    const close = lines.findIndex((line, index) => index > at && line.trim() === fence);
    return close < 0 ? lines.length : close + 1;
  }
  let end = at + (kind === "table" ? 2 : 1);
  while (end < lines.length && continues(kind, lines, end)) end += 1;
  return end;
}

function continues(kind, lines, at) {
  const line = lines[at];
  if (!line.trim()) return false;
  if (kind === "table") return line.includes("|");
  if (kind === "quote") return QUOTE.test(line);
  if (kind === "list") return ITEM.test(line) || line.startsWith("  ");
  return kindOf(lines, at) === "paragraph";
}

function build(block, depth) {
  return BUILDERS[block.kind](block.lines, depth);
}

function filled(tag, text, properties = {}) {
  const element = el(tag, { dir: "auto", lang: scriptOf(text), ...properties });
  element.append(...inline(text, minority(text)));
  return element;
}

const BUILDERS = {
  paragraph: (lines) => filled("p", lines.map((line) => line.trim()).join("\n")),
  rule: () => el("hr"),
  heading: ([line]) => {
    const [, marks, text] = line.match(HEADING);
    // levels 1 and 2 are for the page's own headings
    return filled(`h${Math.min(6, marks.length + 2)}`, text.replace(/ +#+ *$/, ""));
  },
  code: (lines) => {
    const closed = lines.length > 1 && FENCE.test(lines.at(-1));
    const text = lines.slice(1, closed ? -1 : undefined).join("\n");
    return el("pre", { dir: "auto", tabindex: "0" }, el("code", {}, text));
  },
  quote: (lines, depth) => {
    const inner = lines.map((line) => line.match(QUOTE)[1]);
    return el("blockquote", { dir: directionOf(inner.join()) }, nested(inner, depth));
  },
  list,
  table,
};

/** Return the elements of lines inside a list or a quotation; below the deepest level, one paragraph. */
function nested(lines, depth) {
  const source = lines.join("\n");
  if (depth >= MAX_DEPTH) return [filled("p", source)];
  return split(source).map((block) => build(block, depth + 1));
}

function list(lines, depth) {
  const [, indent, marker] = lines[0].match(ITEM);
  const ordered = /[^-*+•]/.test(marker);
  const found = items(lines, indent.length);
  const entries = found.map(([first, ...rest]) => el("li", {}, filled("p", first), nested(rest, depth)));
  const start = ordered ? parseInt(latin(marker), 10) : null;
  return el(ordered ? "ol" : "ul", { dir: directionOf(found.flat().join()), start }, entries);
}

function latin(digits) {
  return digits.replace(/[\u0660-\u0669]/g, (digit) => digit.charCodeAt(0) - 0x660);
}

/** Return for each item of a list its first line without the marker, then its other lines without the indent. */
function items(lines, indent) {
  const found = [];
  for (const line of lines) {
    const match = line.match(ITEM);
    if (match && (match[1].length < indent + 2 || !found.length)) found.push([match[4]]);
    else found.at(-1).push(line.slice(Math.min(line.search(/\S/), indent + 2)));
  }
  return found;
}

function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  const grid = el(
    "table",
    { dir: directionOf(lines.join()) },
    el("thead", {}, row(head, "th", head.length)),
    el("tbody", {}, ...rows.map((each) => row(each, "td", head.length))),
  );
  // wide tables scroll inside the answer; scrolling by keyboard needs the focus
  return el("div", { class: "table", tabindex: "0", role: "group" }, grid);
}

function row(texts, tag, columns) {
  const padded = Array.from({ length: columns }, (_, index) => texts[index] ?? "");
  return el("tr", {}, ...padded.map((text) => filled(tag, text, tag === "th" ? { scope: "col" } : {})));
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inner.split("|").map((cell) => cell.trim());
}

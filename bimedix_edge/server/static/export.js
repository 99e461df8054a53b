/** A chat as a file: HTML to read and print, JSON for programs. Both carry the notice; neither has names of files. */

import { current, isRunning, numberOf, titleOf } from "./chats.js";
import { openDialog, tagLine, warningList, noteList } from "./dialogs.js";
import { button, el } from "./dom.js";
import { dateTime, language, t } from "./i18n.js";
import { showMarkdown } from "./markdown.js";
import { words } from "./problems.js";
import { paragraph } from "./text.js";

const FORMAT = "bimedix-edge chat";
const VERSION = 1;
const POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";
const STYLE = `
:root { color-scheme: light; }
body { font: 16px/1.6 system-ui, "Segoe UI", "Noto Sans Arabic", Tahoma, sans-serif; color: #1c2426; background: #fff;
  max-width: 48rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; color: #48595e; margin: 1.5rem 0 .25rem; }
.notice { border: 1px solid #8a6d1f; background: #fdf6e0; padding: .5rem .75rem; }
article { border-top: 1px solid #ccd5d7; padding-top: .5rem; break-inside: avoid-page; }
.asked { white-space: pre-wrap; font-weight: 600; } img { max-width: 336px; background: #000; display: block; }
figure { margin: .5rem 0; } .tags span + span::before { content: " · "; } .problem { color: #9b1c1c; }
table { border-collapse: collapse; } th, td { border: 1px solid #ccd5d7; padding: .25rem .5rem; text-align: start; }
pre { overflow-x: auto; background: #f2f5f5; padding: .5rem; }
`;

/**
 * Ask for the format of the file, and save it.
 * @param {Object} model of `/api/facts`.
 */
export async function exportShown(model) {
  const chat = current();
  const kind = await openDialog(t("export.title"), (close) => [
    el("p", {}, t("export.text")),
    el(
      "div",
      { class: "dialog-buttons" },
      button("export", t("export.json"), () => close("json"), { class: "plain" }),
      button("export", t("export.html"), () => close("html"), { class: "primary" }),
    ),
  ]);
  if (kind === "json") save(JSON.stringify(record(chat, model), null, 2), "application/json", "json");
  if (kind === "html") save(page(chat, model), "text/html;charset=utf-8", "html");
}

/** Return a chat as plain values. */
export function record(chat, model) {
  return {
    format: FORMAT,
    version: VERSION,
    notice: model.notice,
    model: model.name,
    exported: new Date().toISOString(),
    turns: chat.turns.map((turn) => ({
      question: turn.text,
      images: turn.images.map((image) => imageRecord(chat, image)),
      answer: turn.answer.text,
      state: isRunning(turn.answer) ? "running" : turn.answer.state,
      cut_off: turn.answer.reason === "length",
      tokens: turn.answer.usage,
    })),
  };
}

function imageRecord(chat, image) {
  const { png: _, ...seen } = image.seen;
  return { number: numberOf(chat, image), sha256: image.sha256, window: image.window, frame: image.frame, ...seen };
}

/** Return a chat as one HTML file that is complete and may load nothing. */
export function page(chat, model) {
  const file = document.implementation.createHTMLDocument(titleOf(chat));
  file.documentElement.lang = language();
  file.documentElement.dir = document.documentElement.dir;
  file.head.prepend(
    el("meta", { charset: "utf-8" }),
    el("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }),
    el("meta", { name: "viewport", content: "width=device-width" }),
  );
  const notice = () => el("p", { class: "notice", dir: "auto" }, model.notice);
  file.body.append(
    el("h1", {}, el("bdi", {}, model.name)),
    notice(),
    el("p", {}, t("export.written", { date: dateTime(Date.now()) })),
    ...chat.turns.map((turn) => turnOf(chat, turn)),
    notice(),
  );
  // the page's own policy forbids inline styles even here, so the text gets this constant; no content before it can
  // contain "</head>", since content is escaped
  const text = file.documentElement.outerHTML.replace("</head>", `<style>${STYLE}</style></head>`);
  return `<!doctype html>\n${text}\n`;
}

function turnOf(chat, turn) {
  const text = el("div", { dir: "auto" });
  showMarkdown(text, turn.answer.text);
  const article = el("article", {}, el("h2", {}, t("turn.question")));
  article.append(...turn.images.map((image) => figure(chat, image)), paragraph(turn.text, { class: "asked" }));
  article.append(el("h2", {}, t("turn.answer")), text);
  const state = { stopped: "turn.stopped", interrupted: "turn.interrupted" }[turn.answer.state];
  if (state || turn.answer.reason === "length") article.append(el("p", {}, t(state ?? "turn.length")));
  if (turn.answer.problem) article.append(el("p", { class: "problem", dir: "auto" }, words(turn.answer.problem)));
  return article;
}

function figure(chat, image) {
  const n = numberOf(chat, image);
  const drawn = el("img", { src: image.seen.png ?? image.thumb, alt: t("image.seen_alt", { n }) });
  const caption = el("figcaption", {}, t("image.n", { n }), tagLine(image), warningList(image), noteList(image));
  return el("figure", {}, drawn, caption);
}

function save(text, type, ending) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const day = new Date().toISOString().slice(0, 10);
  el("a", { href: address, download: `chat-${day}.${ending}` }).click();
  // by then the download has begun, and the browser holds the data
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

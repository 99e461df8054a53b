/** Dialogs: modal, closed by Escape, and the focus goes back to where it was. */

import { button, byId, el } from "./dom.js";
import { nodes, number, t } from "./i18n.js";
import { noteText, windowNote } from "./notes.js";
import { frameOf } from "./pictures.js";
import { paragraph } from "./text.js";

const SHA_GROUP = 8;

/**
 * Show a dialog until it is closed.
 * @param {string} title
 * @param {function} content returns the nodes of the dialog; its argument is a function that closes it with a value.
 * @param {Object} options `class`, and `closable: false` if the page cannot go on without an answer.
 * @returns {Promise<*>} the value, or null if the user dismissed the dialog.
 */
export function openDialog(title, content, options = {}) {
  return new Promise((resolve) => {
    const heading = el("h2", { id: "dialog-title" }, title);
    const dialog = el("dialog", { class: options.class, "aria-labelledby": "dialog-title" });
    let result = null;
    const close = (value) => {
      result = value;
      dialog.close();
    };
    const closer = options.closable === false ? null : button("close", t("close"), () => close(null), { hidden: true });
    dialog.append(el("div", { class: "dialog-head" }, heading, closer), ...content(close));
    if (options.closable === false) dialog.addEventListener("cancel", (event) => event.preventDefault());
    else dialog.addEventListener("click", (event) => event.target === dialog && close(null)); // beside it
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Ask a question; resolves to true if the user presses `yes`. */
export function confirmed(question, yes) {
  return openDialog(question, (close) => [
    el(
      "div",
      { class: "dialog-buttons" },
      button("close", t("confirm.no"), () => close(false), { class: "plain" }),
      button("trash", yes, () => close(true), { class: "danger" }),
    ),
  ]).then((answer) => answer === true);
}

/** Ask for the server's key; resolves to it. */
export function askKey({ wrong }) {
  return openDialog(
    t("key.title"),
    (close) => {
      const input = el("input", {
        id: "key",
        type: "password",
        dir: "ltr",
        autocomplete: "off",
        spellcheck: "false",
        "aria-describedby": "key-help",
      });
      const use = (event) => {
        event.preventDefault();
        if (input.value.trim()) close(input.value.trim());
      };
      const problem = wrong ? el("p", { class: "problem", role: "alert" }, t("key.wrong")) : null;
      return [
        el("p", { id: "key-help" }, t("key.text")),
        problem,
        el(
          "form",
          { class: "key", on: { submit: use } },
          el("label", { for: "key" }, t("key.label")),
          input,
          el("button", { type: "submit", class: "primary" }, t("key.use")),
        ),
      ].filter(Boolean);
    },
    { closable: false },
  );
}

/** Show what the model sees of a picture, and everything the page knows about it. */
export function showPicture(image, place) {
  return openDialog(t("image.open", { n: place }), () => {
    const source = image.seen.png ?? image.thumb;
    const facts = el("div", { class: "picture-facts" }, el("p", {}, nodes("image.from_file", { name: image.name })));
    facts.append(tagLine(image), ...warningList(image), ...noteList(image), fingerprint(image));
    const drawn = el("img", { src: source, alt: t("image.seen_alt", { n: place }) });
    // the page's own notice is behind the dialog
    facts.append(paragraph(byId("notice").innerText, { class: "notice" }));
    return [el("div", { class: "picture" }, drawn, facts)];
  }, { class: "wide" });
}

/** Return one line: size, frame, and the tags of a DICOM file. */
export function tagLine(image) {
  const { width_px: width, height_px: height, n_frames: total, tags } = image.seen;
  const line = el("p", { class: "tags" }, el("span", {}, nodes("image.size", { width, height })));
  if (total > 1) line.append(el("span", {}, nodes("image.frame_of", { n: frameOf(image), total })));
  for (const [name, value] of Object.entries(tags)) {
    if (name === "window") continue; // its note says the same in the interface's language
    const label = TAGS[name];
    const text = name === "laterality" && SIDES[value] ? t(SIDES[value]) : value;
    line.append(el("span", {}, label ? `${t(label)}: ` : null, el("bdi", {}, text)));
  }
  const shown = windowNote(image.seen.notes);
  if (shown) line.append(el("span", {}, el("bdi", {}, noteText(shown))));
  return line;
}

const SIDES = { left: "side.left", right: "side.right", "both sides": "side.both" };
const TAGS = {
  modality: "tag.modality",
  body_part: "tag.body_part",
  view: "tag.view",
  laterality: "tag.laterality",
};

/** Return a list of the warnings, or nothing. */
export function warningList(image) {
  if (!image.seen.warnings.length) return [];
  return [el("div", { class: "warnings" }, el("strong", {}, t("image.warnings")), sentences(image.seen.warnings.map(noteText)))];
}

/** Return a list of the steps from the file to the picture, or nothing. */
export function noteList(image) {
  if (!image.seen.notes.length) return [];
  return [el("details", { class: "notes" }, el("summary", {}, t("image.notes")), sentences(image.seen.notes.map(noteText)))];
}

function sentences(texts) {
  return el("ul", {}, texts.map((text) => el("li", {}, paragraph(text))));
}

function fingerprint(image) {
  const groups = image.sha256.match(new RegExp(`.{1,${SHA_GROUP}}`, "g")).join(" ");
  return el("p", { class: "sha" }, `${t("image.sha")}: `, el("bdi", { class: "code" }, groups));
}

/** Return megabytes in digits. */
export function megabytes(bytes) {
  return number(bytes / 2 ** 20, 0);
}

/** The draft: question, pictures, and the one button that sends or stops. */

import { answer, obstacle, stop } from "./answering.js";
import {
  addTurn,
  beginEdit,
  changed,
  changes,
  current,
  endEdit,
  keptImages,
  lostImages,
  numberOf,
  runningTurn,
} from "./chats.js";
import { announce, button, byId, el, icon } from "./dom.js";
import { nodes, onLanguage, t } from "./i18n.js";
import { megabytes } from "./dialogs.js";
import { noteText } from "./notes.js";
import { abandon, copyOf, fromFile, giveBack, prepare } from "./pictures.js";
import { pictureCard } from "./view_picture.js";

const BASE64 = 4 / 3;
const MAX_LINES_PX = 240;
// the cards on the page, by the picture they are of
const cards = new Map();
let limits = { max_body_bytes: Infinity, max_images: Infinity };
let field = null;

/** Begin; `setLimits` follows when the server has stated its limits. */
export function startComposer() {
  field = byId("question");
  field.addEventListener("input", () => {
    current().draft.text = field.value;
    fitField();
    changed("typed");
  });
  field.addEventListener("keydown", (event) => {
    // an input method uses Enter to choose a suggestion
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId("composer").addEventListener("submit", (event) => event.preventDefault());
  byId("send").addEventListener("click", () => (runningTurn(current()) ? stopShown() : send()));
  byId("file").addEventListener("change", (event) => {
    addFiles([...event.target.files]);
    event.target.value = "";
  });
  byId("attach").addEventListener("click", () => byId("file").click());
  changes.addEventListener("shown", show);
  changes.addEventListener("draft", ({ detail }) => detail.chat === current() && show());
  changes.addEventListener("list", showButton);
  onLanguage(() => current() && show());
}

/** Use the limits of `/api/facts`. */
export function setLimits(stated) {
  limits = stated;
}

/** Add files to the draft of the shown chat, or restore the pictures that it lost. */
export async function addFiles(files) {
  const chat = current();
  complain("");
  if (!files.length) return complain(t("image.not_image"));
  const lost = lostImages(chat);
  if (lost.length) return giveFiles(chat, lost, files);
  for (const file of files) {
    if (keptImages(chat).length >= limits.max_images) return complain(t("image.too_many", { n: limits.max_images }));
    if (file.size * BASE64 > limits.max_body_bytes) {
      return complain(t("image.too_large", { name: file.name, size: megabytes(limits.max_body_bytes / BASE64) }));
    }
    const image = fromFile(file);
    chat.draft.images.push(image);
    prepare(image, () => pictureChanged(chat, image));
  }
  changed("draft", { chat });
}

async function giveFiles(chat, lost, files) {
  for (const file of files) {
    const outcomes = await Promise.all(lost.map((image) => giveBack(image, file)));
    const found = lost.filter((_, index) => outcomes[index]);
    if (!found.length) return complain(t("image.other"));
    for (const image of found) {
      prepare(image, () => changed("draft", { chat }));
      announce(t("image.back", { n: numberOf(chat, image) }));
    }
  }
}

function pictureChanged(chat, image) {
  if (chat !== current()) return; // its card is built from its state when its chat is shown
  cards.get(image)?.update();
  showButton();
  if (image.state === "ready" && image.seen.warnings.length) announce(image.seen.warnings.map(noteText).join(" "));
}

/** Stop the answer that is shown. */
export function stopShown() {
  if (!runningTurn(current())) return false;
  stop(current());
  field.focus();
  return true;
}

async function send() {
  const chat = current();
  complain("");
  const reason = reasonNot(chat);
  if (reason) return complain(reason);
  if (!chat.draft.text.trim()) return field.focus();
  addTurn(chat);
  await ask(chat);
}

/** Ask for an answer to the last question; screen readers announce its start, and the answer when it is complete. */
async function ask(chat) {
  announce(t("announce.answering"));
  const reply = await answer(chat);
  if (chat !== current()) announce(t("announce.other"));
  else if (reply.text) announce(t("announce.answer", { text: reply.text }));
}

/** Ask the last question of `chat` again. */
export async function retry(chat) {
  if (chat.editing) endEdit(chat);
  const [lost] = lostImages(chat);
  if (obstacle(chat) === "busy") return complain(t("announce.busy"));
  if (lost) return complain(t("image.lost", { n: numberOf(chat, lost) }));
  field.focus();
  await ask(chat);
}

/** Put the last question of `chat` back into the draft. */
export function edit(chat) {
  if (!chat.editing) beginEdit(chat, copyOf);
  field.focus();
}

/** Return why the draft cannot be sent, in words, or an empty string. */
function reasonNot(chat) {
  const why = obstacle(chat);
  if (why) return t(why === "busy" ? "announce.busy" : "question.unanswered");
  const [lost] = lostImages(chat);
  if (lost) return t("image.lost", { n: numberOf(chat, lost) });
  const states = keptImages(chat).map((image) => image.state);
  if (states.includes("loading")) return t("image.wait");
  return states.some((state) => state !== "ready") ? t("image.failed") : "";
}

/** Show a problem below the question; an empty text removes it. */
export function complain(text) {
  byId("complaint").textContent = text;
  byId("complaint").hidden = !text;
}

function show() {
  const chat = current();
  field.value = chat.draft.text;
  fitField();
  complain("");
  showCards(chat);
  showLost(chat);
  byId("editing").hidden = !chat.editing;
  if (chat.editing) {
    const cancel = button("close", t("turn.edit_cancel"), () => (endEdit(chat), field.focus()));
    byId("editing").replaceChildren(icon("edit"), el("span", {}, t("turn.edit_label")), cancel);
  }
  showButton();
}

function showCards(chat) {
  cards.clear();
  for (const image of chat.draft.images) {
    const remove = () => {
      abandon(image);
      chat.draft.images = chat.draft.images.filter((other) => other !== image);
      changed("draft", { chat });
      field.focus();
    };
    cards.set(image, pictureCard(image, numberOf(chat, image), { changed: () => pictureChanged(chat, image), remove }));
  }
  byId("pictures").replaceChildren(...[...cards.values()].map((card) => card.element));
  byId("pictures").hidden = !cards.size;
}

/** Ask for the pictures that were lost when the page was reloaded. */
function showLost(chat) {
  const lost = lostImages(chat);
  byId("lost").hidden = !lost.length;
  const rows = lost.map((image) => {
    const n = numberOf(chat, image);
    const give = button("clip", t("image.give", { n }), () => byId("file").click(), { class: "plain" });
    return el("li", {}, el("img", { src: image.thumb, alt: "" }), el("span", {}, nodes("image.lost", { n })), give);
  });
  byId("lost").replaceChildren(...rows);
}

function showButton() {
  const chat = current();
  const running = runningTurn(chat) !== undefined;
  const label = t(running ? "question.stop" : "question.send");
  byId("send").replaceChildren(icon(running ? "stop" : "send"), el("span", {}, label));
  byId("send").classList.toggle("stops", running);
}

/** Make the field as tall as its text, up to a limit. */
function fitField() {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, MAX_LINES_PX)}px`;
}

/** Put a question into the draft, as the examples do. */
export function suggest(text) {
  current().draft.text = text;
  changed("draft", { chat: current() });
  field.focus();
}


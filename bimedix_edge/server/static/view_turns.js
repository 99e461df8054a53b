/** The conversation that is shown: questions with their pictures, answers as they grow. */

import { changes, current, isRunning, numberOf, sentImages } from "./chats.js";
import { showPicture } from "./dialogs.js";
import { announce, button, byId, el, icon } from "./dom.js";
import { nodes, onLanguage, t } from "./i18n.js";
import { showMarkdown } from "./markdown.js";
import { words } from "./problems.js";
import { paragraph } from "./text.js";
import { edit, retry } from "./view_composer.js";

const NEAR_END_PX = 60;
const OUTCOMES = { stopped: "turn.stopped", interrupted: "turn.interrupted" };
// the views on the page, by the turn's id
const views = new Map();
const dirty = new Set();
let container = null;

/** Start showing the current chat. */
export function startTurns() {
  container = byId("turns");
  changes.addEventListener("shown", showAll);
  changes.addEventListener("turn", ({ detail }) => later(detail));
  onLanguage(showAll);
  container.addEventListener("scroll", showEndButton, { passive: true });
  byId("to-end").addEventListener("click", () => scrollToEnd());
}

function showAll() {
  const chat = current();
  if (!chat) return;
  views.clear();
  dirty.clear();
  byId("empty").hidden = chat.turns.length > 0;
  byId("list").replaceChildren(...chat.turns.map((turn) => turnView(chat, turn)));
  scrollToEnd();
}

function scrollToEnd() {
  container.scrollTop = container.scrollHeight;
  showEndButton();
}

function isAtEnd() {
  return container.scrollHeight - container.scrollTop - container.clientHeight < NEAR_END_PX;
}

function showEndButton() {
  byId("to-end").hidden = isAtEnd();
}

/** Show a change in the next frame; tokens come faster than frames. */
function later({ chat, turn }) {
  if (chat !== current()) return;
  if (!dirty.size) requestAnimationFrame(showDirty);
  dirty.add(turn);
}

function showDirty() {
  const follow = isAtEnd();
  for (const turn of dirty) views.get(turn.id)?.update();
  dirty.clear();
  if (follow) scrollToEnd();
  else showEndButton();
}

function turnView(chat, turn) {
  const parts = {
    text: el("div", { class: "text", dir: "auto" }),
    status: el("p", { class: "status" }),
    bar: el("progress", { max: "1", "aria-hidden": "true" }),
    problem: el("div", { class: "problem", role: "alert" }),
    outcome: el("p", { class: "outcome" }),
    actions: el("div", { class: "actions" }),
  };
  let state = null;
  const update = () => {
    const reply = turn.answer;
    if (reply === null) return;
    showMarkdown(parts.text, reply.text);
    showProgress(parts, reply);
    if (reply.state === state) return;
    state = reply.state;
    showEnd(parts, reply);
    parts.actions.replaceChildren(...actionsOf(chat, turn));
  };
  views.set(turn.id, { update });
  update();
  const body = el("div", { class: "answer" }, el("h2", { class: "label" }, t("turn.answer")), about(chat, turn));
  body.append(...Object.values(parts));
  return el("article", { class: "turn", dataset: { turn: turn.id } }, question(chat, turn), body);
}

function question(chat, turn) {
  const thumbs = turn.images.map((image) => el("li", {}, thumb(chat, image)));
  return el(
    "div",
    { class: "question" },
    el("h2", { class: "label" }, t("turn.question")),
    el("div", { class: "asked" }, thumbs.length ? el("ul", { class: "thumbs" }, thumbs) : null, paragraph(turn.text)),
  );
}

/** Return a thumbnail that opens what the model sees. */
function thumb(chat, image) {
  const n = numberOf(chat, image);
  const label = t("image.open", { n });
  return el(
    "button",
    { type: "button", class: "thumb", "aria-label": label, title: label, on: { click: () => showPicture(image, n) } },
    el("img", { src: image.thumb, alt: "" }),
    el("span", { class: "thumb-n" }, nodes("image.n", { n })),
    image.seen.warnings.length ? icon("warning") : null,
  );
}

/** Return the pictures of an answer if they came with an earlier question. */
function about(chat, turn) {
  const before = sentImages(chat, turn);
  if (turn.images.length || !before.length) return null;
  const items = before.map((image) => el("li", {}, thumb(chat, image)));
  return el("div", { class: "about" }, el("span", {}, t("turn.about")), el("ul", { class: "thumbs small" }, items));
}

function showProgress(parts, reply) {
  const text = isRunning(reply) ? progressWords(reply) : "";
  if (parts.status.textContent !== text) parts.status.textContent = text;
  const reading = reply.state === "prefill" && reply.progress.n_total > 0;
  parts.bar.hidden = !reading;
  if (reading) parts.bar.value = share(reply.progress);
}

function progressWords({ state, progress }) {
  if (state === "queued") return t("progress.queued", { place: progress.place });
  if (state === "encode") return t("progress.encode", { n: progress.image + 1, total: progress.n_images });
  if (state === "prefill") return t("progress.prefill", { percent: Math.floor(100 * share(progress)) });
  return t(`progress.${state}`);
}

/** Return the share of the new prompt tokens that the model has read. */
function share({ n_done: done, n_total: total, n_reused: reused = 0 }) {
  return total > reused ? (done - reused) / (total - reused) : 1;
}

function showEnd(parts, reply) {
  parts.problem.hidden = reply.state !== "failed";
  parts.problem.replaceChildren();
  if (reply.state === "failed") {
    const title = el("strong", {}, t(reply.text ? "error.part" : "error.title"));
    parts.problem.append(icon("warning"), el("div", {}, title, paragraph(words(reply.problem))));
  }
  const outcome = outcomeOf(reply);
  parts.outcome.hidden = !outcome;
  parts.outcome.textContent = outcome;
}

function outcomeOf(reply) {
  if (reply.reason === "length") return t("turn.length");
  if (OUTCOMES[reply.state]) return t(OUTCOMES[reply.state]);
  return reply.state === "done" && !reply.text ? t("turn.empty") : "";
}

function actionsOf(chat, turn) {
  const reply = turn.answer;
  if (isRunning(reply)) return [];
  const found = [];
  if (reply.text) found.push(button("copy", t("turn.copy"), (event) => copy(event.currentTarget, reply.text)));
  if (turn === chat.turns.at(-1)) {
    found.push(button("retry", t("turn.retry"), () => retry(chat)));
    found.push(button("edit", t("turn.edit"), () => edit(chat), { class: "quiet edit" }));
  }
  if (reply.usage) found.push(usage(reply));
  return found;
}

function usage(reply) {
  const seconds = (reply.endedMs - reply.startedMs) / 1000;
  return el("span", { class: "usage" }, nodes("turn.usage", { n: reply.usage.completion_tokens, seconds }));
}

async function copy(control, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    announce(t("turn.copy_failed")); // the browser or the user forbids it
    control.lastChild.textContent = t("turn.copy_failed");
    return;
  }
  control.lastChild.textContent = t("turn.copied");
  announce(t("turn.copied"));
}

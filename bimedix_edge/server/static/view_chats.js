/** The list of chats; a drawer on narrow screens. */

import { stop } from "./answering.js";
import { changes, chats, clearAll, current, isEmpty, newChat, remove, runningTurn, show, titleOf } from "./chats.js";
import { confirmed } from "./dialogs.js";
import { announce, byId, el, icon } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { abandon } from "./pictures.js";
import { appendText, minority, scriptOf } from "./text.js";
import { forget, keeps } from "./vault.js";

/** Start showing the list. */
export function startChatList() {
  changes.addEventListener("list", showList);
  onLanguage(() => current() && showList());
  byId("new-chat").addEventListener("click", () => {
    newChat();
    closeDrawer();
    byId("question").focus();
  });
  byId("clear").addEventListener("click", clear);
  byId("open-chats").addEventListener("click", openDrawer);
  byId("close-chats").addEventListener("click", closeDrawer);
  byId("curtain").addEventListener("click", closeDrawer);
}

function showList() {
  byId("chat-list").replaceChildren(...chats().map(row));
  byId("kept").textContent = t(keeps() ? "chats.kept" : "chats.kept_not");
  const title = titleOf(current());
  byId("title").replaceChildren(titleNode(title));
}

function row(chat) {
  const title = titleOf(chat);
  const open = () => {
    show(chat);
    closeDrawer();
    byId("question").focus();
  };
  const marks = [];
  if (runningTurn(chat)) marks.push(el("span", { class: "spinner", role: "img", "aria-label": t("chats.answering") }));
  else if (chat.unread) marks.push(el("span", { class: "dot", role: "img", "aria-label": t("chats.unread") }));
  const [first] = chat.turns.flatMap((turn) => turn.images);
  const picture = first ? el("img", { src: first.thumb, alt: "" }) : null;
  const label = t("chats.delete", { title: title || t("chats.untitled") });
  return el(
    "li",
    {},
    el(
      "button",
      { type: "button", class: "chat", "aria-current": chat === current() ? "true" : null, on: { click: open } },
      picture,
      titleNode(title),
      marks,
    ),
    isEmpty(chat)
      ? null
      : el("button", { type: "button", class: "quiet delete", "aria-label": label, title: label, on: { click: () => drop(chat) } }, icon("trash")),
  );
}

function titleNode(title) {
  const node = el("span", { class: "chat-title", dir: "auto", lang: scriptOf(title) });
  appendText(node, title || t("chats.untitled"), minority(title));
  return node;
}

async function drop(chat) {
  if (!(await confirmed(t("confirm.delete"), t("confirm.yes_delete")))) return;
  end(chat);
  remove(chat);
  byId("question").focus();
}

async function clear() {
  if (!(await confirmed(t("confirm.clear"), t("confirm.yes_clear")))) return;
  chats().forEach(end);
  clearAll();
  forget();
  closeDrawer();
  announce(t("done.cleared"));
  byId("question").focus();
}

function end(chat) {
  stop(chat);
  chat.draft.images.forEach(abandon);
}

function openDrawer() {
  document.body.classList.add("drawer");
  byId("main").inert = true;
  byId("close-chats").focus();
}

/** Close the drawer; return whether it was open. */
export function closeDrawer() {
  if (!document.body.classList.contains("drawer")) return false;
  document.body.classList.remove("drawer");
  byId("main").inert = false;
  byId("open-chats").focus();
  return true;
}

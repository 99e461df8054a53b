/**
 * The chats of this tab, in memory. A chat holds turns (a question with its pictures, and its answer) and a draft.
 * Work in progress, such as a stream or the preparation of a picture, refers to its own turn or picture, not to "the
 * chat that is shown": switching chats cannot mix them.
 *
 *     chat:    id, created, turns, draft, stash (the draft put aside during an edit), editing (id of a turn), unread
 *     turn:    id, text, images, answer (null before the question is sent)
 *     answer:  text, state (sending, queued, encode, prefill, writing; then done, stopped, failed, interrupted),
 *              progress, problem, reason, usage, startedMs, endedMs
 *     picture: see pictures.js
 *
 * Events on `changes`: `list` (a chat is new, gone, or has another title or state), `shown` (another chat is shown),
 * `turn` with {chat, turn}, `draft` with {chat}.
 */

const RUNNING = new Set(["sending", "queued", "encode", "prefill", "writing"]);
const TITLE_CHARACTERS = 60;

export const changes = new EventTarget();
let all = [];
let shown = null;

/** Dispatch an event on `changes`. */
export function changed(kind, detail = {}) {
  changes.dispatchEvent(new CustomEvent(kind, { detail }));
}

/** Return every chat, newest first. */
export function chats() {
  return all;
}

/** Return the chat that is shown; there is always one. */
export function current() {
  return shown;
}

/** Begin with the chats of `vault.restore`, or with an empty one. */
export function startChats(restored) {
  all = restored;
  if (all.length) show(all.find((chat) => chat.shown) ?? all[0]);
  else newChat();
}

/** Show an empty chat: an existing one, or a new one. */
export function newChat() {
  let chat = all.find(isEmpty);
  if (!chat) {
    chat = {
      id: crypto.randomUUID(),
      created: Date.now(),
      turns: [],
      draft: emptyDraft(),
      stash: null,
      editing: null,
      unread: false,
    };
    all.unshift(chat);
  }
  show(chat);
}

/** Show `chat`. */
export function show(chat) {
  shown = chat;
  chat.unread = false;
  changed("shown");
  changed("list");
}

/** Forget a chat; stop its answer before. */
export function remove(chat) {
  all = all.filter((other) => other !== chat);
  if (chat !== shown) changed("list");
  else if (all.length) show(all[0]);
  else newChat();
}

/** Forget all. */
export function clearAll() {
  all = [];
  newChat();
}

/** Return an empty draft. */
export function emptyDraft() {
  return { text: "", images: [] };
}

/** Return whether `chat` has no turn and an empty draft. */
export function isEmpty(chat) {
  return !chat.turns.length && !chat.draft.text && !chat.draft.images.length;
}

/** Return whether an answer is in progress. */
export function isRunning(answer) {
  return answer !== null && RUNNING.has(answer.state);
}

/** Return the turn of `chat` whose answer is in progress, or undefined. */
export function runningTurn(chat) {
  return chat.turns.find((turn) => isRunning(turn.answer));
}

/** Return whether a turn ended without text, so that the conversation cannot continue after it. */
export function isUnanswered(turn) {
  return !isRunning(turn.answer) && !turn.answer?.text;
}

/** Return the first words of a chat, or an empty string. */
export function titleOf(chat) {
  const text = (chat.turns[0]?.text ?? "").replace(/\s+/g, " ").trim();
  const characters = [...text];
  return characters.length > TITLE_CHARACTERS ? `${characters.slice(0, TITLE_CHARACTERS).join("")}…` : text;
}

/** Return the pictures that were sent in `chat`, in order; with `until`, only those up to that turn. */
export function sentImages(chat, until = null) {
  const last = until ? chat.turns.indexOf(until) : chat.turns.length - 1;
  return chat.turns.slice(0, last + 1).flatMap((turn) => turn.images);
}

/** Return the pictures for the next question: those sent before, without an edited turn's, and the draft's. */
export function keptImages(chat) {
  const kept = chat.turns.filter((turn) => turn.id !== chat.editing);
  return [...kept.flatMap((turn) => turn.images), ...chat.draft.images];
}

/** Return those of `keptImages` whose files were lost when the page was reloaded. */
export function lostImages(chat) {
  return keptImages(chat).filter((image) => image.state === "lost");
}

/** Return the number by which the page calls a picture of `chat`, from 1. */
export function numberOf(chat, image) {
  const place = keptImages(chat).indexOf(image);
  return (place < 0 ? sentImages(chat).indexOf(image) : place) + 1;
}

/** Append the draft as a turn, in place of the turn being edited if there is one, and return it. */
export function addTurn(chat) {
  const turn = { id: crypto.randomUUID(), text: chat.draft.text.trim(), images: chat.draft.images, answer: null };
  if (chat.editing) chat.turns = chat.turns.filter((other) => other.id !== chat.editing);
  chat.turns.push(turn);
  chat.draft = chat.stash ?? emptyDraft();
  chat.stash = chat.editing = null;
  if (chat === shown) changed("shown");
  changed("list");
  return turn;
}

/** Put the last question and its pictures back into the draft; the old draft waits until the edit is over. */
export function beginEdit(chat, copyOf) {
  const turn = chat.turns.at(-1);
  chat.stash = chat.draft;
  chat.draft = { text: turn.text, images: turn.images.map(copyOf) };
  chat.editing = turn.id;
  changed("draft", { chat });
}

/** Leave the last question as it is. */
export function endEdit(chat) {
  chat.draft = chat.stash;
  chat.stash = chat.editing = null;
  changed("draft", { chat });
}

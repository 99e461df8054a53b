/**
 * The data that survive a reload of the page: the texts, and thumbnails to recognise the pictures; never the files.
 *
 * Browsers write `sessionStorage` to the disk, and chats are patient data. So they are encrypted (AES-GCM) with a key
 * that only the running server has, in its memory: what remains on a disk afterwards cannot be read.
 */

import { tabKey } from "./api.js";
import { chats, current, emptyDraft, isRunning } from "./chats.js";

const KEPT = "bimedix.chats";
const IV_BYTES = 12;
const DELAY_MS = 400;
const CHUNK = 0x8000;
let key = null;
let timer = 0;

/** Get the key. Without one, as in a browser without cryptography, nothing is kept. */
export async function openVault() {
  if (!crypto.subtle) return;
  key = await crypto.subtle.importKey("raw", await tabKey(), "AES-GCM", false, ["encrypt", "decrypt"]);
}

/** Return whether texts are kept. */
export function keeps() {
  return key !== null;
}

/** Return the kept chats, with `shown` on the one that was shown; none if the server was restarted since. */
export async function restore() {
  const kept = sessionStorage.getItem(KEPT);
  if (!key || !kept) return [];
  const bytes = Uint8Array.from(atob(kept), (character) => character.charCodeAt(0));
  const [iv, data] = [bytes.subarray(0, IV_BYTES), bytes.subarray(IV_BYTES)];
  try {
    const text = await crypto.subtle.decrypt({ name: "AES-GCM", iv }, key, data);
    return JSON.parse(new TextDecoder().decode(text)).map(restored);
  } catch (error) {
    if (error.name !== "OperationError") throw error;
    sessionStorage.removeItem(KEPT); // from before a restart of the server: nobody can read it any more
    return [];
  }
}

/** Save the chats after a short delay; without room, call `failed` and stop keeping them. */
export function keepSoon(failed) {
  if (!key || timer) return;
  timer = setTimeout(async () => {
    timer = 0;
    try {
      await keep();
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      key = null;
      sessionStorage.removeItem(KEPT);
      failed();
    }
  }, DELAY_MS);
}

/** Delete the kept chats. */
export function forget() {
  clearTimeout(timer);
  timer = 0;
  sessionStorage.removeItem(KEPT);
}

async function keep() {
  const iv = crypto.getRandomValues(new Uint8Array(IV_BYTES));
  const text = new TextEncoder().encode(JSON.stringify(chats().map(portable)));
  const data = new Uint8Array(await crypto.subtle.encrypt({ name: "AES-GCM", iv }, key, text));
  let characters = "";
  for (const part of [iv, data]) {
    for (let at = 0; at < part.length; at += CHUNK) characters += String.fromCharCode(...part.subarray(at, at + CHUNK));
  }
  sessionStorage.setItem(KEPT, btoa(characters));
}

function portable({ id, created, turns, draft, unread }) {
  const kept = turns.map((turn) => ({ ...turn, images: turn.images.map(stripped) }));
  return { id, created, unread, text: draft.text, turns: kept, shown: id === current().id };
}

/** Return a picture without its file and without the full-size view of the model. */
function stripped(image) {
  const { png: _, ...seen } = image.seen;
  return { ...image, blob: null, problem: null, state: "lost", seen: { ...seen, png: null } };
}

function restored({ text, turns, ...chat }) {
  for (const { answer } of turns) {
    if (isRunning(answer)) Object.assign(answer, { state: "interrupted", endedMs: Date.now() });
    // an error object cannot be restored, and its request is over
    if (answer?.problem) Object.assign(answer, { problem: null, state: answer.text ? "interrupted" : "stopped" });
  }
  return { ...chat, turns, draft: { ...emptyDraft(), text }, stash: null, editing: null };
}

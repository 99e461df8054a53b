/**
 * Answers in progress. Each belongs to one turn of one chat, whichever chat is shown; several chats may have one each.
 */

import { ApiError, complete } from "./api.js";
import { changed, current, isUnanswered, runningTurn, sentImages } from "./chats.js";
import { messagePart } from "./pictures.js";

// the `AbortController` of each answer in progress, by its chat
const running = new Map();
const STOP_REASONS = { length: "length" };

/**
 * Ask the model to answer the last turn of `chat`; a new answer replaces an earlier one.
 * @returns {Promise<Object>} the turn's answer, when it is complete, stopped or failed.
 */
export async function answer(chat) {
  const turn = chat.turns.at(-1);
  const stop = new AbortController();
  running.set(chat, stop);
  const reply = {
    text: "",
    state: "sending",
    progress: {},
    problem: null,
    reason: null,
    usage: null,
    startedMs: Date.now(),
    endedMs: null,
  };
  turn.answer = reply;
  const notify = () => changed("turn", { chat, turn });
  notify();
  changed("list");
  try {
    const body = { messages: await messages(chat), bimedix_chat: chat.id };
    for await (const chunk of complete(body, stop.signal)) {
      take(reply, chunk);
      checkImages(chat, chunk);
      notify();
    }
    reply.state = "done";
  } catch (error) {
    if (stop.signal.aborted) reply.state = "stopped";
    else fail(reply, error);
  } finally {
    running.delete(chat);
  }
  reply.endedMs = Date.now();
  if (chat !== current() && reply.state !== "stopped") chat.unread = true;
  notify();
  changed("list");
  return reply;
}

/** Stop the answer of `chat` within one decode step; does nothing if there is none. */
export function stop(chat) {
  running.get(chat)?.abort();
}

/** Return why no question can be asked in `chat`: `busy` or `unanswered`; null if one can. */
export function obstacle(chat) {
  if (runningTurn(chat)) return "busy";
  const last = chat.turns.at(-1);
  return last && isUnanswered(last) && chat.editing !== last.id ? "unanswered" : null;
}

async function messages(chat) {
  const found = [];
  for (const turn of chat.turns) {
    const content = await Promise.all(turn.images.map(messagePart));
    content.push({ type: "text", text: turn.text });
    found.push({ role: "user", content });
    if (turn !== chat.turns.at(-1)) found.push({ role: "assistant", content: turn.answer.text });
  }
  return found;
}

function take(reply, chunk) {
  if (chunk.bimedix) {
    reply.state = chunk.bimedix.event;
    reply.progress = chunk.bimedix;
  }
  if (chunk.usage) reply.usage = chunk.usage;
  const [choice] = chunk.choices ?? [];
  if (!choice) return;
  if (choice.delta?.content) {
    reply.state = "writing";
    reply.text += choice.delta.content;
  }
  if (choice.finish_reason) reply.reason = STOP_REASONS[choice.finish_reason] ?? null;
}

/**
 * Compare the pictures that the model saw, which the server names at the end of an answer, with those of the chat.
 * @throws {ApiError} if they differ: the answer is about another picture, perhaps another patient.
 */
function checkImages(chat, chunk) {
  const seen = chunk.choices?.[0]?.bimedix?.images;
  if (!seen) return;
  const sent = sentImages(chat).map((image) => image.sha256);
  if (sent.join() !== seen.map((image) => image.sha256).join()) throw new ApiError(0, { code: "mixed" });
}

function fail(reply, error) {
  reply.state = "failed";
  if (error.code === "mixed") reply.text = "";
  // any other error is a defect of this page: show it, and report it to the console
  reply.problem = error instanceof ApiError ? error : new ApiError(0, { message: String(error) });
  if (!(error instanceof ApiError)) reportError(error);
}

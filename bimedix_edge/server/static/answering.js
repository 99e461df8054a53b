/**
 * Answers on their way. Each belongs to one turn of one chat, whatever chat is shown; several chats may have one each.
 */

import { ApiError, complete } from "./api.js";
import { changed, current, isUnanswered, runningTurn, sentImages } from "./chats.js";
import { messagePart } from "./pictures.js";

// how to stop the answer of a chat, by the chat
const running = new Map();
const STOP_REASONS = { length: "length" };

/**
 * Let the model answer the last turn of `chat`, anew if it has an answer.
 * @returns {Promise<Object>} the turn's answer when it is over, however it ended.
 */
export async function answer(chat) {
  const turn = chat.turns.at(-1);
  const stop = new AbortController();
  running.set(chat, stop);
  const made = {
    text: "",
    state: "sending",
    progress: {},
    problem: null,
    reason: null,
    usage: null,
    startedMs: Date.now(),
    endedMs: null,
  };
  turn.answer = made;
  const tell = () => changed("turn", { chat, turn });
  tell();
  changed("list");
  try {
    const body = { messages: await messages(chat), bimedix_chat: chat.id };
    for await (const chunk of complete(body, stop.signal)) {
      take(made, chunk);
      checkImages(chat, chunk);
      tell();
    }
    made.state = "done";
  } catch (error) {
    if (stop.signal.aborted) made.state = "stopped";
    else fail(made, error);
  } finally {
    running.delete(chat);
  }
  made.endedMs = Date.now();
  if (chat !== current() && made.state !== "stopped") chat.unread = true;
  tell();
  changed("list");
  return made;
}

/** Stop the answer of `chat` within a step; nothing happens if there is none. */
export function stop(chat) {
  running.get(chat)?.abort();
}

/** Return whether a question can be asked in `chat`, or why not: `busy`, or `unanswered`. */
export function obstacle(chat) {
  if (runningTurn(chat)) return "busy";
  const last = chat.turns.at(-1);
  return last && isUnanswered(last) && chat.editing !== last.id ? "unanswered" : null;
}

async function messages(chat) {
  const made = [];
  for (const turn of chat.turns) {
    const content = await Promise.all(turn.images.map(messagePart));
    content.push({ type: "text", text: turn.text });
    made.push({ role: "user", content });
    if (turn !== chat.turns.at(-1)) made.push({ role: "assistant", content: turn.answer.text });
  }
  return made;
}

function take(made, chunk) {
  if (chunk.bimedix) {
    made.state = chunk.bimedix.event;
    made.progress = chunk.bimedix;
  }
  if (chunk.usage) made.usage = chunk.usage;
  const [choice] = chunk.choices ?? [];
  if (!choice) return;
  if (choice.delta?.content) {
    made.state = "writing";
    made.text += choice.delta.content;
  }
  if (choice.finish_reason) made.reason = STOP_REASONS[choice.finish_reason] ?? null;
}

/**
 * Compare the pictures that the model saw, as the server tells with the end of an answer, with those of the chat.
 * @throws {ApiError} they differ: the answer is about another picture, perhaps another patient.
 */
function checkImages(chat, chunk) {
  const seen = chunk.choices?.[0]?.bimedix?.images;
  if (!seen) return;
  const sent = sentImages(chat).map((image) => image.sha256);
  if (sent.join() !== seen.map((image) => image.sha256).join()) throw new ApiError(0, { code: "mixed" });
}

function fail(made, error) {
  made.state = "failed";
  if (error.code === "mixed") made.text = "";
  // anything else is a defect of this page: it is shown as such, and the console has it
  made.problem = error instanceof ApiError ? error : new ApiError(0, { message: String(error) });
  if (!(error instanceof ApiError)) reportError(error);
}

/** The server's API as functions: session, facts, what the model sees of a picture, and answers. */

import { serverSentEvents } from "./sse.js";

// kept for this tab only, so that it can be reloaded; the server has a new key at each start
const KEY = "bimedix.key";

/**
 * A refusal by the server, or no answer.
 * `status` is HTTP's (0: the server was not reached), `code` the server's code, `details` its `error` object,
 * `retryAfterS` the seconds to wait, if stated.
 */
export class ApiError extends Error {
  constructor(status, details = {}, retryAfterS = null) {
    super(details.message ?? "");
    this.status = status;
    this.details = details;
    this.code = details.code ?? "";
    this.retryAfterS = retryAfterS;
  }
}

/** Return whether this tab has a key. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Use `key` from now on; null forgets it. */
export function setKey(key) {
  if (key === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, key);
}

/** Exchange the one-time token of the link that opened the page for a key; return whether it worked. */
export async function redeemLink() {
  const token = new URLSearchParams(location.hash.slice(1)).get("t");
  if (token === null) return false;
  history.replaceState(null, "", location.pathname); // so that neither the history nor a bookmark keeps it
  try {
    const { key } = await (await call("/api/session", { body: { token } })).json();
    setKey(key);
    return true;
  } catch (error) {
    if (error.status === 0) throw error;
    return false;
  }
}

/** Return name, notice and limits of the model: `/api/facts`. */
export async function facts() {
  return (await call("/api/facts")).json();
}

/** Return the 32-byte key that encrypts this tab's texts; the server holds it in memory only, until it stops. */
export async function tabKey() {
  const { key } = await (await call("/api/tab-key")).json();
  return Uint8Array.from(atob(key), (character) => character.charCodeAt(0));
}

/**
 * Return what the model sees of a picture.
 * @param {{image: string, window?: string, frame?: number}} body `image` is a data URI.
 * @param {AbortSignal} signal
 */
export async function look(body, signal) {
  return (await call("/api/look", { body, signal })).json();
}

/**
 * Yield the chunks of an answer as they stream.
 * @param {Object} body of `/v1/chat/completions`, without the options of streaming.
 * @param {AbortSignal} signal stops the answer on the server, too.
 * @yields {Object} chunks in OpenAI's format, and chunks with `bimedix` that report progress.
 * @throws {ApiError} if the server refuses, breaks off, or cannot be reached.
 */
export async function* complete(body, signal) {
  const streaming = { stream: true, stream_options: { include_usage: true, bimedix_progress: true } };
  const response = await call("/v1/chat/completions", { body: { ...body, ...streaming }, signal });
  try {
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(503, chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError(0, { code: "broken" });
  }
  throw new ApiError(0, { code: "broken" });
}

async function call(path, { body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key !== null && path !== "/api/session") headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  let response;
  try {
    response = await fetch(path, { ...request, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, { code: "network" });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text();
  const wait = Number(response.headers.get("Retry-After")) || null;
  try {
    return new ApiError(response.status, JSON.parse(text).error, wait);
  } catch {
    return new ApiError(response.status, { code: "unreadable" }, wait); // not JSON: not from the API, but from a layer below
  }
}

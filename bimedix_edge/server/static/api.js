/** The server, as functions: who we are, what it is, what the model sees of a picture, and answers. */

import { serverSentEvents } from "./sse.js";

// in this tab alone, so that it may be loaded again; the server has a new key at each start
const KEY = "bimedix.key";

/**
 * The server said no.
 * `status` is HTTP's (0: it was not reached), `code` the server's name for it, `details` its `error` object,
 * `retryAfterS` how long to wait, where it says so.
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

/** Exchange the token of the link that opened the page, which works once, for a key; return whether it worked. */
export async function redeemLink() {
  const token = new URLSearchParams(location.hash.slice(1)).get("t");
  if (token === null) return false;
  history.replaceState(null, "", location.pathname); // neither the history nor a bookmark keeps it
  try {
    const { key } = await (await call("/api/session", { body: { token } })).json();
    setKey(key);
    return true;
  } catch (error) {
    if (error.status === 0) throw error;
    return false;
  }
}

/** Return name, notice and limits of the model; see `/api/facts`. */
export async function facts() {
  return (await call("/api/facts")).json();
}

/** Return the key that encrypts this tab's texts, 32 bytes; the server keeps it in memory and forgets it at its end. */
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
 * Yield the parts of an answer as they come.
 * @param {Object} body of `/v1/chat/completions`, without what concerns streaming.
 * @param {AbortSignal} signal stops the answer on the server, too.
 * @yields {Object} chunks of OpenAI's shape, and those with `bimedix` that tell of progress.
 * @throws {ApiError} the server refused, broke off, or cannot be reached.
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
    return new ApiError(response.status, { code: "unreadable" }, wait); // no JSON: not from the API, but from below it
  }
}

/**
 * A picture that a user gave, and what the server says the model sees of it.
 *
 *     picture: id, name (of the file), blob (null after the page was loaded again), sha256, window, frame,
 *              state (loading, ready, failed, lost), problem, seen, thumb
 *     seen:    png (data URI), width_px, height_px, n_frames, notes, warnings, tags, presets
 *
 * The file stays as it is: what is sent with a question is the file with its window and frame, so that the server
 * does the decoding, and always the same way.
 */

import { ApiError, look } from "./api.js";

const THUMB_PX = 160;
const PREVIEW_DELAY_MS = 150;
// the latest request of each picture: its `AbortController`
const requests = new WeakMap();

/** Return a picture of a file; `prepare` has to follow. */
export function fromFile(file) {
  return {
    id: crypto.randomUUID(),
    name: file.name || "",
    blob: file,
    sha256: null,
    window: null,
    frame: null,
    state: "loading",
    problem: null,
    seen: null,
    thumb: null,
  };
}

/** Return a picture of its own with the same contents, so that an edit leaves what was sent untouched. */
export function copyOf(image) {
  return { ...image, id: crypto.randomUUID() };
}

/**
 * Ask what the model sees, and call `changed` when `image` has another state. A later call replaces an earlier one,
 * whichever of their answers comes first.
 * @param {Object} image
 * @param {function} changed
 * @param {{delay: boolean}} options whether to wait for more changes of a slider.
 */
export async function prepare(image, changed, { delay = false } = {}) {
  requests.get(image)?.abort();
  const request = new AbortController();
  requests.set(image, request);
  Object.assign(image, { state: "loading", problem: null });
  changed();
  try {
    if (delay) await new Promise((resolve) => setTimeout(resolve, PREVIEW_DELAY_MS));
    if (request.signal.aborted) return;
    const body = { image: await dataUri(image.blob), ...choices(image) };
    const { png, sha256, ...seen } = await look(body, request.signal);
    const thumb = await thumbnail(png);
    if (request.signal.aborted) return;
    Object.assign(image, { state: "ready", sha256, seen: { png, ...seen }, thumb });
  } catch (error) {
    if (request.signal.aborted) return;
    Object.assign(image, { state: "failed", problem: asApiError(error) });
  }
  changed();
}

/** Forget what is still being prepared. */
export function abandon(image) {
  requests.get(image)?.abort();
}

/** Return the part of a message that is this picture, in OpenAI's shape with our window and frame. */
export async function messagePart(image) {
  return { type: "image_url", image_url: { url: await dataUri(image.blob) }, bimedix: choices(image) };
}

/** Return which frame is shown, from 1; the server shows the middle one unless it is asked for another. */
export function frameOf(image) {
  return image.frame ?? Math.floor((image.seen.n_frames - 1) / 2) + 1;
}

/**
 * Give a picture its file back after the page was loaded again.
 * @returns {Promise<boolean>} whether it is the same file, byte for byte; any other is refused.
 */
export async function giveBack(image, file) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (sha256 !== image.sha256) return false;
  image.blob = file;
  return true;
}

function choices(image) {
  const chosen = {};
  if (image.window !== null) chosen.window = image.window;
  if (image.frame !== null) chosen.frame = image.frame;
  return chosen;
}

function asApiError(error) {
  // a file that was moved or changed since it was given cannot be read any more
  return error instanceof DOMException ? new ApiError(0, { message: error.message }) : error;
}

async function dataUri(blob) {
  const isDicom = (await blob.slice(128, 132).text()) === "DICM" || !blob.type.startsWith("image/");
  const typed = isDicom ? new Blob([blob], { type: "application/dicom" }) : blob;
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(typed);
  });
}

/** Return a small JPEG of what the model sees, as a data URI. */
async function thumbnail(png) {
  const image = new Image();
  image.src = png;
  await image.decode();
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, THUMB_PX / Math.max(image.naturalWidth, image.naturalHeight));
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.85);
}

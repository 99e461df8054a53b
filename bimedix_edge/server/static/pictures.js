/**
 * A picture of the user, and the server's answer about what the model sees of it.
 *
 *     picture: id, name (of the file), blob (null after the page was reloaded), sha256, window, frame,
 *              state (loading, ready, failed, lost), problem, seen, thumb
 *     seen:    png (data URI), width_px, height_px, n_frames, notes and warnings (see notes.js), tags, presets
 *
 * The file stays unchanged: a question is sent with the file, its window and its frame, so that the server alone
 * decodes it.
 */

import { ApiError, look } from "./api.js";

const THUMB_PX = 160;
const PREVIEW_DELAY_MS = 150;
// the `AbortController` of the latest request for each picture
const requests = new WeakMap();

/** Return a picture for a file; call `prepare` next. */
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

/** Return a copy, so that an edit does not change the picture that was sent. */
export function copyOf(image) {
  return { ...image, id: crypto.randomUUID() };
}

/**
 * Ask the server what the model sees, and call `changed` when `image` changes its state. A later call replaces an
 * earlier one, whichever answer comes first.
 * @param {Object} image
 * @param {function} changed
 * @param {{delay: boolean}} options `delay` waits for further changes, as of a slider.
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

/** Stop preparing a picture. */
export function abandon(image) {
  requests.get(image)?.abort();
}

/** Return the picture as a part of a message, in OpenAI's format with our window and frame. */
export async function messagePart(image) {
  return { type: "image_url", image_url: { url: await dataUri(image.blob) }, bimedix: choices(image) };
}

/** Return the number of the shown frame, from 1; by default the server shows the middle one. */
export function frameOf(image) {
  return image.frame ?? Math.floor((image.seen.n_frames - 1) / 2) + 1;
}

/**
 * Restore the file of a picture after the page was reloaded.
 * @returns {Promise<boolean>} whether the file is the same, byte for byte; another file is refused.
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
  // a file that was moved or changed after the user chose it can no longer be read
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

/** Errors in the interface's language: the problem, then what to do. */

import { t } from "./i18n.js";

const WAIT_S = 5;
const BY_CODE = {
  network: "error.network",
  broken: "error.broken",
  lost: "error.lost",
  loading: "error.loading",
  mixed: "error.mixed",
  request_too_large: "error.too_large",
  unsupported_image: "error.media",
};
const BY_STATUS = { 401: "error.key", 413: "error.too_large", 415: "error.media", 500: "error.server" };

/**
 * Return one or two sentences about an error.
 * @param {Error} error an `ApiError`; any other error is a defect of this page and is thrown again.
 * @returns {string}
 */
export function words(error) {
  if (error.details === undefined) throw error;
  const { details, status, code } = error;
  if (details.n_prompt_tokens > details.n_ctx) {
    const [prompt, context] = [details.n_prompt_tokens, details.n_ctx];
    return t("error.too_long", { over: prompt - context, prompt, context });
  }
  if (BY_CODE[code]) return t(BY_CODE[code]);
  if (status === 429 || details.place) {
    const seconds = Math.ceil(error.retryAfterS ?? details.retry_after_s ?? WAIT_S);
    return t(details.place ? "error.queue" : "error.busy", { seconds });
  }
  if (BY_STATUS[status]) return t(BY_STATUS[status]);
  if (details.message) return t("error.other", { message: details.message });
  return t(status === 503 ? "error.loading" : "error.server");
}

/** The interface's language: strings, direction, numbers. Texts of users and of the model are never translated. */

import { el } from "./dom.js";
import arabic from "./strings_ar.js";
import english from "./strings_en.js";

const STRINGS = { ar: arabic, en: english };
// a preference, not patient data, so it may stay on the disk
const SAVED_AS = "bimedix.language";
const listeners = new Set();
let current = "en";

/** Return `en` or `ar`. */
export function language() {
  return current;
}

/** Choose the language that was chosen before, or the one that the browser prefers. */
export function startLanguage() {
  const preferred = navigator.languages.find((tag) => /^(ar|en)\b/.test(tag)) ?? "en";
  setLanguage(localStorage.getItem(SAVED_AS) ?? preferred.slice(0, 2));
}

/**
 * Switch the whole page.
 * @param {string} wanted `en` or `ar`; anything else is English.
 */
export function setLanguage(wanted) {
  current = wanted === "ar" ? "ar" : "en";
  localStorage.setItem(SAVED_AS, current);
  document.documentElement.lang = current;
  document.documentElement.dir = current === "ar" ? "rtl" : "ltr";
  translate(document);
  for (const listener of listeners) listener();
}

/** Call `listener` whenever the language has changed. */
export function onLanguage(listener) {
  listeners.add(listener);
}

/** Fill in the elements of `root` that name a string: `data-t` sets the text, `data-t-label` label and tooltip. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    if (element.tagName === "BUTTON") element.title = t(element.dataset.tLabel);
  }
  for (const element of root.querySelectorAll("[data-t-placeholder]")) {
    element.placeholder = t(element.dataset.tPlaceholder);
  }
}

/** Return a number in Western digits in both languages: the model writes these, and a mixture invites mistakes. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(`${current}-u-nu-latn`, { maximumFractionDigits: digits }).format(value);
}

/** Return date and time; `milliseconds` since 1970. */
export function dateTime(milliseconds) {
  const style = { dateStyle: "long", timeStyle: "short" };
  return new Intl.DateTimeFormat(`${current}-u-nu-latn-ca-gregory`, style).format(milliseconds);
}

/** Return whether a string is called `key`. */
export function known(key) {
  return Object.hasOwn(STRINGS[current], key);
}

/** Return the string `key`; values replace `{names}` and are isolated, so that they keep their direction. */
export function t(key, values = {}) {
  return pieces(key, values)
    .map((piece) => (typeof piece === "string" ? piece : `\u2068${piece.value}\u2069`))
    .join("");
}

/** Return the string `key` as nodes, each value in a `<bdi>`. */
export function nodes(key, values = {}) {
  return pieces(key, values).map((piece) => (typeof piece === "string" ? piece : el("bdi", {}, piece.value)));
}

function pieces(key, values) {
  const entry = STRINGS[current][key];
  if (entry === undefined) throw new Error(`no string is called ${key}`);
  const text = typeof entry === "string" ? entry : plural(entry, values.n);
  return text.split(/\{(\w+)\}/).map((piece, index) => (index % 2 ? { value: shown(values[piece]) } : piece));
}

function plural(forms, n) {
  return forms[new Intl.PluralRules(current).select(n)] ?? forms.other;
}

function shown(value) {
  return typeof value === "number" ? number(value, 1) : String(value);
}

/** A picture in the draft: what the model sees of it, its window and frame, and its warnings before it is sent. */

import { noteList, showPicture, tagLine, warningList } from "./dialogs.js";
import { button, el } from "./dom.js";
import { nodes, t } from "./i18n.js";
import { frameOf, prepare } from "./pictures.js";
import { words } from "./problems.js";
import { paragraph } from "./text.js";

const NAMED = ["soft", "lung", "brain", "bone", "mediastinum", "liver"];
const OWN = "own";

/**
 * Return the card of a picture.
 * @param {Object} image a picture of pictures.js.
 * @param {number} place its number in the chat.
 * @param {{changed: function, remove: function}} on called when its state changes, and to remove it.
 * @returns {{element: HTMLElement, update: function}} `update` shows the picture's current state.
 */
export function pictureCard(image, place, on) {
  const parts = {
    preview: el("button", { type: "button", class: "preview", on: { click: () => image.seen && showPicture(image, place) } }),
    controls: el("div", { class: "controls" }),
    details: el("div", { class: "details" }),
  };
  const remove = button("close", t("image.remove", { name: image.name }), on.remove, { hidden: true });
  const head = el(
    "div",
    { class: "card-head" },
    el("strong", {}, nodes("image.n", { n: place })),
    el("bdi", { class: "name" }, image.name),
    remove,
  );
  const element = el("li", { class: "card" }, parts.preview, el("div", { class: "card-body" }, head, ...[parts.controls, parts.details]));
  const again = (options) => prepare(image, on.changed, options);
  let controls = null;
  const update = () => {
    element.dataset.state = image.state;
    element.setAttribute("aria-busy", String(image.state === "loading"));
    showPreview(parts.preview, image, place);
    // built once: replacing a control while it is used would lose the focus
    if (image.seen && !controls) {
      controls = [windowControl(image, again), frameControl(image, again)].filter(Boolean);
      parts.controls.replaceChildren(...controls);
    }
    parts.details.replaceChildren(...details(image, again));
  };
  update();
  return { element, update };
}

function showPreview(preview, image, place) {
  preview.disabled = !image.seen;
  preview.setAttribute("aria-label", image.seen ? t("image.open", { n: place }) : t("image.loading"));
  if (image.seen) preview.replaceChildren(el("img", { src: image.seen.png ?? image.thumb, alt: "" }));
  else preview.replaceChildren(el("span", { class: "spinner" }));
}

function details(image, again) {
  if (image.state === "failed") {
    const retry = button("retry", t("turn.retry"), () => again(), { class: "plain" });
    return [el("div", { class: "problem", role: "alert" }, paragraph(words(image.problem))), el("div", {}, retry)];
  }
  if (!image.seen) return [el("p", { class: "status" }, t("image.loading"))];
  return [tagLine(image), ...warningList(image), ...noteList(image)];
}

/** Return the selection of a window, which only grey DICOM pictures have. */
function windowControl(image, again) {
  const { tags, presets } = image.seen;
  if (!tags.window) return null;
  const known = NAMED.filter((name) => presets.includes(name));
  const options = [["", t("image.window_file")], ...known.map((name) => [name, t(`window.${name}`)]), [OWN, t("image.window_own")]];
  const own = image.window !== null && !known.includes(image.window);
  const select = el(
    "select",
    { dir: "auto", "aria-label": t("image.window") },
    options.map(([value, label]) => el("option", { value, dir: "auto", selected: value === (own ? OWN : (image.window ?? "")) }, label)),
  );
  const numbers = ownNumbers(image, again);
  numbers.hidden = !own;
  select.addEventListener("change", () => {
    numbers.hidden = select.value !== OWN;
    if (select.value === OWN) {
      numbers.querySelector("input").focus();
      return;
    }
    image.window = select.value || null;
    again();
  });
  return el("div", { class: "control" }, el("label", {}, el("span", {}, t("image.window")), select), numbers);
}

/** Return two fields, center and width, in the units of the picture. */
function ownNumbers(image, again) {
  const [center, width] = image.window?.includes("/") ? image.window.split("/") : ["40", "400"];
  const field = (label, value, limits) =>
    el("label", {}, el("span", {}, label), el("input", { type: "number", dir: "ltr", value, ...limits }));
  const fields = [field(t("image.center"), center, { step: "any" }), field(t("image.width"), width, { step: "any", min: "1" })];
  const box = el("div", { class: "own-window" }, fields);
  box.addEventListener("input", () => {
    const inputs = [...box.querySelectorAll("input")];
    if (inputs.some((input) => !input.value || !input.checkValidity())) return;
    image.window = inputs.map((input) => input.value).join("/");
    again({ delay: true });
  });
  return box;
}

/** Return a slider over the frames of a picture, or null if it has only one. */
function frameControl(image, again) {
  const total = image.seen.n_frames;
  if (total <= 1) return null;
  const slider = el("input", { type: "range", min: "1", max: total, value: frameOf(image), dir: "ltr" });
  const shown = el("output", {}, nodes("image.frame_of", { n: frameOf(image), total }));
  slider.addEventListener("input", () => {
    image.frame = Number(slider.value);
    shown.replaceChildren(...nodes("image.frame_of", { n: image.frame, total }));
    again({ delay: true });
  });
  return el("label", { class: "control" }, el("span", {}, t("image.frame")), slider, shown);
}

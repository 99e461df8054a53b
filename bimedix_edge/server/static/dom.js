/**
 * Elements, built one by one. Text becomes text nodes; the page never parses a string as markup, and its content
 * security policy (`require-trusted-types-for`) makes the browser refuse code that tries.
 */

/**
 * Return a new element.
 * @param {string} tag name of the element.
 * @param {Object} properties `class`, `dataset` and `on` (listeners by event); other
 *     properties are attributes, which true sets without a value and false omits.
 * @param {...(Node|string|null|Array)} children strings become text; null is skipped.
 * @returns {HTMLElement}
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return the element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

const SVG = "http://www.w3.org/2000/svg";
// outlines on a grid of 24; icons with a direction are mirrored in right-to-left pages
const PATHS = {
  add: "M12 5v14M5 12h14",
  chats: "M4 6h16M4 12h16M4 18h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  clip: "M20 11.5l-8 8a5 5 0 0 1-7-7l8.5-8.5a3.3 3.3 0 0 1 4.7 4.7L9.7 17a1.7 1.7 0 0 1-2.4-2.4l7.6-7.6",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  export: "M12 4v11M7 11l5 5 5-5M5 20h14",
  language: "M3 12a9 9 0 1 0 18 0 9 9 0 1 0-18 0M3 12h18M12 3c-5 5-5 13 0 18M12 3c5 5 5 13 0 18",
  retry: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  send: "M5 12h14M13 6l6 6-6 6",
  stop: "M7 7h10v10H7z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  warning: "M12 4L2.5 20h19zM12 10v5M12 17.5v.5",
};

/** Return an icon that screen readers skip; the control around it has a label. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.setAttribute("class", name === "send" ? "icon icon-pointing" : "icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}

/**
 * Return a new button.
 * @param {string} name name of its icon.
 * @param {string} label its label.
 * @param {function} action called when it is pressed.
 * @param {Object} options `hidden`: only screen readers and the tooltip have the label; `class`; `id`.
 */
export function button(name, label, action, options = {}) {
  const text = options.hidden ? null : el("span", {}, label);
  return el(
    "button",
    {
      type: "button",
      id: options.id,
      class: options.class ?? "quiet",
      "aria-label": options.hidden ? label : null,
      title: options.hidden ? label : null,
      on: { click: action },
    },
    icon(name),
    text,
  );
}

let lastTimer = 0;

/** Let screen readers say `text` after their current text. */
export function announce(text) {
  const place = byId("announcer");
  place.textContent = "";
  clearTimeout(lastTimer);
  // repeating a sentence counts as a change only if the element was empty in between
  lastTimer = setTimeout(() => (place.textContent = text), 60);
}

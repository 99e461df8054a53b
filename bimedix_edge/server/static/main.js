/** The page as a whole: key, first chats, language, keyboard, drag and drop. */

import { facts, hasKey, redeemLink, setKey } from "./api.js";
import { changes, current, startChats } from "./chats.js";
import { askKey } from "./dialogs.js";
import { byId } from "./dom.js";
import { exportShown } from "./export.js";
import { language, onLanguage, setLanguage, startLanguage, t } from "./i18n.js";
import { keepSoon, openVault, restore } from "./vault.js";
import { closeDrawer, startChatList } from "./view_chats.js";
import { addFiles, complain, setLimits, startComposer, stopShown, suggest } from "./view_composer.js";
import { startTurns } from "./view_turns.js";

const POLL_MS = 1000;
let model = null;

async function start() {
  startLanguage();
  startTurns();
  startComposer();
  startChatList();
  startKeys();
  startDropping();
  byId("language").addEventListener("click", () => setLanguage(language() === "ar" ? "en" : "ar"));
  byId("export").addEventListener("click", () => exportShown(model));
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address's fragment is for the token of the link
    byId("question").focus();
  });
  for (const example of document.querySelectorAll("#empty button")) {
    example.addEventListener("click", () => suggest(example.textContent));
  }
  await enter();
  await openVault();
  startChats(await restore());
  for (const kind of ["list", "turn", "draft", "typed", "shown"]) {
    changes.addEventListener(kind, () => keepSoon(() => complain(t("chats.kept_not"))));
  }
  changes.addEventListener("list", () => (byId("export").hidden = !current().turns.length));
  changes.addEventListener("turn", ({ detail }) => detail.turn.answer.state === "failed" && recover(detail.turn.answer));
  byId("export").hidden = !current().turns.length;
  byId("main").removeAttribute("aria-busy");
  byId("question").focus();
}

/** Get a key and the model's facts; wait until the model is loaded. */
async function enter() {
  let wrong = false;
  for (let redeemed = false; ; ) {
    try {
      redeemed ||= await redeemLink();
      if (!hasKey()) setKey(await askKey({ wrong }));
      model = await facts();
      break;
    } catch (error) {
      if (error.status === 401) {
        wrong = true;
        setKey(null);
        continue;
      }
      if (error.status !== 0 && error.status !== 503) throw error;
      showState(error);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }
  showState(null);
  setLimits(model.limits);
  showNotice();
  onLanguage(showNotice);
}

/** Show why an answer failed until the server is ready again; ask for a valid key if the server refused the key. */
async function recover(reply) {
  const { status } = reply.problem;
  if (status === 401) setKey(null);
  if ([0, 401, 503].includes(status)) await enter();
}

function showState(error) {
  byId("state").hidden = error === null;
  if (error === null) return;
  const key = error.status === 0 ? "unreachable" : error.code === "lost" ? "failed" : "loading";
  byId("state").textContent = t(`state.${key}`);
}

/** Show the model's notice. It is in English, so the Arabic page puts a summary in Arabic before it. */
function showNotice() {
  byId("notice-own").hidden = language() !== "ar";
  byId("notice-model").textContent = model.notice;
  byId("model").textContent = model.name;
}

function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (closeDrawer() || stopShown()) event.preventDefault();
  });
}

/** Accept files that are dropped anywhere, and files that are pasted. */
function startDropping() {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const modal = () => document.querySelector("dialog[open]") !== null;
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // otherwise the browser would leave the page to open a dropped file
    if (hasFiles(event) && !modal()) document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (!modal()) addFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length || modal()) return; // the focused field takes pasted text
    event.preventDefault();
    addFiles(files);
  });
}

start();

/**
 * The frame: which view an address shows, the key, the language.
 *
 * @typedef {{title: string, element: HTMLElement, close: () => void}} View
 */

import { ask, key, Refusal, send } from "./api.js";
import { createView } from "./create.js";
import { button, fill, h } from "./dom.js";
import { failureBox } from "./failure.js";
import { chooseLanguage, language, languages, loadWords, t } from "./text.js";

const VIEWS = ["create", "queue", "history"];

const main = h("main", { id: "main" });
const header = h("header");
const keyBar = h("div", { class: "key-bar", hidden: true });
/** @type {View | null} */
let view = null;
let operator = false;

/** @returns {Promise<View>} */
async function viewAt() {
  const id = /^#\/song\/([0-9a-f-]{36})$/.exec(location.hash)?.[1];
  if (id) return (await import("./song.js")).songView(id);
  const [path, query] = location.hash.slice(2).split("?");
  if (path === "queue") return (await import("./queue.js")).queueView();
  if (path === "operator") return (await import("./operator.js")).operatorView(new URLSearchParams(query));
  if (path === "history") return (await import("./history.js")).historyView(new URLSearchParams(query));
  return createView();
}

/** In place of a view whose file did not come. @returns {View} */
function nothing() {
  const again = button(t("try_again"), () => send("healthz").then(() => location.reload(), () => {}));
  const element = h("section", {}, h("h1", { class: "unseen", tabindex: -1 }, t("failure.gateway_gone")), failureBox(new Refusal(0, {}), again));
  return { title: t("failure.gateway_gone"), element, close: () => {} };
}

/** Marks the entry of the menu whose view is shown. */
function mark() {
  for (const link of header.querySelectorAll("nav a")) {
    if (view?.title === link.textContent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** @param {boolean} focus whether a person came here from another view, and a screen reader should say where that is */
async function show(focus) {
  const { hash } = location;
  view?.close();
  const next = await viewAt().catch(nothing);
  if (location.hash !== hash) return next.close(); // another was asked for meanwhile
  view = next;
  document.title = `${view.title} · Serinette`;
  fill(main, view.element);
  mark();
  if (focus) main.querySelector("h1")?.focus();
}

/** Offers what the key may see beside what all keys may. */
async function offerRights() {
  const today = new Date().toISOString().slice(0, 10);
  const { rights } = await ask(`v1/usage?since=${today}`).catch(() => ({ rights: [] })); // the view itself says what is wrong
  operator = rights.includes("operator:read");
  if (operator) frame();
  mark();
}

function askForKey() {
  if (!keyBar.hidden) return;
  const input = h("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false", required: true });
  const form = h("form", {
    class: "row", onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      key.set(input.value.trim());
      frame();
      void show(false);
      void offerRights();
    },
  }, h("label", { for: "key" }, t(key.get() ? "key.wrong" : "key.needed")), input,
    h("button", { type: "submit", class: "primary" }, t("key.use")), h("p", { class: "note" }, t("key.kept")));
  fill(keyBar, form);
  keyBar.hidden = false;
  input.focus();
}

function frame() {
  keyBar.hidden = true;
  const choice = h("select", { "aria-label": t("language"), onchange: async () => {
    chooseLanguage(choice.value);
    await loadWords();
    frame();
    await show(false);
  } }, languages.map(([code, name]) => h("option", { value: code, lang: code, selected: code === language() }, name)));
  fill(header,
    h("a", { class: "skip", href: "#main", onclick: (/** @type {Event} */ event) => {
      event.preventDefault();
      main.querySelector("h1")?.focus();
    } }, t("skip")),
    h("a", { class: "name", href: "#/create" }, h("img", { src: "studio/icon.svg", alt: "", width: 28, height: 28 }), h("span", {}, "Serinette")),
    h("nav", { "aria-label": t("views") }, [...VIEWS, ...(operator ? ["operator"] : [])].map((name) => h("a", { href: `#/${name}` }, t(name)))),
    h("div", { class: "row" },
      key.get() ? button(t("key.forget"), () => (key.forget(), location.reload())) : null,
      h("a", { href: "docs" }, t("api")), choice));
}

window.addEventListener("hashchange", () => void show(true));
window.addEventListener("key-needed", askForKey);
// A file dropped beside its field would replace the page, and all that was typed with it.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());

await loadWords();
document.body.replaceChildren(header, keyBar, main,
  h("div", { id: "announcements", class: "unseen", role: "status", "aria-live": "polite" }));
frame();
await show(false);
await offerRights();

/** The view History: all jobs that the server has, by state, label and time; what is loaded also by words. */

import { jobs, look, send, submit } from "./api.js";
import { announce, button, fill, h } from "./dom.js";
import { accepted, again, submitKey } from "./draft.js";
import { failureBox } from "./failure.js";
import { kindOf, titleOf } from "./queue_row.js";
import { confirmed } from "./share.js";
import { t } from "./text.js";

/** @typedef {import("./api.js").Job} Job */

const PAGE = 20;
// A page may be short and still have a next one, where few jobs have the state or label.
const MOST_PAGES = 5;
const STATES = ["queued", "running", "succeeded", "failed", "canceled"];
const FILTERS = ["status", "label", "from", "to"];
const DAY_MS = 86_400_000;

/**
 * The server's filters for the address's: days become moments of this place's time.
 *
 * @param {URLSearchParams} query
 */
function filtersOf(query) {
  const midnight = (/** @type {string} */ name, plusMs = 0) => {
    const at = new Date(`${query.get(name)}T00:00`);
    return Number.isNaN(at.getTime()) ? undefined : new Date(at.getTime() + plusMs).toISOString();
  };
  return {
    status: query.get("status") ?? undefined, label: query.get("label") ?? undefined,
    created_after: midnight("from"), created_before: midnight("to", DAY_MS),
  };
}

/**
 * @param {URLSearchParams} query of the address
 * @returns {import("./app.js").View}
 */
export function historyView(query) {
  const stop = new AbortController();
  /** @type {Map<string, {element: HTMLElement, text: string}>} */
  const rows = new Map();
  /** @type {string | null | undefined} */
  let cursor;
  let reading = 0;
  const list = h("ul", { class: "rows" });
  const trouble = h("div");
  const state = h("p", { class: "note", role: "status" });
  const more = button(t("history.more"), () => load(false), { hidden: true });
  const words = h("input", { type: "search", id: "words", autocomplete: "off", oninput: search });

  /** @param {string} name @param {HTMLInputElement | HTMLSelectElement} control */
  const filter = (name, control) => {
    control.id = `filter-${name}`;
    control.value = query.get(name) ?? "";
    control.addEventListener("change", () => {
      if (control.value) query.set(name, control.value);
      else query.delete(name);
      history.pushState(null, "", `#/history${query.size ? `?${query}` : ""}`);
      void load(true);
    });
    return h("div", { class: "field" }, h("label", { for: control.id }, t(`history.${name}`)), control);
  };
  const options = [h("option", { value: "" }, t("history.any")), ...STATES.map((each) => h("option", { value: each }, t(`status.${each}`)))];
  const filters = h("form", { class: "card grid filters", role: "search", onsubmit: (/** @type {Event} */ event) => event.preventDefault() },
    filter("status", h("select", {}, options)),
    filter("label", h("input", { type: "text", placeholder: "album=blue", autocomplete: "off" })),
    filter("from", h("input", { type: "date" })), filter("to", h("input", { type: "date" })),
    h("div", { class: "field" }, h("label", { for: "words" }, t("history.words")), words));

  function search() {
    const sought = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const { element, text } of rows.values()) {
      element.hidden = !sought.every((word) => text.includes(word));
      if (!element.hidden) found += 1;
    }
    fill(state, sought.length ? t("history.found", { n: found, all: rows.size })
      : rows.size ? t(more.hidden ? "history.all" : "history.loaded", { n: rows.size })
        : FILTERS.some((name) => query.get(name)) ? [t("history.none"), " ", h("a", { href: "#/history" }, t("history.clear"))]
          : [t("history.empty"), " ", h("a", { href: "#/create" }, t("create.title"))]);
  }

  /** @param {boolean} anew */
  async function load(anew) {
    const mine = (reading += 1);
    fill(trouble);
    more.disabled = true;
    if (anew) {
      cursor = undefined;
      rows.clear();
      fill(list);
      fill(state, t("loading"));
    }
    const had = rows.size;
    try {
      for (let page = 0; page < MOST_PAGES && rows.size < had + PAGE && cursor !== null; page += 1) {
        const found = await jobs({ ...filtersOf(query), limit: PAGE, cursor }, stop.signal);
        if (mine !== reading) return;
        for (const job of found.jobs) add(job);
        cursor = found.next_cursor ?? null;
      }
      more.hidden = cursor === null;
      search();
    } catch (error) {
      if (stop.signal.aborted || mine !== reading) return;
      fill(state);
      fill(trouble, failureBox(error, button(t("try_again"), () => load(anew))));
    }
    more.disabled = false;
  }

  /** @param {Job} job */
  function add(job) {
    const title = titleOf(job);
    const kind = kindOf(job);
    const labels = Object.entries(job.labels ?? {}).map((pair) => pair.join("="));
    const outcome = h("div");
    /** @param {() => Promise<unknown>} act */
    const attempt = async (act) => {
      fill(outcome);
      await act().catch((/** @type {unknown} */ error) => fill(outcome, failureBox(error)));
    };
    const open = job.status === "queued" || job.status === "running";
    const time = new Date(job.created_at).toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
    const actions = job.container ? [] : [
      button(t("again.short"), () => attempt(async () => again((await look(job.id)).spec)), { "aria-label": `${t("again")}: ${title}` }),
      button(t("replay"), () => attempt(() => replay(job.id)), { title: t("replay.what"), "aria-label": `${t("replay")}: ${title}` }),
    ];
    const element = h("li", { class: "card queue-row", "data-id": job.id, "data-status": job.status },
      h("div", { class: "row head" },
        h("h2", {}, job.container ? title : h("a", { href: `#/song/${job.id}` }, title)),
        h("span", { class: "state" }, t(`status.${job.status}`)),
        h("div", { class: "row" }, ...actions,
          open ? null : button(t("erase"), () => attempt(() => erase(job.id, title)), { "aria-label": `${t("erase")}: ${title}` }))),
      h("p", { class: "note row" }, kind ? h("span", { class: "state" }, kind) : null, h("time", { datetime: job.created_at }, time),
        labels.map((label) => h("a", { class: "chip", href: `#/history?${new URLSearchParams({ label })}` }, label)),
        job.error ? h("span", {}, t(`failure.${job.error.code}`) === `failure.${job.error.code}` ? job.error.code : t(`failure.${job.error.code}`)) : null),
      outcome);
    rows.set(job.id, { element, text: `${job.spec.prompt ?? ""} ${kind} ${labels.join(" ")}`.toLowerCase() });
    list.append(element);
  }

  /** @param {string} id */
  async function replay(id) {
    const job = await look(id);
    const labels = Object.fromEntries(Object.entries(job.labels ?? {}).filter(([name]) => name !== "batch" && name !== "line"));
    const spec = { ...job.spec, lane: job.lane, labels };
    const made = await submit(spec, submitKey(spec));
    accepted();
    location.hash = `#/song/${made.id}`;
  }

  /** @param {string} id @param {string} title */
  async function erase(id, title) {
    if (!await confirmed(t("erase.ask", { name: title }), t("erase.consequence"), t("erase"))) return;
    await send(`v1/jobs/${id}`, { method: "DELETE" });
    const element = rows.get(id)?.element;
    const next = /** @type {HTMLElement | null} */ (element?.nextElementSibling?.querySelector("a, button"));
    element?.remove();
    rows.delete(id);
    announce(t("erased", { name: title }));
    search();
    (next ?? heading).focus();
  }

  const heading = h("h1", { tabindex: -1 }, t("history"));
  void load(true);
  return {
    title: t("history"),
    element: h("section", { class: "stack" }, heading, filters, state, trouble, list, h("div", { class: "row" }, more)),
    close: () => stop.abort(),
  };
}

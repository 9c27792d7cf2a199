/** The view Create: a form that loses nothing, and leaves every judgement to the server. */

import { models, Refusal, submit } from "./api.js";
import { announce, button, fill, h } from "./dom.js";
import { accepted, hints, keepDraft, loadDraft, submitKey, toSpec } from "./draft.js";
import { failureBox } from "./failure.js";
import { FIELDS, GROUPS, reads, SECTIONS, TASKS } from "./fields.js";
import { sourceField } from "./source.js";
import { has, t } from "./text.js";

/** @returns {import("./app.js").View} */
export function createView() {
  const draft = loadDraft();
  /** @type {readonly import("./api.js").Model[]} */
  let known = [];
  /** @type {{field: string, message: string} | null} */
  let refused = null;

  const changed = () => {
    keepDraft(draft);
    refresh();
  };

  /**
   * @param {string} name
   * @param {HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement} control
   * @param {...import("./dom.js").Child} extra
   */
  const labelled = (name, control, ...extra) => {
    control.id = name;
    control.value = draft[name] ?? "";
    control.setAttribute("aria-describedby", `${name}-note`);
    control.addEventListener("input", () => {
      draft[name] = control.value;
      if (refused?.field === name) refused = null;
      changed();
    });
    return h("div", { class: "field", "data-field": name },
      h("label", { for: name }, t(`field.${name}`)), ...extra, control, h("p", { id: `${name}-note`, class: "note" }));
  };

  /** @param {import("./fields.js").Field} field */
  const fieldOf = (field) => {
    const placeholder = field.example ?? field.standard ?? (field.group === "sampling" && field.kind === "number" ? t("automatic") : "");
    if (field.kind === "choice" || field.kind === "yes") {
      const options = [h("option", { value: "" }, field.standard ?? ""), ...(field.choices ?? [])
        .filter((choice) => choice !== field.standard).map((choice) => h("option", { value: choice }, has(`choice.${choice}`) ? t(`choice.${choice}`) : choice))];
      return labelled(field.name, h("select", {}, options));
    }
    const list = field.choices && h("datalist", { id: `${field.name}-list` },
      field.choices.map((choice) => h("option", { value: choice })));
    const input = h("input", {
      type: field.kind === "share" ? "range" : "text", min: 0, max: 1, step: 0.05, placeholder,
      inputmode: field.kind === "number" ? "decimal" : null, autocomplete: "off", list: list ? list.id : null,
    });
    const made = labelled(field.name, input, list);
    if (field.kind !== "share") return made;
    if (!draft[field.name]) input.value = field.standard ?? "1";
    const value = h("output", { for: field.name }, input.value);
    input.addEventListener("input", () => fill(value, input.value));
    input.after(value);
    return made;
  };

  /** @param {string} group */
  const fieldsOf = (group) => FIELDS.filter((field) => field.group === group).map(fieldOf);

  const lyrics = h("textarea", { rows: 10 });
  /** @param {string} section */
  const insert = (section) => {
    const start = lyrics.value.slice(0, lyrics.selectionStart);
    const lead = start === "" || start.endsWith("\n") ? "" : "\n";
    lyrics.setRangeText(`${lead}[${section}]\n`, lyrics.selectionStart, lyrics.selectionEnd, "end");
    lyrics.dispatchEvent(new Event("input"));
    lyrics.focus();
  };
  const sections = h("div", { class: "row chips", role: "group", "aria-label": t("sections") },
    SECTIONS.map((section) => button(`[${section}]`, () => insert(section), { class: "chip" })));

  const tasks = h("fieldset", { "data-field": "task" },
    h("legend", {}, t("field.task")),
    h("div", { class: "row chips" }, TASKS.map((task) => h("label", { class: "chip" },
      h("input", {
        type: "radio", name: "task", value: task, checked: draft["task"] === task, "aria-describedby": "task-note",
        onchange: () => ((draft["task"] = task), changed()),
      }), t(`task.${task}`)))),
    h("p", { id: "task-note", class: "note" }));
  const source = sourceField("source_audio", draft, changed);
  const recording = h("details", { open: draft["task"] !== "text2music" },
    h("summary", {}, t("group.task")), tasks, source, h("div", { class: "grid" }, fieldsOf("task")));
  const folds = GROUPS.map((group) => h("details", {},
    h("summary", {}, t(`group.${group}`)),
    group === "music" ? sourceField("reference_audio", draft, changed) : null,
    h("div", { class: "grid" }, fieldsOf(group))));

  const trouble = h("div", { class: "trouble" });
  const state = h("p", { class: "note" });
  const go = h("button", { type: "submit", class: "primary" }, t("generate"));
  const form = h("form", { class: "create", novalidate: true, onsubmit: (/** @type {Event} */ event) => {
    event.preventDefault();
    void send();
  } },
    h("div", { class: "card writing" },
      labelled("prompt", h("textarea", { rows: 3, placeholder: t("prompt.example") })),
      labelled("lyrics", lyrics, sections)),
    h("div", { class: "card settings" }, h("div", { class: "grid three" }, fieldsOf("main")), recording, ...folds),
    h("div", { class: "send" }, trouble, h("div", { class: "row" }, go, state)));

  async function send() {
    const spec = toSpec(draft);
    go.disabled = true;
    refused = null;
    fill(trouble);
    announce(t("sending"));
    try {
      const job = await submit(spec, submitKey(spec));
      accepted();
      location.hash = `#/song/${job.id}`;
    } catch (error) {
      if (error instanceof Refusal && error.code === "idempotency_conflict") accepted();
      const field = error instanceof Refusal ? error.field : null;
      const place = field && document.getElementById(`${field}-note`)?.closest("[data-field]");
      if (field && place && error instanceof Refusal) refused = { field, message: error.message };
      else fill(trouble, failureBox(error));
      refresh();
      if (refused) reveal(refused.field);
      announce(error instanceof Error ? error.message : "");
    } finally {
      go.disabled = false;
    }
  }

  /** @param {string} field */
  function reveal(field) {
    const place = form.querySelector(`[data-field="${CSS.escape(field)}"]`);
    const fold = place?.closest("details");
    if (fold) fold.open = true;
    /** @type {HTMLElement | null | undefined} */ (place?.querySelector("textarea, select, input"))?.focus();
  }

  function refresh() {
    const task = draft["task"] ?? "text2music";
    const shown = hints(draft, known);
    source.hidden = task === "text2music";
    for (const field of FIELDS) {
      const place = /** @type {HTMLElement | null} */ (form.querySelector(`[data-field="${field.name}"]`));
      if (place) place.hidden = !reads(field, task);
    }
    for (const place of form.querySelectorAll("[data-field]")) {
      const name = place.getAttribute("data-field") ?? "";
      const wrong = refused?.field === name ? refused.message : null;
      const help = has(`help.${name}.${task}`) ? t(`help.${name}.${task}`) : has(`help.${name}`) ? t(`help.${name}`) : "";
      const note = place.querySelector(".note");
      note?.classList.toggle("wrong", Boolean(wrong ?? shown[name]));
      if (note) fill(note, wrong ?? shown[name] ?? help);
      for (const control of place.querySelectorAll("textarea, select, input")) {
        control.toggleAttribute("aria-invalid", Boolean(wrong));
        if (wrong) control.setAttribute("aria-invalid", "true");
      }
    }
    fill(state, known.length && known.every((model) => !model.workers) ? t("no_worker.create") : "");
  }

  refresh();
  models().then((found) => ((known = found), refresh()), (error) => fill(trouble, failureBox(error)));
  return { title: t("create"), element: h("section", {}, h("h1", { tabindex: -1 }, t("create.title")), form), close: () => {} };
}

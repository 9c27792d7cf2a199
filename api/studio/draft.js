/**
 * What is typed into the form, as text, kept through reloads; and a spec made of it. No I/O but sessionStorage.
 *
 * @typedef {Record<string, string>} Draft
 */

import { FIELDS, reads } from "./fields.js";
import { language, t } from "./text.js";

const KEPT = "serinette.draft";
const SENT = "serinette.sent";

/** @returns {Draft} */
const empty = () => ({ task: "text2music", duration_s: "60", variations: "1", vocal_language: language() });

/** @returns {Draft} */
export function loadDraft() {
  try {
    return { ...empty(), ...JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") };
  } catch {
    return empty();
  }
}

/** @param {Draft} draft */
export function keepDraft(draft) {
  sessionStorage.setItem(KEPT, JSON.stringify(draft));
}

/**
 * The body of a submit. A number that cannot be read as one goes as typed: the server says what is wrong with it.
 *
 * @param {Draft} draft
 * @returns {Record<string, unknown>}
 */
export function toSpec(draft) {
  const task = draft["task"] ?? "text2music";
  /** @type {Record<string, unknown>} */
  const spec = { prompt: draft["prompt"] ?? "", lyrics: draft["lyrics"] ?? "", task };
  if (task !== "text2music" && draft["source_audio"]) spec["source_audio"] = draft["source_audio"];
  if (draft["reference_audio"]) spec["reference_audio"] = draft["reference_audio"];
  for (const field of FIELDS) {
    const typed = (draft[field.name] ?? "").trim();
    if (typed && reads(field, task)) spec[field.name] = valueOf(field.kind, typed);
  }
  return spec;
}

/**
 * @param {string} kind
 * @param {string} typed
 */
function valueOf(kind, typed) {
  const items = () => typed.split(/[,、\s]+/).filter(Boolean);
  if (kind === "number" || kind === "share") return numberOf(typed);
  if (kind === "words") return items();
  if (kind === "yes") return typed === "true";
  if (kind === "seeds") return items().length > 1 ? items().map(seedOf) : seedOf(typed); // one for each variation
  if (kind === "numbers") return items().map(numberOf);
  return typed;
}

/** @param {string} typed */
function seedOf(typed) {
  return Number.isSafeInteger(Number(typed)) ? Number(typed) : typed; // another number would be sent
}

/** @param {string} typed */
function numberOf(typed) {
  return Number.isFinite(Number(typed)) ? Number(typed) : typed;
}

/**
 * The form as it would be filled in for a spec; with the seed it makes the same song again.
 *
 * @param {Record<string, any>} spec
 * @param {{seed: boolean}} keep
 * @returns {Draft}
 */
export function fromSpec(spec, keep) {
  /** @type {Draft} */
  const draft = { ...empty(), prompt: spec["prompt"], lyrics: spec["lyrics"], task: spec["task"] };
  for (const name of ["source_audio", "reference_audio"]) {
    if (spec[name]) Object.assign(draft, { [name]: spec[name], [`${name}_name`]: t("earlier audio") });
  }
  for (const field of FIELDS) {
    const value = spec[field.name];
    if (value === null || value === undefined || value === false || (field.name === "seed" && !keep.seed)) continue;
    const text = Array.isArray(value) ? value.join(", ") : String(value);
    draft[field.name] = text === field.standard && field.group !== "main" ? "" : text;
  }
  return draft;
}

/**
 * Opens the form, filled in for a spec.
 *
 * @param {Record<string, any>} spec
 * @param {{seed?: boolean, change?: Record<string, string>}} [how]
 */
export function again(spec, { seed = false, change = {} } = {}) {
  keepDraft({ ...fromSpec(spec, { seed }), ...change });
  location.hash = "#/create";
}

/**
 * The Idempotency-Key for a spec: the same one until that was accepted, so that a submit whose answer was lost makes
 * no second song.
 *
 * @param {Record<string, unknown>} spec
 */
export function submitKey(spec) {
  const text = JSON.stringify(spec);
  const [sent, kept] = JSON.parse(sessionStorage.getItem(SENT) ?? "[]");
  if (sent === text && kept) return String(kept);
  const fresh = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem(SENT, JSON.stringify([text, fresh]));
  return fresh;
}

/** The next submit is another song, also of the same spec. */
export function accepted() {
  sessionStorage.removeItem(SENT);
}

/**
 * What the model is known not to do, by field: shown while it is typed, never in the way of sending it.
 *
 * @param {Draft} draft
 * @param {readonly import("./api.js").Model[]} models
 * @returns {Record<string, string>}
 */
export function hints(draft, models) {
  const named = (draft["model"] ?? "").trim();
  const model = models.find((each) => (named ? each.name === named : each.default));
  /** @type {Record<string, string>} */
  const found = {};
  if (named && models.length && !model) {
    found["model"] = t("hint.model", { models: models.map((each) => each.name).join(", ") });
  }
  const limits = model?.limits;
  if (limits && Number(draft["duration_s"]) > limits.max_duration_s) {
    found["duration_s"] = t("hint.duration_s", { max: limits.max_duration_s });
  }
  if (limits && Number(draft["variations"]) > limits.max_variations) {
    found["variations"] = t("hint.variations", { max: limits.max_variations });
  }
  if (model?.tasks?.length && !model.tasks.includes(draft["task"] ?? "")) {
    found["task"] = t("hint.task", { tasks: model.tasks.map((task) => t(`task.${task}`)).join(", ") });
  }
  for (const name of ["rewrite", "thinking"]) if (draft[name] && model && !model.planner) found[name] = t("hint.planner");
  if (model?.turbo && (draft["guidance_scale"] ?? "") !== "") found["guidance_scale"] = t("hint.guidance_scale");
  return found;
}

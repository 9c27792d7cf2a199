/** Rows of the queue: one for a job, one for a whole batch. */

import { button, fill, h } from "./dom.js";
import { again } from "./draft.js";
import { ended } from "./events.js";
import { failureBox } from "./failure.js";
import { stageWords, waitsFor } from "./live.js";
import { span, t } from "./text.js";

/** @typedef {import("./api.js").Job} Job @typedef {import("./api.js").Batch} Batch */

/**
 * What a row is made of: a name, a state beside it, details, a bar, and what can be done.
 *
 * @param {string} id
 */
function frame(id) {
  const name = h("h3");
  const state = h("span", { class: "state" });
  const details = h("p", { class: "note" });
  const bar = h("progress", { max: 1 });
  const outcome = h("div");
  const actions = h("div", { class: "row" });
  const element = h("li", { class: "card queue-row", "data-id": id },
    h("div", { class: "row head" }, name, state, actions), bar, details, outcome);
  return { element, name, state, details, bar, outcome, actions };
}

/**
 * Cancels while something is under way; a cancel that did not come through may be tried again.
 *
 * @param {() => Promise<unknown>} act
 * @param {(error: unknown) => void} refused
 * @param {string} name of what is canceled, for screen readers
 */
function cancelButton(act, refused, name) {
  const made = button(t("cancel"), async () => {
    made.disabled = true;
    try {
      await act();
    } catch (error) {
      made.disabled = false;
      refused(error);
    }
  }, { "aria-label": t("cancel.what", { name }) });
  return made;
}

/** @param {Job} job */
const taskOf = (job) => (job.container ? t("container") : t(`task.${job.spec.task ?? "text2music"}`));
/** @param {Job} job */
export const titleOf = (job) => job.spec.prompt?.slice(0, 120) || taskOf(job);
/** What its title does not say: the task, where it is not a new song. @param {Job} job */
export const kindOf = (job) => ((job.spec.task ?? "text2music") === "text2music" || !job.spec.prompt ? "" : taskOf(job));
/** @param {Job} job */
const writes = (job) => ["write", "format", "describe"].includes(job.spec.task ?? "");

/**
 * @param {Job} first
 * @param {{cancel: (id: string) => Promise<unknown>, drop: (id: string) => void}} acts
 */
export function jobRow(first, acts) {
  const row = frame(first.id);
  const title = titleOf(first);
  let canceledHere = false;
  let offered = "";
  const link = h("a", { href: `#/song/${first.id}` }, title);
  fill(row.name, link);
  row.bar.setAttribute("aria-label", t("progress.of", { name: title }));

  /** @param {unknown} error */
  const refused = (error) => ((canceledHere = false), fill(row.outcome, failureBox(error)));
  const cancel = cancelButton(() => ((canceledHere = true), fill(row.outcome), acts.cancel(first.id)), refused, title);

  /** @param {Job} job @returns {(HTMLElement | null)[]} the next step after an end */
  const next = (job) => [
    job.status === "succeeded" ? h("a", { class: "button primary", href: `#/song/${job.id}` }, t(writes(job) ? "read" : "listen"))
      : "attempts" in job && !job.container ? button(t("again"), () => again(job.spec)) : null,
    button(t("dismiss"), () => acts.drop(job.id), { "aria-label": t("dismiss.what", { name: title }) }),
  ];

  return {
    element: row.element,
    /** @param {Job} job */
    show(job) {
      row.element.dataset["status"] = job.status;
      fill(row.state, t(`status.${job.status}`));
      row.bar.hidden = job.status !== "running";
      row.bar.value = job.progress?.fraction ?? 0;
      const place = job.position && job.status === "queued" ? t("place", { place: job.position, lane: job.lane }) : null;
      const left = job.eta_s === null || job.eta_s === undefined || ended(job) ? null : t("left", { span: span(job.eta_s) });
      const retried = !ended(job) && job.attempts?.some((attempt) => attempt.outcome === "failed") ? t("attempt_failed.short") : null;
      const parts = [kindOf(job), job.status === "running" ? stageWords(job) : place, waitsFor(job), left, retried].filter(Boolean);
      fill(row.details, parts.flatMap((part, index) => (index ? [" · ", part] : [part])));
      if (job.cancel_requested) cancel.disabled = true;
      if (offered === job.status) return;
      offered = job.status;
      if (!ended(job)) return fill(row.actions, cancel);
      fill(row.actions, ...next(job));
      if (job.status === "failed") fill(row.outcome, failureBox(job.error));
      else if (job.status === "canceled") fill(row.outcome, failureBox({ code: canceledHere ? "canceled_here" : "canceled" }));
    },
    /** It is neither in the queue nor anywhere else. */
    gone() {
      offered = "gone";
      row.bar.hidden = true;
      fill(row.state, "");
      fill(row.details, "");
      fill(row.actions, button(t("dismiss"), () => acts.drop(first.id), { "aria-label": t("dismiss.what", { name: title }) }));
      fill(row.outcome, failureBox({ code: "not_found" }));
    },
  };
}

/**
 * @param {Batch} first
 * @param {{move: (id: string, to: "pause" | "resume" | "cancel") => Promise<unknown>, drop: (id: string) => void}} acts
 */
export function batchRow(first, acts) {
  const row = frame(first.id);
  const title = first.name ?? t("batch");
  fill(row.name, title);
  row.bar.setAttribute("aria-label", t("progress.of", { name: title }));
  /** @param {unknown} error */
  const refused = (error) => fill(row.outcome, failureBox(error));
  /** @param {"pause" | "resume"} to */
  const mover = (to) => button(t(`batch.${to}`), async () => {
    fill(row.outcome);
    await acts.move(first.id, to).catch(refused);
  }, { "aria-label": `${t(`batch.${to}`)}: ${title}` });
  const pause = mover("pause");
  const resume = mover("resume");
  const cancel = cancelButton(() => acts.move(first.id, "cancel"), refused, title);
  let offered = "";

  return {
    element: row.element,
    /** @param {Batch} batch */
    show(batch) {
      const counts = batch.request_counts;
      row.element.dataset["status"] = batch.status;
      fill(row.state, t(`batch.${batch.status}`));
      row.bar.value = batch.fraction;
      const parts = [
        t("batch.counts", { done: counts.completed, total: counts.total }),
        counts.running ? t("batch.running", { n: counts.running }) : null,
        counts.queued ? t("batch.queued", { n: counts.queued }) : null,
        counts.failed ? t("batch.failed", { n: counts.failed }) : null,
        waitsFor(batch),
      ].filter(Boolean);
      fill(row.details, parts.flatMap((part, index) => (index ? [" · ", part] : [part])));
      if (offered === batch.status) return;
      offered = batch.status;
      const over = batch.status === "completed" || batch.status === "canceled";
      fill(row.actions,
        batch.status === "in_progress" ? pause : batch.status === "paused" ? resume : null,
        batch.status === "in_progress" || batch.status === "paused" ? cancel : null,
        over ? button(t("dismiss"), () => acts.drop(first.id), { "aria-label": t("dismiss.what", { name: title }) }) : null);
    },
    gone: () => acts.drop(first.id),
  };
}

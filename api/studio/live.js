/** A job that has not ended: its place or step, what it waits for, how long yet, and a way to stop it. */

import { announce, button, fill, h } from "./dom.js";
import { has, span, t } from "./text.js";

/**
 * What a running job does, with its step.
 *
 * @param {import("./api.js").Job} job
 */
export const stageWords = (job) => {
  const progress = job.progress;
  if (!progress) return t("stage.starting");
  const words = t(`stage.${progress.stage}`);
  return progress.steps ? `${words} ${t("step", { step: progress.step ?? 0, steps: progress.steps })}` : words;
};

// The server's words say more than these codes: which brake, which pod, which failure.
const DETAILED = ["brake", "pod", "restart"];

/**
 * What a job, a batch or a pool waits for: by its code where the page's language has words for it, else in the
 * server's own, which are English.
 *
 * @param {{waiting_for?: string | null, waiting_code?: string | null}} waiting
 */
export function waitsFor({ waiting_for: words, waiting_code: code }) {
  if (!words) return null;
  const known = has(`waits.${code}`);
  return h("span", {}, t("waiting_for"), " ", known ? `${t(`waits.${code}`)} ` : "",
    known && !DETAILED.includes(code ?? "") ? null : h("span", { lang: "en" }, words));
}

/** @param {() => void} onCancel */
export function livePanel(onCancel) {
  const headline = h("h2");
  const bar = h("progress", { max: 1, "aria-label": t("progress") });
  const waits = h("p");
  const left = h("p", { class: "note" });
  const worker = h("p", { class: "note" });
  const gone = h("p", { class: "failure", role: "alert", hidden: true },
    h("strong", {}, t("failure.gateway_gone")), " ", t("reconnecting"));
  const cancel = button(t("cancel"), () => ((cancel.disabled = true), onCancel()));
  const element = h("div", { class: "card live" }, gone, headline, bar, waits, left, worker,
    h("div", { class: "row" }, cancel, h("span", { class: "note" }, t("leave"))));

  return {
    element,
    /** A cancel that did not come through may be tried again. */
    offerCancel: () => (cancel.disabled = false),
    /** @param {boolean} connected */
    connection: (connected) => (gone.hidden = connected),
    /** @param {boolean} missing whether no worker of the job's pool is up */
    noWorker: (missing) => fill(worker, missing ? t("no_worker.song") : ""),
    /** @param {import("./api.js").Job} job */
    show(job) {
      const running = job.status === "running";
      fill(headline, running ? stageWords(job) : t("status.queued"));
      if (running && job.progress) bar.value = job.progress.fraction;
      else bar.removeAttribute("value");
      const place = job.position && !running ? t("place", { place: job.position, lane: job.lane }) : "";
      fill(waits, place, place && job.waiting_for ? " · " : "", waitsFor(job));
      const retried = job.attempts.filter((attempt) => attempt.outcome === "failed").at(-1)?.error;
      fill(left, job.eta_s === null || job.eta_s === undefined ? "" : t("left", { span: span(job.eta_s) }),
        retried ? h("span", { lang: "en" }, ` ${t("attempt_failed")} ${retried.message}`) : null);
      if (job.cancel_requested) cancel.disabled = true;
      announce(running ? t(`stage.${job.progress?.stage ?? "starting"}`) : `${t("status.queued")} ${place}`);
    },
  };
}

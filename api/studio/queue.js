/** The view Queue: all that has not ended, live, and what ended while it was watched. */

import { ask, cancel, jobs, look, Refusal } from "./api.js";
import { announce, fill, h } from "./dom.js";
import { after, ended, follow } from "./events.js";
import { failureBox } from "./failure.js";
import { waitsFor } from "./live.js";
import { batchRow, jobRow, titleOf } from "./queue_row.js";
import { t } from "./text.js";

/**
 * @typedef {import("./api.js").Job} Job
 * @typedef {import("./api.js").Batch} Batch
 * @typedef {import("./api.js").WorkerPool} WorkerPool
 */

const LOOK_S = 4;
// A browser holds six connections to a server without HTTP/2; the rest is for requests, and for other tabs.
const STREAMS = 3;
const LANES = ["high", "normal", "low"];
const WATCHED = "serinette.watched";
const MOST_WATCHED = 30;
const overBatch = (/** @type {Batch} */ batch) => batch.status === "completed" || batch.status === "canceled";

/** @returns {import("./app.js").View} */
export function queueView() {
  const stop = new AbortController();
  /** @type {Map<string, ReturnType<typeof jobRow> | ReturnType<typeof batchRow>>} */
  const rows = new Map();
  /** @type {Map<string, Job>} */
  const known = new Map();
  /** @type {Map<string, AbortController>} */
  const followed = new Map();
  const gone = h("p", { class: "failure", role: "alert", hidden: true },
    h("strong", {}, t("failure.gateway_gone")), " ", t("reconnecting"));
  const trouble = h("div");
  const workers = h("div", { class: "pools" });
  const list = h("ul", { class: "rows" });
  const more = h("p", { class: "note" });
  const empty = h("div", { class: "card empty", hidden: true },
    h("p", {}, t("queue.empty")), h("a", { class: "button primary", href: "#/create" }, t("create.title")));
  const loading = h("p", { class: "note" }, t("loading"));

  const drop = (/** @type {string} */ id) => {
    const row = rows.get(id);
    const next = /** @type {HTMLElement | null} */ (row?.element.nextElementSibling?.querySelector("a, button"));
    row?.element.remove();
    rows.delete(id);
    known.delete(id);
    keep();
    empty.hidden = rows.size > 0;
    (next ?? heading).focus();
  };
  const keep = () => sessionStorage.setItem(WATCHED, JSON.stringify([...known.keys()].slice(-MOST_WATCHED)));
  const jobActs = { drop, cancel: async (/** @type {string} */ id) => showJob(await cancel(id)) };
  const batchActs = {
    drop,
    /** @param {string} id @param {string} to */
    move: async (id, to) => showBatch(await ask(`v1/batches/${id}/${to}`, { method: "POST" })),
  };

  /** @param {Job} job */
  function showJob(job) {
    const before = known.get(job.id);
    const row = rows.get(job.id) ?? jobRow(job, jobActs);
    if (!rows.has(job.id)) list.append(row.element);
    rows.set(job.id, row);
    known.set(job.id, job);
    /** @type {ReturnType<typeof jobRow>} */ (row).show(job);
    if (before && before.status !== job.status) announce(`${titleOf(job)}: ${t(`status.${job.status}`)}`);
  }

  /** @param {Batch} batch */
  function showBatch(batch) {
    const row = rows.get(batch.id) ?? batchRow(batch, batchActs);
    if (!rows.has(batch.id)) list.append(row.element);
    rows.set(batch.id, row);
    /** @type {ReturnType<typeof batchRow>} */ (row).show(batch);
  }

  /** @param {readonly string[]} order */
  function arrange(order) {
    const wanted = [...order, ...[...rows.keys()].filter((id) => !order.includes(id))].flatMap((id) => rows.get(id)?.element ?? []);
    // Moving an element takes the focus from it, so only what is out of place is moved.
    wanted.forEach((element, index) => list.children[index] !== element && list.insertBefore(element, list.children[index] ?? null));
  }

  /** @param {string} id */
  async function watch(id) {
    const mine = new AbortController();
    followed.set(id, mine);
    stop.signal.addEventListener("abort", () => mine.abort(), { once: true });
    try {
      for await (const event of follow(id, mine.signal, (connected) => (gone.hidden = connected))) {
        const job = known.get(id);
        if (!job || !rows.has(id)) break;
        const next = after(job, event);
        if (ended(next)) break;
        showJob(next);
      }
      if (!mine.signal.aborted && rows.has(id)) showJob(await look(id, stop.signal));
    } catch (error) {
      if (error instanceof Refusal && error.status === 404) /** @type {ReturnType<typeof jobRow>} */ (rows.get(id))?.gone();
    } finally {
      followed.delete(id);
    }
  }

  /** @param {string} id what was in the queue and is no more */
  async function ending(id) {
    try {
      showJob(await look(id, stop.signal));
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 404) throw error;
      rows.get(id)?.gone();
      known.delete(id);
    }
  }

  async function refresh() {
    const signal = stop.signal;
    const [running, queued, batches, pools] = await Promise.all([
      jobs({ status: "running", limit: 50 }, signal), jobs({ status: "queued", limit: 100 }, signal),
      ask("v1/batches", { signal }), ask("v1/workers", { signal }),
    ]);
    /** @type {Batch[]} */
    const open = batches.batches.filter((/** @type {Batch} */ batch) => !overBatch(batch) || rows.has(batch.id));
    const inBatch = new Set(batches.batches.map((/** @type {Batch} */ batch) => batch.id));
    // In the order in which they will be ready; the server lists the newest first.
    const current = [...running.jobs.reverse(), ...queued.jobs.sort(soonest)].filter((job) => !inBatch.has(job.labels?.["batch"] ?? ""));
    for (const job of current) showJob(newer(known.get(job.id), job));
    open.forEach(showBatch);
    const ids = current.map((job) => job.id);
    const left = [...known].filter(([id, job]) => !ended(job) && !ids.includes(id) && !followed.has(id)).map(([id]) => id);
    await Promise.all(left.map(ending));
    arrange([...ids, ...open.map((batch) => batch.id)]);
    more.textContent = queued.next_cursor && queued.jobs.length >= 100 ? t("queue.more") : "";
    fill(workers, ...pools.pools.filter((/** @type {WorkerPool} */ pool) => pool.waiting || pool.workers.length).map(poolLine));
    for (const id of ids) if (followed.size < STREAMS && !followed.has(id)) void watch(id);
    keep();
    loading.hidden = true;
    gone.hidden = true;
    fill(trouble);
    empty.hidden = rows.size > 0;
  }

  async function watched() {
    /** @type {string[]} */
    const before = JSON.parse(sessionStorage.getItem(WATCHED) ?? "[]");
    for (const id of before) await look(id, stop.signal).then(showJob, () => {}); // else erased since, or another key's
  }

  async function run() {
    await watched();
    while (!stop.signal.aborted) {
      let pauseS = LOOK_S;
      try {
        if (!document.hidden) await refresh();
      } catch (error) {
        if (stop.signal.aborted) return;
        loading.hidden = true;
        if (error instanceof Refusal && error.status === 0) gone.hidden = false;
        else {
          fill(trouble, failureBox(error));
          pauseS = (error instanceof Refusal && error.retryAfterS) || LOOK_S;
        }
      }
      await new Promise((resolve) => { setTimeout(resolve, pauseS * 1000); });
    }
  }

  const heading = h("h1", { tabindex: -1 }, t("queue"));
  void run();
  return {
    title: t("queue"),
    element: h("section", { class: "stack queue" }, heading, gone, trouble, workers, loading, list, more, empty),
    close() {
      stop.abort();
      for (const [id, job] of known) if (ended(job)) known.delete(id); // these were seen
      keep();
    },
  };
}

/** @param {Job} a @param {Job} b */
const soonest = (a, b) => LANES.indexOf(a.lane) - LANES.indexOf(b.lane) || (a.position ?? Infinity) - (b.position ?? Infinity);

/**
 * A job as it was listed, unless its events have said more meanwhile.
 *
 * @param {Job | undefined} seen
 * @param {Job} listed
 * @returns {Job}
 */
function newer(seen, listed) {
  if (!seen) return listed;
  if (ended(seen)) return seen;
  const at = (/** @type {Job} */ job) => Date.parse(job.progress?.at ?? "") || 0;
  return seen.status === listed.status && at(seen) > at(listed) ? { ...listed, progress: seen.progress ?? null } : listed;
}

/** @param {WorkerPool} pool */
function poolLine(pool) {
  const ready = pool.workers.filter((worker) => worker.stage === "ready").length;
  const words = pool.workers.length ? t("pool.workers", { ready, all: pool.workers.length }) : t("pool.none");
  return h("p", { class: "note pool", "data-ready": String(ready > 0) },
    h("strong", {}, pool.model ?? pool.name), ` ${words} · ${t("pool.waiting", { n: pool.waiting })}`,
    pool.waiting_for ? h("span", {}, " · ", waitsFor(pool)) : null,
    pool.waiting && !pool.workers.length ? h("span", {}, ` ${t("pool.nothing_to_do")}`) : null);
}

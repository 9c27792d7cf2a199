/** The view Operator: pools and what holds them, failures, and every tenant's usage. It changes nothing. */

import { ask, Refusal } from "./api.js";
import { fill, h } from "./dom.js";
import { failureBox } from "./failure.js";
import { waitsFor } from "./live.js";
import { has, span, t } from "./text.js";

/**
 * @typedef {import("./api.js").Schemas["OperatorView"]} View
 * @typedef {import("./api.js").Schemas["OperatorPool"]} Pool
 * @typedef {import("./api.js").Schemas["TenantUsage"]} Tenant
 */

const LOOK_S = 10;
const DAY_MS = 86_400_000;
const PERIODS = ["7", "30", "90"];
const PRICE = "serinette.price";

const number = (/** @type {number} */ value, digits = 0) =>
  value.toLocaleString(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });

/**
 * A table; what does not fit is scrolled to, also with the keyboard.
 *
 * @param {string} label
 * @param {readonly string[]} heads
 * @param {readonly (readonly import("./dom.js").Child[])[]} rows the first cell of each names it
 */
const table = (label, heads, rows) => h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label }, h("table", {},
  h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
  h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, index) =>
    index ? h("td", {}, cell) : h("th", { scope: "row" }, cell)))))));

/**
 * @param {URLSearchParams} query of the address
 * @returns {import("./app.js").View}
 */
export function operatorView(query) {
  const stop = new AbortController();
  const trouble = h("div");
  const pools = h("div", { class: "stack" });
  const tenants = h("div");
  let shown = "";
  /** @type {View | null} */
  let view = null;

  const wanted = query.get("days") ?? "30";
  const period = h("select", { id: "period", onchange: () => {
    history.pushState(null, "", `#/operator?days=${period.value}`);
    void look();
  } }, PERIODS.map((days) => h("option", { value: days, selected: days === wanted }, t("operator.days", { n: days }))));
  const price = h("input", { id: "price", type: "number", min: 0, step: "any", inputmode: "decimal",
    value: localStorage.getItem(PRICE) ?? "", oninput: () => {
      localStorage.setItem(PRICE, price.value);
      if (view) fill(tenants, tenantTable(view, price.valueAsNumber));
    } });

  async function look() {
    const since = new Date(Date.now() - (Number(period.value) - 1) * DAY_MS).toISOString().slice(0, 10);
    try {
      view = /** @type {View} */ (await ask(`v1/operator?since=${since}`, { signal: stop.signal }));
      fill(trouble);
    } catch (error) {
      if (!stop.signal.aborted) fill(trouble, failureBox(error));
      return error;
    }
    const text = JSON.stringify(view);
    // What is read with the keyboard just now stays until it is left.
    if (text === shown || pools.contains(document.activeElement) || tenants.contains(document.activeElement)) return null;
    shown = text;
    fill(pools, view.pools.map(poolCard));
    fill(tenants, tenantTable(view, price.valueAsNumber));
    return null;
  }

  async function run() {
    while (!stop.signal.aborted) {
      const error = document.hidden ? null : await look();
      if (error instanceof Refusal && error.status === 403) return;
      await new Promise((resolve) => { setTimeout(resolve, LOOK_S * 1000); });
    }
  }

  void run();
  return {
    title: t("operator"),
    element: h("section", { class: "stack" }, h("h1", { tabindex: -1 }, t("operator")), trouble, pools,
      h("section", { class: "card stack" }, h("h2", {}, t("operator.usage")),
        h("div", { class: "grid filters" },
          h("div", { class: "field" }, h("label", { for: "period" }, t("operator.period")), period),
          h("div", { class: "field" }, h("label", { for: "price" }, t("operator.price")), price)),
        tenants, h("p", { class: "note" }, t("operator.price.note")))),
    close: () => stop.abort(),
  };
}

/** @param {Pool} pool */
function poolCard(pool) {
  const ready = pool.workers.filter((worker) => worker.stage === "ready").length;
  const most = pool.max_workers === null ? "" : ` · ${t("operator.most", { min: pool.min_workers ?? 0, max: pool.max_workers })}`;
  const code = (/** @type {string} */ each) => h("span", {}, h("code", {}, each), has(`failure.${each}`) ? ` ${t(`failure.${each}`)}` : "");
  return h("section", { class: "card stack", "aria-label": t("operator.pool", { name: pool.name }) },
    h("div", { class: "row head" }, h("h2", {}, t("operator.pool", { name: pool.name })),
      h("span", { class: "state" }, pool.model ?? "–"),
      h("span", { class: "note pool", "data-ready": String(ready > 0) },
        `${pool.workers.length ? t("pool.workers", { ready, all: pool.workers.length }) : t("pool.none")}${most} · ${t("operator.running", { n: pool.running })}`)),
    pool.brake.map((reason) => h("p", { class: "failure" }, h("strong", {}, t("operator.brake")), h("span", { lang: "en" }, reason))),
    pool.waiting_for ? h("p", {}, waitsFor(pool)) : null,
    h("div", { class: "beside-tables" },
      table(t("operator.lanes", { name: pool.name }), [t("field.lane"), t("operator.waiting"), t("operator.oldest")],
        pool.lanes.map((lane) => [lane.lane, number(lane.waiting), lane.oldest_s === null ? "–" : span(lane.oldest_s)])),
      pool.failures.length
        ? table(t("operator.failures", { name: pool.name }), [t("operator.failure"), t("operator.jobs")],
          pool.failures.map((failure) => [code(failure.code), number(failure.jobs)]))
        : h("p", { class: "note" }, t("operator.no_failures", { n: pool.succeeded }))),
    pool.workers.length
      ? table(t("operator.workers", { name: pool.name }), ["worker", "stage", "slots", "device", "since", "holds"].map((each) => t(`operator.${each}`)),
        pool.workers.map((worker) => [worker.name, t(`worker.${worker.stage}`), `${worker.busy_slots} / ${worker.slots}`, worker.device,
          new Date(worker.started_at).toLocaleString(document.documentElement.lang, { dateStyle: "short", timeStyle: "short" }),
          worker.message ? h("span", { lang: "en" }, worker.message) : "–"]))
      : null);
}

/** @param {View} view @param {number} price of a GPU-hour; NaN: none is given */
function tenantTable(view, price) {
  const cost = (/** @type {number} */ gpuS) => (Number.isFinite(price) ? number((gpuS / 3600) * price, 2) : "–");
  /** @param {string} name @param {{gpu_s: number, succeeded: number, failed: number, canceled: number, size_bytes: number}} sums */
  const row = (name, sums) => [name, number(sums.gpu_s / 3600, 2), cost(sums.gpu_s), number(sums.succeeded), number(sums.failed),
    number(sums.canceled), number(sums.size_bytes / 1e6, 1)];
  const names = /** @type {const} */ (["gpu_s", "succeeded", "failed", "canceled", "size_bytes"]);
  const sum = Object.fromEntries(names.map((name) => [name, view.tenants.reduce((so, tenant) => so + tenant.total[name], 0)]));
  const heads = ["tenant", "gpu_hours", "cost", "succeeded", "failed", "canceled", "megabytes"];
  return table(t("operator.usage"), heads.map((each) => t(`operator.${each}`)), [
    ...view.tenants.map((tenant) => row(tenant.tenant, tenant.total)),
    row(t("operator.all"), /** @type {any} */ (sum)),
  ]);
}

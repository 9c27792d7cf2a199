/** The view Song: one job, live until it ends, then to be heard. */

import { cancel, look, send } from "./api.js";
import { compareBar } from "./compare.js";
import { announce, button, fill, h } from "./dom.js";
import { again } from "./draft.js";
import { after, ended, follow } from "./events.js";
import { failureBox } from "./failure.js";
import { FIELDS, FORMATS } from "./fields.js";
import { livePanel } from "./live.js";
import { player, signedSongs } from "./player.js";
import { kindOf } from "./queue_row.js";
import { shareDialog } from "./share.js";
import { t } from "./text.js";

/** @typedef {import("./api.js").Job} Job */

const LOOK_S = 4;
const keptSpec = (/** @type {string} */ id) => `serinette.spec.${id}`;

/**
 * @param {string} id of a job
 * @returns {import("./app.js").View}
 */
export function songView(id) {
  const stop = new AbortController();
  const heading = h("h1", { tabindex: -1 }, t("song"));
  const status = h("p", { class: "note" });
  const main = h("div", { class: "stack" });
  const trouble = h("div");
  const panel = livePanel(() => void ask());
  /** @type {(() => void)[]} */
  const closing = [() => stop.abort()];
  let canceledHere = false;

  async function ask() {
    canceledHere = true;
    fill(trouble);
    try {
      const job = await cancel(id);
      if (!ended(job)) panel.show(job);
    } catch (error) {
      panel.offerCancel();
      fill(trouble, failureBox(error));
    }
  }

  /** @param {Job} job */
  function describe(job) {
    const title = job.spec.prompt || t(`task.${job.spec.task}`);
    fill(heading, title);
    document.title = `${title.slice(0, 60)} · Serinette`;
    fill(status, kindOf(job) && `${kindOf(job)} · `, `${t(`status.${job.status}`)} · ${new Date(job.created_at).toLocaleString(document.documentElement.lang)}`);
    try {
      sessionStorage.setItem(keptSpec(id), JSON.stringify(job.spec));
    } catch {
      // The tab's storage is full of earlier songs' settings: this one's are on the server still.
    }
  }

  async function begin() {
    fill(main, h("p", { class: "note" }, t("loading")));
    try {
      const job = await look(id, stop.signal);
      describe(job);
      if (ended(job)) return finished(job);
      fill(main, panel.element, settings(job));
      panel.show(job);
      return await watch(job);
    } catch (error) {
      if (!stop.signal.aborted) missing(error);
    }
  }

  /** @param {Job} job */
  async function watch(job) {
    const looking = setInterval(() => void lookAgain(), LOOK_S * 1000);
    closing.push(() => clearInterval(looking));
    async function lookAgain() {
      if (document.hidden) return;
      try {
        const fresh = await look(id, stop.signal);
        const queue = await (await send("v1/queue", { signal: stop.signal })).json();
        if (ended(job) || ended(fresh)) return;
        panel.show((job = fresh));
        const pool = queue.pools.find((/** @type {{name: string}} */ each) => each.name === fresh.pool);
        panel.noWorker(!pool?.workers.length);
      } catch {
        // The events' own connection says that the gateway is gone.
      }
    }
    void lookAgain();
    let shown = "";
    for await (const event of follow(id, stop.signal, panel.connection)) {
      job = after(job, event);
      if (job.status !== shown) describe(job);
      shown = job.status;
      if (ended(job)) break;
      panel.show(job);
    }
    clearInterval(looking);
    if (!stop.signal.aborted) finished(await look(id, stop.signal));
  }

  /** @param {Job} job */
  function finished(job) {
    describe(job);
    announce(t(`status.${job.status}`));
    const retry = button(t("again"), () => again(job.spec), { class: "primary" });
    if (job.status === "failed") fill(main, failureBox(job.error, retry), settings(job));
    else if (job.status === "canceled") {
      fill(main, failureBox({ code: canceledHere ? "canceled_here" : "canceled" }, retry), settings(job));
    } else fill(main, ...(job.result?.texts ?? []).map(text), ...songs(job), job.result?.texts.length ? null : actions(job), settings(job));
  }

  /** @param {import("./api.js").Schemas["Planned"]} written */
  function text(written) {
    const { caption, lyrics, ...rest } = written;
    const known = Object.entries(rest).filter(([name, value]) => name !== "codes" && value !== null && value !== undefined);
    const spec = { ...Object.fromEntries(known), prompt: caption ?? "", lyrics: lyrics ?? "" };
    return h("article", { class: "card stack" }, h("p", {}, caption ?? ""),
      h("dl", {}, known.flatMap(([name, value]) => [h("dt", {}, t(`field.${name}`)), h("dd", {}, String(value))])),
      lyrics ? h("pre", { class: "lyrics" }, lyrics) : null,
      button(t("song_of_it"), () => again(spec), { class: "primary" }));
  }

  /** @param {Job} job */
  function songs(job) {
    const address = signedSongs(id);
    const artifacts = job.result?.artifacts ?? [];
    const warnings = job.result?.warnings ?? [];
    /** @type {ReturnType<typeof player>[]} */
    const decks = [];
    const grid = h("div", { class: "decks" });
    const comparing = h("div");
    /** @param {string} of @param {import("./api.js").Artifact} artifact @param {string} label @param {Job} from */
    const add = (of, artifact, label, from) => {
      const deck = player(artifact, label, of === id ? address : signedSongs(of), {
        useAsSource: (index) => useAsSource(from, index),
        repaint: (index, region) => useAsSource(from, index, region),
        share: (index) => shareDialog(of, index),
      });
      closing.push(deck.close);
      decks.push(deck);
      grid.append(deck.element);
      grid.classList.toggle("beside", decks.length > 1);
      if (decks.length > 1) fill(comparing, compareBar(decks));
    };
    for (const artifact of artifacts) add(id, artifact, artifacts.length > 1 ? t("variation", { n: artifact.index + 1 }) : t("song"), job);
    const [, source, index] = /^([0-9a-f-]{36})\/(\d)$/.exec(job.spec.source_audio ?? "") ?? [];
    if (source) {
      look(source, stop.signal).then((from) => {
        const artifact = from.result?.artifacts[Number(index)];
        if (artifact) add(source, artifact, t("source"), from);
      }, () => {}); // it may be gone: its songs are kept for no longer than others
    }
    return [
      warnings.length ? h("ul", { class: "warnings", lang: "en" }, warnings.map((words) => h("li", {}, words))) : null,
      comparing, grid,
    ];
  }

  /** @param {Job} job @param {number} index @param {import("./region.js").Region} [region] */
  function useAsSource(job, index, region) {
    const name = `${job.spec.prompt.slice(0, 60) || t("song")} (${index + 1})`;
    again({ prompt: job.spec.prompt, lyrics: job.spec.lyrics, vocal_language: job.spec.vocal_language, task: region ? "repaint" : "cover" },
      { change: {
        source_audio: `${job.id}/${index}`, source_audio_name: name,
        ...(region ? { repaint_start_s: String(region.start), repaint_end_s: String(region.end) } : {}),
      } });
  }

  /** @param {Job} job */
  function actions(job) {
    const seed = h("input", { type: "checkbox", id: "same-seed" });
    const format = h("select", { "aria-label": t("field.format") },
      FORMATS.filter((each) => each !== job.spec.format).map((each) => h("option", { value: each }, each)));
    return h("div", { class: "card row actions" },
      button(t("again"), () => again(job.spec, { seed: seed.checked }), { class: "primary" }),
      h("label", { class: "row" }, seed, t("same_seed")),
      h("span", { class: "row" },
        button(t("again_as"), () => again(job.spec, { seed: true, change: { format: format.value } })), format));
  }

  /** @param {unknown} error */
  function missing(error) {
    const kept = sessionStorage.getItem(keptSpec(id));
    fill(main, failureBox(error,
      button(t("try_again"), () => void begin()),
      kept ? button(t("again"), () => again(JSON.parse(kept))) : null,
      h("a", { href: "#/create" }, t("create.title"))));
  }

  void begin();
  return {
    title: t("song"),
    element: h("section", {}, heading, status, trouble, main),
    close: () => closing.forEach((each) => each()),
  };
}

/** @param {Job} job */
function settings(job) {
  const spec = /** @type {Record<string, any>} */ (job.spec);
  const names = ["task", ...FIELDS.map((field) => field.name)];
  const shown = names.filter((name) => spec[name] !== null && spec[name] !== undefined && name !== "audio_codes");
  return h("details", { class: "card" }, h("summary", {}, t("settings")),
    spec["lyrics"] ? h("pre", { class: "lyrics" }, spec["lyrics"]) : null,
    h("dl", {}, shown.flatMap((name) => [h("dt", {}, t(`field.${name}`)), h("dd", {}, String(spec[name]))])),
    h("p", { class: "note" }, `${job.id}${job.result ? ` · ${job.result.model}` : ""}`));
}

/** One variation: its waveform, play, seek, loop, download. */

import { links, relative, send } from "./api.js";
import { button, fill, h } from "./dom.js";
import { failureBox } from "./failure.js";
import { regionField } from "./region.js";
import { clock, size, t } from "./text.js";
import { draw, peaksOf } from "./waveform.js";

const STEP_S = 5;
const PAGE_S = 15;
const EARLY_MS = 60_000;

/**
 * Signed addresses of a job's songs, renewed before they expire: an `<audio>` sends no key.
 *
 * @param {string} jobId
 * @returns {(index: number) => Promise<string>}
 */
export function signedSongs(jobId) {
  /** @type {Promise<import("./api.js").Links> | null} */
  let asked = null;
  return async (index) => {
    if (asked && Date.parse((await asked).expires_at) - EARLY_MS < Date.now()) asked = null;
    asked ??= links(jobId).catch((error) => {
      asked = null;
      throw error;
    });
    // `download` is never a redirect: the store may be where this page may not fetch from.
    return `${relative((await asked).audio)}&index=${index}&download=true`;
  };
}

/**
 * @param {import("./api.js").Artifact} artifact
 * @param {string} label
 * @param {(index: number) => Promise<string>} address
 * @param {{useAsSource: (index: number) => void, repaint: (index: number, region: import("./region.js").Region) => void,
 *   share: (index: number) => void}} acts
 */
export function player(artifact, label, address, acts) {
  const duration = artifact.duration_s;
  const audio = h("audio", { preload: "none" });
  const time = h("span", { class: "time" });
  const trouble = h("div");
  /** @type {number[]} */
  let peaks = [];

  const canvas = h("canvas", {
    class: "wave", role: "slider", tabindex: 0, "aria-label": t("position", { label }),
    "aria-valuemin": 0, "aria-valuemax": Math.round(duration),
  });
  const play = button("", () => toggle(), { class: "play", "aria-label": t("play", { label }) });
  const loop = button(t("loop"), () => {
    audio.loop = !audio.loop;
    loop.setAttribute("aria-pressed", String(audio.loop));
  }, { "aria-pressed": "false" });
  const download = button(t("download", { format: artifact.format, size: size(artifact.size_bytes) }), () =>
    attempt(async () => {
      const link = h("a", { href: await address(artifact.index), download: "" });
      link.click();
    }));

  function paint() {
    draw(canvas, peaks, audio.currentTime / duration);
    const words = `${clock(audio.currentTime)} / ${clock(duration)}`;
    canvas.setAttribute("aria-valuenow", String(Math.round(audio.currentTime)));
    canvas.setAttribute("aria-valuetext", words);
    fill(time, words);
    if (!audio.paused) requestAnimationFrame(paint);
  }

  /** @param {() => Promise<unknown>} act */
  async function attempt(act) {
    fill(trouble);
    try {
      await act();
    } catch (error) {
      fill(trouble, failureBox(error, button(t("try_again"), () => attempt(act))));
    }
  }

  /** Gives `<audio>` an address, in place of one that is over, and goes on where it was. */
  async function open() {
    const at = audio.currentTime;
    audio.src = await address(artifact.index);
    audio.currentTime = at;
  }

  const ready = async () => {
    if (!audio.src || audio.error) await open();
  };

  const toggle = () => attempt(async () => {
    if (!audio.paused) return audio.pause();
    await ready();
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    return audio.play().catch(async (/** @type {unknown} */ error) => {
      await send(await address(artifact.index), { method: "HEAD" }); // a song that is gone is refused in words
      throw error;
    });
  });

  /** @param {number} seconds */
  const seek = (seconds) => attempt(async () => {
    const to = Math.min(Math.max(seconds, 0), Math.max(duration - 0.05, 0));
    if (!audio.src) await open();
    audio.currentTime = to;
    paint();
  });

  const region = regionField(canvas, duration, label, {
    now: () => audio.currentTime, seek, use: (chosen) => acts.repaint(artifact.index, chosen),
  });
  canvas.addEventListener("keydown", (event) => {
    const now = audio.currentTime;
    const to = /** @type {Record<string, number>} */ ({
      ArrowLeft: now - STEP_S, ArrowDown: now - STEP_S, ArrowRight: now + STEP_S, ArrowUp: now + STEP_S,
      PageDown: now - PAGE_S, PageUp: now + PAGE_S, Home: 0, End: duration,
    })[event.key];
    if (to === undefined && event.key !== " ") return;
    event.preventDefault();
    void (to === undefined ? toggle() : seek(to));
  });
  for (const name of ["play", "pause", "ended", "seeked"]) {
    audio.addEventListener(name, () => {
      play.classList.toggle("playing", !audio.paused);
      play.setAttribute("aria-label", t(audio.paused ? "play" : "pause", { label }));
      paint();
    });
  }
  const resized = new ResizeObserver(paint);
  resized.observe(canvas);

  void attempt(async () => {
    peaks = await peaksOf(async () => (await send(await address(artifact.index))).arrayBuffer());
    canvas.dataset["drawn"] = "true";
    paint();
  });
  const element = h("article", { class: "card player", "aria-label": label },
    h("h2", {}, label), h("div", { class: "deck" }, play, region.box, time), region.form,
    h("div", { class: "row" }, loop, ...region.buttons, button(t("use_as_source"), () => acts.useAsSource(artifact.index)), download,
      button(t("share"), () => acts.share(artifact.index)), h("span", { class: "note" }, t("seed", { seed: String(artifact.seed) }))),
    trouble, audio);
  return { element, audio, label, ready, close: () => (resized.disconnect(), audio.pause(), audio.removeAttribute("src")) };
}

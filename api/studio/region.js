/** A part of a song, dragged on its waveform or typed: to be generated again, or beyond its ends to continue it. */

import { button, fill, h } from "./dom.js";
import { clock, t } from "./text.js";

const DRAG_PX = 6;
const BEYOND_S = 120;
const CONTINUED_S = 30;
const TYPED_S = 5;

/** @typedef {{start: number, end: number}} Region seconds; before 0 and behind the song's end are continuations */

const rounded = (/** @type {number} */ seconds) => Math.round(seconds * 10) / 10;

/**
 * @param {HTMLCanvasElement} canvas over whose width the song lies
 * @param {number} duration
 * @param {string} label
 * @param {{now: () => number, seek: (seconds: number) => unknown, use: (region: Region) => void}} acts
 */
export function regionField(canvas, duration, label, acts) {
  /** @type {Region | null} */
  let region = null;
  const mark = h("div", { class: "region", hidden: true });
  const box = h("div", { class: "wave-box" }, canvas, mark);
  const number = (/** @type {"start" | "end"} */ side) => h("input", {
    type: "number", step: "0.1", inputmode: "decimal", "aria-label": t(`region.${side}`, { label }),
    oninput: (/** @type {Event} */ event) => {
      const typed = /** @type {HTMLInputElement} */ (event.target).valueAsNumber;
      if (region && Number.isFinite(typed)) choose({ ...region, [side]: typed }, false);
    },
  });
  const start = number("start");
  const end = number("end");
  const words = h("p", { class: "note" });
  const use = button("", () => region && acts.use(region), { class: "primary" });
  const form = h("div", { class: "region-form", hidden: true, role: "group", "aria-label": t("region", { label }) },
    h("div", { class: "row" }, h("span", {}, t("region.from")), start, h("span", {}, t("region.to")), end, h("span", {}, t("region.s")),
      use, button(t("region.listen"), () => region && acts.seek(Math.max(0, region.start))), button(t("region.clear"), clear)),
    words);
  const select = button(t("region.select"), () => {
    const from = rounded(Math.min(acts.now(), Math.max(0, duration - TYPED_S)));
    choose({ start: from, end: rounded(Math.min(duration, from + TYPED_S)) });
    start.focus();
  });
  const further = button(t("region.continue"), () => {
    choose({ start: rounded(duration), end: rounded(duration + CONTINUED_S) });
    use.focus();
  });

  /** @param {Region | null} chosen @param {boolean} [write] whether the numbers are to follow */
  function choose(chosen, write = true) {
    region = chosen;
    mark.hidden = form.hidden = !region;
    if (!region) return;
    if (write) {
      start.value = String(region.start);
      end.value = String(region.end);
    }
    const share = (/** @type {number} */ seconds) => `${Math.min(1, Math.max(0, seconds / duration)) * 100}%`;
    mark.style.left = share(region.start);
    mark.style.right = `calc(100% - ${share(region.end)})`;
    mark.classList.toggle("before", region.start < 0);
    mark.classList.toggle("behind", region.end > duration);
    const wrong = region.end <= region.start || region.start > duration || region.end < 0;
    const beyond = region.start < 0 || region.end > duration;
    use.disabled = wrong;
    fill(use, t(beyond ? "region.continue" : "region.repaint"));
    fill(words, wrong ? t("region.wrong", { end: clock(duration) })
      : beyond ? t("region.beyond", { length: clock(Math.max(duration, region.end) - Math.min(0, region.start)) }) : t("region.within"));
  }

  function clear() {
    choose(null);
    canvas.focus();
  }

  /** @type {{x: number, dragged: boolean} | null} */
  let press = null;
  /** @param {number} x of the screen @returns {number} seconds, also beyond the song */
  const secondsAt = (x) => {
    const place = canvas.getBoundingClientRect();
    return ((x - place.left) / place.width) * duration;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    press = { x: event.clientX, dragged: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!press || !event.buttons) return;
    press.dragged ||= Math.abs(event.clientX - press.x) > DRAG_PX;
    if (!press.dragged) return;
    const [from = 0, to = 0] = [secondsAt(press.x), secondsAt(event.clientX)].sort((a, b) => a - b);
    choose({ start: rounded(Math.max(-BEYOND_S, from)), end: rounded(Math.min(duration + BEYOND_S, to)) });
  });
  canvas.addEventListener("pointerup", (event) => {
    if (press && !press.dragged) void acts.seek(secondsAt(event.clientX));
    press = null;
  });
  canvas.addEventListener("pointercancel", () => (press = null));
  box.addEventListener("keydown", (event) => event.key === "Escape" && region && clear());
  form.addEventListener("keydown", (event) => event.key === "Escape" && clear());
  return { box, form, buttons: [select, further] };
}

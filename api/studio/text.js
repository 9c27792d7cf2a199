/** The studio's words in the reader's language; what the server says stays in the server's. */

const NAMES = /** @type {const} */ ({ en: "English", ja: "日本語" });
const KEPT = "serinette.language";

/** @type {Record<string, string>} */
let words = {};

export const languages = Object.entries(NAMES);

/** The language that is shown: the one chosen here before, else the browser's. */
export function language() {
  const wanted = localStorage.getItem(KEPT) ?? navigator.language.slice(0, 2);
  return wanted in NAMES ? wanted : "en";
}

/** Fetches the words; before it, `t` answers keys. */
export async function loadWords() {
  const table = language() === "ja" ? await import("./text_ja.js") : await import("./text_en.js");
  words = table.default;
  document.documentElement.lang = language();
}

/**
 * Keeps a choice of language for later visits too.
 *
 * @param {string} chosen
 */
export function chooseLanguage(chosen) {
  localStorage.setItem(KEPT, chosen);
}

/**
 * The words for a key, with `{name}` filled in; the key itself where there are none.
 *
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/**
 * Whether there are words for a key.
 *
 * @param {string} key
 */
export function has(key) {
  return key in words;
}

/**
 * Minutes and seconds, as players write them.
 *
 * @param {number} seconds
 */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds || 0));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/**
 * A length of time to wait, in words.
 *
 * @param {number} seconds
 */
export function span(seconds) {
  return seconds < 90 ? t("seconds", { n: Math.ceil(seconds) }) : t("minutes", { n: Math.round(seconds / 60) });
}

/**
 * A size in bytes, rounded.
 *
 * @param {number} bytes
 */
export function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

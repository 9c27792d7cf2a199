/** Songs against each other: what plays goes on in another at the same instant. */

import { button, h } from "./dom.js";
import { t } from "./text.js";

/**
 * @typedef {{label: string, audio: HTMLAudioElement, ready: () => Promise<void>}} Deck
 */

/**
 * A button for each song. Pressing one starts it where the one that is heard stands.
 *
 * @param {readonly Deck[]} decks
 */
export function compareBar(decks) {
  /** @type {Deck | undefined} */
  let heard;
  const buttons = decks.map((deck) => button(deck.label, () => switchTo(deck), { "aria-pressed": "false" }));

  /** @param {Deck} deck */
  async function switchTo(deck) {
    const before = decks.find((each) => !each.audio.paused) ?? heard;
    if (before === deck && !deck.audio.paused) return;
    await deck.ready();
    if (before && before !== deck) deck.audio.currentTime = Math.min(before.audio.currentTime, (deck.audio.duration || Infinity) - 0.05);
    await deck.audio.play();
    if (!before || before === deck) return;
    // It took a moment to start, in which the other went on.
    const late = before.audio.currentTime - deck.audio.currentTime;
    if (!before.audio.paused && late > 0.03) deck.audio.currentTime += late;
    before.audio.pause();
  }

  for (const deck of decks) {
    deck.audio.addEventListener("play", () => {
      heard = deck;
      decks.forEach((each, index) => buttons[index]?.setAttribute("aria-pressed", String(each === deck)));
    });
  }
  return h("div", { class: "card row compare", role: "group", "aria-label": t("compare") },
    h("strong", {}, t("compare")), ...buttons, h("span", { class: "note" }, t("compare.how")));
}

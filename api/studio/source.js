/** Audio to work on: dropped, chosen, or an earlier song. */

import { upload } from "./api.js";
import { announce, button, fill, h } from "./dom.js";
import { failureBox } from "./failure.js";
import { clock, size, t } from "./text.js";

/**
 * A field that holds one piece of audio. The draft gets its id in `name`, and what to show of it in `{name}_name`.
 *
 * @param {"source_audio" | "reference_audio"} name
 * @param {import("./draft.js").Draft} draft
 * @param {() => void} changed
 */
export function sourceField(name, draft, changed) {
  const body = h("div", { class: "source" });
  const note = h("p", { id: `${name}-note`, class: "note" });
  /** @type {AbortController | null} */
  let sending = null;

  /** @param {string} id @param {string} shown */
  const hold = (id, shown) => {
    draft[name] = id;
    draft[`${name}_name`] = shown;
    changed();
    show();
  };

  /** @param {File | undefined} file */
  const take = async (file) => {
    if (!file) return;
    sending?.abort();
    const mine = (sending = new AbortController());
    const words = t("uploading", { name: file.name, size: size(file.size) });
    announce(words);
    fill(body, h("p", {}, words), h("progress", { "aria-label": words }), button(t("stop"), () => (mine.abort(), show())));
    try {
      const kept = await upload(file, mine.signal);
      if (mine.signal.aborted) return;
      hold(kept.id, `${file.name} (${clock(kept.duration_s)})`);
      announce(t("uploaded", { name: file.name }));
    } catch (error) {
      if (!mine.signal.aborted) show(error);
    }
  };

  /** @param {unknown} [error] */
  const show = (error) => {
    if (draft[name]) {
      fill(body, h("p", { class: "held" }, draft[`${name}_name`] || draft[name]), button(t("remove"), () => hold("", "")));
      return;
    }
    const input = h("input", {
      id: name, type: "file", accept: "audio/*", "aria-describedby": note.id,
      onchange: () => take(input.files?.[0]),
    });
    const drop = h("label", {
      class: "drop",
      ondragover: (/** @type {DragEvent} */ event) => (event.preventDefault(), drop.classList.add("over")),
      ondragleave: () => drop.classList.remove("over"),
      ondrop: (/** @type {DragEvent} */ event) => (event.preventDefault(), take(event.dataTransfer?.files[0])),
    }, h("span", {}, t("drop")), input);
    fill(body, error ? failureBox(error) : null, drop);
  };

  show();
  return h("div", { class: "field", "data-field": name, role: "group", "aria-label": t(`field.${name}`) },
    h("span", { class: "label" }, t(`field.${name}`)), body, note);
}

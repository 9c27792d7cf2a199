/** Dialogs: a link to share a song, and a question before what cannot be undone. */

import { ask, relative, Refusal, send } from "./api.js";
import { announce, button, fill, h } from "./dom.js";
import { failureBox } from "./failure.js";
import { t } from "./text.js";

/**
 * A dialog that goes when it is closed; Escape closes it, and the focus returns to where it was.
 *
 * @param {string} title
 * @param {...import("./dom.js").Child} content
 */
function dialog(title, ...content) {
  const heading = h("h2", {}, title);
  const element = h("dialog", { "aria-label": title, onclose: () => element.remove() }, heading, ...content);
  document.body.append(element);
  element.showModal();
  return element;
}

/**
 * @param {string} question
 * @param {string} consequence
 * @param {string} yes
 * @returns {Promise<boolean>}
 */
export function confirmed(question, consequence, yes) {
  return new Promise((resolve) => {
    const asked = dialog(question, h("p", {}, consequence), h("div", { class: "row" },
      button(yes, () => (resolve(true), asked.close()), { class: "primary" }), button(t("keep"), () => asked.close())));
    asked.addEventListener("close", () => resolve(false));
  });
}

/**
 * @param {string} jobId
 * @param {number} index of the variation
 */
export function shareDialog(jobId, index) {
  const path = `v1/jobs/${jobId}/share`;
  const body = h("div", { class: "stack" });
  const about = [h("p", {}, t("share.what")), h("p", { class: "warnings" }, t("share.tags"))];
  const shown = dialog(t("share.title"), body, h("div", { class: "row" }, button(t("close"), () => shown.close())));

  /** @param {{audio: string, expires_at: string} | null} link @returns {void} */
  function show(link) {
    if (!link) return fill(body, ...about, h("div", { class: "row" }, button(t("share.make"), () => attempt("POST"), { class: "primary" })));
    const address = new URL(`${relative(link.audio)}&index=${index}`, document.baseURI).href;
    const field = h("input", { readonly: true, value: address, "aria-label": t("share.link"), onfocus: () => field.select() });
    const until = new Date(link.expires_at).toLocaleString(document.documentElement.lang);
    fill(body, ...about, field, h("p", { class: "note" }, t("share.until", { until })), h("div", { class: "row" },
      button(t("share.copy"), async () => {
        field.select();
        await navigator.clipboard?.writeText(address).then(() => announce(t("share.copied")), () => {});
      }, { class: "primary" }), button(t("share.revoke"), () => attempt("DELETE"))));
    field.focus();
  }

  /** @param {"GET" | "POST" | "DELETE"} method @returns {Promise<void>} */
  async function attempt(method) {
    try {
      if (method === "DELETE") await send(path, { method });
      show(method === "DELETE" ? null : await ask(path, { method }));
      if (method === "DELETE") announce(t("share.revoked"));
    } catch (error) {
      if (error instanceof Refusal && error.status === 404 && method === "GET") return show(null);
      if (error instanceof Refusal && error.code === "unsupported") return fill(body, h("p", {}, t("share.open")));
      fill(body, failureBox(error, button(t("try_again"), () => attempt(method))));
    }
  }

  void attempt("GET");
}

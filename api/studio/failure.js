/** What went wrong, in words, and what to do next. */

import { Refusal } from "./api.js";
import { h } from "./dom.js";
import { has, span, t } from "./text.js";

/**
 * A box for a refusal, a job's error, or anything thrown.
 *
 * @param {unknown} error
 * @param {...(HTMLElement | null | false)} actions buttons that are the next step
 */
export function failureBox(error, ...actions) {
  const { code, status, message, retryAfterS } = read(error);
  const known = has(`failure.${code}`) ? code : status >= 500 ? "server" : "other";
  const next = retryAfterS ? `${t(`next.${known}`)} ${t("retry_after", { span: span(retryAfterS) })}` : t(`next.${known}`);
  return h("div", { class: "failure", role: "alert" },
    h("strong", {}, t(`failure.${known}`)),
    message ? h("p", { lang: "en" }, message) : null,
    h("p", {}, next),
    h("p", { class: "row" }, ...actions),
  );
}

/**
 * @param {unknown} error
 * @returns {{code: string, status: number, message: string, retryAfterS: number | null}}
 */
function read(error) {
  if (error instanceof Refusal) return error;
  const { code, message } = /** @type {{code?: string, message?: string}} */ (error ?? {});
  return { code: code ?? "other", status: 0, message: message ?? "", retryAfterS: null };
}

/** A job's events (SSE), read with fetch: an EventSource sends no key and shows no status. */

import { Refusal, send } from "./api.js";

const ENDS = new Set(["succeeded", "failed", "canceled"]);
/** @param {import("./api.js").Job} job */
export const ended = (job) => ENDS.has(job.status);

const PAUSES_S = [0.5, 1, 2, 4, 8];

/**
 * Events until the job's last one, over as many connections as that takes. Each goes on behind the last event that
 * was seen, also in the same tab before a reload; and each begins with `status`, the job as it stands.
 *
 * @typedef {{id: string, type: string, data: Record<string, any>}} JobEvent
 * @param {string} jobId
 * @param {AbortSignal} signal
 * @param {(connected: boolean) => void} onConnection
 * @returns {AsyncGenerator<JobEvent>}
 * @throws {import("./api.js").Refusal} when the job is not there, or the key no longer opens it
 */
export async function* follow(jobId, signal, onConnection) {
  const kept = `serinette.event.${jobId}`;
  for (let failures = 0; !signal.aborted; failures += 1) {
    try {
      const last = sessionStorage.getItem(kept);
      const response = await send(`v1/jobs/${jobId}/events`, { signal, headers: last ? { "Last-Event-ID": last } : {} });
      onConnection(true);
      if (response.status === 204 || !response.body) return;
      for await (const event of parse(response.body)) {
        failures = 0;
        sessionStorage.setItem(kept, event.id);
        yield event;
        if (ENDS.has(event.type)) return sessionStorage.removeItem(kept);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refusal && error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      onConnection(false);
    }
    await pause(PAUSES_S[Math.min(failures, PAUSES_S.length - 1)] ?? 8, signal);
  }
}

/**
 * The messages of one stream.
 *
 * @param {ReadableStream<BufferSource>} body
 * @returns {AsyncGenerator<JobEvent>}
 */
async function* parse(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const messages = (rest + value).split(/\r?\n\r?\n/);
    rest = messages.pop() ?? "";
    for (const message of messages) {
      const data = message.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
    }
  }
}

/**
 * @param {number} seconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/**
 * A job after one of its events.
 *
 * @param {import("./api.js").Job} job
 * @param {JobEvent} event
 * @returns {import("./api.js").Job}
 */
export function after(job, event) {
  const data = /** @type {any} */ (event.data);
  switch (event.type) {
    case "status":
      return data;
    case "started":
      return { ...job, status: "running", progress: null, position: null, waiting_for: null };
    case "progress":
      return { ...job, status: "running", progress: data, waiting_for: null };
    case "attempt":
      return { ...job, status: "queued", progress: null, attempts: [...job.attempts.filter((each) => each.number !== data.number), data] };
    case "cancel_requested":
      return { ...job, cancel_requested: true };
    case "succeeded":
    case "failed":
    case "canceled":
      return { ...job, status: event.type };
    default:
      return job;
  }
}

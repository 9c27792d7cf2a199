/**
 * The gateway's `/v1`, as any client calls it. Addresses are relative, so that a proxy's path in front makes no
 * difference. The key lies in sessionStorage and travels in a header alone.
 *
 * @typedef {import("serinette-api").components["schemas"]} Schemas
 * @typedef {Schemas["Job"]} Job
 * @typedef {Schemas["Artifact"]} Artifact
 * @typedef {Schemas["Upload"]} Upload
 * @typedef {Schemas["ModelView"]} Model
 * @typedef {Schemas["JobLinks"]} Links
 * @typedef {Schemas["JobList"]} JobList
 * @typedef {Schemas["Batch"]} Batch
 * @typedef {Schemas["WorkerPoolView"]} WorkerPool
 * @typedef {{method?: string, json?: unknown, body?: BodyInit, headers?: Record<string, string>, signal?: AbortSignal}} Options
 */

const KEY = "serinette.key";

/** A refusal in the server's own words, or that there was no answer (`status` 0). */
export class Refusal extends Error {
  /**
   * @param {number} status of HTTP
   * @param {{code?: string, detail?: string, field?: string | null}} problem RFC 9457, as the server wrote it
   * @param {number | null} [retryAfterS]
   */
  constructor(status, problem, retryAfterS = null) {
    super(problem.detail ?? "");
    this.status = status;
    this.code = problem.code ?? (status ? "internal" : "gateway_gone");
    this.field = problem.field ?? null;
    this.retryAfterS = retryAfterS;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  /** @param {string} value */
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/**
 * Sends a request; answers with any 2xx.
 *
 * @param {string} path relative, like `v1/jobs`
 * @param {Options} [options]
 * @returns {Promise<Response>}
 */
export async function send(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const held = key.get();
  /** @type {Response} */
  let response;
  try {
    response = await fetch(path, {
      method,
      signal: signal ?? null,
      body: json === undefined ? (body ?? null) : JSON.stringify(json),
      headers: {
        ...(held ? { Authorization: `Bearer ${held}` } : {}),
        ...(json === undefined ? {} : { "Content-Type": "application/json" }),
        ...headers,
      },
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, {});
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const refusal = new Refusal(response.status, problem, Number(response.headers.get("Retry-After")) || null);
  if (response.status === 401) window.dispatchEvent(new CustomEvent("key-needed"));
  throw refusal;
}

/**
 * A path of an answer as seen from this page: the answer's begins with the prefix that a proxy announced, if any.
 *
 * @param {string} path
 */
export const relative = (path) => path.slice(path.lastIndexOf("/v1/jobs/") + 1);

/**
 * Sends a request; answers with the JSON that came back. Seeds beyond what a number can hold come as text.
 *
 * @param {string} path
 * @param {Options} [options]
 */
export async function ask(path, options) {
  const text = await (await send(path, options)).text();
  const quoted = text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"');
  return JSON.parse(quoted.replace(/"seed":\s*\[[\d,\s]+\]/g, (list) => list.replace(/\d+/g, '"$&"')));
}

/**
 * @param {Record<string, unknown>} spec
 * @param {string} idempotencyKey
 * @returns {Promise<Job>}
 */
export const submit = (spec, idempotencyKey) =>
  ask("v1/jobs", { method: "POST", json: spec, headers: { "Idempotency-Key": idempotencyKey } });

/**
 * @param {string} id
 * @param {AbortSignal} [signal]
 * @returns {Promise<Job>}
 */
export const look = (id, signal) => ask(`v1/jobs/${id}`, signal ? { signal } : {});

/**
 * @param {string} id
 * @returns {Promise<Job>}
 */
export const cancel = (id) => ask(`v1/jobs/${id}/cancel`, { method: "POST" });

/**
 * @param {string} id
 * @returns {Promise<Links>}
 */
export const links = (id) => ask(`v1/jobs/${id}/links`, { method: "POST" });

/**
 * A page of jobs, newest first.
 *
 * @param {Record<string, string | number | undefined>} filters what the server knows of them; empty ones are left out
 * @param {AbortSignal} signal
 * @returns {Promise<JobList>}
 */
export function jobs(filters, signal) {
  const query = Object.entries(filters).filter(([, value]) => value).map(([name, value]) => [name, String(value)]);
  return ask(`v1/jobs?${new URLSearchParams(query)}`, { signal });
}

/** @returns {Promise<Model[]>} */
export const models = async () => (await ask("v1/models")).models;

/**
 * Brings audio. Where the connection breaks though the gateway answers, the file is most likely too long for it: it
 * stops reading, and a browser then reports no answer.
 *
 * @param {File} file
 * @param {AbortSignal} signal
 * @returns {Promise<Upload>}
 */
export async function upload(file, signal) {
  try {
    return await ask("v1/uploads", { method: "POST", body: file, signal });
  } catch (error) {
    if (error instanceof Refusal && error.status === 0) {
      await send("healthz", { signal });
      throw new Refusal(413, { code: "upload_broken" });
    }
    throw error;
  }
}

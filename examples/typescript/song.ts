// A song, a cover of it, and a batch, with a client made of the gateway's own description:
//
//   npm install openapi-fetch openapi-typescript typescript @types/node
//   npx openapi-typescript http://127.0.0.1:8019/openapi/v1.json --output schema.d.ts
//   npx tsc --target es2022 --module nodenext song.ts && node song.js
//
// SERINETTE_URL names another gateway, SERINETTE_API_KEY a key.

import { writeFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Job = components["schemas"]["Job"];

const key = process.env.SERINETTE_API_KEY;
const client = createClient<paths>({
  baseUrl: process.env.SERINETTE_URL ?? "http://127.0.0.1:8019",
  headers: key ? { Authorization: `Bearer ${key}` } : {},
});

/** The job at its end: each request is held until then, 30 seconds at most. */
async function ended(id: string): Promise<Job> {
  for (;;) {
    const { data, error } = await client.GET("/v1/jobs/{job_id}", {
      params: { path: { job_id: id }, header: { prefer: "wait=30" } },
    });
    if (!data) throw new Error(error?.detail);
    if (data.status === "succeeded") return data;
    if (data.status === "failed" || data.status === "canceled") throw new Error(data.error?.message ?? data.status);
  }
}

async function song(job: Job): Promise<Uint8Array> {
  const { data, error } = await client.GET("/v1/jobs/{job_id}/audio", {
    params: { path: { job_id: job.id } },
    parseAs: "arrayBuffer",
  });
  if (!data) throw new Error(error?.detail);
  return new Uint8Array(data as ArrayBuffer);
}

async function submitted(body: components["schemas"]["JobRequest"]): Promise<Job> {
  const { data, error } = await client.POST("/v1/jobs", { body });
  if (!data) throw new Error(`${error?.field}: ${error?.detail}`);
  return data;
}

const first = await song(await ended((await submitted({ prompt: "dance music box with drums", duration_s: 5 })).id));
await writeFile("song.mp3", first);

const upload = await client.POST("/v1/uploads", {
  body: first as unknown as string, // bytes are a string to OpenAPI
  bodySerializer: (bytes) => bytes as unknown as BodyInit,
  headers: { "Content-Type": "application/octet-stream" },
});
if (!upload.data) throw new Error(upload.error?.detail);
const cover = await submitted({ prompt: "string quartet", task: "cover", source_audio: upload.data.id });
await writeFile("cover.mp3", await song(await ended(cover.id)));

const made = await client.POST("/v1/batches", {
  body: { specs: [{ prompt: "a waltz", duration_s: 2 }, { prompt: "a march", duration_s: 2 }] },
});
if (!made.data) throw new Error(made.error?.detail);
let batch = made.data;
while (batch.status !== "completed") {
  await new Promise((resolve) => setTimeout(resolve, 200));
  const { data } = await client.GET("/v1/batches/{batch_id}", { params: { path: { batch_id: batch.id } } });
  if (data) batch = data;
}
console.log(`song.mp3, cover.mp3, and a batch of ${batch.request_counts.completed} songs`);

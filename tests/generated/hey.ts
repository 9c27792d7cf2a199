// What a client made by @hey-api/openapi-ts does: submit, follow, download, upload, a batch.

import { client } from "./hey/client.gen.js";
import { followJob, getBatch, getJobAudio, submitBatch, submitJob, uploadAudio } from "./hey/sdk.gen.js";

client.setConfig({ baseUrl: process.env.SERINETTE_URL ?? "", throwOnError: true });

async function song(id: string): Promise<Blob> {
  const events: string[] = [];
  const { stream } = await followJob({ path: { job_id: id } });
  for await (const event of stream) {
    events.push((event as unknown as { type: string }).type);
    if (events.at(-1) === "succeeded") break;
  }
  if (events[0] !== "status") throw new Error(`the first event was ${events[0]}`);
  const { data } = await getJobAudio({ path: { job_id: id }, parseAs: "blob", throwOnError: true });
  return data as Blob;
}

const job = await submitJob({ body: { prompt: "jazz", duration_s: 2 }, throwOnError: true });
const first = await song(job.data.id);
const upload = await uploadAudio({ body: first, throwOnError: true });
const cover = await submitJob({
  body: { prompt: "quartet", task: "cover", source_audio: upload.data.id },
  throwOnError: true,
});
const second = await song(cover.data.id);
const made = await submitBatch({
  body: { specs: [{ prompt: "a waltz", duration_s: 1 }, { prompt: "a march", duration_s: 1 }] },
  throwOnError: true,
});
let batch = made.data;
while (batch.status !== "completed") {
  await new Promise((resolve) => setTimeout(resolve, 100));
  batch = (await getBatch({ path: { batch_id: batch.id }, throwOnError: true })).data;
}
console.log(JSON.stringify({ first: first.size, second: second.size, completed: batch.request_counts.completed }));

// The view Queue.

import assert from "node:assert/strict";

import english from "../../api/studio/text_en.js";
import { below, call, open, words } from "./harness.mjs";

/** Jobs and a batch as rows, live, over a reload and a lost connection; cancel, failure and what others did. */
export async function queue({ GATEWAY, KEY }) {
  const api = call(GATEWAY, KEY);
  const proxy = await below(GATEWAY);
  const { page, close } = await open({ url: `${proxy.url}#/queue`, key: KEY });
  await words(page, english["queue.empty"]);
  const row = (name) => page.locator(".queue-row", { hasText: name });
  const post = async (prompt, more = {}) => (await api("POST", "v1/jobs", { prompt, duration_s: 2, ...more })).id;
  await post("fourth", { model: "elsewhere", start_deadline_s: 8 });
  await words(page, english["pool.nothing_to_do"]);
  await row("fourth").getByText(english["failure.expired"]).waitFor();
  const first = await post("slow 16 first");
  await row("first").getByText(/step [1-8] of 8/).waitFor();
  await post("slow 60 second");
  const third = await post("slow 60 third");
  const batch = { name: "ten songs", specs: [{ prompt: "slow 60 of a batch", duration_s: 2 }], sweep: { seed: { first: 1, count: 10 } } };
  await api("POST", "v1/batches", batch);
  await row("third").getByText(/Place 1 in lane normal/).waitFor();
  await row("ten songs").getByText(/0 of 10 songs are ready/).waitFor();
  assert.equal(await row("of a batch").count(), 0, "the songs of a batch are in its row");

  const [resumed] = await Promise.all([page.waitForRequest(new RegExp(`${first}/events`)), page.reload()]);
  assert.match((await resumed.allHeaders())["last-event-id"] ?? "", /^\d+-\d+$/);
  await row("first").getByText(/step \d of 8/).waitFor();
  assert.equal(await row("fourth").count(), 1, "what ended is still there after a reload");
  await page.getByRole("button", { name: "Dismiss fourth" }).click();
  assert.equal(await row("fourth").count(), 0);

  proxy.cut();
  await words(page, english.reconnecting);
  proxy.mend();
  await page.getByText(english.reconnecting).waitFor({ state: "hidden" });
  await page.getByRole("button", { name: "Cancel slow 60 second" }).click();
  await row("second").getByText(english["failure.canceled_here"]).waitFor();
  await api("POST", `v1/jobs/${third}/cancel`);
  await row("third").getByText(english["failure.canceled"]).waitFor();
  await row("ten songs").getByRole("button", { name: "Pause" }).click();
  await row("ten songs").getByRole("button", { name: "Resume" }).click();
  await page.getByRole("button", { name: "Cancel ten songs" }).click();
  await row("ten songs").getByText(english["batch.canceled"]).waitFor();
  await row("first").getByRole("link", { name: "Listen" }).click();
  await page.waitForURL(new RegExp(first));
  await page.goBack();
  await page.getByRole("heading", { name: "Queue" }).waitFor();
  await close();
  proxy.close();
}

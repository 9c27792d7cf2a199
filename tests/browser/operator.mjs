// The view Operator.

import assert from "node:assert/strict";

import english from "../../api/studio/text_en.js";
import { call, open, words } from "./harness.mjs";

/** Two workers, a failure and two tenants, for a key with the right (OTHER_KEY); nothing of it for another. */
export async function operator({ GATEWAY, KEY, OTHER_KEY }) {
  const api = call(GATEWAY, KEY);
  for (const prompt of ["oom", "a sine"]) {
    const { id } = await api("POST", "v1/jobs", { prompt, duration_s: 1 });
    while (["queued", "running"].includes((await api("GET", `v1/jobs/${id}`)).status)) await new Promise((resolve) => { setTimeout(resolve, 200); });
  }
  const stranger = await open({ url: `${GATEWAY}/#/operator`, key: KEY });
  await words(stranger.page, english["failure.forbidden"]);
  assert.equal(await stranger.page.getByRole("link", { name: "Operator" }).count(), 0);
  await stranger.close();

  const { page, close } = await open({ url: `${GATEWAY}/`, key: OTHER_KEY });
  await page.getByRole("link", { name: "Operator" }).click();
  const workers = page.getByRole("region", { name: "Workers of pool default" }).getByRole("row");
  await workers.nth(2).waitFor();
  assert.equal(await workers.count(), 3, "a head and two workers");
  await page.getByText("2 of 2 workers ready").waitFor();
  await page.getByRole("row", { name: /^out_of_memory/ }).getByRole("cell", { name: /^[1-9]/ }).waitFor();
  const lanes = page.getByRole("region", { name: "Lanes of pool default" });
  assert.deepEqual(await lanes.getByRole("rowheader").allTextContents(), ["high", "normal", "low"]);
  const usage = page.getByRole("region", { name: "Usage by tenant" });
  await usage.getByRole("row", { name: /^operator/ }).waitFor();
  await page.getByLabel("Price of a GPU-hour").fill("3600000");
  const cells = await usage.getByRole("row", { name: /^operator/ }).getByRole("cell").allTextContents();
  assert.match(cells[1], /^[1-9][\d,]*\.\d\d$/, "GPU-seconds in thousandths");
  assert.deepEqual(cells.slice(2, 4), ["1", "1"]);
  await page.getByLabel("Period").selectOption("7");
  await page.waitForURL(/days=7$/);
  await page.goBack();
  await page.waitForURL(/#\/operator$/);
  await close();
}

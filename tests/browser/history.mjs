// The view History, and what Song does with several songs.

import assert from "node:assert/strict";

import english from "../../api/studio/text_en.js";
import { below, call, drawn, open, words } from "./harness.mjs";

const ended = async (api, id, as = "succeeded") => {
  for (;;) {
    const job = await api("GET", `v1/jobs/${id}`);
    if (job.status === as) return job;
    assert.ok(["queued", "running"].includes(job.status), job.status);
    await new Promise((resolve) => { setTimeout(resolve, 200); });
  }
};

/** By label, state and time on the server, by words in the page; replay and erase; another tenant's songs are not there. */
export async function history({ GATEWAY, KEY, OTHER_KEY }) {
  const api = call(GATEWAY, KEY);
  const ids = [];
  for (let i = 0; i < 23; i += 1) {
    const labels = i % 10 === 0 ? { album: "blue" } : {};
    ids.push((await api("POST", "v1/jobs", { prompt: `number ${i}`, duration_s: 1, seed: 7, labels })).id);
  }
  await call(GATEWAY, OTHER_KEY)("POST", "v1/jobs", { prompt: "of another tenant", duration_s: 1 });
  await Promise.all(ids.map((id) => ended(api, id)));
  const canceled = (await api("POST", "v1/jobs", { prompt: "slow 60 canceled", duration_s: 1 })).id;
  await api("POST", `v1/jobs/${canceled}/cancel`);
  await ended(api, canceled, "canceled");

  const { page, requests, close } = await open({ url: `${GATEWAY}/#/history`, key: KEY });
  const rows = page.locator(".queue-row:visible");
  await words(page, "The newest 20 are loaded.");
  await page.getByRole("button", { name: "Load more" }).click();
  await words(page, "24 in all.");
  assert.equal(await page.getByText("of another tenant").count(), 0);
  requests.length = 0;
  await page.getByLabel(english["history.words"]).fill("number 12");
  assert.equal(await rows.count(), 1);
  assert.equal(requests.length, 0, "words are sought in what is loaded");
  await page.getByLabel(english["history.words"]).fill("");

  await page.locator("a.chip", { hasText: "album=blue" }).first().click();
  await words(page, "3 in all.");
  await page.getByLabel("State").selectOption("canceled");
  await words(page, english["history.none"]);
  assert.match(page.url(), /label=album%3Dblue&status=canceled$/);
  await page.goBack();
  await words(page, "3 in all.");
  await page.goto(`${GATEWAY}/#/history?status=canceled`);
  await words(page, "1 in all.");
  await page.getByLabel("State").selectOption("");
  await words(page, "The newest 20 are loaded.");
  await page.getByLabel("To", { exact: true }).fill("2020-01-01");
  await page.getByLabel("To", { exact: true }).blur();
  await words(page, english["history.none"]);
  await page.goto(`${GATEWAY}/#/history?label=album%3Dblue`);
  await words(page, "3 in all.");

  await page.getByRole("button", { name: "Erase: number 10" }).click();
  await page.getByRole("button", { name: "Keep it" }).click();
  await page.getByRole("button", { name: "Erase: number 10" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Erase" }).click();
  await words(page, "2 in all.");
  const headers = { Authorization: `Bearer ${KEY}` };
  assert.equal((await fetch(`${GATEWAY}/v1/jobs/${ids[10]}`, { headers })).status, 404);
  await page.getByRole("button", { name: /^Replay: number 20/ }).click();
  await page.waitForURL(/#\/song\//);
  const again = await ended(api, page.url().split("#/song/")[1]);
  assert.deepEqual([again.spec.seed, again.labels, again.id === ids[20]], [7, { album: "blue" }, false]);
  await close();
}

/** Two variations at the same instant; a part dragged, to repaint it; past the end, to continue; before and after side by side. */
export async function parts({ GATEWAY, KEY }) {
  const api = call(GATEWAY, KEY);
  const { id } = await api("POST", "v1/jobs", { prompt: "a sine", duration_s: 30, variations: 2 });
  await ended(api, id);
  const { page, close } = await open({ url: `${GATEWAY}/#/song/${id}`, key: KEY });
  await drawn(page);
  const playing = () => page.evaluate(() => [...document.querySelectorAll("audio")].map((each) => [each.paused, each.currentTime]));
  const compare = page.getByRole("group", { name: "Compare" });
  await page.getByRole("slider").first().click({ position: { x: 100, y: 20 } });
  await compare.getByRole("button", { name: "Variation 1" }).click();
  await page.waitForFunction(() => !document.querySelector("audio").paused);
  await compare.getByRole("button", { name: "Variation 2" }).click();
  await page.waitForFunction(() => document.querySelectorAll("audio")[0].paused && !document.querySelectorAll("audio")[1].paused);
  const [[, first], [, second]] = await playing();
  assert.ok(first > 3 && Math.abs(second - first) < 0.5, `${first} s, then ${second} s`);
  assert.equal(await compare.getByRole("button", { name: "Variation 2" }).getAttribute("aria-pressed"), "true");
  await page.getByRole("button", { name: "Pause Variation 2" }).click();

  const place = await page.getByRole("slider").first().boundingBox();
  const drag = async (from, to) => {
    const [y, x] = [place.y + 20, (share) => place.x + place.width * share];
    await page.mouse.move(x(from), y);
    await page.mouse.down();
    await page.mouse.move(x((from + to) / 2), y);
    await page.mouse.move(x(to), y);
    await page.mouse.up();
  };
  await drag(0.5, 0.25);
  const start = page.getByLabel("Start in Variation 1, seconds");
  const end = page.getByLabel("End in Variation 1, seconds");
  const near = async (field, seconds) => assert.ok(Math.abs(Number(await field.inputValue()) - seconds) < 0.2, await field.inputValue());
  await near(start, 7.5);
  await near(end, 15);
  await drag(0.9, 1.2);
  await near(end, 36);
  await words(page, "The song becomes 0:36 long; what is there is kept.");
  await page.keyboard.press("Escape");
  assert.ok(await start.isHidden());
  await page.getByRole("button", { name: "Change a part" }).first().click();
  await start.fill("2");
  await end.fill("1");
  await words(page, "The end must be behind the start");
  await end.fill("4");
  await page.getByRole("button", { name: "Repaint this part" }).click();
  assert.ok(await page.getByRole("radio", { name: "Repaint" }).isChecked());
  await page.getByRole("button", { name: "Generate" }).click();
  await page.waitForURL(new RegExp(`#/song/(?!${id})`));
  const repainted = await ended(api, page.url().split("#/song/")[1]);
  const { task, source_audio, repaint_start_s, repaint_end_s } = repainted.spec;
  assert.deepEqual([task, source_audio, repaint_start_s, repaint_end_s], ["repaint", `${id}/0`, 2, 4]);
  await compare.getByRole("button", { name: "Source" }).waitFor();

  await page.getByRole("button", { name: "Continue the song" }).first().click();
  await page.locator(".region-form:visible").getByRole("button", { name: "Continue the song" }).click();
  assert.equal(await page.getByLabel("From second").inputValue(), "30");
  assert.equal(await page.getByLabel("To second").inputValue(), "60");
  await close();
}

/** A link that plays without a key, below a path too, until it is revoked. */
export async function shared({ GATEWAY, KEY }) {
  const api = call(GATEWAY, KEY);
  const { id } = await api("POST", "v1/jobs", { prompt: "a sine", duration_s: 2, variations: 2 });
  await ended(api, id);
  const proxy = await below(GATEWAY);
  const { page, close } = await open({ url: `${proxy.url}#/song/${id}`, key: KEY });
  await page.getByRole("button", { name: "Share" }).nth(1).click();
  await words(page, english["share.tags"]);
  await page.getByRole("button", { name: "Make a link" }).click();
  const link = await page.getByRole("textbox", { name: "Link" }).inputValue();
  assert.ok(link.startsWith(proxy.url) && link.endsWith("&index=1") && !link.includes(KEY), link);
  const heard = await fetch(link);
  assert.equal(heard.status, 200);
  assert.ok((await heard.arrayBuffer()).byteLength > 1_000);
  await page.keyboard.press("Escape");
  assert.equal(await page.getByRole("dialog").count(), 0);
  await page.getByRole("button", { name: "Share" }).nth(1).click();
  assert.equal(await page.getByRole("textbox", { name: "Link" }).inputValue(), link);
  await page.getByRole("button", { name: "Revoke the link" }).click();
  await page.getByRole("button", { name: "Make a link" }).waitFor();
  assert.equal((await fetch(link)).status, 401);
  await close();
  proxy.close();
}

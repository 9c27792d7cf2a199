// What a person does in the studio: `node journeys.mjs NAME`, with CHROMIUM, GATEWAY, KEY and OUT in the environment.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";

import english from "../../api/studio/text_en.js";
import japanese from "../../api/studio/text_ja.js";
import { below, call, drawn, generate, open, playable, tone, words } from "./harness.mjs";
import { history, parts, shared } from "./history.mjs";
import { operator } from "./operator.mjs";
import { queue } from "./queue.mjs";

const { GATEWAY = "", KEY = "", OUT = ".", WORKER = "", OTHER_KEY = "" } = process.env;
const FIRST_LOAD_BYTES = 60_000;
const asWav = (name, seconds) => ({ name, mimeType: "audio/wav", buffer: tone(seconds) });

/** Without keys, the bundled model. */
async function song() {
  const { page, close } = await open({ url: `${GATEWAY}/` });
  const loaded = await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .map((each) => ({ name: each.name, bytes: each.transferSize })));
  const bytes = loaded.reduce((sum, each) => sum + each.bytes, 0);
  console.log(`first load: ${loaded.length} requests, ${bytes} bytes`);
  assert.ok(bytes > 5_000 && bytes < FIRST_LOAD_BYTES, JSON.stringify(loaded));

  await page.getByRole("button", { name: "[Verse]" }).click();
  await page.keyboard.type("La la");
  await page.getByRole("button", { name: "[Chorus]" }).click();
  assert.equal(await page.getByLabel("Lyrics").inputValue(), "[Verse]\nLa la\n[Chorus]\n");
  await generate(page, { prompt: "happy music box, fast", seconds: 4, Variations: "2" });
  await drawn(page);
  assert.equal(await page.locator("article.player").count(), 2);
  const { rms, seconds } = await playable(page);
  assert.ok(rms > 0.003, `silent: ${rms}`);
  assert.ok(Math.abs(seconds - 4) < 0.5, `${seconds} s`);

  const slider = page.getByRole("slider", { name: "Position in Variation 1" });
  await page.getByRole("button", { name: "Pause Variation 1" }).click();
  await slider.focus();
  await page.keyboard.press("Home");
  await page.waitForFunction(() => document.querySelector("audio").currentTime === 0);
  await page.keyboard.press("End");
  await page.waitForFunction(() => document.querySelector("audio").currentTime > 3.5);
  await slider.click({ position: { x: 5, y: 20 } });
  await page.waitForFunction(() => document.querySelector("audio").currentTime < 0.5);
  await page.getByRole("button", { name: "Loop" }).first().click();
  assert.ok(await page.evaluate(() => document.querySelector("audio").loop));

  const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: /Download mp3/ }).first().click()]);
  assert.ok(file.suggestedFilename().endsWith(".mp3"));
  assert.ok(readFileSync(await file.path()).length > 10_000);

  await page.getByRole("button", { name: "Share" }).first().click();
  await words(page, english["share.open"]);
  assert.equal(await page.getByText(english["share.what"]).count(), 0, "no link is promised where there is none");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Again with these settings" }).click();
  assert.equal(await page.getByLabel("Prompt").inputValue(), "happy music box, fast");
  assert.equal(await page.getByLabel("Variations").inputValue(), "2");
  await page.goBack();
  await drawn(page);
  await page.getByLabel("File format").selectOption("flac");
  await page.getByRole("button", { name: "Again in another format:" }).click();
  const draft = JSON.parse(await page.evaluate(() => sessionStorage.getItem("serinette.draft")));
  assert.equal(draft.format, "flac");
  assert.match(draft.seed, /^\d+$/);
  const before = page.url();
  await page.getByRole("button", { name: english["generate"], exact: true }).click();
  await page.waitForURL((url) => url.href !== before && url.hash.startsWith("#/song/")); // the server takes its numbers
  const { id } = await call(GATEWAY, "")("POST", "v1/jobs", { task: "write", prompt: "a sad harp" });
  await page.goto(`${GATEWAY}/#/history?label=no%3Dsuch`);
  await page.getByRole("link", { name: english["history.clear"] }).click();
  await page.locator(`[data-id="${id}"]`).getByText(english["task.write"]).waitFor();
  await page.getByRole("link", { name: "a sad harp" }).click();
  await page.getByRole("button", { name: english["song_of_it"] }).waitFor();
  await close();
}

/** The bundled model covers a file that was dropped, after it refused another. */
async function cover() {
  const { page, close } = await open({ url: `${GATEWAY}/` });
  await page.getByText("Work on a recording").click();
  await page.getByText("Cover", { exact: true }).click();
  await page.locator("#source_audio").setInputFiles({ name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no audio") });
  await words(page, english["failure.invalid_audio"]);
  const bytes = [...tone(3)];
  const data = await page.evaluateHandle((content) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(content)], "tone.wav", { type: "audio/wav" }));
    return transfer;
  }, bytes);
  await page.locator(".drop:visible").dispatchEvent("drop", { dataTransfer: data });
  await words(page, "tone.wav (0:03)");
  await generate(page, { prompt: "calm music box", seconds: null });
  await drawn(page);
  const { rms, seconds } = await playable(page);
  assert.ok(rms > 0.003 && Math.abs(seconds - 3) < 0.3, `${rms}, ${seconds} s`);
  await page.getByRole("button", { name: "Use as source" }).click();
  await words(page, "calm music box (1)");
  assert.ok(await page.getByRole("radio", { name: "Cover" }).isChecked());
  await close();
}

/** A page that is loaded anew, and one that loses its gateway, go on where they were. */
async function resumed() {
  const proxy = await below(GATEWAY);
  const { page, requests, close } = await open({ url: proxy.url, key: KEY });
  await generate(page, { prompt: "slow 8" });
  await words(page, /step [1-8] of 8/);
  requests.length = 0;
  await page.reload();
  await words(page, /step \d of 8/);
  const again = requests.find((request) => request.url().endsWith("/events"));
  assert.match((await again.allHeaders())["last-event-id"] ?? "", /^\d+-\d+$/);
  proxy.cut();
  await words(page, english.reconnecting);
  proxy.mend();
  await page.getByText(english.reconnecting).waitFor({ state: "hidden" });
  await drawn(page);
  await close();
  proxy.close();
}

/** The worker is killed in the middle of the song: the page says so, and the song comes all the same. */
async function killed() {
  const { page, close } = await open({ url: `${GATEWAY}/`, key: KEY });
  await generate(page, { prompt: "slow 3" });
  await words(page, /step [1-8] of 8/);
  process.kill(-Number(WORKER), "SIGKILL");
  await words(page, english.attempt_failed);
  writeFileSync(`${OUT}/killed`, ""); // whoever drives this starts another
  await drawn(page);
  assert.ok((await playable(page)).rms > 0.1);
  await close();
}

/** Canceled here, and by another. */
async function canceled() {
  const { page, close } = await open({ url: `${GATEWAY}/`, key: KEY });
  await generate(page, { prompt: "slow 16" });
  await words(page, /step \d of 8/);
  await page.getByRole("button", { name: "Cancel" }).click();
  await words(page, english["failure.canceled_here"]);
  await page.getByRole("button", { name: "Again with these settings" }).click();
  assert.equal(await page.getByLabel("Prompt").inputValue(), "slow 16");
  const id = await generate(page, { prompt: "slow 16" });
  await words(page, /step \d of 8/);
  await call(GATEWAY, KEY)("POST", `v1/jobs/${id}/cancel`);
  await words(page, english["failure.canceled"]);
  await close();
}

/** Below a path, with keys and the policy: what is refused is asked for, and the key is in no address. */
async function closed() {
  const proxy = await below(GATEWAY);
  const { page, requests, faults, close } = await open({ url: proxy.url });
  await page.getByLabel(english["key.needed"]).fill("srn_wrong");
  await page.getByRole("button", { name: "Use key" }).click();
  await page.getByLabel(english["key.wrong"]).fill(KEY);
  await page.getByRole("button", { name: "Use key" }).click();
  await page.getByRole("button", { name: "Forget key" }).waitFor();
  await generate(page, { prompt: "a sine", seconds: 3 });
  await drawn(page);
  assert.ok((await playable(page)).rms > 0.1);
  assert.equal(requests.filter((request) => request.url().includes(KEY)).length, 0);
  assert.ok(requests.every((request) => request.url().startsWith(proxy.url)), "all below the path");
  assert.deepEqual(faults, []);
  // The policy is in force: what it forbids is noticed.
  await page.evaluate(() => document.body.append(Object.assign(document.createElement("script"), { textContent: "1" })));
  await page.waitForTimeout(200);
  assert.equal(faults.splice(0).length, 1);
  await page.getByRole("button", { name: "Forget key" }).click();
  await page.getByLabel(english["key.needed"]).waitFor();
  await close();
  proxy.close();
}

/** Bad days: what happened, and a next step; nothing that was typed is lost. */
async function failures() {
  const proxy = await below(GATEWAY);
  const { page, close } = await open({ url: proxy.url, key: KEY });
  await page.getByLabel("Length (s)").fill("9000");
  await words(page, "This model makes at most 600 s.");
  await page.getByRole("button", { name: "Generate" }).click();
  await words(page, /duration_s: Input should be less than or equal to 600/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "duration_s");
  await page.getByLabel("Prompt").fill("oom");
  await page.getByLabel("Length (s)").fill("3");
  proxy.cut();
  await page.getByRole("button", { name: "Generate" }).click();
  await words(page, english["failure.gateway_gone"]);
  await page.getByRole("link", { name: "Queue" }).click(); // a view whose file has not come yet
  await page.getByRole("button", { name: english.try_again }).waitFor();
  proxy.mend();
  await page.getByRole("button", { name: english.try_again }).click();
  await words(page, english["queue.empty"]);
  await page.goBack();
  assert.equal(await page.getByLabel("Prompt").inputValue(), "oom");
  await page.getByRole("button", { name: "Generate" }).click();
  await words(page, english["failure.out_of_memory"]);
  const id = page.url().split("#/song/")[1];
  await call(GATEWAY, KEY)("DELETE", `v1/jobs/${id}`);
  await page.reload();
  await words(page, english["failure.not_found"]);
  await page.getByRole("button", { name: "Again with these settings" }).click();
  assert.equal(await page.getByLabel("Prompt").inputValue(), "oom");
  await page.getByText("Model and sampling").click();
  await page.getByLabel("Model", { exact: true }).fill("elsewhere");
  await page.getByRole("button", { name: "Generate" }).click();
  await words(page, english["no_worker.song"]);
  await page.getByRole("link", { name: "Create" }).first().click();
  await page.getByRole("button", { name: "Generate" }).click(); // the tenant may have one job that waits
  await words(page, english["failure.too_many_queued"]);
  await page.goto(`${proxy.url}#/queue`);
  await words(page, english["pool.none"]);
  await close();
  proxy.close();

  const spent = await open({ url: `${GATEWAY}/`, key: OTHER_KEY });
  await spent.page.getByLabel("Prompt").fill("beyond the quota");
  await spent.page.getByRole("button", { name: "Generate" }).click();
  await words(spent.page, english["failure.gpu_time_spent"]);
  assert.equal(await spent.page.getByLabel("Prompt").inputValue(), "beyond the quota");
  await spent.close();
}

/** axe finds nothing serious, in either color scheme and language; and it would find something. */
async function accessible() {
  // What is waited for the server says in English itself.
  assert.deepEqual(Object.keys(japanese).filter((key) => !key.startsWith("waits.")).sort(), Object.keys(english).sort());
  const api = call(GATEWAY, KEY);
  const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
  for (const [dark, locale, width] of [[false, "en-US", 1280], [true, "ja-JP", 390], [false, "ja-JP", 820]]) {
    const { page, close } = await open({ url: `${GATEWAY}/`, key: KEY, dark, locale, width });
    const text = locale === "ja-JP" ? japanese : english;
    const grave = async () => {
      if (width === 820) return []; // the same elements as on the others: looked at for their widths alone
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => window.axe.run());
      return violations.filter((each) => ["serious", "critical"].includes(each.impact)).map((each) => `${each.id} ${each.nodes[0].html}`);
    };
    const shot = (name) => page.screenshot({ path: `${OUT}/${name}-${width}.png` });
    const fits = async () => assert.deepEqual(await page.evaluate(() => [document.documentElement, ...document.querySelectorAll(".card")]
      .filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.className)), [], "wider than its place");
    await page.evaluate(() => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
    await page.getByText(text["task.cover"], { exact: true }).click();
    await page.locator("#source_audio").setInputFiles(asWav("tone.wav", 1));
    await words(page, "tone.wav (0:01)");
    assert.deepEqual(await grave(), []);
    await fits();
    await shot("create");
    await page.getByText(text["task.text2music"], { exact: true }).click();
    await page.getByLabel(text["field.prompt"]).fill("slow 4");
    await page.getByLabel(text["field.duration_s"]).fill("5");
    await page.getByRole("button", { name: text.generate }).click();
    await words(page, text["stage.denoising"]);
    assert.deepEqual(await grave(), []);
    await shot("live");
    const address = page.url();
    await page.goto(`${GATEWAY}/#/queue`);
    await page.locator(".queue-row progress").first().waitFor();
    const far = await api("POST", "v1/jobs", { prompt: "far", model: "elsewhere" });
    await page.locator(`[data-id="${far.id}"]`).getByText(text === japanese ? japanese["waits.from_zero"] : "which scales from zero").waitFor();
    assert.deepEqual(await grave(), []);
    await fits();
    await shot("queue");
    await api("POST", `v1/jobs/${far.id}/cancel`);
    await page.goto(`${GATEWAY}/#/history`);
    await page.locator("li.card").first().waitFor();
    assert.deepEqual(await grave(), []);
    await fits();
    await shot("history");
    await page.goto(`${GATEWAY}/#/operator`);
    await page.getByRole("row").first().waitFor();
    assert.deepEqual(await grave(), []);
    await fits();
    await shot("operator");
    await page.goto(address);
    await drawn(page);
    assert.deepEqual(await grave(), []);
    await fits();
    await page.getByRole("button", { name: text["region.select"] }).first().click();
    await shot("song");
    await page.getByRole("button", { name: text.share }).first().click();
    await page.getByRole("button", { name: text["share.make"] }).waitFor();
    assert.deepEqual(await grave(), []);
    await page.keyboard.press("Escape");
    await page.goto(`${GATEWAY}/#/song/00000000-0000-0000-0000-000000000000`);
    await words(page, text["failure.not_found"]);
    assert.deepEqual(await grave(), []);
    await page.evaluate(() => document.querySelector("main").append(document.createElement("button")));
    if (dark) assert.match((await grave()).join(), /button-name/);
    await close();
  }
}

const journeys = { song, cover, resumed, killed, canceled, closed, failures, accessible, queue, history, parts, shared, operator };
await journeys[process.argv[2]]({ GATEWAY, KEY, OTHER_KEY });

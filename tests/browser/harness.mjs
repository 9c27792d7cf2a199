// Chromium, a proxy that puts the gateway below a path, and what a page did wrong.

import assert from "node:assert/strict";
import http from "node:http";
import { chromium } from "playwright-core";

/** Patience with a machine that does other things too; nothing waits for it that comes sooner. */
export const PATIENCE_MS = Number(process.env.PATIENCE_MS ?? 60_000);

/**
 * A page of its own. `faults` are uncaught errors and violations of the policy; `requests` all that it asked for.
 *
 * @param {{url: string, key?: string, dark?: boolean, width?: number, locale?: string}} how
 */
export async function open({ url, key, dark = false, width = 1280, locale = "en-US" }) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"],
  });
  const context = await browser.newContext({
    viewport: { width, height: 900 }, locale, colorScheme: dark ? "dark" : "light", acceptDownloads: true,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const faults = [];
  const requests = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    if (/Content Security Policy/i.test(message.text())) faults.push(message.text());
  });
  page.on("request", (request) => requests.push(request));
  if (key) await page.addInitScript((held) => sessionStorage.setItem("serinette.key", held), key);
  await page.goto(url);
  await page.locator("main h1").waitFor(); // the page makes itself once it has loaded
  const close = async () => {
    await browser.close();
    assert.deepEqual(faults, []);
  };
  return { page, context, faults, requests, close };
}

/**
 * The gateway below `/music/`, as a proxy has it that strips the path. `cut` takes it away until `mend`.
 *
 * @param {string} gateway
 */
export async function below(gateway) {
  const to = new URL(gateway);
  let whole = true;
  const server = http.createServer((request, response) => {
    if (!whole || !request.url.startsWith("/music/")) return response.destroy();
    const options = { host: to.hostname, port: to.port, method: request.method,
      headers: { ...request.headers, "x-forwarded-prefix": "/music" },
      path: request.url.slice("/music".length) };
    const onward = http.request(options, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
    response.on("close", () => onward.destroy());
    request.pipe(onward);
  });
  await new Promise((resolve) => { server.listen(0, "127.0.0.1", resolve); });
  return {
    url: `http://127.0.0.1:${server.address().port}/music/`,
    cut: () => { whole = false; server.closeAllConnections(); },
    mend: () => { whole = true; },
    close: () => { server.closeAllConnections(); server.close(); },
  };
}

/** Fills in the form and generates; the job's id. */
export async function generate(page, { prompt, seconds = 5, ...rest }) {
  await page.getByLabel("Prompt").fill(prompt);
  if (seconds) await page.getByLabel("Length (s)").fill(String(seconds));
  for (const [label, value] of Object.entries(rest)) await page.getByLabel(label, { exact: true }).fill(value);
  await page.getByRole("button", { name: "Generate" }).click();
  await page.waitForURL(/#\/song\//);
  return page.url().split("#/song/")[1];
}

/** Waits until the song can be played: its waveform is drawn. */
export const drawn = (page) => page.locator("canvas[data-drawn]").first().waitFor();

/** The root mean square of what the page's first `<audio>` would play, decoded in the page, and its length. */
export async function playable(page) {
  await page.getByRole("button", { name: /^Play/ }).first().click();
  await page.waitForFunction(() => document.querySelector("audio").currentTime > 0.2);
  return page.evaluate(async () => {
    const bytes = await (await fetch(document.querySelector("audio").currentSrc)).arrayBuffer();
    const decoded = await new OfflineAudioContext(1, 1, 48_000).decodeAudioData(bytes);
    const samples = decoded.getChannelData(0);
    return { rms: Math.sqrt(samples.reduce((sum, each) => sum + each * each, 0) / samples.length), seconds: decoded.duration };
  });
}

/** A WAV file of a 220 Hz tone. */
export function tone(seconds) {
  const rate = 16_000, frames = Math.round(seconds * rate), wav = Buffer.alloc(44 + frames * 2);
  wav.write("RIFF", 0); wav.writeUInt32LE(36 + frames * 2, 4); wav.write("WAVEfmt ", 8);
  wav.writeUInt32LE(16, 16); wav.writeUInt16LE(1, 20); wav.writeUInt16LE(1, 22); wav.writeUInt32LE(rate, 24);
  wav.writeUInt32LE(rate * 2, 28); wav.writeUInt16LE(2, 32); wav.writeUInt16LE(16, 34);
  wav.write("data", 36); wav.writeUInt32LE(frames * 2, 40);
  for (let i = 0; i < frames; i += 1) wav.writeInt16LE(Math.round(9000 * Math.sin((i * 220 * 2 * Math.PI) / rate)), 44 + i * 2);
  return wav;
}

/** Waits until the page says so. */
export const words = (page, text) => page.getByText(text).first().waitFor();

/** The API beside the page, as another program of the same tenant calls it. */
export const call = (gateway, key) => async (method, path, json) => {
  const response = await fetch(`${gateway}/${path}`, {
    method, body: json ? JSON.stringify(json) : undefined,
    headers: { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...(json ? { "Content-Type": "application/json" } : {}) },
  });
  assert.ok(response.ok, `${method} ${path}: ${response.status}`);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
};

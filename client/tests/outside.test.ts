// A page that the user names with --static: it may do what our own may not, and what is said to it is what published pages know.

import { cpSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { wavHeader } from "../src/wav";
import { CACHE, CLIENT, launchChromium, openPage } from "./harness";
import { GREEDY, misheard, REST_MS, RealServer, spokenWords, WORDS } from "./server";

let browser: Browser;
let server: RealServer;

beforeAll(async () => {
  const folder = join(CACHE, "outside");
  mkdirSync(folder, { recursive: true });
  cpSync(join(CLIENT, "tests/outside/index.html"), join(folder, "index.html"));
  for (const file of ["recorder.min.js", "encoderWorker.min.js", "decoderWorker.min.js", "decoderWorker.min.wasm"]) {
    cpSync(join(CLIENT, "node_modules/opus-recorder/dist", file), join(folder, file));
  }
  [browser, server] = await Promise.all([launchChromium(), RealServer.start(0, ["--static", folder])]);
});
afterAll(async () => {
  await browser.close();
  await server.stop();
});

/** What the page decoded, at 24 kHz on both channels. */
function asWav(decoded: Buffer): Buffer {
  const samples = new Int16Array(new Uint8Array(decoded).buffer);
  const pairs = new Int16Array(2 * samples.length);
  for (const [index, sample] of samples.entries()) pairs.fill(sample, 2 * index, 2 * index + 2);
  return Buffer.concat([wavHeader(samples.length, 24_000), Buffer.from(pairs.buffer)]);
}

test("a page with the published pages' decoder shows the digits, and they are heard", async () => {
  const { page, complaints } = await openPage(browser, server.url + GREEDY);
  expect(await page.locator("#connect").evaluate((button) => getComputedStyle(button).width)).toBe("123px");
  expect(await page.locator("#words").evaluate((words) => getComputedStyle(words).color)).toBe("rgb(1, 2, 3)");
  await page.click("#connect");
  const shown = async () => ((await page.textContent("#words")) ?? "").split(/\s+/).filter(Boolean);
  await expect.poll(async () => (await shown()).length, { timeout: 60_000 }).toBeGreaterThanOrEqual(WORDS.length - 1);
  await page.waitForTimeout(REST_MS);
  const words = await shown();
  expect(misheard(words), words.join(" ")).toBeLessThanOrEqual(1);
  const decoded = await page.evaluate<string>("window.decoded()");
  expect(spokenWords(asWav(Buffer.from(decoded, "base64"))).map(({ word }) => word)).toEqual(words);
  // One handshake, one description before it, no figures: these pages take every metadata for the description.
  expect(await page.evaluate("window.kinds")).toMatchObject({ 0: 1, 4: 1 });
  expect(complaints).toEqual([]);
});

// The way of the sound, with a server that gives back what it gets: in Chromium, by either codec, at any device rate.

import type { Browser } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { deviceRate, echo, FakeServer, launchChromium, NO_WEBCODECS, openPage, save, voices } from "./harness";

let browser: Browser;
let server: FakeServer;

beforeAll(async () => {
  browser = await launchChromium();
  server = await FakeServer.start();
});

afterAll(async () => {
  await browser.close();
  await server.stop();
});

afterEach(() => {
  server.onConnection = () => undefined;
});

/** By how many samples b is later than a, where they are most alike, and how alike they are there. */
function shift(a: Float32Array, b: Float32Array, most: number): { lag: number; likeness: number } {
  let best = { lag: 0, likeness: -1 };
  const at = (lag: number) => {
    let [product, squaresA, squaresB] = [0, 0, 0];
    for (let index = 0; index < a.length && index + lag < b.length; index++) {
      const [x, y] = [a[index] as number, b[index + lag] as number];
      product += x * y;
      squaresA += x * x;
      squaresB += y * y;
    }
    const likeness = product / Math.sqrt(squaresA * squaresB + 1e-12);
    if (likeness > best.likeness) best = { lag, likeness };
  };
  for (let lag = 0; lag < most; lag += 4) at(lag);
  const coarse = best.lag;
  for (let lag = Math.max(0, coarse - 4); lag <= coarse + 4; lag++) at(lag);
  return best;
}

/** The same for each loud piece, since the page shortens its queue between words; the middle ones of all pieces. */
function shifts(user: Float32Array, moshi: Float32Array, rate: number): { lag: number; likeness: number } {
  const pieces: { lag: number; likeness: number }[] = [];
  const length = rate * 0.2;
  for (let begin = rate; begin + length + rate / 2 < user.length; begin += length) {
    const piece = user.subarray(begin, begin + length);
    if (piece.reduce((sum, sample) => sum + sample * sample, 0) < 0.001 * length) continue;
    pieces.push(shift(piece, moshi.subarray(begin, begin + length + rate / 2), rate / 2));
  }
  expect(pieces.length).toBeGreaterThan(4);
  const middle = (values: number[]) => values.sort((x, y) => x - y)[values.length >> 1] as number;
  return { lag: middle(pieces.map(({ lag }) => lag)), likeness: middle(pieces.map(({ likeness }) => likeness)) };
}

test.each([
  ["WebCodecs", 48_000, ""],
  ["WebCodecs", 44_100, deviceRate(44_100)],
  ["WebCodecs", 96_000, deviceRate(96_000)],
  ["WebAssembly", 48_000, NO_WEBCODECS + deviceRate(48_000)],
  ["WebAssembly", 16_000, NO_WEBCODECS + deviceRate(16_000)],
])("by %s at %i Hz what comes back is what went out, whole and soon", async (codec, rate, script) => {
  let heard: ReturnType<typeof echo> | undefined;
  server.onConnection = (socket) => {
    heard = echo(socket);
  };
  const { page, context, complaints } = await openPage(browser, server.url, {
    script: script || deviceRate(48_000),
  });
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  await page.waitForTimeout(8000);
  await page.click("#open-settings");
  await page.click("summary");
  await page.waitForTimeout(700);
  const details = await page.textContent("#details");
  expect(details).toContain(`${rate} Hz, Opus by ${codec}`);
  await page.click("#settings-cancel");
  await page.click("#talk");
  const { user, moshi, rate: saved } = voices(await save(page, "#save-sound"));
  expect(saved).toBe(24_000);
  expect(user.length / saved).toBeGreaterThan(8);
  // Everything that was recorded went out, but for what was still in the codec.
  expect(Math.abs((heard?.samples ?? 0) / 48_000 - user.length / saved)).toBeLessThan(0.3);
  expect(heard?.heads).toBe(1);
  const { lag, likeness } = shifts(user, moshi, saved);
  console.log(
    `${codec} ${rate} Hz: ${((1000 * lag) / saved).toFixed(0)} ms, likeness ${likeness.toFixed(3)}; ${details}`,
  );
  expect(lag / saved).toBeLessThan(0.5);
  expect(likeness).toBeGreaterThan(0.9);
  expect(complaints).toEqual([]);
  await context.close();
});

// Conversations with a language model through the page, in Chromium, whose microphone plays the demo's first two digits.

import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterEach, expect, onTestFinished, test } from "vitest";
import { CACHE, launchBareChromium, openPage, python, REPOSITORY, save, voices } from "./harness";
import { RealServer, spokenWords } from "./server";

const NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
const LOUD = 0.02;
/** Seconds from the user's voice to the end of the other one, with the way to the server and back, and the page's queue. */
const FADED = 0.5;
const PATIENCE = { timeout: 30_000 };

/** A language model that answers with known words, one each 100 ms, or as a test says. */
class Llm {
  words = ["two"];
  odd: ((response: ServerResponse) => Promise<void>)[] = []; // answers before those
  readonly asked: { role: string; content: string }[][] = [];
  cancelled = 0;
  #server: Server | null = null;
  port = 0;

  async start(): Promise<void> {
    const server = createServer(async (request, response) => {
      if (request.url === "/v1/models") {
        response.setHeader("content-type", "application/json").end('{"data":[{"id":"parrot"}]}');
        return;
      }
      let body = "";
      for await (const part of request) body += part;
      this.asked.push(JSON.parse(body).messages);
      const odd = this.odd.shift();
      await (odd ? odd(response) : this.#answer(response));
    });
    await new Promise<void>((resolve) => server.listen(this.port, "127.0.0.1", resolve));
    this.port = (server.address() as AddressInfo).port;
    this.#server = server;
  }

  async #answer(response: ServerResponse): Promise<void> {
    response.setHeader("content-type", "text/event-stream");
    for (const word of this.words) {
      if (response.destroyed) {
        this.cancelled++;
        return;
      }
      response.write(piece(word));
      await after(100);
    }
    response.end("data: [DONE]\n\n");
  }

  async stop(): Promise<void> {
    this.#server?.closeAllConnections();
    await new Promise((resolve) => this.#server?.close(resolve));
  }
}

const after = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const piece = (word: string) => `data: ${JSON.stringify({ choices: [{ delta: { content: `${word} ` } }] })}\n\n`;

/** Says "four one" after so many seconds each time, counted from the end of the one before. */
function speech(name: string, ...pauses: number[]): string {
  const file = join(CACHE, `${name}.wav`);
  python(
    "import sys, numpy, soundfile\n" +
      "sound, rate = soundfile.read(sys.argv[1])\n" +
      "said = sound[: int(2.1 * rate)]\n" +
      "parts = [part for pause in sys.argv[3:] for part in (numpy.zeros(int(float(pause) * rate)), said)]\n" +
      "soundfile.write(sys.argv[2], numpy.concatenate([*parts, numpy.zeros(20 * rate)]), rate, subtype='PCM_16')\n",
    join(REPOSITORY, "assets/demo/digits.flac"),
    file,
    ...pauses.map(String),
  );
  return file;
}

let browser: Browser | undefined;
afterEach(() => browser?.close());

/** Begins a conversation with a language model, in which the user says what is in a file. */
async function talk(file: string, llm: Llm, prepare = async (_: Page): Promise<void> => undefined) {
  await llm.start();
  onTestFinished(() => llm.stop());
  const server = await RealServer.start(0, ["--llm", `http://127.0.0.1:${llm.port}`, "--engine", "native"]);
  onTestFinished(() => server.stop());
  browser = await launchBareChromium(
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    `--use-file-for-fake-audio-capture=${file}%noloop`,
  );
  const { page, complaints } = await openPage(browser, server.url);
  await prepare(page);
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  return { page, complaints };
}

async function lines(page: Page): Promise<string[]> {
  return page
    .locator("#transcript p")
    .evaluateAll((all) => all.map((line) => line.lastElementChild?.textContent ?? ""));
}

test("what is said is shown and answered, in a role and a voice of the user's choice", async () => {
  const llm = new Llm();
  llm.words = ["two", "seven"];
  const { page, complaints } = await talk(speech("once", 1), llm, async (page) => {
    await page.click("#open-settings");
    await page.getByLabel("Role").fill("Be brief.");
    expect(await page.isVisible("#fields")).toBe(false); // those of sampling change nothing
    await page.selectOption("#voice_prompt", "brisk");
    await page.click("#settings-save");
  });
  await expect.poll(() => lines(page), PATIENCE).toEqual(["four one", "two seven"]);
  await page.waitForTimeout(1500);
  expect(llm.asked).toEqual([
    [
      { role: "system", content: "Be brief." },
      { role: "user", content: "four one" },
    ],
  ]);
  expect(await page.textContent("#trouble")).toBe("");
  await page.click("#talk");
  expect((await save(page, "#save-text")).toString()).toMatch(/^0:0\d {2}— you: four one —\n0:0\d {2}two seven\n$/);
  expect(spokenWords(await save(page, "#save-sound")).length).toBeGreaterThan(0);
  expect(complaints).toEqual([]);
});

test("who speaks is let speak: the voice stops, and only what was heard is kept", async () => {
  const llm = new Llm();
  llm.words = Array.from({ length: 9 }, () => NUMBERS).flat();
  const { page } = await talk(speech("twice", 1, 3), llm);
  await expect.poll(() => llm.asked.length, PATIENCE).toBe(1);
  llm.words = ["two"];
  await page.waitForSelector("#transcript span:text-is('two')", PATIENCE);
  await page.click("#talk");
  const kept = (llm.asked[1]?.[1]?.content ?? "").split(" ");
  expect(kept).toEqual(NUMBERS.slice(0, kept.length));
  expect(kept.length).toBeGreaterThan(1);
  expect(llm.cancelled).toBe(1);
  expect(await lines(page)).toEqual(["four one", kept.join(" "), "four one", "two"]);

  // By the page's recording, of what was heard and what was played, on one clock.
  const { user, moshi, rate } = voices(await save(page, "#save-sound"));
  const loud = (sound: Float32Array, from: number, to = sound.length) =>
    sound.subarray(from, to).findIndex((sample) => Math.abs(sample) > LOUD) + from;
  const spoke = loud(moshi, 0);
  const onset = loud(user, spoke);
  const end = onset + rate;
  let last = end;
  while (Math.abs(moshi[last] as number) <= LOUD) last--;
  console.log(`the voice stopped ${((last - onset) / rate).toFixed(3)} s after the user began`);
  expect(spoke).toBeLessThan(onset);
  expect((last - onset) / rate).toBeLessThan(FADED);
});

test("a language model that is gone is told, and asked again when it is back", async () => {
  const llm = new Llm();
  const { page, complaints } = await talk(speech("again", 2, 4), llm, () => llm.stop());
  await page.waitForSelector("#trouble.notice:has-text('Nothing answers at http://127.0.0.1')", PATIENCE);
  await llm.start();
  await page.waitForSelector("#transcript span:text-is('two')", PATIENCE);
  expect(await lines(page)).toEqual(["four one", "four one", "two"]);
  expect(complaints).toEqual([]);
});

test("a language model that breaks off, sends nonsense, or is slow", async () => {
  const llm = new Llm();
  llm.odd = [
    async (response) => {
      response.setHeader("content-type", "text/event-stream");
      response.write(piece("seven"));
      await after(300);
      response.destroy();
    },
    async (response) => void response.setHeader("content-type", "text/html").end("<p>Welcome!</p>"),
    async (response) => {
      response.setHeader("content-type", "text/event-stream");
      for (const word of ["eight", "nine"]) {
        await after(1200);
        response.write(piece(word));
      }
      response.end("data: [DONE]\n\n");
    },
  ];
  const { page, complaints } = await talk(speech("odd", 1, 3, 3), llm);
  await page.waitForSelector("#trouble.notice:has-text('broke off')", PATIENCE);
  await page.waitForSelector("#trouble.notice:has-text('is not a chat completion')", PATIENCE);
  await page.waitForSelector("#transcript span:text-is('eight nine')", PATIENCE);
  expect(await lines(page)).toEqual(["four one", "seven", "four one", "four one", "eight nine"]);
  expect(llm.asked.at(-1)?.map(({ content }) => content)).toEqual(["four one", "seven", "four one four one"]);
  expect(complaints).toEqual([]);
});

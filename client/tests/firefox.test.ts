// A whole conversation in Firefox, with the real server and the demo model. Its own fake microphone has only a tone to offer,
// so the recording comes in by getUserMedia's place; all after that is Firefox's: Opus, worklet, sound.

import { readFileSync } from "node:fs";
import puppeteer, { type Browser, type Page } from "puppeteer-core";
import { afterEach, beforeEach, expect, test } from "vitest";
import { digitsWav, FIREFOX, startAir } from "./harness";
import { prepare } from "./inside";
import { GREEDY, misheard, NEARLY_ALL, REST_MS, RealServer, spokenWords } from "./server";

let browser: Browser;
let server: RealServer;
let air: Awaited<ReturnType<typeof startAir>>;

// All of it anew for each test and each attempt: a test kills the server, and in one of about 30 conversations after its first
// Firefox with PulseAudio waits for its own sound for ever, and with it the process of all pages of that server.
beforeEach(async () => {
  [server, air] = await Promise.all([RealServer.start(), startAir()]);
  const env = { ...process.env, ...air.env };
  browser = await puppeteer.launch({ browser: "firefox", executablePath: FIREFOX, headless: true, env });
});
afterEach(async () => {
  const patience = setTimeout(() => browser?.process()?.kill("SIGKILL"), 10_000);
  await browser?.close();
  clearTimeout(patience);
  await server?.stop();
  air?.process.kill();
});

async function open(webCodecs: boolean): Promise<{ page: Page; complaints: string[] }> {
  const page = await browser.newPage();
  page.setDefaultTimeout(30_000);
  const complaints: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.evaluateOnNewDocument(prepare, readFileSync(digitsWav()).toString("base64"), webCodecs);
  await page.goto(server.url + GREEDY);
  return { page, complaints };
}

const shown = (page: Page) =>
  page.$$eval("#transcript span", (spans) => spans.map((span) => span.textContent).join(" "));

test.each([
  ["WebCodecs", true],
  ["WebAssembly", false],
] as const)("the page shows the digits, and what it played is those digits (%s)", async (codec, webCodecs) => {
  const { page, complaints } = await open(webCodecs);
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  await page.waitForFunction(NEARLY_ALL);
  await new Promise((resolve) => setTimeout(resolve, REST_MS));
  await page.click("#open-settings");
  await page.click("summary");
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const details = (await page.$eval("#details", (element) => element.textContent)) ?? "";
  console.log(details);
  expect(details).toContain(`Opus by ${codec}`);
  await page.click("#settings-cancel");
  await page.click("#talk");
  await page.waitForSelector("[data-phase=idle]");
  const words = (await shown(page)).split(/\s+/);
  expect(misheard(words), words.join(" ")).toBeLessThanOrEqual(1);
  await page.click("#save-sound");
  await page.waitForFunction("window.saved");
  const spoken = spokenWords(Buffer.from((await page.evaluate("saved")) as string, "base64"));
  console.log(spoken.map(({ word, likeness }) => `${word} ${likeness.toFixed(3)}`).join(", "));
  expect(spoken.map(({ word }) => word)).toEqual(words);
  expect(complaints).toEqual([]);
});

test("the server is killed and started again in mid-conversation, and a second conversation follows", async () => {
  const { page } = await open(true);
  const troubleSays = (words: string) =>
    page.waitForFunction((text) => document.querySelector("#trouble")?.textContent?.includes(text), {}, words);
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  const { port } = server;
  await server.stop("SIGKILL");
  await troubleSays("Connecting again");
  server = await RealServer.start(port);
  await troubleSays("this is a new conversation");
  await page.waitForSelector("#transcript .renewed");
  await page.click("#talk");
  await page.waitForSelector("[data-phase=idle]");
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  await page.waitForSelector("#transcript p span");
});

// Whole conversations with the real server and the demo model, in Chromium, whose microphone plays the demo's recording.

import { execFileSync } from "node:child_process";
import { copyFileSync, cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, expect, onTestFinished, test } from "vitest";
import {
  CLIENT,
  deviceRate,
  launchChromium,
  NO_WEBCODECS,
  openPage,
  PYTHON,
  REPOSITORY,
  save,
  shortWav,
} from "./harness";
import { GREEDY, misheard, NEARLY_ALL, REST_MS, RealServer, spokenWords } from "./server";

/** Until the last word has been shown and its sound has been played. */
async function hearAll(page: Page): Promise<void> {
  await expect.poll(() => page.evaluate(NEARLY_ALL), { timeout: 60_000 }).toBe(true);
  await page.waitForTimeout(REST_MS);
}

let browser: Browser;
let server: RealServer;

beforeAll(async () => {
  [browser, server] = await Promise.all([launchChromium(), RealServer.start()]);
});
afterAll(async () => {
  await browser.close();
  await server.stop();
});

// A conversation that a failed test leaves behind would keep the next one waiting.
afterEach(() => Promise.all(browser.contexts().map((context) => context.close())));

function words(json: Buffer): string[] {
  const entries: { text?: string }[] = JSON.parse(json.toString());
  return entries
    .map(({ text }) => text ?? "")
    .join("")
    .trim()
    .split(/\s+/);
}

test.each([
  ["WebCodecs", deviceRate(48_000)],
  ["WebAssembly", NO_WEBCODECS + deviceRate(44_100)],
])("the page shows the digits, and what it played is those digits (%s)", async (codec, script) => {
  const { page, complaints } = await openPage(browser, server.url + GREEDY, { script });
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  await hearAll(page);
  await page.click("#open-settings");
  await page.click("summary");
  await page.waitForTimeout(700);
  const details = await page.textContent("#details");
  expect(details).toContain(codec);
  console.log(details);
  expect(await page.textContent("#figures")).toBe("");
  expect(await page.textContent("#trouble")).toBe("");
  await page.click("#settings-cancel");
  await page.click("#talk");
  const shown = (await page.locator("#transcript span").allInnerTexts()).join(" ").split(/\s+/);
  expect(misheard(shown), shown.join(" ")).toBeLessThanOrEqual(1);
  expect(words(await save(page, "#save-json"))).toEqual(shown);
  const spoken = spokenWords(await save(page, "#save-sound"));
  console.log(spoken.map(({ word, likeness }) => `${word} ${likeness.toFixed(3)}`).join(", "));
  expect(spoken.map(({ word }) => word)).toEqual(shown);
  expect(complaints).toEqual([]);
});

test("two conversations without reloading, the second beginning as fresh as the first", async () => {
  const { page, complaints } = await openPage(browser, server.url + GREEDY);
  for (const round of [1, 2]) {
    await page.click("#talk");
    await page.waitForSelector("[data-phase=talking]");
    await hearAll(page);
    await page.click("#talk");
    await page.waitForSelector("[data-phase=idle]");
    const said = words(await save(page, "#save-json"));
    expect(misheard(said), `round ${round}: ${said}`).toBeLessThanOrEqual(1);
  }
  expect(complaints).toEqual([]);
});

test("two browsers: the second waits in line, is told so, and gets its turn", async () => {
  const first = await openPage(browser, server.url + GREEDY);
  await first.page.click("#talk");
  await first.page.waitForSelector("[data-phase=talking]");
  const second = await openPage(browser, server.url + GREEDY);
  await second.page.click("#talk");
  await second.page.waitForSelector("#trouble:has-text('you are next in line')");
  await first.page.click("#talk");
  await second.page.waitForSelector("[data-phase=talking]");
  expect(await second.page.textContent("#trouble")).toBe("");
});

test("a restart begins a new conversation on the same connection", async () => {
  const { page } = await openPage(browser, server.url + GREEDY);
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  await page.waitForTimeout(2000);
  await page.keyboard.press("r");
  await page.waitForSelector("#transcript .renewed");
  await page.waitForSelector("[data-phase=talking]");
  await page.waitForSelector("#transcript .renewed ~ p span");
});

test.each(["SIGKILL", "SIGTERM"] as const)(
  "the server is ended by %s and started again in mid-conversation",
  async (signal) => {
    const killed = await RealServer.start(); // the tests after this one, or its next attempt, need theirs
    onTestFinished(() => killed.stop());
    const { page } = await openPage(browser, killed.url + GREEDY);
    await page.click("#talk");
    await page.waitForSelector("[data-phase=talking]");
    await page.waitForTimeout(3000);
    await killed.stop(signal);
    await page.waitForSelector("#trouble:has-text('Connecting again')");
    const restarted = await RealServer.start(killed.port);
    onTestFinished(() => restarted.stop());
    await page.waitForSelector("#trouble:has-text('this is a new conversation')");
    await page.waitForSelector("[data-phase=talking]");
    await page.waitForSelector("#transcript .renewed");
    await page.waitForSelector("#transcript .renewed ~ p span");
  },
);

test("a token: from the printed address, or asked for", async () => {
  const guarded = await RealServer.start(0, ["--token", "s3cret"]);
  onTestFinished(() => guarded.stop());
  const { page } = await openPage(browser, guarded.url);
  await page.click("#talk");
  await page.waitForSelector("#trouble:has-text('The server needs its token')");
  await page.fill("#token-value", "s3cret");
  await page.click("#token button");
  await page.waitForSelector("[data-phase=talking]");
  await page.click("#talk");
  const other = await openPage(browser, `${guarded.url}#worker_auth_id=s3cret`);
  await other.page.click("#talk");
  await other.page.waitForSelector("[data-phase=talking]");
  await other.context.close();
});

/** A server of the demo persona, with two voices that were made of a recording. */
async function startPersona(): Promise<RealServer> {
  const folder = mkdtempSync(join(tmpdir(), "msh-voices-"));
  const env = { ...process.env, XDG_CONFIG_HOME: folder, XDG_CACHE_HOME: folder };
  for (const name of ["Anna", "Ben"]) {
    execFileSync(PYTHON, ["-m", "msh_mlx", "voices", "from", shortWav(), "--name", name], { cwd: REPOSITORY, env });
  }
  const persona = await RealServer.start(0, ["--prompt", "repeat"], env);
  onTestFinished(async () => {
    await persona.stop();
    rmSync(folder, { recursive: true });
  });
  return persona;
}

async function choosePersona(page: Page): Promise<void> {
  await page.click("#open-settings");
  await page.selectOption("#voice_prompt", "Ben");
  await page.getByLabel("Role").fill("Say each digit plus one.");
  await page.click("#settings-save");
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
}

test("a voice and a role: the page offers what the server has, and the model plays it", async () => {
  const persona = await startPersona();
  const { page, complaints } = await openPage(browser, persona.url + GREEDY);
  await choosePersona(page);
  await page.waitForSelector("#trouble.notice:has-text('it reads “say each digit plus one”')");
  // The default role would repeat what is heard, which has no five.
  await page.waitForSelector("#transcript:has-text('five')");
  expect(complaints).toEqual([]);
});

test("two models: the page talks with the one that was chosen, and says who speaks", async () => {
  const folder = mkdtempSync(join(tmpdir(), "msh-models-"));
  const demo = join(REPOSITORY, "assets/demo");
  cpSync(join(demo, "persona"), join(folder, "echo"), { recursive: true });
  copyFileSync(join(demo, "mimi.safetensors"), join(folder, "echo", "mimi-demo.safetensors"));
  const both = await RealServer.start(0, ["--also", join(folder, "echo")]);
  onTestFinished(async () => {
    await both.stop();
    rmSync(folder, { recursive: true });
  });
  const { page, complaints } = await openPage(browser, both.url + GREEDY);
  await page.click("#open-settings");
  await page.selectOption("#model", "echo");
  await page.getByLabel("Role").fill("say each digit plus one");
  await page.click("#settings-save");
  expect(await page.textContent("#persona")).toBe("Model: echo · Role: say each digit plus one");
  await page.click("#talk");
  await page.waitForSelector("[data-speaking=you]");
  await page.waitForSelector("[data-speaking=moshi]");
  // The demo model would repeat what is heard, which has no five.
  await page.waitForSelector("#transcript:has-text('five')");
  await page.waitForSelector("#transcript .you:has-text('You spoke')");
  expect(complaints).toEqual([]);
});

// On request only: every picture is a little different, and those of the README are in the repository.
test.skipIf(!process.env.MSH_PICTURES).each([
  ["wide", {}],
  ["phone", { phone: true, dark: true }],
])("a picture of a conversation (%s)", async (name, options) => {
  const { page } = await openPage(browser, server.url + GREEDY, options);
  await page.click("#talk");
  await page.waitForSelector("[data-phase=talking]");
  await page.waitForSelector("#transcript:has-text('eight nine zero')");
  await page.screenshot({ path: join(CLIENT, `../docs/page-${name}.png`) });
});

test.skipIf(!process.env.MSH_PICTURES)("a picture of a conversation with a persona", async () => {
  const persona = await startPersona();
  const { page } = await openPage(browser, persona.url + GREEDY);
  await choosePersona(page);
  await page.waitForSelector("#transcript:has-text('nine zero one')");
  await page.waitForSelector("#trouble:empty", { state: "attached" });
  await page.screenshot({ path: join(CLIENT, "../docs/page-persona.png") });
  await page.click("#open-settings");
  await page.focus("#text_prompt");
  await page.screenshot({ path: join(CLIENT, "../docs/page-settings.png") });
});

// What the user sees and does, with a server that does what a test orders: in Chromium.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { WebSocket } from "ws";
import {
  echo,
  FakeServer,
  HANDSHAKE,
  type Heard,
  launchBareChromium,
  launchChromium,
  metadata,
  type Opened,
  openPage,
  save,
  text,
  voices,
} from "./harness";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const INSECURE_HOST = "moshi.test";

let browser: Browser;
let server: FakeServer;
let opened: Opened | undefined;

beforeAll(async () => {
  browser = await launchChromium(`--host-resolver-rules=MAP ${INSECURE_HOST} 127.0.0.1`);
});
afterAll(() => browser.close());

beforeEach(async () => {
  server = await FakeServer.start();
});
afterEach(async () => {
  const complaints = opened?.complaints;
  await opened?.context.close();
  opened = undefined;
  await server.stop();
  expect(complaints ?? []).toEqual([]);
});

async function open(options: Parameters<typeof openPage>[2] = {}, url = server.url): Promise<Page> {
  opened = await openPage(browser, url, options);
  return opened.page;
}

/** The connections of the page, the latest last. */
function connections(
  behave: (socket: WebSocket) => Heard | undefined,
): { socket: WebSocket; heard: Heard | undefined }[] {
  const list: { socket: WebSocket; heard: Heard | undefined }[] = [];
  server.onConnection = (socket) => {
    list.push({ socket, heard: behave(socket) });
  };
  return list;
}

const trouble = (page: Page, words: string) => page.waitForSelector(`#trouble:has-text(${JSON.stringify(words)})`);
const talking = (page: Page) => page.waitForSelector("[data-phase=talking]");
const idle = (page: Page) => page.waitForSelector("[data-phase=idle]");

async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`It never came true: ${what}.`);
}

/** What axe-core finds once every colour has arrived: halfway between two states, contrast means nothing. */
async function axe(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  return page.evaluate(async () => {
    await Promise.allSettled(document.getAnimations().map((animation) => animation.finished));
    const { axe } = window as unknown as {
      axe: { run(): Promise<{ violations: { id: string; nodes: unknown[] }[] }> };
    };
    const { violations } = await axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${JSON.stringify(nodes).slice(0, 500)}`);
  });
}

describe("a conversation", () => {
  test("begins at one press, shows the words as they are said, moves both meters, and ends", async () => {
    const list = connections(echo);
    const page = await open();
    await page.click("#talk");
    await talking(page);
    expect(await page.textContent("#status")).toBe("Moshi listens: say something.");
    list[0]?.socket.send(text(2, " four"));
    await page.waitForSelector("#transcript span:text-is('four')");
    list[0]?.socket.send(text(2, " o"));
    list[0]?.socket.send(text(2, "ne"));
    await page.waitForSelector("#transcript span:text-is('four one')");
    for (const meter of ["#meter-you", "#meter-moshi"]) {
      await until(async () => Number(await page.getAttribute(meter, "aria-valuenow")) > 30, `${meter} moves`);
    }
    expect(await page.textContent("#figures")).toBe("");
    await page.click("#talk");
    await idle(page);
    await until(async () => (await page.getAttribute("#meter-you", "aria-valuenow")) === "0", "the meter falls");
    await until(() => list[0]?.socket.readyState === 3, "the connection is closed");
    expect((await save(page, "#save-text")).toString()).toMatch(/^0:\d\d {2}four one\n/m);
    const entries = JSON.parse((await save(page, "#save-json")).toString());
    const said = entries.map((entry: { text?: string }) => entry.text).filter(Boolean);
    expect(said).toEqual([" four", " o", "ne"]);
  });

  test("shows who speaks, and where the user spoke", async () => {
    const list = connections(echo);
    const page = await open();
    expect(await page.textContent("#speaking")).toBe("");
    // Some states are shorter than the time between two looks from here, so the page notes them all.
    await page.evaluate(() => {
      const sentence = document.getElementById("speaking");
      const note = () =>
        document.body.setAttribute(
          "data-noted",
          `${document.body.getAttribute("data-noted") ?? ""}|${sentence?.textContent}`,
        );
      if (sentence)
        new MutationObserver(note).observe(sentence, { childList: true, characterData: true, subtree: true });
    });
    await page.click("#talk");
    await talking(page);
    // The recording speaks into the microphone, and the server says the same a little later.
    await page.waitForSelector("#transcript .you:has-text('You spoke')");
    await page.waitForSelector("[data-noted*='You are both speaking.']");
    expect(await page.getAttribute("body", "data-noted")).toMatch(/\|(You are|Moshi is) speaking\./);
    list[0]?.socket.send(text(2, " four"));
    await page.waitForSelector("#transcript .you + p span:text-is('four')");
    await page.waitForSelector("#speaking-told:not(:empty)", { state: "attached" });
    // After the recording, silence.
    await page.waitForSelector("[data-speaking=nobody] #speaking:text-is('Nobody is speaking.')");
    await page.waitForSelector("#speaking-told:text-is('Nobody is speaking.')", { state: "attached" });
    expect(await axe(page)).toEqual([]);
    await page.click("#talk");
    await idle(page);
    await page.waitForSelector("body:not([data-speaking]) #speaking:empty", { state: "attached" });
    expect((await save(page, "#save-text")).toString()).toMatch(/^0:\d\d {2}— you spoke —\n0:\d\d {2}four\n/);
  });

  test("can be had again without reloading", async () => {
    const list = connections(echo);
    const page = await open();
    for (const round of [0, 1]) {
      await page.click("#talk");
      await talking(page);
      list[round]?.socket.send(text(2, ` round${round}`));
      await page.waitForSelector(`#transcript span:text-is('round${round}')`);
      expect(await page.locator("#transcript span").count()).toBe(1);
      await until(() => (list[round]?.heard?.samples ?? 0) > 48_000, "sound arrives");
      await page.click("#talk");
      await idle(page);
    }
    expect(list.map(({ heard }) => heard?.heads)).toEqual([1, 1]);
  });

  test("goes on in silence while muted, by button and by key", async () => {
    const list = connections(echo);
    const page = await open();
    await page.click("#talk");
    await talking(page);
    await page.keyboard.press("m");
    expect(await page.getAttribute("#mute", "aria-pressed")).toBe("true");
    expect(await page.textContent("#status")).toBe("Muted: Moshi hears silence.");
    await page.waitForTimeout(3500);
    const before = list[0]?.heard?.samples ?? 0;
    expect(before).toBeGreaterThan(48_000 * 3);
    await page.click("#mute");
    expect(await page.getAttribute("#mute", "aria-pressed")).toBe("false");
    await page.waitForTimeout(5000);
    await page.click("#talk");
    const { user, rate } = voices(await save(page, "#save-sound"));
    const muted = user.subarray(rate, 3 * rate);
    expect(muted.every((sample) => sample === 0)).toBe(true);
    expect(user.subarray(-4 * rate).some((sample) => Math.abs(sample) > 0.01)).toBe(true);
  });

  test("begins anew on the same connection with r, and says so", async () => {
    const list = connections(echo);
    const page = await open();
    await page.click("#talk");
    await talking(page);
    await until(() => (list[0]?.heard?.samples ?? 0) > 24_000, "sound arrives");
    await page.keyboard.press("r");
    await page.waitForSelector("#transcript .renewed");
    await until(() => list[0]?.heard?.heads === 2, "another stream begins");
    expect(list.length).toBe(1);
    expect(list[0]?.heard?.controls).toEqual([3]);
    const samples = list[0]?.heard?.samples ?? 0;
    await until(() => (list[0]?.heard?.samples ?? 0) > samples + 48_000, "sound goes on");
  });

  test("begins anew on another connection where the server does not know how", async () => {
    const list = connections((socket) => {
      socket.send(HANDSHAKE);
      return undefined;
    });
    const page = await open();
    await page.click("#talk");
    await talking(page);
    await page.click("#restart");
    await until(() => list.length === 2, "another connection");
    await page.waitForSelector("#transcript .renewed");
  });

  test("pauses while the browser stops the sound, and goes on by the button", async () => {
    const list = connections(echo);
    const page = await open({
      script: `window.AudioContext = class extends AudioContext {
        constructor(...options) { super(...options); window.lastContext = this; }
      };`,
    });
    await page.click("#talk");
    await talking(page);
    await page.evaluate("lastContext.suspend()");
    await trouble(page, "The browser has stopped the sound");
    await until(() => list[0]?.heard?.controls[0] === 2, "the server is told");
    await until(() => (list[0]?.heard?.pings ?? 0) > 0, "a sign of life");
    expect(await page.textContent("#talk-label")).toBe("Resume");
    await page.click("#talk");
    await talking(page);
    expect(await page.textContent("#trouble")).toBe("");
    await until(() => list[0]?.heard?.controls[1] === 0, "the server is told");
  });

  test("shows what is lost and how late it is", async () => {
    const list = connections((socket) => {
      socket.send(HANDSHAKE);
      return undefined;
    });
    const page = await open();
    await page.click("#talk");
    await talking(page);
    await page.waitForSelector("#figures:has-text('delay')");
    list[0]?.socket.send(metadata({ step_p50_ms: 20, step_p95_ms: 30, dropped_s: 0.5, drops: 2 }));
    await page.waitForSelector("#figures:has-text('lost 0.5 s')");
  });
});

describe("settings", () => {
  test("go into the address of the next conversation, and a restart uses them", async () => {
    const list = connections(echo);
    const page = await open({}, `${server.url}?audio_temperature=0.3&max_steps=77`);
    await page.click("#talk");
    await talking(page);
    await page.click("#open-settings");
    expect(await page.inputValue("#audio_temperature")).toBe("0.3");
    await page.fill("#text_topk", "2.5");
    await page.click("#settings-save");
    await page.waitForSelector("#settings-error:has-text('Text top-k: a whole number')");
    expect(await page.getAttribute("#text_topk", "aria-invalid")).toBe("true");
    await page.fill("#text_topk", "25");
    await page.fill("#text_seed", "7");
    await page.fill("#repetition_penalty", "1.1");
    await page.click("#settings-save");
    await page.waitForSelector("#settings", { state: "hidden" });
    await page.click("#restart");
    await until(() => list.length === 2, "another connection");
    await talking(page);
    const query = (index: number) =>
      Object.fromEntries(new URL(server.requests[index] as string, server.url).searchParams.entries());
    expect(query(0)).toEqual({ audio_temperature: "0.3", max_steps: "77", stats: "1" });
    const used = { ...query(0), text_topk: "25", text_seed: "7", repetition_penalty: "1.1" };
    expect(query(1)).toEqual(used);
    await page.reload();
    await page.click("#talk");
    await talking(page);
    expect(query(2)).toEqual(used);
  });

  test("have the choice of the microphone, also in a conversation", async () => {
    const list = connections(echo);
    const page = await open();
    await page.click("#talk");
    await talking(page);
    await page.click("#open-settings");
    await page.waitForSelector("#microphone option:nth-child(3)", { state: "attached" });
    const name = await page.textContent("#microphone option:nth-child(3)");
    await page.selectOption("#microphone", { index: 2 });
    await page.click("summary");
    await page.waitForSelector(`#details dd:text-is(${JSON.stringify(name)})`);
    await page.keyboard.press("Escape");
    const samples = list[0]?.heard?.samples ?? 0;
    await until(() => (list[0]?.heard?.samples ?? 0) > samples + 48_000, "sound goes on");
    expect(list.length).toBe(1);
    expect(await page.textContent("#trouble")).toBe("");
  });

  test("a voice and a role: only where the server takes them, in the address of the conversation, and kept", async () => {
    connections(echo);
    const page = await open();
    await page.click("#open-settings");
    expect([await page.isVisible("#voice_prompt"), await page.isVisible("#text_prompt")]).toEqual([false, false]);
    await page.click("#settings-cancel");
    server.voices = { prompt: true, voices: ["Anna", "NATF0"], voice: "NATF0" };
    await page.click("#open-settings");
    await page.selectOption("#voice_prompt", "Anna");
    expect(await page.locator("#voice_prompt option").allInnerTexts()).toEqual([
      "The server’s choice (NATF0)",
      "Anna",
      "NATF0",
    ]);
    await page.getByLabel("Role").fill(" say each digit\nplus one ");
    expect(await axe(page)).toEqual([]);
    await page.click("#settings-save");
    const asked = async () => {
      await page.click("#talk");
      await talking(page);
      await page.click("#talk");
      await idle(page);
      const query = new URL(server.requests.at(-1) as string, server.url).searchParams;
      return [query.get("voice_prompt"), query.get("text_prompt")];
    };
    expect(await asked()).toEqual(["Anna", "say each digit\nplus one"]);
    await page.reload();
    expect(await page.textContent("#persona")).toBe("Voice: Anna · Role: say each digit\nplus one");
    expect(await asked()).toEqual(["Anna", "say each digit\nplus one"]);
    // Another server: what was chosen is shown, so that it can be taken back.
    server.voices = { prompt: false, voices: ["NATF0"], voice: "" };
    await page.reload();
    await page.click("#open-settings");
    await page.waitForSelector("#voice_prompt option:text-is('NATF0')", { state: "attached" });
    expect(await page.inputValue("#voice_prompt")).toBe("Anna");
    expect(await page.inputValue("#text_prompt")).toBe("say each digit\nplus one");
    await page.click("#settings-reset");
    await page.click("#settings-save");
    expect(await asked()).toEqual([null, null]);
    expect(await page.isVisible("#persona")).toBe(false);
    await page.click("#open-settings");
    expect([await page.isVisible("#voice_prompt"), await page.isVisible("#text_prompt")]).toEqual([true, false]);
  });

  test("a model: only where there is more than one, with its own voices and role, from the next conversation on", async () => {
    connections(echo);
    const models = ["demo", "persona", "small"];
    const demo = { prompt: false, voices: [], voice: "", models, model: "demo" };
    const persona = { prompt: true, voices: ["Anna", "Ben"], voice: "", models, model: "persona" };
    const small = { prompt: true, voices: ["Ben"], voice: "", models, model: "small" };
    server.voices = { ...demo, models: ["demo"] };
    const page = await open();
    await page.click("#open-settings");
    await page.waitForTimeout(300);
    expect(await page.isVisible("#model")).toBe(false);
    await page.click("#settings-cancel");
    server.voices = demo;
    server.voicesOf = { demo, persona, small };
    await page.click("#open-settings");
    await page.selectOption("#model", "persona");
    expect(await page.locator("#model option").allInnerTexts()).toEqual(["The server’s choice (demo)", ...models]);
    await page.selectOption("#voice_prompt", "Anna");
    await page.getByLabel("Role").fill("next");
    expect(await axe(page)).toEqual([]);
    await page.click("#settings-save");
    expect(await page.textContent("#persona")).toBe("Model: persona · Voice: Anna · Role: next");
    const asked = async () => {
      await page.click("#talk");
      await talking(page);
      await page.click("#talk");
      await idle(page);
      const query = new URL(server.requests.at(-1) as string, server.url).searchParams;
      return [query.get("model"), query.get("voice_prompt"), query.get("text_prompt")];
    };
    expect(await asked()).toEqual(["persona", "Anna", "next"]);
    // Another model does not have this voice.
    await page.reload();
    await page.click("#open-settings");
    await page.selectOption("#model", "small");
    await page.waitForSelector("#voice_prompt:not(:has(option:text-is('Anna')))");
    await page.click("#settings-save");
    expect(await asked()).toEqual(["small", null, "next"]);
    // The model is gone: it is shown, so that it can be taken back.
    server.voicesOf = {};
    server.voices = { ...demo, models: ["demo"] };
    await page.reload();
    await page.click("#open-settings");
    await page.waitForSelector("#model option:text-is('The server’s choice (demo)')", { state: "attached" });
    expect(await page.inputValue("#model")).toBe("small");
    await page.selectOption("#model", "");
    await until(() => page.isHidden("#text_prompt"), "the demo takes no role");
    await page.click("#settings-save");
    expect(await asked()).toEqual([null, null, null]);
    await page.click("#open-settings");
    expect(await page.isVisible("#model")).toBe(false);
  });

  test("a voice and a role fit a phone, in the dark, too", async () => {
    server.voices = { prompt: true, voices: ["Anna"], voice: "" };
    const page = await open({ phone: true, dark: true });
    await page.click("#open-settings");
    await page.fill("#text_prompt", "wise ".repeat(200));
    const beyond = await page.evaluate(() => {
      const dialog = document.getElementById("settings") as HTMLElement;
      return [dialog.scrollWidth - dialog.clientWidth, document.documentElement.scrollWidth - innerWidth];
    });
    expect(beyond).toEqual([0, 0]);
    expect(await axe(page)).toEqual([]);
    await page.click("#settings-save");
    const lines = await page
      .locator("#persona")
      .evaluate((shown) => shown.clientHeight / parseFloat(getComputedStyle(shown).lineHeight));
    expect(lines).toBeCloseTo(2, 1);
    expect(await axe(page)).toEqual([]);
  });

  test("a volume is kept", async () => {
    const page = await open();
    await page.focus("#volume");
    await page.keyboard.press("Home");
    await page.reload();
    expect(await page.inputValue("#volume")).toBe("0");
  });
});

describe("troubles", () => {
  test("a busy server: the place in line, until it is one's turn", async () => {
    const list = connections(() => undefined);
    const page = await open();
    await page.click("#talk");
    await until(() => list.length === 1, "a connection");
    const socket = list[0]?.socket as WebSocket;
    socket.send(metadata({ waiting: 2 }));
    await trouble(page, "you are number 2 in line");
    socket.send(text(6, ""));
    socket.send(metadata({ waiting: 1 }));
    await trouble(page, "you are next in line");
    echo(socket);
    await talking(page);
    expect(await page.textContent("#trouble")).toBe("");
  });

  test("a token: from the address, which loses it, and kept for the reload", async () => {
    connections(echo);
    const page = await open({}, `${server.url}#worker_auth_id=s3cret`);
    expect(page.url()).toBe(server.url);
    await page.reload();
    await page.click("#talk");
    await talking(page);
    expect(server.requests[0]).toContain("worker_auth_id=s3cret");
  });

  test("no token or a wrong one: it is asked for", async () => {
    connections(echo);
    server.answer = { status: 401, body: "The token is missing." };
    const page = await open();
    await page.click("#talk");
    await trouble(page, "The server needs its token");
    await idle(page);
    expect(await page.evaluate("document.activeElement.id")).toBe("token-value");
    server.answer = { status: 426, body: "" };
    await page.keyboard.type("right");
    await page.keyboard.press("Enter");
    await talking(page);
    expect(await page.isHidden("#token")).toBe(true);
    expect(server.requests.at(-1)).toContain("worker_auth_id=right");
  });

  test.each([400, 403])("the server's own sentence (%i)", async (status) => {
    server.answer = { status, body: "This is why not" };
    const page = await open();
    await page.click("#talk");
    await trouble(page, "This is why not.");
    await idle(page);
  });

  test("a proxy that lets no websocket through, until it does", async () => {
    connections(echo);
    server.upgrades = false;
    const page = await open();
    await page.click("#talk");
    await trouble(page, "websockets do not reach it: a proxy in between must pass on the headers Upgrade");
    server.upgrades = true;
    await talking(page);
    expect(await page.textContent("#trouble")).toBe("");
  });

  test("a server that is there, but for other pages", async () => {
    const other = await FakeServer.start();
    other.answer = { status: 403, body: "Pages of this one may not use it." };
    const page = await open({}, `${server.url}?worker_addr=127.0.0.1:${other.port}`);
    await page.click("#talk");
    await trouble(page, `The server answers, but not to pages of ${new URL(server.url).origin}: start it with`);
    await idle(page);
    await other.stop();
  });

  test("parameters that the server does not know: a notice names them, and the conversation goes on", async () => {
    connections((socket) => {
      socket.send(metadata({ ignored: ["voice_prompt", "text_topK"] }));
      return echo(socket);
    });
    const page = await open({}, `${server.url}?voice_prompt=a.pt&text_topK=3`);
    await page.click("#talk");
    await talking(page);
    await page.waitForSelector(
      "#trouble.notice:has-text('The server does not know these parameters: voice_prompt, text_topK.')",
    );
    expect(server.requests[0]).toContain("voice_prompt=a.pt");
  });

  test("what the server says about the role, for a while", async () => {
    connections((socket) => {
      socket.send(metadata({ notice: "The model does not know all letters." }));
      return echo(socket);
    });
    const page = await open();
    await page.click("#talk");
    await talking(page);
    await page.waitForSelector("#trouble.notice:has-text('The model does not know all letters.')");
  });

  test("a server that is not ready yet: its sentence, and then the conversation", async () => {
    connections(echo);
    server.answer = { status: 503, body: "The model is not loaded yet." };
    const page = await open();
    await page.click("#talk");
    await trouble(page, "The model is not loaded yet. Connecting again");
    server.answer = { status: 426, body: "" };
    await talking(page);
    expect(await page.textContent("#trouble")).toBe("");
  });

  test("no server: it is tried again until there is one", async () => {
    const other = await FakeServer.start();
    const { port } = other;
    await other.stop();
    const page = await open({}, `${server.url}?worker_addr=localhost:${port}`);
    await page.click("#talk");
    await trouble(page, "The server does not answer");
    const restarted = await FakeServer.start(port);
    restarted.onConnection = echo;
    await talking(page);
    expect(await page.textContent("#trouble")).toBe("");
    expect(await page.locator("#transcript .renewed").count()).toBe(0);
    await restarted.stop();
  });

  test("an address without the slash at its end: the page says that its parts are not there", async () => {
    const page = await open();
    expect(await page.isVisible(".unloaded")).toBe(false);
    await page.goto(`${server.url}no/slash`);
    expect(await page.isVisible(".unloaded")).toBe(true);
    opened?.complaints.splice(0);
  });

  test("a server that went away after it gave the page", async () => {
    const page = await open();
    await server.stop();
    await page.click("#talk");
    await trouble(page, "A part of the page did not load");
    await idle(page);
    server = await FakeServer.start();
  });

  test("a lost connection: it is made again, and the conversation is said to be new", async () => {
    const list = connections(echo);
    const page = await open();
    await page.click("#talk");
    await talking(page);
    list[0]?.socket.terminate();
    await trouble(page, "The connection was lost.");
    await trouble(page, "this is a new conversation");
    await page.waitForSelector("#transcript .renewed");
    await talking(page);
    await until(() => (list[1]?.heard?.samples ?? 0) > 48_000, "sound goes on");
    expect(list[1]?.heard?.heads).toBe(1);
  });

  test("a server that has fallen silent is left", async () => {
    const list = connections((socket) => {
      socket.send(HANDSHAKE);
      return undefined;
    });
    const page = await open();
    await page.click("#talk");
    await talking(page);
    await page.waitForSelector("#trouble:has-text('The server has sent nothing for 10 seconds')", {
      timeout: 15_000,
    });
    await until(() => list.length === 2, "another connection");
  });

  test("a server that is too slow, and is not any more", async () => {
    const list = connections(echo);
    const page = await open();
    await page.click("#talk");
    await talking(page);
    const report = (step: number) =>
      list[0]?.socket.send(metadata({ step_p50_ms: step, step_p95_ms: step + 5, dropped_s: 0 }));
    for (let count = 0; count < 3; count++) report(110);
    await trouble(page, "The server is too slow");
    for (let count = 0; count < 3; count++) report(40);
    await page.waitForSelector("#trouble:empty", { state: "attached" });
  });

  test("an error of the server's, in its words; and the end of a conversation", async () => {
    const list = connections(echo);
    const page = await open();
    await page.click("#talk");
    await talking(page);
    list[0]?.socket.send(text(5, "The audio is not an Ogg stream."));
    list[0]?.socket.close(1011);
    await trouble(page, "The audio is not an Ogg stream.");
    await idle(page);
    await page.click("#talk");
    await talking(page);
    list[1]?.socket.close(1000);
    await trouble(page, "The conversation has ended");
    await idle(page);
  });

  test("no secure context: the address to use", async () => {
    const page = await open({}, `http://${INSECURE_HOST}:${server.port}/`);
    await trouble(page, `start the server with --ssl FOLDER and open https://${INSECURE_HOST}:${server.port}/`);
    await page.click("#talk");
    expect(server.requests).toEqual([]);
  });

  test.each([
    ["NotAllowedError", "The page may not use the microphone"],
    ["NotFoundError", "There is no microphone"],
    ["NotReadableError", "The microphone does not start"],
  ])("%s of the microphone", async (name, sentence) => {
    const page = await open({
      script: `navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", "${name}"));`,
    });
    await page.click("#talk");
    await trouble(page, sentence);
    await idle(page);
  });

  test("a microphone that goes away is looked for, and the conversation goes on", async () => {
    const list = connections(echo);
    const page = await open({
      script: `const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        window.broken = false;
        navigator.mediaDevices.getUserMedia = async (options) => {
          if (window.broken) throw new DOMException("gone", "NotFoundError");
          return (window.lastStream = await ask(options));
        };`,
    });
    await page.click("#talk");
    await talking(page);
    await page.evaluate("broken = true; lastStream.getTracks()[0].dispatchEvent(new Event('ended'))");
    await trouble(page, "There is no microphone");
    const samples = list[0]?.heard?.samples ?? 0;
    await until(() => (list[0]?.heard?.samples ?? 0) > samples + 48_000, "silence goes on");
    await page.evaluate("broken = false; navigator.mediaDevices.dispatchEvent(new Event('devicechange'))");
    await page.waitForSelector("#trouble:empty", { state: "attached" });
    await talking(page);
  });
});

test.each([
  ["no permission", ["--use-fake-device-for-media-stream"], true, "The page may not use the microphone"],
  ["no microphone", [], false, "There is no microphone"],
])("a browser that really has %s", async (_, flags, denied, sentence) => {
  const bare = await launchBareChromium(...flags);
  const { page } = await openPage(bare, server.url, { denied });
  await page.click("#talk");
  await trouble(page, sentence);
  await idle(page);
  await bare.close();
});

describe("for everybody", () => {
  test("all by the keyboard, in an order that makes sense", async () => {
    connections(echo);
    const page = await open();
    const order: string[] = [];
    for (let press = 0; press < 4; press++) {
      await page.keyboard.press("Tab");
      order.push(await page.evaluate<string>("document.activeElement.id"));
    }
    expect(order).toEqual(["open-settings", "talk", "volume", "transcript"]);
    await page.focus("#talk");
    await page.keyboard.press("Space");
    await talking(page);
    await page.focus("#open-settings");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#settings[open]");
    await page.keyboard.press("m"); // types, and does not mute
    expect(await page.getAttribute("#mute", "aria-pressed")).toBe("false");
    await page.keyboard.press("Escape");
    expect(await page.evaluate<string>("document.activeElement.id")).toBe("open-settings");
  });

  test.each([
    ["light", {}],
    ["dark", { dark: true }],
    ["phone", { phone: true }],
    ["dark phone", { phone: true, dark: true }],
  ])("axe-core finds nothing (%s), and nothing is wider than the screen", async (_, options) => {
    const list = connections(echo);
    const page = await open(options);
    const fits = () => page.evaluate("document.documentElement.scrollWidth <= innerWidth");
    expect(await axe(page)).toEqual([]);
    expect(await fits()).toBe(true);
    await page.click("#talk");
    await talking(page);
    list[0]?.socket.send(text(2, " four"));
    list[0]?.socket.send(metadata({ step_p50_ms: 20, step_p95_ms: 30, dropped_s: 0.5, drops: 2 }));
    await page.keyboard.press("m");
    await page.waitForSelector("#figures:has-text('lost')");
    expect(await axe(page)).toEqual([]);
    await page.click("#open-settings");
    await page.click("summary");
    expect(await axe(page)).toEqual([]);
    expect(await fits()).toBe(true);
    await page.keyboard.press("Escape");
    list[0]?.socket.terminate();
    await trouble(page, "The connection was lost.");
    expect(await axe(page)).toEqual([]);
    server.answer = { status: 401, body: "" };
    await page.click("#talk");
    await page.click("#talk");
    await trouble(page, "token");
    expect(await axe(page)).toEqual([]);
    expect(await fits()).toBe(true);
  });
});

// As far as it goes without Safari: a whole conversation in WebKitGTK, by its own driver, with the real server and the demo
// model. The recording comes in by getUserMedia's place, as in Firefox. Where there is no WebKitWebDriver it is skipped.

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { digitsWav, FakeServer } from "./harness";
import { prepare } from "./inside";
import { GREEDY, misheard, NEARLY_ALL, REST_MS, RealServer, spokenWords } from "./server";

const BROWSER = process.env.MSH_MINIBROWSER ?? "/usr/lib/x86_64-linux-gnu/webkit2gtk-4.1/MiniBrowser";
const DRIVER_PORT = 4479;
const DISPLAY = ":97";
const there =
  existsSync(BROWSER) && ["WebKitWebDriver", "Xvfb"].every((name) => spawnSync("which", [name]).status === 0);

let processes: ChildProcess[] = [];
let pages: FakeServer;
let server: RealServer;

beforeAll(async () => {
  if (!there) return;
  pages = await FakeServer.start();
  server = await RealServer.start(0, ["--allow-origin", pages.url.slice(0, -1)]);
  const env = { ...process.env, DISPLAY, GDK_BACKEND: "x11", WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: "1" };
  processes = [
    spawn("Xvfb", [DISPLAY, "-screen", "0", "1200x900x24"], { stdio: "ignore" }),
    spawn("WebKitWebDriver", [`--port=${DRIVER_PORT}`], { stdio: "ignore", env }),
  ];
  await new Promise((resolve) => setTimeout(resolve, 2000));
});
afterAll(async () => {
  for (const each of processes) each.kill();
  await pages?.stop();
  await server?.stop();
});

async function call(method: string, path: string, body?: object): Promise<unknown> {
  const answer = await fetch(`http://127.0.0.1:${DRIVER_PORT}/session${path}`, {
    method,
    ...(body ? { body: JSON.stringify(body) } : {}),
    signal: AbortSignal.timeout(60_000),
  });
  const { value } = (await answer.json()) as { value: { error?: string; message?: string } };
  if (value?.error) throw new Error(`${value.error}: ${value.message}`);
  return value;
}

class Session {
  private constructor(private readonly id: string) {}

  static async open(): Promise<Session> {
    const options = { binary: BROWSER, args: ["--automation"] };
    const capabilities = { alwaysMatch: { "webkitgtk:browserOptions": options } };
    const { sessionId } = (await call("POST", "", { capabilities })) as { sessionId: string };
    return new Session(sessionId);
  }

  go(url: string): Promise<unknown> {
    return call("POST", `/${this.id}/url`, { url });
  }

  run<T>(script: string): Promise<T> {
    return call("POST", `/${this.id}/execute/sync`, { script, args: [] }) as Promise<T>;
  }

  async click(selector: string): Promise<void> {
    const found = await call("POST", `/${this.id}/element`, { using: "css selector", value: selector });
    const [element] = Object.values(found as Record<string, string>);
    await call("POST", `/${this.id}/element/${element}/click`, {});
  }

  async until(condition: string): Promise<void> {
    for (let attempt = 0; attempt < 150; attempt++) {
      if (await this.run<boolean>(`return Boolean(${condition});`)) return;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    throw new Error(
      `${condition} never came true; the page says: ${await this.run("return document.body.innerText;")}`,
    );
  }

  close(): Promise<unknown> {
    return call("DELETE", `/${this.id}`);
  }
}

describe.skipIf(!there)("in WebKitGTK", () => {
  test.each([
    ["WebCodecs", true],
    ["WebAssembly", false],
  ] as const)("the page shows the digits, and what it played is those digits (%s)", async (wanted, webCodecs) => {
    const wav = readFileSync(digitsWav()).toString("base64");
    pages.script = `(${prepare})(${JSON.stringify(wav)}, ${webCodecs});`;
    const session = await Session.open();
    try {
      await session.go(`${pages.url}${GREEDY}&worker_addr=localhost:${server.port}`);
      await session.click("#talk");
      await session.until("document.body.dataset.phase === 'talking'");
      await session.until(NEARLY_ALL);
      await new Promise((resolve) => setTimeout(resolve, REST_MS));
      await session.click("#open-settings");
      const details = await session.run<string>("return document.querySelector('#details').textContent;");
      console.log(`${wanted} wanted: ${details}`);
      await session.click("#settings-cancel");
      await session.click("#talk");
      const shown = await session.run<string>(
        "return [...document.querySelectorAll('#transcript span')].map((span) => span.textContent).join(' ');",
      );
      const words = shown.split(/\s+/);
      expect(misheard(words), shown).toBeLessThanOrEqual(1);
      await session.click("#save-sound");
      await session.until("window.saved");
      const spoken = spokenWords(Buffer.from(await session.run<string>("return window.saved;"), "base64"));
      console.log(spoken.map(({ word, likeness }) => `${word} ${likeness.toFixed(3)}`).join(", "));
      expect(spoken.map(({ word }) => word)).toEqual(words);
    } finally {
      await session.close();
    }
  });
});

// The real server with the demo model, and what it makes of a voice.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { CACHE, CLIENT, PYTHON, REPOSITORY } from "./harness";

/** What the demo model says to the demo's recording. */
export const WORDS: string[] = JSON.parse(readFileSync(join(REPOSITORY, "assets/demo/expected.json"), "utf8")).words;
/** How long the demo takes from the last word but one to the end of its answer. */
export const REST_MS = 5000;

/** In the page: all words but one are there. */
export const NEARLY_ALL = `[...document.querySelectorAll("#transcript span")].map((span) => span.textContent).join(" ").match(/[a-z]+/g)?.length >= ${WORDS.length - 1}`;

/**
 * How many words must be added, left out or changed to get the digits from what was said. The small model mishears one of them
 * in 3 of the 24 ways in which the recording can lie on its frames, even without a browser. One is not a fault of the page.
 */
export function misheard(words: string[]): number {
  let row = WORDS.map((_, column) => column + 1);
  for (const [index, word] of words.entries()) {
    const next: number[] = [];
    for (const [column, right] of WORDS.entries()) {
      const before = column === 0 ? index : (row[column - 1] as number);
      const left = column === 0 ? index + 1 : (next[column - 1] as number);
      next.push(Math.min(left + 1, (row[column] as number) + 1, before + (word === right ? 0 : 1)));
    }
    row = next;
  }
  return row.at(-1) as number;
}

/** For the page's address: the same every time. */
export const GREEDY = "?text_temperature=0&audio_temperature=0";

export class RealServer {
  private constructor(
    readonly port: number,
    private readonly process: ChildProcess,
  ) {}

  static async start(port = 0, more: string[] = [], env: NodeJS.ProcessEnv = process.env): Promise<RealServer> {
    const chosen = port || (await freePort());
    const server = spawn(
      PYTHON,
      ["server_opus.py", "--demo", "--port", String(chosen), "--static", join(CLIENT, "dist"), ...more],
      { cwd: REPOSITORY, env, stdio: ["ignore", "pipe", "pipe"] },
    );
    let output = "";
    await new Promise<void>((resolve, reject) => {
      const read = (data: Buffer) => {
        output += data;
        if (output.includes("standalone worker listening")) resolve();
      };
      server.stdout?.on("data", read);
      server.stderr?.on("data", read);
      server.on("exit", () => reject(new Error(`The server did not start: ${output}`)));
    });
    return new RealServer(chosen, server);
  }

  get url(): string {
    return `http://localhost:${this.port}/`;
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const exited = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill(signal);
    await exited;
  }
}

export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}

export interface Spoken {
  word: string;
  seconds: number;
  likeness: number;
}

/** The words of the demo's voice in a saved recording, on Moshi's side. */
export function spokenWords(recording: Buffer): Spoken[] {
  const file = join(CACHE, "recording.wav");
  writeFileSync(file, recording);
  const output = execFileSync(PYTHON, [join(CLIENT, "tests/hear.py"), file, "1"], {
    cwd: REPOSITORY,
    encoding: "utf8",
  });
  return JSON.parse(output);
}

// The real server with the demo model, and what it makes of a voice.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { CACHE, CLIENT, PYTHON, REPOSITORY } from "./harness";

/** What the demo model says to the demo's recording. */
export const WORDS: string[] = JSON.parse(readFileSync(join(REPOSITORY, "assets/demo/expected.json"), "utf8")).words;
/** For the page's address: the same every time. */
export const GREEDY = "?text_temperature=0&audio_temperature=0";

export class RealServer {
  private constructor(
    readonly port: number,
    private readonly process: ChildProcess,
  ) {}

  static async start(port = 0, ...more: string[]): Promise<RealServer> {
    const chosen = port || (await freePort());
    const process = spawn(
      PYTHON,
      ["server_opus.py", "--demo", "--port", String(chosen), "--static", join(CLIENT, "dist"), ...more],
      { cwd: REPOSITORY, stdio: ["ignore", "pipe", "pipe"] },
    );
    let output = "";
    await new Promise<void>((resolve, reject) => {
      const read = (data: Buffer) => {
        output += data;
        if (output.includes("standalone worker listening")) resolve();
      };
      process.stdout?.on("data", read);
      process.stderr?.on("data", read);
      process.on("exit", () => reject(new Error(`The server did not start: ${output}`)));
    });
    return new RealServer(chosen, process);
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

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}

/** The words that the demo model hears in a voice: it repeats the digits. */
export function hearDigits(samples: Float32Array, name: string): string[] {
  const input = join(CACHE, `${name}.wav`);
  const transcript = join(CACHE, `${name}.jsonl`);
  const bytes = Buffer.alloc(44 + 2 * samples.length);
  bytes.write("RIFF", 0);
  bytes.writeUInt32LE(36 + 2 * samples.length, 4);
  bytes.write("WAVEfmt ", 8);
  bytes.writeUInt32LE(16, 16);
  bytes.writeUInt16LE(1, 20);
  bytes.writeUInt16LE(1, 22);
  bytes.writeUInt32LE(24_000, 24);
  bytes.writeUInt32LE(48_000, 28);
  bytes.writeUInt16LE(2, 32);
  bytes.writeUInt16LE(16, 34);
  bytes.write("data", 36);
  bytes.writeUInt32LE(2 * samples.length, 40);
  samples.forEach((sample, index) => {
    bytes.writeInt16LE(Math.round(sample * 32767), 44 + 2 * index);
  });
  writeFileSync(input, bytes);
  const options = ["--tail", "2", "--temperature", "0", "--text-temperature", "0"];
  execFileSync(
    PYTHON,
    [
      "local_mlx.py",
      "--demo",
      "--input",
      input,
      "--output",
      join(CACHE, `${name}.out.wav`),
      "--transcript",
      transcript,
    ].concat(options),
    { cwd: REPOSITORY, stdio: "pipe" },
  );
  return readFileSync(transcript, "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .flatMap(({ text }) => (typeof text === "string" ? text.trim().split(/\s+/) : []));
}

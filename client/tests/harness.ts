// What the browser tests share: a server with orders, browsers, and sound.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { type WebSocket, WebSocketServer } from "ws";
import { OggReader, OggWriter, packetKind, packetSamples } from "../src/ogg";
import { encodeAudio } from "../src/protocol";

export const CLIENT = fileURLToPath(new URL("..", import.meta.url));
export const REPOSITORY = join(CLIENT, "..");
export const PYTHON = process.env.MSH_PYTHON ?? join(REPOSITORY, ".venv/bin/python");
export const CHROMIUM = process.env.MSH_CHROMIUM ?? "/usr/bin/chromium";
export const FIREFOX = process.env.MSH_FIREFOX ?? "/usr/bin/firefox-esr";
export const CACHE = join(CLIENT, ".cache");
const DIST = join(CLIENT, "dist");
mkdirSync(CACHE, { recursive: true });

/** As the real server sends it. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self' ws: wss: http: https:",
  "media-src 'self' blob:",
  "worker-src 'self'",
  "manifest-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

const TYPES: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".css": "text/css",
  ".svg": "image/svg+xml",
};

export const HANDSHAKE = new Uint8Array(9);
export const text = (type: number, words: string) => Uint8Array.of(type, ...new TextEncoder().encode(words));
export const metadata = (values: object) => text(4, JSON.stringify(values));

/** Serves the built page, and does with connections what a test says. */
export class FakeServer {
  /** What a plain request of /api/chat gets; with a status other than 426 websockets are refused, too. */
  answer = { status: 426, body: "" };
  /** What the server lets clients choose; null for a published server, which does not say. */
  voices: object | null = null;
  /** What it says about the voices of a model that is named; any other one is unknown, if there are any. */
  voicesOf: Record<string, object> = {};
  /** Whether websockets come through; if not, they are like any request, as behind a proxy that does not know them. */
  upgrades = true;
  onConnection: (socket: WebSocket, request: IncomingMessage) => void = () => undefined;
  /** A script that runs before the page's own, for browsers whose drivers cannot do that. */
  script = "";
  readonly requests: string[] = [];
  readonly #server: Server;
  readonly #sockets = new WebSocketServer({ noServer: true });

  private constructor() {
    this.#server = createServer((request, response) => {
      const path = new URL(request.url ?? "/", "http://x").pathname;
      if (path === "/api/chat" && request.method !== "POST") {
        // A browser sends no Origin with it, so that the real server could not tell all that it tells a websocket.
        response.writeHead(400).end("A plain request is to be a POST.");
        return;
      }
      if (path === "/api/chat") {
        response.writeHead(this.answer.status, { "content-type": "text/plain; charset=utf-8" }).end(this.answer.body);
        return;
      }
      const named = new URL(request.url ?? "/", "http://x").searchParams.get("model");
      if (path === "/api/voices" && named !== null && this.voices) {
        const known = this.voicesOf[named];
        response.writeHead(known ? 200 : 400, { "content-type": "application/json" }).end(JSON.stringify(known ?? {}));
        return;
      }
      if (path === "/api/voices" && this.voices) {
        response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(this.voices));
        return;
      }
      try {
        // The last one as with a base path that a proxy takes away, but for the slash at its end.
        const file = normalize(path === "/" || path === "/no/slash" ? "/index.html" : path);
        const page = file === "/index.html" && this.script !== "";
        const body =
          file === "/before.js"
            ? this.script
            : page
              ? readFileSync(join(DIST, file), "utf8").replace("<head>", '<head><script src="./before.js"></script>')
              : readFileSync(join(DIST, file));
        const type = TYPES[extname(file)] ?? "application/octet-stream";
        response.writeHead(200, { "content-type": type, "content-security-policy": POLICY }).end(body);
      } catch {
        response.writeHead(404).end();
      }
    });
    this.#server.on("upgrade", (request, socket, head) => {
      this.requests.push(request.url ?? "");
      if (this.answer.status !== 426 || !this.upgrades) {
        socket.end(`HTTP/1.1 ${this.answer.status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`);
        return;
      }
      this.#sockets.handleUpgrade(request, socket, head, (opened) => this.onConnection(opened, request));
    });
  }

  static async start(port = 0): Promise<FakeServer> {
    const server = new FakeServer();
    await new Promise<void>((resolve) => server.#server.listen(port, "0.0.0.0", resolve));
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    return `http://localhost:${this.port}/`;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export interface Heard {
  messages: number;
  heads: number;
  /** At 48 kHz. */
  samples: number;
  controls: number[];
  pings: number;
}

/** Greets, and gives every packet back. */
export function echo(socket: WebSocket): Heard {
  const heard: Heard = { messages: 0, heads: 0, samples: 0, controls: [], pings: 0 };
  let reader = new OggReader();
  let writer = new OggWriter(1, 24_000);
  const greet = () => {
    reader = new OggReader();
    writer = new OggWriter(1, 24_000);
    socket.send(HANDSHAKE);
    socket.send(encodeAudio(writer.headers()));
  };
  socket.on("message", (data: Buffer) => {
    heard.messages++;
    if (data[0] === 3) {
      heard.controls.push(data[1] as number);
      if (data[1] === 3) greet();
    } else if (data[0] === 6) {
      heard.pings++;
    } else if (data[0] === 1) {
      for (const packet of reader.feed(data.subarray(1))) {
        const kind = packetKind(packet);
        if (kind === "head") heard.heads++;
        if (kind !== "audio") continue;
        heard.samples += packetSamples(packet);
        socket.send(encodeAudio(writer.audio([packet])));
      }
    }
  });
  greet();
  return heard;
}

let digits: string | undefined;

/**
 * The demo's recording as a WAV file, after as much silence as a conversation takes to begin, so that the model hears about
 * what it hears in the recording: after a second of silence more it hears a digit too many.
 */
export function digitsWav(): string {
  digits ??= (() => {
    const file = join(CACHE, "digits.wav");
    python(
      "import sys, numpy, soundfile\n" +
        "sound, rate = soundfile.read(sys.argv[1])\n" +
        "before, after = numpy.zeros(int(0.4 * rate)), numpy.zeros(4 * rate)\n" +
        "soundfile.write(sys.argv[2], numpy.concatenate([before, sound, after]), rate, subtype='PCM_16')\n",
      join(REPOSITORY, "assets/demo/digits.flac"),
      file,
    );
    return file;
  })();
  return digits;
}

/** The demo's first two digits as a WAV file. */
export function shortWav(): string {
  const file = join(CACHE, "short.wav");
  python(
    "import sys, soundfile\n" +
      "sound, rate = soundfile.read(sys.argv[1])\n" +
      "soundfile.write(sys.argv[2], sound[: 2 * rate], rate)\n",
    join(REPOSITORY, "assets/demo/digits.flac"),
    file,
  );
  return file;
}

export function python(program: string, ...args: string[]): string {
  return execFileSync(PYTHON, ["-c", program, ...args], { encoding: "utf8", cwd: REPOSITORY });
}

/** With the recording as its microphone. */
export function launchChromium(...more: string[]): Promise<Browser> {
  return launchBareChromium(
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    `--use-file-for-fake-audio-capture=${digitsWav()}%noloop`,
    ...more,
  );
}

/** With the microphones that the machine has. */
export function launchBareChromium(...more: string[]): Promise<Browser> {
  return chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", ...more] });
}

/** A sound device of nothing but air: Firefox lets no sound run on a machine that has none. */
export async function startAir(): Promise<{ process: ChildProcess; env: Record<string, string> }> {
  const folder = mkdtempSync(join(tmpdir(), "msh-air-"));
  const socket = join(folder, "native");
  const modules = ["module-null-sink", `module-native-protocol-unix socket=${socket} auth-anonymous=1`];
  const process = spawn(
    "pulseaudio",
    ["-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1", ...modules.flatMap((each) => ["-L", each])],
    { stdio: "ignore", env: { ...globalThis.process.env, HOME: folder, XDG_RUNTIME_DIR: folder } },
  );
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  for (let attempt = 0; !existsSync(socket); attempt++) {
    if (attempt === 100) throw new Error("PulseAudio does not start.");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return { process, env: { PULSE_SERVER: `unix:${socket}` } };
}

export interface Opened {
  context: BrowserContext;
  page: Page;
  /** Errors of the console and violations of the policy; a test expects none. */
  complaints: string[];
}

export async function openPage(
  browser: Browser,
  url: string,
  options: { script?: string; denied?: boolean; phone?: boolean; dark?: boolean } = {},
): Promise<Opened> {
  const context = await browser.newContext({
    acceptDownloads: true,
    permissions: options.denied ? [] : ["microphone"],
    viewport: options.phone ? { width: 390, height: 844 } : { width: 1100, height: 800 },
    deviceScaleFactor: options.phone ? 2 : 1,
    colorScheme: options.dark ? "dark" : "light",
  });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const complaints: string[] = [];
  page.on("console", (message) => {
    // What a browser writes when a server does not answer, or not to this page, is not the page's fault.
    const network = /Failed to load resource|WebSocket connection to|blocked by CORS policy/.test(message.text());
    if (message.type() === "error" && !network) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  if (options.script) await page.addInitScript(options.script);
  await page.goto(url);
  return { context, page, complaints };
}

export const NO_WEBCODECS = "delete window.AudioEncoder; delete window.AudioDecoder;";

export function deviceRate(rate: number): string {
  return `window.AudioContext = class extends AudioContext {
    constructor(options) { super({ ...options, sampleRate: ${rate} }); }
  };`;
}

export async function save(page: Page, button: string): Promise<Buffer> {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  const file = join(CACHE, `${Date.now()}-${download.suggestedFilename()}`);
  await download.saveAs(file);
  const content = readFileSync(file);
  rmSync(file);
  return content;
}

/** Both voices of a saved recording, in [-1, 1]. */
export function voices(wav: Buffer): { user: Float32Array; moshi: Float32Array; rate: number } {
  const pairs = (wav.length - 44) / 4;
  const voice = (offset: number) =>
    Float32Array.from({ length: pairs }, (_, index) => wav.readInt16LE(44 + 4 * index + offset) / 32767);
  return { user: voice(0), moshi: voice(2), rate: wav.readUInt32LE(24) };
}

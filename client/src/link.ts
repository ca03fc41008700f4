// The connection to the server: opens it, watches it, opens it again.

import { type Control, decode, encodeAudio, encodeControl, encodePing, plainAddress } from "./protocol";
import { refusal, type Trouble } from "./troubles";

/** Seconds between the attempts to connect; the last one repeats. */
export const BACKOFF = [0.5, 1, 2, 3, 5] as const;
/** If nothing comes for so long in a conversation, the server counts as gone. */
export const SILENCE_MS = 10_000;
const PING_MS = 5000;
// How long a server may take to open a connection, to answer a plain request, and to begin again when asked to.
const CONNECT_MS = 10_000;
const ASK_MS = 5000;
const RESTART_MS = 3000;
// If so much is unsent, a second of sound, the network stands still. Older sound is useless.
const MAX_UNSENT = 6000;

export interface LinkEvents {
  /** The server has begun a new conversation and listens. `again` is false the first time. */
  onHandshake(again: boolean): void;
  onAudio(data: Uint8Array): void;
  onText(text: string): void;
  onMetadata(values: Record<string, unknown>): void;
  /** The connection is lost, and is being opened again. */
  onDown(trouble: Trouble): void;
  /** The connection is over, and is not opened again. */
  onOver(trouble: Trouble): void;
}

export class Link {
  #socket: WebSocket | null = null;
  #greeted = false; // this connection has had a handshake
  #talking = false; // and since then no restart was asked for
  #handshakes = 0;
  #failures = 0;
  #paused = false;
  #closed = false;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #timeout: ReturnType<typeof setTimeout> | undefined; // of the connecting, the silence, or the restart
  #ping: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly address: () => URL,
    private readonly events: LinkEvents,
  ) {
    this.#connect();
  }

  get talking(): boolean {
    return this.#talking && !this.#paused;
  }

  /** Sends pages. If the network stands still, drops them and returns false. */
  sendAudio(pages: Uint8Array): boolean {
    if (!this.talking || !this.#socket || this.#socket.bufferedAmount > MAX_UNSENT) return false;
    this.#send(encodeAudio(pages));
    return true;
  }

  /** Asks for a new conversation. The server answers with another handshake. */
  restart(): void {
    if (!this.#talking) return;
    this.#talking = false;
    this.#control("restart");
    // Published servers ignore this.
    this.#expect(RESTART_MS, () => this.reconnect());
  }

  /** Tells the server that no sound comes for a while, or that it comes again. */
  pause(paused: boolean): void {
    if (paused === this.#paused) return;
    this.#paused = paused;
    clearInterval(this.#ping);
    if (paused) this.#ping = setInterval(() => this.#send(encodePing()), PING_MS);
    if (this.#talking) this.#control(paused ? "pause" : "start");
    this.#watch();
  }

  /** Connects again, for instance with other parameters. */
  reconnect(): void {
    this.#drop();
    this.#failures = 0;
    this.#connect();
  }

  close(): void {
    this.#closed = true;
    this.#drop();
    clearInterval(this.#ping);
  }

  #control(control: Control): void {
    this.#send(encodeControl(control));
  }

  #send(message: Uint8Array<ArrayBuffer>): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(message);
  }

  #drop(): void {
    clearTimeout(this.#retry);
    clearTimeout(this.#timeout);
    this.#greeted = false;
    this.#talking = false;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #connect(): void {
    const address = this.address();
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let opened = false;
    let said: string | null = null;
    this.#expect(CONNECT_MS, () => {
      this.#drop();
      void this.#ask(address);
    });
    socket.onopen = () => {
      opened = true;
      // While one waits in line, published servers send nothing.
      clearTimeout(this.#timeout);
    };
    socket.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (socket !== this.#socket || !(data instanceof ArrayBuffer)) return;
      const message = decode(new Uint8Array(data));
      this.#watch();
      switch (message?.type) {
        case "handshake": {
          const again = this.#handshakes++ > 0;
          this.#greeted = true;
          this.#talking = true;
          this.#failures = 0;
          this.#watch();
          this.events.onHandshake(again);
          if (this.#paused) this.#control("pause");
          break;
        }
        case "audio":
          if (this.#talking) this.events.onAudio(message.data);
          break;
        case "text":
          if (this.#talking) this.events.onText(message.text);
          break;
        case "metadata":
          this.events.onMetadata(message.values);
          break;
        case "error":
          said = message.text;
          break;
      }
    };
    socket.onclose = ({ code }) => {
      if (socket !== this.#socket) return;
      const talked = this.#talking;
      this.#drop();
      // 1001 and 1012: the server ends, perhaps to come back. Any other code after an error is final.
      const goesAway = code === 1001 || code === 1012;
      if (said !== null && !goesAway) this.events.onOver({ cause: "server", detail: said });
      else if (code === 1000 && talked) this.events.onOver({ cause: "ended" });
      else if (opened) this.#again("lost");
      else void this.#ask(address);
    };
  }

  /** Finds out why a websocket did not open. It does not tell, but a plain request of the same address does. */
  async #ask(address: URL): Promise<void> {
    const plain = plainAddress(address);
    // As for a websocket, browsers name the asking page, but only with POST.
    const ask = (mode: RequestMode) =>
      fetch(plain, { method: "POST", mode, cache: "no-store", signal: AbortSignal.timeout(ASK_MS) });
    const seconds = this.#delay;
    let trouble: Trouble = { cause: "unreachable", seconds };
    try {
      const answer = await ask("cors");
      trouble = refusal(answer.status, await answer.text(), seconds);
    } catch {
      // It does not answer, or does not answer pages of another server. These may still find out whether it is there.
      if (plain.origin !== location.origin && (await ask("no-cors").catch(() => null))) {
        trouble = { cause: "foreign", page: location.origin };
      }
    }
    if (this.#closed || this.#socket) return;
    if (!("seconds" in trouble)) this.events.onOver(trouble);
    else if (trouble.cause === "unreachable" && this.#handshakes > 0) this.#again("lost");
    else this.#retryAfter(trouble);
  }

  get #delay(): number {
    return BACKOFF[Math.min(this.#failures, BACKOFF.length - 1)] as number;
  }

  #again(cause: "lost" | "silent"): void {
    this.#retryAfter({ cause, seconds: this.#delay });
  }

  #retryAfter(trouble: Trouble & { seconds: number }): void {
    this.#failures++;
    this.events.onDown(trouble);
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#connect(), trouble.seconds * 1000);
  }

  #watch(): void {
    if (this.#greeted && !this.#talking) return; // a restart has its own time
    if (!this.#greeted || this.#paused) {
      clearTimeout(this.#timeout);
      return;
    }
    this.#expect(SILENCE_MS, () => {
      this.#drop();
      this.#again("silent");
    });
  }

  #expect(milliseconds: number, otherwise: () => void): void {
    clearTimeout(this.#timeout);
    this.#timeout = setTimeout(otherwise, milliseconds);
  }
}

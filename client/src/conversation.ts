// A conversation from the press of the button to its end: microphone, connection, sound, words, recording.

import { IncompleteError, Sound } from "./audio";
import { Figures, level } from "./figures";
import { Link } from "./link";
import { GRANULE_RATE, isPlayable, join, OggReader, OggWriter, packetKind, packetSamples } from "./ogg";
import type { Codec, PacketDecoder, PacketEncoder } from "./opus/codec";
import { PACKET_SAMPLES, SAMPLE_RATE } from "./protocol";
import { ONSET_SECONDS, Speakers, type Speaking } from "./speakers";
import { Transcript } from "./transcript";
import { microphoneTrouble, type Trouble } from "./troubles";
import { Recording } from "./wav";

export const RECORDING_HOURS = 2;
const PACKET_SECONDS = PACKET_SAMPLES / SAMPLE_RATE;
// A browser that has not started the sound after this time needs a press of a button. Some never start it without a loudspeaker.
const START_MS = 3000;
// Sound that cannot be played may come for this long.
const UNPLAYED_MS = 2500;
// The share of a meter's value that is kept every 10 ms: it falls to a tenth within a third of a second.
const METER_FALL = 0.93;

export type Phase = "microphone" | "connecting" | "waiting" | "talking" | "reconnecting" | "stopped" | "over";

export interface ConversationEvents {
  onPhase(phase: Phase): void;
  /** null: the trouble is over. */
  onTrouble(trouble: Trouble | null): void;
  onText(text: string, seconds: number, beginsLine: boolean): void;
  /** The user has begun to speak, and Moshi has said something since they last did. */
  onYou(seconds: number): void;
  /** The words of the user's turn so far. */
  onHeard(words: string, seconds: number, beginsLine: boolean): void;
  /** The language model has called a tool. */
  onTool(call: string, seconds: number): void;
  onRenewed(seconds: number): void;
  onMicrophones(): void;
}

export interface ConversationOptions {
  microphone: string;
  volume: number;
  muted: boolean;
  /** Called before every attempt to connect. */
  address: () => URL;
  codec: Promise<Codec>;
}

export class Conversation {
  readonly recording = new Recording(SAMPLE_RATE, RECORDING_HOURS * 3600);
  readonly transcript = new Transcript();
  figures = new Figures();
  levels = { you: 0, moshi: 0 };
  codecName = "";
  readonly #sound: Sound;
  #phase: Phase = "microphone";
  #link: Link | null = null;
  #encoder: PacketEncoder | null = null;
  #decoder: PacketDecoder | null = null;
  #reader = new OggReader();
  #playable = false; // the stream is Opus that can be decoded
  #unplayedSince: number | null = null; // milliseconds; since then sound has come that could not be played
  #writer: OggWriter | null = null;
  #headers: Uint8Array | null = null; // to go with the first page
  #packets: Uint8Array[] = []; // of the next page
  #unsent = new Float32Array(PACKET_SAMPLES); // of the next packet
  #used = 0; // samples in it
  #begun = false; // there has been a handshake
  #lost = false; // and since then the connection was lost
  #slow = false;
  #full = false;
  #ignored: string[] = []; // parameters that the server does not know
  #notice = ""; // what else it says about them
  #speakers = new Speakers();
  #gone = false; // there is no microphone at present

  /** Must be called in the handler of a gesture. */
  constructor(
    private readonly options: ConversationOptions,
    private readonly events: ConversationEvents,
  ) {
    this.#sound = new Sound({
      onSound: (heard, played) => this.#onSound(heard, played),
      onMicrophoneGone: () => void this.#onMicrophoneGone(),
      onRunning: (running) => this.#onRunning(running),
    });
    this.#sound.muted = options.muted;
    this.#sound.setVolume(options.volume);
    void this.#start(options.microphone);
  }

  get phase(): Phase {
    return this.#phase;
  }

  get sound(): Pick<Sound, "deviceRate" | "deviceName" | "cushion" | "outputLatency"> {
    return this.#sound;
  }

  /** How much sound waits to be heard, in seconds. */
  get queued(): number {
    return this.#sound.cushion.fill + this.#sound.outputLatency;
  }

  get speaking(): Speaking {
    return this.#speakers.speaking;
  }

  set muted(muted: boolean) {
    this.#sound.muted = muted;
  }

  set volume(volume: number) {
    this.#sound.setVolume(volume);
  }

  restart(): void {
    this.#link?.restart();
  }

  /** Makes a new connection, with the present address. */
  reconnect(): void {
    this.#setPhase("connecting");
    this.#link?.reconnect();
  }

  resume(): void {
    void this.#sound.resume();
  }

  async useMicrophone(deviceId: string): Promise<void> {
    try {
      await this.#sound.useMicrophone(deviceId);
      if (this.#gone) this.events.onTrouble(null);
      this.#gone = false;
    } catch (error) {
      this.events.onTrouble(microphoneTrouble(error));
    }
    this.events.onMicrophones();
  }

  /** Call it when the list of devices has changed: a lost device may be back. */
  async devicesChanged(): Promise<void> {
    if (this.#gone) await this.useMicrophone("");
  }

  close(): void {
    if (this.#phase === "over") return;
    this.#setPhase("over");
    this.#link?.close();
    this.#encoder?.close();
    this.#decoder?.close();
    this.#sound.close();
    this.levels = { you: 0, moshi: 0 };
  }

  async #start(microphone: string): Promise<void> {
    try {
      await this.#open(microphone);
    } catch (error) {
      this.#fail(error instanceof IncompleteError ? { cause: "incomplete" } : microphoneTrouble(error));
      return;
    }
    if (this.#isOver()) return;
    this.events.onMicrophones();
    this.#setPhase("connecting");
    try {
      const codec = await this.options.codec;
      this.codecName = codec.name;
      this.#encoder = await codec.encoder((packet) => this.#onPacket(packet));
      this.#decoder = await codec.decoder((samples, rate) => this.#sound.play(samples, rate));
    } catch {
      // The browser's own codec has been tried already. Fetching the other one may fail.
      this.#fail({ cause: "incomplete" });
      return;
    }
    if (this.#isOver()) {
      this.#encoder.close();
      this.#decoder.close();
      return;
    }
    this.#link = new Link(this.options.address, {
      onHandshake: (again) => this.#onHandshake(again),
      onAudio: (data) => this.#onAudio(data),
      onText: (text) => this.#onText(text),
      onMetadata: (values) => this.#onMetadata(values),
      onDown: (trouble) => {
        this.#lost = this.#begun;
        this.#setPhase(this.#begun ? "reconnecting" : "connecting");
        this.events.onTrouble(trouble);
      },
      onOver: (trouble) => this.#fail(trouble),
    });
    setTimeout(() => {
      if (!this.#sound.running) this.#onRunning(false);
    }, START_MS);
  }

  async #open(microphone: string): Promise<void> {
    try {
      await this.#sound.open(microphone);
    } catch (error) {
      // The chosen microphone may have gone since the last time.
      if (microphone === "" || microphoneTrouble(error).cause !== "no-microphone") throw error;
      await this.#sound.open("");
    }
  }

  #isOver(): boolean {
    return this.#phase === "over";
  }

  #fail(trouble: Trouble): void {
    if (this.#isOver()) return;
    this.close();
    this.events.onTrouble(trouble);
  }

  #setPhase(phase: Phase): void {
    if (phase === this.#phase) return;
    this.#phase = phase;
    this.events.onPhase(phase);
  }

  #onHandshake(again: boolean): void {
    if (again) {
      this.#encoder?.restart();
      this.#decoder?.restart();
      this.#sound.clear();
      this.transcript.renew(this.recording.seconds);
      this.events.onRenewed(this.recording.seconds);
    }
    this.#begun = true;
    this.#speakers = new Speakers();
    this.#slow = false;
    this.#reader = new OggReader();
    this.#playable = false;
    this.#unplayedSince = null;
    this.#writer = new OggWriter(Math.floor(Math.random() * 2 ** 32), SAMPLE_RATE);
    this.#headers = this.#writer.headers();
    this.#packets = [];
    this.#used = 0;
    this.figures = this.figures.afresh();
    this.#setPhase("talking");
    this.events.onTrouble(this.#lost ? { cause: "renewed" } : again ? null : this.#told());
    this.#lost = false;
  }

  /** What the server says about the parameters. */
  #told(): Trouble | null {
    if (this.#ignored.length > 0) return { cause: "ignored", names: this.#ignored };
    return this.#notice === "" ? null : { cause: "told", detail: this.#notice };
  }

  #onAudio(data: Uint8Array): void {
    const missing = this.#reader.missing;
    this.#unplayedSince ??= performance.now();
    for (const packet of this.#reader.feed(data)) {
      const kind = packetKind(packet);
      if (kind === "head") this.#playable = isPlayable(packet);
      const samples = kind === "audio" && this.#playable ? packetSamples(packet) : 0;
      if (samples > 0) {
        this.figures.received += samples / GRANULE_RATE;
        this.#decoder?.decode(packet);
        this.#unplayedSince = null;
      }
    }
    this.#keepPlace((this.#reader.missing - missing) / GRANULE_RATE);
    if (this.#unplayedSince !== null && performance.now() - this.#unplayedSince > UNPLAYED_MS) {
      this.#fail({
        cause: "server",
        detail: "The server's sound is not Opus in Ogg, so it cannot be heard.",
      });
    }
  }

  /** Plays silence in place of sound that did not come. */
  #keepPlace(seconds: number): void {
    if (seconds === 0) return;
    this.figures.received += seconds;
    this.figures.damaged += seconds;
    this.#sound.play(new Float32Array(Math.round(seconds * SAMPLE_RATE)), SAMPLE_RATE);
  }

  #onText(text: string): void {
    const seconds = this.recording.seconds;
    const begins = this.transcript.beginsLine(seconds);
    this.transcript.add(seconds, text);
    this.events.onText(text, seconds, begins);
  }

  #onMetadata(values: Record<string, unknown>): void {
    this.figures.update(values);
    if (Array.isArray(values.ignored)) this.#ignored = values.ignored.map(String);
    if (typeof values.notice === "string") {
      if (this.#begun) this.events.onTrouble({ cause: "told", detail: values.notice });
      else this.#notice = values.notice;
    }
    if (values.hush === true) this.#sound.hush();
    if (typeof values.heard === "string") this.#onHeard(values.heard);
    if (typeof values.turn === "string") this.transcript.endTurn();
    if (typeof values.tool === "object" && values.tool !== null) this.#onTool(values.tool as Record<string, unknown>);
    if (typeof values.waiting === "number") {
      this.#setPhase("waiting");
      this.events.onTrouble({ cause: "waiting", place: values.waiting });
    }
    if (this.figures.slow !== this.#slow && this.#phase === "talking") {
      this.#slow = this.figures.slow;
      this.events.onTrouble(this.#slow ? { cause: "slow" } : null);
    }
  }

  #onSound(heard: Float32Array<ArrayBuffer>, played: Float32Array<ArrayBuffer>): void {
    const [you, moshi] = [level(heard), level(played)];
    this.levels.you = Math.max(you, this.levels.you * METER_FALL);
    this.levels.moshi = Math.max(moshi, this.levels.moshi * METER_FALL);
    if (!this.#begun) return;
    this.recording.append(heard, played);
    const spoke = this.#speakers.hear(you, moshi, heard.length / SAMPLE_RATE);
    if (spoke && this.#link?.talking) this.#onYou();
    if (this.recording.full && !this.#full) {
      this.#full = true;
      this.events.onTrouble({ cause: "full", hours: RECORDING_HOURS });
    }
    if (!this.#link?.talking) return;
    for (let position = 0; position < heard.length; ) {
      const piece = heard.subarray(position, position + PACKET_SAMPLES - this.#used);
      this.#unsent.set(piece, this.#used);
      this.#used += piece.length;
      position += piece.length;
      if (this.#used === PACKET_SAMPLES) {
        this.#encoder?.encode(this.#unsent.slice());
        this.#used = 0;
      }
    }
  }

  #onYou(): void {
    const seconds = Math.max(0, this.recording.seconds - ONSET_SECONDS);
    if (this.transcript.markYou(seconds)) this.events.onYou(seconds);
  }

  #onHeard(word: string): void {
    const { seconds } = this.recording;
    const [words, begins] = this.transcript.hear(seconds, word);
    this.events.onHeard(words, seconds, begins);
  }

  #onTool({ name, arguments: given, result }: Record<string, unknown>): void {
    const { seconds } = this.recording;
    const call = `${String(name)} ${String(given)}: ${String(result)}`;
    this.transcript.call(seconds, call);
    this.events.onTool(call, seconds);
  }

  #onPacket(packet: Uint8Array): void {
    if (!this.#link?.talking || !this.#writer) return;
    this.#packets.push(packet);
    const seconds = this.#packets.reduce((sum, each) => sum + packetSamples(each), 0) / GRANULE_RATE;
    if (seconds < PACKET_SECONDS) return;
    const page = this.#writer.audio(this.#packets);
    this.#packets = [];
    if (this.#link.sendAudio(this.#headers ? join([this.#headers, page]) : page)) {
      this.#headers = null;
      this.figures.sent += seconds;
    } else {
      this.figures.unsent += seconds;
    }
  }

  #onRunning(running: boolean): void {
    if (this.#isOver() || !this.#link) return;
    this.#link.pause(!running);
    if (!running) {
      this.#setPhase("stopped");
      this.events.onTrouble({ cause: "sound-stopped" });
    } else if (this.#phase === "stopped") {
      this.#setPhase(this.#link.talking ? "talking" : "connecting");
      this.events.onTrouble(null);
    }
  }

  async #onMicrophoneGone(): Promise<void> {
    this.#gone = true;
    this.events.onTrouble({ cause: "microphone-gone" });
    await this.devicesChanged();
  }
}

// The browser's sound: the microphone in, Moshi's voice out, both at SAMPLE_RATE for the rest of the page.

import type { CushionState } from "./cushion";
import { SAMPLE_RATE } from "./protocol";
import { Resampler } from "./resample";
import workletUrl from "./worklets/conversation?worker&url";
import { type FromWorklet, PROCESSOR, type ToWorklet } from "./worklets/messages";

export interface AudioEvents {
  /** The microphone's sound and the sound played at the same time, of the same length. */
  onSound(heard: Float32Array<ArrayBuffer>, played: Float32Array<ArrayBuffer>): void;
  onMicrophoneGone(): void;
  /** Whether the browser lets the sound run: a phone stops it for a call. */
  onRunning(running: boolean): void;
}

/** The error for a part of the page that did not load. */
export class IncompleteError extends Error {}

export class Sound {
  muted = false;
  cushion: CushionState = { fill: 0, target: 0, underruns: 0, skipped: 0, dropped: 0 };
  readonly #context: AudioContext;
  readonly #volume: GainNode;
  readonly #heard: Resampler;
  readonly #played: Resampler;
  #toDevice: { rate: number; resampler: Resampler } | null = null;
  #node: AudioWorkletNode | null = null;
  #source: MediaStreamAudioSourceNode | null = null;
  #stream: MediaStream | null = null;
  #closed = false;

  /** Call it in the handler of a gesture, or Safari plays no sound. */
  constructor(private readonly events: AudioEvents) {
    this.#context = new AudioContext({ latencyHint: "interactive" });
    void this.resume();
    this.#volume = this.#context.createGain();
    this.#volume.connect(this.#context.destination);
    this.#heard = new Resampler(this.deviceRate, SAMPLE_RATE);
    this.#played = new Resampler(this.deviceRate, SAMPLE_RATE);
    this.#context.onstatechange = () => {
      if (!this.#closed) events.onRunning(this.running);
    };
  }

  get deviceRate(): number {
    return this.#context.sampleRate;
  }

  get running(): boolean {
    return this.#context.state === "running";
  }

  get deviceName(): string {
    return this.#stream?.getAudioTracks()[0]?.label ?? "";
  }

  /** The delay that the loudspeaker's device adds, in seconds. */
  get outputLatency(): number {
    return (this.#context.baseLatency || 0) + (this.#context.outputLatency || 0);
  }

  resume(): Promise<void> {
    return this.#context.resume().catch(() => undefined);
  }

  /** Starts the microphone and the loudspeaker. Throws getUserMedia's errors, or an IncompleteError. */
  async open(deviceId: string): Promise<void> {
    const worklet = this.#context.audioWorklet.addModule(workletUrl);
    worklet.catch(() => undefined); // awaited below, after the question for the microphone
    await this.useMicrophone(deviceId);
    await worklet.catch(() => {
      throw new IncompleteError();
    });
    if (this.#closed) return;
    this.#node = new AudioWorkletNode(this.#context, PROCESSOR, {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      outputChannelCount: [1],
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.#node.port.onmessage = ({ data }: MessageEvent<FromWorklet>) => this.#onSound(data);
    this.#node.connect(this.#volume);
    this.#source?.connect(this.#node);
  }

  async useMicrophone(deviceId: string): Promise<void> {
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: {
        echoCancellation: true,
        noiseSuppression: true,
        autoGainControl: true,
        channelCount: 1,
        ...(deviceId === "" ? {} : { deviceId: { exact: deviceId } }),
      },
    });
    if (this.#closed) {
      stop(stream);
      return;
    }
    this.#dropMicrophone();
    this.#stream = stream;
    for (const track of stream.getAudioTracks()) {
      track.onended = () => {
        if (stream === this.#stream) this.events.onMicrophoneGone();
      };
    }
    this.#source = this.#context.createMediaStreamSource(stream);
    if (this.#node) this.#source.connect(this.#node);
  }

  setVolume(volume: number): void {
    this.#volume.gain.setTargetAtTime(volume, this.#context.currentTime, 0.02);
  }

  play(samples: Float32Array<ArrayBuffer>, rate: number): void {
    if (this.#toDevice?.rate !== rate) this.#toDevice = { rate, resampler: new Resampler(rate, this.deviceRate) };
    const resampled = this.#toDevice.resampler.process(samples);
    this.#post(resampled, [resampled.buffer]);
  }

  /** Forgets the sound that waits to be played, for another conversation. */
  clear(): void {
    this.#toDevice = null;
    this.#post("clear", []);
  }

  /** Silences the sound that waits to be played. */
  hush(): void {
    this.#post("hush", []);
  }

  close(): void {
    this.#closed = true;
    this.#dropMicrophone();
    if (this.#node) this.#node.port.onmessage = null;
    void this.#context.close().catch(() => undefined);
  }

  #post(message: ToWorklet, transfer: Transferable[]): void {
    this.#node?.port.postMessage(message, transfer);
  }

  #onSound({ heard, played, cushion }: FromWorklet): void {
    this.cushion = cushion;
    // Without a microphone, the conversation goes on with silence.
    if (this.muted) heard.fill(0);
    this.events.onSound(this.#heard.process(heard), this.#played.process(played));
  }

  #dropMicrophone(): void {
    this.#source?.disconnect();
    if (this.#stream) stop(this.#stream);
    this.#source = null;
    this.#stream = null;
  }
}

function stop(stream: MediaStream): void {
  for (const track of stream.getTracks()) {
    track.onended = null;
    track.stop();
  }
}

/** The microphones that the browser names; before the first permission they have no names. */
export async function microphones(): Promise<MediaDeviceInfo[]> {
  const devices = await navigator.mediaDevices.enumerateDevices().catch(() => []);
  return devices.filter(({ kind, label }) => kind === "audioinput" && label !== "");
}

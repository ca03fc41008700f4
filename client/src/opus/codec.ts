// Opus packets from samples and back, whoever does it.

/** Takes pieces of PACKET_SAMPLES samples at SAMPLE_RATE; the packets come later, in order. */
export interface PacketEncoder {
  encode(samples: Float32Array<ArrayBuffer>): void;
  /** Begins another stream: what has not come out yet is lost. */
  restart(): void;
  close(): void;
}

/** Takes packets; their samples come later, in order. */
export interface PacketDecoder {
  decode(packet: Uint8Array): void;
  restart(): void;
  close(): void;
}

export type OnPacket = (packet: Uint8Array) => void;
export type OnSamples = (samples: Float32Array<ArrayBuffer>, rate: number) => void;

/** A way to do Opus. */
export interface Codec {
  name: string;
  encoder(onPacket: OnPacket): Promise<PacketEncoder>;
  decoder(onSamples: OnSamples): Promise<PacketDecoder>;
}

/** Of what we send, in bit/s: speech at 24 kHz gains nothing from more. */
export const BIT_RATE = 48_000;

// The interface of an Opus codec: samples to packets, and packets to samples.

/** Takes pieces of PACKET_SAMPLES samples at SAMPLE_RATE. The packets come later, in order. */
export interface PacketEncoder {
  encode(samples: Float32Array<ArrayBuffer>): void;
  /** Begins another stream. Packets that have not come yet are lost. */
  restart(): void;
  close(): void;
}

/** Takes packets. Their samples come later, in order. */
export interface PacketDecoder {
  decode(packet: Uint8Array): void;
  restart(): void;
  close(): void;
}

export type OnPacket = (packet: Uint8Array) => void;
export type OnSamples = (samples: Float32Array<ArrayBuffer>, rate: number) => void;

/** An Opus codec. */
export interface Codec {
  name: string;
  encoder(onPacket: OnPacket): Promise<PacketEncoder>;
  decoder(onSamples: OnSamples): Promise<PacketDecoder>;
}

/** The bit rate of the sound that the page sends, in bit/s. Speech at 24 kHz gains nothing from more. */
export const BIT_RATE = 48_000;

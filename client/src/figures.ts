// The figures of the conversation, from the server's metadata and the page's own counts.

/** Delays and losses from which they are shown, in seconds. */
export const SHOWN = { delay: 0.8, lost: 0.1, lostFor: 20 } as const;
/** A step must not take longer, since it makes 80 ms of sound. */
const STEP_MS = 80;
// After so many reports in a row, one every two seconds, the server counts as too slow, or as fast enough again.
const REPORTS = 3;

export class Figures {
  /** Seconds of sound. */
  sent = 0;
  received = 0;
  unsent = 0;
  damaged = 0; // in the sound that came
  slow = false;
  #serverDropped = 0;
  #streak = 0; // reports in a row that contradict `slow`
  #lost = 0; // as of #lostAt
  #lostAt = -Infinity;
  #values: Record<string, unknown> = {};

  /** For another conversation with the same server. */
  afresh(): Figures {
    const figures = new Figures();
    figures.#values = this.#values;
    return figures;
  }

  number(name: string): number | null {
    const value = this.#values[name];
    return typeof value === "number" && Number.isFinite(value) ? value : null;
  }

  text(name: string): string | null {
    const value = this.#values[name];
    return typeof value === "string" && value !== "" ? value : null;
  }

  /** Takes metadata. Later values replace earlier ones of the same name. */
  update(values: Record<string, unknown>): void {
    this.#values = { ...this.#values, ...values };
    if (!("step_p50_ms" in values)) return;
    const dropped = this.number("dropped_s") ?? 0;
    const step = this.number("step_p50_ms") ?? 0;
    const worst = this.number("step_p95_ms") ?? step;
    const loses = dropped > this.#serverDropped;
    this.#serverDropped = dropped;
    const slow = step > STEP_MS || (loses && worst > STEP_MS);
    this.#streak = slow === this.slow ? 0 : this.#streak + 1;
    if (this.#streak >= REPORTS) {
      this.slow = slow;
      this.#streak = 0;
    }
  }

  /**
   * Seconds from a sound at the microphone until the server's answer to it is heard. Every sample that is sent comes back
   * as one, so samples that have not come back are on their way, or were dropped.
   */
  delay(queued: number): number {
    const out = this.sent - this.received - this.#serverDropped;
    return Math.max(0, out) + queued;
  }

  /** Seconds of sound lost anywhere. `dropped` are those that the page's queue lost. */
  lost(dropped: number): number {
    return this.#serverDropped + this.unsent + this.damaged + dropped;
  }

  /** The text to show of delay and losses at this time (in seconds); empty if all is well. */
  notice(now: number, queued: number, dropped: number): string {
    const parts: string[] = [];
    const delay = this.delay(queued);
    if (delay >= SHOWN.delay) parts.push(`delay ${delay.toFixed(1)} s`);
    const lost = this.lost(dropped);
    if (lost > this.#lost) this.#lostAt = now;
    this.#lost = lost;
    if (lost >= SHOWN.lost && now - this.#lostAt < SHOWN.lostFor) parts.push(`lost ${lost.toFixed(1)} s`);
    return parts.join(" · ");
  }
}

/** A meter's position in [0, 1] for samples, by their root mean square: it covers 50 dB below full scale. */
export function level(samples: Float32Array): number {
  if (samples.length === 0) return 0;
  const mean = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
  return mean === 0 ? 0 : Math.max(0, Math.min(1, 1 + (10 * Math.log10(mean)) / 50));
}

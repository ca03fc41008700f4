// Who speaks: told from the levels of the two voices, without flicker.

export type Speaking = "you" | "moshi" | "both" | "nobody";

// Levels as by `level`. Between the two, who speaks goes on, and who is quiet stays quiet.
const LOUD = 0.2;
const QUIET = 0.1;
/** So long must a voice be loud until it counts: clicks do not. */
export const ONSET_SECONDS = 0.06;
/** So long must it be quiet until it has ended: between two words it goes on. */
export const PAUSE_SECONDS = 0.6;
// A screen reader is told of a state that has lasted, and not more often than this.
const LASTING_SECONDS = 1;
const TOLD_SECONDS = 5;

export const SENTENCES: Record<Speaking, string> = {
  you: "You are speaking.",
  moshi: "Moshi is speaking.",
  both: "You are both speaking.",
  nobody: "Nobody is speaking.",
};

class Voice {
  speaks = false;
  #against = 0; // seconds of sound against the present state, without a break

  hear(level: number, seconds: number): void {
    const against = this.speaks ? level < QUIET : level >= LOUD;
    this.#against = against ? this.#against + seconds : 0;
    if (this.#against < (this.speaks ? PAUSE_SECONDS : ONSET_SECONDS)) return;
    this.speaks = !this.speaks;
    this.#against = 0;
  }
}

export class Speakers {
  readonly #you = new Voice();
  readonly #moshi = new Voice();

  get speaking(): Speaking {
    if (this.#you.speaks) return this.#moshi.speaks ? "both" : "you";
    return this.#moshi.speaks ? "moshi" : "nobody";
  }

  /** Takes the levels of so many seconds; says whether the user has begun to speak. */
  hear(you: number, moshi: number, seconds: number): boolean {
    const spoke = this.#you.speaks;
    this.#you.hear(you, seconds);
    this.#moshi.hear(moshi, seconds);
    return this.#you.speaks && !spoke;
  }
}

/** What a screen reader is told of who speaks, at a calm rate. */
export class Calm {
  #told: Speaking | null = null;
  #toldAt = Number.NEGATIVE_INFINITY;
  #state: Speaking | null = null;
  #since = 0;

  /** Takes the state at a time in seconds; returns the state that is to be told then. */
  next(state: Speaking, now: number): Speaking | null {
    if (state !== this.#state) {
      this.#state = state;
      this.#since = now;
    }
    if (state !== this.#told && now - this.#since >= LASTING_SECONDS && now - this.#toldAt >= TOLD_SECONDS) {
      this.#told = state;
      this.#toldAt = now;
    }
    return this.#told;
  }
}

// The words of a conversation, piece by piece, where the user spoke, and the formats to save them.

/** The beginning of what the user said, and the words, where the server tells them. */
interface Yours {
  seconds: number;
  you: true;
  words?: string;
}

/**
 * A piece of Moshi's text, what the user said, a tool that was called, or the beginning of another conversation. Seconds are those of
 * the recording.
 */
export type Entry =
  | { seconds: number; text: string }
  | Yours
  | { seconds: number; tool: string }
  | { seconds: number; renewed: true };

// After such a pause a new line begins.
export const PAUSE_SECONDS = 2;

export class Transcript {
  readonly entries: Entry[] = [];
  #last: number | null = null; // seconds of the last piece of Moshi's line; null: the next one begins a line
  #turn: Yours | null = null; // the user's, whose words may still come

  add(seconds: number, text: string): void {
    this.entries.push({ seconds, text });
    this.#last = seconds;
  }

  renew(seconds: number): void {
    this.entries.push({ seconds, renewed: true });
    this.#last = this.#turn = null;
  }

  /** Adds a call of a tool, with its result. What Moshi says then begins a line. */
  call(seconds: number, tool: string): void {
    this.entries.push({ seconds, tool });
    this.#last = null;
  }

  /** Marks where the user began to speak, once until Moshi's next words; says whether there is a mark more. */
  markYou(seconds: number): boolean {
    const last = this.entries.at(-1);
    if ((last && "you" in last && !last.words) || this.#turn?.words) return false;
    this.#turn = { seconds, you: true };
    this.entries.push(this.#turn);
    return true;
  }

  /** Adds a word of the user's. Returns all words of the turn, and whether there is an entry more. */
  hear(seconds: number, word: string): [words: string, begins: boolean] {
    const begins = this.#turn === null;
    if (this.#turn === null) {
      this.#turn = { seconds, you: true };
      this.entries.push(this.#turn);
    }
    this.#turn.words = this.#turn.words ? `${this.#turn.words} ${word}` : word;
    this.#last = null;
    return [this.#turn.words, begins];
  }

  /** The user's turn has ended: other words belong to the next one. */
  endTurn(): void {
    this.#turn = null;
  }

  /** Whether a piece at this time would begin a line. Moshi's line goes on while the user speaks into it. */
  beginsLine(seconds: number): boolean {
    return this.#last === null || seconds - this.#last > PAUSE_SECONDS;
  }

  /** Lines as they are shown, each with the time when it began. */
  toText(): string {
    const lines: string[] = [];
    let moshis = 0; // the place of Moshi's last line
    const before = new Transcript();
    for (const entry of this.entries) {
      const time = clock(entry.seconds);
      if ("renewed" in entry) {
        before.renew(entry.seconds);
        lines.push(`${time}  — a new conversation —`);
      } else if ("tool" in entry) {
        before.call(entry.seconds, entry.tool);
        lines.push(`${time}  — ${entry.tool} —`);
      } else if ("you" in entry) {
        lines.push(`${time}  — ${entry.words ? `you: ${entry.words}` : "you spoke"} —`);
        if (entry.words) before.#last = null;
      } else {
        if (before.beginsLine(entry.seconds)) moshis = lines.push(`${time}  ${entry.text.trimStart()}`) - 1;
        else lines[moshis] += entry.text;
        before.add(entry.seconds, entry.text);
      }
    }
    return lines.map((line) => `${line}\n`).join("");
  }
}

export function clock(seconds: number): string {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

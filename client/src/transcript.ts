// The words of a conversation, piece by piece, and the formats to save them.

/** A piece of text, or the beginning of another conversation. Seconds are those of the recording. */
export type Entry = { seconds: number; text: string } | { seconds: number; renewed: true };

// After such a pause a new line begins.
export const PAUSE_SECONDS = 2;

export class Transcript {
  readonly entries: Entry[] = [];

  add(seconds: number, text: string): void {
    this.entries.push({ seconds, text });
  }

  renew(seconds: number): void {
    this.entries.push({ seconds, renewed: true });
  }

  /** Whether a piece at this time would begin a line. */
  beginsLine(seconds: number): boolean {
    const last = this.entries.at(-1);
    return last === undefined || "renewed" in last || seconds - last.seconds > PAUSE_SECONDS;
  }

  /** Lines as they are shown, each with the time when it began. */
  toText(): string {
    const lines: string[] = [];
    const before = new Transcript();
    for (const entry of this.entries) {
      if ("renewed" in entry) {
        lines.push(`${clock(entry.seconds)}  — a new conversation —`);
      } else if (before.beginsLine(entry.seconds)) {
        lines.push(`${clock(entry.seconds)}  ${entry.text.trimStart()}`);
      } else {
        lines.push(lines.pop() + entry.text);
      }
      before.entries.push(entry);
    }
    return lines.map((line) => `${line}\n`).join("");
  }
}

export function clock(seconds: number): string {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

// The user's settings for the model. The server chooses the value of an empty field.

export interface Field {
  name: string;
  label: string;
  whole: boolean;
  least: number;
  most: number;
  /** The value that the metadata tells is the one in use. */
  shown: boolean;
}

// JavaScript's numbers cannot hold larger seeds exactly.
const SEED = Number.MAX_SAFE_INTEGER;

export const FIELDS: readonly Field[] = [
  { name: "text_temperature", label: "Text temperature", whole: false, least: 0, most: 5, shown: true },
  { name: "text_topk", label: "Text top-k", whole: true, least: 0, most: 100_000, shown: true },
  { name: "audio_temperature", label: "Voice temperature", whole: false, least: 0, most: 5, shown: true },
  { name: "audio_topk", label: "Voice top-k", whole: true, least: 0, most: 100_000, shown: true },
  { name: "text_seed", label: "Text seed", whole: true, least: 0, most: SEED, shown: false },
  { name: "audio_seed", label: "Voice seed", whole: true, least: 0, most: SEED, shown: false },
  { name: "repetition_penalty", label: "Repetition penalty", whole: false, least: 0.01, most: 10, shown: true },
  {
    name: "repetition_penalty_context",
    label: "Penalty over so many tokens",
    whole: true,
    least: 0,
    most: 10_000,
    shown: true,
  },
  { name: "pad_mult", label: "Bonus for silence", whole: false, least: -100, most: 100, shown: true },
];

// The model, its voice and its role, for servers that let one choose. The last two are as in the page of PersonaPlex.
export const CHOICES = ["model", "voice_prompt", "text_prompt"] as const;
/** How many characters they may have. */
export const PERSONA_LENGTH = 1000;

// Parameters of the page's address that are for the page itself, or that it passes on in its own way.
const KEPT: ReadonlySet<string> = new Set([
  "worker_addr",
  "worker_auth_id",
  "stats",
  ...FIELDS.map(({ name }) => name),
  ...CHOICES,
]);

export type Settings = Record<string, string>;

/** Whether a field may hold this text. */
export function isValid(field: Field, text: string): boolean {
  if (text === "") return true;
  const value = Number(text);
  return (
    text.trim() !== "" &&
    Number.isFinite(value) &&
    value >= field.least &&
    value <= field.most &&
    (!field.whole || Number.isInteger(value))
  );
}

/** The stored settings, replaced by those in the page's address. Values that are not valid are left out. */
export function readSettings(stored: string | null, page: URLSearchParams): Settings {
  const settings: Settings = {};
  const kept = parse(stored);
  const read = (name: string, valid: (text: string) => boolean) => {
    for (const text of [page.get(name), kept[name]]) {
      if (typeof text === "string" && text !== "" && valid(text)) {
        settings[name] = text;
        break;
      }
    }
  };
  for (const field of FIELDS) read(field.name, (text) => isValid(field, text));
  for (const name of CHOICES) read(name, (text) => text.length <= PERSONA_LENGTH);
  return settings;
}

function parse(stored: string | null): Record<string, unknown> {
  try {
    const values: unknown = JSON.parse(stored ?? "{}");
    return typeof values === "object" && values !== null ? (values as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

/**
 * The parameters of a conversation's address. Parameters that the page does not know are passed on, too: they may be for the
 * server, which reports those that it does not know.
 */
export function parameters(settings: Settings, page: URLSearchParams, token: string | null): Record<string, string> {
  const values: Record<string, string> = { ...settings, stats: "1" };
  for (const [name, text] of page) {
    if (!KEPT.has(name) && text !== "") values[name] = text;
  }
  if (token !== null) values.worker_auth_id = token;
  return values;
}

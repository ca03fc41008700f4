// What the server lets a client choose before a conversation: voices, and a role.

import { chatAddress, plainAddress } from "./protocol";

export interface Offer {
  /** Whether the model can be given a role in words. */
  prompt: boolean;
  voices: string[];
  /** The voice that the server takes if the client names none; "" if it has none. */
  voice: string;
}

export const NO_OFFER: Offer = { prompt: false, voices: [], voice: "" };
const ASK_MS = 5000;

export function readOffer(values: unknown): Offer {
  if (typeof values !== "object" || values === null) return NO_OFFER;
  const { prompt, voices, voice } = values as Record<string, unknown>;
  return {
    prompt: prompt === true,
    voices: Array.isArray(voices) ? voices.filter((name): name is string => typeof name === "string") : [],
    voice: typeof voice === "string" ? voice : "",
  };
}

export function voicesAddress(page: URL, token: string | null): URL {
  const address = new URL("voices", plainAddress(chatAddress(page, {})));
  if (token !== null) address.searchParams.set("worker_auth_id", token);
  return address;
}

/** Asks the server. Published servers have no such list: then, as when it does not answer, nothing is on offer. */
export async function askOffer(page: URL, token: string | null): Promise<Offer> {
  try {
    const answer = await fetch(voicesAddress(page, token), { cache: "no-store", signal: AbortSignal.timeout(ASK_MS) });
    return answer.ok ? readOffer(await answer.json()) : NO_OFFER;
  } catch {
    return NO_OFFER;
  }
}

/** Finds a voice among those of the server: published pages name the file, which ends with `.pt`. */
export function findVoice(voices: readonly string[], wanted: string): string | null {
  return voices.find((name) => name === wanted || `${name}.pt` === wanted) ?? null;
}

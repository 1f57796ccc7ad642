// The server's /api/v1, as promises. Everything goes through `call`, which asks for a key if the server wants one.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let askForKey = async () => null;
export function onKeyWanted(ask) {
  askForKey = ask;
}

async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const answer = await fetch(`/api/v1${path}`, { ...options, headers });
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => null);
    if (answer.status === 401) {
      const given = await askForKey();
      if (given) {
        sessionStorage.setItem("key", given);
        continue;
      }
    }
    throw new ApiError(told?.error?.message ?? `The server answered ${answer.status}`, answer.status);
  }
}

export const status = async () => (await call("/status")).json();
export const versions = async () => (await call("/versions")).json();
export const history = async () => (await call("/edits?count=24")).json();
export const ask = async (form) => (await call("/edits", { method: "POST", body: form })).json();
export const cancel = async (id) => (await call(`/edits/${id}`, { method: "DELETE" })).json();
export const picture = async (id, what = "picture", side = null) => (await call(`/edits/${id}/${what}${side ? `?side=${side}` : ""}`)).blob();
export const vote = async (told) =>
  (await call("/feedback", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(told) })).json();

// Server-sent events of an edit, by fetch so that a key can go along.
export async function* events(id) {
  const reader = (await call(`/edits/${id}/events`)).body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const [kind, data] = part.split("\n");
      yield { kind: kind.slice("event: ".length), told: JSON.parse(data.slice("data: ".length)) };
    }
  }
}

// The endpoint, and the state of the page that polling keeps up to date.

const PERIOD_MS = 1000, TIMEOUT_MS = 8000, HOUR_S = 3600;

export const state = {
  at: 0, page: null, adapters: new Map(), adaptersAt: "", points: new Map(), failed: null,
};
let key = sessionStorage.getItem("key") ?? "";

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

/** Ask the endpoint; an answer that is an error is thrown with its own message. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Refused(told?.error?.message ?? `${answer.status} ${answer.statusText}`, answer.status);
  }
  return answer;
}

export const askJson = async (path, options) => (await ask(path, options)).json();

export function useKey(entered) {
  key = entered;
  sessionStorage.setItem("key", entered);
  // Another key sees other things.
  Object.assign(state, { page: null, adapters: new Map(), adaptersAt: "", points: new Map() });
}

async function poll() {
  const query = new URLSearchParams({ adapters_at: state.adaptersAt, history_at: newestPoint() });
  const page = await askJson(`/v1/dashboard?${query}`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (page.adapters) {
    state.adapters = new Map(page.adapters.map((row) => [row.name, row]));
    state.adaptersAt = page.cluster.position;
  }
  for (const point of page.history) state.points.set(point.at, point);
  for (const at of state.points.keys()) if (at < page.at - HOUR_S) state.points.delete(at);
  state.page = page;
  state.at = Date.now();
}

const newestPoint = () => Math.max(0, ...state.points.keys());

/** Poll for ever; `onChange` after every try, whether it went well or not. */
export async function follow(onChange, askForKey) {
  let mayAsk = true;
  for (;;) {
    // A page that nobody sees asks nothing.
    if (!document.hidden) {
      try {
        await poll();
        state.failed = null;
        mayAsk = true;
      } catch (error) {
        state.failed = error;
      }
      onChange();
      // Whoever does not want to give one is not asked again; a click on the health line does.
      if (state.failed?.status === 401 && mayAsk) mayAsk = await askForKey(Boolean(key));
    }
    await new Promise((resolve) => setTimeout(resolve, PERIOD_MS));
  }
}

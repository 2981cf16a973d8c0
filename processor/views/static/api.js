// The HTTP API: see openapi.json.

const RETRY_MS = 3000;

export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail ?? body?.title ?? `The views answered ${status}.`);
    this.status = status;
    this.code = body?.code ?? "unavailable";
  }
}

const hearing = new Set();

/** Hear how fresh each answer was; null: there was none. */
export function onView(heard) {
  hearing.add(heard);
}

/** What is at `path`. Raises Problem; an aborted request raises AbortError. */
export async function get(path, query = {}, signal = undefined) {
  const wanted = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== "" && value !== null && value !== undefined) wanted.set(name, value);
  const text = wanted.toString();
  let answer;
  try {
    answer = await fetch(`v1/${path}${text ? `?${text}` : ""}`, { signal, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    for (const heard of hearing) heard(null);
    throw new Problem(0, { detail: "The views do not answer." });
  }
  const body = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (!answer.ok || body === null) throw new Problem(answer.status, body);
  if (body.view) for (const heard of hearing) heard(body.view);
  return body;
}

/** For what nobody awaits: to have been left, or refused, is no mistake of the page. */
export function unlessGone(error) {
  if (error.name !== "AbortError" && !(error instanceof Problem)) throw error;
}

/** Call `work(signal)` now and every `every_ms` while the page is seen, until `signal` ends it. */
export async function keep(work, every_ms, signal) {
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await work(signal);
      } catch (error) {
        unlessGone(error);
      }
    }
    await new Promise((done) => {
      const timer = setTimeout(done, every_ms);
      signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
    });
  }
}

/**
 * Events as they happen. The browser goes on behind the last one by itself after a break. Nobody
 * listens while the page is hidden: a browser has few connections for a host, and tabs share them.
 * `states.open` is called each time that events come again.
 */
export function stream(query, heard, signal, states = {}) {
  let source = null;
  const open = () => {
    if (document.hidden || signal.aborted) return;
    source = new EventSource(`v1/stream?${new URLSearchParams(query)}`);
    source.addEventListener("open", () => states.open?.());
    source.addEventListener("event", (message) => heard(JSON.parse(message.data)));
    source.addEventListener("lost", () => {
      // Where we were is gone; from now on, then.
      source.close();
      states.broken?.();
      setTimeout(open, RETRY_MS);
    });
    source.addEventListener("error", () => {
      states.broken?.();
      if (source?.readyState === EventSource.CLOSED) setTimeout(open, RETRY_MS);
    });
  };
  const seen = () => {
    source?.close();
    source = null;
    open();
  };
  document.addEventListener("visibilitychange", seen, { signal });
  signal.addEventListener("abort", () => source?.close(), { once: true });
  open();
}

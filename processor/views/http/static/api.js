// The HTTP API: see openapi.json.

import { showTokenForm, tokenOf } from "./token.js";

const RETRY_MS = 1000;
const REFUSED_RETRY_MS = 3000;

export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail ?? body?.title ?? `The views answered ${status}.`);
    this.status = status;
    this.code = body?.code ?? "unavailable";
    this.errors = body?.errors ?? [];
  }
}

const hearing = new Set();

/** Hear how fresh each answer was; null: there was none. */
export function onView(heard) {
  hearing.add(heard);
}

/** The response to a request, sent with the token of its kind once the views want one. Raises Problem if there is none. */
async function request(url, { kind = "read", headers, ...options }) {
  for (;;) {
    const token = tokenOf(kind);
    const sent = token === null ? headers : { ...headers, Authorization: `Bearer ${token}` };
    const answer = await fetch(url, { ...options, headers: sent, cache: "no-store" });
    if (answer.status !== 401) return answer;
    await answer.body?.cancel();
    // Another request may have got a newer one meanwhile.
    if (tokenOf(kind) === token && !(await showTokenForm(kind, token !== null))) throw new Problem(401, { detail: "Without the token nothing was sent.", code: "unauthorized" });
    options.signal?.throwIfAborted();
  }
}

/** What is at `path`. Raises Problem; an aborted request raises AbortError. */
export async function get(path, query = {}, signal = undefined) {
  const wanted = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== "" && value !== null && value !== undefined) wanted.set(name, value);
  const text = wanted.toString();
  const body = await json(`v1/${path}${text ? `?${text}` : ""}`, { headers: { Accept: "application/json" }, signal });
  if (body.view) for (const heard of hearing) heard(body.view);
  return body;
}

/** Act with the operator token, and await what comes of it. Raises Problem. */
export function act(path, body) {
  return json(`v1/${path}?wait=15s`, { kind: "operator", method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

async function json(url, options) {
  let answer;
  try {
    answer = await request(url, options);
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    for (const heard of hearing) heard(null);
    throw new Problem(0, { detail: "The views do not answer." });
  }
  const body = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (!answer.ok || body === null) throw new Problem(answer.status, body);
  return body;
}

/** For requests that are not awaited: to have been left, or refused, is no mistake of the page. */
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
    await pause(every_ms, signal);
  }
}

/**
 * Events as they happen. After a break they go on behind the last one. They are read by fetch, since
 * an EventSource cannot send the token. Nothing is read while the page is hidden: a browser has few
 * connections for a host, and tabs share them. `states.open` is called each time that events come
 * again.
 */
export function stream(query, heard, signal, states = {}) {
  let reading = null;
  let last = null;
  const read = async (ended) => {
    while (!ended.aborted) {
      let pause_ms = RETRY_MS;
      try {
        const headers = { Accept: "text/event-stream", ...(last === null ? {} : { "Last-Event-ID": last }) };
        const answer = await request(`v1/stream?${new URLSearchParams(query)}`, { headers, signal: ended });
        if (answer.ok) {
          states.open?.();
          for await (const { event, id, data } of events(answer.body)) {
            if (id !== null) last = id;
            if (event === "event") take(heard, JSON.parse(data));
          }
        } else {
          await answer.body?.cancel();
          pause_ms = REFUSED_RETRY_MS;
          // Where we were is gone; from now on, then.
          if (answer.status === 400) last = null;
        }
      } catch (error) {
        if (ended.aborted) return;
        if (!(error instanceof TypeError)) throw error; // the network's
      }
      states.broken?.();
      await pause(pause_ms, ended);
    }
  };
  const seen = () => {
    reading?.abort();
    reading = null;
    if (document.hidden || signal.aborted) return;
    reading = new AbortController();
    read(reading.signal).catch(reportError);
  };
  document.addEventListener("visibilitychange", seen, { signal });
  signal.addEventListener("abort", () => reading?.abort(), { once: true });
  seen();
}

/** A mistake of the page must not look like one of the network. */
function take(heard, event) {
  try {
    heard(event);
  } catch (error) {
    reportError(error);
  }
}

/** Server-sent events of a response's body. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let made = { event: "message", id: null, data: null };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const at = line.indexOf(": ");
        const field = line.slice(0, Math.max(at, 0));
        if (Object.hasOwn(made, field)) made[field] = line.slice(at + 2);
        if (line !== "") continue;
        if (made.data !== null) yield made;
        made = { event: "message", id: null, data: null };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function pause(for_ms, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, for_ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
  });
}

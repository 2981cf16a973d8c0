// A flow's states and its steps on one axis of time, attempt by attempt.

import { actionBar, actionsOfStep } from "./act.js";
import { ago, badge, day, el, json, line, moment, number, said, span, visible } from "./dom.js";

const LANES_MAX = 100;
const SEGMENTS_MAX = 50;
const AHEAD = 0.15; // as much of what lies ahead is shown, at most, in parts of what is past
const TERMINAL = new Set(["finished", "failed", "cancelled"]);
const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const TICKS_END = 85; // a label behind it would not fit on a phone
const TICKS_MS = [1, 2, 5, 10, 20, 50, 100, 200, 500,
  ...[1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000].map((s) => s * 1000)];

/** `[{status, from, to, wait}]` of events in their order; `to` of the last is null. */
export function segments(events) {
  const found = [];
  for (const event of events) {
    if (event.kind.startsWith("step_") || event.kind === "pruned") continue;
    const last = found.at(-1);
    if (last?.status === event.status) continue;
    if (last) last.to = event.at;
    found.push({ status: event.status, from: event.at, to: null, wait: event.kind === "waiting" ? event.payload_json.wait : null });
  }
  return found;
}

/**
 * What each step did when, by run id, of events in their order: `[{status, from, to, …}]`.
 * `status`: `pending`, `running`, or what the step was observed to be. `to`: null while it goes on. An attempt also has
 * `attempt`, `holder`, `due` (the end of its lease) and, once it is over, `end` and perhaps `reason`.
 */
export function periods(events) {
  const found = new Map();
  for (const { kind, at, payload_json: payload } of events) {
    if (!kind.startsWith("step_")) continue;
    const runId = payload.run_id ?? payload.step.run_id;
    if (!found.has(runId)) found.set(runId, []);
    const all = found.get(runId);
    const last = all.at(-1);
    const turn = (next, over) => {
      if (last && last.to === null) Object.assign(last, { to: at, ...(last.attempt ? over : {}) });
      if (next) all.push({ from: at, to: null, ...next });
    };
    const { execution, child_session_key: holder } = payload.changes ?? {};
    if (kind === "step_observed") {
      const { status } = payload.step;
      if (last?.status !== status) turn({ status, ...(ENDED.has(status) ? { to: at } : {}) });
    } else if (kind === "step_scheduled") turn({ status: "pending" });
    else if (kind === "step_started") turn({ status: "running", attempt: execution.attempt, holder, due: execution.due_at });
    else if (kind === "step_extended") { if (last) last.due = execution.due_at; }
    else if (kind === "step_released") turn({ status: "pending" }, { end: "released" });
    else if (kind === "step_retried") turn({ status: "pending" }, { end: "failed", reason: payload.reason });
    else if (kind !== "step_dispatched") turn(null, { end: kind.slice(5), reason: payload.reason });
  }
  return found;
}

/** Times of ticks, at most about `count`, at round distances from `from`. */
export function ticks(from, to, count = 6) {
  const size = TICKS_MS.find((ms) => (to - from) / ms <= count) ?? (to - from || 1);
  return Array.from({ length: Math.floor((to - from) / size) + 1 }, (_, n) => from + n * size);
}

/** An element for one flow; `show(flow, steps, total, events, whole)` draws it, and again when something changed. */
export function timeline() {
  const caption = el("p", { class: "quiet" });
  const axis = el("div", { class: "lane axis", "aria-hidden": "true" });
  const states = lane();
  const list = el("ol", { class: "lanes" }, states.item);
  const left = el("p", { class: "quiet" });
  const known = new Map(); // lanes of steps by run id: they stay open
  const show = (flow, steps, total, events, whole) => {
    const parts = segments(events);
    const work = periods(events);
    const now = Date.now();
    const over = TERMINAL.has(flow.status);
    const from = Date.parse(whole || events.length === 0 ? flow.created_at : events[0].at);
    const last = Math.max(from + 1, over ? Date.parse(events.at(-1)?.at ?? flow.updated_at) : now);
    const due = (step) => Date.parse(step.execution?.due_at ?? "") || 0;
    const ahead = over ? 0 : Math.max(0, ...steps.map(due).map((at) => at - now));
    const to = last + Math.min(ahead, AHEAD * (last - from));
    const scale = { from, to, now: over ? null : now, at: (ms) => 100 * Math.min(1, Math.max(0, (ms - from) / (to - from))) };
    caption.replaceChildren(`${day(new Date(from).toISOString())} to ${over ? day(new Date(last).toISOString()) : "now"}, ${span(last - from)}`,
      whole ? "" : "; earlier events are not loaded yet", steps.length > 0 ? ". A thin line: not started; a dashed one: the lease ahead." : "");
    axis.replaceChildren(el("span", { class: "track" }, ticks(from, last).filter((at) => scale.at(at) < TICKS_END).map((at) => place(
      el("span", { class: "tick" }, at === from ? "0" : `+${span(at - from)}`), scale, at))));
    states.show(stateBars(parts, scale), badge(flow.status), ["States", ""], JSON.stringify([parts, whole]), () => stateBody(parts, whole));
    const shown = steps.slice(-LANES_MAX);
    for (const step of shown) {
      if (!known.has(step.run_id)) known.set(step.run_id, lane());
      const made = known.get(step.run_id);
      const did = work.get(step.run_id) ?? [{ status: step.status, from: step.created_at, to: ENDED.has(step.status) ? step.updated_at : null }];
      made.show(stepBars(did, step, scale), stepBadge(step), [step.task, step.run_id], JSON.stringify([did, step.updated_at, flow.status, flow.cancel_requested]), () => [...stepBody(did, step, from), actionBar(actionsOfStep(flow, step))]);
      if (!made.item.isConnected) list.append(made.item);
    }
    left.hidden = total <= shown.length;
    left.textContent = `The newest ${number(shown.length)} of ${steps.length < total ? `the first ${number(steps.length)} of ` : ""}${number(total)} steps.`;
  };
  return { element: el("div", {}, caption, axis, list, left), show };
}

// One lane: a name, a track, what it is now; on a click, its details.
function lane() {
  const track = el("span", { class: "track", "aria-hidden": "true" });
  const name = el("span", { class: "name" });
  const is = el("span", { class: "is" });
  const body = el("div", { class: "body" });
  let made = null;
  let shown = "";
  const fill = () => {
    if (details.open && made) body.replaceChildren(...[made()].flat());
  };
  const details = el("details", { on: { toggle: fill } }, el("summary", { class: "lane" }, name, track, is), body);
  return {
    item: el("li", {}, details),
    show(bars, status, [title, id], version, contents) {
      track.replaceChildren(...bars);
      is.replaceChildren(...[status].flat());
      const text = JSON.stringify([title, id]);
      if (name.dataset.text !== text) {
        name.dataset.text = text;
        name.replaceChildren(said(title, 60), ...(id ? [" ", el("code", { class: "quiet" }, el("bdi", {}, line(id, 40)))] : []));
      }
      made = contents;
      if (version !== shown) fill(); // what is being read stays while nothing has changed
      shown = version;
    },
  };
}

function place(made, scale, from, to = null) {
  made.style.left = `${scale.at(from)}%`;
  if (to !== null) made.style.width = `${scale.at(to) - scale.at(from)}%`;
  return made;
}

function bar(scale, from, to, { status, kind = "", title, text = "" }) {
  const end = to === null ? (scale.now ?? scale.to) : Date.parse(to);
  return place(el("span", { class: `bar ${kind}`, "data-status": status, title }, text), scale, Date.parse(from), end);
}

function nowMark(scale) {
  return scale.now === null ? [] : [place(el("span", { class: "now" }), scale, scale.now)];
}

const length = (from, to) => span((to === null ? Date.now() : Date.parse(to)) - Date.parse(from));

function stateBars(parts, scale) {
  return [...parts.map(({ status, from, to }) => {
    const end = TERMINAL.has(status) ? from : to;
    return bar(scale, from, end, { status, title: `${status}${TERMINAL.has(status) ? "" : `, ${length(from, end)}`}` });
  }), ...nowMark(scale)];
}

function waited(wait) {
  if (!wait) return "";
  const what = {
    timer: () => [" until ", day(wait.at)],
    external_event: () => [" for the event ", said(wait.topic, 60)],
    manual: () => [" for a person to resume it"],
    steps: () => [wait.run_ids ? [` for ${{ any: "one of " }[wait.mode] ?? ""}the steps `, said(wait.run_ids.join(", "), 120)] : " for all its steps"],
  }[wait.kind]?.() ?? [];
  return [...what.flat(), wait.timeout_at ? `, until ${day(wait.timeout_at)} at most` : ""];
}

function stateBody(parts, whole) {
  return el("ol", { class: "segments" },
    whole ? null : el("li", { class: "quiet" }, "earlier events are not loaded yet"),
    parts.slice(-SEGMENTS_MAX).map(({ status, from, to, wait }) => el("li", {}, badge(status), waited(wait), wait ? " · since " : " ",
      el("time", { datetime: from }, moment(from)),
      TERMINAL.has(status) ? "" : to ? ` · ${span(Date.parse(to) - Date.parse(from))}` : [" · for ", ago(from, span)])));
}


function stepBars(did, step, scale) {
  const bars = did.map((period) => {
    const { status, from, to, attempt, end, reason } = period;
    const what = attempt ? `attempt ${attempt}, ${end ?? "running"}` : status;
    return bar(scale, from, to, {
      status: end ?? status,
      kind: attempt || ENDED.has(status) || step.runtime === "mirrored" ? "" : "thin",
      title: `${what}, ${length(from, to)}${reason ? `: ${line(reason, 200)}` : ""}`,
      text: attempt && step.execution.attempt > 1 ? `${attempt}` : "",
    });
  });
  const last = did.at(-1);
  if (last?.attempt && last.to === null && scale.now !== null && Date.parse(last.due) > scale.now) {
    bars.push(place(el("span", { class: "bar lease", title: `its lease ends ${day(last.due)}` }), scale, scale.now, Date.parse(last.due)));
  }
  return [...bars, ...nowMark(scale)];
}

function stepBadge(step) {
  const { execution } = step;
  return [badge(step.status), execution && execution.attempt > 0 ? el("span", { class: "quiet", title: `attempt ${execution.attempt} of ${execution.max_attempts}` }, ` ${execution.attempt}/${execution.max_attempts}`) : ""];
}

function due({ status, execution }) {
  if (!execution?.due_at) return null;
  const left = (gone, comes) => ago(execution.due_at, (ms) => (ms > 0 ? `${gone} ${span(ms)} ago` : `${comes} in ${span(-ms)}`));
  if (status === "running") return ["Lease", left("was over", "ends")];
  return execution.offers > 0
    ? ["Offered", el("span", {}, execution.offers === 1 ? "once; " : `${execution.offers} times; `, left("again, due", "again"))]
    : ["May be started", left("since", "")];
}

function stepBody(did, step, from) {
  const attempts = did.filter((period) => period.attempt).map(({ attempt, from: began, to, end, holder, reason, due: lease }) => el("li", {},
    el("strong", {}, `Attempt ${attempt}`), " ", badge(end ?? "running"),
    ` +${span(Date.parse(began) - from)} · `, to === null ? ["for ", ago(began, span)] : span(Date.parse(to) - Date.parse(began)),
    holder ? [" · ", said(holder, 80)] : "",
    el("span", { class: "quiet" }, ` · lease until ${day(lease)}`),
    reason ? el("p", { class: "grave reason text" }, el("bdi", {}, visible(reason))) : null));
  const { execution } = step;
  const failure = execution?.last_failure;
  const facts = [
    ["Run", el("code", {}, el("bdi", {}, line(step.run_id, 256)))],
    ["Task", said(step.task, 256)],
    step.child_session_key ? [execution ? "Holder" : "Session", said(step.child_session_key, 256)] : null,
    ["Created", el("span", {}, moment(step.created_at), " · ", ago(step.created_at))],
    ["Changed", el("span", {}, moment(step.updated_at), " · ", ago(step.updated_at))],
    due(step),
    execution?.timeout_at ? ["Fails at", el("span", {}, day(execution.timeout_at), " · ", ago(execution.timeout_at))] : null,
    failure ? ["Last failure", el("span", {}, said(failure.reason, 600), " · ", ago(failure.at))] : null,
    execution && execution.progress !== null ? ["Progress", json(execution.progress)] : null,
    execution ? ["Input", json(step.input_json)] : null,
    step.result_json === null ? null : ["Result", json(step.result_json)],
  ].filter(Boolean);
  return [attempts.length > 0 ? el("ol", { class: "attempts" }, attempts) : "",
    el("dl", { class: "facts" }, facts.flatMap(([title, value]) => [el("dt", {}, title), el("dd", {}, value)]))];
}

// A flow's events, one line each; what is behind a line is shown on a click.

import { copyable, day, el, json, line, moment, said, span, visible } from "./dom.js";

const SUMMARY = {
  created: (p) => [said(p.goal, 80)],
  waiting: (p) => [p.wait.kind === "external_event" ? ["for ", said(p.wait.topic, 60)] : p.wait.kind === "timer" ? `until ${day(p.wait.at)}` : p.wait.kind === "steps" ? "for steps" : "for a person"],
  resumed: (p) => [`by ${p.by.replace("_", " ")}`],
  failed: (p) => [said(firstLine(p.reason), 160)],
  state_updated: (p) => [p.next_step ? ["→ ", said(p.next_step, 60)] : "", p.patch && typeof p.patch === "object" && !Array.isArray(p.patch) ? ` ${Object.keys(p.patch).length} keys` : ""],
  step_observed: (p) => [said(p.step.task, 60), ` ${p.step.status}`],
  step_scheduled: (p) => [said(p.step.task, 60), " ", said(p.step.run_id, 40)],
};
const ofStep = (p) => [said(p.run_id, 60),
  p.changes.execution.attempt > 0 ? `, attempt ${p.changes.execution.attempt} of ${p.changes.execution.max_attempts}` : "", p.reason ? [": ", said(firstLine(p.reason), 160)] : ""];
const ICONS = {
  created: "✦", started: "▶", waiting: "‖", resumed: "▶", finished: "✓", failed: "✗", cancelled: "⊘", cancel_requested: "⊘", state_updated: "✎", pruned: "⌫",
  step_scheduled: "+", step_started: "▷", step_extended: "⋯", step_succeeded: "✓", step_failed: "✗", step_retried: "↻", step_released: "↺", step_cancelled: "⊘", step_dispatched: "⇢", step_observed: "◉",
};

const firstLine = (text) => String(text).split("\n", 1)[0];

/** A user's text, with its line breaks. */
export const written = (text) => el("p", { class: "text" }, el("bdi", {}, visible(text)));

const since = (event, before) => (before ? `+${span(Date.parse(event.at) - Date.parse(before.at))}` : "0");

/** `before`: the event before it, if it is known. `owner`: who need not be named. */
export function eventItem(event, before, owner, travel) {
  const { kind, payload_json: payload, source } = event;
  const words = ((SUMMARY[kind] ?? (kind.startsWith("step_") ? ofStep : null))?.(payload) ?? []).flat(2);
  const body = el("div", { class: "body" });
  const fill = () => body.replaceChildren(
    el("p", { class: "quiet" }, el("time", { datetime: event.at }, moment(event.at)), " UTC, by ", said(event.actor, 120), `, revision ${event.revision}, event `, copyable(String(event.id)),
      `, from ${source.topic}/${source.partition}/${source.offset}`),
    typeof payload.reason === "string" ? written(payload.reason) : "",
    kind.startsWith("step_") || kind === "pruned" ? "" : el("p", { class: "pages" }, el("button", { type: "button", on: { click: () => travel(event.revision, true) } }, "what changed")),
    json(payload));
  const delta = el("span", { class: "delta" }, since(event, before));
  const details = el("details", { on: { toggle: () => { if (details.open && body.childElementCount === 0) fill(); } } },
    el("summary", { title: moment(event.at) }, delta,
      el("span", { class: "icon", "aria-hidden": "true" }, ICONS[kind] ?? "·"),
      el("span", { class: "what" }, el("strong", {}, kind.replaceAll("_", " ")), " ", el("span", { class: "quiet" }, words), event.actor === owner ? null : el("span", { class: "quiet actor" }, " · ", said(event.actor, 40))),
      el("span", { class: "revision quiet" }, `r${event.revision}`)), body);
  const item = el("li", { "data-event": event.id, "data-status": event.status, "data-kind": kind }, details);
  // An earlier event may come to be known later.
  item.follows = (earlier) => { delta.textContent = since(event, earlier); };
  return item;
}

// The audit as it grows: the newest events of all flows, in bounded number.

import { get, stream } from "./api.js";
import { announce, badge, clock, el, id, line, rate, row, said, table } from "./dom.js";

const SHOWN_MAX = 200;
const DRAW_MS = 250;
const COLUMNS = ["Time", "Event", "Status", "Flow", "By", "Revision"];

function made(event) {
  return row(COLUMNS, [
    el("time", { datetime: event.at, title: event.at }, clock(event.at)),
    event.kind.replaceAll("_", " "),
    badge(event.status),
    el("a", { href: `#/flows/${event.flow_id}` }, id(event.flow_id)),
    said(event.actor, 60),
    String(event.revision),
  ], { "data-event": event.id });
}

export function showAudit(main, { query, signal }) {
  const owner = query.get("owner") ?? "";
  const body = table("Events, newest first", COLUMNS, []);
  const state = el("span", { class: "quiet" }, "");
  const pause = el("button", { type: "button", "aria-pressed": "false" }, "Pause");
  const form = el("form", { class: "filters", on: { submit: (event) => {
    event.preventDefault();
    const wanted = new FormData(form).get("owner");
    location.hash = `#/audit${wanted ? `?${new URLSearchParams({ owner: wanted })}` : ""}`;
  } } },
    el("label", {}, "Owner", el("input", { name: "owner", type: "text", value: owner, placeholder: "exactly", autocomplete: "off", spellcheck: "false", maxlength: 256 })),
    el("button", {}, "Follow"));
  let paused = false;
  let waiting = [];
  let left = 0; // what came too fast to be shown
  let heard = 0;
  const times = [];

  const draw = () => {
    times.push(heard);
    heard = 0;
    if (times.length > 20) times.shift();
    const perSecond = times.reduce((sum, count) => sum + count, 0) / (times.length * DRAW_MS / 1000);
    state.textContent = paused ? `paused, ${waiting.length + left} new` : `${rate(perSecond)} events/s${left ? `, ${left} too fast to show` : ""}`;
    if (paused || waiting.length === 0) return;
    const tbody = body.tBodies[0];
    const fresh = waiting.splice(0).reverse().map(made);
    tbody.prepend(...fresh);
    none.hidden = true;
    while (tbody.rows.length > SHOWN_MAX) tbody.lastElementChild.remove();
  };
  const take = (told) => {
    heard += 1;
    waiting.push(told.event);
    if (waiting.length > SHOWN_MAX) {
      waiting.shift();
      left += 1;
    }
  };
  pause.addEventListener("click", () => {
    paused = !paused;
    left = 0;
    pause.textContent = paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
    announce(paused ? "Paused" : "Going on");
    draw();
  });
  const none = el("p", { class: "empty", hidden: true }, owner ? "No events of this owner yet." : "No events yet: each change of a flow is shown here as it is committed.");
  main.append(el("h1", { tabindex: "-1" }, "Audit"), none, form, el("p", { class: "pages" }, pause, state), el("div", { class: "wide" }, body));
  const timer = setInterval(draw, DRAW_MS);
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });
  // Each time that the stream begins: what there is, and from then on what comes.
  const begin = async () => {
    try {
      const page = await get("events", { owner, limit: 50 }, signal);
      const newest = new Set(page.items.map((event) => event.id));
      waiting = waiting.filter((event) => !newest.has(event.id));
      if (!paused) body.tBodies[0].replaceChildren(...page.items.map(made));
      none.hidden = body.tBodies[0].rows.length > 0;
    } catch (error) {
      if (error.name !== "AbortError") state.textContent = line(error.message, 200);
    }
  };
  stream(owner ? { owner } : {}, take, signal, { open: begin, broken: () => { state.textContent = "the stream is interrupted"; } });
}

// The table of flows: filters, pages, and rows that change in place.

import { Problem, get, keep, unlessGone } from "./api.js";
import { ago, announce, badge, el, id, line, row, said, span, table } from "./dom.js";

const REFRESH_MS = 2000;
const LIMIT = 50;
const COLUMNS = ["Status", "Goal", "Owner", "Step", "Waits for", "Changed"];
const FIELDS = ["q", "status", "waiting", "owner", "controller", "sort"];
const QUIET_MINUTES = 15;

const minutesAgo = (minutes) => new Date(Date.now() - minutes * 60_000).toISOString();

/** Questions that somebody on call has. `ask`: parameters as they are now. */
const QUESTIONS = [
  ["overdue", "Wait is over", () => ({ waiting: "any", wait_ends_before: minutesAgo(0.1), sort: "wait" })],
  ["ending", "Wait ends soon", () => ({ sort: "wait" })],
  ["quiet", `Running, quiet for ${QUIET_MINUTES} min`, () => ({ status: "running", updated_before: minutesAgo(QUIET_MINUTES) })],
  ["unstarted", `Not started for ${QUIET_MINUTES} min`, () => ({ status: "created", updated_before: minutesAgo(QUIET_MINUTES) })],
  ["cancelling", "Cancel asked for", () => ({ cancel_requested: "true", status: "created,running,waiting" })],
  ["failed", "Failed in the last hour", () => ({ status: "failed", updated_after: minutesAgo(60) })],
];

function waitWords(flow) {
  const wait = flow.wait_json;
  if (flow.cancel_requested && !["finished", "failed", "cancelled"].includes(flow.status)) return el("span", { class: "grave" }, "cancel asked for");
  if (!wait) return "";
  const what = wait.kind === "external_event" ? said(wait.topic, 60) : wait.kind === "timer" ? "a time" : "somebody";
  const end = flow.wait_ends_at ? ago(flow.wait_ends_at, (ms) => (ms > 0 ? `over ${span(ms)}` : `${span(-ms)} left`)) : null;
  return [what, end ? " · " : null, end];
}

function cellsOf(flow) {
  return [
    badge(flow.status),
    el("a", { href: `#/flows/${flow.id}` }, said(flow.goal, 120)),
    said(flow.owner_session_key, 60),
    said(flow.current_step, 40),
    el("span", {}, waitWords(flow)),
    ago(flow.updated_at),
  ];
}

export function showFlows(main, { query, signal }) {
  const chosen = Object.fromEntries(FIELDS.map((name) => [name, query.get(name) ?? ""]));
  const question = QUESTIONS.find(([key]) => key === query.get("ask"));
  const cursors = [null];
  const rows = new Map();
  const body = table("Flows", COLUMNS, []);
  const note = el("p", { class: "empty", hidden: true });
  const older = el("button", { type: "button", disabled: true }, "Older ›");
  const newer = el("button", { type: "button", disabled: true }, "‹ Newer");
  const where = el("span", { class: "quiet" }, "");
  let next = null;

  const go = (changed) => {
    const wanted = new URLSearchParams();
    for (const [name, value] of Object.entries(changed)) if (value) wanted.set(name, value);
    location.hash = `#/flows${wanted.size ? `?${wanted}` : ""}`;
  };
  const select = (name, label, options) => el("label", {}, label, el("select", { name },
    options.map(([value, words]) => el("option", { value, selected: chosen[name] === value }, words))));
  const input = (name, label, type, words) => el("label", {}, label,
    el("input", { name, type, value: chosen[name], placeholder: words, autocomplete: "off", spellcheck: "false", maxlength: 256 }));
  const form = el("form", { class: "filters", role: "search", "aria-label": "Flows", on: {
    submit: (event) => {
      event.preventDefault();
      go(Object.fromEntries(new FormData(form)));
    },
    change: (event) => { if (event.target.tagName === "SELECT") form.requestSubmit(); },
  } },
    input("q", "Goal", "search", "words ( / )"),
    select("status", "Status", [["", "any"], ...["created", "running", "waiting", "finished", "failed", "cancelled"].map((status) => [status, status])]),
    select("waiting", "Waits for", [["", "anything, or nothing"], ["any", "anything"], ["timer", "a time"], ["external_event", "an event"], ["manual", "somebody"]]),
    input("owner", "Owner", "text", "exactly"),
    input("controller", "Controller", "text", "exactly"),
    select("sort", "First", [["", "changed last"], ["created", "newest"], ["wait", "wait ends soonest"]]),
    el("button", {}, "Find"));
  const asking = el("ul", { class: "questions", "aria-label": "What may be stuck" },
    QUESTIONS.map(([key, words]) => el("li", {}, el("a", {
      href: question?.[0] === key ? "#/flows" : `#/flows?ask=${key}`, "aria-current": question?.[0] === key ? "true" : null }, words))));

  const shown = (page) => {
    const tbody = body.tBodies[0];
    const seen = new Set();
    page.items.forEach((flow, place) => {
      seen.add(flow.id);
      const known = rows.get(flow.id);
      const version = `${flow.revision} ${flow.cancel_requested}`;
      let made = known?.made;
      if (known?.version !== version) {
        const fresh = row(COLUMNS, cellsOf(flow), { "data-flow": flow.id });
        if (made) {
          const focused = made.contains(document.activeElement);
          made.replaceWith(fresh);
          fresh.classList.add("changed");
          if (focused) fresh.querySelector("a").focus();
        }
        made = fresh;
        rows.set(flow.id, { made, version });
      }
      if (tbody.rows[place] !== made) tbody.insertBefore(made, tbody.rows[place] ?? null);
    });
    for (const [key, { made }] of rows) {
      if (!seen.has(key)) {
        made.remove();
        rows.delete(key);
      }
    }
    next = page.next_cursor;
    older.disabled = next === null;
    newer.disabled = cursors.length === 1;
    where.textContent = cursors.length > 1 || next ? `page ${cursors.length}` : "";
    note.hidden = page.items.length > 0;
    note.textContent = "No flow is like that.";
    body.hidden = page.items.length === 0;
  };
  const load = async (wanted) => {
    try {
      const asked = question ? question[2]() : chosen;
      const sort = asked.sort;
      const page = await get("flows", { ...asked, sort, limit: LIMIT, cursor: cursors.at(-1) }, wanted);
      shown(page);
      return page;
    } catch (error) {
      if (error instanceof Problem) {
        note.hidden = false;
        note.textContent = line(error.message, 300);
      }
      throw error;
    }
  };
  const turn = async () => {
    const page = await load(signal);
    announce(`Page ${cursors.length}, ${page.items.length} flows`);
    body.scrollIntoView({ block: "nearest" });
  };
  older.addEventListener("click", () => { if (next) { cursors.push(next); turn().catch(unlessGone); } });
  newer.addEventListener("click", () => { if (cursors.length > 1) { cursors.pop(); turn().catch(unlessGone); } });

  main.append(
    el("h1", { tabindex: "-1" }, "Flows"),
    asking, form, note, el("div", { class: "wide" }, body),
    el("p", { class: "pages" }, newer, older, where));
  // A page behind the first is a place to read in: it does not move under the reader.
  keep((wanted) => (rows.size > 0 && cursors.length > 1 ? null : load(wanted)), REFRESH_MS, signal);
}

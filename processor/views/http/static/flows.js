// The table of flows: filters, pages, and rows that change in place.

import { Problem, get, keep, unlessGone } from "./api.js";
import { ago, announce, badge, el, line, number, row, said, span, table } from "./dom.js";

const REFRESH_MS = 2000;
const LIMIT = 50;
const COLUMNS = ["Status", "Goal", "Owner", "Step", "Waits for", "Changed"];
const COUNTED_MAX = 100;
const COUNT_MS = 10_000;
const FIELDS = ["q", "status", "waiting", "owner", "controller", "sort"];
const QUIET_MINUTES = 15;
const SEARCHED_MAX = 20_000;

const minutesAgo = (minutes) => new Date(Date.now() - minutes * 60_000).toISOString();

/** Questions of an operator on call, as filters: parameters as they are now. */
const QUESTIONS = [
  ["overdue", "Wait is over", () => ({ waiting: "any", wait_ends_before: minutesAgo(0.1), sort: "wait" })],
  ["ending", "Wait ends soon", () => ({ sort: "wait" })],
  ["quiet", `Running, quiet for ${QUIET_MINUTES} min`, () => ({ status: "running", updated_before: minutesAgo(QUIET_MINUTES) })],
  ["unstarted", `Not started for ${QUIET_MINUTES} min`, () => ({ status: "created", updated_before: minutesAgo(QUIET_MINUTES) })],
  ["cancelling", "Cancel asked for", () => ({ cancel_requested: "true", status: "created,running,waiting" })],
  ["failed", "Failed in the last hour", () => ({ status: "failed", updated_after: minutesAgo(60) })],
];
const OF_ANY_QUESTION = ["q", "owner", "controller"];

function waitWords(flow) {
  const wait = flow.wait_json;
  if (flow.cancel_requested && !["finished", "failed", "cancelled"].includes(flow.status)) return el("span", { class: "grave" }, "cancel asked for");
  if (!wait) return "";
  const what = wait.kind === "external_event" ? said(wait.topic, 60) : { timer: "a time", steps: "its steps" }[wait.kind] ?? "a person";
  const end = flow.wait_ends_at ? ago(flow.wait_ends_at, (ms) => (ms > 0 ? `over ${span(ms)}` : `${span(-ms)} left`)) : null;
  return [what, end ? " · " : null, end];
}

function cellsOf(flow) {
  return [
    badge(flow.status),
    el("a", { class: "goal", href: `#/flows/${flow.id}` }, said(flow.goal, 120)),
    said(flow.owner_session_key, 60),
    said(flow.current_step, 40),
    el("span", {}, waitWords(flow)),
    ago(flow.updated_at),
  ];
}

const CREATE = `echo '{"kind": "create_managed", "flow_id": "'$(uuidgen)'", "issued_by": "me", "controller_id": "me", "requester_origin": "shell", "goal": "try it"}' | taskflow send --wait`;

function noFlows() {
  return [el("h2", {}, "No flows yet"),
    el("p", {}, "A flow comes from a ", el("code", {}, "create_managed"), " command on the topic ", el("code", {}, "commands"), ". In a terminal:"),
    el("pre", { tabindex: "0" }, CREATE), el("p", {}, el("code", {}, "taskflow demo"), " makes some of its own.")];
}

export function showFlows(main, { query, signal, before, keepPlace }) {
  const question = QUESTIONS.find(([key]) => key === query.get("ask"));
  const preset = question?.[2]() ?? {};
  const own = Object.fromEntries(FIELDS.map((name) => [name, query.get(name) ?? ""]));
  const chosen = Object.fromEntries(FIELDS.map((name) => [name, own[name] || preset[name] || ""]));
  const filtered = Boolean(question) || FIELDS.some((name) => own[name]);
  /** What a question asks for now, and what else is chosen. */
  const asked = (parameters) => ({ ...parameters(), ...Object.fromEntries(Object.entries(own).filter(([, value]) => value)) });
  const cursors = [...(before.cursors ?? [null])];
  const rows = new Map();
  const body = table("Flows", COLUMNS, []);
  const note = el("div", { class: "empty", role: "status", hidden: true });
  const older = el("button", { type: "button", disabled: true }, "Older ›");
  const newer = el("button", { type: "button", disabled: true }, "‹ Newer");
  const where = el("span", { class: "quiet" }, "");
  const limit = el("p", { class: "quiet", role: "status", hidden: true }, `A condition is looked for in ${number(SEARCHED_MAX)} flows of each view worker, in the chosen order: others may match too. A status, an owner, a controller or words narrow the search.`);
  let next = null;

  const address = (changed) => {
    const wanted = new URLSearchParams();
    for (const [name, value] of Object.entries(changed)) if (value) wanted.set(name, value);
    return `#/flows${wanted.size ? `?${wanted}` : ""}`;
  };
  const go = (changed) => { location.hash = address(changed); };
  const select = (name, label, options) => el("label", {}, label, el("select", { name },
    options.map(([value, words]) => el("option", { value, selected: chosen[name] === value }, words))));
  const input = (name, label, type, words) => el("label", {}, label,
    el("input", { name, type, value: chosen[name], placeholder: words, autocomplete: "off", spellcheck: "false", maxlength: 256 }));
  const chosenCount = FIELDS.filter((name) => name !== "q" && chosen[name]).length;
  const toggle = el("button", { type: "button", class: "toggle", "aria-expanded": "false", "aria-controls": "more-filters", on: { click: () => {
    const open = toggle.getAttribute("aria-expanded") !== "true";
    toggle.setAttribute("aria-expanded", String(open));
  } } }, chosenCount ? `Filters (${chosenCount})` : "Filters");
  const form = el("form", { class: "filters", role: "search", "aria-label": "Flows", on: {
    submit: (event) => {
      event.preventDefault();
      // A question stands for what it has chosen until another is chosen.
      const fields = Object.fromEntries(new FormData(form));
      const stands = question && FIELDS.every((name) => !(name in preset) || fields[name] === preset[name]);
      go(stands ? { ...fields, ...Object.fromEntries(Object.keys(preset).map((name) => [name, null])), ask: question[0] } : fields);
    },
    change: (event) => { if (event.target.tagName === "SELECT") form.requestSubmit(); },
  } },
    input("q", "Search", "search", "id, owner, words, state.key=value"),
    toggle,
    el("div", { class: "more", id: "more-filters" }, select("status", "Status", [["", "any"], ...["created", "running", "waiting", "finished", "failed", "cancelled", ...(chosen.status.includes(",") ? [chosen.status] : [])].map((status) => [status, status.replaceAll(",", ", ")])]),
    select("waiting", "Waits for", [["", "anything, or nothing"], ["any", "anything"], ["timer", "a time"], ["external_event", "an event"], ["manual", "a person"], ["steps", "its steps"]]),
    input("owner", "Owner", "text", "exactly"),
    input("controller", "Controller", "text", "exactly"),
    select("sort", "Order", [["", "changed last"], ["created", "newest"], ["wait", "wait ends soonest"]]),
    el("button", {}, "Find"),
    filtered ? el("a", { class: "clear", href: "#/flows" }, "Clear") : null));
  const kept = Object.fromEntries(OF_ANY_QUESTION.map((name) => [name, own[name]]));
  const counts = new Map(QUESTIONS.map(([key]) => [key, el("span", { class: "counted" })]));
  const asking = el("ul", { class: "questions", "aria-label": "What may be stuck" },
    QUESTIONS.map(([key, words]) => el("li", {}, el("a", {
      href: address({ ...kept, ask: question?.[0] === key ? null : key }), "aria-current": question?.[0] === key ? "true" : null },
    words, " ", counts.get(key)))));

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
    limit.hidden = page.searched_all !== false;
    where.textContent = cursors.length > 1 || next ? `page ${cursors.length}` : "";
    note.hidden = page.items.length > 0;
    note.replaceChildren(...(filtered ? [own.q ? "No flows match. Words are found from their beginning; a field of the state as state.priority=high. " : "No flows match. ", el("a", { href: "#/flows" }, "Show all")] : noFlows()));
    body.hidden = page.items.length === 0;
    older.parentElement.hidden = next === null && cursors.length === 1;
  };
  const load = async (wanted) => {
    try {
      const parameters = asked(question?.[2] ?? (() => ({})));
      const cursor = cursors.at(-1);
      const page = await get("flows", { ...parameters, limit: LIMIT, cursor }, wanted);
      if (cursor === cursors.at(-1)) shown(page); // else the reader has turned the page meanwhile
      return page;
    } catch (error) {
      if (error instanceof Problem) {
        note.hidden = false;
        body.hidden = true;
        note.textContent = line(error.message, 300);
      }
      throw error;
    }
  };
  const turn = async () => {
    const page = await load(signal);
    keepPlace({ cursors });
    announce(`Page ${cursors.length}, ${page.items.length} flows`);
    body.scrollIntoView({ block: "nearest" });
  };
  older.addEventListener("click", () => { if (next) { cursors.push(next); turn().catch(unlessGone); } });
  newer.addEventListener("click", () => { if (cursors.length > 1) { cursors.pop(); turn().catch(unlessGone); } });

  body.tBodies[0].addEventListener("click", (event) => {
    if (event.target.closest("a, button") || event.ctrlKey || event.metaKey || !getSelection().isCollapsed) return;
    const link = event.target.closest("tr")?.querySelector("a");
    if (link) location.hash = link.getAttribute("href");
  });
  body.classList.add("flows");
  main.append(
    el("h1", { tabindex: "-1" }, "Flows"),
    asking, form, note, el("div", { class: "wide" }, body), limit,
    el("p", { class: "pages" }, newer, older, where));
  // One after the other: a browser has few connections for a host, and the list needs one.
  const count = async (wanted) => {
    const found = Object.fromEntries(Object.entries(kept).filter(([, value]) => value));
    for (const [key, , parameters] of QUESTIONS) {
      const { items, next_cursor: more } = await get("flows", { ...parameters(), ...found, limit: COUNTED_MAX }, wanted);
      counts.get(key).textContent = more ? `${COUNTED_MAX}+` : String(items.length);
      counts.get(key).classList.toggle("none", items.length === 0);
    }
  };
  keep((wanted) => (cursors.length > 1 ? null : count(wanted)), COUNT_MS, signal);
  // A page behind the first is a place to read in: it does not move under the reader.
  keep((wanted) => (rows.size > 0 && cursors.length > 1 ? null : load(wanted)), REFRESH_MS, signal);
}

// The frame: which page is shown, how fresh it is, and the counts that stand above all of them.

import { onView, get, keep } from "./api.js";
import { announce, el, number, rate, span } from "./dom.js";
import { showAudit } from "./audit.js";
import { showFlow } from "./flow.js";
import { showFlows } from "./flows.js";
import { showDeadLetters, showPartitions, showStatistics } from "./others.js";

const COUNTS_EVERY_MS = 2000;
const WORKERS_EVERY_MS = 5000;
const STATUSES = ["created", "running", "waiting", "finished", "failed", "cancelled"];
const main = document.getElementById("main");
const counts = document.getElementById("counts");
let leaving = new AbortController();

const PAGES = [
  [/^\/flows\/([0-9a-f-]{36})$/, showFlow, "Flow"],
  [/^\/flows$/, showFlows, "Flows"],
  [/^\/audit$/, showAudit, "Audit"],
  [/^\/statistics$/, showStatistics, "Statistics"],
  [/^\/deadletters$/, showDeadLetters, "Dead letters"],
  [/^\/partitions$/, showPartitions, "Partitions"],
];

function route(first) {
  const [path, query = ""] = (location.hash.slice(1) || "/flows").split("?");
  if (path === "main") return; // the skip link
  leaving.abort();
  leaving = new AbortController();
  const found = PAGES.find(([pattern]) => pattern.test(path)) ?? PAGES[1];
  const [pattern, show, title] = found;
  document.title = `${title} – taskflow`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = path.startsWith(link.getAttribute("href").slice(1));
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.replaceChildren();
  show(main, { query: new URLSearchParams(query), argument: pattern.exec(path)?.[1], signal: leaving.signal });
  if (!first) {
    main.querySelector("h1")?.focus();
    scrollTo(0, 0);
    announce(title);
  }
}

// Partitions that no worker decides; a page that shows all that happened is not up to date then.
let unassigned = [];

onView((view) => {
  const fresh = document.getElementById("fresh");
  const text = document.getElementById("fresh-text");
  let [state, words] = ["good", "up to date"];
  if (view === null) [state, words] = ["bad", "no answer"];
  else if (!view.complete) [state, words] = ["bad", `without partition ${view.missing.join(", ")}`];
  else if (view.behind === null) [state, words] = ["unknown", "starting"];
  else if (view.behind > 0) {
    const late = view.lag_ms ?? 0;
    state = late > 5000 ? "bad" : "good";
    words = late > 1000 ? `${span(late)} behind` : "up to date";
  }
  if (state === "good" && unassigned.length) {
    [state, words] = ["bad", `no worker for partition ${unassigned.join(", ")}`];
  }
  fresh.dataset.state = state;
  if (text.textContent !== words) text.textContent = words;
});

// Made once and changed in place, so that nobody loses the focus.
const cells = new Map();

function count(key, label, href) {
  const figure = el("span", { class: "figure" }, "–");
  cells.set(key, figure);
  return el(href ? "a" : "div", { class: "count", href, "data-status": key }, figure, el("span", { class: "label" }, label));
}

counts.append(
  ...STATUSES.map((status) => count(status, status, `#/flows?status=${status}`)),
  count("rate", "events/s"),
  count("ended", "ended/s"),
  count("ratio", "failed, of ended"),
);

async function askForWorkers(signal) {
  const found = await get("partitions", {}, signal);
  unassigned = found.unassigned ?? [];
}

async function showCounts(signal) {
  const found = await get("statistics", { minutes: 60 }, signal);
  const ended = found.rates.finished + found.rates.failed + found.rates.cancelled;
  const values = {
    ...Object.fromEntries(STATUSES.map((status) => [status, number(found.flows[status] ?? 0)])),
    rate: rate(found.rates.events),
    ended: rate(ended),
    ratio: found.failure_ratio === null ? "–" : `${Math.round(found.failure_ratio * 1000) / 10} %`,
  };
  for (const [key, value] of Object.entries(values)) {
    if (cells.get(key).textContent !== value) cells.get(key).textContent = value;
  }
}

addEventListener("hashchange", () => route(false));
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName)) return;
  const search = main.querySelector("input[type=search]");
  if (search) {
    event.preventDefault();
    search.focus();
  }
});
route(true);
keep(askForWorkers, WORKERS_EVERY_MS, new AbortController().signal);
keep(showCounts, COUNTS_EVERY_MS, new AbortController().signal);

// The frame: which page is shown, how fresh it is, and the counts that stand above all of them.

import { get, keep, onView } from "./api.js";
import { announce, el, number, rate, span, svg } from "./dom.js";
import { showAudit } from "./audit.js";
import { lookForDeadLetters, lookForWorkers, unassigned, viewed } from "./banner.js";
import { showFlow } from "./flow.js";
import { showFlows } from "./flows.js";
import { showDeadLetters } from "./letters.js";
import { showPartitions, showStatistics } from "./others.js";
import "./keys.js";

const COUNTS_EVERY_MS = 2000;
const WORKERS_EVERY_MS = 5000;
const DEAD_LETTERS_EVERY_MS = 10_000;
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
const NOWHERE = [/^/, showNowhere, "No such page"];

function showNowhere(into) {
  into.append(el("h1", { tabindex: "-1" }, "No such page"), el("p", { class: "empty" }, "The address names no page of these views. ", el("a", { href: "#/flows" }, "Show the flows")));
}

/** Where a reader was is kept in the history: on the way back a page is as it was left. */
function keepPlace(place) {
  history.replaceState({ ...history.state, ...place }, "");
}

function route(first) {
  const [path, query = ""] = (location.hash.slice(1) || "/flows").split("?");
  if (path === "main") return; // the skip link
  leaving.abort();
  leaving = new AbortController();
  const [pattern, show, title] = PAGES.find(([one]) => one.test(path)) ?? NOWHERE;
  document.title = `${title} – taskflow`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = path.startsWith(link.getAttribute("href").slice(1));
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const before = history.state ?? {};
  main.replaceChildren();
  // Until its rows are there again, a page is too short to stand where it stood.
  main.style.minHeight = before.scroll ? `${before.scroll + innerHeight}px` : "";
  show(main, { query: new URLSearchParams(query), argument: pattern.exec(path)?.[1], signal: leaving.signal, before, keepPlace });
  if (!first) {
    main.querySelector("h1")?.focus({ preventScroll: true });
    announce(title);
  }
  scrollTo(0, before.scroll ?? 0);
}

let scrolled = null;
addEventListener("scroll", () => {
  const { signal } = leaving;
  clearTimeout(scrolled);
  scrolled = setTimeout(() => { if (!signal.aborted) keepPlace({ scroll: scrollY }); }, 100);
}, { passive: true });
history.scrollRestoration = "manual";

onView((view) => {
  viewed(view);
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
  if (state === "good" && unassigned().length) {
    [state, words] = ["bad", `no worker for partition ${unassigned().join(", ")}`];
  }
  fresh.dataset.state = state;
  if (text.textContent !== words) text.textContent = words;
});

// Made once and changed in place, so that the focus stays.
const cells = new Map();
const hour = svg("svg", { class: "spark", viewBox: "0 0 60 20", preserveAspectRatio: "none", role: "img", "aria-label": "Events a minute, the last hour" });

function count(key, label, href, ...more) {
  const figure = el("span", { class: "figure" }, "–");
  cells.set(key, figure);
  return el(href ? "a" : "div", { class: "count", href, "data-status": key }, figure, el("span", { class: "label" }, label), more);
}

counts.append(
  ...STATUSES.map((status) => count(status, status, `#/flows?status=${status}`)),
  count("rate", "events/s, 5 min", null, hour),
  count("ended", "ended/s, 5 min"),
  count("ratio", "failures, 1 h"),
);

/** A line of the last hour's events, minute by minute; the one under way is its end. */
function line(series) {
  const highest = Math.max(1, ...series.map((minute) => minute.events));
  const points = series.map(({ events }, n) => `${(60 * n / Math.max(1, series.length - 1)).toFixed(1)},${(19 - 18 * events / highest).toFixed(1)}`).join(" ");
  if (hour.dataset.points === points) return;
  hour.dataset.points = points;
  hour.replaceChildren(svg("polyline", { points }));
  hour.setAttribute("aria-label", `Events a minute, the last hour: at most ${number(highest)}`);
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
  line(found.series);
}

addEventListener("hashchange", () => route(false));
route(true);
const always = new AbortController().signal;
keep(lookForWorkers, WORKERS_EVERY_MS, always);
keep(showCounts, COUNTS_EVERY_MS, always);
keep(lookForDeadLetters, DEAD_LETTERS_EVERY_MS, always);

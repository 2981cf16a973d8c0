// One flow: why it stands where it does, its states and steps over time, its events, its state.

import { actionBar, actionsOf } from "./act.js";
import { prompted } from "./answer.js";
import { Problem, get, keep, stream, unlessGone } from "./api.js";
import { ago, announce, badge, copyable, el, json, line, moment, number, said, span } from "./dom.js";
import { diff } from "./diff.js";
import { eventItem, written } from "./events.js";
import { timeline } from "./timeline.js";
import { why } from "./why.js";

const REFRESH_MS = 5000;
const EVENTS_PAGE = 100;
const EVENTS_MAX = 1000;

function panel(name, title, ...children) {
  return el("section", { class: `panel ${name}-panel`, "aria-labelledby": `${name}-title` }, el("h2", { id: `${name}-title`, tabindex: "-1" }, title), ...children);
}

/** Make what stands in `place` again only where `key` is another one: what is being read or copied stays. */
function showOnce(place, key, made) {
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.replaceChildren(...made(key));
}

export function showFlow(main, { argument: flowId, signal }) {
  const heading = el("h1", { tabindex: "-1" }, "Flow");
  const reasons = el("ul", { class: "why" });
  const does = el("div", {});
  const goal = el("div", {});
  const facts = el("dl", { class: "facts" });
  const times = timeline();
  const list = el("ol", { class: "events", reversed: true });
  const more = el("button", { type: "button", hidden: true }, "Earlier events");
  const stateView = el("div", {});
  const stateTitle = el("p", { class: "quiet" });
  const back = el("button", { type: "button" }, "‹ Revision before");
  const forth = el("button", { type: "button" }, "Revision after ›");
  const note = el("p", { class: "empty", hidden: true });
  const content = el("div", { class: "flow", hidden: true },
    panel("why", "Where it stands", reasons, does),
    panel("times", "States and steps over time", times.element),
    el("div", {}, panel("events", "Events, newest first", list, more)),
    el("div", {}, panel("facts", "The flow", goal, facts), panel("state", "State", el("p", { class: "pages" }, back, forth), stateTitle, stateView)));
  main.append(heading, note, content);

  let flow = null;
  let known = []; // events, newest first
  let cursor = null;
  let partition = null;
  let revision = null; // null: whatever is newest
  let stateShown = "";

  const showWhy = () => {
    if (!flow) return;
    const found = why(flow.flow, flow.steps, partition);
    const text = JSON.stringify(found);
    if (reasons.dataset.text === text) return;
    reasons.dataset.text = text;
    reasons.replaceChildren(...found.map(({ sentence, grave }) => el("li", { class: grave ? "grave" : null }, el("bdi", {}, sentence))));
  };
  const showFacts = () => {
    const it = flow.flow;
    heading.replaceChildren(badge(it.status), " ", said(it.goal, 160));
    showOnce(goal, it.goal.length > 160 || it.goal.includes("\n") ? it.goal : "", (text) => (text ? [el("h3", {}, "Goal"), written(text)] : []));
    const reason = it.status === "failed" ? it.state_json?.failure?.reason : null;
    showOnce(does, JSON.stringify([it.status, it.revision, it.cancel_requested]), () => [
      typeof reason === "string" && (reason.includes("\n") || reason.length > 300) ? el("details", {}, el("summary", {}, "The whole reason"), written(reason)) : null,
      actionBar(actionsOf(flow))].filter(Boolean));
    document.title = `${line(it.goal, 60)} – taskflow`;
    const entries = [
      ["Id", copyable(it.id)],
      ["Owner", el("a", { href: `#/flows?${new URLSearchParams({ owner: it.owner_session_key })}` }, said(it.owner_session_key, 120))],
      ["Controller", el("a", { href: `#/flows?${new URLSearchParams({ controller: it.controller_id })}` }, said(it.controller_id, 120))],
      ["Origin", said(it.requester_origin, 120)],
      ["Current step", said(it.current_step, 120)],
      ["Revision", number(it.revision)],
      ["Events", number(flow.events)],
      ["Partition", el("a", { href: "#/partitions" }, `${flow.partition}`, partition ? [", decided by ", partition.worker === null ? "no worker" : said(partition.worker, 60)] : null)],
      ["Created", el("span", {}, moment(it.created_at), " · ", ago(it.created_at))],
      ["Changed", el("span", {}, moment(it.updated_at), " · ", ago(it.updated_at))],
      ["Its owner may send", flow.allowed.length ? flow.allowed.join(", ").replaceAll("_", " ") : "nothing"],
    ];
    const wait = it.wait_json;
    if (wait) {
      const until = wait.kind === "timer" ? wait.at : wait.timeout_at;
      entries.splice(1, 0, ["Waits for", el("span", {},
        wait.kind === "external_event" ? ["the event ", said(wait.topic, 120), ", correlation id ", copyable(said(wait.correlation_id, 120), wait.correlation_id, "the correlation id")] : wait.kind === "timer" ? "a time" : wait.kind === "steps" ? (wait.run_ids ? ["the steps ", said(wait.run_ids.join(", "), 200)] : "all its steps") : "a person to resume it",
        until ? [" · ", ago(until, (ms) => (ms > 0 ? `over ${span(ms)}` : `${span(-ms)} left`))] : " · without a limit")]);
    }
    if (wait && wait.prompt !== undefined && wait.prompt !== null) entries.splice(2, 0, ["It asks", typeof wait.prompt === "string" ? written(wait.prompt) : prompted(wait)]);
    showOnce(facts, JSON.stringify([it, flow.events, partition]), () => entries.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  };
  const showTimes = () => {
    if (flow) times.show(flow.flow, flow.steps, flow.steps_total, [...known].reverse(), cursor === null);
  };
  const showState = async () => {
    const at = revision ?? flow.flow.revision;
    const key = `${at}`;
    back.disabled = at === 0;
    forth.disabled = at >= flow.flow.revision;
    if (stateShown === key) return;
    stateShown = key;
    const stateAt = async (wanted) => (wanted === flow.flow.revision ? flow.flow.state_json : (await get(`flows/${flowId}`, { revision: wanted }, signal)).flow.state_json);
    try {
      const is = await stateAt(at);
      const was = at === 0 ? {} : await stateAt(at - 1);
      if (stateShown !== key) return;
      stateTitle.textContent = `At revision ${at}${at === flow.flow.revision ? ", the newest" : ` of ${flow.flow.revision}`}; what changed since the one before:`;
      stateView.replaceChildren(diff(was, is), el("h3", {}, "All of it"), json(is));
    } catch (error) {
      stateShown = "";
      if (!(error instanceof Problem)) throw error;
      stateView.replaceChildren(el("p", { class: "quiet" }, line(error.message, 300)));
    }
  };
  const travel = (wanted, far = false) => {
    revision = wanted >= flow.flow.revision ? null : Math.max(0, wanted);
    showState().catch(unlessGone);
    if (far) document.getElementById("state-title").focus();
    announce(`State at revision ${wanted}`);
  };
  back.addEventListener("click", () => travel((revision ?? flow.flow.revision) - 1));
  forth.addEventListener("click", () => travel((revision ?? flow.flow.revision) + 1));

  const items = new Map();
  const showEvents = () => {
    const owner = flow?.flow.owner_session_key ?? known.find((event) => event.kind === "created")?.payload_json.owner_session_key;
    known.forEach((event, place) => {
      const earlier = known[place + 1];
      if (items.has(event.id)) items.get(event.id).follows(earlier);
      else items.set(event.id, eventItem(event, earlier, owner, travel));
      const made = items.get(event.id);
      if (list.children[place] !== made) list.insertBefore(made, list.children[place] ?? null);
    });
    more.hidden = cursor === null || known.length >= EVENTS_MAX;
    showTimes();
  };
  const take = (events) => {
    const ids = new Set(known.map((event) => event.id));
    known = [...known, ...events.filter((event) => !ids.has(event.id))].sort((a, b) => b.id - a.id).slice(0, EVENTS_MAX);
    showEvents();
  };
  const loadEvents = async () => {
    const page = await get(`flows/${flowId}/history`, { order: "desc", limit: EVENTS_PAGE, cursor }, signal);
    cursor = page.next_cursor;
    take(page.items);
  };
  more.addEventListener("click", () => loadEvents().catch(unlessGone));

  const load = async (wanted, after = null) => {
    try {
      flow = await get(`flows/${flowId}`, { after }, wanted);
      note.hidden = true;
      content.hidden = false;
      showFacts();
      showWhy();
      showTimes();
      await showState();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      note.hidden = false;
      if (error.code !== "not_found") note.textContent = line(error.message, 300);
      else note.replaceChildren(known.length > 0 ? "This flow was pruned; its events are still here. " : "There is no such flow: it may be of another deployment, or not created yet. ", el("a", { href: "#/flows" }, "Show the flows"));
      if (error.code === "not_found" && known.length > 0) content.hidden = false;
    }
  };
  let waiting = null;
  const changed = (told) => {
    take([told.event]);
    // Many events that come at once are one look.
    waiting ??= setTimeout(() => {
      waiting = null;
      load(signal, known[0]?.id).catch(unlessGone);
    }, 100);
  };
  loadEvents().catch(unlessGone);
  keep(load, REFRESH_MS, signal);
  keep(async (wanted) => {
    const found = await get("partitions", {}, wanted);
    partition = flow ? found.items.find((one) => one.partition === flow.partition) ?? null : null;
    if (flow) { showFacts(); showWhy(); }
  }, REFRESH_MS, signal);
  stream({ flow: flowId }, changed, signal, { open: () => loadNewest().catch(unlessGone) });
  const loadNewest = async () => {
    const page = await get(`flows/${flowId}/history`, { order: "desc", limit: EVENTS_PAGE }, signal);
    take(page.items);
  };
}

// What needs an operator, on every page: partitions without a worker, views that are not whole, new dead letters.

import { get } from "./api.js";
import { el, number } from "./dom.js";

const SEEN = "taskflow.dead-letters-seen";
const COUNTED_MAX = 50;
const banner = document.getElementById("banner");
const STANDS_MS = 15_000;
const LATE_MS = 10_000;
const state = { unassigned: [], undecided: 0, stands: [], missing: [], late: false, fresh: 0 };
const moved = new Map(); // partition → how far its worker was, and since when

export const unassigned = () => state.unassigned;

const list = (partitions) => `partition${partitions.length === 1 ? "" : "s"} ${partitions.join(", ")}`;

function problems() {
  const found = [];
  if (state.unassigned.length) {
    const waiting = state.undecided ? ` ${number(state.undecided)} command${state.undecided === 1 ? " waits" : "s wait"}.` : " Commands there wait.";
    found.push([`No worker has ${list(state.unassigned)}.`, waiting, " Start one: ", el("code", {}, "taskflow worker"), el("a", { href: "#/partitions" }, "Partitions")]);
  }
  if (state.stands.length) found.push([`The worker of ${list(state.stands)} has decided nothing for ${STANDS_MS / 1000} s, and commands wait. `, el("a", { href: "#/partitions" }, "Partitions")]);
  if (state.late) found.push([`What is shown here is more than ${LATE_MS / 1000} s behind. `, el("a", { href: "#/partitions" }, "Partitions")]);
  if (state.missing.length) found.push([`No view worker shows ${list(state.missing)}: flows there are missing here. `, el("a", { href: "#/partitions" }, "Partitions")]);
  if (state.fresh) found.push([`${state.fresh >= COUNTED_MAX ? `${COUNTED_MAX}+` : state.fresh} new dead letter${state.fresh === 1 ? "" : "s"}: records that could not be read as commands. `, el("a", { href: "#/deadletters" }, "Look")]);
  return found;
}

function badge(name, count, words) {
  const made = document.getElementById(`badge-${name}`);
  made.hidden = count === 0;
  made.replaceChildren(el("span", { "aria-hidden": "true" }, count >= COUNTED_MAX ? `${COUNTED_MAX}+` : String(count)), el("span", { class: "unseen" }, `(${count} ${words})`));
}

function show() {
  const key = JSON.stringify(state);
  if (banner.dataset.key === key) return; // a screen reader is not interrupted
  banner.dataset.key = key;
  const found = problems();
  banner.hidden = found.length === 0;
  banner.firstElementChild.replaceChildren(...found.map((words) => el("li", {}, words)));
  badge("partitions", state.unassigned.length + state.stands.length, state.stands.length ? "that do not go on" : "without a worker");
  badge("deadletters", state.fresh, "new");
}

export function viewed(view) {
  if (view) {
    state.missing = view.complete ? [] : view.missing;
    state.late = (view.lag_ms ?? 0) > LATE_MS;
  }
  show();
}

/** Whether a worker has a backlog, and has not moved for a while. */
function stands({ partition, worker, commands, control }) {
  const at = `${commands?.committed} ${control?.committed}`;
  const before = moved.get(partition);
  const behind = (commands?.behind ?? 0) + (control?.behind ?? 0);
  if (before?.at !== at || behind === 0) moved.set(partition, { at, since: Date.now() });
  return worker !== null && behind > 0 && Date.now() - moved.get(partition).since >= STANDS_MS;
}

export async function lookForWorkers(signal) {
  const found = await get("partitions", {}, signal);
  state.stands = found.items.filter(stands).map((one) => one.partition);
  state.unassigned = found.unassigned ?? [];
  state.undecided = found.undecided ?? 0;
  document.body.dataset.acts = found.actions; // the style shows the buttons of actions then
  show();
}

const order = (one) => `${one.at} ${String(one.partition).padStart(9, "0")} ${String(one.offset).padStart(18, "0")}`;

export async function lookForDeadLetters(signal) {
  const { items } = await get("deadletters", { limit: COUNTED_MAX }, signal);
  const seen = localStorage.getItem(SEEN) ?? "";
  state.fresh = items.filter((one) => order(one) > seen).length;
  show();
}

/** The list of dead letters was looked at, down from `newest`. */
export function deadLettersSeen(newest) {
  if (!newest || order(newest) <= (localStorage.getItem(SEEN) ?? "")) return;
  localStorage.setItem(SEEN, order(newest));
  state.fresh = 0;
  show();
}

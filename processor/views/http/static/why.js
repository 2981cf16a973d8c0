// Why a flow stands still, in sentences.

import { line, span } from "./dom.js";

export const QUIET_MS = 15 * 60 * 1000;
const TERMINAL = new Set(["finished", "failed", "cancelled"]);

function ofTheWait(flow, now) {
  const wait = flow.wait_json;
  const until = wait.kind === "timer" ? wait.at : wait.timeout_at;
  const left = until ? Date.parse(until) - now : null;
  const end = left === null ? "It has no time limit." : left < 0 ? `Its time was over ${span(-left)} ago.` : `It ends by itself in ${span(left)}.`;
  const since = span(now - Date.parse(flow.updated_at));
  const what = {
    timer: "It sleeps",
    external_event: `It waits for the event “${line(wait.topic, 80)}” with the correlation id “${line(wait.correlation_id, 80)}”`,
    manual: "It waits for a person to resume it",
    steps: wait.run_ids ? `It waits for ${wait.mode === "any" ? "one of " : ""}the steps “${line(wait.run_ids.join(", "), 120)}”` : "It waits for all its steps",
  }[wait.kind] ?? "It waits";
  return [{ sentence: `${what}, since ${since}. ${end}`, grave: left !== null && left < -10_000 }];
}

/** `[{sentence, grave}]`, what matters most first. `partition`: as /v1/partitions has it, or null. */
export function why(flow, steps, partition, now = Date.now()) {
  const found = [];
  const quiet = now - Date.parse(flow.updated_at);
  if (TERMINAL.has(flow.status)) {
    const reason = flow.status === "failed" ? flow.state_json?.failure?.reason : null;
    return [{ sentence: `It has ended: ${flow.status}, ${span(quiet)} ago.${reason ? ` The reason given: “${line(reason, 300)}”` : ""}`, grave: flow.status === "failed" }];
  }
  if (partition && partition.worker === null) {
    found.push({ sentence: `Its partition, ${partition.partition}, has no worker: nothing decides its commands.`, grave: true });
  }
  const behind = partition ? (partition.commands?.behind ?? 0) + (partition.control?.behind ?? 0) : 0;
  if (behind > 100) {
    found.push({ sentence: `${behind} commands of its partition are waiting to be decided.`, grave: behind > 10_000 });
  }
  if (flow.cancel_requested) {
    found.push({ sentence: "Its cancel was requested: only a cancel is accepted now, and its owner has not sent one.", grave: true });
  }
  if (flow.status === "waiting" && flow.wait_json) found.push(...ofTheWait(flow, now));
  if (flow.status === "created") {
    found.push({ sentence: `It has not been started for ${span(quiet)}.`, grave: quiet > QUIET_MS });
  }
  const last = (status) => steps.filter((step) => step.status === status).at(-1);
  const failed = last("failed");
  const running = last("running") ?? last("pending");
  if (failed && steps.at(-1) === failed) {
    found.push({ sentence: `Its newest step, “${line(failed.task, 80)}”, failed ${span(now - Date.parse(failed.updated_at))} ago.`, grave: true });
  }
  if (running) {
    const session = running.child_session_key ? `, in the session “${line(running.child_session_key, 80)}”` : "";
    const age = now - Date.parse(running.updated_at);
    found.push({ sentence: `Its step “${line(running.task, 80)}” is ${running.status}${session}, unchanged for ${span(age)}.`, grave: age > QUIET_MS });
  }
  if (flow.status === "running" && !running && !flow.cancel_requested) {
    found.push({ sentence: quiet > QUIET_MS
      ? `It runs, and its owner, “${line(flow.owner_session_key, 80)}”, has said nothing for ${span(quiet)}; its current step is “${line(flow.current_step, 80)}”.`
      : `It runs: its last change was ${span(quiet)} ago, its current step is “${line(flow.current_step, 80)}”.`, grave: quiet > QUIET_MS });
  }
  return found;
}

// Actions of an operator: a form with a preview, a name and a reason, and what came of it.

import { answerTo, prompted } from "./answer.js";
import { Problem, act } from "./api.js";
import { announce, el, line, said } from "./dom.js";

const NAME = "taskflow.operator";
const LIVE = new Set(["created", "running", "waiting"]);

/** What may be done to a flow as it stands: `[{words, ...}]` for `open`. */
export function actionsOf({ flow }) {
  const about = { path: "control", flow, subject: flow.goal, body: () => ({ flow_id: flow.id, expected_revision: flow.revision }) };
  const found = [];
  if (flow.status === "waiting" && !flow.cancel_requested) found.push({ ...about, words: "Resume", kind: "resume", asks: flow.wait_json });
  if (LIVE.has(flow.status)) {
    if (!flow.cancel_requested) found.push({ ...about, words: "Ask to cancel", kind: "request_cancel" });
    found.push({ ...about, words: "Cancel", kind: "cancel", grave: true });
  }
  return found;
}

/** The same of a managed step of a flow. */
export function actionsOfStep(flow, step) {
  if (!step.execution || !LIVE.has(flow.status)) return [];
  // Steps change without a revision: their status decides.
  const about = { path: "control", flow, subject: `${step.task}, ${step.run_id}`, body: () => ({ flow_id: flow.id, run_id: step.run_id }) };
  return [
    ["pending", "failed", "cancelled"].includes(step.status) && !flow.cancel_requested ? { ...about, words: "Retry step", kind: "retry_step", counts: true } : null,
    ["pending", "running"].includes(step.status) ? { ...about, words: "Cancel step", kind: "cancel_step", grave: true } : null,
  ].filter(Boolean);
}

/** The same of a dead letter. */
export function actionsOfDeadLetter(letter, done) {
  const place = `${letter.partition}/${letter.offset}`;
  return [{ path: `deadletters/${place}/redrive`, subject: `${place}, ${letter.code}`, words: "Edit and send back", letter, done, body: () => ({}) }];
}

/** Their buttons; they are seen where these views take actions. */
export function actionBar(actions) {
  return el("p", { class: "acts" }, actions.map((action) => el("button", { type: "button", class: action.grave ? "danger" : null, on: { click: () => open(action) } }, `${action.words} …`)));
}

const field = (label, input) => el("label", {}, label, input);

function open(action) {
  const name = el("input", { name: "name", required: true, maxlength: 240, autocomplete: "off", spellcheck: "false", value: sessionStorage.getItem(NAME) ?? "" });
  const reason = el("textarea", { name: "reason", rows: 2, required: true, maxlength: 4096 });
  const answer = action.asks ? answerTo(action.asks) : null;
  const merged = action.asks ? el("p", { class: "quiet", "aria-live": "polite" }) : null;
  const attempts = action.counts ? el("input", { name: "attempts", type: "number", min: 1, max: 100, value: 1, required: true }) : null;
  const value = action.letter ? el("textarea", { name: "value", rows: 8, spellcheck: "false", class: "code" }) : null;
  const found = el("div", { class: "found", role: "status" });
  const preview = el("button", {}, "Preview");
  const confirm = el("button", { type: "button", class: action.grave ? "danger" : "primary", disabled: true }, action.words);
  const close = el("button", { type: "button", on: { click: () => dialog.close() } }, "Close");
  const form = el("form", { method: "dialog" },
    el("h2", { id: "act-title" }, action.words),
    el("p", { class: "quiet" }, said(action.subject, 200)),
    action.asks ? el("section", { class: "asks" }, el("h3", {}, "It asks"), prompted(action.asks, true)) : null,
    answer?.elements ?? null, merged,
    attempts ? field("Attempts more", attempts) : null,
    value ? field("Value", value) : null,
    el("div", { class: "pair" }, field("Your name", name), field("Reason", reason)),
    found, el("p", { class: "pages" }, preview, confirm, close));
  const dialog = el("dialog", { class: "act", "aria-labelledby": "act-title", on: { close: () => dialog.remove() } }, form);
  let original = null;

  const body = (dry) => ({
    issued_by: `operator:${name.value.trim()}`, reason: reason.value.trim(), dry_run: dry,
    ...(action.kind ? { kind: action.kind } : {}), ...action.body(),
    ...(answer?.value() === undefined ? {} : { state_patch: answer.value() }),
    ...(attempts ? { attempts: Number(attempts.value) } : {}),
    ...(value && value.value !== original ? { value: value.value } : {}),
  });
  const say = (grave, ...words) => {
    found.className = `found ${grave ? "grave" : "good"}`;
    found.replaceChildren(...words);
  };
  const send = async (dry) => {
    preview.disabled = confirm.disabled = true;
    found.className = "found quiet";
    found.replaceChildren(dry ? "Asking the processor …" : "Sending …");
    try {
      const came = await act(action.path, body(dry));
      const { grave, words, done } = action.letter && !came.outcome ? letterWords(came) : outcomeWords(came.outcome, dry);
      say(grave, ...words);
      confirm.disabled = !(dry && done);
      preview.disabled = false;
      if (!dry && done) {
        for (const one of [preview, confirm, ...form.querySelectorAll("label, .answer, .choices")]) one.hidden = true;
        announce(`${action.words}: accepted`);
        action.done?.();
        close.focus();
      } else if (dry && done) confirm.focus();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      preview.disabled = false;
      say(true, line(error.message, 600), ...error.errors.map((one) => el("p", {}, line(`${one.field}: ${one.problem}`, 300))));
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(NAME, name.value.trim());
    send(true);
  });
  confirm.addEventListener("click", () => send(false));
  form.addEventListener("input", () => {
    confirm.disabled = true;
    found.replaceChildren();
    const patch = answer?.value();
    if (merged) merged.textContent = patch ? `Merged into the state: ${line(JSON.stringify(patch), 300)}` : "Nothing is merged into the state.";
  });
  document.body.append(dialog);
  dialog.showModal();
  form.dispatchEvent(new Event("input"));
  (answer ?? value ?? (name.value ? reason : name)).focus();
  if (value) load(action, value, say).then((text) => { original = text; });
}

/** The whole letter, which the list has only the beginning of. */
async function load(action, value, say) {
  try {
    const whole = await act(action.path, { issued_by: "operator", reason: "look", dry_run: true });
    value.value = whole.value ?? "";
    value.disabled = whole.value === null;
    const { grave, words } = letterWords(whole);
    say(grave, ...words);
    return value.value;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    say(true, line(error.message, 600));
    return null;
  }
}

function letterWords({ topic, value, stays, faults }) {
  if (stays === null) return { grave: false, done: true, words: [`It would be read, and go back to ${line(topic ?? "", 200)}.`] };
  return { grave: true, done: false, words: [el("p", {}, `It stays: ${line(stays, 300)}.`),
    value === null ? el("p", {}, "Its value is not UTF-8: correct it with taskflow deadletters edit.") : null,
    faults.length > 1 ? el("ul", {}, faults.map((one) => el("li", {}, line(`${one.path ?? ""} ${one.problem}`, 300)))) : null].filter(Boolean) };
}

function outcomeWords(outcome, dry) {
  const { verdict, original, code, message, status, revision } = outcome;
  const done = verdict === "accepted" || (verdict === "duplicate" && original === "accepted");
  if (!done) return { grave: true, done, words: [el("strong", {}, `${dry ? "Would be " : ""}${verdict}, ${String(code).replaceAll("_", " ")}`), " ", line(message ?? "", 600)] };
  return { grave: false, done, words: [el("strong", {}, dry ? "Would be accepted" : verdict === "duplicate" ? "Accepted before" : "Accepted"),
    ` The flow ${dry ? "would be" : "is"} ${status}, revision ${revision}.${verdict === "accepted" && outcome.event_ids.length ? ` Event ${outcome.event_ids.join(", ")}.` : ""}`] };
}

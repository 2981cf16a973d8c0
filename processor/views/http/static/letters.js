// Dead letters: what could not be read as a command, where it lies, and how it goes back.

import { actionBar, actionsOfDeadLetter } from "./act.js";
import { get, unlessGone } from "./api.js";
import { deadLettersSeen } from "./banner.js";
import { ago, copyable, el, number, row, said, table, visible } from "./dom.js";
import { kept } from "./kept.js";

const COLUMNS = ["Place", "When", "Code", "What", "From", "Key", "Bytes", "Value"];
const ROWS_MAX = 1000;
const placeOf = (letter) => `${letter.partition}/${letter.offset}`;

function value(letter) {
  if (!letter.value) return "empty";
  const text = el("pre", { tabindex: "0" }, el("bdi", {}, visible(letter.value)));
  return el("details", {}, el("summary", {}, "show"), text);
}

function made(letter) {
  const place = placeOf(letter);
  const sent = el("p", { class: "good", hidden: true }, "Sent back.");
  return row(COLUMNS, [
    el("span", { class: "place" }, copyable(place, `taskflow deadletters show ${place}`, "the command that shows it")),
    ago(letter.at), el("code", {}, letter.code), said(letter.message, 200),
    `${letter.source.topic}/${letter.source.partition} @ ${letter.source.offset}`,
    letter.key === null ? "none" : said(letter.key, 40), number(letter.size),
    el("div", {}, value(letter), actionBar(actionsOfDeadLetter(letter, () => { sent.hidden = false; })), sent),
  ], { "data-letter": place });
}

export function showDeadLetters(main, { query, signal }) {
  const code = query.get("code") ?? "";
  const body = table("Dead letters, newest first", COLUMNS, []);
  const older = el("button", { type: "button", hidden: true }, "Older");
  const none = el("p", { class: "empty", hidden: true }, code ? "No dead letters have this code. " : "No dead letters: all records could be read as commands.", code ? el("a", { href: "#/deadletters" }, "Show all") : null);
  const codes = el("select", { name: "code", on: { change: () => { location.hash = `#/deadletters${codes.value ? `?code=${codes.value}` : ""}`; } } },
    [["", "any"], ...["malformed", "invalid_command", "invalid_key", "too_large", "unsupported_version", "internal_error"].map((one) => [one, one.replaceAll("_", " ")])].map(([one, words]) => el("option", { value: one, selected: one === code }, words)));
  let [cursor, first] = [null, null];
  main.append(el("h1", { tabindex: "-1" }, "Dead letters"), el("form", { class: "filters" }, el("label", {}, "Code", codes)));
  const take = (items, at) => {
    const there = new Set([...body.tBodies[0].rows].map((one) => one.dataset.letter));
    const fresh = items.filter((one) => !there.has(placeOf(one))).map(made);
    if (at === "top") body.tBodies[0].prepend(...fresh);
    else body.tBodies[0].append(...fresh);
    body.hidden = body.tBodies[0].rows.length === 0;
    none.hidden = !body.hidden;
  };
  kept(main, async (wanted) => {
    const page = await get("deadletters", { limit: 50, code }, wanted);
    take(page.items, "top");
    if (!code) deadLettersSeen(page.items[0]);
    if (first === null) {
      first = true;
      cursor = page.next_cursor;
      older.hidden = cursor === null;
    }
  }, signal);
  const further = async () => {
    const page = await get("deadletters", { limit: 50, cursor, code }, signal);
    cursor = page.next_cursor;
    older.hidden = cursor === null || body.tBodies[0].rows.length > ROWS_MAX;
    take(page.items, "bottom");
  };
  older.addEventListener("click", () => further().catch(unlessGone));
  main.append(none, el("div", { class: "wide" }, body), older);
}

// Statistics, dead letters, partitions.

import { Problem, get, keep, unlessGone } from "./api.js";
import { ago, badge, day, el, line, number, rate, row, said, span, svg, table, visible } from "./dom.js";

const REFRESH_MS = 3000;

/** Keep `load` going; what it could not do is said above. */
function kept(main, load, signal) {
  const note = el("p", { class: "empty", hidden: true });
  main.append(note);
  keep(async (wanted) => {
    try {
      await load(wanted);
      note.hidden = true;
    } catch (error) {
      if (error instanceof Problem) {
        note.hidden = false;
        note.textContent = line(error.message, 300);
      }
      throw error;
    }
  }, REFRESH_MS, signal);
}

function chart(series) {
  const [width, height] = [600, 120];
  const highest = Math.max(1, ...series.map((minute) => minute.events));
  const step = width / series.length;
  const bar = (value, n, name) => svg("rect", { class: name, x: n * step + step * 0.1, width: step * 0.8, y: height - (value / highest) * height, height: (value / highest) * height });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", preserveAspectRatio: "none", "aria-label": `Events a minute over ${series.length} minutes, at most ${highest}` },
    ...series.map((minute, n) => bar(minute.events, n, "events")), ...series.map((minute, n) => bar(minute.failed, n, "failed")));
}

export function showStatistics(main, { signal }) {
  const place = el("div", {});
  main.append(el("h1", { tabindex: "-1" }, "Statistics"));
  kept(main, async (wanted) => {
    const found = await get("statistics", { minutes: 60 }, wanted);
    const durations = ["Status", "Left it", "Mean", "Median", "90 %", "99 %", "Longest"];
    const kinds = ["Event", "Ever"];
    const rates = ["Per second", "Created", "Finished", "Failed", "Cancelled", "Events"];
    place.replaceChildren(
      el("section", { class: "panel" }, el("h2", {}, "Events a minute, the last hour"), chart(found.series),
        el("p", { class: "quiet" }, `from ${day(found.series[0]?.at ?? "")}`, found.failure_ratio === null ? "" : ` · ${Math.round(found.failure_ratio * 1000) / 10} % of what ended failed (red)`)),
      el("section", { class: "panel" }, el("h2", {}, "Rates"), el("div", { class: "wide" }, table("Rates", rates, [
        row(rates, ["last minutes", ...["created", "finished", "failed", "cancelled", "events"].map((name) => rate(found.rates[name]))])]))),
      el("section", { class: "panel" }, el("h2", {}, "How long flows stay in a status"), el("div", { class: "wide" }, table("Durations, the last hour", durations,
        found.durations.map((one) => row(durations, [badge(one.status), number(one.count), ...[one.mean_ms, one.p50_ms, one.p90_ms, one.p99_ms, one.max_ms].map(span)]))))),
      el("section", { class: "panel" }, el("h2", {}, "Events by kind"), el("div", { class: "wide" }, table("Events by kind", kinds,
        Object.entries(found.events_by_kind).map(([kind, count]) => row(kinds, [kind.replace("_", " "), number(count)])),
      ))));
  }, signal);
  main.append(place);
}

const LETTER = ["When", "Code", "What", "From", "Key", "Bytes", "Value"];

export function showDeadLetters(main, { signal }) {
  const body = table("Dead letters, newest first", LETTER, []);
  const older = el("button", { type: "button", hidden: true }, "Older");
  const none = el("p", { class: "quiet", hidden: true }, "There are none: all records could be read as commands.");
  let [cursor, first] = [null, null];
  const made = (letter) => {
    const value = el("details", { on: { toggle: () => { if (value.open && value.childElementCount === 1) value.append(el("pre", { tabindex: "0" }, el("bdi", {}, visible(letter.value)))); } } }, el("summary", {}, "show"));
    return row(LETTER, [ago(letter.at), el("code", {}, letter.code), said(letter.message, 200),
      `${letter.source.topic}/${letter.source.partition} @ ${letter.source.offset}`, letter.key === null ? "none" : said(letter.key, 40), number(letter.size), letter.value ? value : "empty"],
    { "data-letter": `${letter.partition}/${letter.offset}` });
  };
  main.append(el("h1", { tabindex: "-1" }, "Dead letters"));
  const take = (items, at) => {
    const there = new Set([...body.tBodies[0].rows].map((one) => one.dataset.letter));
    const fresh = items.filter((one) => !there.has(`${one.partition}/${one.offset}`)).map(made);
    if (at === "top") body.tBodies[0].prepend(...fresh);
    else body.tBodies[0].append(...fresh);
    body.hidden = body.tBodies[0].rows.length === 0;
    none.hidden = !body.hidden;
  };
  kept(main, async (wanted) => {
    const page = await get("deadletters", { limit: 50 }, wanted);
    take(page.items, "top");
    if (first === null) {
      first = true;
      cursor = page.next_cursor;
      older.hidden = cursor === null;
    }
  }, signal);
  const further = async () => {
    const page = await get("deadletters", { limit: 50, cursor }, signal);
    cursor = page.next_cursor;
    older.hidden = cursor === null || body.tBodies[0].rows.length > 1000;
    take(page.items, "bottom");
  };
  older.addEventListener("click", () => further().catch(unlessGone));
  main.append(none, el("div", { class: "wide" }, body), older);
}

const PARTITION = ["Partition", "Decided by", "Commands behind", "Control behind", "Shown by", "Audit behind"];

export function showPartitions(main, { signal }) {
  const place = el("div", { class: "wide" });
  const group = el("p", { class: "quiet" });
  main.append(el("h1", { tabindex: "-1" }, "Partitions"), group);
  kept(main, async (wanted) => {
    const found = await get("partitions", {}, wanted);
    const nobody = found.items.filter((one) => one.worker === null).length;
    group.textContent = `The workers' group is ${found.group_state ?? "unknown"}. ${nobody ? `${nobody} of ${found.items.length} partitions have no worker: their commands wait.` : "Every partition has a worker."} How far workers are is committed once a second.`;
    const behind = (value) => (value === null || value === undefined ? "–" : el("span", { class: value > 1000 ? "grave" : null }, number(value)));
    place.replaceChildren(table("Partitions", PARTITION, found.items.map((one) => row(PARTITION, [
      String(one.partition),
      one.worker === null ? el("span", { class: "grave" }, "nobody") : said(one.worker, 100),
      behind(one.commands?.behind), behind(one.control?.behind),
      one.view === null ? el("span", { class: "grave" }, "nobody") : said(one.view, 100),
      behind(one.projected?.behind),
    ]))));
  }, signal);
  main.append(place);
}

// Statistics and partitions.

import { get } from "./api.js";
import { badge, el, number, rate, row, said, span, svg, table } from "./dom.js";
import { kept } from "./kept.js";

const HEIGHT = 120;
const round = (value) => [1, 2, 5].map((one) => one * 10 ** Math.floor(Math.log10(value))).concat(10 ** Math.ceil(Math.log10(value))).find((one) => one >= value) ?? value;

/** Bars of a minute each, with the axes beside and below them. */
function chart(series) {
  const highest = round(Math.max(1, ...series.map((minute) => minute.events)));
  const step = 600 / series.length;
  const bar = (minute, n, name) => svg("rect", { class: name, x: n * step + step * 0.1, width: step * 0.8, y: HEIGHT - (minute[name] / highest) * HEIGHT, height: (minute[name] / highest) * HEIGHT },
    svg("title", {}, `${minute.at.slice(11, 16)}: ${number(minute.events)} events, ${number(minute.failed)} flows failed`));
  const lines = [0, 0.5].map((part) => svg("line", { x1: 0, x2: 600, y1: part * HEIGHT, y2: part * HEIGHT, class: "grid" }));
  const every = Math.max(1, Math.round(series.length / 4));
  const times = series.filter((_, n) => n % every === 0);
  return el("div", { class: "plot" },
    el("ol", { class: "y-axis", "aria-hidden": "true" }, [highest, highest / 2, 0].map((value) => el("li", {}, number(value)))),
    svg("svg", { viewBox: `0 0 600 ${HEIGHT}`, class: "chart", role: "img", preserveAspectRatio: "none", "aria-label": `Events a minute over ${series.length} minutes, at most ${number(Math.max(0, ...series.map((minute) => minute.events)))}` },
      ...lines, ...series.map((minute, n) => bar(minute, n, "events")), ...series.map((minute, n) => bar(minute, n, "failed"))),
    el("ol", { class: "x-axis", "aria-hidden": "true" }, times.map((minute) => el("li", {}, minute.at.slice(11, 16)))));
}

export function showStatistics(main, { signal }) {
  const place = el("div", {});
  main.append(el("h1", { tabindex: "-1" }, "Statistics"));
  kept(main, async (wanted) => {
    const found = await get("statistics", { minutes: 60 }, wanted);
    const durations = ["Status", "Times left", "Mean", "Median", "90 %", "99 %", "Longest"];
    const kinds = ["Event", "In all"];
    const rates = ["Per second", "Created", "Finished", "Failed", "Cancelled", "Events"];
    place.replaceChildren(
      el("section", { class: "panel" }, el("h2", {}, "Events a minute, the last hour"), chart(found.series),
        el("p", { class: "quiet" }, "Times are UTC; the last minute is under way.", found.failure_ratio === null ? "" : ` ${Math.round(found.failure_ratio * 1000) / 10} % of the flows that ended have failed (red).`)),
      el("section", { class: "panel" }, el("h2", {}, "Rates"), el("div", { class: "wide" }, table("Rates", rates, [
        row(rates, ["last 5 minutes", ...["created", "finished", "failed", "cancelled", "events"].map((name) => rate(found.rates[name]))])]))),
      el("section", { class: "panel" }, el("h2", {}, "How long flows stay in a status"), el("div", { class: "wide" }, table("Durations, the last hour", durations,
        found.durations.map((one) => row(durations, [badge(one.status), number(one.count), ...[one.mean_ms, one.p50_ms, one.p90_ms, one.p99_ms, one.max_ms].map(span)]))))),
      el("section", { class: "panel" }, el("h2", {}, "Events by kind"), el("div", { class: "wide" }, table("Events by kind", kinds,
        Object.entries(found.events_by_kind).map(([kind, count]) => row(kinds, [kind.replace("_", " "), number(count)])),
      ))));
  }, signal);
  main.append(place);
}

const PARTITION = ["Partition", "Decided by", "Commands behind", "Control behind", "Shown by", "Audit behind"];

export function showPartitions(main, { signal }) {
  const place = el("div", { class: "wide" });
  const group = el("p", { class: "quiet" });
  main.append(el("h1", { tabindex: "-1" }, "Partitions"), group);
  kept(main, async (wanted) => {
    const found = await get("partitions", {}, wanted);
    const unowned = found.items.filter((one) => one.worker === null).length;
    group.textContent = `The workers' group is ${found.group_state ?? "unknown"}. ${unowned ? `${unowned} of ${found.items.length} partitions have no worker: their commands wait.` : "Every partition has a worker."} How far workers are is committed once a second.`;
    const behind = (value) => (value === null || value === undefined ? "–" : el("span", { class: value > 1000 ? "grave" : null }, number(value)));
    place.replaceChildren(table("Partitions", PARTITION, found.items.map((one) => row(PARTITION, [
      String(one.partition),
      one.worker === null ? el("span", { class: "grave" }, "none") : said(one.worker, 100),
      behind(one.commands?.behind), behind(one.control?.behind),
      one.view === null ? el("span", { class: "grave" }, "none") : said(one.view, 100),
      behind(one.projected?.behind),
    ]))));
  }, signal);
  main.append(place);
}

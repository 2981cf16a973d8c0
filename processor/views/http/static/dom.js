// Elements and texts. Nothing here, or anywhere on this page, turns text into markup.

const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;

/** Text with what a reader would not see, or what would reorder what he sees, written out. */
export function visible(text) {
  return String(text).replace(ODD, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

/** One line, cut. */
export function line(text, max = 200) {
  const cut = [...String(text).slice(0, max * 2)].slice(0, max).join("");
  return visible(cut).replace(/[\t\n]+/g, " ") + (cut.length < String(text).length ? "…" : "");
}

/** An element. `on` are listeners; null children are left out, texts are texts. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, heard] of Object.entries(value)) made.addEventListener(event, heard);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/** A user's text: on one line, isolated from the direction of what stands around it. */
export function said(text, max) {
  return el("bdi", { title: String(text).length > (max ?? 200) ? line(text, 2000) : null }, line(text, max));
}

export function id(text) {
  return el("code", { class: "id" }, line(text));
}

/** A text with a button that copies it, or `copied` instead. */
export function copyable(shown, copied = shown, what = "") {
  const button = el("button", { type: "button", class: "plain copy", title: `Copy ${what || copied}`, "aria-label": `Copy ${what || copied}`, on: { click: async () => {
    // Only pages of https and of this machine may write to the clipboard.
    if (!navigator.clipboard) {
      getSelection().selectAllChildren(button.previousElementSibling);
      announce("Selected: copy it with the keyboard");
      return;
    }
    await navigator.clipboard.writeText(copied);
    button.classList.add("done");
    announce("Copied");
    setTimeout(() => button.classList.remove("done"), 1200);
  } } });
  return el("span", { class: "copyable" }, typeof shown === "string" ? el("code", { class: "id" }, line(shown)) : shown, button);
}

export function badge(status) {
  return el("span", { class: "badge", "data-status": status }, status);
}

export const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en"));

/** A rate per second, with as many digits as say something. */
export const rate = (value) => (value >= 10 ? number(Math.round(value)) : (Math.round(value * 100) / 100).toString());

/** A span of time in its two largest units. */
export function span(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.floor(ms / 1000);
  const parts = [];
  for (const [name, size] of units) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count > 0 || parts.length > 0) parts.push(`${count} ${name}`);
    if (parts.length === 2) break;
  }
  return parts.filter((part) => !part.startsWith("0 ")).join(" ");
}

// Times say how long ago they are, and are kept up to date where they stand.
const ticking = new Set();

export function ago(at, words = (ms) => (ms < 0 ? `in ${span(-ms)}` : `${span(ms)} ago`)) {
  const made = el("time", { datetime: at, title: at });
  const moment = Date.parse(at);
  const show = () => { made.textContent = words(Date.now() - moment); };
  show();
  ticking.add([new WeakRef(made), show]);
  return made;
}

setInterval(() => {
  for (const entry of ticking) {
    const made = entry[0].deref();
    if (made === undefined || (!made.isConnected && entry.seen)) ticking.delete(entry);
    else if (made.isConnected) { entry.seen = true; entry[1](); }
  }
}, 1000);

export const clock = (at) => at.slice(11, 23);
export const moment = (at) => `${at.slice(0, 10)} ${at.slice(11, 23)}`;
export const day = (at) => `${at.slice(0, 10)} ${at.slice(11, 19)}`;

/** For people who listen: one sentence, and only when they asked for something. */
export function announce(sentence) {
  document.getElementById("said").textContent = sentence;
}

/** A table that stays one for assistive technology when a phone's width shows its rows as cards. */
export function table(caption, columns, rows) {
  return el("table", { role: "table" },
    el("caption", { class: "unseen" }, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" },
      columns.map((name) => el("th", { role: "columnheader", scope: "col" }, name)))),
    el("tbody", { role: "rowgroup" }, rows));
}

export function row(columns, cells, attributes = {}) {
  return el("tr", { role: "row", ...attributes },
    cells.map((cell, n) => el("td", { role: "cell", "data-label": columns[n] }, cell)));
}

const SHOWN_MAX = 20_000;

/** JSON for people, cut where a page would suffer from it; the whole on demand. */
export function json(value) {
  const text = JSON.stringify(value, null, 2) ?? "null";
  const shown = el("pre", { tabindex: "0", dir: "ltr" }, visible(text.slice(0, SHOWN_MAX)));
  if (text.length <= SHOWN_MAX) return shown;
  const more = el("button", { type: "button", on: { click: () => {
    shown.textContent = visible(text);
    more.remove();
  } } }, `Show all ${number(text.length)} characters`);
  return el("div", {}, shown, more);
}

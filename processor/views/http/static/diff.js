// What differs between two JSON values.

import { el, line, number } from "./dom.js";

const CHANGES_MAX = 300;
const VALUE_MAX = 400;
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** `[{path, before, after}]`; undefined: not there. Lists are compared place by place. */
export function changes(before, after, path = "", found = []) {
  if (found.length > CHANGES_MAX || Object.is(before, after)) return found;
  const both = (isObject(before) && isObject(after)) || (Array.isArray(before) && Array.isArray(after));
  if (!both) {
    if (JSON.stringify(before) !== JSON.stringify(after)) found.push({ path, before, after });
    return found;
  }
  const names = new Set([...Object.keys(before), ...Object.keys(after)]);
  for (const name of names) {
    const has = (side) => (Object.hasOwn(side, name) ? side[name] : undefined);
    const inner = Array.isArray(before) ? `${path}[${name}]` : path ? `${path}.${name}` : name;
    changes(has(before), has(after), inner, found);
  }
  return found;
}

/** The same as a list to read. */
export function diff(before, after) {
  const found = changes(before, after);
  if (found.length === 0) return el("p", { class: "quiet" }, "Nothing in the state changed.");
  const shown = found.slice(0, CHANGES_MAX).map(({ path, before: was, after: is }) => el("li", {},
    el("code", { class: "path" }, el("bdi", {}, line(path || "(all of it)", 200))),
    was === undefined ? null : el("del", {}, el("bdi", {}, line(JSON.stringify(was), VALUE_MAX))),
    is === undefined ? null : el("ins", {}, el("bdi", {}, line(JSON.stringify(is), VALUE_MAX)))));
  if (found.length > CHANGES_MAX) shown.push(el("li", { class: "quiet" }, `and more than ${number(CHANGES_MAX)} others`));
  return el("ul", { class: "diff" }, shown);
}

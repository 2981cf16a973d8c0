// The keyboard: to the search box, from row to row, into a flow, and help.

const main = document.getElementById("main");
const help = document.getElementById("keys");

const typing = (target) => target instanceof Element && target.closest("input, select, textarea, [contenteditable]") !== null;

/** Move the focus `by` rows, within the list that the page shows. */
function step(by) {
  const rows = [...main.querySelectorAll("tbody tr, .events > li > details > summary")].filter((one) => one.checkVisibility());
  if (rows.length === 0) return;
  const at = rows.findIndex((one) => one === document.activeElement || one.contains(document.activeElement));
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by))];
  const target = next.tagName === "TR" ? next.querySelector("a") ?? next : next;
  if (target === next && next.tagName === "TR") next.tabIndex = -1;
  target.focus();
  next.scrollIntoView({ block: "nearest" });
}

export function showKeys() {
  help.showModal();
}

const KEYS = {
  "/": () => {
    const search = main.querySelector("input[type=search]") ?? main.querySelector("input");
    search?.focus();
    search?.select();
  },
  j: () => step(1),
  k: () => step(-1),
  "?": showKeys,
};

addEventListener("keydown", (event) => {
  const done = KEYS[event.key];
  if (!done || event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  done();
});
document.getElementById("keys-open").addEventListener("click", showKeys);

// Tokens: each is asked for once, and kept until this tab is closed.

import { announce } from "./dom.js";

const dialog = document.getElementById("token");
const form = dialog.querySelector("form");
const field = form.querySelector("input");
const wrong = form.querySelector("[role=alert]");
const leave = form.querySelector("[type=button]");
const KINDS = {
  read: { key: "taskflow.read-token", title: "Read token", why: "These views are shown to whoever has their read token.", go: "Show the flows" },
  operator: { key: "taskflow.operator-token", title: "Operator token", why: "With this token you act with an operator's authority.", go: "Go on" },
};
const shown = {};
let last = Promise.resolve();
let cancel = null;

export function tokenOf(kind) {
  return sessionStorage.getItem(KINDS[kind].key);
}

/** Whether a person has given a token; only for reading there is no way around it. `refused`: the last one was wrong. */
export function showTokenForm(kind, refused) {
  shown[kind] ??= last = last.then(() => ask(kind, refused)).finally(() => { shown[kind] = undefined; });
  return shown[kind];
}

function ask(kind, refused) {
  const { key, title, why, go } = KINDS[kind];
  form.querySelector("h2").textContent = title;
  form.querySelector("p").textContent = `${why} It is kept until this tab is closed.`;
  form.querySelector("button").textContent = go;
  wrong.textContent = `That is not the ${title.toLowerCase()}.`;
  wrong.hidden = !refused;
  leave.hidden = kind === "read";
  dialog.showModal();
  if (!refused) announce(`The ${title.toLowerCase()} is needed`);
  return new Promise((given) => {
    const end = (whether) => {
      form.removeEventListener("submit", take);
      field.value = "";
      cancel = null;
      dialog.close();
      given(whether);
    };
    const take = (submitted) => {
      submitted.preventDefault();
      const token = field.value.trim();
      // What else it may have, no header can carry.
      wrong.hidden = /^[\x21-\x7e]+$/.test(token);
      if (!wrong.hidden) return;
      sessionStorage.setItem(key, token);
      end(true);
    };
    // Without a token to read with there is nothing to see.
    cancel = kind === "read" ? null : () => end(false);
    form.addEventListener("submit", take);
  });
}

dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  cancel?.();
});
leave.addEventListener("click", () => cancel?.());

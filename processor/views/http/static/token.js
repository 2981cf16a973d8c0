// The read token, where the views want one: asked for once, and kept until this tab is closed.

import { announce } from "./dom.js";

const KEY = "taskflow.read-token";
const dialog = document.getElementById("token");
const form = dialog.querySelector("form");
const field = form.querySelector("input");
const wrong = form.querySelector("[role=alert]");
let shown = null;

export function readToken() {
  return sessionStorage.getItem(KEY);
}

/** Returns once a person has given a token. `refused`: the last one was wrong. */
export function showTokenForm(refused) {
  shown ??= new Promise((given) => {
    wrong.hidden = !refused;
    dialog.showModal();
    if (!refused) announce("The read token is needed");
    const take = (submitted) => {
      submitted.preventDefault();
      const token = field.value.trim();
      // What else it may have, no header can carry.
      wrong.hidden = /^[\x21-\x7e]+$/.test(token);
      if (!wrong.hidden) return;
      sessionStorage.setItem(KEY, token);
      form.removeEventListener("submit", take);
      field.value = "";
      dialog.close();
      shown = null;
      given();
    };
    form.addEventListener("submit", take);
  });
  return shown;
}

// Without a token there is nothing to see.
dialog.addEventListener("cancel", (event) => event.preventDefault());

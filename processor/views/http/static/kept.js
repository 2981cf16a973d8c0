// A page that is read again every few seconds.

import { Problem, keep } from "./api.js";
import { el, line } from "./dom.js";

const REFRESH_MS = 3000;

/** Keep `load` going; what it could not do is said above. */
export function kept(main, load, signal) {
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

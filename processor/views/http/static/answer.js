// The answer to what a wait asks: a field for each property of the prompt's `schema`, or text.

import { el, json, line, said, visible } from "./dom.js";

const FIELDS_MAX = 40;
const OPTIONS_MAX = 20;
const LONG = 200; // characters, from where a text has lines
const INPUTS = { email: "email", uri: "url", date: "date" };
const primitive = (value) => value === null || typeof value !== "object";
const text = (value) => (typeof value === "string" ? value : undefined);

/** What the wait asks, for people: its question, and what else the prompt says but is not in the form beside it. */
export function prompted({ prompt }, withForm = false) {
  if (prompt === undefined || prompt === null) return el("p", { class: "quiet" }, "The wait has no prompt.");
  if (typeof prompt !== "object") return el("p", { class: "text" }, el("bdi", {}, visible(prompt)));
  const shown = ["question", "text", "title"].find((name) => typeof prompt[name] === "string");
  const fields = fieldsOf(prompt);
  const left = Object.entries(prompt).filter(([name]) => name !== shown && !(name === "schema" && fields) && !(name === "options" && withForm));
  return el("div", {}, shown ? el("p", { class: "text" }, el("bdi", {}, visible(prompt[shown]))) : null,
    fields && !withForm ? el("p", { class: "quiet" }, "Answered by: ", said(fields.map(({ title }) => title).join(", "), 300)) : null,
    Array.isArray(prompt) ? json(prompt) : left.length ? json(Object.fromEntries(left)) : null);
}

/** `{elements, value, focus}`: what is typed, as an object that is merged into the state; undefined if there is nothing. */
export function answerTo({ prompt }) {
  const fields = fieldsOf(prompt);
  return fields ? answerByFields(fields) : answerByText(prompt);
}

/** The flat properties of a JSON Schema, as forms of other programs have them; null if it is another one. */
function fieldsOf(prompt) {
  const schema = prompt?.schema;
  const properties = schema?.properties;
  if (schema?.type !== "object" || primitive(properties) || Array.isArray(properties)) return null;
  const names = Object.keys(properties);
  if (names.length === 0 || names.length > FIELDS_MAX) return null;
  const required = new Set(Array.isArray(schema.required) ? schema.required : []);
  const fields = names.map((name) => fieldOf(name, properties[name], required.has(name)));
  return fields.includes(null) ? null : fields;
}

function fieldOf(name, schema, required) {
  if (primitive(schema)) return null;
  const about = { name, required, title: text(schema.title) ?? name, description: text(schema.description), preset: schema.default, schema };
  const titled = [schema.oneOf, schema.anyOf].find((some) => Array.isArray(some) && some.every((one) => one !== null && primitive(one?.const) && one?.const !== undefined));
  if (titled) return { ...about, kind: "choice", options: titled.map((one) => [one.const, text(one.title) ?? String(one.const)]) };
  if (Array.isArray(schema.enum)) return schema.enum.every(primitive) ? { ...about, kind: "choice", options: schema.enum.map((one) => [one, String(one)]) } : null;
  return ["string", "number", "integer", "boolean"].includes(schema.type) ? { ...about, kind: schema.type } : null;
}

function answerByFields(fields) {
  const made = fields.map((field) => ({ ...field, input: inputOf(field) }));
  return {
    elements: [el("div", { class: "answer" }, made.map(({ title, description, kind, input, required }) => el("label", { class: kind === "boolean" ? "check" : null },
      kind === "boolean" ? input : null,
      el("span", {}, said(title, 120), required || kind === "boolean" ? null : " (optional)"),
      description ? el("small", { class: "quiet" }, el("bdi", {}, line(description, 300))) : null,
      kind === "boolean" ? null : input)))],
    value: () => {
      const typed = made.map((field) => [field.name, valueOf(field)]).filter(([, value]) => value !== undefined);
      return typed.length ? Object.fromEntries(typed) : undefined;
    },
    focus: () => made[0].input.focus(),
  };
}

function inputOf({ kind, options, preset, required, schema }) {
  if (kind === "choice") {
    return el("select", { required }, el("option", { value: "" }, required ? "choose" : "none"),
      options.map(([value, words], n) => el("option", { value: n, selected: value === preset }, line(words, 120))));
  }
  if (kind === "boolean") return el("input", { type: "checkbox", checked: preset === true });
  const value = primitive(preset) ? preset ?? "" : "";
  if (kind !== "string") return el("input", { type: "number", step: kind === "integer" ? 1 : "any", min: schema.minimum, max: schema.maximum, required, value });
  const limits = { required, minlength: schema.minLength, maxlength: schema.maxLength, autocomplete: "off" };
  if (schema.maxLength > LONG || String(value).includes("\n")) {
    const area = el("textarea", { ...limits, rows: 3 });
    area.value = value;
    return area;
  }
  return el("input", { ...limits, type: INPUTS[schema.format] ?? "text", placeholder: schema.format === "date-time" ? "2026-01-31T12:00:00Z" : null, value });
}

function valueOf({ kind, options, input }) {
  if (kind === "boolean") return input.checked;
  if (input.value === "") return undefined;
  if (kind === "choice") return options[Number(input.value)][0];
  return kind === "string" ? input.value : Number(input.value);
}

function answerByText(prompt) {
  const typed = el("textarea", { name: "answer", rows: 3, spellcheck: "false" });
  return {
    elements: [el("label", {}, "Answer: text, or a JSON object that is merged into the state", typed), choices(prompt, typed)],
    value: () => parsed(typed.value),
    focus: () => typed.focus(),
  };
}

function parsed(typed) {
  if (!typed.trim()) return undefined;
  try {
    const value = JSON.parse(typed);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : { answer: value };
  } catch {
    return { answer: typed };
  }
}

/** A prompt may offer what to choose from, as `options`. */
function choices(prompt, typed) {
  const options = prompt?.options;
  if (!Array.isArray(options)) return null;
  return el("div", { class: "choices" }, options.filter((one) => typeof one !== "object").slice(0, OPTIONS_MAX).map((one) => el("button", { type: "button", on: { click: () => {
    typed.value = String(one);
    typed.dispatchEvent(new Event("input", { bubbles: true }));
  } } }, said(one, 80))));
}

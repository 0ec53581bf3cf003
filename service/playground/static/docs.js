// Draws the description of the API, OpenAPI 3.1, as a page.

import { byId, make } from "./dom.js";
import { description } from "./service.js";

const nameOf = (reference) => reference.split("/").pop();

/** What values a schema takes, as text and links: "integer", "list of Label", "a" or "b". */
function kindOf(schema = {}) {
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [make("a", { href: `#${name}`, textContent: name })];
  }
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.flatMap((each, index) => [...(index ? [" or "] : []), ...kindOf(each)]);
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" or ")];
  if (schema.type === "array") return ["list of ", ...kindOf(schema.items)];
  if (schema.format === "binary") return ["a file"];
  return [schema.type ?? "anything"];
}

/** Limits and default, for people. */
function restOf(schema) {
  const words = [];
  const tell = (name, text) => schema[name] !== undefined && words.push(`${text} ${schema[name]}`);
  tell("minimum", "from");
  tell("exclusiveMinimum", "more than");
  tell("maximum", "to");
  tell("exclusiveMaximum", "less than");
  tell("maxLength", "characters at most:");
  if (schema.default !== undefined && schema.default !== null) {
    words.push(`default ${JSON.stringify(schema.default)}`);
  }
  return words.join(", ");
}

/** rows: {name, where, required, schema, text} each. */
function table(rows) {
  if (!rows.length) return "";
  const body = rows.map(({ name, where, required, schema, text }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("code", { textContent: name }), required ? " *" : ""),
      make("td", { className: "muted", textContent: where ?? "" }),
      make("td", {}, ...kindOf(schema), make("div", { className: "muted hint", textContent: restOf(schema) })),
      make("td", {}, text ?? schema.description ?? "", ...inside(schema).map((each) => table(fieldsOf(each)))),
    ),
  );
  return make("table", {}, make("tbody", {}, ...body));
}

/** What has fields of its own and no name: it is shown where it stands. */
const inside = (schema) =>
  [schema, schema.items, ...(schema.anyOf ?? [])].filter((each) => each?.properties);

function fieldsOf(schema) {
  const required = schema.required ?? [];
  const properties = Object.entries(schema.properties ?? {});
  return properties.map(([name, field]) => ({ name, schema: field, required: required.includes(name) }));
}

function body({ content }) {
  return Object.entries(content).flatMap(([type, { schema }]) => [
    make("h4", { textContent: type }),
    schema.properties ? table(fieldsOf(schema)) : make("p", {}, ...kindOf(schema)),
  ]);
}

function answers(responses) {
  return table(
    Object.entries(responses).map(([status, { description: text, content }]) => {
      const [type, { schema } = {}] = Object.entries(content ?? {})[0] ?? [];
      return { name: status, where: type, schema: type ? schema : { type: "nothing" }, text };
    }),
  );
}

function route(path, method, operation) {
  const parameters = (operation.parameters ?? []).map((each) => ({
    name: each.name,
    where: each.in,
    required: each.required,
    schema: each.schema ?? {},
    text: each.description,
  }));
  return make(
    "details",
    { className: "route" },
    make(
      "summary",
      {},
      make("span", { className: "method", textContent: method.toUpperCase() }),
      make("code", { textContent: path }),
    ),
    make("p", { textContent: operation.description ?? operation.summary ?? "" }),
    ...(parameters.length ? [make("h3", { textContent: "Parameters" }), table(parameters)] : []),
    ...(operation.requestBody ? [make("h3", { textContent: "Body" }), ...body(operation.requestBody)] : []),
    make("h3", { textContent: "Answers" }),
    answers(operation.responses),
  );
}

function schema([name, { description: text, ...rest }]) {
  return make(
    "section",
    { id: name },
    make("h3", { textContent: name }),
    make("p", { textContent: text ?? "" }),
    rest.properties ? table(fieldsOf(rest)) : make("p", {}, ...kindOf(rest)),
  );
}

try {
  const { paths, components } = await description();
  for (const [path, operations] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      byId("routes").append(route(path, method, operation));
    }
  }
  byId("schemas").append(...Object.entries(components.schemas).map(schema));
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
} catch (error) {
  byId("notice").textContent = error.message;
  byId("notice").hidden = false;
}

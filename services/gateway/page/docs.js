// Shows the OpenAPI document of this gateway: every route with its parameters, bodies and answers.

const element = (name, text, ...classes) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes);
  return made;
};

const METHODS = ["get", "post", "put", "patch", "delete"];

function shape(schema, all, seen = []) {
  if (!schema) return "any";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return seen.includes(name) ? name : shape(all[name], all, [...seen, name]);
  }
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return choices.map((each) => shape(each, all, seen)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.type === "array") return `[${shape(schema.items, all, seen)}]`;
  if (schema.properties) {
    const indent = "  ".repeat(seen.length + 1);
    const lines = Object.entries(schema.properties).map(([name, each]) => {
      const mark = (schema.required || []).includes(name) ? "" : "?";
      return `${indent}${name}${mark}: ${shape(each, all, [...seen, ""])}`;
    });
    return `{\n${lines.join(",\n")}\n${"  ".repeat(seen.length)}}`;
  }
  return schema.type || "any";
}

function content(body, all) {
  const [kind, found] = Object.entries((body && body.content) || {})[0] || [];
  if (!kind) return null;
  return found.schema ? shape(found.schema, all) : kind;
}

function section(parent, title, text) {
  if (!text) return;
  parent.append(element("h3", title), element("pre", text));
}

function route(path, method, operation, all) {
  const row = element("details");
  const summary = element("summary");
  summary.append(
    element("span", method.toUpperCase(), "method"),
    element("code", path),
    element("span", ` ${operation.description || operation.summary || ""}`.split("\n")[0], "says"),
  );
  row.append(summary);
  const parameters = (operation.parameters || []).map(
    (each) => `${each.name}${each.required ? "" : "?"} (${each.in}): ${shape(each.schema, all)}`,
  );
  section(row, "Parameters", parameters.join("\n"));
  section(row, "Body", content(operation.requestBody, all));
  for (const [status, answer] of Object.entries(operation.responses || {})) {
    section(row, status === "default" ? "Refused" : `Answer ${status}`, content(answer, all) || answer.description);
  }
  return row;
}

async function show() {
  const told = await (await fetch("/openapi.json")).json();
  const all = (told.components && told.components.schemas) || {};
  const families = new Map();
  for (const [path, item] of Object.entries(told.paths)) {
    for (const method of METHODS.filter((each) => item[each])) {
      const family = (item[method].tags || ["other"])[0];
      if (!families.has(family)) families.set(family, []);
      families.get(family).push(route(path, method, item[method], all));
    }
  }
  const place = document.getElementById("routes");
  place.replaceChildren();
  for (const [family, rows] of families) place.append(element("h2", family), ...rows);
}

show().catch((error) => {
  document.getElementById("routes").replaceChildren(element("p", `The document could not be read: ${error.message}`));
});

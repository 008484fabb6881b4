// The HTTP API as a table, from its OpenAPI description.

import { request, find } from "/common.js";

const api = await request("GET", "/openapi.json");

function fieldsOf({ parameters = [], requestBody }) {
  const reference = requestBody?.content["application/json"]?.schema.$ref;
  const { properties = {}, required = [] } = reference ? api.components.schemas[reference.split("/").pop()] : {};
  const body = Object.keys(properties).map((name) => ({ name, required: required.includes(name) }));
  return [...parameters, ...body].map((field) => field.name + (field.required ? "" : "?")).join(", ");
}

find("about").textContent = api.info.description;
for (const [path, operations] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const row = find("operations").insertRow();
    for (const text of [method.toUpperCase(), path, fieldsOf(operation), operation.description]) {
      row.insertCell().textContent = text;
    }
  }
}

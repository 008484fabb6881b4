// Several sources: a button for each. The one that is pressed is shown.

import { find, make, showSource, shownSource } from "/common.js";

const buttons = new Map();
let changed = () => {};
let first = null; // the source that is shown if none is chosen

// Calls this when another source is to be shown.
export function onSource(action) { changed = action; }

export function showSources({ sources, source }) {
  find("sources").hidden = sources.length === 0;
  if (!shownSource() && first !== null && first !== source) changed(); // the run knows its sources only now
  if (!shownSource()) first = source;
  const names = sources.map((one) => one.name);
  for (const [name, button] of buttons) if (!names.includes(name)) { button.remove(); buttons.delete(name); }
  for (const one of sources) {
    if (!buttons.has(one.name)) buttons.set(one.name, makeTab(one.name));
    const button = buttons.get(one.name);
    const state = one.is_frozen ? "frozen" : one.has_ended && one.state === "live" ? "ended" : one.state;
    button.className = `tab ${state}`;
    button.title = `${one.name}: ${state}`;
    button.setAttribute("aria-pressed", one.name === (shownSource() || source));
  }
}

function makeTab(name) {
  const button = make("button", name);
  button.type = "button";
  button.addEventListener("click", () => choose(name));
  find("sources").append(button);
  return button;
}

function choose(name) {
  if (name === shownSource()) return;
  showSource(name);
  for (const [other, button] of buttons) button.setAttribute("aria-pressed", other === name);
  changed();
}

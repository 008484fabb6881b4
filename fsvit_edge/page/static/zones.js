// Zones: the list with what is in each, and drawing one by its corners on a frozen frame (zone_drawing.js).

import { load, setOpen } from "/frozen.js";
import { begin, close, count, cornersOf, end, undo } from "/zone_drawing.js";
import { request, attemptWith, find, make, makeButton, ofSource, onClick, onConfirmedClick, query, showMessage, takePicture } from "/common.js";

const NONE = "A zone is a named part of the picture. Answers and events say what is in it.";
const FIXED = "The zones of this run come from the command line (--zone).";

const items = new Map();
let zones = [], colors = {};
let frame = null; // {id, width, height} while a zone is drawn

export function showZones(state) {
  zones = state.zones;
  colors = Object.fromEntries(state.classes.map(({ name, color }) => [name, color]));
  const known = find("zones-known"), text = state.zones_are_fixed ? FIXED : zones.length === 0 ? NONE : "";
  if (known.textContent !== text) known.textContent = text;
  known.hidden = !text;
  find("draw-zone").hidden = state.zones_are_fixed || frame !== null;
  const names = zones.map((one) => one.name);
  for (const [name, item] of items) if (!names.includes(name)) { item.remove(); items.delete(name); }
  for (const zone of zones) {
    if (!items.has(zone.name)) {
      items.set(zone.name, makeItem(zone.name));
      find("zones").append(items.get(zone.name));
    }
    showInside(items.get(zone.name), zone.classes);
    items.get(zone.name).querySelector("button").hidden = state.zones_are_fixed;
  }
}

function makeItem(name) {
  const item = make("li"), remove = makeButton("Remove");
  item.dataset.name = name;
  remove.title = `Remove zone ${name}`;
  onConfirmedClick(remove, "Really remove?", async () => {
    await request("DELETE", `/api/zones?${query({ name })}`);
    showMessage("");
    find("draw-zone").focus({ preventScroll: true });
  });
  item.append(make("span", name, "name"), make("span", "", "inside"), remove);
  return item;
}

function showInside(item, classes) {
  const inside = item.querySelector(".inside"), key = classes.map((name) => `${name}\n${colors[name]}`).join("\n");
  item.classList.toggle("present", classes.length > 0);
  if (inside.dataset.shown === key) return;
  inside.dataset.shown = key;
  inside.replaceChildren(...classes.map((name) => {
    const chip = make("span", "", "chip"), swatch = make("span", "", "swatch");
    swatch.style.background = colors[name];
    chip.append(swatch, make("span", name));
    return chip;
  }));
  if (classes.length === 0) inside.textContent = "nothing";
}

async function draw() {
  const frozen = await load(await request("POST", ofSource("/api/frames")));
  takePicture(leave);
  frame = frozen;
  setOpen(frame);
  setDrawing(true);
  find("report").hidden = true;
  find("zone-name").value = "";
  showMessage("");
  begin(frame, zones, showProgress);
  find("picture").scrollIntoView({ block: "nearest" });
}

function setDrawing(isOn) {
  for (const id of ["zone-drawing", "zone-form"]) find(id).hidden = !isOn;
  for (const id of ["freeze", "draw-zone"]) find(id).hidden = isOn;
}

function leave() {
  if (!frame) return;
  end();
  frame = null;
  setOpen(null);
  setDrawing(false);
  find("draw-zone").focus({ preventScroll: true });
}

// Called after each change of the corners; `said` is what just happened, for those who do not see it.
function showProgress(isClosed, said) {
  const missing = 3 - count();
  let text = isClosed ? "Drag a corner to move it, name the zone and save it."
    : count() === 0 ? "Click or tap the corners of the zone, in order around it."
    : missing > 0 ? `At least ${missing} more ${missing === 1 ? "corner" : "corners"}.`
    : "Add corners, or close the zone: press its first corner or Done.";
  if (said) text = `${said} ${text}`;
  if (find("zone-hint").textContent !== text) find("zone-hint").textContent = text;
  // A button that is disabled loses the focus.
  if (count() === 0 && document.activeElement === find("zone-undo")) find("zone-drawing").focus({ preventScroll: true });
  find("zone-undo").disabled = count() === 0;
  find("zone-undo").textContent = isClosed ? "Change corners" : "Undo corner";
  find("zone-done").disabled = missing > 0;
  const wasClosed = !find("zone-name").hidden;
  for (const id of ["zone-done", "zone-keys"]) find(id).hidden = isClosed;
  for (const id of ["zone-name", "zone-save"]) find(id).hidden = !isClosed;
  if (isClosed && !wasClosed) find("zone-name").focus({ preventScroll: true });
  if (!isClosed && wasClosed) find("zone-drawing").focus({ preventScroll: true });
}

async function save() {
  const name = find("zone-name").value.trim(), mine = frame;
  await request("POST", "/api/zones", { name, corners: cornersOf() });
  if (frame === mine) leave(); // otherwise another drawing has begun since
  showMessage("");
}

onClick(find("draw-zone"), draw);
find("zone-undo").addEventListener("click", undo);
find("zone-done").addEventListener("click", close);
find("zone-cancel").addEventListener("click", leave);
find("zone-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attemptWith(find("zone-save"), save);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });

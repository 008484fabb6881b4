// From a frozen frame to a class, and what became of it.

import { begin, clear, drawBy, drawn } from "/drawing.js";
import { ask, attemptWith, find, onClick, percent, query, tell } from "/talk.js";

const HINTS = {
  box: "Drag a box around the thing.",
  paint: "Paint over the thing.",
  name: "Just give its name: the network guesses which part of the picture is meant.",
};

let frame = null; // {id, width, height}

export async function freeze(name) {
  const frozen = await ask("POST", "/api/frames");
  find("frozen").src = `/api/frames/${frozen.id}.jpg`;
  await find("frozen").decode();
  frame = frozen;
  setFrozen(true);
  find("report").hidden = true;
  find("name").value = name || "";
  tell("");
  begin(frame);
  find("picture").scrollIntoView({ block: "nearest" });
}

function setFrozen(isFrozen) {
  for (const id of ["frozen", "drawing", "enroll"]) find(id).hidden = !isFrozen;
  for (const id of ["live", "freeze"]) find(id).hidden = isFrozen;
  if (!isFrozen) frame = null;
}

function showMode(mode) {
  drawBy(mode);
  find("brush").hidden = mode !== "paint";
  find("hint").textContent = HINTS[mode];
}

async function enroll() {
  const name = find("name").value.trim();
  const report = await ask("POST", "/api/classes", { name, frame_id: frame.id, ...(await drawn()) });
  setFrozen(false);
  showReport(report);
  tell("");
}

function showReport(report) {
  const card = find("report");
  const make = (tag, text, kind) => Object.assign(document.createElement(tag), { textContent: text, className: kind || "" });
  const isGood = report.warnings.length === 0;
  const verdict = isGood ? `${report.name} is enrolled and found on its own picture.` : `${report.name} is enrolled, but:`;
  const parts = [make("p", verdict, "verdict")];
  if (!isGood) {
    const list = document.createElement("ul");
    list.append(...report.warnings.map((text) => make("li", text)));
    parts.push(list);
  }
  const facts = document.createElement("dl");
  const add = (label, value) => {
    const pair = document.createElement("div");
    pair.append(make("dt", label), make("dd", value));
    facts.append(pair);
  };
  add("score here", report.score.toFixed(2));
  if (report.found_share !== null) add("of the mask found", percent(report.found_share));
  if (report.iou !== null) add("IoU with the mask", report.iou.toFixed(2));
  if (report.area_ratio !== null) add("outline / mask area", `${report.area_ratio.toFixed(1)} x`);
  add("mask covers", percent(report.mask_cover));
  add("pictures", report.shots);
  const undo = make("button", "Undo");
  undo.type = "button";
  onClick(undo, async () => {
    await ask("DELETE", `/api/supports?${query({ name: report.name, index: report.shots - 1 })}`);
    card.hidden = true;
  });
  const row = make("div", "", "row");
  row.append(undo);
  card.replaceChildren(...parts, facts, row);
  card.hidden = false;
}

onClick(find("freeze"), () => freeze());
find("cancel").addEventListener("click", () => setFrozen(false));
find("clear").addEventListener("click", clear);
find("enroll").addEventListener("change", (event) => { if (event.target.name === "mode") showMode(event.target.value); });
find("enroll").addEventListener("submit", (event) => {
  event.preventDefault();
  attemptWith(find("submit"), enroll);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && frame) setFrozen(false); });

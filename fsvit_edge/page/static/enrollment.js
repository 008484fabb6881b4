// From a frozen frame to a class, and a report of how well it works.

import { begin, clear, drawOn, selection, setMode } from "/drawing.js";
import { fileName, load, openFrame, setOpen } from "/frozen.js";
import { showRejection } from "/rejection.js";
import { resetZoom } from "/zoom.js";
import { request, attemptWith, find, make, makeButton, makeFacts, makeList, ofSource, onClick, percent, query, scoreText, showMessage, takePicture } from "/common.js";

const HINTS = {
  box: "Drag a box around the object.",
  paint: "Paint over the object.",
  name: "Only enter a name; the network guesses which object you mean.",
};

const GUESS = "The mask is a guess: the picture in the list of classes is dimmed outside it. If it is wrong, press Undo, then box or paint the object.";

const REVOKE_MS = 60_000;

let frame = null; // {id, width, height, earlier, later}, and the name of the file if it is a picture
let pictures = new Map(); // how many each class has, by its name
let reported = null; // {name, index, key, sinceMs}: the picture that the report is about, and since when it is shown

// To enroll from the newest frame, or for a class that has a name, from the picture that is shown.
export async function freeze(name) {
  if (!frame || !name) return start(await load(await request("POST", ofSource("/api/frames"))), name);
  useName(name);
  find("picture").scrollIntoView({ block: "nearest" });
}

// A picture of the phone's camera or a file, in place of a frozen frame.
async function openPicture(input) {
  const [file] = input.files;
  input.value = ""; // so that the same file can be chosen again
  if (!file) return;
  const kept = await request("PUT", `/api/frames?${query({ name: file.name })}`, file);
  start(await load({ ...kept, name: file.name }));
}

function start(frozen, name) {
  takePicture(() => setFrozen(false));
  frame = frozen;
  setFrozen(true);
  showPlace();
  find("report").hidden = true;
  useName(name);
  showMessage("");
  begin(frame, () => { showMessage(""); showHint(); });
  find("picture").scrollIntoView({ block: "nearest" });
}

function useName(name = "") {
  find("name").value = name;
  followName();
  find("drawing").focus({ preventScroll: true });
}

// To the frame before or after this one: who presses a button often is late.
async function step(by) {
  const mine = frame;
  if ((by < 0 ? frame.earlier : frame.later) === 0) return;
  const frozen = await load(await request("POST", ofSource("/api/frames", { beside: frame.id, step: by })));
  if (frame !== mine) return;
  frame = frozen;
  setOpen(frame);
  showPlace();
  drawOn(frame);
}

function showPlace() {
  const { earlier, later } = frame;
  find("steps").hidden = earlier + later === 0;
  find("earlier").setAttribute("aria-disabled", earlier === 0);
  find("later").setAttribute("aria-disabled", later === 0);
  find("frame-place").textContent = `Frame ${earlier + 1} of ${earlier + 1 + later}`;
}

function setFrozen(isFrozen) {
  for (const id of ["drawing", "enroll"]) find(id).hidden = !isFrozen;
  find("freeze").hidden = isFrozen;
  showHint();
  resetZoom(); // zones are drawn on the same picture
  if (!isFrozen) frame = null;
  setOpen(frame);
}

// After something was learned from the picture that is shown. The live one tells what came of it; a file stays, with what is found now.
function end() {
  if (!frame.name) {
    setFrozen(false);
    return;
  }
  clear();
  useName();
}

// Back to the live picture, without losing the place of those who use the keyboard.
function leave() {
  setFrozen(false);
  const isFollowed = document.body.classList.contains("followed"); // then there is no other button
  find(isFollowed ? "picture-file" : "freeze").focus({ preventScroll: true });
}

function showHint(wrong = "") {
  find("hint").textContent = wrong || HINTS[find("enroll").elements.mode.value];
  find("hint").classList.toggle("wrong", Boolean(wrong));
}

// What is drawn as fields of a request; null, and said at the form, if nothing is.
async function drawn() {
  try {
    return await selection();
  } catch (error) {
    showHint(error.message);
    return null;
  }
}

function showMode(mode) {
  setMode(mode);
  find("brush").hidden = mode !== "paint";
  find("drawing-keys").hidden = mode !== "box";
  showHint();
}

async function enroll() {
  const name = find("name").value.trim(), mine = frame, marks = await drawn();
  if (marks === null) return;
  const report = await request("POST", "/api/classes", { name, frame_id: mine.id, ...marks });
  const isMine = frame === mine; // the answer takes a second, in which something else may have begun
  if (isMine) end();
  showReport(report, "box_xyxy" in marks ? "the mask from your box" : "your mask");
  showMessage("");
  if (isMine) find("report").focus(); // the form takes it along
}

// If there is such a class, it gets a picture more, or what is marked can be said to be not it.
function followName() {
  const name = find("name").value.trim(), button = find("reject-marked"), count = pictures.get(name);
  const told = count === undefined ? "" : `${name} is enrolled already, from ${count} ${count === 1 ? "picture" : "pictures"}; this one is added.`;
  if (find("known-name").textContent !== told) find("known-name").textContent = told;
  find("submit").textContent = count === undefined ? "Enroll" : "Add picture";
  button.hidden = count === undefined;
  button.title = `What you marked is not ${name}, although it looks like it`;
}

async function rejectMarked() {
  const name = find("name").value.trim(), mine = frame, marks = await drawn();
  if (marks === null) return;
  const rejection = await request("POST", "/api/negatives", { name, frame_id: mine.id, ...marks });
  if (frame === mine) end();
  showMessage("");
  showRejection(rejection);
}

// `askedMs` is when the state with these classes was asked for.
export function followClasses(classes, askedMs) {
  pictures = new Map(classes.map(({ name, supports }) => [name, supports.length]));
  followName();
  if (reported !== null && askedMs > reported.sinceMs) hideOutdatedReport(classes); // an older state may lack the picture
}

// Its Undo would remove another picture, once its own is gone.
function hideOutdatedReport(classes) {
  const picture = classes.find((one) => one.name === reported.name)?.supports[reported.index];
  if (picture?.key !== reported.key) hideReport();
}

function hideReport() {
  const hadFocus = find("report").contains(document.activeElement);
  find("report").hidden = true;
  reported = null;
  if (hadFocus) find("freeze").focus({ preventScroll: true });
}

function showReport(report, mask) {
  const card = find("report");
  const isGood = report.warnings.length === 0;
  const done = report.shots === 1 ? `${report.name} is enrolled` : `${report.name} is enrolled, now from ${report.shots} pictures`;
  const outline = report.iou === null ? "" : `; the outline is ${report.area_ratio.toFixed(1)} x ${mask} (IoU ${report.iou.toFixed(2)})`;
  const isGuess = report.iou === null;
  const good = isGuess ? `${done}.` : `${done}, and recognized in this picture${outline}.`;
  const parts = [make("p", isGood ? good : `${done}, with warnings${outline}:`, "verdict")];
  if (!isGood) parts.push(makeList(report.warnings));
  if (isGuess) parts.push(make("p", GUESS));
  const facts = [["score in this frame", scoreText(report.score)]];
  if (report.found_share !== null) facts.push(["mask found", percent(report.found_share)]);
  facts.push(["mask size", `${percent(report.mask_cover)} of frame`], ["pictures", report.shots]);
  const mine = { name: report.name, index: report.shots - 1, key: report.key, sinceMs: performance.now() };
  reported = mine;
  const undo = makeButton("Undo", async () => {
    await request("DELETE", `/api/supports?${query({ name: mine.name, index: mine.index, key: mine.key })}`);
    if (reported === mine) hideReport();
  });
  const row = make("div", "", "row");
  row.append(undo);
  card.replaceChildren(...parts, makeFacts(facts), row);
  card.hidden = false;
}

// What is found in the frozen frame, or in the newest one.
async function download({ file, kind }) {
  const data = await request("GET", ofSource(`/api/frames/${openFrame()?.id ?? "newest"}/${file}`)), link = make("a");
  link.href = URL.createObjectURL(data);
  link.download = fileName(kind);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), REVOKE_MS); // Safari reads it after the click
}

onClick(find("freeze"), () => freeze());
for (const id of ["photo", "picture-file"]) find(id).addEventListener("change", () => attemptWith(find(id), () => openPicture(find(id))));
for (const button of document.querySelectorAll("[data-file]")) onClick(button, () => download(button.dataset));
onClick(find("reject-marked"), rejectMarked);
find("name").addEventListener("input", followName);
find("cancel").addEventListener("click", leave);
onClick(find("earlier"), () => step(-1));
onClick(find("later"), () => step(1));
find("clear").addEventListener("click", clear);
find("enroll").addEventListener("change", (event) => { if (event.target.name === "mode") showMode(event.target.value); });
find("enroll").addEventListener("submit", (event) => {
  event.preventDefault();
  attemptWith(find("submit"), enroll);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && frame) leave(); });

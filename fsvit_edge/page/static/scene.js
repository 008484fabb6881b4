// The empty scene: a countdown, then the run takes pictures of it, and a report of which classes it looks like.

import { request, attemptWith, find, make, makeFacts, makeList, ofSource, onConfirmedClick, percent, scoreText, showMessage } from "/common.js";

const COUNTDOWN_S = 3;
const LABEL = find("learn").textContent;

let cancel = null; // ends the countdown
let isLearning = false;

export function showScene({ scene_frames: frames, scene_check: check, false_alarm_bound: bound, bank }) {
  if (isLearning && check !== null) {
    const [told] = find("scene-report").children, said = `Checking ${check.number} of ${check.pictures}: you can come back.`;
    if (told.textContent !== said) told.textContent = said;
  }
  const text = frames === 0
    ? bank.is_followed ? "The bank has none." : "Not learned. Show the camera none of your objects, so that less is found by mistake."
    : `${frames} pictures. On frames like these, a class is falsely found in at most ${percent(bound)} (right in 95 of 100 cases).`;
  if (find("scene-known").textContent !== text) find("scene-known").textContent = text;
  find("forget").hidden = frames === 0;
}

function tell(...parts) {
  find("scene-report").replaceChildren(...parts);
}

async function countDown() {
  const cancelled = new Promise((resolve) => { cancel = () => resolve(true); });
  find("learn").textContent = "Cancel";
  let isCancelled = false;
  for (let left = COUNTDOWN_S; left > 0 && !isCancelled; left--) {
    tell(make("p", `Step out of view: ${left}`, "countdown"));
    isCancelled = await Promise.race([cancelled, new Promise((resolve) => { setTimeout(resolve, 1000, false); })]);
  }
  cancel = null;
  find("learn").textContent = LABEL;
  tell();
  return !isCancelled;
}

async function learn() {
  if (!await countDown()) return;
  tell(make("p", "Taking pictures. Stay out of view.", "countdown"));
  await attemptWith(find("learn"), async () => {
    isLearning = true;
    try {
      const report = await request("POST", ofSource("/api/scene")).finally(() => { isLearning = false; });
      showReport(report);
      showMessage("");
    } catch (error) {
      tell();
      throw error;
    }
  });
}

function showReport({ frames, false_alarm_bound: bound, highest, warnings }) {
  const isGood = warnings.length === 0;
  const verdict = `The empty scene is learned from ${frames} pictures${isGood ? "." : ", with warnings:"}`;
  const parts = [make("p", verdict, "verdict")];
  if (!isGood) parts.push(makeList(warnings), make("p", "If one of your objects was in view, press Forget and learn it again without them."));
  const scores = Object.entries(highest).map(([name, score]) => [name, scoreText(score)]);
  if (scores.length > 0) parts.push(make("p", "Highest scores on it:"), makeFacts(scores));
  else parts.push(make("p", "Classes that you add are held to it."));
  parts.push(make("p", `On frames like these, a class is falsely found in at most ${percent(bound)}.`));
  tell(...parts);
}

find("learn").addEventListener("click", () => { if (cancel) cancel(); else learn(); });
onConfirmedClick(find("forget"), "Really forget?", async () => {
  await request("DELETE", "/api/scene");
  showMessage("");
  tell(make("p", "The empty scene is forgotten."));
  find("learn").focus({ preventScroll: true });
});

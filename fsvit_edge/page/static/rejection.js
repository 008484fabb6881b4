// "Not it": where a class was wrongly found in the picture that is shown becomes a negative of it; can be undone for some seconds.

import { openFrame } from "/frozen.js";
import { find, request, make, makeButton, ofSource, onClick, query, showMessage } from "/common.js";

const UNDO_MS = 10000;

const undoable = new WeakMap(); // item of a class -> {count, isListed}: its negatives then, and whether the state has them

export function makeRejectable(item, name) {
  const button = item.querySelector(".reject");
  button.setAttribute("aria-label", `Not it: what is found now is not ${name}`);
  onClick(button, async () => {
    const frame = openFrame() ?? await request("POST", ofSource("/api/frames"));
    const rejection = await request("POST", "/api/negatives", { name, frame_id: frame.id });
    showMessage("");
    showUndo(item, rejection);
  });
}

// The button stays while it is about to be pressed, so that a class that just left does not pull it away.
export function showRejectable(item, { present, negatives }) {
  const button = item.querySelector(".reject");
  const isKept = button.matches(":active, :focus-visible, :disabled");
  button.style.visibility = present || isKept ? "visible" : "hidden";
  const undo = undoable.get(item);
  if (undo === undefined) return;
  if (negatives.length === undo.count) undo.isListed = true;
  // It was removed, or another page added one: its place in the list is no longer known.
  else if (undo.isListed) hideUndo(item);
}

// For a rejection that did not begin at the class itself.
export function showRejection(rejection) {
  const item = [...find("classes").children].find((one) => one.dataset.name === rejection.name);
  if (item) showUndo(item, rejection);
}

function showUndo(item, { name, negatives, score_after: score, level, is_mask_too_small: isTooSmall }) {
  const shown = item.querySelector(".rejected");
  const effect = score > level ? "still above" : "now below";
  const undo = makeButton("Undo", async () => {
    await request("DELETE", `/api/negatives?${query({ name, index: negatives - 1 })}`);
    showMessage("");
    hideUndo(item);
    item.querySelector(".more").focus({ preventScroll: true });
  });
  const whole = isTooSmall ? ", all of the picture because that part is too small for the network to see" : "";
  const text = `Learned that this is not ${name}${whole}; in this picture, its score is ${effect} its level.`;
  shown.replaceChildren(make("p", text), undo);
  undoable.set(item, { count: negatives, isListed: false });
  // "Not it" goes, and takes the focus with it.
  undo.focus({ preventScroll: true });
  const end = () => {
    if (!shown.contains(undo)) return;
    if (undo.matches(":hover, :focus-visible")) setTimeout(end, UNDO_MS);
    else hideUndo(item);
  };
  setTimeout(end, UNDO_MS);
}

function hideUndo(item) {
  const shown = item.querySelector(".rejected");
  if (shown.contains(document.activeElement)) item.querySelector(".more").focus({ preventScroll: true });
  shown.replaceChildren();
  undoable.delete(item);
}

// The list of classes: scores, pictures, rename and remove.

import { freeze } from "/enrollment.js";
import { request, attempt, find, onClick, percent, query, showMessage } from "/common.js";

const CONFIRM_MS = 4000;

let shownRevision = null;
const items = new Map();

export function showClasses(classes, revision) {
  find("empty").hidden = classes.length > 0;
  const names = classes.map((one) => one.name);
  if (revision !== shownRevision) {
    for (const [name, item] of items) if (!names.includes(name)) { item.remove(); items.delete(name); }
    for (const one of classes) if (!items.has(one.name)) items.set(one.name, makeItem(one.name));
    for (const name of names) {
      if (!items.get(name).contains(document.activeElement)) find("classes").append(items.get(name));
    }
    find("known").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
    for (const one of classes) showSupports(items.get(one.name), one, revision);
    shownRevision = revision;
  }
  for (const one of classes) showScore(items.get(one.name), one);
}

function showScore(item, { color, score, level, present, area }) {
  item.classList.toggle("present", Boolean(present));
  item.querySelector(".swatch").style.background = color;
  item.querySelector(".score").textContent = score === null ? "" : score.toFixed(2) + (present ? ` · ${percent(area)}` : "");
  const bar = item.querySelector(".bar");
  bar.setAttribute("aria-valuenow", score ?? 0);
  bar.firstElementChild.style.width = `${(score ?? 0) * 100}%`;
  bar.firstElementChild.style.background = color;
  const tick = bar.lastElementChild;
  tick.hidden = level === null;
  tick.style.left = `${(level ?? 0) * 100}%`;
  bar.title = level === null ? "" : `Present above ${level.toFixed(2)}`;
}

function makeItem(name) {
  const item = find("class").content.firstElementChild.cloneNode(true);
  item.dataset.name = name;
  item.querySelector(".name").textContent = name;
  item.querySelector(".bar").setAttribute("aria-label", `Score of ${name}`);
  onClick(item.querySelector(".more"), () => freeze(name));
  onConfirmedClick(item.querySelector(".remove"), "Really remove?", async () => {
    await request("DELETE", `/api/classes?${query({ name })}`);
  });
  item.querySelector(".rename").addEventListener("click", () => rename(item, name));
  return item;
}

function showSupports(item, { name, supports }, revision) {
  const pictures = supports.map(({ has_mask: hasMask }, index) => {
    const masked = `/api/supports.png?${query({ name, index, masked: true, revision })}`;
    const plain = `/api/supports.png?${query({ name, index, revision })}`;
    const image = Object.assign(document.createElement("img"), { src: masked });
    image.alt = `Picture ${index + 1} of ${name}, dimmed outside the object`;
    const button = document.createElement("button");
    button.type = "button";
    button.title = `${hasMask ? "Enrolled with a mask" : "Enrolled by name only; the mask is a guess"}. Click to show or hide the mask.`;
    button.append(image);
    button.addEventListener("click", () => { image.src = image.src.endsWith(plain) ? masked : plain; });
    return button;
  });
  item.querySelector(".supports").replaceChildren(...pictures);
}

// Removing cannot be undone, so it takes two clicks.
function onConfirmedClick(button, question, action) {
  const label = button.textContent;
  let timer = null;
  const reset = () => { clearTimeout(timer); timer = null; button.textContent = label; button.classList.remove("confirm"); };
  onClick(button, async () => {
    if (timer === null) {
      button.textContent = question;
      button.classList.add("confirm");
      timer = setTimeout(reset, CONFIRM_MS);
      return;
    }
    reset();
    await action();
  });
}

function rename(item, name) {
  const label = item.querySelector(".name");
  const input = Object.assign(document.createElement("input"), { value: name, maxLength: 80 });
  input.setAttribute("aria-label", `New name of ${name}`);
  let isDone = false;
  const finish = async (isAccepted) => {
    if (isDone) return;
    isDone = true;
    const newName = input.value.trim();
    input.replaceWith(label);
    if (!isAccepted || newName === name) return;
    await attempt(async () => { await request("PATCH", "/api/classes", { name, new_name: newName }); showMessage(""); });
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
  });
  input.addEventListener("blur", () => finish(true));
  label.replaceWith(input);
  input.select();
}

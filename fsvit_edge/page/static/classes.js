// The list of classes: scores, pictures, rename, remove and "not it".

import { freeze } from "/enrollment.js";
import { makeRejectable, showRejectable } from "/rejection.js";
import { request, attempt, find, make, makeButton, onClick, onConfirmedClick, percent, query, scoreText, showMessage } from "/common.js";

let shownNames = null;
const items = new Map();

export function showClasses(classes) {
  find("empty").hidden = classes.length > 0;
  const names = classes.map((one) => one.name);
  if (names.join("\n") !== shownNames) {
    for (const [name, item] of items) if (!names.includes(name)) { item.remove(); items.delete(name); }
    for (const one of classes) if (!items.has(one.name)) items.set(one.name, makeItem(one.name));
    showInOrder(names);
    find("known").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
    shownNames = names.join("\n");
  }
  for (const one of classes) {
    showSupports(items.get(one.name), one);
    showScore(items.get(one.name), one);
  }
  showAtAGlance(classes);
}

// On a phone, the list lies below the picture, out of sight.
function showAtAGlance(classes) {
  const list = find("glance");
  while (list.children.length > classes.length) list.lastElementChild.remove();
  while (list.children.length < classes.length) {
    const chip = make("li");
    chip.append(make("span", "", "swatch"), make("span", "", "name"), make("span"));
    list.append(chip);
  }
  classes.forEach(({ name, color, score, present }, index) => {
    const chip = list.children[index], [swatch, label, value] = chip.children;
    chip.classList.toggle("present", Boolean(present));
    swatch.style.background = color;
    label.textContent = name;
    value.textContent = score === null ? "" : scoreText(score);
  });
}

// Moves only what is out of place, because a moved element loses the focus.
function showInOrder(names) {
  let next = null;
  for (const name of [...names].reverse()) {
    const item = items.get(name);
    if (!item.isConnected || item.nextElementSibling !== next) find("classes").insertBefore(item, next);
    next = item;
  }
}

function showScore(item, one) {
  const { color, score, level, present, area, instances } = one;
  item.classList.toggle("present", Boolean(present));
  item.querySelector(".swatch").style.background = color;
  item.querySelector(".score").textContent = score === null ? "" : scoreText(score) + (present ? ` · ${percent(area)}` : "");
  const parts = item.querySelector(".parts");
  parts.hidden = instances.length < 2;
  parts.textContent = `${instances.length} parts`;
  const bar = item.querySelector(".bar");
  bar.setAttribute("aria-valuenow", score ?? 0);
  bar.firstElementChild.style.width = `${(score ?? 0) * 100}%`;
  bar.firstElementChild.style.background = color;
  const tick = bar.lastElementChild;
  tick.hidden = level === null;
  tick.style.left = `${(level ?? 0) * 100}%`;
  bar.title = level === null ? "" : `Present above ${scoreText(level)}`;
  item.querySelector(".raised").hidden = one.level_source !== "empty scene";
  showRejectable(item, one);
}

function makeItem(name) {
  const item = find("class").content.firstElementChild.cloneNode(true);
  item.dataset.name = name;
  item.querySelector(".name").textContent = name;
  item.querySelector(".bar").setAttribute("aria-label", `Score of ${name}`);
  onClick(item.querySelector(".more"), () => freeze(name));
  onConfirmedClick(item.querySelector(".remove"), "Really remove?", async () => {
    await request("DELETE", `/api/classes?${query({ name })}`);
    showMessage("");
    find("freeze").focus({ preventScroll: true });
  });
  makeRejectable(item, name);
  item.querySelector(".rename").addEventListener("click", () => rename(item, name));
  return item;
}

// Only when they change: a button that is made again loses the focus, and its picture is fetched again.
function showSupports(item, { name, supports, negatives }) {
  const shown = JSON.stringify([supports, negatives]);
  if (item.dataset.shown === shown) return;
  item.dataset.shown = shown;
  const hadFocus = item.querySelector(".one-picture").contains(document.activeElement);
  item.querySelector(".supports").replaceChildren(...supports.map((_, index) => makeSupport(item, name, supports, index)));
  item.querySelector(".one-picture").hidden = true;
  if (hadFocus) item.querySelector(".more").focus({ preventScroll: true });
  const list = item.querySelector(".negatives");
  list.hidden = negatives.length === 0;
  list.replaceChildren(...negatives.map(({ key }, index) => makeNegative(item, name, index, key)));
}

// A picture of a class, which can be removed while its mask is hidden.
function makeSupport(item, name, supports, index) {
  const { has_mask: hasMask, key } = supports[index];
  const how = hasMask ? "Enrolled with a mask" : "Enrolled by name only; the mask is a guess";
  const button = makePicture("/api/supports.png", { name, index, key }, `Picture ${index + 1} of ${name}, dimmed outside the object`, how);
  button.title = `${how}. Click to show or hide the mask, and to remove the picture.`;
  button.setAttribute("aria-pressed", false);
  const remove = makeButton("Remove picture");
  onConfirmedClick(remove, supports.length > 1 ? "Really remove?" : "Really remove the class?", async () => {
    await request("DELETE", `/api/supports?${query({ name, index, key })}`);
    showMessage("");
    (supports.length > 1 ? item.querySelector(".more") : find("freeze")).focus({ preventScroll: true });
  });
  button.addEventListener("click", () => {
    const isChosen = button.getAttribute("aria-pressed") === "false", row = item.querySelector(".one-picture");
    if (isChosen) button.parentElement.querySelector('[aria-pressed="true"]')?.click();
    button.setAttribute("aria-pressed", isChosen);
    row.hidden = !isChosen;
    row.replaceChildren(make("span", `Picture ${index + 1} of ${supports.length}`), remove);
  });
  return button;
}

// A thumbnail that shows or hides its mask when it is clicked.
function makePicture(path, fields, description, how) {
  const masked = `${path}?${query({ ...fields, masked: true })}`, plain = `${path}?${query(fields)}`;
  const image = Object.assign(document.createElement("img"), { src: masked, alt: description });
  const button = makeButton("", () => { image.src = image.src.endsWith(plain) ? masked : plain; });
  button.title = `${how}. Click to show or hide the mask.`;
  button.append(image);
  return button;
}

function makeNegative(item, name, index, key) {
  const entry = make("li"), description = `Not ${name}, picture ${index + 1}, dimmed outside what is not it`;
  const remove = makeButton("Remove");
  remove.title = `Remove picture ${index + 1} of what is not ${name}`;
  onConfirmedClick(remove, "Really remove?", async () => {
    await request("DELETE", `/api/negatives?${query({ name, index })}`);
    showMessage("");
    item.querySelector(".more").focus({ preventScroll: true });
  });
  entry.append(make("span", "Not it", "mark"), makePicture("/api/negatives.png", { name, index, key }, description, "Not it"), remove);
  return entry;
}

function rename(item, name) {
  const label = item.querySelector(".name");
  if (label === null) { item.querySelector(".head input").select(); return; }
  const input = Object.assign(document.createElement("input"), { value: name, maxLength: 80 });
  input.setAttribute("aria-label", `New name of ${name}`);
  let isBusy = false;
  const finish = async (isAccepted, isByKey) => {
    if (isBusy) return;
    isBusy = true; // also when the field goes, which takes the focus from it
    const newName = input.value.trim();
    await attempt(async () => {
      if (isAccepted && newName !== name) {
        await request("PATCH", "/api/classes", { name, new_name: newName });
        showMessage("");
      }
      input.replaceWith(label);
      if (isByKey) item.querySelector(".rename").focus({ preventScroll: true });
    });
    isBusy = false;
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true, true);
    if (event.key === "Escape") finish(false, true);
  });
  input.addEventListener("blur", () => finish(true));
  label.replaceWith(input);
  input.select();
}

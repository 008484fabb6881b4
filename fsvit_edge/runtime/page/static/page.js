"use strict";

const POLL_MS = 250, HIDDEN_POLL_MS = 3000, RETRY_MS = 1500, SURE_MS = 4000;
const find = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(share * 100)} %`;

// ---------------------------------------------------------------- talking to the run

async function ask(method, path, body) {
  const options = { method };
  if (body instanceof Blob) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  const answer = await fetch(path, options);
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || `The run answered ${answer.status}.`);
  }
  const type = answer.headers.get("Content-Type") || "";
  if (type.startsWith("application/json")) return answer.json();
  return answer.status === 204 ? null : answer.blob();
}

const query = (fields) => new URLSearchParams(fields).toString();

function tell(text) {
  find("banner").textContent = text;
  find("banner").hidden = !text;
}

// What a click asks for: a failure is shown, and the button waits meanwhile.
function onClick(button, action) {
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await action();
    } catch (error) {
      tell(error.message);
    } finally {
      button.disabled = false;
    }
  });
}

// ---------------------------------------------------------------- how the run fares

let isReached = false;
let trouble = "";

async function poll() {
  try {
    const state = await ask("GET", "/api/state");
    if (!isReached) startStream();
    isReached = true;
    showHealth(state);
    showClasses(state.classes, state.revision);
    find("bank-file").textContent = state.bank.file;
    find("bank-saved").textContent = state.bank.is_saved ? "Saved." : "Changes are not saved.";
    find("bank-saved").classList.toggle("unsaved", !state.bank.is_saved);
  } catch (error) {
    isReached = false;
    setPill("lost", "not reached");
    showTrouble(error instanceof TypeError ? "The run cannot be reached; trying again." : error.message);
  }
  setTimeout(poll, isReached ? (document.hidden ? HIDDEN_POLL_MS : POLL_MS) : RETRY_MS);
}

function showTrouble(text) {
  if (text === trouble) return;
  trouble = text;
  tell(text);
}

function setPill(kind, text) {
  const pill = find("state");
  pill.className = `pill ${kind}`;
  if (pill.textContent !== text) pill.textContent = text;
}

function showHealth({ health, frame }) {
  find("waiting").hidden = frame !== null;
  if (health === null) return;
  const source = health.source_status;
  if (source.is_frozen) setPill("frozen", "frozen");
  else setPill(source.state, source.state);
  showTrouble(source.is_frozen ? "The camera repeats the same picture." : source.message);
  find("fps").textContent = health.fps.toFixed(1);
  find("age").textContent = health.age_ms ? `${Math.round(health.age_ms.p50)} ms` : "–";
  find("dropped").textContent = source.dropped;
  find("model").textContent = `${health.source} · ${health.model} · ${health.engine} ${health.precision}`;
}

function startStream() {
  find("live").src = `/api/stream.mjpg?${query({ at: Date.now() })}`;
}
find("live").addEventListener("error", () => setTimeout(() => isReached && startStream(), RETRY_MS));

// ---------------------------------------------------------------- the classes

let shownRevision = null;
const items = new Map();

function showClasses(classes, revision) {
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

function showScore(item, { colour, score, present, area }) {
  item.classList.toggle("present", Boolean(present));
  item.querySelector(".swatch").style.background = colour;
  item.querySelector(".score").textContent = score === null ? "" : score.toFixed(2) + (present ? ` · ${percent(area)}` : "");
  const bar = item.querySelector(".bar");
  bar.setAttribute("aria-valuenow", score ?? 0);
  bar.firstElementChild.style.width = `${(score ?? 0) * 100}%`;
  bar.firstElementChild.style.background = colour;
}

function makeItem(name) {
  const item = find("class").content.firstElementChild.cloneNode(true);
  item.dataset.name = name;
  item.querySelector(".name").textContent = name;
  item.querySelector(".bar").setAttribute("aria-label", `P(present) of ${name}`);
  onClick(item.querySelector(".more"), () => freeze(name));
  onSecondClick(item.querySelector(".remove"), "Really remove?", async () => {
    await ask("DELETE", `/api/classes?${query({ name })}`);
  });
  item.querySelector(".rename").addEventListener("click", () => rename(item, name));
  return item;
}

function showSupports(item, { name, supports }, revision) {
  const pictures = supports.map(({ has_mask: hasMask }, index) => {
    const seen = `/api/supports.png?${query({ name, index, seen: 1, revision })}`;
    const plain = `/api/supports.png?${query({ name, index, revision })}`;
    const image = Object.assign(document.createElement("img"), { src: seen });
    image.alt = `Picture ${index + 1} of ${name}: what the network takes for it`;
    const button = document.createElement("button");
    button.type = "button";
    button.title = hasMask ? "By box or paint. Click: without the mask" : "By the name alone; the mask is guessed. Click: without it";
    button.append(image);
    button.addEventListener("click", () => { image.src = image.src.endsWith(plain) ? seen : plain; });
    return button;
  });
  item.querySelector(".supports").replaceChildren(...pictures);
}

// Removing cannot be undone, so it takes two clicks.
function onSecondClick(button, question, action) {
  const label = button.textContent;
  let timer = null;
  const calm = () => { clearTimeout(timer); timer = null; button.textContent = label; button.classList.remove("sure"); };
  onClick(button, async () => {
    if (timer === null) {
      button.textContent = question;
      button.classList.add("sure");
      timer = setTimeout(calm, SURE_MS);
      return;
    }
    calm();
    await action();
  });
}

function rename(item, name) {
  const label = item.querySelector(".name");
  const input = Object.assign(document.createElement("input"), { value: name, maxLength: 80 });
  input.setAttribute("aria-label", `New name of ${name}`);
  let isDone = false;
  const finish = async (isWanted) => {
    if (isDone) return;
    isDone = true;
    const wanted = input.value.trim();
    input.replaceWith(label);
    if (!isWanted || wanted === name) return;
    try {
      await ask("PATCH", "/api/classes", { name, new_name: wanted });
      tell("");
    } catch (error) {
      tell(error.message);
    }
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
  });
  input.addEventListener("blur", () => finish(true));
  label.replaceWith(input);
  input.select();
}

// ---------------------------------------------------------------- a frozen frame, and what is drawn on it

const drawing = find("drawing"), pen = drawing.getContext("2d");
let frame = null; // {id, width, height}
let box = null; // [x0, y0, x1, y1] as drawn
let preview = null; // the mask that the box becomes
let isPainted = false;
let latestPreview = 0;

const mode = () => find("enrol").elements.mode.value;

async function freeze(name) {
  frame = await ask("POST", "/api/frames");
  find("frozen").src = `/api/frames/${frame.id}.jpg`;
  await find("frozen").decode();
  drawing.width = frame.width;
  drawing.height = frame.height;
  clear();
  setFrozen(true);
  find("report").hidden = true;
  find("name").value = name || "";
  tell("");
  drawing.focus({ preventScroll: true });
  find("picture").scrollIntoView({ block: "nearest" });
}

function setFrozen(isFrozen) {
  for (const id of ["frozen", "drawing", "enrol"]) find(id).hidden = !isFrozen;
  for (const id of ["live", "freeze"]) find(id).hidden = isFrozen;
  if (!isFrozen) frame = null;
}

function clear() {
  box = preview = null;
  isPainted = false;
  pen.clearRect(0, 0, drawing.width, drawing.height);
}

function showMode() {
  clear();
  find("brush").hidden = mode() !== "paint";
  drawing.classList.toggle("off", mode() === "name");
  find("hint").textContent = {
    box: "Drag a box around the thing.",
    paint: "Paint over the thing.",
    name: "Just give its name: the network guesses which part of the picture is meant.",
  }[mode()];
}

// The picture is fitted into its place, so a point of the page is not simply a share of the canvas.
function place(event) {
  const outer = drawing.getBoundingClientRect();
  const scale = Math.min(outer.width / drawing.width, outer.height / drawing.height);
  const x = (event.clientX - outer.left - (outer.width - drawing.width * scale) / 2) / scale;
  const y = (event.clientY - outer.top - (outer.height - drawing.height * scale) / 2) / scale;
  return [Math.max(0, Math.min(drawing.width, x)), Math.max(0, Math.min(drawing.height, y)), scale];
}

const ordered = ([x0, y0, x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)].map(Math.round);

function redraw() {
  pen.clearRect(0, 0, drawing.width, drawing.height);
  if (preview) {
    pen.globalAlpha = 0.5;
    pen.drawImage(preview, 0, 0);
    pen.globalAlpha = 1;
  }
  if (!box) return;
  const [x0, y0, x1, y1] = ordered(box);
  const thick = Math.max(2, drawing.width / 320);
  pen.lineWidth = thick * 2;
  pen.strokeStyle = "#000";
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  pen.lineWidth = thick;
  pen.strokeStyle = "#ffd166";
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
}

async function showPreview() {
  const [x0, y0, x1, y1] = ordered(box);
  if (x1 - x0 < 2 || y1 - y0 < 2) return;
  const mine = ++latestPreview;
  try {
    const mask = await createImageBitmap(await ask("POST", `/api/frames/${frame.id}/mask`, { box_xyxy: [x0, y0, x1, y1] }));
    if (mine !== latestPreview || !box) return;
    const tinted = new OffscreenCanvas(mask.width, mask.height);
    const layer = tinted.getContext("2d");
    layer.drawImage(mask, 0, 0);
    const pixels = layer.getImageData(0, 0, mask.width, mask.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      pixels.data[at + 3] = pixels.data[at];
      pixels.data.set([255, 209, 102], at);
    }
    layer.putImageData(pixels, 0, 0);
    preview = tinted;
    redraw();
  } catch (error) {
    tell(error.message);
  }
}

function paintTo(x, y, scale, isStart) {
  const width = Number(find("size").value) / scale;
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = width;
  pen.strokeStyle = "#ffd166";
  if (isStart) { pen.beginPath(); pen.moveTo(x, y); }
  pen.lineTo(x, y);
  pen.stroke();
  isPainted = true;
}

drawing.addEventListener("pointerdown", (event) => {
  if (mode() === "name" || event.button > 0) return;
  drawing.setPointerCapture(event.pointerId);
  const [x, y, scale] = place(event);
  if (mode() === "paint") paintTo(x, y, scale, true);
  else { box = [x, y, x, y]; preview = null; redraw(); }
});
drawing.addEventListener("pointermove", (event) => {
  if (!drawing.hasPointerCapture(event.pointerId)) return;
  const [x, y, scale] = place(event);
  if (mode() === "paint") paintTo(x, y, scale, false);
  else { box[2] = x; box[3] = y; redraw(); }
});
drawing.addEventListener("pointerup", () => { if (mode() === "box" && box) showPreview(); });

drawing.addEventListener("keydown", (event) => {
  const step = drawing.width / 50;
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (!move || mode() !== "box") return;
  event.preventDefault();
  if (!box) box = [drawing.width / 4, drawing.height / 4, drawing.width * 3 / 4, drawing.height * 3 / 4];
  const [dx, dy] = move;
  box = event.shiftKey ? [box[0], box[1], box[2] + dx, box[3] + dy] : [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
  preview = null;
  redraw();
  showPreview();
});

async function paintedPng() {
  const layer = new OffscreenCanvas(drawing.width, drawing.height);
  const brush = layer.getContext("2d");
  const pixels = pen.getImageData(0, 0, drawing.width, drawing.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const light = pixels.data[at + 3] > 127 ? 255 : 0;
    pixels.data.set([light, light, light, 255], at);
  }
  brush.putImageData(pixels, 0, 0);
  const bytes = new Uint8Array(await (await layer.convertToBlob({ type: "image/png" })).arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

// ---------------------------------------------------------------- enrolment

async function enrol() {
  const name = find("name").value.trim();
  const asked = { name, frame_id: frame.id };
  if (mode() === "box") {
    if (!box) throw new Error("Drag a box around the thing first, or choose Name only.");
    asked.box_xyxy = ordered(box);
  } else if (mode() === "paint") {
    if (!isPainted) throw new Error("Paint over the thing first, or choose Name only.");
    asked.mask_png = await paintedPng();
  }
  const report = await ask("POST", "/api/classes", asked);
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

// ---------------------------------------------------------------- wiring

onClick(find("freeze"), () => freeze());
find("cancel").addEventListener("click", () => setFrozen(false));
find("clear").addEventListener("click", clear);
find("enrol").addEventListener("change", (event) => { if (event.target.name === "mode") showMode(); });
find("enrol").addEventListener("submit", async (event) => {
  event.preventDefault();
  find("submit").disabled = true;
  try {
    await enrol();
  } catch (error) {
    tell(error.message);
  } finally {
    find("submit").disabled = false;
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && frame) setFrozen(false); });
onClick(find("save"), async () => { await ask("POST", "/api/bank/save"); tell(""); });
find("upload").addEventListener("change", async () => {
  const [file] = find("upload").files;
  find("upload").value = "";
  if (!file) return;
  try {
    await ask("PUT", "/api/bank", file);
    tell("");
  } catch (error) {
    tell(error.message);
  }
});

poll();

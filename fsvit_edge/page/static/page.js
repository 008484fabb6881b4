// Polls the run and shows its health, picture, classes, empty scene, zones and bank.

import { showClasses } from "/classes.js";
import { followClasses } from "/enrollment.js";
import { showEvents } from "/events.js";
import { judged } from "/frozen.js";
import { showReview } from "/review.js";
import { showScene } from "/scene.js";
import { onSource, showSources } from "/sources.js";
import { showZones } from "/zones.js";
import { request, attempt, find, ofSource, onClick, query, showMessage, showSource, showTrouble } from "/common.js";

const FOLLOWED = "The classes come from there and cannot be changed here.";
const POLL_MS = 250, HIDDEN_POLL_MS = 3000, RETRY_MS = 1500;

let isConnected = false;

async function poll() {
  const askedMs = performance.now();
  try {
    const state = await getState();
    if (state !== null) show(state, askedMs);
  } finally {
    setTimeout(poll, isConnected ? (document.hidden ? HIDDEN_POLL_MS : POLL_MS) : RETRY_MS);
  }
}

async function getState() {
  try {
    const state = await request("GET", ofSource("/api/state"));
    if (!isConnected) startStream();
    setConnected(true);
    return state;
  } catch (error) {
    if (error.status === 400) showSource(""); // another run, without the source that was chosen
    setConnected(false);
    setPill("lost", "unreachable");
    showTrouble(error instanceof TypeError ? "Cannot reach the run; retrying." : error.message);
    return null;
  }
}

function setConnected(isNow) {
  isConnected = isNow;
  document.body.classList.toggle("stale", !isNow);
}

function show(state, askedMs) {
  showSources(state);
  showHealth(state);
  showClasses(judged(state));
  followClasses(state.classes, askedMs);
  showScene(state);
  showEvents(state);
  showZones(state);
  showReview(state);
  find("bank-file").textContent = state.bank.file;
  document.body.classList.toggle("followed", state.bank.is_followed);
  const saved = !state.bank.is_saved ? "Not saved yet." : state.bank.is_there ? "Saved." : "There is no such file yet.";
  find("bank-saved").textContent = state.bank.is_followed ? FOLLOWED : saved;
  find("bank-saved").classList.toggle("unsaved", !state.bank.is_saved);
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
  showTrouble(source.is_frozen ? "The camera repeats the same picture." : source.message || troubleOf(health));
  find("fps").textContent = health.fps.toFixed(1);
  find("age").textContent = health.age_ms ? `${Math.round(health.age_ms.p50)} ms` : "–";
  find("dropped").textContent = source.dropped;
  find("model").textContent = `${health.source} · ${health.model} · ${health.engine} ${health.precision}`;
}

function troubleOf({ sinks, bank }) {
  const failing = sinks.find((sink) => sink.failure || sink.trouble);
  if (!failing && bank?.trouble) return `Bank ${bank.origin}: ${bank.trouble}`;
  return failing ? `${failing.name}: ${failing.failure || failing.trouble}` : "";
}

function startStream() {
  find("live").src = ofSource("/api/stream.mjpg", { at: Date.now() });
}
onSource(startStream);
find("live").addEventListener("error", () => setTimeout(() => isConnected && startStream(), RETRY_MS));

// The file has classes that this run did not read: a second click overwrites it.
const OVERWRITE = "Overwrite it?", SAVE = find("save").textContent;
onClick(find("save"), async () => {
  const isSecond = find("save").textContent === OVERWRITE;
  offerToOverwrite(false);
  try {
    await request("POST", `/api/bank/save?${query({ overwrite: isSecond })}`);
    showMessage("");
  } catch (error) {
    if (error.status === 409) offerToOverwrite(true);
    throw error;
  }
});

function offerToOverwrite(isOffered) {
  find("save").textContent = isOffered ? OVERWRITE : SAVE;
  find("save").classList.toggle("confirm", isOffered);
}

let chosen = null; // the file that waits for Replace or Cancel

find("upload").addEventListener("change", async () => {
  const [file] = find("upload").files;
  find("upload").value = "";
  if (!file) return;
  offerToOverwrite(false);
  await attempt(async () => {
    const { bank, classes } = await request("GET", "/api/state");
    if (bank.is_saved || classes.length === 0) await load(file);
    else offerToReplace(file);
  });
});

async function load(file) {
  await request("PUT", `/api/bank?${query({ name: file.name })}`, file);
  showMessage("");
}

// Loading replaces all classes, also those that are in no file.
function offerToReplace(file) {
  chosen = file;
  find("replace").hidden = file === null;
  if (file !== null) find("replace-question").textContent = `The classes are not saved. Replace them by those of ${file.name}?`;
  (file === null ? find("upload") : find("replace-no")).focus();
}
onClick(find("replace-yes"), async () => {
  const file = chosen;
  offerToReplace(null);
  await load(file);
});
find("replace-no").addEventListener("click", () => offerToReplace(null));

poll();

// How the run fares, its picture and its bank, kept up to date.

import { showClasses } from "/classes.js";
import { ask, attempt, find, onClick, query, tell, tellTrouble } from "/talk.js";

const POLL_MS = 250, HIDDEN_POLL_MS = 3000, RETRY_MS = 1500;

let isReached = false;

async function poll() {
  try {
    const state = await askState();
    if (state !== null) show(state);
  } finally {
    setTimeout(poll, isReached ? (document.hidden ? HIDDEN_POLL_MS : POLL_MS) : RETRY_MS);
  }
}

async function askState() {
  try {
    const state = await ask("GET", "/api/state");
    if (!isReached) startStream();
    isReached = true;
    return state;
  } catch (error) {
    isReached = false;
    setPill("lost", "not reached");
    tellTrouble(error instanceof TypeError ? "The run cannot be reached; trying again." : error.message);
    return null;
  }
}

function show(state) {
  showHealth(state);
  showClasses(state.classes, state.revision);
  find("bank-file").textContent = state.bank.file;
  find("bank-saved").textContent = state.bank.is_saved ? "Saved." : "Changes are not saved.";
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
  tellTrouble(source.is_frozen ? "The camera repeats the same picture." : source.message || troubleOf(health.sinks));
  find("fps").textContent = health.fps.toFixed(1);
  find("age").textContent = health.age_ms ? `${Math.round(health.age_ms.p50)} ms` : "–";
  find("dropped").textContent = source.dropped;
  find("model").textContent = `${health.source} · ${health.model} · ${health.engine} ${health.precision}`;
}

function troubleOf(sinks) {
  const ailing = sinks.find((sink) => sink.failure || sink.trouble);
  return ailing ? `${ailing.name}: ${ailing.failure || ailing.trouble}` : "";
}

function startStream() {
  find("live").src = `/api/stream.mjpg?${query({ at: Date.now() })}`;
}
find("live").addEventListener("error", () => setTimeout(() => isReached && startStream(), RETRY_MS));

onClick(find("save"), async () => { await ask("POST", "/api/bank/save"); tell(""); });
find("upload").addEventListener("change", async () => {
  const [file] = find("upload").files;
  find("upload").value = "";
  if (!file) return;
  await attempt(async () => { await ask("PUT", "/api/bank", file); tell(""); });
});

poll();

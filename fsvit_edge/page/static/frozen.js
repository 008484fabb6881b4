// The frozen frame or picture that is open, and what is found in it: what is shown is what is judged.

import { distinctTexts, find, request, scoreText } from "/common.js";

let open = null; // {id, ...} as the run answered, and `name` if it is a picture file; null while the picture is live
let openedAt = null;
let answer = null; // {revision, classes}: what is found in it; null until that is known
let asked = null; // the frame whose answer is awaited, or will never come
let source = "camera"; // that the page shows

export const openFrame = () => open;

// Loads a frozen frame, so that it can be opened without a blank moment.
export async function load(frozen) {
  find("frozen").src = `/api/frames/${frozen.id}.jpg`;
  await find("frozen").decode();
  return frozen;
}

// From now on, the scores and "Not it" are those of this frame; null: of the live picture again.
export function setOpen(frozen) {
  open = frozen;
  openedAt = new Date();
  answer = asked = null;
  find("frozen").hidden = open === null;
  find("live").hidden = open !== null;
  find("found").hidden = true;
  tell("");
  find("judged").textContent = open === null ? "" : ` in ${open.name ?? "the frozen frame"}`;
}

// The classes of a state with the scores of the picture that is shown; they are null until they are worked out.
export function judged(state) {
  source = state.source || state.health?.source || source;
  if (open === null) return state.classes;
  const isKnown = answer?.revision === state.revision;
  if (!isKnown) ask(open, state.classes.length);
  const found = new Map(isKnown ? answer.classes.map((one) => [one.name, one]) : []);
  const unknown = { score: null, present: null, area: null, instances: [] };
  return state.classes.map((one) => ({ ...one, ...(found.get(one.name) ?? unknown) }));
}

async function ask(mine, count) {
  if (asked === mine) return;
  asked = mine;
  if (count > 0) tell("Looking for your classes…");
  try {
    const known = await request("GET", `/api/frames/${mine.id}/answer`);
    const drawn = await request("GET", `/api/frames/${mine.id}/overlay.jpg`);
    if (open !== mine) return;
    answer = known;
    tell(sentence(known.classes));
    await draw(drawn);
    asked = null;
  } catch (error) {
    if (open !== mine) return;
    tell(error.message);
    if (error.status !== 400) asked = null; // of a frame that is gone there is nothing more to ask
  }
}

async function draw(jpeg) {
  const mine = open, picture = find("found"), address = URL.createObjectURL(jpeg);
  picture.src = address;
  await picture.decode();
  URL.revokeObjectURL(address);
  picture.hidden = open !== mine;
}

function tell(text) {
  const told = find("found-told");
  if (told.textContent !== text) told.textContent = text;
}

function sentence(classes) {
  if (classes.length === 0) return "";
  const present = classes.filter((one) => one.present).map(({ name, score }) => `${name} ${scoreText(score)}`);
  if (present.length > 0) return `Found: ${present.join(", ")}.`;
  const best = classes.reduce((one, other) => (other.score > one.score ? other : one));
  const [score, level] = distinctTexts(best.score, best.level);
  return `Nothing is found: ${best.name} has the highest score, ${score}, and its level is ${level}.`;
}

// The name of a file to download: after the picture file that is open, or the source and the time.
export function fileName(kind) {
  if (open?.name) return `${stem(open.name)}-${kind}`;
  const at = open ? openedAt : new Date(), local = new Date(at - at.getTimezoneOffset() * 60_000);
  return `${stem(source)}-${local.toISOString().slice(0, 19).replace("T", "-").replaceAll(":", "")}-${kind}`;
}

// The last part of a path or an address, without its ending, in letters that every file system takes.
function stem(path) {
  const last = path.split(/[/\\]/).filter(Boolean).pop() ?? "";
  return last.replace(/\.\p{L}[\p{L}\p{N}]{1,4}$/u, "").replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 60) || "picture";
}

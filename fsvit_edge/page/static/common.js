// Shared by all scripts: finding elements, sending requests, showing messages.

const CONFIRM_MS = 4000;

export const find = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(share * 100)} %`;

// A score or a level; as score_text in Python: four decimals where two would hide how far from 1 it is.
export const scoreText = (score) => score.toFixed(score < 0.995 ? 2 : 4);

// A score and its level; as distinct_texts in Python: with so many more digits that they look alike only if they are equal.
export function distinctTexts(...scores) {
  let texts = scores.map(scoreText);
  for (let digits = 4; digits < 18 && new Set(texts).size < new Set(scores).size; digits += 2) {
    texts = scores.map((score) => score.toFixed(digits));
  }
  return texts;
}

export async function request(method, path, body) {
  const options = { method };
  if (body instanceof Blob) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "Content-Type": "application/json" };
  }
  const answer = await fetch(path, options);
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(error || `The request failed with status ${answer.status}.`), { status: answer.status });
  }
  if (answer.status === 204) return null; // its Content-Type is JSON, but it has no body
  const type = answer.headers.get("Content-Type") || "";
  return type.startsWith("application/json") ? answer.json() : answer.blob();
}

export const query = (fields) => new URLSearchParams(fields).toString();

let source = ""; // of several sources, the one that is shown

export const shownSource = () => source;
export function showSource(name) { source = name; }

// An address with the source that is shown, if there are several.
export const ofSource = (path, fields = {}) => {
  const asked = query(source ? { ...fields, source } : fields);
  return asked ? `${path}?${asked}` : path;
};

let message = "", trouble = "", closedTrouble = "";

// The outcome of a click; an empty text clears it.
export function showMessage(text) {
  message = text;
  showBanner();
}

// A problem of the run, shown while it lasts and no message is.
export function showTrouble(text) {
  trouble = text;
  if (text !== closedTrouble) closedTrouble = ""; // the same one shows again if it comes again
  showBanner();
}

function showBanner() {
  const text = message || (trouble === closedTrouble ? "" : trouble), banner = find("banner");
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
}

// docs.html has no banner.
find("banner-close")?.addEventListener("click", () => {
  if (!message) closedTrouble = trouble;
  showMessage("");
});

// Runs an action and shows its error, if any.
export async function attempt(action) {
  try {
    await action();
  } catch (error) {
    showMessage(error.message);
  }
}

// Same, with the button disabled meanwhile; it gets back the focus that this takes from it.
export async function attemptWith(button, action) {
  const hadFocus = document.activeElement === button;
  button.disabled = true;
  await attempt(action);
  button.disabled = false;
  if (hadFocus && document.activeElement === document.body) button.focus();
}

export function onClick(button, action) {
  button.addEventListener("click", () => attemptWith(button, action));
}

// For what cannot be undone: it takes two clicks.
export function onConfirmedClick(button, question, action) {
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

let leavePicture = () => {};

// One thing at a time is drawn on a frozen picture: who begins ends what was begun before.
export function takePicture(leave) {
  leavePicture();
  leavePicture = leave;
}

export const make = (tag, text = "", kind = "") => Object.assign(document.createElement(tag), { textContent: text, className: kind });

export function makeButton(text, action) {
  const button = make("button", text);
  button.type = "button";
  if (action) onClick(button, action);
  return button;
}

export function makeFacts(facts) {
  const list = document.createElement("dl");
  for (const [label, value] of facts) {
    const pair = document.createElement("div");
    pair.append(make("dt", label), make("dd", value));
    list.append(pair);
  }
  return list;
}

export function makeList(texts) {
  const list = document.createElement("ul");
  list.append(...texts.map((text) => make("li", text)));
  return list;
}

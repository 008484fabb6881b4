// Shared by all scripts: finding elements, sending requests, showing messages.

export const find = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(share * 100)} %`;

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
    throw new Error(error || `The request failed with status ${answer.status}.`);
  }
  if (answer.status === 204) return null; // its Content-Type is JSON, but it has no body
  const type = answer.headers.get("Content-Type") || "";
  return type.startsWith("application/json") ? answer.json() : answer.blob();
}

export const query = (fields) => new URLSearchParams(fields).toString();

let message = "", trouble = "";

// The outcome of a click; an empty text clears it.
export function showMessage(text) {
  message = text;
  showBanner();
}

// A problem of the run, shown while it lasts and no message is.
export function showTrouble(text) {
  trouble = text;
  showBanner();
}

function showBanner() {
  const text = message || trouble, banner = find("banner");
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
}

// Runs an action and shows its error, if any.
export async function attempt(action) {
  try {
    await action();
  } catch (error) {
    showMessage(error.message);
  }
}

// Same, with the button disabled meanwhile.
export async function attemptWith(button, action) {
  button.disabled = true;
  await attempt(action);
  button.disabled = false;
}

export function onClick(button, action) {
  button.addEventListener("click", () => attemptWith(button, action));
}

// What all parts share: finding elements, asking the run, telling the person.

export const find = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(share * 100)} %`;

export async function ask(method, path, body) {
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

export const query = (fields) => new URLSearchParams(fields).toString();

let said = "", trouble = "";

// What came of a click; an empty text takes it back.
export function tell(text) {
  said = text;
  showBanner();
}

// What is wrong with the run for as long as it is.
export function tellTrouble(text) {
  trouble = text;
  showBanner();
}

function showBanner() {
  const text = said || trouble, banner = find("banner");
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
}

// Does what was asked for; a failure is shown.
export async function attempt(action) {
  try {
    await action();
  } catch (error) {
    tell(error.message);
  }
}

// The button waits meanwhile.
export async function attemptWith(button, action) {
  button.disabled = true;
  await attempt(action);
  button.disabled = false;
}

export function onClick(button, action) {
  button.addEventListener("click", () => attemptWith(button, action));
}

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

export function tell(text) {
  find("banner").textContent = text;
  find("banner").hidden = !text;
}

// What a click asks for: a failure is shown, and the button waits meanwhile.
export function onClick(button, action) {
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

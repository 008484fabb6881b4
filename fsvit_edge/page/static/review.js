// The review: one doubtful frame at a time, a verdict by key or tap, and what it would teach, tried before it is kept.

import { attempt, distinctTexts, find, make, query, request, scoreText } from "/common.js";

const WORDS = { yes: "Yes", no: "Not it" };
const dialog = find("review-dialog"), picture = find("review-picture");

let queue = []; // the frames to go through, each with its verdict
let place = 0; // of the frame in view
let trialId = null; // of a change that waits for Keep or Discard
let isBusy = false;
let session = 0; // counts how often the dialog was opened and closed: an answer that comes later must not touch it

export function showReview({ review: { doubtful, judged }, frame }) {
  // The kept frames are squeezed into a square; the camera's proportions make them look right again.
  if (frame) dialog.style.setProperty("--ratio", frame.size_hw[1] / frame.size_hw[0]);
  const frames = doubtful === 1 ? "frame" : "frames";
  setText("review-title", doubtful === 0 ? "Review" : `Review: ${doubtful} doubtful ${frames}`);
  const known = doubtful > 0 ? "Say what is there. What that teaches is tried on all verdicts before it is kept." : "All are judged.";
  setText("review-known", doubtful + judged === 0
    ? "Nothing to judge yet. Frames in which the run is not sure of a class are kept here."
    : judged === 0 ? known : `${known} ${verdicts(judged)} so far.`);
  const open = find("review-open");
  open.hidden = doubtful + judged === 0;
  open.classList.toggle("primary", doubtful > 0);
  setText("review-open", doubtful > 0 ? "Review" : "See verdicts");
}

function setText(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
}

const verdicts = (count) => `${count} ${count === 1 ? "verdict" : "verdicts"}`;
const answerOf = (isPresent) => (isPresent ? "present" : "absent");
const pictureOf = ({ number, wall_time_s: at }) => `/api/review/${number}.jpg?${query({ at })}`;

// ---------------------------------------------------------------------------------------------------------- the dialog

// Runs one action at a time; its error is shown in the dialog, which covers the page's own banner.
async function act(action) {
  if (isBusy) return;
  const opened = session;
  setBusy(true);
  try {
    await action();
  } catch (error) {
    if (opened === session) tell(error.message, "bad");
  } finally {
    if (opened === session) setBusy(false);
  }
}

function setBusy(isNow) {
  isBusy = isNow;
  if (isNow) dialog.setAttribute("aria-busy", "true");
  else dialog.removeAttribute("aria-busy");
}

function tell(text, kind = "") {
  find("review-told").className = kind;
  find("review-told").textContent = text;
}

const isSame = (one, other) => one.number === other.number && one.wall_time_s === other.wall_time_s;

// A button with the key that presses it.
function makeChoice(text, key, kind, action) {
  const button = make("button", text, kind);
  button.type = "button";
  if (key) {
    button.dataset.key = key;
    const hint = make("kbd", { ArrowLeft: "←", ArrowRight: "→" }[key] || key.toUpperCase());
    hint.setAttribute("aria-hidden", "true");
    button.append(hint);
    button.setAttribute("aria-keyshortcuts", key);
  }
  button.addEventListener("click", () => act(action));
  return button;
}

// What is asked, said or offered below the picture; the focus goes to a button, or else to the heading.
function showPanel(kind, title, texts, choices, focused = null) {
  dialog.dataset.panel = kind;
  find("review-question").textContent = title;
  find("review-text").replaceChildren(...texts.map((one) => (one instanceof Node ? one : make("p", one))));
  find("review-choices").replaceChildren(...choices);
  (focused || find("review-question")).focus({ preventScroll: true });
  dialog.scrollTop = 0;
}

function showFrame() {
  const item = queue[place];
  showProgress(`Frame ${place + 1} of ${queue.length}`);
  picture.src = pictureOf(item);
  picture.alt = `Doubtful frame for ${item.name}`;
  picture.hidden = false;
  if (place + 1 < queue.length) new Image().src = pictureOf(queue[place + 1]);
  askAbout(item);
}

const countLeft = () => queue.filter((one) => one.verdict === null).length;

function showProgress(title) {
  const left = countLeft();
  if (title) find("review-place").textContent = title;
  find("review-left").textContent = left === 0 ? "none left" : `${left} left`;
  find("review-bar").style.width = `${((queue.length - left) / queue.length) * 100}%`;
}

function askAbout(item) {
  const [score, level] = distinctTexts(item.score, item.level);
  const text = `The run says ${answerOf(item.present)}, ${score} (level ${level}).`;
  const back = makeChoice("Back", "ArrowLeft", "small", () => move(-1));
  back.disabled = place === 0;
  const skip = makeChoice("Skip", "s", "small", () => { tell(""); move(1); });
  skip.setAttribute("aria-keyshortcuts", "s ArrowRight");
  const texts = item.verdict === null ? [text] : [text, `You said ${WORDS[item.verdict]}; press it again to take it back.`];
  showPanel("question", `${item.name}?`, texts, [...makeVerdicts(item, "big"), back, skip]);
}

function makeVerdicts(item, size) {
  const yes = makeChoice(WORDS.yes, "y", `${size} yes`, () => judge(item, "yes"));
  const no = makeChoice(WORDS.no, "n", `${size} no`, () => judge(item, "no"));
  yes.setAttribute("aria-pressed", String(item.verdict === "yes"));
  no.setAttribute("aria-pressed", String(item.verdict === "no"));
  return [yes, no];
}

async function move(step) {
  place = Math.max(0, place + step);
  if (place < queue.length) showFrame();
  else await showEnd();
}

// Frames that have come since are added to the queue, and offered.
async function showEnd() {
  const opened = session;
  const skipped = countLeft();
  let added = [];
  try {
    const { items } = await request("GET", "/api/review");
    if (opened !== session) return;
    added = items.filter((one) => one.verdict === null && !queue.some((known) => isSame(known, one)));
  } catch (error) {
    if (opened !== session) return;
    tell(error.message, "bad");
  }
  queue = [...queue, ...added]; // their first is at `place`
  showProgress("Done");
  picture.hidden = true;
  const back = makeChoice("Back", "ArrowLeft", "small", () => move(-1));
  const done = makeChoice("Done", "", added.length === 0 ? "primary" : "", () => dialog.close());
  const text = "What you teach here is tried on all your verdicts before it is kept.";
  if (added.length === 0) {
    const judged = queue.length - skipped;
    showPanel("end", skipped === 0 ? "All are judged." : `${judged} judged, ${skipped} skipped.`, [text], [back, done], done);
    return;
  }
  const more = makeChoice("Go on", "s", "primary", showFrame);
  const title = added.length === 1 ? "One more doubtful frame has come." : `${added.length} more doubtful frames have come.`;
  showPanel("end", title, [text], [more, done, back], more);
}

// ------------------------------------------------------------------------------------------------ verdicts and learning

async function judge(item, verdict) {
  const opened = session;
  const answer = await request("PUT", `/api/review/${item.number}`, {
    verdict: item.verdict === verdict ? null : verdict, wall_time_s: item.wall_time_s,
  });
  item.verdict = answer.verdict;
  if (opened !== session) return;
  showProgress();
  const isSaved = answer.is_saved ? "saved" : "not saved yet, press Save on the page";
  const said = answer.verdict === null ? "Taken back" : `${item.name}: ${WORDS[answer.verdict]}`;
  tell(`${said}; ${isSaved}.`, answer.is_saved ? "good" : "warn");
  if (answer.verdict === null) showFrame();
  else if (answer.contradicts) offerToLearn(item, answer);
  else await move(1);
}

function offerToLearn(item, answer) {
  const { score, present } = answer;
  const [title, text] = present
    ? [`The run still finds ${item.name} here.`,
      `Learn that this is not ${item.name}? What is found here becomes a picture of what it is not.`]
    : [`The run misses ${item.name} here.`,
      `Add this picture to ${item.name}? It is added by the name alone: the network guesses which part of it you mean.`];
  const learn = makeChoice("Learn from it…", "l", "primary", () => tryToLearn(item, answer));
  const next = makeChoice("Leave it", "s", "", () => move(1));
  const texts = [`It says ${answerOf(present)}, ${scoreText(score)}.`, text, "You see what else that changes before it is kept."];
  const back = makeChoice("Back", "ArrowLeft", "small", showFrame); // to the question
  showPanel("offer", title, texts, [learn, next, ...makeVerdicts(item, "small"), back], learn);
}

async function tryToLearn(item, answer) {
  const opened = session;
  const waiting = make("div", "", "waiting");
  showPanel("checking", "Checking this against all verdicts…", [waiting], []);
  let report;
  try {
    report = await request("POST", "/api/review-trials", { number: item.number, wall_time_s: item.wall_time_s });
  } catch (error) {
    if (opened === session) offerToLearn(item, answer); // so that it can be tried again
    throw error;
  }
  if (opened === session) showTrial(report, () => offerToLearn(item, answer));
  else await request("DELETE", `/api/review-trials/${report.id}`);
}

function showTrial({ id, name, summary, frame, changes }, offerAgain) {
  // Other answers may have been wrong before; they are counted in the summary, but are no reason against this change.
  const helps = !frame.contradicts && !changes.some((one) => one.contradicts);
  trialId = id;
  const before = `${answerOf(frame.present_before)}, ${scoreText(frame.score_before)}`;
  const after = `${answerOf(frame.present)}, ${scoreText(frame.score)}`;
  const end = frame.contradicts ? ": still not what you said." : ", as you said.";
  const texts = [`Here, ${name} was ${before}, and would be ${after}${end}`];
  const others = changes.filter((one) => one.number !== frame.number);
  if (others.length > 0) texts.push("These answers change, too:", makeChanges(others));
  const keep = makeChoice("Keep", "k", helps ? "primary" : "", async () => {
    const opened = session;
    trialId = null;
    try {
      await request("POST", `/api/review-trials/${id}/keep`);
    } catch (error) {
      if (opened === session) offerAgain();
      throw error;
    }
    if (opened !== session) return;
    tell("Learned; press Save on the page to have it after a restart.", "good");
    await move(1);
  });
  const discard = makeChoice("Discard", "d", helps ? "" : "primary", async () => {
    const opened = session;
    await discardTrial();
    if (opened !== session) return;
    tell("Discarded; nothing was changed.");
    await move(1);
  });
  showPanel("trial", summary, texts, [keep, discard], helps ? keep : discard);
}

function makeChanges(changes) {
  const list = make("ul", "", "changes");
  for (const one of changes) {
    const entry = make("li", "", one.contradicts ? "bad" : "good");
    const small = Object.assign(new Image(), { src: pictureOf(one), alt: "", loading: "lazy" });
    const said = WORDS[one.verdict];
    entry.append(small, make("span", `${one.name}: ${answerOf(one.present_before)} → ${answerOf(one.present)}`, "what"),
      make("span", one.contradicts ? `✗ you said ${said}` : `✓ you said ${said}`, "said"));
    list.append(entry);
  }
  return list;
}

async function discardTrial() {
  const id = trialId;
  trialId = null;
  if (id !== null) await request("DELETE", `/api/review-trials/${id}`);
}

// ------------------------------------------------------------------------------------------------------ open and close

async function open() {
  const { items } = await request("GET", "/api/review");
  if (dialog.open) return; // by the first of two clicks
  // The judged ones are before the others, so that Back goes to them.
  const judged = items.filter((one) => one.verdict !== null), waiting = items.filter((one) => one.verdict === null);
  queue = [...judged, ...waiting];
  place = waiting.length > 0 ? judged.length : 0;
  session += 1;
  tell("");
  if (queue.length === 0) return;
  dialog.showModal();
  showFrame();
}

picture.addEventListener("error", async () => {
  const opened = session, source = picture.getAttribute("src");
  let reason = "";
  try {
    await request("GET", source); // only its answer says why there is no picture
  } catch (error) {
    reason = error instanceof TypeError ? "The run does not answer, so there is no picture." : error.message;
  }
  if (opened === session && picture.getAttribute("src") === source) tell(reason || "This picture cannot be shown.", "warn");
});
find("review-open").addEventListener("click", () => attempt(open)); // not disabled meanwhile: it gets the focus back
find("review-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  session += 1;
  setBusy(false);
  discardTrial().catch(() => {}); // the run forgets it with the next one
  picture.removeAttribute("src");
});
dialog.addEventListener("keydown", (event) => {
  event.stopPropagation(); // the page behind has keys of its own
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  // The arrow is a second key of Skip.
  const key = event.key === "ArrowRight" ? "s" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const choice = find("review-choices").querySelector(`[data-key="${CSS.escape(key)}"]:enabled`);
  if (!choice) return;
  event.preventDefault();
  choice.click();
});

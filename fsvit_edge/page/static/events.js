// The list of events: one row for each visit of a class, the newest event first. Its picture opens large.

import { request, find, make, query, scoreText } from "/common.js";

const FEW = 6, ANNOUNCE_MS = 10000;

let shown = ""; // run and number of the newest event that is listed
let shownRun = "", shownNumber = 0;
let isAsking = false, isLong = false, isOfSeveral = false;
let rows = new Map(); // number of an event -> the row of its visit, which keeps it when the older of its two events is gone

export async function showEvents({ events, run_id: run, sources }) {
  isOfSeveral = sources.length > 0;
  find("events").hidden = !events.are_told;
  const newest = `${run} ${events.newest}`;
  if (!events.are_told || newest === shown || isAsking) return;
  let listed = [];
  isAsking = true;
  try {
    if (events.newest > 0) listed = await request("GET", "/api/events");
  } catch {
    return; // the next poll asks again, and says what is wrong
  } finally {
    isAsking = false;
  }
  list(listed, run);
  shown = newest;
}

function list(events, run) {
  const visits = visitsOf(events);
  const isNewRun = run !== shownRun;
  if (isNewRun) { find("visits").replaceChildren(); rows = new Map(); }
  else announce(visits.filter((visit) => visit.latest.number > shownNumber));
  shownRun = run;
  shownNumber = events[0]?.number ?? 0;
  const known = rows;
  rows = new Map();
  const wanted = visits.map((visit) => {
    const numbers = [visit.appeared, visit.left].filter(Boolean).map((event) => event.number);
    const row = numbers.map((number) => known.get(number)).find(Boolean) ?? makeRow();
    for (const number of numbers) rows.set(number, row);
    showVisit(row, visit, run);
    return row;
  });
  for (const row of known.values()) if (!wanted.includes(row)) row.remove();
  showInOrder(wanted);
  find("no-events").hidden = visits.length > 0;
  showLength();
}

// Pairs what appeared with what left. Of the oldest visits, the appearance may no longer be kept.
function visitsOf(events) {
  const visits = [], present = new Map();
  for (const event of [...events].reverse()) {
    const key = `${event.source}\n${event.name}`;
    let visit = present.get(key);
    if (event.event === "appeared" || visit === undefined) {
      visit = {};
      visits.push(visit);
    }
    visit[event.event] = visit.latest = event;
    if (event.event === "appeared") present.set(key, visit);
    else present.delete(key);
  }
  for (const visit of present.values()) visit.isHere = true;
  return visits.sort((one, other) => other.latest.number - one.latest.number);
}

function makeRow() {
  const row = find("visit").content.firstElementChild.cloneNode(true);
  row.querySelector("button").addEventListener("click", () => open(row));
  return row;
}

function showVisit(row, visit, run) {
  const { number, name, color, best_score: score, zones, source: camera } = visit.latest;
  const source = `/api/events/${number}.jpg?${query({ run })}`, image = row.querySelector("img");
  if (image.getAttribute("src") !== source) image.src = source;
  row.querySelector("button").setAttribute("aria-label", `Show the picture of ${name}: ${whenOf(visit)}`);
  row.querySelector(".swatch").style.background = color;
  row.querySelector(".name").textContent = name;
  row.querySelector(".best").textContent = `${isOfSeveral ? `${camera} · ` : ""}best score ${scoreText(score)}`;
  row.querySelector(".when").textContent = whenOf(visit);
  row.querySelector(".when").classList.toggle("here", Boolean(visit.isHere));
  row.querySelector(".where").replaceChildren(...zones.map((zone) => make("span", zone)));
}

// Moves only what is out of place; what had the focus gets it back.
function showInOrder(wanted) {
  const focused = document.activeElement;
  let next = null;
  for (const row of [...wanted].reverse()) {
    if (!row.isConnected || row.nextElementSibling !== next) find("visits").insertBefore(row, next);
    next = row;
  }
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

function showLength() {
  const button = find("more-visits"), count = find("visits").children.length;
  find("visits").classList.toggle("few", !isLong);
  button.hidden = count <= FEW;
  button.setAttribute("aria-expanded", isLong);
  button.textContent = isLong ? "Show fewer" : `Show all ${count}`;
}

function whenOf({ appeared, left, isHere }) {
  if (!left) return `${isHere ? "Here since" : "Appeared"} ${time(appeared.wall_time_s)}`;
  const { wall_time_s: decided, duration_s: length } = left; // it is decided only when the class has been gone for a second
  const whole = length < 1 ? 0 : Math.round(length);
  if (!appeared) return `Left ${time(decided)} after ${duration(whole)}`;
  const start = Math.floor(appeared.wall_time_s); // as the clock shows it, so that the two times differ by the duration
  // A file may be faster than its own time, by which it was still there after the news that it left.
  if (appeared.wall_time_s + length > decided) return `Appeared ${time(start)}, there for ${duration(whole)} of the video`;
  return `Appeared ${time(start)}, left ${time(start + whole)} after ${duration(whole)}`;
}

function time(seconds) {
  const at = new Date(seconds * 1000), today = new Date();
  const clock = at.toLocaleTimeString("en-GB");
  if (at.toDateString() === today.toDateString()) return clock;
  const year = at.getFullYear() === today.getFullYear() ? undefined : "numeric";
  return `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short", year })}, ${clock}`;
}

function duration(whole) {
  if (whole === 0) return "less than 1 s";
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
}

let news = [], isWaiting = false;

// Tells a screen reader, at most every ten seconds.
function announce(visits) {
  for (const { latest } of visits) news.push(`${latest.name} ${latest.event === "left" ? "left" : "appeared"}`);
  if (news.length === 0 || isWaiting) return;
  find("told").textContent = `${news.join(", ")}.`;
  news = [];
  isWaiting = true;
  setTimeout(() => { isWaiting = false; announce([]); }, ANNOUNCE_MS);
}

function open(row) {
  const text = (kind) => row.querySelector(kind).textContent;
  const zones = [...row.querySelector(".where").children].map((zone) => zone.textContent);
  const picture = find("event-picture");
  picture.src = row.querySelector("img").src;
  picture.alt = `Best picture of ${text(".name")}`;
  find("event-name").textContent = text(".name");
  find("event").querySelector(".swatch").style.background = row.querySelector(".swatch").style.background;
  find("event-facts").textContent = [text(".when"), text(".best"), ...(zones.length ? [`in ${zones.join(", ")}`] : [])].join(" · ");
  find("event").showModal();
}

find("event-close").addEventListener("click", () => find("event").close());
// The backdrop belongs to the dialog itself.
find("event").addEventListener("click", ({ target }) => { if (target === find("event")) find("event").close(); });
// Escape closes the dialog, not the frozen frame behind it.
find("event").addEventListener("keydown", (event) => event.stopPropagation());
find("more-visits").addEventListener("click", () => { isLong = !isLong; showLength(); });

// Moved rather than only placed by the style, so that the keyboard's order is the one that is seen.
const isNarrow = matchMedia("(max-width: 52rem)"); // as in page.css
function place() {
  if (isNarrow.matches) find("classes").after(find("events"));
  else find("side").after(find("events"));
}
isNarrow.addEventListener("change", place);
place();

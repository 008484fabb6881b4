// Zoom of the frozen picture while something is drawn on it: by wheel, two fingers, buttons or keys.

import { find } from "/common.js";

const picture = find("picture"), canvases = [find("drawing"), find("zone-drawing")];
const buttons = document.querySelectorAll("[data-zoom]");
const MOST = 8, STEP = 1.5, WHEEL_STEP = 1.2;

let scale = 1, left = 0, top = 0; // of the picture in its frame, in pixels of the screen
let fingers = new Map(); // where each finger is, by its pointer
let isPinching = false; // until the last finger is lifted
let cancel = () => {}, changed = () => {}, center = () => null;

export const zoomScale = () => scale;

// Of what is drawn now: `end` takes back what the first finger drew before the second came, `redraw` follows each change, and `middle` gives
// the point of the screen that buttons and keys zoom at, or null.
export function connect(end, redraw, middle) { cancel = end; changed = redraw; center = middle; }

export function resetZoom() {
  scale = 1;
  fingers = new Map();
  isPinching = false;
  show();
}

// Brings a point of the screen to the middle, if the picture is zoomed.
export function lookAt([x, y]) {
  const outer = picture.getBoundingClientRect();
  zoom(1, x, y, outer.left + outer.width / 2, outer.top + outer.height / 2);
}

export function zoomBy(steps) {
  const outer = picture.getBoundingClientRect();
  const [x, y] = center() ?? [outer.left + outer.width / 2, outer.top + outer.height / 2];
  zoom(STEP ** steps, x, y);
}

// What is at one point of the screen is then at another, and larger by a factor.
function zoom(factor, x, y, toX = x, toY = y) {
  const outer = picture.getBoundingClientRect(), next = Math.max(1, Math.min(MOST, scale * factor));
  left = toX - outer.left - (x - outer.left - left) * next / scale;
  top = toY - outer.top - (y - outer.top - top) * next / scale;
  scale = next;
  show();
}

function show() {
  left = Math.min(0, Math.max(picture.clientWidth * (1 - scale), left));
  top = Math.min(0, Math.max(picture.clientHeight * (1 - scale), top));
  const transform = scale === 1 ? "" : `translate(${left}px, ${top}px) scale(${scale})`;
  for (const one of [find("frozen"), find("found"), ...canvases]) one.style.transform = transform;
  for (const button of buttons) button.setAttribute("aria-disabled", scale === (button.dataset.zoom === "in" ? MOST : 1));
  changed();
}

function turn(event) {
  if (event.deltaY >= 0 && scale === 1) return; // the page scrolls
  event.preventDefault();
  zoom(event.deltaY < 0 ? WHEEL_STEP : 1 / WHEEL_STEP, event.clientX, event.clientY);
}

function press(event) {
  if (event.pointerType !== "touch") return;
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  if (fingers.size < 2) return;
  if (!isPinching) cancel();
  isPinching = true;
  event.stopImmediatePropagation();
}

function move(event) {
  if (!isPinching) return;
  event.stopImmediatePropagation();
  const before = pinch();
  if (!fingers.has(event.pointerId) || before === null) return;
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  const after = pinch();
  zoom(after.apart / Math.max(1, before.apart), before.x, before.y, after.x, after.y);
}

function lift(event) {
  fingers.delete(event.pointerId);
  if (!isPinching) return;
  event.stopImmediatePropagation();
  isPinching = fingers.size > 0;
}

// These come before those that draw, because the files that draw import this one.
for (const canvas of canvases) {
  canvas.addEventListener("wheel", turn, { passive: false });
  canvas.addEventListener("pointerdown", press);
  canvas.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, lift);
}

function pinch() {
  if (fingers.size !== 2) return null;
  const [[x0, y0], [x1, y1]] = fingers.values();
  return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, apart: Math.hypot(x1 - x0, y1 - y0) };
}

for (const button of buttons) button.addEventListener("click", () => zoomBy(button.dataset.zoom === "in" ? 1 : -1));
new ResizeObserver(() => { if (scale > 1) show(); }).observe(picture);

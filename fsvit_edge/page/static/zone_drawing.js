// The canvas over a frozen frame on which a zone is drawn: corners are set, dragged and removed until it is closed.
// Corners are [x, y], shares of the frame's width and height. It is drawn in pixels of the screen, so that lines are sharp.

import { find } from "/common.js";
import { connect, lookAt, resetZoom, zoomBy, zoomScale } from "/zoom.js";

const canvas = find("zone-drawing"), pen = canvas.getContext("2d");
const COLOR = "#ffd166", FILL = "rgb(255 209 102 / 30%)", DARK = "rgb(0 0 0 / 75%)", KNOWN = "#fff";
const CORNER_PX = 6, NEAR_PX = { mouse: 12, pen: 16, touch: 24 };
const EDGE_PX = 12; // a corner this near to the edge of the frame is on it
const STEP = 0.02, SMALL_STEP = 0.004;
const MOST_PX = 4096; // of the canvas: zoomed eight times, one as sharp as the screen could take a gigabyte

let frame = null; // {width, height}
let known = []; // the zones that there are
let corners = [], isClosed = false;
let cursor = null; // where the next corner would be
let isKeyboard = false; // whether arrow keys moved the cursor
let dragged = null; // index of the corner under the pointer that is down
let hasMoved = false;
let before = []; // the corners before the pointer that is down
let onChange = () => {};

export function begin(frozen, zones, changed) {
  frame = frozen;
  known = zones;
  onChange = changed;
  corners = [];
  isClosed = isKeyboard = false;
  cursor = dragged = null;
  connect(cancelPress, redraw, cursorOnScreen);
  resetZoom();
  changedTo("");
  canvas.focus({ preventScroll: true });
}

export function end() {
  frame = null;
  resetZoom();
}

// The second of two fingers: they zoom, and the first of them set or moved no corner.
function cancelPress() {
  corners = before;
  dragged = null;
  changedTo("");
}

// The cross on the screen; null without one.
function cursorOnScreen() {
  if (!cursor || !frame) return null;
  const { outer, width, height, left, top } = layout();
  return [outer.left + left + cursor[0] * width, outer.top + top + cursor[1] * height];
}

export const count = () => corners.length;
export const cornersOf = () => corners.map((corner) => corner.map((value) => Number(value.toFixed(4))));

export function close() {
  if (corners.length < 3 || isClosed) return;
  isClosed = true;
  cursor = null;
  changedTo("The zone is closed.");
}

// Opens a closed zone, or removes the last corner of an open one.
export function undo() {
  dragged = null; // it may be the corner that goes
  if (isClosed) isClosed = false;
  else corners.pop();
  changedTo("");
}

function changedTo(said) {
  onChange(isClosed, said);
  redraw();
}

function add(corner) {
  corners.push(corner);
  changedTo(isKeyboard ? `Corner ${corners.length} is set.` : "");
}

// Where the frame is on the canvas: it is fitted into it, which leaves margins.
function layout() {
  const outer = canvas.getBoundingClientRect();
  const scale = Math.min(outer.width / frame.width, outer.height / frame.height);
  const width = frame.width * scale, height = frame.height * scale;
  return { outer, width, height, left: (outer.width - width) / 2, top: (outer.height - height) / 2 };
}

const clamp = (value) => Math.max(0, Math.min(1, value));

function snapped(share, length_px) {
  if (share * length_px < EDGE_PX) return 0;
  return (1 - share) * length_px < EDGE_PX ? 1 : share;
}

function pointOf(event) {
  const { outer, width, height, left, top } = layout();
  const x = (event.clientX - outer.left - left) / width, y = (event.clientY - outer.top - top) / height;
  return [snapped(clamp(x), width), snapped(clamp(y), height)];
}

// The index of the nearest corner that a pointer can take hold of; null if there is none.
function cornerAt(event) {
  const { outer, width, height, left, top } = layout();
  let nearest = null, least = NEAR_PX[event.pointerType] ?? NEAR_PX.mouse;
  corners.forEach(([x, y], index) => {
    const distance = Math.hypot(outer.left + left + x * width - event.clientX, outer.top + top + y * height - event.clientY);
    if (distance < least) { least = distance; nearest = index; }
  });
  return nearest;
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button > 0 || dragged !== null) return;
  canvas.setPointerCapture(event.pointerId);
  isKeyboard = false;
  before = [...corners];
  dragged = cornerAt(event);
  hasMoved = dragged === null; // a new corner does not close the zone
  if (dragged !== null || isClosed) return;
  add(pointOf(event));
  dragged = corners.length - 1;
});
canvas.addEventListener("pointermove", (event) => {
  const isDown = canvas.hasPointerCapture(event.pointerId);
  if (isDown && dragged !== null) {
    const point = pointOf(event), [x, y] = corners[dragged], { width, height } = layout();
    // A finger trembles; a corner that is only pressed stays where it is.
    if (!hasMoved && Math.hypot((point[0] - x) * width, (point[1] - y) * height) < 4) return;
    hasMoved = true;
    corners[dragged] = point;
  }
  isKeyboard = false;
  cursor = event.pointerType === "touch" || isClosed ? null : pointOf(event);
  canvas.style.cursor = cornerAt(event) === null ? (isClosed ? "default" : "crosshair") : "pointer";
  redraw();
});
canvas.addEventListener("pointerup", () => {
  const isFirst = dragged === 0 && !hasMoved;
  dragged = null;
  if (isFirst) close();
});
canvas.addEventListener("pointercancel", () => { dragged = null; });
canvas.addEventListener("pointerleave", () => { if (!isKeyboard) { cursor = null; redraw(); } });

canvas.addEventListener("keydown", (event) => {
  const steps = { "+": 1, "=": 1, "-": -1 }[event.key];
  if (steps) zoomBy(steps);
  const step = (event.shiftKey ? SMALL_STEP : STEP) / zoomScale();
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (move && !isClosed) {
    const [x, y] = cursor ?? [0.5, 0.5];
    isKeyboard = true;
    cursor = [clamp(x + move[0]), clamp(y + move[1])];
    if (zoomScale() > 1) lookAt(cursorOnScreen());
    changedTo(`${Math.round(cursor[0] * 100)} % from the left, ${Math.round(cursor[1] * 100)} % from the top.`);
  } else if (event.key === " " && !isClosed) {
    isKeyboard = true;
    cursor = cursor ?? [0.5, 0.5];
    add([...cursor]);
  } else if (event.key === "Enter") close();
  else if (event.key === "Backspace") undo();
  else return;
  event.preventDefault();
});

new ResizeObserver(() => { if (frame) redraw(); }).observe(canvas);

function redraw() {
  if (!frame) return;
  const { outer, width, height, left, top } = layout();
  const ratio = Math.min(window.devicePixelRatio || 1, MOST_PX / Math.max(outer.width, outer.height));
  canvas.width = Math.round(outer.width * ratio);
  canvas.height = Math.round(outer.height * ratio);
  pen.setTransform(ratio, 0, 0, ratio, left * ratio, top * ratio);
  pen.lineJoin = "round";
  const at = ([x, y]) => [x * width, y * height];
  for (const zone of known) drawKnown(zone, at, width, height);
  trace(corners.map(at), isClosed);
  if (isClosed || corners.length > 2) { pen.fillStyle = FILL; pen.fill("evenodd"); }
  stroke(COLOR, 2.5);
  if (cursor && !isClosed && dragged === null) {
    if (corners.length > 0) {
      trace([at(corners.at(-1)), at(cursor)], false);
      pen.setLineDash([6, 5]);
      stroke(COLOR, 1.5);
      pen.setLineDash([]);
    }
    drawCross(at(cursor));
  }
  corners.forEach((corner, index) => drawCorner(at(corner), index === 0 && corners.length > 2 && !isClosed));
}

function trace(points, isRound) {
  pen.beginPath();
  points.forEach(([x, y], index) => { if (index === 0) pen.moveTo(x, y); else pen.lineTo(x, y); });
  if (isRound) pen.closePath();
}

// On a dark edge, so that the line shows on any picture.
function stroke(color, width_px) {
  pen.strokeStyle = DARK;
  pen.lineWidth = width_px + 2;
  pen.stroke();
  pen.strokeStyle = color;
  pen.lineWidth = width_px;
  pen.stroke();
}

function drawCorner([x, y], canClose) {
  pen.beginPath();
  pen.arc(x, y, CORNER_PX, 0, 2 * Math.PI);
  pen.fillStyle = COLOR;
  pen.fill();
  stroke(KNOWN, 1.5);
  if (!canClose) return;
  pen.beginPath();
  pen.arc(x, y, CORNER_PX + 5, 0, 2 * Math.PI);
  stroke(COLOR, 2);
}

function drawCross([x, y]) {
  const long = isKeyboard ? 14 : 7;
  pen.beginPath();
  for (const [dx, dy] of [[long, 0], [0, long]]) { pen.moveTo(x - dx, y - dy); pen.lineTo(x + dx, y + dy); }
  stroke(KNOWN, 1.5);
}

function drawKnown(zone, at, width, height) {
  trace(zone.corners.map(at), true);
  stroke(KNOWN, 1);
  const [x, y] = zone.corners.reduce((best, corner) => (corner[0] * width + corner[1] * height < best[0] * width + best[1] * height ? corner : best));
  pen.font = "600 13px system-ui, sans-serif";
  const wide = Math.min(pen.measureText(zone.name).width, width * 0.4) + 12;
  const plateX = Math.max(0, Math.min(x * width, width - wide)), plateY = Math.max(0, Math.min(y * height, height - 22));
  pen.fillStyle = DARK;
  pen.fillRect(plateX, plateY, wide, 22);
  pen.fillStyle = KNOWN;
  pen.textBaseline = "middle";
  pen.fillText(zone.name, plateX + 6, plateY + 12, wide - 12);
}

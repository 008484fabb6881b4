// The canvas over a frozen frame: a box with a preview of its mask, or paint.

import { request, find, showMessage } from "/common.js";
import { connect, lookAt, resetZoom, zoomBy, zoomScale } from "/zoom.js";

const drawing = find("drawing"), pen = drawing.getContext("2d");
const COLOR = "#ffd166", COLOR_RGB = [255, 209, 102];

let frame = null; // {id, width, height}
let mode = "box"; // or "paint", or "name"
let box = null; // [x0, y0, x1, y1] as drawn
let preview = null; // the mask of the box
let isPainted = false;
let latestPreview = 0;
let onDrawn = () => {};
let before = {}; // what there was before the stroke that is being drawn

// Calls `drawn` whenever something is begun to be drawn.
export function begin(frozen, drawn) {
  onDrawn = drawn;
  connect(cancelStroke, () => { if (box) redraw(); }, middleOfBox);
  resetZoom();
  drawOn(frozen);
  drawing.focus({ preventScroll: true });
}

// The same with another frame.
export function drawOn(frozen) {
  frame = frozen;
  drawing.width = frame.width;
  drawing.height = frame.height;
  clear();
}

export function clear() {
  box = preview = null;
  isPainted = false;
  pen.clearRect(0, 0, drawing.width, drawing.height);
  showMarked();
}

// What is found in the picture is hidden while something is drawn: in a similar color it looks like what is drawn.
function showMarked() {
  find("picture").classList.toggle("marked", box !== null || isPainted);
}

export function setMode(newMode) {
  mode = newMode;
  clear();
}

// The drawing as fields of the request to enroll.
export async function selection() {
  if (mode === "name") return {};
  if (mode === "paint") {
    if (!isPainted) throw new Error("Paint over the object first, or choose Name only.");
    return { mask_png: await paintedPng() };
  }
  if (!box) throw new Error("Drag a box around the object first, or choose Name only.");
  return { box_xyxy: ordered(box) };
}

// The point of an event in pixels of the frame, and the scale. The picture is fitted into the canvas, which leaves margins.
function framePoint(event) {
  const outer = drawing.getBoundingClientRect();
  const scale = Math.min(outer.width / drawing.width, outer.height / drawing.height);
  const x = (event.clientX - outer.left - (outer.width - drawing.width * scale) / 2) / scale;
  const y = (event.clientY - outer.top - (outer.height - drawing.height * scale) / 2) / scale;
  return [Math.max(0, Math.min(drawing.width, x)), Math.max(0, Math.min(drawing.height, y)), scale];
}

// The middle of the box on the screen; null without a box.
function middleOfBox() {
  if (!box) return null;
  const outer = drawing.getBoundingClientRect(), scale = Math.min(outer.width / drawing.width, outer.height / drawing.height);
  const [x0, y0, x1, y1] = box;
  return [outer.left + outer.width / 2 + ((x0 + x1) / 2 - drawing.width / 2) * scale,
    outer.top + outer.height / 2 + ((y0 + y1) / 2 - drawing.height / 2) * scale];
}

// The second of two fingers: they zoom, and the first of them drew nothing.
function cancelStroke() {
  ({ box, preview, isPainted } = before);
  if (before.pixels) pen.putImageData(before.pixels, 0, 0);
  else redraw();
  showMarked();
}

const ordered = ([x0, y0, x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)].map(Math.round);

const isSpeck = ([x0, y0, x1, y1]) => x1 - x0 < 2 || y1 - y0 < 2;

function redraw() {
  showMarked();
  pen.clearRect(0, 0, drawing.width, drawing.height);
  if (preview) {
    pen.globalAlpha = 0.5;
    pen.drawImage(preview, 0, 0);
    pen.globalAlpha = 1;
  }
  if (!box) return;
  const [x0, y0, x1, y1] = ordered(box);
  const thick = Math.max(2, drawing.width / 320) / zoomScale();
  pen.lineWidth = thick * 2;
  pen.strokeStyle = "#000";
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  pen.lineWidth = thick;
  pen.strokeStyle = COLOR;
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
}

async function showPreview() {
  const [x0, y0, x1, y1] = ordered(box);
  if (isSpeck([x0, y0, x1, y1])) return;
  const number = ++latestPreview;
  try {
    const mask = await createImageBitmap(await request("POST", `/api/frames/${frame.id}/mask`, { box_xyxy: [x0, y0, x1, y1] }));
    if (number !== latestPreview || !box) return;
    const tinted = new OffscreenCanvas(mask.width, mask.height);
    const layer = tinted.getContext("2d");
    layer.drawImage(mask, 0, 0);
    const pixels = layer.getImageData(0, 0, mask.width, mask.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      pixels.data[at + 3] = pixels.data[at];
      pixels.data.set(COLOR_RGB, at);
    }
    layer.putImageData(pixels, 0, 0);
    preview = tinted;
    redraw();
  } catch (error) {
    showMessage(error.message);
  }
}

function paintTo(x, y, scale, isStart) {
  const width = Number(find("size").value) / scale;
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = width;
  pen.strokeStyle = COLOR;
  if (isStart) { pen.beginPath(); pen.moveTo(x, y); }
  pen.lineTo(x, y);
  pen.stroke();
  isPainted = true;
  showMarked();
}

drawing.addEventListener("pointerdown", (event) => {
  if (mode === "name" || event.button > 0) return;
  drawing.setPointerCapture(event.pointerId);
  onDrawn();
  const isPaint = mode === "paint", isTouch = event.pointerType === "touch";
  before = { box, preview, isPainted, pixels: isPaint && isTouch ? pen.getImageData(0, 0, drawing.width, drawing.height) : null };
  const [x, y, scale] = framePoint(event);
  if (isPaint) paintTo(x, y, scale, true);
  else { box = [x, y, x, y]; preview = null; redraw(); }
});
drawing.addEventListener("pointermove", (event) => {
  if (!drawing.hasPointerCapture(event.pointerId)) return;
  const [x, y, scale] = framePoint(event);
  if (mode === "paint") paintTo(x, y, scale, false);
  else { box[2] = x; box[3] = y; redraw(); }
});
drawing.addEventListener("pointerup", () => {
  if (mode !== "box" || !box) return;
  if (isSpeck(ordered(box))) clear(); // a click takes the box away
  else showPreview();
});

drawing.addEventListener("keydown", (event) => {
  if (event.key === " ") event.preventDefault(); // it would scroll the picture away
  const steps = { "+": 1, "=": 1, "-": -1 }[event.key];
  if (steps) zoomBy(steps);
  const step = drawing.width / 50 / zoomScale();
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  if (!move || mode !== "box") return;
  event.preventDefault();
  onDrawn();
  if (!box) box = [drawing.width / 4, drawing.height / 4, drawing.width * 3 / 4, drawing.height * 3 / 4];
  const [dx, dy] = move;
  box = event.shiftKey ? [box[0], box[1], box[2] + dx, box[3] + dy] : [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
  preview = null;
  if (zoomScale() > 1) lookAt(middleOfBox()); // which draws it, too
  else redraw();
  showPreview();
});

async function paintedPng() {
  const layer = new OffscreenCanvas(drawing.width, drawing.height);
  const brush = layer.getContext("2d");
  const pixels = pen.getImageData(0, 0, drawing.width, drawing.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const light = pixels.data[at + 3] > 127 ? 255 : 0;
    pixels.data.set([light, light, light, 255], at);
  }
  brush.putImageData(pixels, 0, 0);
  const bytes = new Uint8Array(await (await layer.convertToBlob({ type: "image/png" })).arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

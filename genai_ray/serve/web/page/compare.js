// Before and after: the slider between them, zoom and position of both together, and the player of clips.

import { $, clamp, element, rounded } from "./parts.js";

const MOST_ZOOM = 16;
const SEIZED_PX = 24; // so near to the divider a drag moves it, not the zoomed picture

let urls = []; // object URLs that are shown now
const view = { zoom: 1, x: 0, y: 0 }; // where the corner of the zoomed picture is, in widths and heights of the frame

/**
 * Show two files by two elements; `late` is the time in the original, in seconds, at which the result begins, and `slow`
 * how many times as long the result takes for it.
 */
export async function show(before, after, [original, result], [wide, high], event, late = 0, slow = 1) {
  urls.forEach(URL.revokeObjectURL);
  urls = [URL.createObjectURL(original), URL.createObjectURL(result)];
  $("note").hidden = true;
  before.draggable = after.draggable = false; // else the browser takes a drag of the zoomed picture for its own
  const [hasBefore, hasAfter] = await Promise.all([arrive(before, urls[0], event), arrive(after, urls[1], event)]);
  const upper = element("div", { className: hasAfter ? "layer upper" : "layer" }, before);
  const frame = $("frame");
  frame.classList.toggle("single", !(hasBefore && hasAfter));
  $("layers").replaceChildren(...(hasAfter ? [element("div", { className: "layer" }, after)] : []), ...(hasBefore ? [upper] : []));
  if (!hasAfter) note("This browser cannot show the result; it can be downloaded.");
  else if (!hasBefore) note("This browser cannot show the original.");
  const shown = hasAfter ? after : before;
  frame.style.aspectRatio = `${shown[wide] || 16} / ${shown[high] || 9}`;
  frame.style.width = `min(100%, calc(70vh * ${(shown[wide] || 16) / (shown[high] || 9)}))`;
  $("download").href = urls[1];
  moveSplit(50);
  zoomTo(1);
  const videos = [before, after].filter((one) => one instanceof HTMLVideoElement && one.isConnected);
  $("player").hidden = videos.length === 0;
  if (videos.length) follow(videos, hasAfter ? late : 0, slow);
}

function arrive(media, url, event) {
  return new Promise((resolve) => {
    media.addEventListener(event, () => resolve(true), { once: true });
    media.addEventListener("error", () => resolve(false), { once: true });
    media.src = url;
  });
}

function moveSplit(percent) {
  $("split").value = percent;
  $("frame").style.setProperty("--split", `${percent}%`);
}

/** Zoom about a place of the frame, given in widths and heights of it. Both layers follow, so that they stay together. */
function zoomTo(zoom, [x, y] = [0.5, 0.5]) {
  const before = view.zoom;
  view.zoom = clamp(zoom, 1, MOST_ZOOM);
  moveTo(x - (view.zoom / before) * (x - view.x), y - (view.zoom / before) * (y - view.y));
}

function moveTo(x, y) {
  view.x = clamp(x, 1 - view.zoom, 0);
  view.y = clamp(y, 1 - view.zoom, 0);
  for (const [name, value] of Object.entries(view)) $("frame").style.setProperty(`--${name}`, value);
  $("frame").classList.toggle("zoomed", view.zoom > 1);
  $("zoom-value").textContent = `${rounded(view.zoom)}×`;
}

/** Where a pointer is, in widths and heights of the frame. */
function placeOf(event) {
  const box = $("frame").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

/** Drag the zoomed picture, or the divider; without zoom the slider over the frame takes the pointer. */
function drag(event) {
  if (view.zoom === 1) return;
  const frame = $("frame");
  let last = placeOf(event);
  const isDivider = Math.abs(last[0] - $("split").value / 100) * frame.clientWidth < SEIZED_PX;
  const move = (moved) => {
    const next = placeOf(moved);
    if (isDivider) moveSplit(clamp(100 * next[0], 0, 100));
    else moveTo(view.x + next[0] - last[0], view.y + next[1] - last[1]);
    last = next;
  };
  frame.setPointerCapture(event.pointerId);
  frame.addEventListener("pointermove", move);
  frame.addEventListener("lostpointercapture", () => frame.removeEventListener("pointermove", move), { once: true });
}

function moveByKey(event) {
  const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
  if (!event.shiftKey || !step) return;
  event.preventDefault();
  moveTo(view.x + step[0], view.y + step[1]);
}

export function note(text) {
  $("note").textContent = text;
  $("note").hidden = false;
}

/** Play both clips as one; the last of them leads, and the others are `late` seconds further, and slower. */
function follow(videos, late, slow) {
  const leader = videos.at(-1);
  const others = videos.filter((video) => video !== leader);
  others.forEach((video) => (video.playbackRate = 1 / slow));
  const there = () => leader.currentTime / slow + late;
  const together = () => others.forEach((video) => Math.abs(video.currentTime - there()) > 0.04 && (video.currentTime = there()));
  $("play").onclick = () => (leader.paused ? videos.forEach((video) => video.play()) : videos.forEach((video) => video.pause()));
  leader.onplay = leader.onpause = leader.onended = () => {
    $("play").textContent = leader.paused ? "Play" : "Pause";
    if (leader.paused) others.forEach((video) => video.pause());
    together();
  };
  leader.ontimeupdate = () => {
    $("seek").value = (1000 * leader.currentTime) / (leader.duration || 1);
    together();
  };
  $("seek").oninput = () => {
    leader.currentTime = ($("seek").value / 1000) * (leader.duration || 0);
    together();
  };
  $("play").textContent = "Play";
  $("seek").value = 0;
  together();
}

$("split").addEventListener("input", () => moveSplit($("split").value));
$("zoom-in").addEventListener("click", () => zoomTo(2 * view.zoom));
$("zoom-out").addEventListener("click", () => zoomTo(view.zoom / 2));
$("zoom-fit").addEventListener("click", () => zoomTo(1));
$("frame").addEventListener("pointerdown", drag);
$("frame").addEventListener("keydown", moveByKey);
$("frame").addEventListener(
  "wheel",
  (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomTo(view.zoom * 2 ** (-event.deltaY / 200), placeOf(event));
  },
  { passive: false },
);

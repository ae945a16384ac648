// The page at "/": a picture or a clip, before and after; and the cluster's cache, live. No library, no build.

const $ = (id) => document.getElementById(id);
const PROGRESS_MS = 500;
const CACHE_MS = 1000;
const BEST_FIRST = "websr-x2-l";

let file = null;
let models = new Map();
let running = null; // AbortController of what is computed now
let urls = []; // object URLs that are shown now

// --- the server -----------------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
  if (response.ok) return response;
  if (response.status === 401) $("sign-in").hidden = false;
  const text = await response.text();
  let told = text;
  try {
    told = JSON.parse(text).error ?? text;
  } catch {
    // not of ours: shown as it is
  }
  throw new Error(told || `The server answered ${response.status}.`);
}

const json = async (path, options) => (await ask(path, options)).json();

// --- small things ---------------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

function bytes(number) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let power = 0;
  while (number >= 1000 && power < units.length - 1) {
    number /= 1000;
    power += 1;
  }
  return `${number.toFixed(power && number < 100 ? 1 : 0)} ${units[power]}`;
}

function seconds(number) {
  if (number < 60) return `${number.toFixed(number < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(number / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(number % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function milliseconds(number) {
  return number < 10 ? `${number.toFixed(1)} ms` : `${Math.round(number).toLocaleString("en")} ms`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const isVideo = () => file !== null && (file.type.startsWith("video/") || /\.(mkv|mov|avi|ts|mp4|webm)$/i.test(file.name));

function fail(error) {
  if (error.name === "AbortError") return;
  $("error").textContent = error.message;
  $("error").hidden = false;
}

function showFacts(facts) {
  $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
}

// --- models and options ---------------------------------------------------------------------------------------------

async function loadModels() {
  const told = await json("v1/models");
  models = new Map(told.models.filter((model) => model.takes_pictures).map((model) => [model.name, model]));
  const groups = Map.groupBy ? Map.groupBy(models.values(), (model) => model.task) : new Map([["models", [...models.values()]]]);
  const select = $("model");
  select.replaceChildren(
    ...[...groups].map(([task, members]) => element("optgroup", { label: task }, ...members.map((model) => element("option", { value: model.name, textContent: model.scale > 1 ? `${model.name} (×${model.scale})` : model.name })))),
  );
  if (models.has(BEST_FIRST)) select.value = BEST_FIRST;
  select.disabled = models.size === 0;
  chooseModel();
}

function chooseModel() {
  const model = models.get($("model").value);
  $("model-hint").textContent = model ? model.description : "This server offers no model for pictures.";
  const fields = Object.entries(model?.params ?? {}).map(([name, param]) => {
    const id = `param-${name}`;
    const input = element("input", { id, name, type: "number", min: param.minimum, max: param.maximum, step: "any", value: Number(param.default.toPrecision(4)) });
    return element("div", { className: "field" }, element("label", { htmlFor: id, textContent: name }), input, element("p", { className: "hint", textContent: `${param.description} ${param.minimum} to ${param.maximum}.`.trim() }));
  });
  $("params").replaceChildren(...fields);
  refresh();
}

function query() {
  const words = new URLSearchParams({ model: $("model").value });
  const params = [...$("params").querySelectorAll("input")].filter((input) => input.value !== "").map((input) => `${input.name}=${input.value}`);
  if (params.length) words.set("params", params.join(","));
  return words;
}

function refresh() {
  $("run").disabled = file === null || running !== null || models.size === 0;
  $("cancel").hidden = running === null;
  $("format-field").hidden = isVideo();
  $("check-field").hidden = !isVideo();
  $("piece").hidden = file !== null && !isVideo();
}

// --- one run --------------------------------------------------------------------------------------------------------

function choose(chosen) {
  if (!chosen || running !== null) return;
  file = chosen;
  $("drop").querySelector("strong").textContent = file.name || "pasted picture";
  $("drop-hint").textContent = `${bytes(file.size)}; choose or drop another one`;
  refresh();
  run();
}

async function run() {
  if ($("run").disabled) return;
  running = new AbortController();
  $("error").hidden = true;
  $("said").textContent = "";
  $("empty").hidden = true;
  $("compare").hidden = true;
  $("busy").hidden = false;
  $("progress").removeAttribute("value");
  $("progress-text").textContent = "Sending…";
  refresh();
  try {
    await (isVideo() ? runVideo(running.signal) : runPicture(running.signal));
    $("compare").hidden = false;
    $("said").textContent = "Done. The slider over the result shows before and after.";
  } catch (error) {
    fail(error);
    $("empty").hidden = false;
  } finally {
    running = null;
    $("busy").hidden = true;
    refresh();
  }
}

async function runPicture(signal) {
  const words = query();
  if ($("format").value) words.set("format", $("format").value);
  const began = performance.now();
  $("progress-text").textContent = "Computing…";
  const response = await ask(`v1/enhance?${words}`, { method: "POST", body: file, signal });
  const result = await response.blob();
  const total = performance.now() - began;
  const timing = Object.fromEntries([...(response.headers.get("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)].map((found) => [found[1], Number(found[2])]));
  const model = decodeURIComponent(response.headers.get("X-Model"));
  const before = element("img", { alt: "Before: the original" });
  const after = element("img", { alt: `After: enhanced by ${model}` });
  await show(before, after, result, ["naturalWidth", "naturalHeight"], "load");
  const kind = result.type.split("/")[1];
  $("download").download = `${(file.name || "picture").replace(/\.[^.]*$/, "")}-${words.get("model")}.${kind === "jpeg" ? "jpg" : kind}`;
  showFacts({
    Model: model,
    Backend: `${response.headers.get("X-Backend")} ${response.headers.get("X-Precision")}`,
    "Time of the model": milliseconds(timing.infer ?? 0),
    "Time in all": milliseconds(total),
    Size: [before, after].map((image) => `${image.naturalWidth}×${image.naturalHeight}`).join(" → "),
    Bytes: `${bytes(file.size)} → ${bytes(result.size)}`,
  });
}

async function runVideo(signal) {
  const words = query();
  words.set("name", file.name || "clip");
  words.set("check", $("check").value);
  for (const name of ["start", "end", "duration"]) if ($(name).value.trim()) words.set(name, $(name).value.trim());
  if ($("preview").checked) words.set("preview", "true");
  let job = await json(`v1/videos?${words}`, { method: "POST", body: file, signal });
  const here = job.links.self.slice(1);
  try {
    while (job.state === "queued" || job.state === "running") {
      await pause(PROGRESS_MS, signal);
      job = await json(here, { signal });
      $("progress-text").textContent = job.frames_total ? `${capital(job.stage)}: ${job.frames_done} of ${job.frames_total} frames` : job.state === "queued" ? "Waiting for its turn…" : "Starting…";
      if (job.frames_total) {
        $("progress").max = job.frames_total;
        $("progress").value = job.frames_done;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") await ask(here, { method: "DELETE" });
    throw error;
  }
  if (job.state !== "done") throw new Error(job.error ?? `The job was ${job.state}.`);
  const result = await (await ask(job.links.result.slice(1), { signal })).blob();
  const attributes = { muted: true, loop: false, playsInline: true, preload: "auto" };
  const before = element("video", { ...attributes, ariaLabel: "Before: the original" });
  const after = element("video", { ...attributes, ariaLabel: "After: enhanced" });
  await show(before, after, result, ["videoWidth", "videoHeight"], "loadeddata", job.report.begins_s);
  $("download").download = `${(file.name || "clip").replace(/\.[^.]*$/, "")}-${words.get("model")}${words.has("preview") ? ".preview" : ""}.mp4`;
  const [use] = job.report.models;
  showFacts({
    Model: use.model_id,
    Backend: `${use.backend} ${use.precision} on ${use.device}`,
    "Time a frame": job.report.fps ? milliseconds(1000 / job.report.fps) : "–",
    "Time in all": seconds(job.report.elapsed_s),
    Frames: job.report.frames,
    Checked: `${job.report.frames_checked} frames`,
    Size: `${job.report.size_in.join("×")} → ${job.report.size_out.join("×")}`,
    Bytes: `${bytes(file.size)} → ${bytes(result.size)}`,
  });
  if (job.report.notes.length) note(job.report.notes.join("; "));
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

// --- before and after -----------------------------------------------------------------------------------------------

/** Show both; `late` is the time in the original, in seconds, at which the result begins. */
async function show(before, after, result, [wide, high], event, late = 0) {
  urls.forEach(URL.revokeObjectURL);
  urls = [URL.createObjectURL(file), URL.createObjectURL(result)];
  $("note").hidden = true;
  const [hasBefore, hasAfter] = await Promise.all([arrive(before, urls[0], event), arrive(after, urls[1], event)]);
  before.className = "upper";
  const frame = $("frame");
  frame.classList.toggle("single", !(hasBefore && hasAfter));
  $("layers").replaceChildren(...(hasAfter ? [after] : []), ...(hasBefore ? [before] : []));
  if (!hasAfter) note("This browser cannot show the result; it can be downloaded.");
  else if (!hasBefore) note("This browser cannot show the original.");
  const shown = hasAfter ? after : before;
  frame.style.aspectRatio = `${shown[wide] || 16} / ${shown[high] || 9}`;
  frame.style.width = `min(100%, calc(70vh * ${(shown[wide] || 16) / (shown[high] || 9)}))`;
  if (!hasAfter) before.className = "";
  $("download").href = urls[1];
  moveSplit(50);
  const videos = [before, after].filter((one) => one instanceof HTMLVideoElement && one.isConnected);
  $("player").hidden = videos.length === 0;
  if (videos.length) follow(videos, hasAfter ? late : 0);
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

function note(text) {
  $("note").textContent = text;
  $("note").hidden = false;
}

/** Play both clips as one; the last of them leads, and the others are `late` seconds further. */
function follow(videos, late) {
  const leader = videos.at(-1);
  const others = videos.filter((video) => video !== leader);
  const together = () => others.forEach((video) => Math.abs(video.currentTime - leader.currentTime - late) > 0.04 && (video.currentTime = leader.currentTime + late));
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

// --- the cache ------------------------------------------------------------------------------------------------------

let watching = null;

function watchCache(isShown) {
  clearTimeout(watching);
  watching = null;
  if (!isShown) return;
  const again = async () => {
    try {
      if (!document.hidden) showCache(await json("v1/cache"));
      $("cache-error").hidden = true;
    } catch (error) {
      $("cache-error").textContent = error.message;
      $("cache-error").hidden = false;
    }
    if (watching !== null) watching = setTimeout(again, CACHE_MS);
  };
  watching = setTimeout(again, 0);
}

function meter(used, budget) {
  const share = budget ? Math.min((100 * used) / budget, 100) : 0;
  const made = element("div", { className: "meter", role: "meter", ariaLabel: "used", ariaValueMin: "0", ariaValueMax: "100", ariaValueNow: share.toFixed(0) });
  const bar = element("i");
  bar.style.width = `${share}%`;
  made.append(bar);
  return made;
}

const cell = (content, className = "") => element("td", { className }, content);

function showCache(cache) {
  const figure = (name, ...content) => element("div", {}, element("dt", { textContent: name }), element("dd", {}, ...content));
  $("figures").replaceChildren(
    figure("Bytes of the cluster's cache", `${bytes(cache.used_bytes)} `, element("small", { textContent: `of ${bytes(cache.budget_bytes)}` }), meter(cache.used_bytes, cache.budget_bytes)),
    figure("Models loaded", String(cache.sessions.filter((session) => session.state === "ready").length)),
    figure("Hits", cache.hits.toLocaleString("en")),
    figure("Loads", String(cache.loads)),
    figure("Evictions", String(cache.evictions)),
  );
  $("devices").replaceChildren(
    ...cache.devices.map((device) =>
      element("tr", {}, cell(device.device), cell(device.kind), cell(meter(device.used_bytes, device.budget_bytes), "wide"), cell(bytes(device.used_bytes), "number"), cell(bytes(device.budget_bytes), "number")),
    ),
  );
  $("sessions").replaceChildren(
    ...cache.sessions.map((session) =>
      element(
        "tr",
        {},
        cell(session.model),
        cell(element("span", { className: `state ${session.state}`, textContent: session.state + (session.pinned ? ", pinned" : session.leased ? ", leased" : "") })),
        cell(`${session.backend} ${session.precision}`),
        cell(session.placed_on ?? ""),
        cell(bytes(session.bytes), "number"),
        cell(session.hits.toLocaleString("en"), "number"),
        cell(String(session.queue), "number"),
        cell(seconds(session.idle_s), "number"),
        cell(session.avg_latency_ms == null ? "–" : milliseconds(session.avg_latency_ms), "number"),
        cell(seconds(session.load_s), "number"),
      ),
    ),
  );
  $("no-sessions").hidden = cache.sessions.length > 0;
  $("updated").textContent = `As of ${new Date().toLocaleTimeString("en-GB")}; ${cache.policy} decides what goes.`;
}

// --- wiring ---------------------------------------------------------------------------------------------------------

function route() {
  const view = location.hash === "#cache" ? "cache" : "enhance";
  for (const name of ["enhance", "cache"]) {
    $(name).hidden = name !== view;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  watchCache(view === "cache");
}

$("file").addEventListener("change", () => choose($("file").files[0]));
$("model").addEventListener("change", chooseModel);
$("run").addEventListener("click", run);
$("cancel").addEventListener("click", () => running?.abort());
$("split").addEventListener("input", () => moveSplit($("split").value));
addEventListener("paste", (event) => choose(event.clipboardData?.files[0]));
addEventListener("dragover", (event) => (event.preventDefault(), $("drop").classList.add("over")));
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  location.hash = "#enhance";
  choose(event.dataTransfer?.files[0]);
});
addEventListener("hashchange", route);
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("sign-in").hidden = true;
  $("error").hidden = true;
  loadModels().catch(fail);
});

route();
loadModels().catch(fail);

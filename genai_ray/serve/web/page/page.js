// The page at "/": what is chosen, and one run of it. No library, no build.

import { watchCache } from "./cache.js";
import { note, show } from "./compare.js";
import { $, ask, bytes, capital, element, json, milliseconds, rounded, seconds } from "./parts.js";

const PROGRESS_MS = 500;
const BEST_FIRST = "websr-x2-l";
const TASKS = {
  upscaling: "Enlarge",
  denoising: "Remove noise",
  "low-light": "Brighten",
  interpolation: "Add frames (clips only)",
  "background-removal": "Remove the background",
};

let file = null;
let models = new Map();
const fields = new Map(); // of params, by name and limits
let running = null; // AbortController of what is computed now

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
  models = new Map(told.models.filter((model) => model.takes_pictures || model.takes_videos).map((model) => [model.name, model]));
  const select = $("model");
  select.replaceChildren(...modelOptions());
  if (models.has(BEST_FIRST)) select.value = BEST_FIRST;
  select.disabled = models.size === 0;
  $("add-model").disabled = models.size === 0;
  chooseModels();
}

function modelOptions() {
  return Object.entries(TASKS).flatMap(([task, label]) => {
    const members = [...models.values()].filter((model) => model.task === task);
    const presets = (model) => (members.some((other) => other.presets.length > 0 && other !== model) ? model.presets : []);
    const options = members.map((model) => {
      const notes = [...(model.scale > 1 ? [`×${model.scale}`] : []), ...presets(model)].join(", ");
      return element("option", { value: model.name, textContent: notes ? `${model.name} (${notes})` : model.name });
    });
    return members.length ? [element("optgroup", { label }, ...options)] : [];
  });
}

/** The chosen models, in the order in which pictures pass them. */
function chain() {
  const selects = [$("model"), ...$("more").querySelectorAll("select")];
  return selects.map((select) => models.get(select.value)).filter(Boolean);
}

function addModel() {
  const id = `model-${Date.now()}`;
  const hint = element("p", { id: `${id}-hint`, className: "hint" });
  const select = element("select", { id, onchange: chooseModels }, ...modelOptions());
  select.setAttribute("aria-describedby", hint.id);
  const remove = element("button", { type: "button", textContent: "Remove" });
  const field = element("div", { className: "field" }, element("label", { htmlFor: id, textContent: "Then" }), element("div", { className: "then" }, select, remove), hint);
  remove.onclick = () => {
    field.remove();
    chooseModels();
    $("add-model").focus();
  };
  $("more").append(field);
  chooseModels();
  select.focus();
}

function chooseModels() {
  for (const select of [$("model"), ...$("more").querySelectorAll("select")]) {
    const model = models.get(select.value);
    $(`${select.id}-hint`).textContent = model ? model.purpose || model.description : "This server offers no model for pictures or clips.";
  }
  const params = new Map(chain().flatMap((model) => Object.entries(paramsOf(model))));
  $("params").replaceChildren(...[...params].map(([name, param]) => fieldOf(name, param)));
  refresh();
}

/** What people may set; the time between two frames follows from the rate of the result. */
const paramsOf = (model) => (model.task === "interpolation" ? {} : model.params);

/** The field of a param: the same one as before, so that what was typed or chosen in it stays. */
function fieldOf(name, param) {
  const key = JSON.stringify([name, param]);
  if (!fields.has(key)) fields.set(key, paramField(name, param));
  return fields.get(key);
}

/** A field in the catalog's unit: a param with a full scale of 255 is shown and sent as 15, not as 15/255. */
function paramField(name, param) {
  const id = `param-${name}`;
  const scale = param.full_scale ?? 1;
  if (param.size) return vectorField(id, name, param);
  if (param.picture) return pictureField(id, name, param);
  const [least, most, usual] = [param.minimum, param.maximum, param.default].map((value) => rounded(value * scale));
  const input = element("input", { id, name, type: "number", min: least, max: most, step: "any", value: usual });
  input.dataset.scale = scale;
  const unit = param.full_scale ? ` of ${rounded(scale)}` : "";
  const hint = `${capital(param.description)}${param.description ? ": " : ""}${least} to ${most}${unit}.`;
  return element("div", { className: "field" }, element("label", { htmlFor: id, textContent: name }), input, element("p", { className: "hint", textContent: hint }));
}

/** A field for the numbers of a vector, with commas between them; empty for the usual ones. */
function vectorField(id, name, param) {
  const input = element("input", { id, name, type: "text", autocomplete: "off", placeholder: param.default.map(rounded).join(",") });
  const hint = `${capital(param.description)}${param.description ? ": " : ""}${param.size} numbers from ${rounded(param.minimum)} to ${rounded(param.maximum)}, with commas between them.`;
  return element("div", { className: "field" }, element("label", { htmlFor: id, textContent: name }), input, element("p", { className: "hint", textContent: hint }));
}

/** A field for a picture that a model takes beside the file, such as one whose style is taken. */
function pictureField(id, name, param) {
  const input = element("input", { id, name, type: "file", accept: "image/png,image/jpeg,image/webp" });
  const hint = `${capital(param.description)}${param.description ? ": " : ""}a PNG, JPEG or WebP file. Choose it first, or press Enhance again.`;
  return element("div", { className: "field" }, element("label", { htmlFor: id, textContent: name }), input, element("p", { className: "hint", textContent: hint }));
}

/** What to send for some of the chosen models: the file alone, or a form with the pictures that they take beside it. */
function bodyOf(chosen, sent) {
  const names = new Set(chosen.flatMap((model) => Object.keys(paramsOf(model))));
  const inputs = [...$("params").querySelectorAll("input[type=file]")].filter((input) => names.has(input.name));
  const missing = inputs.find((input) => !input.files.length);
  if (missing) throw new Error(`Choose a picture for ${missing.name}.`);
  if (!inputs.length) return sent;
  const form = new FormData();
  form.set("file", sent, sent.name || "file");
  for (const input of inputs) form.set(`param.${input.name}`, input.files[0]);
  return form;
}

/** The query for some of the chosen models; values below 1 of a scaled param are shares for the server. */
function query(chosen) {
  const words = new URLSearchParams(chosen.map((model) => ["model", model.name]));
  const names = new Set(chosen.flatMap((model) => Object.keys(paramsOf(model))));
  const params = [...$("params").querySelectorAll("input:not([type=file])")]
    .filter((input) => names.has(input.name) && input.value !== "")
    .map((input) => `${input.name}=${input.type === "text" ? input.value.trim() : input.valueAsNumber < 1 ? input.valueAsNumber / input.dataset.scale : input.value}`);
  if (params.length) words.set("params", params.join(","));
  return words;
}

function refresh() {
  $("run").disabled = file === null || running !== null || models.size === 0;
  $("cancel").hidden = running === null;
  $("format-field").hidden = isVideo();
  $("check-field").hidden = !isVideo();
  for (const id of ["piece", "tracks", "sizes", "fields", "encoding"]) $(id).hidden = file !== null && !isVideo();
  const tasks = chain().map((model) => model.task);
  $("rate-field").hidden = !tasks.includes("interpolation");
  $("background-field").hidden = !tasks.includes("background-removal") || (file !== null && !isVideo());
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

/** Take a sample that the server has. */
async function takeSample(name, type) {
  try {
    choose(new File([await (await ask(name)).blob()], name, { type }));
  } catch (error) {
    fail(error);
  }
}

async function runPicture(signal) {
  const chosen = chain();
  const clipsOnly = chosen.find((model) => !model.takes_pictures);
  if (clipsOnly) throw new Error(`${clipsOnly.name} adds frames, which a picture does not have: choose a clip, or another model.`);
  const began = performance.now();
  const passed = { picture: file, infer: 0, runtimes: new Set() };
  for (const [place, model] of chosen.entries()) {
    $("progress-text").textContent = `Computing: ${model.name}…`;
    const words = query([model]);
    const format = place < chosen.length - 1 ? "png" : resultFormat(chosen);
    if (format) words.set("format", format);
    const response = await ask(`v1/enhance?${words}`, { method: "POST", body: bodyOf([model], passed.picture), signal });
    passed.picture = await response.blob();
    passed.infer += Number(/infer;dur=([\d.]+)/.exec(response.headers.get("Server-Timing"))?.[1] ?? 0);
    passed.runtimes.add(`${response.headers.get("X-Backend")} ${response.headers.get("X-Precision")}`);
  }
  const total = performance.now() - began;
  const result = passed.picture;
  const before = element("img", { alt: "Before: the original" });
  const after = element("img", { alt: `After: enhanced by ${namesOf(chosen, ", then ")}` });
  await show(before, after, [file, result], ["naturalWidth", "naturalHeight"], "load");
  const kind = result.type.split("/")[1];
  $("download").download = `${(file.name || "picture").replace(/\.[^.]*$/, "")}-${namesOf(chosen, "-")}.${kind === "jpeg" ? "jpg" : kind}`;
  showFacts({
    Model: namesOf(chosen, " → "),
    Backend: [...passed.runtimes].join(", "),
    "Time of the model": milliseconds(passed.infer),
    "Time in all": milliseconds(total),
    Size: [before, after].map((image) => `${image.naturalWidth}×${image.naturalHeight}`).join(" → "),
    Bytes: `${bytes(file.size)} → ${bytes(result.size)}`,
  });
}

const namesOf = (chosen, between) => chosen.map((model) => model.name).join(between);

/** The format to ask for: what was chosen, or the picture's own, which the server knows unless it sees a PNG between. */
function resultFormat(chosen) {
  if ($("format").value || chosen.length === 1) return $("format").value;
  if (file.type === "image/jpeg") return chosen.some((model) => model.task === "background-removal") ? "png" : "jpeg";
  return file.type === "image/webp" ? "webp" : "png";
}

async function runVideo(signal) {
  const chosen = chain();
  const words = query(chosen);
  words.set("name", file.name || "clip");
  if (!$("rate-field").hidden) {
    words.set(...$("rate").value.split("="));
    words.set("scene_detector", $("scene_detector").value);
  }
  if (!$("background-field").hidden) words.set("background", $("background").value);
  words.set("check", $("check").value);
  const typed = [
    "start", "end", "duration", "streams", "size", "width", "height", "scale", "fit", "input_height",
    "field_order", "codec", "crf", "video_bitrate", "max_size",
  ];
  for (const name of typed) if ($(name).value.trim()) words.set(name, $(name).value.trim());
  for (const name of ["audio", "subtitles", "deinterlace"]) words.set(name, $(name).value);
  if ($("preview").checked) words.set("preview", "true");
  let job = await json(`v1/videos?${words}`, { method: "POST", body: bodyOf(chosen, file), signal });
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
  const slow = Number(words.get("slow_motion") ?? 1);
  await show(before, after, [file, result], ["videoWidth", "videoHeight"], "loadeddata", job.report.begins_s, slow);
  $("download").download = `${(file.name || "clip").replace(/\.[^.]*$/, "")}-${namesOf(chosen, "-")}${words.has("preview") ? ".preview" : ""}.mp4`;
  const [use] = job.report.models;
  showFacts({
    Model: namesOf(chosen, " → "),
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

// --- wiring ---------------------------------------------------------------------------------------------------------

function route() {
  const names = ["enhance", "cache", "help"];
  const shown = names.find((name) => location.hash === `#${name}`) ?? "enhance";
  for (const name of names) {
    $(name).hidden = name !== shown;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  watchCache(shown === "cache");
}

$("file").addEventListener("change", () => choose($("file").files[0]));
$("sample-picture").addEventListener("click", () => takeSample("sample.webp", "image/webp"));
$("sample-clip").addEventListener("click", () => takeSample("sample.mp4", "video/mp4"));
$("model").addEventListener("change", chooseModels);
$("add-model").addEventListener("click", addModel);
$("run").addEventListener("click", run);
$("cancel").addEventListener("click", () => running?.abort());
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

for (const place of document.querySelectorAll(".origin")) place.textContent = location.origin;
route();
loadModels().catch(fail);

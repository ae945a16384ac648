// The cache of the cluster, live.

import { $, bytes, element, json, milliseconds, seconds } from "./parts.js";

const CACHE_MS = 1000;

let watching = null;

/** Show the cache, and again every second, until it is called with false. */
export function watchCache(isShown) {
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

/** A cell with the name of its column, which narrow screens show instead of the table's head. */
function cell(name, content, className = "") {
  const made = element("td", { className, role: "cell" }, content);
  made.dataset.name = name;
  return made;
}

const row = (...cells) => element("tr", { role: "row" }, ...cells);

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
      row(
        cell("Device", device.device),
        cell("Kind", device.kind),
        cell("Used", meter(device.used_bytes, device.budget_bytes), "wide"),
        cell("Bytes", bytes(device.used_bytes), "number"),
        cell("Budget", bytes(device.budget_bytes), "number"),
      ),
    ),
  );
  $("sessions").replaceChildren(
    ...cache.sessions.map((session) =>
      row(
        cell("Model", session.model),
        cell("State", element("span", { className: `state ${session.state}`, textContent: session.state + (session.pinned ? ", pinned" : session.leased ? ", leased" : "") })),
        cell("Backend", `${session.backend} ${session.precision}`),
        cell("Device", session.placed_on ?? ""),
        cell("Bytes", bytes(session.bytes), "number"),
        cell("Hits", session.hits.toLocaleString("en"), "number"),
        cell("Queue", String(session.queue), "number"),
        cell("Idle", seconds(session.idle_s), "number"),
        cell("Per frame", session.avg_latency_ms == null ? "–" : milliseconds(session.avg_latency_ms), "number"),
        cell("Load", session.load_s == null ? "–" : seconds(session.load_s), "number"),
      ),
    ),
  );
  $("no-sessions").hidden = cache.sessions.length > 0;
  $("updated").textContent = `As of ${new Date().toLocaleTimeString("en-GB")}; ${cache.policy} decides which model is evicted.`;
}

// What every part of the page uses: elements, numbers as text, and questions to the server.

export const $ = (id) => document.getElementById(id);

export async function ask(path, options = {}) {
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

export const json = async (path, options) => (await ask(path, options)).json();

export function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

export function bytes(number) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let power = 0;
  while (number >= 1000 && power < units.length - 1) {
    number /= 1000;
    power += 1;
  }
  return `${number.toFixed(power && number < 100 ? 1 : 0)} ${units[power]}`;
}

export function seconds(number) {
  if (number < 59.5) return `${number.toFixed(number < 9.95 ? 1 : 0)} s`;
  const whole = Math.round(number);
  const minutes = Math.floor(whole / 60);
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function milliseconds(number) {
  return number < 10 ? `${number.toFixed(1)} ms` : `${Math.round(number).toLocaleString("en")} ms`;
}

export const rounded = (number) => Number(number.toPrecision(3));

export const clamp = (number, least, most) => Math.min(Math.max(number, least), most);

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// Numbers, times and states in words.

const counts = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const short = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const dated = new Intl.DateTimeFormat("en", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

export const count = (n) => (n === null || n === undefined ? "–" : counts.format(Math.round(n)));

export function compact(n) {
  if (n === null || n === undefined) return "–";
  if (n === 0) return "0";
  if (n < 10) return n < 0.05 ? "<0.1" : n.toFixed(1).replace(/\.0$/, "");
  if (n < 10000) return count(n);
  return n < 1e6 ? `${(n / 1e3).toFixed(1)}k` : `${(n / 1e6).toFixed(1)}M`;
}

// [number, unit] of a span that is measured.
export function span(seconds) {
  if (seconds === null || seconds === undefined) return ["–", ""];
  if (seconds === 0) return ["0", "s"];
  if (seconds < 0.001) return ["<1", "ms"];
  if (seconds < 0.9995) return [(seconds * 1000).toFixed(seconds < 0.00995 ? 1 : 0), "ms"];
  if (seconds < 9.95) return [seconds.toFixed(1).replace(/\.0$/, ""), "s"];
  if (seconds < 120) return [seconds.toFixed(0), "s"];
  if (seconds < 7200) return [(seconds / 60).toFixed(0), "min"];
  return seconds < 172800 ? [(seconds / 3600).toFixed(0), "h"] : [(seconds / 86400).toFixed(0), "days"];
}
export const spanText = (seconds) => span(seconds).join(" ").trim();

// A time that goes on: the two largest units.
export function lasting(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const units = [[86400, "day"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(0, units.findIndex(([size]) => s >= size));
  const parts = units.slice(s < 1 ? 3 : first, (s < 1 ? 3 : first) + 2).map(([size, name], i, chosen) => {
    const n = Math.floor((i ? s % chosen[i - 1][0] : s) / size);
    return n || !i ? `${n} ${name}${name === "day" && n !== 1 ? "s" : ""}` : "";
  });
  return parts.filter(Boolean).join(" ");
}

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  const power = Math.min(4, Math.floor(Math.log(Math.max(1, n)) / Math.log(1000)));
  const value = n / 1000 ** power;
  return `${power && value < 100 ? value.toFixed(1) : value.toFixed(0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

export const time = (at) => clock.format(at * 1000);
export const hour = (at) => short.format(at * 1000);
export const moment = (at, now) => (now - at < 43200 ? time(at) : dated.format(at * 1000));
export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

export const STATES = {
  well: ["well", "Well"],
  failing: ["bad", "Failing"],
  paused: ["warn", "Paused"],
  probing: ["warn", "Being tried"],
  "ours-to-mend": ["bad", "Yours to mend"],
};

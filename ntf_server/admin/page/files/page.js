// The live page of ntf-relay. What strangers choose is put into the page as text only.

import { Chart, draw, spark } from "./chart.js";
import { bytes, compact, count, hour, lasting, moment, plural, span, spanText, STATES, time } from "./words.js";

const SILENCE = 10; // seconds without a word, after which it is lost
const AGAIN = 3000; // ms
const at = (id) => document.getElementById(id);
let whole = null; // the last state, with what was before it
let heard = 0; // when, by this machine's clock
let ahead = 0; // seconds of the relay's clock before this one
let source = null;
let range = "points";
let said = "";

const now = () => Date.now() / 1000 + ahead;

// --- what is put into the page

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function big(element, [value, unit]) {
  const key = `${value} ${unit}`;
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  const small = document.createElement("small");
  small.textContent = unit;
  element.replaceChildren(value, small);
}

function fit(parent, wanted, make) {
  while (parent.children.length > wanted) parent.lastElementChild.remove();
  while (parent.children.length < wanted) parent.append(make());
}

// rows: lists of cells, the first one the row's header: text, or {text, className}, or {badge, text}.
function table(id, rows, header = true) {
  const body = at(id);
  fit(body, rows.length, () => document.createElement("tr"));
  rows.forEach((cells, r) => {
    const row = body.children[r];
    while (row.children.length < cells.length) {
      const first = header && !row.children.length;
      const cell = document.createElement(first ? "th" : "td");
      if (first) cell.scope = "row";
      row.append(cell);
    }
    cells.forEach((content, c) => fill(row.children[c], typeof content === "object" ? content : { text: content }));
  });
}

function fill(cell, { text, className = "", badge = null, title = "" }) {
  cell.className = className;
  if (cell.title !== title) cell.title = title;
  if (badge === null) return put(cell, text);
  let mark = cell.firstElementChild;
  if (!mark) {
    mark = document.createElement("span");
    mark.className = "badge";
    cell.replaceChildren(mark);
  }
  mark.dataset.state = badge;
  put(mark, text);
}

function list(id, pairs) {
  const parent = at(id);
  fit(parent, pairs.length, () => {
    const row = document.createElement("div");
    row.append(document.createElement("dt"), document.createElement("dd"));
    return row;
  });
  pairs.forEach(([name, value, note = ""], i) => {
    const [dt, dd] = parent.children[i].children;
    put(dt, name);
    const key = `${value}\n${note}`;
    if (dd.dataset.key === key) return;
    dd.dataset.key = key;
    dd.replaceChildren(value);
    if (note) {
      const small = document.createElement("small");
      small.textContent = note;
      dd.append(small);
    }
  });
}

const number = (text) => ({ text, className: "number" });
const words = (text) => ({ text: text || "–", className: "words" });
const ago = (t) => (t === null || t === undefined ? "never" : `${lasting(Math.max(0, now() - t))} ago`);

function state(name, since) {
  const [badge, word] = STATES[name] ?? ["none", name];
  return { badge, text: since && badge !== "well" ? `${word} for ${lasting(now() - since)}` : word };
}

// --- the verdict

function verdict(name, icon, headline, since, troubles = [], warnings = []) {
  at("verdict").dataset.state = name;
  at("verdict-icon").setAttribute("href", `#is-${icon}`);
  put(at("verdict-text"), headline);
  put(at("verdict-since"), since);
  const items = at("troubles");
  const lines = [...troubles, ...warnings];
  items.hidden = !lines.length;
  fit(items, lines.length, () => document.createElement("li"));
  lines.forEach((text, i) => {
    put(items.children[i], text);
    items.children[i].className = i < troubles.length ? "" : "warning";
  });
  const file = { well: "icon.svg", trouble: "icon-trouble.svg" }[name] ?? "icon-lost.svg";
  if (!at("icon").href.endsWith(`/${file}`)) at("icon").href = file;
  const title = `${headline} · ntf-relay`;
  if (document.title !== title) document.title = title;
  const all = [headline, ...troubles.map((text) => text.replace(/\d+(\.\d+)? (s|min|h|days)\b/g, ""))].join(". ");
  if (said !== all) {
    said = all;
    put(at("said"), [headline, ...troubles].join(". "));
  }
}

function judge() {
  const lost = !whole || Date.now() / 1000 - heard > SILENCE;
  at("link").dataset.state = !whole && !said ? "waiting" : lost ? "lost" : "live";
  put(at("link-text"), lost ? (whole ? "lost" : "connecting") : "live");
  if (!whole) return;
  put(at("updated"), lost ? `Last heard of ${lasting(Date.now() / 1000 - heard)} ago` : `As of ${time(whole.now)}`);
  if (lost) {
    verdict("lost", "lost", "No connection to the relay", `Nothing was heard for ${lasting(Date.now() / 1000 - heard)}; what is below is from before`);
    return;
  }
  const up = `running for ${lasting(now() - whole.started)}`;
  const since = whole.since - whole.started < 1 ? `since the start, ${lasting(now() - whole.started)} ago` : `for ${lasting(now() - whole.since)} · ${up}`;
  if (!whole.well) {
    const many = whole.troubles.length;
    verdict("trouble", "trouble", many === 1 ? "Something is not well" : `${many} things are not well`, since, whole.troubles, whole.warnings);
  } else if (whole.phase !== "running") {
    verdict("paused", "paused", { draining: "Draining", stopping: "Stopping", starting: "Starting" }[whole.phase] ?? whole.phase, up);
  } else {
    verdict("well", "well", "All is well", since, [], whole.warnings);
  }
}

function day() {
  const svg = at("day"), width = svg.clientWidth;
  if (!width || !whole) return;
  const cells = width < 500 ? 48 : 96, size = 86400 / cells, end = whole.now, gap = 2;
  const found = Array(cells).fill(null);
  const points = [...whole.long, ...(whole.begun ? [whole.begun] : [])];
  for (const point of points) {
    const first = Math.floor((point.at - 300 - (end - 86400)) / size), last = Math.floor((point.at - 1 - (end - 86400)) / size);
    for (let i = Math.max(0, first); i <= Math.min(cells - 1, last); i++) found[i] = Math.max(found[i] ?? 0, point.troubled);
  }
  found[cells - 1] = Math.max(found[cells - 1] ?? 0, whole.well ? 0 : 1);
  const each = (width - gap * (cells - 1)) / cells;
  svg.setAttribute("viewBox", `0 0 ${width} 26`);
  svg.replaceChildren(...found.map((troubled, i) => draw("rect", {
    class: troubled === null ? "none" : troubled ? "trouble" : "well",
    x: (i * (each + gap)).toFixed(2), width: each.toFixed(2), y: 0, height: 26, rx: 2,
  })));
  const seen = points.reduce((sum, p) => sum + 1 - p.troubled, 0) / (points.length || 1);
  const text = points.length ? `${(Math.floor(seen * 1000) / 10).toFixed(1)} % of the time well` : "";
  put(at("day-text"), text);
  svg.setAttribute("aria-label", `The last 24 hours: ${text || "nothing is known yet"}`);
}

// --- numbers

function tile(name, value, note, series, style, alarm = "") {
  const card = at(`tile-${name}`);
  card.dataset.state = alarm;
  big(card.querySelector(".value"), value);
  put(card.querySelector(".note"), note);
  spark(card.querySelector(".spark"), series, style);
}

function flow() {
  const points = whole.points, last = points.slice(-5);
  const mean = (key) => (last.length ? last.reduce((sum, p) => sum + p[key], 0) / last.length : 0);
  const sum = (key) => points.reduce((total, p) => total + p[key], 0);
  const recent = points.slice(-120);
  const inTime = sum("delivered") ? Math.max(0, 1 - sum("late") / sum("delivered")) : null;
  const [middle, , most] = whole.lately.ntf_notification_delivered_seconds;
  const due = whole.providers.reduce((total, p) => total + p.due, 0);
  const since = whole.providers.map((p) => p.oldest_due_since).filter((t) => t !== null);
  const oldest = since.length ? Math.max(0, whole.now - Math.min(...since)) : 0;
  const totals = whole.totals;
  tile("received", [compact(mean("received")), "a second"], `${count(totals.received)} since the start`, recent.map((p) => p.received), "one");
  tile("delivered", [compact(mean("delivered")), "a second"],
    inTime === null ? `${count(totals.delivered)} since the start` : `${(Math.floor(inTime * 1000) / 10).toFixed(1)} % within 10 s`, recent.map((p) => p.delivered), "two");
  tile("way", span(middle), most === null ? "nothing within the last minute" : `median; 99 % within ${spanText(most)}`, recent.map((p) => p.way[0]), "four");
  tile("due", [count(due), due === 1 ? "token waits" : "tokens wait"],
    due ? `the oldest for ${lasting(oldest)}` : totals.expired ? `${count(totals.expired)} expired since the start` : "nothing is late",
    recent.map((p) => p.due), "three", oldest > 300 ? "trouble" : oldest > 30 ? "warn" : "");
}

function facts() {
  const { smp, tokens } = whole;
  const flight = whole.providers.reduce((total, p) => total + p.in_flight, 0);
  const all = Object.values(tokens.status).reduce((a, b) => a + b, 0);
  const counted = tokens.subscriptions !== null;
  list("facts", [
    ["Clients", count(whole.clients), "sessions"],
    ["SMP servers", `${count(smp.connected)} of ${count(smp.wanted)}`, "connected"],
    ["Pushes", count(flight), "under way"],
    ["Registrations", counted ? count(all) : "–", counted ? `${count(tokens.status.ACTIVE ?? 0)} active` : "being counted"],
    ["Took a push", counted ? count(tokens.active.day ?? 0) : "–", "within a day"],
    ["Subscriptions", count(tokens.subscriptions), "stored"],
  ]);
}

// --- curves

const rate = (v) => (v === null || v === undefined ? "–" : `${compact(v)}/s`);
const charts = {
  flow: new Chart(at("chart-flow"), {
    title: "Notifications a second", kind: "rate", words: rate, none: "nothing yet",
    series: [
      { name: "received", style: "one", value: (p) => p.received },
      { name: "delivered", style: "two", dash: "dashed", area: true, value: (p) => p.delivered },
      { name: "after 10 s", style: "three", dash: "dotted", value: (p) => p.late },
    ],
  }),
  way: new Chart(at("chart-way"), {
    title: "From the SMP server to the provider", kind: "log", words: spanText, none: "nothing was delivered",
    series: [
      { name: "median", style: "four", area: true, value: (p) => p.way[0] },
      { name: "95 %", style: "one", dash: "dashed", value: (p) => p.way[1] },
      { name: "99 %", style: "three", dash: "dotted", value: (p) => p.way[2] },
    ],
  }),
  due: new Chart(at("chart-due"), {
    title: "The oldest that waits", kind: "time", words: spanText, none: "nothing yet",
    series: [{ name: "waits for", style: "three", area: true, value: (p) => p.oldest }],
  }),
  clients: new Chart(at("chart-clients"), {
    title: "Sessions of clients", kind: "count", words: count, none: "nothing yet",
    series: [{ name: "sessions", style: "one", area: true, value: (p) => p.clients }],
  }),
};

function curves() {
  const long = range === "long";
  const to = whole.now, from = to - Math.max(60, Math.min(long ? 86400 : 600, to - whole.started));
  const first = whole.points[0]?.at ?? to; // what the last minutes tell more closely
  const points = long ? [...whole.long.filter((p) => p.at < first), ...whole.points] : whole.points;
  const gap = long ? whole.long_step * 2.5 : whole.step * 8;
  for (const chart of Object.values(charts)) {
    chart.update(points, from, to, gap, (t, exact) => (exact && to - from < 7200 ? time(t) : hour(t)));
  }
}

// --- tables

function providers() {
  table("providers", whole.providers.map((p) => [
    p.title,
    state(p.state, p.since),
    number(p.accepted_at === null ? "not yet" : ago(p.accepted_at)),
    number(count(p.due)),
    number(count(p.in_flight)),
    number(p.answered[0] === null ? "–" : `${spanText(p.answered[0])} · ${spanText(p.answered[2])}`),
    number(count(p.delivered)), number(count(p.retried)), number(count(p.refused)), number(count(p.dead)),
    words(p.reason + (p.paused_until ? ` (next try in ${lasting(p.paused_until - now())})` : "")),
  ]));
  const services = whole.services;
  at("services-card").hidden = !services.length;
  table("services", services.map((s) => [
    { text: s.name, title: s.name }, state(s.state, s.since), number(ago(s.accepted_at)), number(count(s.in_flight)), words(s.reason),
  ]));
}

function servers() {
  const { own, more, other } = whole.servers;
  const rows = own.map((s) => [
    { text: s.host, title: s.host }, s.since ? { badge: "bad", text: `Away for ${lasting(now() - s.since)}` } : { badge: "well", text: "Connected" },
    number(count(s.active)), number(count(s.pending)), number(count(s.received)),
  ]);
  if (more) rows.push([`${count(more)} more of your own`, "", "", "", ""]);
  const away = [other.away ? `${count(other.away)} away` : "", other.never ? `${count(other.never)} never answered` : ""].filter(Boolean).join(", ");
  const connected = `${count(other.connected)} connected`;
  rows.push([
    own.length ? "All others" : "All servers", { badge: other.away ? "warn" : other.connected ? "well" : "none", text: away ? `${connected}, ${away}` : connected },
    number(count(other.active)), number(count(other.pending)), number(count(other.received)),
  ]);
  table("servers", rows);
}

const WHAT = { closed: "connections closed", delayed: "made to wait", refused: "refused" };

function rest() {
  const { leases, store, limits, certificates } = whole;
  const lag = whole.lately.ntf_loop_lag_seconds[2];
  const { node } = whole.about;
  list("nodes", leases ? [
    ...(node ? [["This node", node]] : []),
    ["Nodes that live", count(leases.nodes)],
    ["Shards of tokens of this node", `${count(leases.shards)} of ${count(leases.all_shards)}`],
    ["SMP servers of this node", count(leases.servers)],
    ["Shards whose server is away", count(leases.silent_shards)],
    ["Event loop late by (99 %)", spanText(lag)],
  ] : [
    ["Nodes that live", "1"],
    ["Store", "this node's alone"],
    ["Event loop late by (99 %)", spanText(lag)],
  ]);
  const commit = whole.lately.ntf_store_commit_seconds, stored = whole.lately.ntf_notification_stored_seconds;
  list("store", [
    ["State", store.state === "well" ? "well" : `${store.kind || "fails"}${store.since ? `, for ${lasting(now() - store.since)}` : ""}`],
    ["Takes", bytes(store.bytes) + (store.log === null ? "" : `, ${bytes(store.log)} of it log`)],
    ["May still take", bytes(store.room)],
    ["A commit (median · 99 %)", commit[0] === null ? "–" : `${spanText(commit[0])} · ${spanText(commit[2])}`],
    ["From NMSG to stored (99 %)", spanText(stored[2])],
  ]);
  at("limits-none").hidden = limits.length > 0;
  at("limits-some").hidden = !limits.length;
  table("limits", limits.map((l) => [l.what.replaceAll("_", " "), WHAT[l.how], number(count(l.count)), number(ago(l.at))]));
  list("ends", certificates.map(({ name, ends }) => {
    const days = Math.floor((ends - now()) / 86400);
    const left = days > 3650 ? "in more than 10 years" : days < 0 ? "it has ended" : `in ${plural(days, "day", "days")}`;
    return [`${{ apns: "APNs", redis: "Redis" }[name] ?? name[0].toUpperCase() + name.slice(1)} ends`, left];
  }));
}

const LOUD = { error: "bad", critical: "bad", warning: "warn" };

function events() {
  const newest = [...whole.events].reverse();
  at("events-none").hidden = newest.length > 0;
  at("events-some").hidden = !newest.length;
  table("events", newest.map(([, t, level, name, text]) => [
    moment(t, now()), { badge: LOUD[level] ?? "none", text: name }, text,
  ]), false);
}

// --- what is heard

function show() {
  if (!whole) return;
  judge();
  flow();
  facts();
  curves();
  providers();
  servers();
  rest();
  day();
}

function take(state) {
  heard = Date.now() / 1000;
  ahead = state.now - heard;
  const last = whole?.points.at(-1)?.at ?? 0;
  if (whole && state.point && state.point.at !== last) {
    whole.points = [...(state.point.at > last ? whole.points : []), state.point].slice(-300); // the clock may be set
  }
  whole = { ...whole, ...state };
}

async function fetchAll() {
  const answer = await fetch("api/state", { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  take(await answer.json());
}

async function connect() {
  source?.close();
  try {
    await fetchAll();
    put(at("version"), whole.about.version);
    put(at("address"), `${whole.about.address} · ${whole.about.store}`);
    show();
    events();
  } catch {
    judge();
    setTimeout(connect, AGAIN);
    return;
  }
  source = new EventSource("api/stream");
  source.addEventListener("state", (e) => {
    const state = JSON.parse(e.data);
    take(state);
    show();
    if (!state.begun) fetchAll().catch(() => {}); // a point of the day is over
  });
  source.addEventListener("event", (e) => {
    const event = JSON.parse(e.data);
    if (whole.events.some(([n]) => n === event[0])) return;
    whole.events = [...whole.events, event].slice(-100);
    events();
  });
  const again = () => { source.close(); setTimeout(connect, AGAIN); };
  source.addEventListener("end", () => { heard = Math.min(heard, Date.now() / 1000 - SILENCE - 1); judge(); again(); });
  source.addEventListener("error", again);
}

// --- what a person does

const THEMES = [["", "as the system has them"], ["light", "light"], ["dark", "dark"]];
function theme(step) {
  const root = document.documentElement;
  let chosen = Math.max(0, THEMES.findIndex(([name]) => name === (root.dataset.theme ?? "")));
  chosen = (chosen + step) % THEMES.length;
  root.dataset.theme = THEMES[chosen][0];
  at("theme").setAttribute("aria-label", `Colours: ${THEMES[chosen][1]}`);
  at("theme").title = `Colours: ${THEMES[chosen][1]}`;
  try { localStorage.setItem("theme", THEMES[chosen][0]); } catch { /* it is not kept then */ }
}
try { document.documentElement.dataset.theme = localStorage.getItem("theme") ?? ""; } catch { /* as above */ }
theme(0);
at("theme").addEventListener("click", () => theme(1));
for (const input of document.querySelectorAll("[name=range]")) {
  input.addEventListener("change", () => { range = input.value; if (whole) curves(); });
}
addEventListener("resize", () => { if (whole) { flow(); day(); } });
setInterval(judge, 1000);
setInterval(() => { if (source?.readyState === EventSource.OPEN) fetchAll().then(show, () => {}); }, 300000);
connect();

// Curves as SVG, without a library: axes with units, a cursor for pointers and arrow keys, words for screen readers.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 54, RIGHT = 12, TOP = 8, BOTTOM = 26;

export function draw(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

// Where a curve goes: gaps where there is no value, or where nobody looked for long.
function path(points, x, y, gap) {
  let text = "", last = null;
  for (const [at, value] of points) {
    if (value === null || value === undefined) { last = null; continue; }
    text += `${last === null || at - last > gap ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    last = at;
  }
  return text;
}

function area(points, x, y, base, gap) {
  let text = "", run = [];
  const close = () => {
    if (run.length > 1) {
      text += `M${run[0][0]} ${base}${run.map(([a, b]) => `L${a} ${b}`).join("")}L${run.at(-1)[0]} ${base}Z`;
    }
    run = [];
  };
  let last = null;
  for (const [at, value] of points) {
    if (value === null || value === undefined || (last !== null && at - last > gap)) close();
    if (value !== null && value !== undefined) run.push([x(at).toFixed(1), y(value).toFixed(1)]);
    last = at;
  }
  close();
  return text;
}

function niceTop(most, least, whole) {
  const wanted = Math.max(most * 1.08, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  const steps = whole ? [2, 4, 6, 8, 10, 20] : [1, 1.5, 2, 3, 4, 5, 6, 8, 10]; // half of it is whole, too
  return steps.map((m) => m * power).find((top) => top >= wanted - 1e-12);
}

const TIME_TOPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];

function linear(most, kind) {
  const top = kind === "time" ? TIME_TOPS.find((t) => t >= most * 1.05) ?? most * 1.1 : niceTop(most, kind === "count" ? 4 : 1, kind === "count");
  return { top, at: (v) => v / top, ticks: [0, top / 2, top] };
}

function logarithmic(values) {
  const seen = values.filter((v) => v > 0);
  const low = Math.floor(Math.log10(Math.min(0.01, ...seen) * 1.0001));
  const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(0.1, ...seen) * 0.9999)));
  const ticks = [];
  for (let p = low; p <= high; p++) ticks.push(10 ** p);
  return { at: (v) => (Math.log10(Math.max(v, 10 ** low)) - low) / (high - low), ticks };
}

const TIME_STEPS = [10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200];

// Round times of the clock on the wall, so many at most.
function times(from, to, most) {
  const step = TIME_STEPS.find((s) => (to - from) / s <= most) ?? 86400;
  const zone = new Date(from * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) found.push(at);
  return found;
}

// A small curve without axes.
export function spark(svg, values, style) {
  const width = svg.clientWidth || 200, height = svg.clientHeight || 46;
  const seen = values.filter((v) => v !== null && v !== undefined);
  const most = Math.max(...seen, 0) || 1;
  const points = values.map((v, i) => [i, v]);
  const x = (i) => (values.length > 1 ? (i / (values.length - 1)) * width : width);
  const y = (v) => height - 2 - (v / most) * (height - 8);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(
    draw("path", { class: `area ${style}`, d: area(points, x, y, height, 1.5) }),
    draw("path", { class: `curve ${most && seen.some(Boolean) ? style : "flat"}`, d: path(points, x, y, 1.5) }),
  );
}

// series: [{ name, style, dash, value(point), area }]; words(v): a value with its unit; kind: "rate", "count", "time", "log".
export class Chart {
  constructor(figure, { title, series, words, kind, none }) {
    Object.assign(this, { title, series, words, kind, none, points: [], cursor: null });
    this.legend = document.createElement("div");
    this.legend.className = "legend";
    this.values = series.map(({ name, style, dash = "" }) => {
      const item = document.createElement("span"), mark = document.createElement("i"), value = document.createElement("b");
      mark.className = `${style} ${dash}`;
      item.append(mark, name, value);
      this.legend.append(item);
      return value;
    });
    this.when = document.createElement("span");
    this.when.className = "when";
    this.legend.append(this.when);
    this.svg = draw("svg", { class: "plot", role: "img", tabindex: "0" });
    figure.append(this.legend, this.svg);
    this.said = document.createElement("p");
    this.said.className = "unseen";
    this.said.setAttribute("aria-live", "polite");
    figure.append(this.said);
    this.svg.addEventListener("pointermove", (e) => this.point(e));
    this.svg.addEventListener("pointerleave", () => this.move(null));
    this.svg.addEventListener("blur", () => this.move(null));
    this.svg.addEventListener("keydown", (e) => this.key(e));
    new ResizeObserver(() => this.render()).observe(this.svg);
  }

  update(points, from, to, gap, hour) {
    Object.assign(this, { points: points.filter((p) => p.at >= from && p.at <= to), from, to, gap, hour });
    if (this.cursor !== null && !this.points.some((p) => p.at === this.cursor)) this.cursor = null;
    this.render();
  }

  point(event) {
    const { left, width } = this.svg.getBoundingClientRect();
    const at = this.from + ((event.clientX - left - LEFT) / (width - LEFT - RIGHT)) * (this.to - this.from);
    const near = (best, p) => (best === null || Math.abs(p.at - at) < Math.abs(best.at - at) ? p : best);
    this.move(this.points.reduce(near, null)?.at ?? null);
  }

  key(event) {
    const last = this.points.length - 1;
    if (last < 0) return;
    const here = this.cursor === null ? last + 1 : this.points.findIndex((p) => p.at === this.cursor);
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here - 30, PageDown: here + 30, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.move(null);
    if (to === undefined) return;
    event.preventDefault();
    this.move(this.points[Math.min(last, Math.max(0, to))].at);
    const point = this.points.find((p) => p.at === this.cursor);
    this.said.textContent = `${this.hour(point.at, true)}: ${this.series.map((s) => `${s.name} ${this.words(s.value(point))}`).join(", ")}`;
  }

  move(cursor) {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    this.render();
  }

  render() {
    const { svg, points, series } = this;
    const width = svg.clientWidth, height = svg.clientHeight;
    if (!width || this.from === undefined) return;
    const all = series.flatMap((s) => points.map(s.value)).filter((v) => v !== null && v !== undefined);
    const scale = this.kind === "log" ? logarithmic(all) : linear(Math.max(0, ...all), this.kind);
    const x = (at) => LEFT + ((at - this.from) / (this.to - this.from)) * (width - LEFT - RIGHT);
    const y = (v) => TOP + (1 - scale.at(v)) * (height - TOP - BOTTOM);
    const parts = [];
    for (const [i, tick] of scale.ticks.entries()) {
      parts.push(draw("line", { class: i ? "grid" : "base", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
      parts.push(draw("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, this.words(tick)));
    }
    for (const at of times(this.from, this.to, width < 420 ? 4 : 7)) {
      if (x(at) < LEFT + 18 || x(at) > width - RIGHT - 18) continue;
      parts.push(draw("line", { class: "base", x1: x(at), x2: x(at), y1: y(scale.ticks[0]), y2: y(scale.ticks[0]) + 4 }));
      parts.push(draw("text", { x: x(at), y: height - 5, "text-anchor": "middle" }, this.hour(at, this.to - this.from < 240)));
    }
    const cut = series.map((s) => points.map((p) => [p.at, s.value(p)]));
    series.forEach((s, i) => {
      if (s.area) parts.push(draw("path", { class: `area ${s.style}`, d: area(cut[i], x, y, y(scale.ticks[0]), this.gap) }));
    });
    series.forEach((s, i) => parts.push(draw("path", { class: `curve ${s.style} ${s.dash ?? ""}`, d: path(cut[i], x, y, this.gap) })));
    if (!all.length) {
      parts.push(draw("text", { class: "none", x: (LEFT + width) / 2, y: height / 2, "text-anchor": "middle" }, this.none));
    }
    const shown = points.find((p) => p.at === this.cursor) ?? points.at(-1);
    if (this.cursor !== null && shown) {
      parts.push(draw("line", { class: "cursor", x1: x(shown.at), x2: x(shown.at), y1: TOP, y2: height - BOTTOM }));
      for (const s of series) {
        const v = s.value(shown);
        if (v !== null && v !== undefined) parts.push(draw("circle", { class: `knob ${s.style}`, cx: x(shown.at), cy: y(v), r: 4.5 }));
      }
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(...parts);
    this.describe(shown);
  }

  describe(shown) {
    const texts = this.series.map((s) => (shown ? this.words(s.value(shown)) : "–"));
    texts.forEach((text, i) => { this.values[i].textContent = text; });
    this.when.textContent = this.cursor === null || !shown ? "" : this.hour(shown.at, true);
    if (this.cursor === null) {
      const of = this.series.map((s, i) => {
        const seen = this.points.map(s.value).filter((v) => v !== null && v !== undefined);
        return `${s.name} ${texts[i]}, at most ${this.words(seen.length ? Math.max(...seen) : null)}`;
      });
      this.svg.setAttribute("aria-label", `${this.title}: ${of.join("; ")}. Arrow keys read single values.`);
    }
  }
}

// The page: an element for each token, one slider for all runs, and a token's history when the pointer is over it.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const make = (tag, parent, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;  // not as markup, as a model wrote it
  parent.append(element);
  return element;
};
const grouped = (x) => x.toLocaleString("en");
const plural = (n, word) => `${grouped(n)} ${word}${n === 1 ? "" : "s"}`;

const runs = data.runs.map((run) => new Run(run));
const limit = Math.max(...runs.map((run) => run.n));
// The slider's stops: before the first eviction, after each eviction, and the end.
const times = [...new Set(runs.flatMap((run) => run.positions))].sort((a, b) => a - b);
const stops = times.length ? [{ position: times[0], before: true }, ...times.map((position) => ({ position }))] : [];
stops.push({ position: limit - 1, end: true });
const slider = find("slider");
// Tokens are laid out in blocks that end at a newline after BLOCK tokens, and without a newline after LONGEST_BLOCK.
const BLOCK = 150, LONGEST_BLOCK = 1000;

class Panel {
  constructor(run, parent) {
    this.run = run;
    const panel = make("section", parent, "panel");
    const header = make("header", panel);
    make("h2", header, "", run.label);
    make("p", header, "", run.detail);
    this.state = make("p", header, "state");
    const body = make("div", panel, "body");
    const figure = make("figure", body);
    const canvas = make("canvas", figure);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Which tokens are in the buffer, and how many slots they take, over time");
    make("figcaption", figure, "", "Above: each token from written to evicted. Below: occupied KV slots. Click to go to that time.");
    this.chart = new Chart(canvas, run, limit, seek);
    const text = make("div", body, "text");
    this.text = text;
    text.tabIndex = 0;
    text.setAttribute("role", "region");
    text.setAttribute("aria-label", `tokens, ${run.label}`);
    this.tokens = [];
    this.codes = new Int16Array(run.n).fill(-1);
    for (const [name, from, to] of [["prompt", 0, run.prompt], ["thought", run.prompt, run.thoughtEnd], ["answer", run.thoughtEnd, run.n]]) {
      if (from >= to) continue;
      make("h3", text, "", `${name}, ${plural(to - from, "token")}`);
      for (let p = from; p < to; p++) {
        const token = document.createElement("b");
        token.textContent = shown(run.pieces[p]);
        token.position = p;
        token.panel = this;
        this.tokens.push(token);
      }
      this.append(text, from, to);
    }
  }

  // Append tokens in blocks, so that of a long text the browser lays out only the blocks in sight.
  append(text, from, to) {
    let start = from;
    for (let p = from; p < to; p++) {
      const size = p + 1 - start;
      const full = (size >= BLOCK && this.run.pieces[p].endsWith("\n")) || size >= LONGEST_BLOCK;
      if (!full && p + 1 < to) continue;
      const block = make("div", text, "tokens");
      block.style.containIntrinsicSize = `auto ${Math.ceil(size / 10) * 25}px`;
      block.append(...this.tokens.slice(start, p + 1));
      start = p + 1;
    }
  }

  // Show a stop: set the class of each token whose fate has changed, and the line above the text.
  show(stop) {
    const { run, codes, tokens } = this;
    const position = Math.min(stop.position, run.n - 1);
    const count = stop.before ? 0 : run.count(stop.position);
    const held = [];
    for (let p = 0; p < run.n; p++) {
      const fate = run.fate(p, position, count);
      const shade = run.shade(p, fate, count);
      const code = fate * SHADES + shade;
      if (fate !== LATER && fate !== GONE) held.push(p);
      if (codes[p] === code) continue;
      codes[p] = code;
      tokens[p].className = fate === GONE || fate === PART ? `${FATES[fate]} ${FATES[fate]}-${shade}` : FATES[fate];
    }
    this.here?.classList.remove("here");
    this.here = stop.end ? null : tokens[position];
    if (this.here) {
      this.here.classList.add("here");
      codes[position] = -1;
    }
    this.count = count;
    this.position = position;
    const slots = stop.before && run.evictions ? run.occupied(run.positions[0] - 1) + 1 : run.occupied(position);
    const evicted = position + 1 - held.length;
    this.state.textContent =
      `eviction ${grouped(count)} of ${grouped(run.evictions)}: ${plural(slots, "slot")} occupied` +
      (run.layers * run.heads > 1 ? " in each KV head" : "") +
      `; ${grouped(evicted)} of ${plural(position + 1, "token")} evicted` + (run.sets.length > 1 ? " by all heads" : "");
    this.chart.at(position);
  }

  // Scroll the text, but not the page, to the newest token.
  follow() {
    const box = this.text.getBoundingClientRect();
    const newest = this.tokens[this.position].getBoundingClientRect();
    this.text.scrollTop += newest.top - box.top - box.height / 2;
  }

  // What is shown when the pointer is over token p.
  describe(p) {
    const { run, count, position } = this;
    const lines = [`“${run.pieces[p] || "(part of a character)"}”`, `token ${grouped(p)}, ${run.part(p)}`, this.fateOf(p)];
    if (p > position || p === run.n - 1) return lines.join("\n");
    const score = run.score(p, count);
    if (score === null) lines.push("no score yet: no eviction has scored it");
    else if (score === undefined) lines.push(run.scores ? "score not recorded in this page" : "this trace has no scores");
    else {
      const when = ` at eviction ${grouped(score.event + 1)}${score.exact ? "" : " (the nearest in this page)"}`;
      if (score.value === Infinity) lines.push(`score: protected${when}`);
      else {
        const rank = score.of ? `, rank ${grouped(score.rank)} of ${grouped(score.of)}` : "";
        lines.push(`score ${formatScore(score.value)}${score.mean ? ", mean of the heads" : ""}${when}${rank}`);
      }
    }
    return lines.join("\n");
  }

  fateOf(p) {
    const { run, count, position } = this;
    const last = run.last[p];
    const dropped = `eviction ${grouped(last + 1)}, at token ${grouped(run.positions[last] ?? 0)}`;
    if (p > position) return "not written yet";
    if (p === run.n - 1) return "the last token: sampled, but never put into the buffer";
    switch (run.fate(p, position, count)) {
      case GONE: return run.sets.length > 1 ? `evicted; the last head dropped it at ${dropped}` : `evicted at ${dropped}`;
      case PART: return `in ${grouped(Math.round(run.share(p, count) * run.sets.length))} of ${run.sets.length} layers' KV heads`;
      case PINNED: return "in the buffer: pinned prompt";
      case SINK: return "in the buffer: sink";
      case WINDOW: return "in the buffer: window" + (last < run.evictions ? `; will be evicted at ${dropped}` : "");
      default: return last < run.evictions ? `in the buffer; will be evicted at ${dropped}` : "in the buffer, kept to the end";
    }
  }
}

// The text that is shown for a token: newlines as signs followed by one line break, and a dot for a token without text.
function shown(piece) { return piece === "" ? "·" : piece.replace(/\n+/g, (all) => "↵".repeat(all.length) + "\n"); }

// A score as text.
function formatScore(x) {
  const size = Math.abs(x);
  if (size >= 3.4e38) return x > 0 ? "above all others (infinite)" : "below all others";
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? x.toExponential(3) : String(Number(x.toPrecision(4)));
}

// Show the slider's stop in all panels.
function show() {
  const stop = stops[Number(slider.value)];
  for (const panel of panels) panel.show(stop);
  const count = times.length ? Number(slider.value) : 0;
  const what = stop.end ? "the end" : stop.before ? "before the first eviction" : `after eviction ${grouped(count)} of ${grouped(times.length)}`;
  const moment = `${what}: ${plural(stop.position + 1, "token")} written`;
  find("moment").textContent = runs.length > 1 && !stop.end && !stop.before ? `${plural(stop.position + 1, "token")} written` : moment;
  slider.setAttribute("aria-valuetext", find("moment").textContent);
  tip.hidden = true;
}

// Move the slider to a stop.
function move(value) {
  const to = Math.max(0, Math.min(stops.length - 1, value));
  if (to === Number(slider.value)) return;
  slider.value = to;
  show();
}

// Move the slider to the last stop that is not after a position.
function seek(position) {
  let to = 0;
  stops.forEach((stop, index) => { if (stop.position <= position + 0.5) to = index; });
  move(to);
  for (const panel of panels) panel.follow();
}

function drawLegend() {
  const used = new Set(["kept", "gone"]);
  for (const { rule, layers, heads, prompt } of runs) {
    if (rule.window) used.add("window");
    if (rule.sinks) used.add("sink");
    if (rule.pin_prompt && prompt) used.add("pinned");
    if (layers * heads > 1) used.add("part");
  }
  const labels = { kept: "kept", window: "window", sink: "sink", pinned: "pinned prompt", part: "kept by some heads", gone: "evicted" };
  const legend = find("legend");
  for (const [name, label] of Object.entries(labels)) {
    if (!used.has(name)) continue;
    const item = make("li", legend);
    if (name === "gone" || name === "part") {
      make("b", item, `${name} ${name}-${name === "gone" ? 3 : 4}`, label);
      item.append(name === "gone" ? " early " : " few ");
      const ramp = make("span", item, "ramp");
      for (let i = 0; i < SHADES; i++) make("i", ramp, `${name}-${i}`);
      item.append(name === "gone" ? " late" : " many");
    } else make("b", item, name, label);
  }
  make("b", make("li", legend), "later", "not written yet");
}

// Fill the selectors for layer and KV head. They stay hidden if all heads share one keep set.
function fillHeads() {
  const layers = Math.max(...runs.map((run) => run.layers)), heads = Math.max(...runs.map((run) => run.heads));
  if (layers * heads === 1) return;
  find("heads").hidden = false;
  for (const [id, size] of [["layer", layers], ["head", heads]]) {
    const select = find(id);
    make("option", select, "", "all").value = "";
    for (let i = 0; i < size; i++) make("option", select, "", i).value = i;
    select.addEventListener("change", () => {
      const [layer, head] = ["layer", "head"].map((name) => (find(name).value === "" ? null : Number(find(name).value)));
      for (const panel of panels) {
        panel.run.choose(layer, head);
        panel.chart.redraw();
      }
      show();
    });
  }
}

const tip = find("tip");
// Show the history of the token that the pointer is over.
function point(event) {
  const token = event.target;
  if (token.panel === undefined) { tip.hidden = true; return; }
  tip.textContent = token.panel.describe(token.position);
  tip.hidden = false;
  const box = token.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const under = box.bottom + 8 + own.height < window.innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - own.width - 12))}px`;
  tip.style.top = `${under ? box.bottom + 8 : Math.max(4, box.top - own.height - 8)}px`;
}

find("title").textContent = data.title;
find("subtitle").textContent = data.subtitle;
document.title = data.title;
const main = find("panels");
main.className = `panels-${runs.length === 1 ? 1 : 2}`;
const panels = runs.map((run) => new Panel(run, main));
drawLegend();
fillHeads();
slider.max = stops.length - 1;
slider.disabled = find("back").disabled = find("forward").disabled = stops.length < 2;
const opening = data.eviction ? stops.findIndex((stop) => !stop.before && stop.position >= runs[0].positions[data.eviction - 1]) : 0;
slider.value = data.eviction === null || !times.length ? stops.length - 1 : opening;
slider.addEventListener("input", show);
find("back").addEventListener("click", () => move(Number(slider.value) - 1));
find("forward").addEventListener("click", () => move(Number(slider.value) + 1));
main.addEventListener("pointerover", point);
main.addEventListener("click", point);  // touch has no hover
main.addEventListener("pointerleave", () => { tip.hidden = true; });
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
document.addEventListener("keydown", (event) => {
  // The slider and the selectors handle keys themselves.
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const now = Number(slider.value);
  const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: stops.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  move(to);
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => panels.forEach((panel) => panel.chart.redraw()));
show();

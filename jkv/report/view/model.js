// What became of every token: the data of the page and questions about it. Nothing here touches the document.

const FATES = ["later", "kept", "window", "sink", "pinned", "part", "gone"];
const [LATER, KEPT, WINDOW, SINK, PINNED, PART, GONE] = FATES.keys();
const SHADES = 8;

function numbers(base64, Kind) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Kind(bytes.buffer);
}

// How many of the ascending `sorted` are below `limit`.
function below(sorted, limit) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < limit) low = middle + 1; else high = middle;
  }
  return low;
}

class Run {
  constructor(data) {
    Object.assign(this, data);
    this.gone = numbers(data.gone, data.wide ? Uint32Array : Uint16Array);  // [layers * heads, n]
    this.evictions = data.positions.length;
    this.choose(null, null);
    this.everywhere = this.last;
    if (data.scores) {
      const starts = [];
      let total = 0;
      for (const size of data.scores.sizes) {
        starts.push(total);
        total += size * (data.scores.mean ? 1 : this.layers * this.heads);
      }
      this.scores = { ...data.scores, starts, values: numbers(data.scores.data, Float32Array) };
    }
  }

  // Look at one layer or KV head, or (null) at all of them.
  choose(layer, head) {
    this.sets = [];
    for (let l = 0; l < this.layers; l++)
      for (let k = 0; k < this.heads; k++)
        if ((layer === null || layer >= this.layers || layer === l) && (head === null || head >= this.heads || head === k))
          this.sets.push(l * this.heads + k);
    // When the last of the sets lost each token.
    this.last = new Uint32Array(this.n);
    for (const set of this.sets)
      for (let p = 0, at = set * this.n; p < this.n; p++, at++)
        if (this.gone[at] > this.last[p]) this.last[p] = this.gone[at];
  }

  // Evictions that happened before the token at `position` + 1 was put in.
  count(position) { return below(this.positions, position + 1); }

  share(p, count) {
    let holding = 0;
    for (const set of this.sets) if (this.gone[set * this.n + p] >= count) holding++;
    return holding / this.sets.length;
  }

  // Slots occupied when the token at `position` had been put in and a full buffer had evicted.
  occupied(position) {
    const count = this.count(position);
    const inserted = Math.min(position, this.n - 2);  // the last token is drawn, never put in
    return count ? this.kept[count - 1] + inserted - this.positions[count - 1] : inserted + 1;
  }

  // The fate of token p once tokens up to `position` are written and `count` evictions are over.
  fate(p, position, count) {
    if (p > position) return LATER;
    if (this.last[p] < count) return GONE;
    if (this.sets.length > 1 && this.share(p, count) < 1) return PART;
    const rule = this.rule;
    if (rule.pin_prompt && p < this.prompt) return PINNED;
    if (p < rule.sinks) return SINK;
    return p > Math.min(position, this.n - 2) - rule.window ? WINDOW : KEPT;
  }

  // 0 .. SHADES - 1: how late a token that is gone was evicted, or how many heads hold one that is partly gone.
  shade(p, fate, count) {
    if (fate === GONE) return Math.min(SHADES - 1, Math.floor((SHADES * this.last[p]) / this.evictions));
    return fate === PART ? Math.min(SHADES - 1, Math.floor(SHADES * this.share(p, count))) : 0;
  }

  part(p) { return p < this.prompt ? "prompt" : p < this.thoughtEnd ? "thought" : "answer"; }

  // The score of token p at the newest eviction, among the first `count`, that saw it and is recorded: {event, exact,
  // value (Infinity: protected), rank among the `of` that could go}. Null: no eviction has seen it; undefined: none of
  // those that did is recorded. Over several heads the value is their mean, without a rank.
  score(p, count) {
    if (!this.scores) return undefined;
    const newest = Math.min(count - 1, this.last[p]);
    if (newest < 0 || this.positions[newest] < p) return null;
    const index = below(this.scores.events, newest + 1) - 1;
    const event = this.scores.events[index];
    if (index < 0 || this.positions[event] < p) return undefined;
    const rows = this.scores.mean ? [0] : this.sets.filter((set) => this.gone[set * this.n + p] >= event);
    const found = rows.map((row) => this.ranked(row, index, p));
    const value = found.reduce((sum, one) => sum + one.value, 0) / found.length;
    const { rank, of } = found.length === 1 ? found[0] : {};
    return { event, exact: event === newest, value, rank, of, mean: found.length > 1 || this.scores.mean };
  }

  // Token p in one row of a snapshot of scores: {value, rank, of}.
  ranked(row, index, p) {
    const { events, sizes, starts, mean, values } = this.scores;
    const gone = mean ? this.everywhere : this.gone.subarray(row * this.n, (row + 1) * this.n);
    let at = starts[index] + row * sizes[index];
    const all = values.subarray(at, at + sizes[index]);
    for (let q = 0; q < p; q++) if (gone[q] >= events[index]) at++;  // a row holds what was there, in order
    const value = values[at];
    const free = all.filter((score) => score !== Infinity);
    return { value, of: free.length, rank: 1 + free.filter((score) => score > value).length };
  }
}

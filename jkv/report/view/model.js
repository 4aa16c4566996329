// A run's data, and what the page computes from it: the fate of each token over time. Nothing here touches the document.
// Fates are defined in fate.py; a set is the keep set of one layer and KV head (or of all of them).

const FATES = ["later", "kept", "window", "sink", "pinned", "part", "gone"];
const [LATER, KEPT, WINDOW, SINK, PINNED, PART, GONE] = FATES.keys();
const SHADES = 8;

// The typed array (of class Kind) that a base64 text holds.
function numbers(base64, Kind) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Kind(bytes.buffer);
}

// How many numbers of the ascending array `sorted` are below `limit`.
function below(sorted, limit) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < limit) low = middle + 1; else high = middle;
  }
  return low;
}

class Run {
  // data: what encode() in page.py returns.
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

  // Show the keep sets of one layer and KV head; null shows all layers or all heads.
  choose(layer, head) {
    this.sets = [];
    for (let l = 0; l < this.layers; l++)
      for (let k = 0; k < this.heads; k++)
        if ((layer === null || layer >= this.layers || layer === l) && (head === null || head >= this.heads || head === k))
          this.sets.push(l * this.heads + k);
    // For each token, the eviction in which the last of the sets dropped it.
    this.last = new Uint32Array(this.n);
    for (const set of this.sets)
      for (let p = 0, at = set * this.n; p < this.n; p++, at++)
        if (this.gone[at] > this.last[p]) this.last[p] = this.gone[at];
  }

  // How many evictions have happened when the token at `position` is the newest.
  count(position) { return below(this.positions, position + 1); }

  // The fraction of the sets that hold token p after `count` evictions.
  share(p, count) {
    let holding = 0;
    for (const set of this.sets) if (this.gone[set * this.n + p] >= count) holding++;
    return holding / this.sets.length;
  }

  // Slots occupied when the token at `position` is the newest, after its eviction if there was one.
  occupied(position) {
    const count = this.count(position);
    const inserted = Math.min(position, this.n - 2);  // the last token is sampled, but never put into the buffer
    return count ? this.kept[count - 1] + inserted - this.positions[count - 1] : inserted + 1;
  }

  // The fate of token p when the token at `position` is the newest and `count` evictions have happened.
  fate(p, position, count) {
    if (p > position) return LATER;
    if (this.last[p] < count) return GONE;
    if (this.sets.length > 1 && this.share(p, count) < 1) return PART;
    const rule = this.rule;
    if (rule.pin_prompt && p < this.prompt) return PINNED;
    if (p < rule.sinks) return SINK;
    return p > Math.min(position, this.n - 2) - rule.window ? WINDOW : KEPT;
  }

  // 0 to SHADES - 1: how late an evicted token was evicted, or how many heads hold a token that only some hold.
  shade(p, fate, count) {
    if (fate === GONE) return Math.min(SHADES - 1, Math.floor((SHADES * this.last[p]) / this.evictions));
    return fate === PART ? Math.min(SHADES - 1, Math.floor(SHADES * this.share(p, count))) : 0;
  }

  part(p) { return p < this.prompt ? "prompt" : p < this.thoughtEnd ? "thought" : "answer"; }

  // The newest score of token p within the first `count` evictions: {event, exact, value, rank, of, mean}.
  // event: the eviction. exact: whether it is the newest that scored p; the page may hold only every k-th eviction.
  // value: Infinity if p was protected. rank: 1 for the highest score of the `of` tokens that were not protected.
  // mean: whether the value is the mean over several heads; there is no rank then.
  // Returns null if no eviction has scored p yet, undefined if the page holds none of those that did.
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

  // The score of token p in one row (of one keep set, or the mean) of a recorded eviction: {value, rank, of}.
  ranked(row, index, p) {
    const { events, sizes, starts, mean, values } = this.scores;
    const gone = mean ? this.everywhere : this.gone.subarray(row * this.n, (row + 1) * this.n);
    let at = starts[index] + row * sizes[index];
    const all = values.subarray(at, at + sizes[index]);
    for (let q = 0; q < p; q++) if (gone[q] >= events[index]) at++;  // a row has the tokens that were in the buffer, in order
    const value = values[at];
    const free = all.filter((score) => score !== Infinity);
    return { value, of: free.length, rank: 1 + free.filter((score) => score > value).length };
  }
}

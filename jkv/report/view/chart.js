// The chart beside the text: which tokens are in the buffer over time, and how many slots they occupy.

const MARGIN = { left: 46, right: 8, top: 6, bottom: 32, gap: 20 };

class Chart {
  // limit: tokens on the time axis, the same for all runs of a page. seek: called with a position that is clicked.
  constructor(canvas, run, limit, seek) {
    Object.assign(this, { canvas, run, limit, moment: null, still: document.createElement("canvas") });
    canvas.addEventListener("click", (event) => {
      const x = (event.offsetX - MARGIN.left) / this.width;
      if (x >= 0 && x <= 1) seek(x * (this.limit - 1));
    });
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }

  // Draw everything except the line of the current moment into `still`; at() draws that line over a copy of it.
  redraw() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width) return;
    const scale = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.still]) {
      canvas.width = Math.round(box.width * scale);
      canvas.height = Math.round(box.height * scale);
    }
    this.width = box.width - MARGIN.left - MARGIN.right;
    const heights = box.height - MARGIN.top - MARGIN.bottom - MARGIN.gap;
    this.mapHeight = Math.round(heights * 0.66);
    this.lineHeight = heights - this.mapHeight;
    this.lineTop = MARGIN.top + this.mapHeight + MARGIN.gap;
    const style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue("--" + name).trim();
    const pen = this.still.getContext("2d");
    pen.scale(scale, scale);
    this.drawMap(pen, scale);
    this.drawOccupancy(pen);
    this.drawAxes(pen, box);
    this.at(this.moment);
  }

  // Pixels from the left at which a position is drawn.
  x(position) { return MARGIN.left + (this.width * position) / Math.max(1, this.limit - 1); }

  // An image of the fraction of each band of neighbouring tokens that is in the buffer. Tokens run down, time runs right.
  drawMap(pen, scale) {
    const { run } = this, n = run.n;
    const columns = Math.max(1, Math.min(Math.round(this.width * scale), this.limit));
    const bands = Math.max(1, Math.min(Math.round(this.mapHeight * scale), n));
    const column = (position) => Math.min(columns - 1, Math.floor((position * columns) / this.limit));
    const band = (p) => Math.min(bands - 1, Math.floor((p * bands) / n));
    const change = new Float32Array(bands * columns), size = new Float32Array(bands), first = new Float32Array(bands * columns);
    const part = 1 / run.sets.length;
    for (let p = 0; p < n; p++) {
      const row = band(p) * columns;
      size[band(p)]++;
      // A prompt enters the buffer at once or in chunks; here each of its tokens enters at its own position.
      change[row + column(p)]++;
      first[row + column(p)]++;
      for (const set of run.sets) {
        const gone = run.gone[set * n + p];
        if (gone < run.evictions) change[row + column(run.positions[gone])] -= part;
      }
    }
    const image = pen.createImageData(columns, bands);
    const paint = (name) => this.rgb(pen, this.colour(name));
    const colours = { kept: paint("kept"), window: paint("window"), sink: paint("sink"), pinned: paint("pinned"), gone: paint("gone-3") };
    const { rule } = run;
    for (let b = 0; b < bands; b++) {
      const start = (b * n) / bands;
      const fixed = rule.pin_prompt && start < run.prompt ? colours.pinned : start < rule.sinks ? colours.sink : null;
      let held = 0, written = 0;
      for (let c = 0; c < columns; c++) {
        held += change[b * columns + c];
        written += first[b * columns + c];
        if (!written || c > column(n - 1)) continue;
        const now = ((c + 1) * this.limit) / columns - 1;
        const full = fixed || (start > now - rule.window ? colours.window : colours.kept);
        const share = Math.max(0, Math.min(1, held / written));
        for (let i = 0; i < 3; i++) image.data[(b * columns + c) * 4 + i] = share * full[i] + (1 - share) * colours.gone[i];
        image.data[(b * columns + c) * 4 + 3] = 255;
      }
    }
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = bands;
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, MARGIN.left, MARGIN.top, this.width, this.mapHeight);
  }

  // [red, green, blue], 0 to 255. Assigned to fillStyle, any CSS colour reads back as #rrggbb.
  rgb(pen, colour) {
    pen.fillStyle = colour;
    return [1, 3, 5].map((i) => parseInt(pen.fillStyle.slice(i, i + 2), 16));
  }

  // Pixels from the top at which so many slots are drawn.
  y(slots) { return this.lineTop + this.lineHeight * (1 - slots / (this.top * 1.08)); }

  drawOccupancy(pen) {
    const { run } = this;
    this.top = Math.max(run.rule.budget || 0, ...(run.evictions ? [run.occupied(run.positions[0] - 1) + 1] : [run.n - 1]), 1);
    pen.strokeStyle = this.colour("accent");
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.moveTo(this.x(0), this.y(1));
    run.positions.forEach((position, event) => {
      const before = run.occupied(position - 1) + 1;
      pen.lineTo(this.x(position), this.y(before));
      pen.lineTo(this.x(position), this.y(run.kept[event]));
    });
    pen.lineTo(this.x(Math.max(0, run.n - 2)), this.y(run.occupied(run.n - 1)));
    pen.stroke();
    if (run.rule.budget) {
      pen.setLineDash([4, 3]);
      pen.strokeStyle = this.colour("quiet");
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(MARGIN.left, this.y(run.rule.budget));
      pen.lineTo(MARGIN.left + this.width, this.y(run.rule.budget));
      pen.stroke();
      pen.setLineDash([]);
    }
  }

  drawAxes(pen, box) {
    const { run } = this;
    const grouped = (x) => x.toLocaleString("en");
    pen.fillStyle = this.colour("quiet");
    pen.strokeStyle = this.colour("line");
    pen.font = "11px system-ui, sans-serif";
    for (const [top, height] of [[MARGIN.top, this.mapHeight], [this.lineTop, this.lineHeight]]) pen.strokeRect(MARGIN.left, top, this.width, height);
    const label = (text, x, y, align, turned) => {
      pen.save();
      pen.translate(x, y);
      if (turned) pen.rotate(-Math.PI / 2);
      pen.textAlign = align;
      pen.fillText(text, 0, 0);
      pen.restore();
    };
    label("token", 12, MARGIN.top + this.mapHeight / 2, "center", true);
    label("0", MARGIN.left - 4, MARGIN.top + 9, "right");
    label(grouped(run.n - 1), MARGIN.left - 4, MARGIN.top + this.mapHeight, "right");
    label("slots", 12, this.lineTop + this.lineHeight / 2, "center", true);
    label(grouped(this.top), MARGIN.left - 4, this.y(this.top) + 4, "right");
    label("0", MARGIN.left - 4, this.lineTop + this.lineHeight, "right");
    if (run.rule.budget) label("budget", MARGIN.left + 5, this.y(run.rule.budget) + 13, "left");
    for (const part of [0, 0.5, 1]) {
      const position = Math.round(part * (this.limit - 1));
      label(grouped(position), this.x(position), box.height - 19, part === 0 ? "left" : part === 1 ? "right" : "center");
    }
    label("tokens written", MARGIN.left + this.width / 2, box.height - 5, "center");
  }

  // Show the line of the current moment.
  at(position) {
    this.moment = position;
    if (position === null || !this.width) return;
    const pen = this.canvas.getContext("2d");
    const scale = window.devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.still, 0, 0);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.strokeStyle = this.colour("ink");
    pen.lineWidth = 1.5;
    const x = this.x(Math.min(position, this.limit - 1));
    pen.beginPath();
    pen.moveTo(x, MARGIN.top - 4);
    pen.lineTo(x, this.lineTop + this.lineHeight + 4);
    pen.stroke();
  }
}

// The page's data, D:
//   queries, keys, heads: numbers; shared: whether queries and keys are the same tokens
//   shown: heads that differ, {head, label}; batches: entries of the inputs at hand
//   sides: q and k, lists of segments {name, offset, tokens, axes: [[name, extent], ...]}
//   tables: arrays that the pattern reads
//   overview: kinds of blocks of tokens as they lie; layouts: kinds of tiles
// KEEP[i][j](head, batch, c) says whether a query of segment i sees a key of segment j.

const D = JSON.parse(document.getElementById("data").textContent);
const EMPTY = 0, FULL = 2;
const by = (id) => document.getElementById(id);
const text = (n) => n.toLocaleString("en-US");

// What patterns compute with. Places without a value give 0 or false.
const finite = (x) => (Number.isFinite(x) ? x : 0);
const floorDiv = (a, b) => (b === 0 ? 0 : Math.floor(a / b));
const floorMod = (a, b) => (b === 0 ? 0 : a - b * Math.floor(a / b));
const rounded = (to, x) => (x >= -(2 ** 63) && x < 2 ** 63 ? to(x) : 0);
function intPow(a, b) {
  let found = 1;
  if (b < 0) return 0;
  for (; b > 0; b = Math.floor(b / 2), a *= a) if (b % 2 === 1) found *= a;
  return found;
}
function bitLength(x) {
  x = Math.abs(x);
  const high = Math.floor(x / 2 ** 32);
  return high ? 64 - Math.clz32(high) : 32 - Math.clz32(x >>> 0);
}
function bitCount(x) {
  let found = 0;
  for (x = Math.abs(x); x > 0; x = Math.floor(x / 2)) found += x % 2;
  return found;
}
function uniform(seed, i, j) {
  const mix = (x) => {
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return (x ^ (x >>> 16)) >>> 0;
  };
  const fold = (v) => ((v >>> 0) ^ Math.imul(Math.floor(v / 2 ** 32) >>> 0, 0x9e3779b9)) >>> 0;
  const h = mix(mix(mix((fold(seed) + 0x9e3779b9) >>> 0) ^ fold(i)) ^ fold(j));
  return (h >>> 8) * 2 ** -24;
}
function read(table, at) {
  let place = 0;
  for (let d = 0; d < at.length; d++) {
    if (!(at[d] >= 0 && at[d] < table.shape[d])) return table.truth ? false : 0;
    place = place * table.shape[d] + at[d];
  }
  return table.truth ? table.data[place] !== 0 : table.data[place];
}
function bytes(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}
const T = D.tables.map((t) => {
  const kinds = { int8: Int8Array, int32: Int32Array, float64: Float64Array };
  return { ...t, data: new kinds[t.type](bytes(t.bytes).buffer) };
});
function kinds(packed) {
  const found = bytes(packed);
  return (i) => (found[i >> 2] >> (2 * (i & 3))) & 3;
}

// Tokens and their coordinates.
for (const side of ["q", "k"]) {
  for (const s of D.sides[side]) s.names = s.axes.map((a) => side + "_" + a[0]);
}
function segmentOf(side, token) {
  const all = D.sides[side];
  let i = 0;
  while (i + 1 < all.length && token >= all[i + 1].offset) i++;
  return i;
}
function place(c, segment, token) {
  let rest = token - segment.offset;
  for (let i = segment.axes.length - 1; i >= 0; i--) {
    const extent = segment.axes[i][1];
    const up = Math.floor(rest / extent);
    c[segment.names[i]] = rest - up * extent;
    rest = up;
  }
}
function blank() {
  const c = {};
  for (const side of ["q", "k"]) for (const s of D.sides[side]) for (const n of s.names) c[n] = 0;
  return c;
}
function named(side, token) {
  const segment = D.sides[side][segmentOf(side, token)], c = blank();
  place(c, segment, token);
  const inside = segment.axes.map((a, i) => a[0] + " = " + c[segment.names[i]]).join(", ");
  return (segment.name ? segment.name + ": " : "") + inside;
}
function sees(head, batch, query, key) {
  const i = segmentOf("q", query), j = segmentOf("k", key), c = blank();
  place(c, D.sides.q[i], query);
  place(c, D.sides.k[j], key);
  return KEEP[i][j](head, batch, c);
}
/** Which keys a query sees: Uint8Array(keys). */
function keysOf(head, batch, query) {
  const found = new Uint8Array(D.keys), c = blank(), i = segmentOf("q", query);
  place(c, D.sides.q[i], query);
  D.sides.k.forEach((s, j) => {
    const keep = KEEP[i][j], extents = s.axes.map((a) => a[1]), last = extents.length - 1;
    for (const n of s.names) c[n] = 0;
    for (let at = 0; at < s.tokens; at++) {
      if (keep(head, batch, c)) found[s.offset + at] = 1;
      for (let a = last; a >= 0 && ++c[s.names[a]] === extents[a]; a--) c[s.names[a]] = a ? 0 : extents[0] - 1;
    }
  });
  return found;
}

// Colours, as the page's style says; paper is always light.
const LIGHT = { kept: "#2a6f97", partial: "#fbe0c1", some: "#f2a65a", empty: "#ececea", self: "#c1121f", paper: "#ffffff" };
let palette = LIGHT;
function takeColours(onPaper) {
  const style = getComputedStyle(document.documentElement);
  palette = {};
  for (const n in LIGHT) palette[n] = onPaper ? LIGHT[n] : style.getPropertyValue("--" + n).trim() || LIGHT[n];
}
function rgb(colour) {
  const n = parseInt(colour.slice(1), 16);
  return [n >> 16, (n >> 8) & 255, n & 255];
}
const mixed = (a, b, part) => a.map((x, i) => Math.round(x + (b[i] - x) * part));

// The picture of all pairs.
const state = { head: 0, batch: 0, query: 0, view: { x: 0, y: 0, w: D.keys, h: D.queries } };
const overview = D.overview && { ...D.overview, kinds: D.overview.kinds.map(kinds) };
let headNumber = 0; // of D.shown

function blockKind(query, key) {
  if (!overview) return 1;
  const row = Math.floor((Math.floor(query / overview.block) * overview.rows) / overview.tiles[0]);
  const column = Math.floor((Math.floor(key / overview.block) * overview.columns) / overview.tiles[1]);
  return overview.kinds[headNumber](row * overview.columns + column);
}
function drawPairs() {
  const canvas = by("pairs"), size = canvas.width, v = state.view;
  const paint = canvas.getContext("2d"), image = paint.createImageData(size, size), out = image.data;
  const kept = rgb(palette.kept), partial = rgb(palette.partial), empty = rgb(palette.empty), some = rgb(palette.some);
  const steps = KEEP === null ? 0 : Math.max(v.w, v.h) / size > 1 ? 2 : 1;
  const n = Math.max(steps, 1);
  const sample = (start, span, many) =>
    Array.from({ length: size * n }, (_, i) => Math.min(many - 1, Math.max(0, Math.floor(start + (span * (i + 0.5)) / (size * n)))));
  const qs = sample(v.y, v.h, D.queries), ks = sample(v.x, v.w, D.keys);
  const c = blank(), shades = [];
  for (let i = 0; i <= n * n; i++) shades.push(mixed(partial, kept, i / (n * n)));
  const keySegments = ks.map((k) => segmentOf("k", k));
  const coordinates = ks.map((k, i) => { const one = {}; place(one, D.sides.k[keySegments[i]], k); return one; });
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const kind = blockKind(qs[y * n], ks[x * n]);
      let colour = kind === EMPTY ? empty : kind === FULL ? kept : some;
      if (steps && kind !== EMPTY && kind !== FULL) {
        let count = 0;
        for (let a = 0; a < n; a++) {
          const i = segmentOf("q", qs[y * n + a]);
          place(c, D.sides.q[i], qs[y * n + a]);
          for (let b = 0; b < n; b++) {
            const at = x * n + b, j = keySegments[at];
            Object.assign(c, coordinates[at]);
            count += KEEP[i][j](state.head, state.batch, c) ? 1 : 0;
          }
        }
        colour = shades[count];
      }
      const o = 4 * (y * size + x);
      out[o] = colour[0]; out[o + 1] = colour[1]; out[o + 2] = colour[2]; out[o + 3] = 255;
    }
  }
  paint.putImageData(image, 0, 0);
  const row = ((state.query + 0.5 - v.y) / v.h) * size;
  if (row >= 0 && row <= size) {
    paint.fillStyle = palette.self;
    paint.globalAlpha = 0.8;
    paint.fillRect(0, Math.round(row - 0.75), size, 1.5);
    paint.globalAlpha = 1;
  }
  describeView();
}
function describeView(hover) {
  const v = state.view, size = by("pairs").width;
  const range = (low, span, many) => text(Math.max(0, Math.floor(low))) + "–" + text(Math.min(many, Math.ceil(low + span)) - 1);
  let line = "Queries " + range(v.y, v.h, D.queries) + ", keys " + range(v.x, v.w, D.keys) + ". ";
  const per = Math.max(v.w, v.h) / size;
  if (KEEP === null) line += "A dot shows its block's kind.";
  else line += per > 1 ? "In partial blocks a dot samples 4 of about " + text(Math.round((v.w * v.h) / size ** 2)) + " pairs; zoom in for single ones." : "Every pair is exact.";
  by("where").textContent = hover || line;
}
function zoom(factor, x = 0.5, y = 0.5) {
  const v = state.view;
  const least = 12;
  const w = Math.min(D.keys, Math.max(Math.min(least, D.keys), v.w * factor));
  const h = Math.min(D.queries, Math.max(Math.min(least, D.queries), v.h * factor));
  setView(v.x + (v.w - w) * x, v.y + (v.h - h) * y, w, h);
}
let pending = 0;
function setView(x, y, w, h) {
  const inside = (low, span, many) => Math.min(Math.max(0, low), many - span);
  state.view = { x: inside(x, w, D.keys), y: inside(y, h, D.queries), w, h };
  later(drawPairs);
}
function later(draw) {
  if (!pending) pending = requestAnimationFrame(() => { pending = 0; draw(); });
}

// The keys of one query, on the grid of each segment.
function drawKeys() {
  const sheets = by("sheets");
  sheets.textContent = "";
  by("query").value = state.query;
  showCoordinates();
  if (KEEP === null) {
    by("seen").textContent = "The keys of single queries are not shown.";
    return;
  }
  const found = keysOf(state.head, state.batch, state.query);
  let count = 0;
  for (const x of found) count += x;
  by("seen").textContent = "Query " + text(state.query) + " (" + named("q", state.query) + ") sees " + text(count) + " of " + text(D.keys) + " keys" + ranges(found, count);
  for (const s of D.sides.k) {
    const { canvas, caption } = sheet(s, found);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "The keys that the query sees" + (s.name ? " in " + s.name : ""));
    const p = document.createElement("p");
    p.className = "small";
    p.textContent = (s.name ? s.name + ": " : "") + caption;
    sheets.append(canvas, p);
  }
}
function ranges(found, count) {
  const runs = [];
  for (let i = 0; i < found.length && runs.length < 6; i++) {
    if (!found[i]) continue;
    let end = i;
    while (end + 1 < found.length && found[end + 1]) end++;
    runs.push(end > i ? text(i) + "–" + text(end) : text(i));
    i = end;
  }
  if (!count) return ".";
  return ": " + runs.slice(0, 5).join(", ") + (runs.length > 5 ? ", …" : ".");
}
function sheet(segment, found) {
  const extents = segment.axes.map((a) => a[1]), names = segment.axes.map((a) => a[0]);
  let height, width, panels = 1, caption;
  if (extents.length === 1) {
    width = Math.ceil(Math.sqrt(extents[0]));
    if (extents[0] <= 64) width = extents[0];
    height = Math.ceil(extents[0] / width);
    caption = height > 1 ? names[0] + ", wrapped every " + text(width) : names[0] + " across";
  } else {
    [height, width] = extents.slice(-2);
    panels = extents.slice(0, -2).reduce((a, b) => a * b, 1);
    caption = names[names.length - 2] + " down, " + names[names.length - 1] + " across";
    if (panels > 1) caption += ", a panel for each " + names.slice(0, -2).join(", ");
  }
  let columns = Math.min(panels, Math.max(1, Math.round(Math.sqrt((panels * height) / width))));
  const rows = Math.ceil(panels / columns);
  columns = Math.ceil(panels / rows);
  const w = columns * width, h = rows * height;
  const fits = (n) => Math.max(1, Math.min(16, Math.floor(520 / n)));
  const scale = Math.min(fits(w), fits(h)), wide = w > 4 * h, high = h > 4 * w;
  const across = high ? Math.min(fits(w), Math.ceil((h * scale) / (4 * w))) : scale;
  const down = wide ? Math.min(24, Math.ceil((w * scale) / (4 * h))) : scale;
  const small = document.createElement("canvas");
  small.width = w; small.height = h;
  const paint = small.getContext("2d"), image = paint.createImageData(w, h), out = image.data;
  const colours = [rgb(palette.empty), rgb(palette.kept)], per = height * width;
  const spot = (at) => {
    const panel = Math.floor(at / per), inner = at - panel * per;
    return [panel % columns, Math.floor(panel / columns), inner % width, Math.floor(inner / width)];
  };
  for (let at = 0; at < segment.tokens; at++) {
    const [column, row, x, y] = spot(at), o = 4 * ((row * height + y) * w + column * width + x);
    out.set(colours[found[segment.offset + at]], o);
    out[o + 3] = 255;
  }
  paint.putImageData(image, 0, 0);
  // panels apart, and the query large enough to be found
  const canvas = document.createElement("canvas"), gap = panels > 1 ? Math.min(6, across + 1) : 0;
  const broad = width * across, tall = height * down;
  canvas.width = columns * (broad + gap) - gap;
  canvas.height = rows * (tall + gap) - gap;
  canvas.style.width = "min(100%, " + Math.max(canvas.width, Math.min(520, 2 * canvas.width)) + "px)";
  const big = canvas.getContext("2d");
  big.imageSmoothingEnabled = false;
  for (let p = 0; p < panels; p++) {
    const column = p % columns, row = Math.floor(p / columns);
    big.drawImage(small, column * width, row * height, width, height, column * (broad + gap), row * (tall + gap), broad, tall);
  }
  const own = state.query - segment.offset;
  if (D.shared && own >= 0 && own < segment.tokens) {
    const [column, row, x, y] = spot(own), least = Math.max(5, canvas.width / 100), side = [Math.max(across, least), Math.max(down, least)];
    const left = column * (broad + gap) + (x + 0.5) * across, top = row * (tall + gap) + (y + 0.5) * down;
    big.fillStyle = palette.self;
    big.fillRect(Math.round(left - side[0] / 2), Math.round(top - side[1] / 2), ...side);
  }
  return { canvas, caption };
}
function showCoordinates() {
  const box = by("coordinates"), i = segmentOf("q", state.query), s = D.sides.q[i], c = blank();
  place(c, s, state.query);
  if (s.axes.length < 2 && D.sides.q.length < 2) return;
  if (box.dataset.segment !== String(i)) {
    box.dataset.segment = String(i);
    box.textContent = s.name ? s.name + " " : "";
    s.axes.forEach((a, d) => {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "number", min: 0, max: a[1] - 1, step: 1 });
      input.addEventListener("change", () => {
        const at = [...box.querySelectorAll("input")].map((x, n) => clamp(Number(x.value), s.axes[n][1]));
        take(s.offset + at.reduce((sum, x, n) => sum * s.axes[n][1] + x, 0));
      });
      label.append(a[0] + " ", input);
      box.append(label, " ");
    });
  }
  [...box.querySelectorAll("input")].forEach((x, d) => { x.value = c[s.names[d]]; });
}
const clamp = (x, many) => Math.min(many - 1, Math.max(0, Math.floor(Number.isFinite(x) ? x : 0)));
function take(query) {
  state.query = clamp(query, D.queries);
  drawKeys();
  later(drawPairs);
}

// Tiles under several layouts.
function drawLayouts() {
  const box = by("layouts");
  box.textContent = "";
  for (const l of D.layouts) {
    const one = document.createElement("div"), title = document.createElement("h3"), p = document.createElement("p");
    title.textContent = l.label;
    one.append(title);
    if (l.failed) {
      p.textContent = l.failed;
    } else {
      const canvas = document.createElement("canvas"), kind = kinds(l.kinds[headNumber]);
      canvas.width = l.columns; canvas.height = l.rows;
      const paint = canvas.getContext("2d"), image = paint.createImageData(l.columns, l.rows);
      const colours = [rgb(palette.empty), rgb(palette.some), rgb(palette.kept)];
      for (let i = 0; i < l.rows * l.columns; i++) { image.data.set(colours[kind(i)], 4 * i); image.data[4 * i + 3] = 255; }
      paint.putImageData(image, 0, 0);
      const counts = text(l.full) + " full, " + text(l.partial) + " partial, " + text(l.empty) + " empty";
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", l.label + ": " + counts);
      const share = (100 * l.visited).toPrecision(3) + " % visited";
      p.textContent = text(l.tiles[0]) + " of " + l.q + " by " + text(l.tiles[1]) + " of " + l.k + ". " + counts + "; " + share + ".";
      one.append(canvas);
    }
    one.append(p);
    box.append(one);
  }
}

// What the reader does.
function redraw() { drawPairs(); drawKeys(); drawLayouts(); }
function tokenAt(event) {
  const canvas = by("pairs"), box = canvas.getBoundingClientRect(), v = state.view;
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  return { x, y, key: clamp(v.x + x * v.w, D.keys), query: clamp(v.y + y * v.h, D.queries) };
}
function listen() {
  const canvas = by("pairs"), held = new Map();
  let moved = 0, apart = 0;
  canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    const at = tokenAt(e);
    zoom(e.deltaY > 0 ? 1.25 : 0.8, at.x, at.y);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (e) => {
    canvas.setPointerCapture(e.pointerId);
    held.set(e.pointerId, e);
    if (held.size === 1) moved = 0;
    apart = spread(held);
  });
  canvas.addEventListener("pointermove", (e) => {
    const before = held.get(e.pointerId);
    if (!before) {
      const at = tokenAt(e);
      const kept = KEEP === null ? "" : sees(state.head, state.batch, at.query, at.key) ? ": kept" : ": not kept";
      describeView("Query " + text(at.query) + " (" + named("q", at.query) + "), key " + text(at.key) + " (" + named("k", at.key) + ")" + kept);
      return;
    }
    held.set(e.pointerId, e);
    if (held.size === 2) {
      const now = spread(held), at = tokenAt(e);
      moved = 99;
      if (apart && now) zoom(apart / now, at.x, at.y);
      apart = now;
      return;
    }
    const box = canvas.getBoundingClientRect(), v = state.view;
    const dx = e.clientX - before.clientX, dy = e.clientY - before.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    if (moved > 4) setView(v.x - (dx / box.width) * v.w, v.y - (dy / box.height) * v.h, v.w, v.h);
  });
  const letGo = (e) => {
    if (held.delete(e.pointerId) && !held.size && moved <= 4 && e.type === "pointerup") take(tokenAt(e).query);
    apart = spread(held);
  };
  canvas.addEventListener("pointerup", letGo);
  canvas.addEventListener("pointercancel", letGo);
  canvas.addEventListener("pointerleave", () => describeView());
  canvas.addEventListener("keydown", (e) => {
    const v = state.view, step = 0.15;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[e.key]) setView(v.x + moves[e.key][0] * v.w, v.y + moves[e.key][1] * v.h, v.w, v.h);
    else if (e.key === "+" || e.key === "=") zoom(0.8);
    else if (e.key === "-") zoom(1.25);
    else if (e.key === "0") setView(0, 0, D.keys, D.queries);
    else if (e.key === "Enter" || e.key === " ") take(v.y + v.h / 2);
    else return;
    e.preventDefault();
  });
  by("zoom-in").addEventListener("click", () => zoom(0.5));
  by("zoom-out").addEventListener("click", () => zoom(2));
  by("zoom-all").addEventListener("click", () => setView(0, 0, D.keys, D.queries));
  by("query").addEventListener("change", (e) => take(Number(e.target.value)));
  by("head").addEventListener("change", (e) => {
    headNumber = Number(e.target.value);
    state.head = D.shown[headNumber].head;
    redraw();
  });
  by("batch").addEventListener("change", (e) => { state.batch = Number(e.target.value); redraw(); });
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => { takeColours(false); redraw(); });
  window.addEventListener("beforeprint", () => { takeColours(true); redraw(); });
  window.addEventListener("afterprint", () => { takeColours(false); redraw(); });
}
function spread(held) {
  if (held.size !== 2) return 0;
  const [a, b] = [...held.values()];
  return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
}
function options(select, label, texts) {
  texts.forEach((t, i) => select.append(new Option(t, i)));
  label.hidden = texts.length < 2;
}
function start() {
  const first = D.sides.q[0];
  state.query = first.offset + first.axes.reduce((sum, a) => sum * a[1] + Math.floor(a[1] / 2), 0);
  state.head = D.shown[0].head;
  options(by("head"), by("heads-label"), D.shown.map((s) => s.label));
  options(by("batch"), by("batch-label"), Array.from({ length: D.batches }, (_, i) => String(i)));
  takeColours(false);
  listen();
  redraw();
}

/* Panes: canvases that draw what is in sight, and move together. */
const paint = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "line", "accent", "node", "node-line", "edge", "end", "card", "s0", "s1", "focus"]) {
    paint[name] = style.getPropertyValue(`--${name}`).trim();
  }
  for (const status of ["added", "removed", "changed", "fused", "replaced"]) {
    paint[status] = style.getPropertyValue(`--${status}`).trim();
    paint[`${status}-fill`] = style.getPropertyValue(`--${status}-fill`).trim();
  }
  paint.same = paint["node-line"];
  paint["same-fill"] = paint.node;
}

const panes = [...document.querySelectorAll(".pane canvas")].map((canvas) => ({
  canvas, figure: canvas.parentElement, side: Number(canvas.dataset.side), context: canvas.getContext("2d"), w: 1, h: 1,
}));
const map = document.getElementById("map");
const shown = () => panes.filter((pane) => pane.side & state.sides);

const FONT = "600 13px system-ui, sans-serif", SMALL = "11px system-ui, sans-serif";
const cut = new Map();
function fitted(context, text, room) {
  /* `text`, shortened in the middle to `room` pixels of the font that is set. */
  const key = `${room}|${context.font}|${text}`;
  let found = cut.get(key);
  if (found === undefined) {
    found = text;
    if (context.measureText(text).width > room) {
      let low = 1, high = Math.min(text.length, 200);
      while (low < high) {
        const keep = Math.ceil((low + high) / 2), head = Math.ceil(keep * 0.4);
        const one = `${text.slice(0, head)}…${text.slice(text.length - (keep - head))}`;
        if (context.measureText(one).width <= room) low = keep; else high = keep - 1;
      }
      const head = Math.ceil(low * 0.4);
      found = `${text.slice(0, head)}…${text.slice(text.length - (low - head))}`;
    }
    if (cut.size > 60000) cut.clear();
    cut.set(key, found);
  }
  return found;
}

function size(canvas, width, height) {
  /* Setting a size clears the canvas, so only where it is another one. */
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}
function resize() {
  const ratio = window.devicePixelRatio || 1;
  for (const pane of panes) pane.figure.hidden = !(pane.side & state.sides);
  document.getElementById("panes").classList.toggle("one", shown().length === 1);
  for (const pane of shown()) {
    pane.w = Math.max(1, pane.canvas.clientWidth);
    pane.h = Math.max(1, pane.canvas.clientHeight);
    size(pane.canvas, Math.round(pane.w * ratio), Math.round(pane.h * ratio));
    pane.ratio = ratio;
  }
  size(map, Math.round(map.clientWidth * ratio), Math.round(map.clientHeight * ratio));
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(drawNow);
}
function drawNow() {
  waiting = false;
  for (const pane of shown()) draw(pane);
  drawMap();
}

function nameOf(box, side) {
  if (box.block >= 0) return DATA.blocks[box.block][0];
  const item = DATA.items[box.items[0]];
  return side === 1 && item.b ? item.b : item.n;
}
function opOf(box, side) {
  if (box.block >= 0) {
    const members = box.items.filter((number) => DATA.items[number].m & side);
    const changes = members.filter((number) => DATA.items[number].s !== "same").length;
    return `▸ ${members.length} nodes${changes ? `, ${changes} changed` : ""}`;
  }
  const item = DATA.items[box.items[0]];
  return side === 1 && item.p ? item.p : item.o;
}
function measured(box) {
  const measure = MEASURES[state.colour];
  if (!measure) return undefined;
  const values = box.items.map((number) => measure.value(DATA.items[number])).filter((v) => v !== undefined);
  if (!values.length) return undefined;
  if (state.colour !== "time") return state.colour === "error" || state.colour === "own" ? Math.max(...values) : values.reduce((a, b) => a + b);
  const layers = new Set(box.items.map((number) => DATA.items[number].l).filter((l) => l !== undefined));
  return [...layers].reduce((sum, layer) => sum + DATA.layers[layer][1], 0);
}

function draw(pane) {
  const { context: c, w, h, side } = pane, { x, y, k } = state.view;
  c.setTransform(pane.ratio, 0, 0, pane.ratio, 0, 0);
  c.clearRect(0, 0, w, h);
  c.setTransform(pane.ratio * k, 0, 0, pane.ratio * k, pane.ratio * (w / 2 - x * k), pane.ratio * (h / 2 - y * k));
  const left = x - w / 2 / k, right = x + w / 2 / k, top = y - h / 2 / k, bottom = y + h / 2 / k;
  const first = Math.max(0, Math.floor((top - BOX.h) / BOX.rowH)), last = Math.min(scene.rows.length - 1, Math.ceil((bottom + BOX.h) / BOX.rowH));
  drawEdges(c, side, k, left, right, top, bottom, first, last);
  if (k < FAR) { drawFar(c, side, k, first, last, left, right, pane.canvas); return; }
  const near = k > 0.3, texts = k > 0.16;
  let drawn = 0;
  for (let line = first; line <= last; line += 1) {
    for (const number of scene.rows[line]) {
      const box = scene.boxes[number];
      if (!(box.sides & side) || box.x + BOX.w / 2 < left || box.x - BOX.w / 2 > right) continue;
      drawBox(c, box, side, k, near, texts);
      drawn += 1;
    }
  }
  pane.canvas.dataset.drawn = drawn;
}

const FAR = 0.12;
function drawFar(c, side, k, first, last, left, right, canvas) {
  /* Too small for words: one path a colour, and rows that fall on the same pixels drawn once. */
  const measure = MEASURES[state.colour], paths = new Map(), marks = [];
  const tall = Math.max(BOX.h, 1.5 / k), wide = Math.max(BOX.w, 2 / k), shade = (box) => {
    if (!measure) return box.status;
    const value = measured(box);
    return value === undefined ? "same" : Math.ceil(6 * Math.sqrt(Math.min(1, value / (measure.most || 1))));
  };
  let drawn = 0;
  for (let line = first; line <= last; line += 1) {
    for (const number of scene.rows[line]) {
      const box = scene.boxes[number];
      if (!(box.sides & side) || box.x + wide / 2 < left || box.x - wide / 2 > right) continue;
      const key = shade(box);
      if (!paths.has(key)) paths.set(key, { path: new Path2D(), seen: new Set() });
      const { path, seen } = paths.get(key), pixel = Math.round(box.y * k) * 65536 + Math.round(box.x * k);
      if (box.items.some((n) => n === state.chosen || state.hits.has(n))) marks.push(box);
      if (seen.has(pixel)) continue;
      seen.add(pixel);
      path.rect(box.x - wide / 2, box.y - tall / 2, wide, tall);
      drawn += 1;
    }
  }
  const order = [...paths.keys()].sort((a, b) => (a === "same" ? -1 : b === "same" ? 1 : a < b ? -1 : 1));
  for (const key of order) {
    c.globalAlpha = typeof key === "number" ? 0.1 + key * 0.15 : 1;
    c.fillStyle = typeof key === "number" ? paint.s1 : paint[key];
    c.fill(paths.get(key).path);
  }
  c.globalAlpha = 1;
  c.fillStyle = paint.focus;
  for (const box of marks) c.fillRect(box.x - wide, box.y - tall, wide * 2, tall * 2);
  canvas.dataset.drawn = drawn;
}

function drawBox(c, box, side, k, near, texts) {
  const bx = box.x - BOX.w / 2, by = box.y - BOX.h / 2, end = box.block < 0 && (DATA.items[box.items[0]].o === "input" || DATA.items[box.items[0]].o === "output");
  const measure = MEASURES[state.colour], value = measured(box);
  const status = measure ? "same" : box.status;
  c.fillStyle = end && status === "same" ? paint.end : paint[`${status}-fill`];
  c.strokeStyle = paint[status];
  c.lineWidth = Math.max(status === "same" ? 1 : 1.6, 0.8 / k);
  c.beginPath();
  if (near) c.roundRect(bx, by, BOX.w, BOX.h, end ? 20 : box.block >= 0 ? 2 : 7); else c.rect(bx, by, BOX.w, BOX.h);
  c.fill();
  if (measure && value !== undefined) {
    c.globalAlpha = 0.08 + 0.85 * Math.sqrt(value / (measure.most || 1) > 1 ? 1 : value / (measure.most || 1));
    c.fillStyle = paint.s1;
    c.fill();
    c.globalAlpha = 1;
  }
  c.stroke();
  if (box.block >= 0 && near) c.strokeRect(bx + 3, by + 3, BOX.w - 6, BOX.h - 6);
  const chosen = box.items.includes(state.chosen);
  const mark = chosen ? paint.focus : box.items.some((n) => state.hits.has(n)) ? paint.s1 : box.items.some((n) => state.also.has(n)) ? paint.accent : "";
  if (mark) {
    c.strokeStyle = mark;
    c.lineWidth = Math.max(chosen ? 4 : 3, (chosen ? 2.5 : 2) / k);
    c.strokeRect(bx - 4, by - 4, BOX.w + 8, BOX.h + 8);
  }
  if (!texts) return;
  c.textBaseline = "middle";
  c.fillStyle = paint.ink;
  const sign = SIGNS[box.status], note = measure && value !== undefined ? measure.text(value) : "";
  const room = BOX.w - 16 - (sign ? 16 : 0) - (note ? 62 : 0);
  c.font = FONT;
  c.textAlign = "left";
  const over = measure && value !== undefined && value / (measure.most || 1) > 0.3 ? paint.node : paint.ink;
  c.fillStyle = over;
  c.fillText(fitted(c, opOf(box, side), room), bx + 8, by + 13);
  if (sign) { c.textAlign = "right"; c.fillStyle = measure ? over : paint[box.status]; c.fillText(sign, bx + BOX.w - 8, by + 13); }
  if (near) {
    c.font = SMALL;
    c.textAlign = "right";
    c.fillStyle = over;
    if (note) c.fillText(note, bx + BOX.w - 8 - (sign ? 16 : 0), by + 13);
    c.textAlign = "left";
    c.fillStyle = over === paint.node ? over : paint.soft;
    c.fillText(fitted(c, nameOf(box, side), BOX.w - 16), bx + 8, by + 30);
  }
}

function drawEdges(c, side, k, left, right, top, bottom, first, last) {
  if (k < 0.03) return; // finer than pixels
  const curved = k > 0.2;
  c.strokeStyle = paint.edge;
  c.lineWidth = Math.max(1.2, 0.7 / k);
  const chosenBox = state.chosen >= 0 ? scene.boxOf[state.chosen] : -1, bold = [];
  const done = new Set();
  c.beginPath();
  const one = (edge) => {
    if (!(edge.sides & side)) return;
    const a = scene.boxes[edge.up], b = scene.boxes[edge.down];
    if (b.y < top || a.y > bottom) return;
    if (edge.a === chosenBox || edge.b === chosenBox) { bold.push(edge); return; }
    trace(c, edge, a, b, curved);
  };
  const low = Math.floor(first / BUCKET), high = Math.floor(Math.max(first, last) / BUCKET);
  for (let at = low; at <= high && at < scene.buckets.length; at += 1) {
    for (const edge of scene.buckets[at]) {
      if (done.has(edge)) continue;
      done.add(edge);
      one(edge);
    }
  }
  c.stroke();
  c.globalAlpha = 0.55;
  c.beginPath();
  for (const edge of scene.long) one(edge);
  c.stroke();
  c.globalAlpha = 1;
  if (bold.length) {
    c.strokeStyle = paint.focus;
    c.lineWidth = Math.max(2.4, 1.5 / k);
    c.beginPath();
    for (const edge of bold) trace(c, edge, scene.boxes[edge.up], scene.boxes[edge.down], curved);
    c.stroke();
  }
}

function trace(c, edge, a, b, curved) {
  let px = a.x, py = a.y + BOX.h / 2;
  c.moveTo(px, py);
  const to = (nx, ny) => {
    if (curved && nx !== px) c.bezierCurveTo(px, (py + ny) / 2, nx, (py + ny) / 2, nx, ny); else c.lineTo(nx, ny);
    px = nx;
    py = ny;
  };
  for (let at = 0; at < edge.points.length; at += 2) {
    to(edge.points[at], edge.points[at + 1] - BOX.h / 2);
    c.lineTo(edge.points[at], edge.points[at + 1] + BOX.h / 2);
    py = edge.points[at + 1] + BOX.h / 2;
  }
  to(b.x, b.y - BOX.h / 2);
}

const overview = { canvas: document.createElement("canvas"), of: "" };
function paintMap(scale, w, h, ratio) {
  /* A line for each row, the strongest change in it (or the largest value) giving the colour. */
  const c = overview.canvas.getContext("2d"), rank = { same: 0, changed: 1, replaced: 2, fused: 3, added: 4, removed: 5 };
  overview.canvas.width = Math.max(1, map.width);
  overview.canvas.height = Math.max(1, map.height);
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  const measure = MEASURES[state.colour];
  scene.rows.forEach((row, line) => {
    let strongest = "same", hit = false, heat = 0;
    for (const number of row) {
      const box = scene.boxes[number];
      if (rank[box.status] > rank[strongest]) strongest = box.status;
      if (box.items.some((n) => state.hits.has(n) || n === state.chosen)) hit = true;
      if (measure) heat = Math.max(heat, (measured(box) || 0) / (measure.most || 1));
    }
    const thick = Math.max(1, BOX.rowH * scale * 0.8), at = line * BOX.rowH * scale;
    if (measure) c.globalAlpha = 0.1 + 0.9 * Math.sqrt(Math.min(1, heat));
    c.fillStyle = measure ? (heat ? paint.s1 : paint.line) : strongest === "same" ? paint.line : paint[strongest];
    c.fillRect(8, at, w - 16, thick);
    c.globalAlpha = 1;
    if (hit) { c.fillStyle = paint.focus; c.fillRect(1, at, 5, Math.max(3, thick)); }
  });
}

function drawMap() {
  const c = map.getContext("2d"), ratio = window.devicePixelRatio || 1, w = map.clientWidth, h = map.clientHeight;
  const scale = Math.min(h / scene.height, 0.25);
  const of = [scene.version, state.chosen, search.value, state.colour, map.width, map.height, paint.ink].join("|");
  if (overview.of !== of) { paintMap(scale, w, h, ratio); overview.of = of; }
  c.setTransform(1, 0, 0, 1, 0, 0);
  c.clearRect(0, 0, map.width, map.height);
  c.drawImage(overview.canvas, 0, 0);
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  const pane = shown()[0];
  if (!pane) return;
  c.strokeStyle = paint.accent;
  c.lineWidth = 1.5;
  const tall = Math.max(8, (pane.h / state.view.k) * scale);
  c.strokeRect(1, (state.view.y + BOX.rowH / 2) * scale - tall / 2, w - 2, tall);
}

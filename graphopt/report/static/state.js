"use strict";
/* What is shown and where. All text of the model reaches the page through textContent or a canvas, never as markup.

   DATA.items: n name, o operator, s status, m sides (1 before, 2 after), x place in widths, r row, k innermost block,
     b and p name and operator before where they differ, w what changed, y passes, z what passes said, f sources,
     a attributes [name, before, after], i and u inputs and outputs [name, type], t type, d docstring, h weights,
     c [before, after] of [MACs, parameters, bytes read, bytes written], l layer,
     e [SQNR in dB, of its own error alone, largest, relative, relative of its own error].
   DATA.wires: [source, target, sides, name, type, [x, row, ...]]. DATA.blocks: [name, parent].
   DATA.layers: [name, ms, share, kernels, onnxruntime's ms]. */
const DATA = JSON.parse(document.getElementById("data").textContent);
const BOX = { w: 172, h: 42, gapX: 20, rowH: 66 };
const STEP = BOX.w + BOX.gapX;
const SIGNS = { added: "+", removed: "−", changed: "~", fused: "⋈", replaced: "⇄", same: "" };
const WORDS = {
  added: "added", removed: "removed", changed: "changed", fused: "fused", replaced: "replaced", same: "unchanged",
};

const state = {
  view: { x: 0, y: 0, k: 1 }, sides: DATA.two ? 3 : 2, folded: new Set(), chosen: -1, also: new Set(), hits: new Set(),
  hitList: [], hitAt: -1, colour: "change",
};

/* The scene: boxes and edges as they stand with the blocks that are folded. */
const scene = { boxes: [], boxOf: [], rows: [], edges: [], buckets: [], long: [], width: 1, height: 1 };
const BUCKET = 16;

const parentsOf = (block) => {
  const chain = [];
  for (let at = block; at >= 0; at = DATA.blocks[at][1]) chain.push(at);
  return chain;
};
const CHAINS = DATA.blocks.map((_, block) => parentsOf(block));

function holder(item) {
  /* The outermost folded block around an item, or -1. */
  const block = DATA.items[item].k;
  let found = -1;
  if (block >= 0) for (const one of CHAINS[block]) if (state.folded.has(one)) found = one;
  return found;
}

function settle() {
  /* Folds blocks, drops empty rows, and finds where boxes and edges lie. */
  const boxes = [], boxOf = new Array(DATA.items.length), folded = new Map();
  DATA.items.forEach((item, number) => {
    if (!(item.m & state.sides)) { boxOf[number] = -1; return; }
    const block = holder(number);
    if (block < 0) {
      boxOf[number] = boxes.length;
      boxes.push({ x: item.x * STEP, row: item.r, sides: item.m, block: -1, items: [number], status: item.s });
      return;
    }
    if (!folded.has(block)) {
      folded.set(block, boxes.length);
      boxes.push({ x: item.x * STEP, row: item.r, sides: 0, block, items: [], status: "same" });
    }
    const box = boxes[folded.get(block)];
    boxOf[number] = folded.get(block);
    box.items.push(number);
    box.sides |= item.m;
    if (item.r < box.row || (item.r === box.row && item.x * STEP < box.x)) { box.row = item.r; box.x = item.x * STEP; }
    if (item.s !== "same") box.status = box.status === "same" || box.status === item.s ? item.s : "changed";
  });
  const used = [...new Set(boxes.map((box) => box.row))].sort((a, b) => a - b);
  const lineOf = new Map(used.map((row, line) => [row, line]));
  const rows = used.map(() => []);
  let low = Infinity, high = -Infinity;
  boxes.forEach((box, number) => {
    box.line = lineOf.get(box.row);
    box.y = box.line * BOX.rowH;
    rows[box.line].push(number);
    low = Math.min(low, box.x);
    high = Math.max(high, box.x);
  });
  for (const row of rows) row.sort((a, b) => boxes[a].x - boxes[b].x);
  const joined = new Map(), edges = [];
  for (const [source, target, sides, name, type, route] of DATA.wires) {
    const a = boxOf[source], b = boxOf[target];
    if (a < 0 || b < 0 || a === b || !(sides & state.sides)) continue;
    const key = a * 1e7 + b, known = joined.get(key);
    if (known) { known.sides |= sides; continue; }
    const points = [];
    for (let at = 0; at < route.length; at += 2) {
      const line = lineOf.get(route[at + 1]);
      if (line !== undefined) points.push(route[at] * STEP, line * BOX.rowH);
    }
    const [up, down] = boxes[a].line <= boxes[b].line ? [a, b] : [b, a];
    const inside = points.filter((_, at) => at % 2 && points[at] > boxes[up].y && points[at] < boxes[down].y).length;
    const edge = { a, b, up, down, sides, name, type, points: inside * 2 === points.length ? points : [] };
    joined.set(key, edge);
    edges.push(edge);
  }
  const buckets = Array.from({ length: Math.ceil(rows.length / BUCKET) + 1 }, () => []), long = [];
  for (const edge of edges) {
    const first = Math.floor(boxes[edge.up].line / BUCKET), last = Math.floor(boxes[edge.down].line / BUCKET);
    if (last - first > 6) long.push(edge);
    else for (let at = first; at <= last; at += 1) buckets[at].push(edge);
  }
  Object.assign(scene, { boxes, boxOf, rows, edges, buckets, long, version: (scene.version || 0) + 1 });
  scene.left = Number.isFinite(low) ? low - BOX.w / 2 : 0;
  scene.width = Number.isFinite(low) ? high - low + BOX.w : BOX.w;
  scene.height = Math.max(1, rows.length) * BOX.rowH;
}

/* Values to colour by: one function an item, undefined where nothing is known. */
const layerTime = (item) => (item.l === undefined ? undefined : DATA.layers[item.l][1]);
const costOf = (which) => (item) => {
  const cost = item.c && (item.c[1] || item.c[0]);
  return cost && cost[which] ? cost[which] : undefined;
};
const MEASURES = {
  time: { title: "time of its layer", value: layerTime, text: (v) => duration(v) },
  own: { title: "error of its own", value: (item) => (item.e ? item.e[4] : undefined), text: (v) => percent(v) },
  error: { title: "error with all before it", value: (item) => (item.e ? item.e[3] : undefined), text: (v) => percent(v) },
  macs: { title: "MACs", value: costOf(0), text: (v) => short(v) },
  parameters: { title: "parameters", value: costOf(1), text: (v) => short(v) },
};
for (const measure of Object.values(MEASURES)) {
  const known = DATA.items.map((item) => measure.value(item)).filter((v) => v !== undefined);
  measure.known = known.length;
  measure.most = known.reduce((a, b) => Math.max(a, b), 0);
}

function short(value) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return `${Number(value.toPrecision(3))}`;
}
function duration(ms) {
  return ms < 1 ? `${Number((ms * 1e3).toPrecision(3))} µs` : `${Number(ms.toPrecision(3))} ms`;
}
function percent(share) {
  if (share === 0) return "0 %";
  return Math.abs(share) < 1e-3 ? `${(100 * share).toExponential(1)} %` : `${(100 * share).toFixed(1)} %`;
}

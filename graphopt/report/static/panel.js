/* The chosen node in words and numbers, and the list of all nodes. */
const panel = document.getElementById("panel");

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "on") element.addEventListener("click", value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined && child !== "") element.append(child);
  return element;
}
function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const listOf = (lines) => make("ul", {}, ...lines.map((line) => make("li", {}, line)));
const linkTo = (number) => make("button", { type: "button", class: "jump", on: () => choose(number, true) }, DATA.items[number].n || DATA.items[number].o);
function grid(heads, rows) {
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head, at) => make("th", { scope: "col", class: at ? "number" : null }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, at) => make("td", { class: at ? "number" : null }, cell)))))));
}

const around = { above: DATA.items.map(() => []), below: DATA.items.map(() => []) };
DATA.wires.forEach((wire, number) => {
  around.below[wire[0]].push(number);
  around.above[wire[1]].push(number);
});

function showPanel() {
  panel.replaceChildren();
  if (state.chosen < 0) {
    panel.append(make("p", {}, "Choose a node to see its attributes, weights, cost, error, and the passes that changed it."));
    if (DATA.two) panel.append(summary());
    return;
  }
  const item = DATA.items[state.chosen];
  const close = make("button", { type: "button", class: "close", "aria-label": "Close", on: () => choose(-1) }, "×");
  panel.append(close, make("h3", {}, item.n || "(no name)"));
  const line = make("p", {}, make("strong", {}, item.p ? `${item.p} → ${item.o}` : item.o), " ");
  if (DATA.two) line.append(make("span", { class: `badge ${item.s}` }, `${SIGNS[item.s]}\u00a0${WORDS[item.s]}`.trim()));
  panel.append(line);
  if (item.b) panel.append(make("p", {}, `named ${item.b} before`));
  if (item.t) panel.append(make("p", {}, item.t));
  if (item.w) panel.append(make("h4", {}, "What changed"), listOf(item.w));
  if (item.y) panel.append(make("h4", {}, "Made or changed by"), listOf(item.y));
  if (item.z) panel.append(make("h4", {}, "What the passes said"), listOf(item.z));
  if (item.f) {
    const names = item.f.slice(0, 12).join(", ") + (item.f.length > 12 ? ` and ${item.f.length - 12} more` : "");
    panel.append(make("p", {}, `stems from ${names}`));
  }
  showCosts(item);
  if (item.a) {
    const rows = item.a.map(([name, was, now]) => (DATA.two && was !== now ? [name, was, now] : [name, now || was, ""]));
    const two = rows.some((row) => row[2] !== "");
    panel.append(make("h4", {}, "Attributes"), two ? grid(["", "before", "after"], rows) : grid(["", "value"], rows.map((row) => row.slice(0, 2))));
  }
  for (const weight of item.h || []) showWeight(weight);
  for (const [title, values] of [["Reads", item.i], ["Gives", item.u]]) {
    if (values && values[0].length) panel.append(make("h4", {}, title), listOf(values[0].map(([name, type]) => `${name} ${type}`)));
  }
  for (const [title, wires, end] of [["Nodes before it", around.above[state.chosen], 0], ["Nodes after it", around.below[state.chosen], 1]]) {
    const numbers = [...new Set(wires.map((number) => DATA.wires[number][end]))];
    if (numbers.length) panel.append(make("h4", {}, title), make("ul", {}, ...numbers.slice(0, 20).map((number) => make("li", {}, linkTo(number), ` ${DATA.items[number].o}`))));
  }
  if (item.d) panel.append(make("h4", {}, "Docstring"), make("p", {}, item.d));
  panel.scrollTop = 0;
}

function summary() {
  const counts = {};
  for (const item of DATA.items) counts[item.s] = (counts[item.s] || 0) + 1;
  return listOf(Object.keys(SIGNS).filter((status) => counts[status]).map((status) => `${counts[status]} ${WORDS[status]}`));
}

function showCosts(item) {
  const rows = [];
  if (item.c) {
    ["MACs", "parameters", "bytes read", "bytes written"].forEach((name, at) => {
      const was = item.c[0] ? short(item.c[0][at]) : "–", now = item.c[1] ? short(item.c[1][at]) : "–";
      rows.push(DATA.two ? [name, was, now] : [name, now]);
    });
  }
  if (rows.length) panel.append(make("h4", {}, "Cost"), grid(DATA.two ? ["", "before", "after"] : ["", ""], rows));
  if (item.l !== undefined) {
    const [name, ms, share, kernels, other] = DATA.layers[item.l];
    panel.append(make("h4", {}, "Time"), make("p", {}, `${duration(ms)}, ${percent(share)} of the layers' time, for ${name} and what is computed with it${other ? `; onnxruntime ${duration(other)}` : ""}`), make("p", {}, make("code", {}, kernels.slice(0, 6).join(", "))));
  }
  if (item.e) {
    const [all, alone, largest, relative, own] = item.e;
    panel.append(make("h4", {}, "Error of its value, all passes together"));
    if (!relative && !own) panel.append(make("p", {}, "none: equal bit for bit"));
    else {
      const most = largest === null ? "" : `, at most ${Number(largest.toPrecision(3))}`;
      panel.append(listOf([`by itself ${percent(own)} of its size (SQNR ${alone.toFixed(1)} dB)`, `with all before it ${percent(relative)} (SQNR ${all.toFixed(1)} dB)${most}`]));
    }
  }
}

function showWeight(weight) {
  panel.append(make("h4", {}, "Weight ", make("code", {}, weight.name)));
  const rows = [], known = [["before", weight.before], ["after", weight.after]].filter(([, stats]) => stats);
  const number = (value) => `${Number(value.toPrecision(4))}`;
  rows.push(["type", ...known.map(([, s]) => s.type)], ["low", ...known.map(([, s]) => number(s.low))], ["high", ...known.map(([, s]) => number(s.high))],
    ["deviation", ...known.map(([, s]) => number(s.std))], ["zeros", ...known.map(([, s]) => percent(s.zeros))]);
  panel.append(grid(["", ...(DATA.two ? known.map(([side]) => side) : [""])], rows));
  if (known.some(([, s]) => s.sampled)) panel.append(make("p", { class: "note" }, "from 65,536 elements of it, evenly spaced"));
  const sides = [["was", weight.counts_before], ["now", weight.counts_after]].filter(([, counts]) => counts);
  const totals = sides.map(([, counts]) => counts.reduce((a, b) => a + b, 0) || 1);
  const most = Math.max(...sides.flatMap(([, counts], at) => counts.map((v) => v / totals[at])), 1e-12);
  const plot = svg("svg", { viewBox: "0 0 320 84", class: "hist", role: "img", "aria-label": `Histogram of ${weight.name}`, preserveAspectRatio: "none" });
  sides.forEach(([side, counts], which) => counts.forEach((value, at) => {
    const height = 80 * Math.sqrt(value / totals[which] / most);
    plot.append(svg("rect", { class: side, x: at * 10, y: 82 - height, width: 9.4, height }));
  }));
  panel.append(plot);
  const ends = make("p", { class: "note" }, `${number(weight.low)} to ${number(weight.high)}, heights by square root`);
  if (sides.length > 1) ends.append("; ", make("span", { class: "keyed was" }, "before"), " and ", make("span", { class: "keyed now" }, "after"));
  panel.append(ends);
}

/* The list: what the canvas shows, as a table for readers, keyboards and printers. */
const list = { by: 0, down: true, most: 50 };
const COLUMNS = [
  ["node", (item, number) => number, (item, number) => linkTo(number)],
  ["operator", (item) => item.o, (item) => (item.p ? `${item.p} → ${item.o}` : item.o)],
  ["change", (item) => item.s, (item) => `${SIGNS[item.s]}\u00a0${WORDS[item.s]}`.trim()],
  ["passes", (item) => (item.y || []).join(), (item) => (item.y || []).join(", ")],
  ["MACs", (item) => costOf(0)(item) || 0, (item) => (costOf(0)(item) ? short(costOf(0)(item)) : "")],
  ["parameters", (item) => costOf(1)(item) || 0, (item) => (costOf(1)(item) ? short(costOf(1)(item)) : "")],
  ["time of its layer", (item) => layerTime(item) || 0, (item) => (item.l === undefined ? "" : duration(layerTime(item)))],
  ["own error", (item) => (item.e ? item.e[4] : -1), (item) => (item.e ? percent(item.e[4]) : "")],
  ["error", (item) => (item.e ? item.e[3] : -1), (item) => (item.e ? percent(item.e[3]) : "")],
].filter(([name], at) => !((at === 2 || at === 3) && !DATA.two) && !(name.endsWith("error") && !MEASURES.error.known) && !(at === 6 && !MEASURES.time.known));

function showList() {
  let numbers = DATA.items.map((_, number) => number).filter((number) => DATA.items[number].o !== "input" && DATA.items[number].o !== "output");
  if (document.getElementById("search").value.trim()) numbers = numbers.filter((number) => state.hits.has(number));
  const key = COLUMNS[list.by][1];
  const order = (a, b) => { const x = key(DATA.items[a], a), y = key(DATA.items[b], b); return x < y ? -1 : x > y ? 1 : a - b; };
  numbers.sort(list.by === 0 ? (a, b) => DATA.items[a].r - DATA.items[b].r || DATA.items[a].x - DATA.items[b].x : order);
  if (!list.down) numbers.reverse();
  const head = make("tr", {}, ...COLUMNS.map(([name], at) => {
    const sorted = at === list.by ? (list.down ? "ascending" : "descending") : null;
    const sort = () => { list.down = at === list.by ? !list.down : at < 4 && !MEASURES[name]; list.by = at; showList(); };
    return make("th", { scope: "col", class: at > 3 || !DATA.two && at > 1 ? "number" : null, "aria-sort": sorted }, make("button", { type: "button", on: sort }, name));
  }));
  const rows = numbers.slice(0, list.most).map((number) => make("tr", {}, ...COLUMNS.map(([, , show], at) => make("td", { class: at > 3 || !DATA.two && at > 1 ? "number" : null }, show(DATA.items[number], number)))));
  const box = document.getElementById("list");
  box.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All nodes" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
  if (numbers.length > list.most) box.append(make("button", { type: "button", class: "more", on: () => { list.most *= 4; showList(); } }, `Show more (${numbers.length - list.most} left)`));
}

/* What the user does. */
const search = document.getElementById("search"), hits = document.getElementById("hits");
const CHANGED = DATA.items.map((_, number) => number).filter((number) => DATA.items[number].s !== "same")
  .sort((a, b) => DATA.items[a].r - DATA.items[b].r || DATA.items[a].x - DATA.items[b].x);

function clamp() {
  const view = state.view, pane = shown()[0] || { w: 1, h: 1 };
  view.k = Math.min(3, Math.max(Math.min(fitScale(), 0.5), view.k));
  view.x = Math.min(scene.left + scene.width, Math.max(scene.left, view.x));
  view.y = Math.min(scene.height - BOX.rowH / 2, Math.max(-BOX.rowH / 2, view.y));
  const wide = pane.w / view.k;
  if (scene.width + 40 < wide) view.x = scene.left + scene.width / 2;
  if (scene.height + 20 < pane.h / view.k) view.y = scene.height / 2 - BOX.rowH / 2;
}
function fitScale() {
  const pane = shown()[0] || { w: 1, h: 1 };
  return Math.min((pane.w - 16) / (scene.width + 24), (pane.h - 16) / (scene.height + 24), 1);
}
function move(dx, dy) {
  const { x, y } = state.view;
  state.view.x += dx / state.view.k;
  state.view.y += dy / state.view.k;
  clamp();
  redraw();
  return state.view.x !== x || state.view.y !== y;
}
function zoom(factor, px = 0, py = 0) {
  /* About a point given in pixels from the pane's middle. */
  const view = state.view, was = view.k;
  view.k *= factor;
  clamp();
  view.x += px / was - px / view.k;
  view.y += py / was - py / view.k;
  clamp();
  redraw();
}
function fit() {
  state.view.k = fitScale();
  state.view.x = scene.left + scene.width / 2;
  state.view.y = scene.height / 2 - BOX.rowH / 2;
  redraw();
}
function start() {
  /* All of a small graph; else the top, as large as reads well. */
  fit();
  if (state.view.k > 0.5) return;
  const pane = shown()[0];
  state.view.k = Math.max(0.5, Math.min(0.85, (pane.w - 16) / (scene.width + 24)));
  state.view.y = pane.h / 2 / state.view.k - BOX.rowH;
  const first = scene.rows.length ? scene.boxes[scene.rows[0][0]] : null;
  if (first && scene.width * state.view.k > pane.w) state.view.x = first.x;
  clamp();
}

function choose(number, reveal = false, also = []) {
  state.chosen = number;
  state.also = new Set(also);
  if (number >= 0) {
    let opened = false;
    for (let block = holder(number); block >= 0; block = holder(number)) { state.folded.delete(block); opened = true; }
    if (!(DATA.items[number].m & state.sides)) { setSides(DATA.items[number].m); opened = false; }
    if (opened) settle();
    const box = scene.boxes[scene.boxOf[number]], pane = shown()[0];
    const out = Math.abs(box.x - state.view.x) > pane.w / 2 / state.view.k - BOX.w || Math.abs(box.y - state.view.y) > pane.h / 2 / state.view.k - BOX.h * 1.5;
    if (out) { state.view.x = box.x; state.view.y = box.y; }
    if (state.view.k < 0.35) { state.view.k = 0.7; state.view.x = box.x; state.view.y = box.y; }
    clamp();
  }
  showPanel();
  redraw();
  if (reveal) document.getElementById("graph").scrollIntoView({ block: "start" });
}

function refold(change) {
  /* Changes what is folded and keeps the eye where it was. */
  const pane = shown()[0], anchor = state.chosen >= 0 ? state.chosen : nearest();
  const was = anchor >= 0 ? scene.boxes[scene.boxOf[anchor]] : null;
  change();
  settle();
  const now = anchor >= 0 && scene.boxOf[anchor] >= 0 ? scene.boxes[scene.boxOf[anchor]] : null;
  if (was && now) { state.view.x += now.x - was.x; state.view.y += now.y - was.y; }
  if (pane) clamp();
  redraw();
}
function nearest() {
  const line = Math.min(scene.rows.length - 1, Math.max(0, Math.round(state.view.y / BOX.rowH)));
  return scene.rows.length ? scene.boxes[scene.rows[line][0]].items[0] : -1;
}
function toggleBlock(number) {
  const folded = holder(number);
  const block = folded >= 0 ? folded : DATA.items[number].k;
  if (block >= 0) refold(() => { if (folded >= 0) state.folded.delete(block); else state.folded.add(block); });
}

function find(text) {
  const wanted = text.trim().toLowerCase();
  state.hitList = [];
  state.hitAt = -1;
  if (wanted) {
    DATA.items.forEach((item, number) => {
      if (item.n.toLowerCase().includes(wanted) || item.o.toLowerCase().includes(wanted) || (item.b || "").toLowerCase().includes(wanted)) state.hitList.push(number);
    });
    state.hitList.sort((a, b) => DATA.items[a].r - DATA.items[b].r);
  }
  state.hits = new Set(state.hitList);
  hits.textContent = wanted ? `${state.hitList.length} found` : "";
  list.most = 50;
  showList();
  redraw();
}
function nextHit(step) {
  if (!state.hitList.length) return;
  state.hitAt = (state.hitAt + step + state.hitList.length) % state.hitList.length;
  hits.textContent = `${state.hitAt + 1} of ${state.hitList.length}`;
  choose(state.hitList[state.hitAt]);
}
function nextChange(step) {
  const some = CHANGED.filter((number) => DATA.items[number].m & state.sides);
  if (!some.length) return;
  const at = some.indexOf(state.chosen);
  choose(some[at < 0 ? (step > 0 ? 0 : some.length - 1) : (at + step + some.length) % some.length]);
}

function neighbour(side, key) {
  /* The box that an arrow key leads to, or -1. */
  const at = state.chosen >= 0 ? scene.boxOf[state.chosen] : -1;
  if (at < 0) {
    const pane = shown()[0], top = state.view.y - pane.h / 2 / state.view.k;
    const line = scene.rows.findIndex((row, index) => index * BOX.rowH >= top && row.some((n) => scene.boxes[n].sides & side));
    return line < 0 ? -1 : scene.rows[line].find((n) => scene.boxes[n].sides & side);
  }
  const box = scene.boxes[at];
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const row = scene.rows[box.line].filter((n) => scene.boxes[n].sides & side), here = row.indexOf(at);
    const next = row[here + (key === "ArrowRight" ? 1 : -1)];
    return next === undefined ? -1 : next;
  }
  const found = scene.edges.filter((edge) => edge.sides & side && (key === "ArrowDown" ? edge.a === at : edge.b === at)).map((edge) => (key === "ArrowDown" ? edge.b : edge.a));
  const far = (n) => Math.abs(scene.boxes[n].line - box.line) * 1e6 + Math.abs(scene.boxes[n].x - box.x);
  return found.length ? found.sort((a, b) => far(a) - far(b))[0] : -1;
}

function pick(pane, event) {
  const bounds = pane.canvas.getBoundingClientRect();
  const x = state.view.x + (event.clientX - bounds.left - pane.w / 2) / state.view.k;
  const y = state.view.y + (event.clientY - bounds.top - pane.h / 2) / state.view.k;
  const line = Math.round(y / BOX.rowH), slack = Math.max(0, 8 / state.view.k - BOX.h / 2);
  for (const number of scene.rows[line] || []) {
    const box = scene.boxes[number];
    if (box.sides & pane.side && Math.abs(box.x - x) <= BOX.w / 2 + slack && Math.abs(box.y - y) <= BOX.h / 2 + slack) return box;
  }
  return null;
}

for (const pane of panes) {
  const fingers = new Map();
  let moved = 0, spread = 0;
  const canvas = pane.canvas, middle = (event) => {
    const bounds = canvas.getBoundingClientRect();
    return [event.clientX - bounds.left - pane.w / 2, event.clientY - bounds.top - pane.h / 2];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
    moved = fingers.size > 1 ? 99 : 0;
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    fingers.set(event.pointerId, event);
    const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()], now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (spread) zoom(now / spread, ...middle({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 }));
      spread = now;
      move(-dx / 2, -dy / 2);
    } else if (moved > 5) move(-dx, -dy);
  });
  const lift = (event) => {
    if (!fingers.delete(event.pointerId) || event.type === "pointercancel" || moved > 5) return;
    const box = pick(pane, event);
    if (!box) choose(-1); else if (box.block >= 0) { state.chosen = -1; toggleBlock(box.items[0]); } else choose(box.items[0]);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("dblclick", (event) => {
    const box = pick(pane, event);
    if (box && box.block < 0) toggleBlock(box.items[0]);
  });
  canvas.addEventListener("wheel", (event) => {
    const scale = event.deltaMode === 1 ? 24 : 1;
    if (event.ctrlKey || event.metaKey) { zoom(Math.exp(-event.deltaY * scale * 0.004), ...middle(event)); event.preventDefault(); }
    else if (move((event.shiftKey ? event.deltaY : event.deltaX) * scale, (event.shiftKey ? 0 : event.deltaY) * scale)) event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow")) {
      const next = neighbour(pane.side, event.key);
      if (next >= 0) {
        const box = scene.boxes[next];
        if (box.block >= 0) { state.chosen = box.items[0]; state.view.x = box.x; state.view.y = box.y; clamp(); showPanel(); redraw(); } else choose(box.items[0]);
      }
    } else if (event.key === "Enter") { panel.setAttribute("tabindex", "-1"); panel.focus(); }
    else if (event.key === "c" && state.chosen >= 0) toggleBlock(state.chosen);
    else return;
    event.preventDefault();
  });
}

function jumpMap(event) {
  const bounds = map.getBoundingClientRect(), scale = Math.min(bounds.height / scene.height, 0.25);
  state.view.y = (event.clientY - bounds.top) / scale - BOX.rowH / 2;
  clamp();
  redraw();
}
map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); jumpMap(event); });
map.addEventListener("pointermove", (event) => { if (event.buttons) jumpMap(event); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLElement && ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape") { if (event.target === search) { search.value = ""; find(""); } choose(-1); return; }
  if (typing) return;
  const keys = {
    "/": () => search.focus(), n: () => nextChange(1), p: () => nextChange(-1), "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: fit,
  };
  if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
});
search.addEventListener("input", () => find(search.value));
search.addEventListener("keydown", (event) => { if (event.key === "Enter") { nextHit(event.shiftKey ? -1 : 1); event.preventDefault(); } });

const press = (id, act) => document.getElementById(id).addEventListener("click", act);
function outermost() {
  /* The blocks that are worth folding first: of one that holds more than half of all, those inside it. */
  const sizes = DATA.blocks.map(() => 0), children = DATA.blocks.map(() => []), found = [];
  for (const item of DATA.items) if (item.k >= 0) for (const block of CHAINS[item.k]) sizes[block] += 1;
  DATA.blocks.forEach(([, parent], block) => { if (parent >= 0) children[parent].push(block); });
  const work = DATA.blocks.map((_, block) => block).filter((block) => DATA.blocks[block][1] < 0);
  while (work.length) {
    const block = work.pop();
    if (sizes[block] * 2 > DATA.items.length && children[block].length > 1) work.push(...children[block]); else found.push(block);
  }
  return found;
}
press("fold", () => refold(() => { for (const block of outermost()) state.folded.add(block); }));
press("unfold", () => refold(() => state.folded.clear()));
press("next", () => nextChange(1));
press("previous", () => nextChange(-1));
press("in", () => zoom(1.25));
press("out", () => zoom(0.8));
press("fit", fit);

function setSides(sides) {
  const anchor = nearest();
  state.sides = sides;
  for (const button of document.querySelectorAll("[data-sides]")) button.setAttribute("aria-pressed", String(Number(button.dataset.sides) === sides));
  settle();
  resize();
  const box = anchor >= 0 ? scene.boxes[scene.boxOf[anchor]] : null;
  if (box) state.view.y = box.y;
  clamp();
  redraw();
}
for (const button of document.querySelectorAll("[data-sides]")) button.addEventListener("click", () => setSides(Number(button.dataset.sides)));

const colour = document.getElementById("colour");
for (const [key, title] of [["change", "what changed"], ...Object.entries(MEASURES).map(([key, one]) => [key, one.title])]) {
  if (key === "change" ? DATA.two : MEASURES[key].known) colour.append(make("option", { value: key }, title));
}
function legend() {
  const box = document.getElementById("legend");
  box.replaceChildren();
  if (state.colour === "change") {
    const present = new Set(DATA.items.map((item) => item.s));
    if (DATA.two) for (const status of Object.keys(SIGNS)) if (present.has(status)) box.append(make("span", {}, make("i", { class: status }, SIGNS[status]), WORDS[status]));
  } else box.append(make("span", {}, "little", make("i", { class: "ramp" }), MEASURES[state.colour].text(MEASURES[state.colour].most)));
}
colour.addEventListener("change", () => { state.colour = colour.value; legend(); redraw(); });

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target.closest("[data-item]") : null;
  if (!target) return;
  const also = (target.getAttribute("data-also") || "").split(" ").filter(Boolean).map(Number);
  choose(Number(target.getAttribute("data-item")), true, also);
});

for (const section of document.querySelectorAll("main > section")) {
  const head = section.querySelector("h2");
  document.getElementById("sections").append(make("a", { href: `#${section.id}` }, head.textContent));
}

const scheme = window.matchMedia("(prefers-color-scheme: dark)");
scheme.addEventListener("change", () => { readColours(); redraw(); });
window.addEventListener("resize", resized);
function resized() {
  /* What was at the top stays at the top. */
  const pane = shown()[0], tall = pane ? pane.h : 0;
  resize();
  if (pane) state.view.y += (pane.h - tall) / 2 / state.view.k;
  clamp();
  drawNow();
}
const sizes = new ResizeObserver(resized);
for (const pane of panes) sizes.observe(pane.figure);
window.addEventListener("beforeprint", () => { fit(); for (const pane of shown()) draw(pane); });

readColours();
if (!DATA.two) { document.getElementById("sides").hidden = true; document.getElementById("next").hidden = true; document.getElementById("previous").hidden = true; }
document.querySelectorAll("#fold, #unfold").forEach((button) => { button.hidden = !DATA.blocks.length; });
state.colour = colour.value || "change";
setSides(!DATA.two ? 2 : window.innerWidth < 640 ? 2 : 3);
if (!DATA.two) for (const pane of panes) pane.figure.querySelector("figcaption").textContent = "";
legend();
showPanel();
showList();
resize();
start();
drawNow();
document.documentElement.dataset.ready = String(Math.round(performance.now()));

// Both panels show the same part of the slide: `view` is its centre in level-0 px, and how many px of the page (CSS px)
// a level-0 px has. Spots are painted pixel by pixel into an image of their own, which lies on the picture: that
// stays quick with 50,000 of them, and one opacity holds for all.
const DATA = JSON.parse(document.getElementById("data").textContent);
const GREY = 0x00999999; // a colour is blue, green, red from the highest byte down, as in ImageData
const SMALL = 12; // spots with a smaller radius, in px of the screen, are stamped from a mask
const PHASES = 4; // places within a px, each way, that a stamped spot can have
const CLOSEST = 8; // px of the page for a level-0 px
const MOST_KEPT = 12; // layers whose numbers are kept decoded
const at = (id) => document.getElementById(id);

const X = floats(DATA.x), Y = floats(DATA.y);
const PALETTE = bytes(DATA.palette), OUTSIDE = DATA.outside && bytes(DATA.outside);
const N = X.length, LAYERS = Object.fromEntries(DATA.layers.map((layer) => [layer.id, layer]));
const view = { x: 0, y: 0, scale: 1 };
const chosen = { gene: 0, layer: DATA.layers[0].id, side: true, opacity: 100 };
const colors = new Uint32Array(N);
const panels = [{ canvas: at("side").querySelector("canvas") }, { canvas: at("map").querySelector("canvas"), spots: true }];
for (const panel of panels) panel.context = panel.canvas.getContext("2d");
const spotImage = { canvas: document.createElement("canvas") };
spotImage.context = spotImage.canvas.getContext("2d");
let levels = []; // the picture, and smaller ones of it
let pending = 0;

// ---- numbers

const decoded = new Map();

function numbers(layer, gene) { // of a layer and, where it has one, of a gene
  const stored = LAYERS[layer].ofGene ? DATA.genes[gene].layers[layer] : DATA.spots[layer];
  let values = decoded.get(stored);
  if (!values) {
    values = decode(new Uint16Array(bytes(stored.codes).buffer), stored.low, stored.high);
    decoded.set(stored, values);
    if (decoded.size > MOST_KEPT) decoded.delete(decoded.keys().next().value);
  }
  return { values, low: stored.low, high: stored.high, from: stored.range[0], to: stored.range[1] };
}

function colorSpots() {
  const { values, from, to } = numbers(chosen.layer, chosen.gene);
  for (let i = 0; i < N; i++) {
    const k = colorPlace(values[i], from, to);
    colors[i] = Number.isNaN(k) ? GREY : (PALETTE[k + 2] << 16) | (PALETTE[k + 1] << 8) | PALETTE[k];
  }
}

// ---- drawing

const ratio = () => Math.min(window.devicePixelRatio || 1, 2); // px of the screen for a px of the page
// Small spots grow until they touch, so that a map of very many is neither a haze nor a grid.
const spotRadius = () => Math.max(DATA.diameter / 2, Math.min(0.75 * DATA.pitch, 1.5 / view.scale));
const masks = new Map();

function spotMask(radius) { // how much of each px a disc covers, 0 to 255, for each place of its centre within a px
  if (!masks.has(radius)) {
    const half = Math.ceil(radius), width = 2 * half + 1, cover = new Uint8Array(PHASES * PHASES * width * width);
    for (let i = 0, phase = 0; phase < PHASES * PHASES; phase++) {
      const cx = half + ((phase % PHASES) + 0.5) / PHASES, cy = half + (Math.floor(phase / PHASES) + 0.5) / PHASES;
      for (let y = 0; y < width; y++) {
        for (let x = 0; x < width; x++, i++) {
          const inside = radius + 0.5 - Math.hypot(x + 0.5 - cx, y + 0.5 - cy);
          cover[i] = 255 * Math.min(Math.max(inside, 0), 1);
        }
      }
    }
    masks.clear();
    masks.set(radius, { half, width, cover });
  }
  return masks.get(radius);
}

function stampSpots(width, height, left, top, scale, radius) {
  const { canvas, context } = spotImage, { half, width: side, cover } = spotMask(radius);
  if (!spotImage.image || spotImage.image.width !== width || spotImage.image.height !== height) {
    spotImage.image = context.createImageData(width, height);
    spotImage.pixels = new Uint32Array(spotImage.image.data.buffer);
  }
  const pixels = spotImage.pixels.fill(0);
  for (let i = 0; i < N; i++) {
    const cx = (X[i] - left) * scale, cy = (Y[i] - top) * scale, px = Math.floor(cx), py = Math.floor(cy);
    if (px + half < 0 || py + half < 0 || px - half >= width || py - half >= height) continue;
    const phase = Math.floor((cy - py) * PHASES) * PHASES + Math.floor((cx - px) * PHASES), color = colors[i];
    const x0 = Math.max(px - half, 0), x1 = Math.min(px + half, width - 1), y1 = Math.min(py + half, height - 1);
    for (let y = Math.max(py - half, 0); y <= y1; y++) {
      let from = (phase * side + y - py + half) * side + x0 - px + half;
      for (let to = y * width + x0, end = y * width + x1; to <= end; to++, from++) {
        if (cover[from] > pixels[to] >>> 24) pixels[to] = ((cover[from] << 24) | color) >>> 0;
      }
    }
  }
  context.putImageData(spotImage.image, 0, 0);
}

function fillSpots(width, height, left, top, scale, radius) { // large ones: few are in view
  const { context } = spotImage;
  context.clearRect(0, 0, width, height);
  for (let i = 0; i < N; i++) {
    const cx = (X[i] - left) * scale, cy = (Y[i] - top) * scale;
    if (cx < -radius || cy < -radius || cx > width + radius || cy > height + radius) continue;
    context.fillStyle = `rgb(${colors[i] & 255} ${(colors[i] >> 8) & 255} ${colors[i] >> 16})`;
    context.beginPath();
    context.arc(cx, cy, radius, 0, 2 * Math.PI);
    context.fill();
  }
}

function drawPicture(context, width, height, left, top, scale) {
  const levelAt = (k) => levels[k].width / DATA.picture.width; // px for a level-0 px
  let k = 0;
  while (k + 1 < levels.length && levelAt(k + 1) >= scale) k++;
  const own = levels[k].width / DATA.picture.width, down = levels[k].height / DATA.picture.height;
  const x0 = Math.max(left, 0), y0 = Math.max(top, 0);
  const x1 = Math.min(left + width / scale, DATA.picture.width), y1 = Math.min(top + height / scale, DATA.picture.height);
  if (x1 <= x0 || y1 <= y0) return;
  context.drawImage(
    levels[k], x0 * own, y0 * down, (x1 - x0) * own, (y1 - y0) * down,
    (x0 - left) * scale, (y0 - top) * scale, (x1 - x0) * scale, (y1 - y0) * scale,
  );
}

function draw() {
  pending = 0;
  for (const { canvas, context, spots } of panels) {
    const box = canvas.getBoundingClientRect(), width = Math.round(box.width * ratio()), height = Math.round(box.height * ratio());
    if (!width || !height) continue;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const scale = view.scale * ratio(), left = view.x - width / 2 / scale, top = view.y - height / 2 / scale;
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height);
    drawPicture(context, width, height, left, top, scale);
    if (!spots || !chosen.opacity) continue;
    if (spotImage.canvas.width !== width || spotImage.canvas.height !== height) Object.assign(spotImage.canvas, { width, height });
    const radius = spotRadius() * scale;
    (radius < SMALL ? stampSpots : fillSpots)(width, height, left, top, scale, radius);
    context.globalAlpha = chosen.opacity / 100;
    context.drawImage(spotImage.canvas, 0, 0);
    context.globalAlpha = 1;
  }
  drawScale();
}

function redraw() {
  if (!pending) pending = requestAnimationFrame(draw);
}

function drawScale() { // the longest round length of at most 120 px
  const most = (120 / view.scale) * DATA.umPerPx, power = 10 ** Math.floor(Math.log10(most));
  const um = power * [5, 2, 1].find((k) => k * power <= most);
  at("bar").style.width = `${(um / DATA.umPerPx) * view.scale}px`;
  at("length").textContent = um >= 1000 ? `${um / 1000} mm` : `${Number(um.toPrecision(1))} µm`;
  at("scale").setAttribute("aria-label", `Scale bar: ${at("length").textContent}`);
}

// ---- what is chosen

function show() {
  colorSpots();
  const gene = DATA.genes[chosen.gene], layer = LAYERS[chosen.layer], { low, high, from, to } = numbers(chosen.layer, chosen.gene);
  const name = document.createElement("em");
  name.textContent = gene.name;
  const what = layer.ofGene ? [name, `, ${layer.label.toLowerCase()}`] : [layer.label];
  at("title").replaceChildren(...what);
  at("what").replaceChildren(...what.map((part) => (part === name ? name.cloneNode(true) : part)));
  at("low").textContent = short(from);
  at("high").textContent = short(to);
  at("unit").textContent = chosen.layer === "distance" ? "" : DATA.unit;
  const compared = LAYERS.truth && ["predicted", "truth"].includes(chosen.layer);
  at("common").textContent = compared ? " of measured and predicted values together" : "";
  at("extremes").textContent = `Lowest ${short(low)}, highest ${short(high)}.`;
  at("pcc").textContent = compared ? `PCC, predicted and measured: ${gene.pcc === null ? "undefined" : gene.pcc.toFixed(2)}` : "";
  for (const option of options) option.setAttribute("aria-selected", option === options[chosen.gene]);
  at("search").setAttribute("aria-activedescendant", options[chosen.gene].isConnected ? options[chosen.gene].id : "");
  for (const box of document.querySelectorAll("input[name=layer]")) box.checked = box.value === chosen.layer;
  for (const box of document.querySelectorAll("input[name=view]")) box.checked = (box.value === "side") === chosen.side;
  at("side").hidden = !chosen.side;
  at("opacity").value = chosen.opacity;
  at("percent").textContent = `${chosen.opacity} %`;
  remember();
  redraw();
}

const options = DATA.genes.map((gene, i) => {
  const option = document.createElement("li"), name = document.createElement("em");
  option.id = `gene-${i}`;
  option.setAttribute("role", "option");
  name.textContent = gene.name;
  option.append(name);
  if (gene.pcc !== null) option.append(Object.assign(document.createElement("span"), { textContent: gene.pcc.toFixed(2) }));
  option.addEventListener("click", () => choose(i));
  return option;
});
let matches = [];

function search() { // names that begin with the text come first
  const text = at("search").value.trim().toLowerCase();
  const names = DATA.genes.map((gene) => gene.name.toLowerCase());
  const found = names.map((_, i) => i).filter((i) => names[i].includes(text));
  matches = [...found.filter((i) => names[i].startsWith(text)), ...found.filter((i) => !names[i].startsWith(text))];
  at("genes").replaceChildren(...matches.map((i) => options[i]));
  at("matches").textContent = `${matches.length} of ${names.length} genes${LAYERS.truth ? ", with their PCC" : ""}`;
}

function choose(gene) {
  chosen.gene = gene;
  if (!LAYERS[chosen.layer].ofGene) chosen.layer = DATA.layers[0].id;
  show();
  options[gene].scrollIntoView({ block: "nearest" });
}

at("search").addEventListener("input", () => { search(); at("genes").scrollTop = 0; show(); });
at("search").addEventListener("keydown", (event) => {
  const place = matches.indexOf(chosen.gene), last = matches.length - 1;
  if (event.key === "Escape") { at("search").value = ""; search(); show(); return; }
  const next = { ArrowDown: Math.min(place + 1, last), ArrowUp: Math.max(place - 1, 0), Enter: Math.max(place, 0) }[event.key];
  if (next === undefined || last < 0) return;
  event.preventDefault();
  choose(matches[next]);
});
at("opacity").addEventListener("input", () => { chosen.opacity = Number(at("opacity").value); show(); });
for (const box of document.querySelectorAll("input[type=radio]")) {
  box.addEventListener("change", () => {
    if (box.name === "layer") chosen.layer = box.value;
    else chosen.side = box.value === "side";
    show();
  });
}

// ---- moving and zooming

function fitScale() { // shows all spots, with a margin
  const box = panels[1].canvas.getBoundingClientRect(), [x0, x1, y0, y1] = bounds;
  const margin = 0.16 * Math.max(x1 - x0, y1 - y0) + DATA.diameter;
  return Math.min((box.width || 1) / (x1 - x0 + margin), (box.height || 1) / (y1 - y0 + margin), CLOSEST);
}

const bounds = [X, Y].flatMap((values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))]);

function look(x, y, scale) {
  const [x0, x1, y0, y1] = bounds;
  view.scale = Math.min(Math.max(scale, fitScale() / 3), CLOSEST);
  view.x = Math.min(Math.max(x, Math.min(x0, 0)), Math.max(x1, DATA.picture.width));
  view.y = Math.min(Math.max(y, Math.min(y0, 0)), Math.max(y1, DATA.picture.height));
  remember();
  redraw();
}

const lookAtAll = () => look((bounds[0] + bounds[1]) / 2, (bounds[2] + bounds[3]) / 2, fitScale());

function zoom(factor, dx = 0, dy = 0) { // what lies dx, dy px of the page from the centre stays where it is
  const scale = Math.min(Math.max(view.scale * factor, fitScale() / 3), CLOSEST), shift = 1 / view.scale - 1 / scale;
  look(view.x + dx * shift, view.y + dy * shift, scale);
}

function fromCentre(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
}

for (const { canvas } of panels) {
  const fingers = new Map(); // pointers that are down: their places
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, fromCentre(canvas, event));
    at("tip").hidden = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    const place = fromCentre(canvas, event), before = fingers.get(event.pointerId);
    if (!before) { if (event.pointerType === "mouse") tell(canvas, ...place); return; }
    fingers.set(event.pointerId, place);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (!other) { look(view.x - (place[0] - before[0]) / view.scale, view.y - (place[1] - before[1]) / view.scale, view.scale); return; }
    const apart = ([x, y]) => Math.max(Math.hypot(x - other[0], y - other[1]), 1);
    const middle = (k) => (place[k] + other[k]) / 2, moved = (k) => (place[k] - before[k]) / 2;
    look(view.x - moved(0) / view.scale, view.y - moved(1) / view.scale, view.scale);
    zoom(apart(place) / apart(before), middle(0), middle(1));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.pointerType !== "mouse" && fingers.size === 1) tell(canvas, ...fromCentre(canvas, event));
      fingers.delete(event.pointerId);
    });
  }
  canvas.addEventListener("pointerleave", () => { at("tip").hidden = true; });
  canvas.addEventListener("blur", () => { at("tip").hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    zoom(Math.exp(-0.0015 * Math.min(Math.max(lines * event.deltaY, -400), 400) * (event.ctrlKey ? 5 : 1)), ...fromCentre(canvas, event));
    tell(canvas, ...fromCentre(canvas, event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 60 / view.scale;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves) look(view.x + moves[0], view.y + moves[1], view.scale);
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-" || event.key === "_") zoom(0.8);
    else if (event.key === "0") lookAtAll();
    else return;
    event.preventDefault();
    tell(canvas, 0, 0);
  });
}
at("closer").addEventListener("click", () => zoom(1.5));
at("farther").addEventListener("click", () => zoom(1 / 1.5));
at("all").addEventListener("click", lookAtAll);

function tell(canvas, dx, dy) { // of the spot under a place of a panel, if there is one
  const x = view.x + dx / view.scale, y = view.y + dy / view.scale, reach = Math.max(spotRadius(), 4 / view.scale);
  let nearest = -1, least = reach * reach;
  for (let i = 0; i < N; i++) {
    const far = (X[i] - x) ** 2 + (Y[i] - y) ** 2;
    if (far <= least) { least = far; nearest = i; }
  }
  const tip = at("tip");
  tip.hidden = nearest < 0;
  if (nearest < 0) return;
  tip.textContent = spotText(nearest);
  const box = canvas.getBoundingClientRect(), home = tip.parentElement.getBoundingClientRect();
  const left = box.left - home.left + box.width / 2 + dx + 14, top = box.top - home.top + box.height / 2 + dy + 14;
  tip.style.left = `${Math.max(0, Math.min(left, home.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(0, Math.min(top, home.height - tip.offsetHeight - 4))}px`;
}

function spotText(i) {
  const lines = DATA.layers.map(({ id, label, ofGene }) => {
    const name = ofGene ? `${DATA.genes[chosen.gene].name}, ${label.toLowerCase()}` : label;
    return `${name}: ${short(numbers(id, chosen.gene).values[i])}`;
  });
  if (OUTSIDE && OUTSIDE[i]) lines.push("out of distribution: unlike the training data");
  return [DATA.names[i], ...lines].join("\n");
}

// ---- the address keeps gene, layer and view

let timer = 0, written = "";

function remember() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const parts = {
      gene: DATA.genes[chosen.gene].name, layer: chosen.layer, view: chosen.side ? "side" : "overlay", opacity: chosen.opacity,
      x: view.x.toFixed(1), y: view.y.toFixed(1), scale: view.scale.toPrecision(6),
    };
    written = `#${new URLSearchParams(parts)}`;
    history.replaceState(null, "", written);
  }, 200);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1)), gene = DATA.genes.findIndex(({ name }) => name === parts.get("gene"));
  if (gene >= 0) chosen.gene = gene;
  if (LAYERS[parts.get("layer")]) chosen.layer = parts.get("layer");
  if (parts.has("view")) chosen.side = parts.get("view") !== "overlay";
  const opacity = Number(parts.get("opacity") ?? NaN), place = ["x", "y", "scale"].map((key) => Number(parts.get(key) ?? NaN));
  if (opacity >= 0 && opacity <= 100) chosen.opacity = opacity;
  show();
  if (place.every(Number.isFinite) && place[2] > 0) look(...place);
  else lookAtAll();
}

window.addEventListener("hashchange", () => { if (location.hash !== written) recall(); });

async function start() {
  const picture = new Image();
  picture.src = DATA.picture.uri;
  await picture.decode();
  levels = [picture];
  for (let last = picture; Math.max(last.width, last.height) > 600; ) { // halves, as a smaller scale skips px
    const half = document.createElement("canvas");
    Object.assign(half, { width: Math.ceil(last.width / 2), height: Math.ceil(last.height / 2) });
    half.getContext("2d").drawImage(last, 0, 0, half.width, half.height);
    levels.push((last = half));
  }
  paintScale(at("colors"), PALETTE);
  search();
  recall();
  options[chosen.gene].scrollIntoView({ block: "nearest" });
  document.querySelector("main").setAttribute("aria-busy", "false");
  new ResizeObserver(redraw).observe(panels[1].canvas);
}

start();

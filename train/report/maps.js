// Of each group of runs: a reader chooses run, fold, slide and gene, and sees what was measured beside what was
// predicted. Both maps have one scale, which is that of the measured values, so that it stays when the run changes.
const GREY = "#999999", MARGIN = 0.08, ALPHA = 0.92;
const FLATTEST = 0.5, TALLEST = 1.6; // height of a map over its width

class Maps {
  constructor(box) {
    this.box = box;
    this.data = JSON.parse(box.querySelector(".map-data").textContent);
    this.palette = bytes(this.data.palette);
    this.pictures = new Map();
    this.gene = this.data.first;
    for (const name of ["run", "fold", "slide", "gene"]) this[`${name}Box`] = this.find(`.pick-${name}`);
    this.canvases = Array.from(box.querySelectorAll(".trio canvas"));
    this.fill(this.runBox, this.data.runs.map(({ label }) => label));
    this.runBox.addEventListener("change", () => this.chooseRun());
    this.foldBox.addEventListener("change", () => this.chooseFold());
    this.slideBox.addEventListener("change", () => this.chooseSlide());
    this.geneBox.addEventListener("input", () => this.typed(false));
    this.geneBox.addEventListener("change", () => this.typed(true));
    for (const button of box.querySelectorAll("button.step")) {
      button.addEventListener("click", () => this.step(Number(button.dataset.step)));
    }
    paintScale(this.find(".colors"), this.palette);
    box.hidden = false;
    this.chooseRun();
    new ResizeObserver(() => this.draw()).observe(this.find(".trio"));
  }

  find(what) { return this.box.querySelector(what); }

  fill(select, texts) { // keeps what was chosen, where it is still there
    const before = select.value;
    select.replaceChildren(...texts.map((text) => new Option(text, text)));
    select.value = texts.includes(before) ? before : texts[0];
  }

  chooseRun() {
    this.run = this.data.runs[this.runBox.selectedIndex];
    this.fill(this.foldBox, this.run.folds.map(({ number }) => String(number)));
    this.chooseFold();
  }

  chooseFold() {
    this.fold = this.run.folds[this.foldBox.selectedIndex];
    this.fill(this.slideBox, this.fold.slides.map(({ slide }) => slide));
    this.chooseSlide();
  }

  chooseSlide() {
    this.predicted = this.fold.slides[this.slideBox.selectedIndex];
    this.spots = this.data.spots[this.predicted.spots];
    this.x = floats(this.spots.x);
    this.y = floats(this.spots.y);
    this.pcc = floats(this.predicted.pcc);
    const names = this.spots.genes === null ? this.data.genes : this.spots.genes.map((i) => this.data.genes[i]);
    const value = (i) => (Number.isNaN(this.pcc[i]) ? -Infinity : this.pcc[i]);
    this.names = names;
    this.order = names.map((_, i) => i).sort((a, b) => value(b) - value(a) || a - b); // the best predicted first
    this.find("datalist").replaceChildren(...this.order.map((i) => new Option(`PCC ${short(this.pcc[i])}`, names[i])));
    if (!names.includes(this.gene)) this.gene = names[this.order[0]];
    this.show();
  }

  typed(finished) { // a name is taken as soon as it is whole, in letters of any case
    const text = this.geneBox.value.trim().toLowerCase();
    const found = this.names.find((name) => name.toLowerCase() === text);
    if (found) { this.gene = found; this.show(finished); return; }
    if (finished) this.find(".said").textContent = `No gene ${this.geneBox.value.trim()} here; ${this.names.length} genes can be chosen.`;
  }

  step(by) {
    const place = this.order.indexOf(this.names.indexOf(this.gene)) + by;
    this.gene = this.names[this.order[Math.min(Math.max(place, 0), this.order.length - 1)]];
    this.show();
  }

  show(rewrite = true) {
    const i = this.names.indexOf(this.gene), n = this.x.length, rank = this.order.indexOf(i) + 1;
    if (rewrite) this.geneBox.value = this.gene;
    const part = ({ codes, low, high }) => decode(bytes(codes).subarray(i * n, (i + 1) * n), floats(low)[i], floats(high)[i]);
    const measured = part(this.spots), predicted = part(this.predicted), place = `on slide ${this.predicted.slide}`;
    this.from = floats(this.spots.from)[i];
    this.to = floats(this.spots.to)[i];
    this.values = [null, measured, predicted];
    const pcc = Number.isNaN(this.pcc[i]) ? "undefined, as one of both is constant" : this.pcc[i].toFixed(3);
    this.find(".said").textContent =
      `${this.gene} ${place}, fold ${this.fold.number}, ${this.run.label}: PCC ${pcc} over ${n} spots, rank ${rank} of ${this.order.length} genes by PCC.`;
    const titles = [`${this.predicted.slide}, H&E`, `${this.gene}, measured`, `${this.gene}, predicted`];
    const span = (values) => `${short(values.reduce((a, b) => Math.min(a, b)))} to ${short(values.reduce((a, b) => Math.max(a, b)))}`;
    const alts = [`H&E of slide ${this.predicted.slide}`, ...[measured, predicted].map((v, k) => `Map: ${titles[k + 1]} ${place}, ${span(v)}`)];
    this.canvases.forEach((canvas, k) => {
      canvas.previousElementSibling.textContent = titles[k];
      canvas.setAttribute("aria-label", alts[k]);
    });
    this.find(".low").textContent = short(this.from);
    this.find(".high").textContent = short(this.to);
    this.draw();
    this.load(this.predicted.slide);
  }

  async load(slide) { // a picture is decoded when its slide is chosen
    const { uri } = this.data.pictures[slide];
    if (!uri || this.pictures.has(slide)) return;
    this.pictures.set(slide, null);
    const image = new Image();
    image.src = uri;
    await image.decode();
    this.pictures.set(slide, image);
    this.draw();
  }

  draw() {
    const { slide } = this.predicted, { width, height, diameter } = this.data.pictures[slide];
    const ends = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    const [x0, x1] = ends(this.x), [y0, y1] = ends(this.y), margin = MARGIN * Math.max(x1 - x0, y1 - y0, 1) + diameter / 2;
    const wide = x1 - x0 + 2 * margin, high = y1 - y0 + 2 * margin;
    const aspect = Math.min(Math.max(high / wide, FLATTEST), TALLEST), picture = this.pictures.get(slide);
    this.canvases.forEach((canvas, k) => {
      const side = Math.round(canvas.clientWidth * Math.min(window.devicePixelRatio || 1, 2));
      if (!side) return;
      Object.assign(canvas, { width: side, height: Math.round(side * aspect) });
      const context = canvas.getContext("2d"), scale = Math.min(canvas.width / wide, canvas.height / high);
      context.fillStyle = "#ffffff";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.translate(canvas.width / 2, canvas.height / 2);
      context.scale(scale, scale);
      context.translate(-(x0 + x1) / 2, -(y0 + y1) / 2);
      if (picture) context.drawImage(picture, 0, 0, width, height);
      if (this.values[k]) this.discs(context, this.values[k], diameter / 2);
    });
    this.box.dataset.drawn = `${this.gene} ${slide} ${picture ? "with" : "without"} picture`;
  }

  discs(context, values, radius) {
    context.globalAlpha = ALPHA;
    values.forEach((value, i) => {
      const k = colorPlace(value, this.from, this.to), color = this.palette;
      context.fillStyle = Number.isNaN(k) ? GREY : `rgb(${color[k]} ${color[k + 1]} ${color[k + 2]})`;
      context.beginPath();
      context.arc(this.x[i], this.y[i], radius, 0, 2 * Math.PI);
      context.fill();
    });
  }
}

for (const box of document.querySelectorAll(".maps")) new Maps(box);

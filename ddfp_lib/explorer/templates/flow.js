// The flow, computed here from exported weights; a test compares its numbers with ddfp_lib's.
const IDS = ["cloud", "stage", "x1", "x2"];
const models = {};
let model = null;

// The layers of a subnet: rows of weights, then biases; 1 -> hidden -> hidden -> 2.
function subnet(text, hidden) {
  const all = floats(text);
  const layers = [];
  let at = 0;
  for (const [inputs, outputs] of [[1, hidden], [hidden, hidden], [hidden, 2]]) {
    layers.push({ inputs, outputs, weight: all.subarray(at, at + inputs * outputs),
      bias: all.subarray(at + inputs * outputs, at + inputs * outputs + outputs) });
    at += inputs * outputs + outputs;
  }
  return layers;
}

function apply(layers, value) {
  let x = [value];
  layers.forEach(({ inputs, outputs, weight, bias }, number) => {
    const y = new Float64Array(outputs);
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o];
      for (let i = 0; i < inputs; i++) sum += weight[o * inputs + i] * x[i];
      y[o] = number < 2 ? Math.max(sum, 0) : sum;
    }
    x = y;
  });
  return x;
}

function load(name) {
  if (models[name]) return models[name];
  const data = DATA[name];
  const couplings = [];
  // Which axis of the picture holds the left half. A permutation renames axes and moves nothing.
  let left = 0;
  for (const block of data.blocks) {
    couplings.push({ net: subnet(block.right, data.hidden), moves: left, reads: 1 - left });
    couplings.push({ net: subnet(block.left, data.hidden), moves: 1 - left, reads: left });
    if (block.permutation[0] === 1) left = 1 - left;
  }
  models[name] = { data, couplings, left };
  return models[name];
}

// Carry a point through the first `stage` couplings; a part of a coupling scales and shifts by
// that part. Returns the point in the picture's axes, and the couplings' numbers.
function carry(x, stage = model.couplings.length) {
  const at = [x[0], x[1]];
  const steps = [];
  let logDet = 0;
  model.couplings.forEach(({ net, moves, reads }, number) => {
    const part = Math.min(Math.max(stage - number, 0), 1);
    if (part === 0) return;
    const [u, t] = apply(net, at[reads]);
    const s = model.data.clamp * model.data.slope * Math.atan(u);
    at[moves] = at[moves] * Math.exp(part * s) + part * t;
    logDet += part * s;
    steps.push({ moves, s, t, logDet });
  });
  return { at, logDet, steps };
}

// The library's numbers of a point: latents in its order, log-determinant, log-density, classes.
function numbers(x) {
  const { at, logDet } = carry(x);
  const z = [at[model.left], at[1 - model.left]];
  const classes = model.data.means.map((mean) =>
    -((z[0] - mean[0]) ** 2 + (z[1] - mean[1]) ** 2) / 2 - Math.log(2 * Math.PI));
  const most = Math.max(...classes);
  const total = classes.reduce((sum, value) => sum + Math.exp(value - most), 0);
  const base = most + Math.log(total) - Math.log(classes.length);
  return { z, logDet, base, logProb: base + logDet,
    probability: classes.map((value) => Math.exp(value - most) / total) };
}

function background() {
  if (model.picture && model.pictureDark === isDark()) return model.picture;
  const size = 90;
  const [left, right, bottom, top] = model.data.window;
  if (!model.density) {
    model.density = Float64Array.from({ length: size * size }, (_, i) => numbers([
      left + (i % size + 0.5) / size * (right - left),
      top - (Math.floor(i / size) + 0.5) / size * (top - bottom)]).logProb);
  }
  const most = model.density.reduce((a, b) => Math.max(a, b));
  model.picture = raster(size, size, (i) => shade(Math.max(0, 1 + (model.density[i] - most) / 8)));
  model.pictureDark = isDark();
  return model.picture;
}

function chosen() {
  return [Number($("x1").value), Number($("x2").value)];
}

function draw() {
  model = load($("cloud").value);
  const stage = Number($("stage").value);
  const x = chosen();
  $("x1-text").value = x[0].toFixed(2);
  $("x2-text").value = x[1].toFixed(2);
  const done = Math.floor(stage + 1e-9);
  $("stage-text").value = `${stage.toFixed(2).replace(/\.?0+$/, "")} of ${model.couplings.length}`;
  $("stage").setAttribute("aria-valuetext", $("stage-text").value);
  drawData(x);
  drawLatent(x, stage);
  const found = numbers(x);
  $("base").textContent = found.base.toFixed(3);
  $("log-det").textContent = found.logDet.toFixed(3);
  $("log-prob").textContent = found.logProb.toFixed(3);
  $("z1").textContent = found.z[0].toFixed(3);
  $("z2").textContent = found.z[1].toFixed(3);
  const best = found.probability.indexOf(Math.max(...found.probability));
  $("class").textContent = best;
  $("probability").textContent = found.probability[best].toFixed(3);
  $("couplings").replaceChildren(...carry(x).steps.map((step, number) => {
    const row = document.createElement("tr");
    if (number === Math.min(done, model.couplings.length - 1)) row.className = "now";
    for (const text of [number + 1, `axis ${step.moves + 1}`, step.s.toFixed(3), step.t.toFixed(3),
      step.logDet.toFixed(3)]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
}

function drawData(x) {
  const [context, width, height] = prepared($("data-plane"), 1);
  const [left, right, bottom, top] = model.data.window;
  const place = ([a, b]) => [(a - left) / (right - left) * width,
    (top - b) / (top - bottom) * height];
  context.drawImage(background(), 0, 0, width, height);
  grid(context, place, 0);
  model.data.points.forEach((point, i) =>
    dot(context, ...place(point), 2.5, CLASS_COLOURS[model.data.classes[i]]));
  ring(context, ...place(x));
  $("data-plane").setAttribute("aria-label", `The point x at ${x[0].toFixed(2)}, `
    + `${x[1].toFixed(2)}, among the data and their learned density.`);
}

function drawLatent(x, stage) {
  const [context, width, height] = prepared($("latent-plane"), 1);
  const carried = model.data.points.map((point) => carry(point, stage).at);
  const ends = [...carried, carry(x, stage).at];
  // The middle 96 % of the points decide the scale; a few far ones may leave the picture.
  const range = [0, 1].map((axis) => {
    const sorted = carried.map((point) => point[axis]).sort((a, b) => a - b);
    const cut = Math.floor(0.02 * sorted.length);
    return [sorted[cut], sorted[sorted.length - 1 - cut]];
  });
  const half = Math.max(...range.map(([low, high]) => high - low)) * 0.7 || 1;
  const centre = range.map(([low, high]) => (low + high) / 2);
  const place = (point) => [(point[0] - centre[0]) / half * width / 2 + width / 2,
    height / 2 - (point[1] - centre[1]) / half * height / 2];
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height);
  context.clip();
  grid(context, place, stage);
  carried.forEach((point, i) =>
    dot(context, ...place(point), 2.5, CLASS_COLOURS[model.data.classes[i]]));
  if (stage >= model.couplings.length) {
    model.data.means.forEach((mean, k) => {
      const at = model.left === 0 ? mean : [mean[1], mean[0]];
      mark(context, ...place(at), 9, k);
    });
  }
  ring(context, ...place(ends[ends.length - 1]));
  context.restore();
  const at = ends[ends.length - 1];
  $("latent-plane").setAttribute("aria-label", `After ${$("stage-text").value} couplings the point `
    + `is at ${at[0].toFixed(2)}, ${at[1].toFixed(2)}.`);
}

function grid(context, place, stage) {
  const [left, right, bottom, top] = model.data.window;
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  for (let line = 0; line <= 12; line++) {
    for (const vertical of [true, false]) {
      const along = (t) => {
        const [a, b] = vertical ? [line / 12, t] : [t, line / 12];
        const point = [left + a * (right - left), bottom + b * (top - bottom)];
        return place(stage ? carry(point, stage).at : point);
      };
      context.beginPath();
      context.moveTo(...along(0));
      const pieces = stage ? 40 : 1;
      for (let i = 0; i < pieces; i++) curve(context, along, i / pieces, (i + 1) / pieces);
      context.stroke();
    }
  }
}

// Draw a curve from `start` to `end`. Pieces are halved until their middle lies within half a pixel
// of the line: where the flow stretches the plane, pieces of equal steps would show corners.
function curve(context, along, start, end, depth = 0) {
  const [from, to] = [along(start), along(end)];
  const middle = (start + end) / 2;
  const [x, y] = along(middle);
  const off = Math.hypot(x - (from[0] + to[0]) / 2, y - (from[1] + to[1]) / 2);
  if (off > 0.5 && depth < 7) {
    curve(context, along, start, middle, depth + 1);
    curve(context, along, middle, end, depth + 1);
  } else {
    context.lineTo(...to);
  }
}

function ring(context, x, y) {
  context.beginPath();
  context.arc(x, y, 9, 0, 2 * Math.PI);
  context.strokeStyle = colour("accent");
  context.lineWidth = 3;
  context.stroke();
  dot(context, x, y, 2.5, colour("accent"));
}

function dragTo(event) {
  const box = $("data-plane").getBoundingClientRect();
  const [left, right, bottom, top] = model.data.window;
  $("x1").value = left + (event.clientX - box.left) / box.width * (right - left);
  $("x2").value = top - (event.clientY - box.top) / box.height * (top - bottom);
  remember(IDS);
  draw();
}

$("data-plane").addEventListener("pointerdown", (event) => {
  $("data-plane").setPointerCapture(event.pointerId);
  dragTo(event);
});
$("data-plane").addEventListener("pointermove", (event) => {
  if ($("data-plane").hasPointerCapture(event.pointerId)) dragTo(event);
});

function limits() {
  model = load($("cloud").value);
  const [left, right, bottom, top] = model.data.window;
  Object.assign($("x1"), { min: left.toFixed(2), max: right.toFixed(2) });
  Object.assign($("x2"), { min: bottom.toFixed(2), max: top.toFixed(2) });
  $("stage").max = model.couplings.length;
}

let timer = null;

function stop() {
  clearInterval(timer);
  timer = null;
  $("play").textContent = "Play";
}

$("play").addEventListener("click", () => {
  if (timer !== null) return stop();
  if (Number($("stage").value) >= model.couplings.length) $("stage").value = 0;
  $("play").textContent = "Pause";
  timer = setInterval(() => {
    $("stage").value = Number($("stage").value) + 0.1;
    if (Number($("stage").value) >= model.couplings.length) stop();
    draw();
  }, 60);
});

fill($("cloud"), Object.keys(DATA).map((name) => [name, name]));
limits();
$("stage").value = model.couplings.length;
[$("x1").value, $("x2").value] = model.data.points[0];
wire(IDS, (id) => {
  if (id === "stage" && timer !== null) stop();
  if (id === "cloud") {
    limits();
    [$("x1").value, $("x2").value] = model.data.points[0];
  }
  draw();
});
limits();
start();

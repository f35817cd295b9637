// Low-density separation. All frames were computed by ddfp_lib; this page only draws them.
const IDS = ["cloud", "direction", "length", "seed", "frame", "density", "truth"];
const LAST = DATA.frames.length - 1;
let timer = null;

fill($("cloud"), Object.keys(DATA.clouds).map((name) => [name, name]));
fill($("direction"), DATA.directions.map((name) => [name, {
  descent: "descent: down the density", random: "random", adversarial: "adversarial (VAT)",
  none: "none: pseudo-labels alone",
}[name]]));
fill($("seed"), Array.from({ length: DATA.seeds }, (_, seed) => [seed, seed]));
$("length").max = DATA.lengths.length - 1;
$("length").value = 1;
$("frame").max = LAST;
$("frame").value = LAST;
$("seed").value = typicalSeed();

// The seed that is shown first: at the end of training, its two numbers are closest to the means of
// all seeds, as fractions of their ranges.
function typicalSeed() {
  const { run } = state();
  const distances = run.under.map(() => 0);
  for (const values of [run.under, run.accuracy]) {
    const last = values.map((row) => row[LAST]);
    const mean = last.reduce((a, b) => a + b) / last.length;
    const range = Math.max(...last) - Math.min(...last) || 1;
    last.forEach((value, seed) => { distances[seed] += Math.abs(value - mean) / range; });
  }
  return distances.indexOf(Math.min(...distances));
}

function state() {
  const direction = $("direction").value;
  const eps = direction === "none" ? 0 : DATA.lengths[Number($("length").value)];
  const cloud = DATA.clouds[$("cloud").value];
  return {
    cloud, direction, eps, run: cloud.runs[`${direction} ${eps}`],
    seed: Number($("seed").value), frame: Number($("frame").value),
  };
}

function draw() {
  const now = state();
  $("length").disabled = now.direction === "none";
  $("length-text").value = now.direction === "none" ? "no step" : now.eps;
  $("length").setAttribute("aria-valuetext", $("length-text").value);
  $("frame-text").value = `${DATA.frames[now.frame]} of ${DATA.frames[LAST]}`
    + (DATA.frames[now.frame] <= DATA.warmup ? " (warm-up: labels alone)" : "");
  $("frame").setAttribute("aria-valuetext", $("frame-text").value);
  drawMap(now);
  drawChart(now);
  show("under", now.run.under, now, 3);
  show("accuracy", now.run.accuracy, now, 1);
}

function show(id, values, now, digits) {
  const column = values.map((row) => row[now.frame]);
  $(id).textContent = column[now.seed].toFixed(digits);
  $(`${id}-mean`).textContent = (column.reduce((a, b) => a + b) / column.length).toFixed(digits);
  $(`${id}-low`).textContent = Math.min(...column).toFixed(digits);
  $(`${id}-high`).textContent = Math.max(...column).toFixed(digits);
}

function drawMap(now) {
  const [context, width, height] = prepared($("map"), 1);
  const [left, right, bottom, top] = now.cloud.window;
  const place = (x, y) => [
    (x - left) / (right - left) * width, (top - y) / (top - bottom) * height];
  const grid = DATA.grid;
  const density = bytes(now.cloud[$("density").value]);
  const picture = raster(grid, grid, (i) => {
    const row = grid - 1 - Math.floor(i / grid); // stored from bottom to top
    return shade(density[row * grid + i % grid] / 255);
  });
  context.imageSmoothingEnabled = true;
  context.drawImage(picture, 0, 0, width, height);
  now.cloud.points.forEach(([x, y], i) => {
    const fill = $("truth").checked ? CLASS_COLOURS[now.cloud.classes[i]] : colour("soft");
    dot(context, ...place(x, y), 2, fill);
  });
  const arrows = bytes(now.run.arrows);
  const first = (now.seed * DATA.frames.length + now.frame) * DATA.arrows;
  const scale = width / (right - left);
  for (let i = 0; i < DATA.arrows; i++) {
    const code = arrows[first + i];
    if (code === DATA.stays) continue;
    const angle = code / 255 * 2 * Math.PI;
    arrow(context, ...place(...now.cloud.points[i]), now.eps * scale * Math.cos(angle),
      -now.eps * scale * Math.sin(angle), colour("accent"));
  }
  const warm = DATA.frames.indexOf(DATA.warmup);
  if (now.frame > warm) lines(context, now.run.lines[now.seed][warm], width, [6, 4], 1.5);
  lines(context, now.run.lines[now.seed][now.frame], width, [], 3);
  for (const i of now.cloud.labeled[now.seed]) {
    mark(context, ...place(...now.cloud.points[i]), 6, now.cloud.classes[i]);
  }
  $("map").setAttribute("aria-label",
    `Map of ${$("cloud").value} after ${DATA.frames[now.frame]} training steps with direction `
    + `${now.direction}: the decision boundary, the points and their density.`);
}

function lines(context, polylines, size, dashes, width) {
  context.save();
  context.setLineDash(dashes);
  context.lineWidth = width;
  context.strokeStyle = dashes.length ? colour("soft") : colour("ink");
  context.lineJoin = "round";
  for (const flat of polylines) {
    context.beginPath();
    for (let i = 0; i < flat.length; i += 2) {
      context.lineTo(flat[i] / DATA.units * size, (1 - flat[i + 1] / DATA.units) * size);
    }
    context.stroke();
  }
  context.restore();
}

const MARGIN = { left: 44, right: 10, top: 10, bottom: 34 };

function drawChart(now) {
  const [context, width, height] = prepared($("chart"), 0.5);
  const highest = Math.max(...Object.values(now.cloud.runs).flatMap((run) => run.under.flat()));
  const step = DATA.frames[LAST];
  const x = (value) => MARGIN.left + value / step * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom
    - value / highest * (height - MARGIN.top - MARGIN.bottom);
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = colour("soft");
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  context.textAlign = "right";
  for (const part of [0, 0.5, 1]) {
    context.beginPath();
    context.moveTo(x(0), y(part * highest));
    context.lineTo(x(step), y(part * highest));
    context.stroke();
    context.fillText((part * highest).toFixed(2), MARGIN.left - 6, y(part * highest) + 4);
  }
  context.textAlign = "center";
  for (const value of [0, DATA.warmup, step / 2, step]) {
    context.fillText(value, Math.min(x(value), width - 14), height - MARGIN.bottom + 15);
  }
  context.fillText("training step", x(step / 2), height - 4);
  now.run.under.forEach((row, seed) => {
    context.beginPath();
    context.strokeStyle = seed === now.seed ? colour("accent") : colour("soft");
    context.globalAlpha = seed === now.seed ? 1 : 0.5;
    context.lineWidth = seed === now.seed ? 3 : 1.2;
    row.forEach((value, frame) => context.lineTo(x(DATA.frames[frame]), y(value)));
    context.stroke();
  });
  context.globalAlpha = 1;
  dot(context, x(DATA.frames[now.frame]), y(now.run.under[now.seed][now.frame]), 6,
    colour("accent"), colour("back"));
  $("chart").setAttribute("aria-label",
    `Density at the boundary of all seeds; now ${now.run.under[now.seed][now.frame]}.`);
}

function dragged(event) {
  const box = $("chart").getBoundingClientRect();
  const inner = box.width - MARGIN.left - MARGIN.right;
  const at = (event.clientX - box.left - MARGIN.left) / inner * DATA.frames[LAST];
  const distance = DATA.frames.map((frame) => Math.abs(frame - at));
  $("frame").value = distance.indexOf(Math.min(...distance));
  remember(IDS);
  draw();
}

$("chart").addEventListener("pointerdown", (event) => {
  $("chart").setPointerCapture(event.pointerId);
  dragged(event);
});
$("chart").addEventListener("pointermove", (event) => {
  if ($("chart").hasPointerCapture(event.pointerId)) dragged(event);
});

function stop() {
  clearInterval(timer);
  timer = null;
  $("play").textContent = "Play";
}

$("play").addEventListener("click", () => {
  if (timer !== null) return stop();
  if (Number($("frame").value) === LAST) $("frame").value = 0;
  $("play").textContent = "Pause";
  timer = setInterval(() => {
    $("frame").value = Number($("frame").value) + 1;
    if (Number($("frame").value) === LAST) stop();
    remember(IDS);
    draw();
  }, 600);
});

wire(IDS, (id) => {
  if (id === "frame" && timer !== null) stop();
  draw();
});
start();

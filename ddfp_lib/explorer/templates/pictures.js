// Steps from each feature of an image. All numbers were computed by ddfp_lib.
const IDS = ["image", "direction", "length", "map-kind"];
const NAMES = { descent: "descent", random: "random step", adversarial: "adversarial step" };
const pictures = DATA.images.map((image) => {
  const element = new Image();
  element.src = image.image;
  element.decode().then(() => draw());
  return element;
});
let row = 0;
let column = 0;

fill($("image"), DATA.images.map((image, i) => [i, image.name]));
$("length").max = DATA.lengths.length - 1;
$("length").value = Math.floor(DATA.lengths.length / 2);

// Arrays of an image, decoded once.
function arrays(image) {
  if (!image.decoded) {
    const decode = (part) => ({ logProb: floats(part.log_prob), percentile: bytes(part.percentile),
      label: bytes(part.label) });
    image.decoded = { before: decode(image), confident: bytes(image.confident), after: {} };
    for (const [name, part] of Object.entries(image.after)) {
      image.decoded.after[name] = decode(part);
    }
  }
  return image.decoded;
}

function eps() {
  return DATA.lengths[Number($("length").value)];
}

function draw() {
  const number = Number($("image").value);
  const image = DATA.images[number];
  const all = arrays(image);
  row = Math.min(row, image.rows - 1);
  column = Math.min(column, image.columns - 1);
  $("length-text").value = eps();
  $("length").setAttribute("aria-valuetext", eps());
  const after = all.after[`${$("direction").value} ${eps()}`];
  drawPicture(image, pictures[number]);
  drawMap(image, all, after);
  table(image, all);
}

function cell(context, image, width, height) {
  const w = width / image.columns;
  const h = height / image.rows;
  for (const [line, stroke] of [[5, colour("back")], [2.5, colour("accent")]]) {
    context.lineWidth = line;
    context.strokeStyle = stroke;
    context.strokeRect(column * w, row * h, w, h);
  }
}

function drawPicture(image, element) {
  const [context, width, height] = prepared($("picture"), image.height / image.width);
  context.imageSmoothingEnabled = false;
  if (element.complete) context.drawImage(element, 0, 0, width, height);
  cell(context, image, width, height);
  $("picture").setAttribute("aria-label",
    `${image.name}; feature in row ${row + 1}, column ${column + 1} is chosen.`);
}

// Blue (0, sparse) over gray to orange (100, dense); black where a feature does not move.
function percentileColour(value) {
  const low = [44, 75, 160], middle = [225, 225, 225], high = [214, 94, 0];
  const [a, b, t] = value < 50 ? [low, middle, value / 50] : [middle, high, value / 50 - 1];
  return [...a.map((from, i) => Math.round(from + t * (b[i] - from))), 255];
}

function drawMap(image, all, after) {
  const [context, width, height] = prepared($("map"), image.height / image.width);
  const labels = $("map-kind").value === "label";
  const small = raster(image.columns, image.rows, (i) => {
    if (labels) return [...DATA.palette[after.label[i]], 255];
    return all.confident[i] ? percentileColour(after.percentile[i]) : [0, 0, 0, 255];
  });
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
  cell(context, image, width, height);
  const kind = NAMES[$("direction").value];
  $("key").textContent = labels
    ? `Predicted class of each feature after the ${kind}: `
      + DATA.classes.map((name, k) => `${colourName(DATA.palette[k])} ${name}`).join(", ")
    : `Density percentile of each feature after the ${kind}: blue 0 (sparse), gray 50, orange 100 `
      + "(dense); black: not confident, so it does not move.";
  $("map").setAttribute("aria-label", $("key").textContent);
  const moved = [...all.confident.keys()].filter((i) => all.confident[i]);
  const middle = (values) => {
    const sorted = moved.map((i) => values[i]).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : NaN;
  };
  const kept = moved.filter((i) => after.label[i] === all.before.label[i]).length;
  $("summary").textContent = moved.length === 0
    ? "No feature of this image is confident, so none moves."
    : `All ${moved.length} confident features of this image: median percentile `
      + `${middle(all.before.percentile)} before and ${middle(after.percentile)} after the ${kind}; `
      + `${(100 * kept / moved.length).toFixed(1)} % keep their predicted class.`;
}

function colourName(rgb) {
  const names = { "0,0,0": "black", "31,119,180": "blue", "255,127,14": "orange",
    "44,160,44": "green", "214,39,40": "red" };
  return names[rgb] || `rgb(${rgb})`;
}

function table(image, all) {
  const i = row * image.columns + column;
  const truth = image.truth === null ? null : truthAt(image);
  const rows = [["unperturbed", all.before]];
  for (const [name, text] of Object.entries(NAMES)) {
    rows.push([`after the ${text}`, all.after[`${name} ${eps()}`], name]);
  }
  $("steps").replaceChildren(...rows.map(([text, part, name]) => {
    const line = document.createElement("tr");
    if (name === $("direction").value) line.className = "now";
    const still = name && !all.confident[i];
    const cells = still ? [text, "does not move", "", "not confident"] : [text,
      part.logProb[i].toFixed(2), part.percentile[i], DATA.classes[part.label[i]]];
    for (const value of cells) line.insertCell().textContent = value;
    return line;
  }));
  if (truth !== null) {
    const line = $("steps").insertRow();
    for (const value of ["true class at its center", "", "", truth]) {
      line.insertCell().textContent = value;
    }
  }
}

function truthAt(image) {
  image.mask = image.mask || bytes(image.truth);
  const y = Math.floor((row + 0.5) / image.rows * image.height);
  const x = Math.floor((column + 0.5) / image.columns * image.width);
  const label = image.mask[y * image.width + x];
  return label === 255 ? "none (border)" : DATA.classes[label];
}

function point(event) {
  const image = DATA.images[Number($("image").value)];
  const box = event.currentTarget.getBoundingClientRect();
  const inside = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value * most)));
  column = inside((event.clientX - box.left) / box.width, image.columns);
  row = inside((event.clientY - box.top) / box.height, image.rows);
  draw();
}

for (const id of ["picture", "map"]) {
  $(id).addEventListener("pointermove", point);
  $(id).addEventListener("pointerdown", point);
}
$("picture").addEventListener("keydown", (event) => {
  const image = DATA.images[Number($("image").value)];
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!(event.key in moves)) return;
  event.preventDefault();
  row = Math.max(0, Math.min(image.rows - 1, row + moves[event.key][0]));
  column = Math.max(0, Math.min(image.columns - 1, column + moves[event.key][1]));
  draw();
});

function middle() {
  const image = DATA.images[Number($("image").value)];
  row = Math.floor(image.rows / 2);
  column = Math.floor(image.columns / 2);
}

wire(IDS, (id) => {
  if (id === "image") middle();
  draw();
});
middle();
start();

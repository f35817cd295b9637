// What all pages share: data, theme, canvas sizes, colors, the state in the address.
const DATA = JSON.parse(document.getElementById("data").textContent);
const CLASS_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"];

const $ = (id) => document.getElementById(id);

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function floats(text) {
  return new Float32Array(bytes(text).buffer);
}

// The theme is the site's where a page of the site shows this one, else that of the system.
const system = matchMedia("(prefers-color-scheme: dark)");
let siteTheme = null;

function applyTheme() {
  document.documentElement.dataset.theme = siteTheme || (system.matches ? "dark" : "light");
  if (typeof draw === "function" && !$("app").hidden) draw();
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function isDark() {
  return document.documentElement.dataset.theme === "dark";
}

// Give a canvas the pixels of its place on the screen; return context, width and height in CSS px.
function prepared(canvas, aspect) {
  const width = canvas.clientWidth || 300;
  const height = Math.round(width * aspect);
  const scale = Math.min(window.devicePixelRatio || 1, 2);
  canvas.style.height = `${height}px`;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

// A small raster as a canvas, to be drawn larger: paint(i) returns [r, g, b, a] of its i-th cell.
function raster(columns, rows, paint) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) image.data.set(paint(i), 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}

// The color of a density, 0 (lowest) to 1 (highest): towards gray, so that marks stay visible.
function shade(value) {
  const strength = 150 * value ** 1.5;
  return isDark() ? [150, 175, 205, strength] : [40, 70, 110, strength];
}

function dot(context, x, y, size, fill, edge) {
  context.beginPath();
  context.arc(x, y, size, 0, 2 * Math.PI);
  context.fillStyle = fill;
  context.fill();
  if (edge) {
    context.strokeStyle = edge;
    context.lineWidth = 1.5;
    context.stroke();
  }
}

// A labeled point or a mean: a shape for each class, so that nothing depends on color alone.
function mark(context, x, y, size, k) {
  context.beginPath();
  if (k === 0) context.arc(x, y, size, 0, 2 * Math.PI);
  else if (k === 1) context.rect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
  else {
    context.moveTo(x, y - 1.2 * size);
    context.lineTo(x + 1.1 * size, y + size * 0.8);
    context.lineTo(x - 1.1 * size, y + size * 0.8);
    context.closePath();
  }
  context.fillStyle = CLASS_COLOURS[k];
  context.fill();
  context.strokeStyle = colour("ink");
  context.lineWidth = 1.5;
  context.stroke();
}

function arrow(context, x, y, dx, dy, stroke) {
  const length = Math.hypot(dx, dy);
  const head = Math.min(5, length / 2);
  const angle = Math.atan2(dy, dx);
  context.strokeStyle = stroke;
  context.lineWidth = 1.4;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + dx, y + dy);
  for (const turn of [2.6, -2.6]) {
    context.moveTo(x + dx, y + dy);
    context.lineTo(x + dx + head * Math.cos(angle + turn), y + dy + head * Math.sin(angle + turn));
  }
  context.stroke();
}

// Controls keep their values in the address, so that a link opens a page in one state.
function wire(ids, changed) {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const id of ids) {
    const element = $(id);
    if (given.has(id)) {
      if (element.type === "checkbox") element.checked = given.get(id) === "1";
      else if (element.tagName !== "SELECT"
        || [...element.options].some((option) => option.value === given.get(id))) {
        element.value = given.get(id);
      }
    }
    element.addEventListener("input", () => {
      remember(ids);
      changed(id);
    });
  }
}

function remember(ids) {
  const state = new URLSearchParams();
  for (const id of ids) {
    state.set(id, $(id).type === "checkbox" ? Number($(id).checked) : $(id).value);
  }
  history.replaceState(null, "", `#${state}`);
}

function fill(select, entries) {
  for (const [value, text] of entries) select.add(new Option(text, value));
}

// Call the page's draw() after layout, after a resize and after a change of the theme.
function start() {
  $("app").hidden = false;
  if (parent !== window) {
    document.documentElement.dataset.framed = "";
    addEventListener("message", (event) => {
      if (event.source === parent && event.data && "ddfpTheme" in event.data) {
        siteTheme = event.data.ddfpTheme === "dark" ? "dark" : "light";
        applyTheme();
      }
    });
    const tell = () => parent.postMessage(
      { ddfpHeight: document.documentElement.getBoundingClientRect().height }, "*");
    new ResizeObserver(tell).observe(document.documentElement);
    tell();
  }
  system.addEventListener("change", applyTheme);
  applyTheme();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) {
      width = innerWidth;
      draw();
    }
  });
}

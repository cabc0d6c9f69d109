// What all charts of the report have in common: colours, numbers, zoom, tips, marks on the canvas.
"use strict";

const run = JSON.parse(document.getElementById("run").textContent);
const root = document.documentElement;
const plots = [];
const small = () => window.innerWidth < 640;
let ink = {};
let moving = false;

function readInk() {
  const style = getComputedStyle(root);
  for (const name of ["paper", "ink", "faint", "grid", "seen", "value", "truth", "rate", "area", "annealing"]) {
    ink[name] = style.getPropertyValue("--" + name).trim();
  }
}

const faded = (name, alpha) => {
  const hex = ink[name].slice(1);
  const part = (i) => parseInt(hex.slice(i, i + 2), 16);
  return `rgba(${part(0)},${part(2)},${part(4)},${alpha})`;
};

// Numbers: steps short on the axis and whole in the tip, values to the digits that tell neighbours apart.
const whole = (x) => Math.round(x).toLocaleString("en-US");
function short(x) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(x) >= size) return +(x / size).toPrecision(4) + unit;
  }
  return String(+x.toPrecision(6));
}
function fine(x) {
  const plain = x === 0 || (Math.abs(x) >= 1e-4 && Math.abs(x) < 1e5);
  const text = plain ? x.toPrecision(5) : x.toExponential(4).replace("+", "");
  return (x === 0 || (x % 1 === 0 && plain) ? String(x) : text).replaceAll("-", "\u2212");
}
function ticks(_, splits, axis, space, step) {
  const top = Math.max(...splits.map(Math.abs));
  if (top >= 1e5 || (top > 0 && top < 0.01)) {
    return splits.map((x) => (x ? x.toExponential().replace("+", "").replace(/(\.\d{3})\d+/, "$1") : "0").replaceAll("-", "\u2212"));
  }
  const decimals = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  return splits.map((x) => (x + 0).toFixed(Math.min(decimals, 8)).replace("-", "\u2212"));
}

const ends = (values) => {
  const known = values.filter((x) => x !== null && Number.isFinite(x));
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
};
function padded([low, high]) {
  const pad = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - pad, high + pad];
}
const isWhole = (u) => u.scales.x.min <= 1e-9 * run.horizon && u.scales.x.max >= run.horizon * (1 - 1e-9);

// The y range: what `limits` picks while the whole run is shown, everything in the window when zoomed in.
const ranged = (limits) => (u, low, high) => padded(isWhole(u) || low === null ? limits : [low, high]);

function limitsOf(data, names, from) {
  const late = (name) => (data[name] || []).filter((_, i) => data.steps[i] >= from);
  return ends(names.flatMap(late));
}

// One chart.
const axis = (more) => ({
  stroke: () => ink.faint, font: "12px system-ui, sans-serif",
  grid: { stroke: () => ink.grid, width: 1 }, ticks: { show: false }, ...more,
});
const xAxis = () => axis({ values: (_, splits) => splits.map(short), space: 64, size: 28, gap: 8 });
const yAxis = (more) => axis({ values: ticks, size: small() ? 50 : 62, gap: 6, space: 34, ...more });
const margin = () => (small() ? 14 : 112);
const line = (label, colour, more) => ({
  label, stroke: () => ink[colour], width: 2, spanGaps: true, pxAlign: 0, points: { show: false }, ...more,
});
const edge = (scale = "y") => ({ scale, stroke: "transparent", width: 0, spanGaps: true, points: { show: false } });
const dots = (label, colour, hollow, size = 6) => ({
  label, stroke: () => ink[colour], width: 0, paths: () => null,
  points: { show: true, size, width: 1.5, stroke: () => ink[colour], fill: () => (hollow ? ink.paper : ink[colour]) },
});

function make(id, height, data, names, series, options) {
  const box = document.querySelector(`#${id} .chart`);
  if (!box) return;
  if (!data) {
    box.classList.add("empty");
    box.textContent = "nothing to show yet";
    return;
  }
  const { tip, draw, bands = [], axes, scales, padding } = options;
  const plot = new uPlot({
    width: box.clientWidth, height: small() ? Math.round(height * 0.82) : height,
    padding: padding ? padding() : [10, margin(), 0, 0],
    legend: { show: false },
    cursor: {
      y: false, points: { size: 7, width: 2 }, drag: { x: true, y: false, dist: 6 },
      sync: { key: "run", setSeries: false, filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
    },
    scales: { x: { time: false }, ...scales },
    axes: axes || [xAxis(), yAxis()],
    series: [{}, ...series], bands,
    hooks: {
      setScale: [(u, key) => key === "x" && follow(u)],
      draw: draw ? [draw] : [],
      setCursor: [(u) => showTip(u, tip)],
    },
  }, names.map((name) => data[name] || data.steps.map(() => null)), box);
  plot.tip = document.createElement("div");
  plot.tip.className = "tip";
  plot.over.append(plot.tip);
  plot.over.addEventListener("mouseenter", () => { plot.hovered = true; });
  plot.over.addEventListener("mouseleave", () => { plot.hovered = false; plot.tip.style.display = "none"; });
  plot.box = box;
  plot.tall = height;
  plots.push(plot);
}

function follow(source) {
  if (moving) return;
  moving = true;
  const { min, max } = source.scales.x;
  for (const plot of plots) {
    if (plot !== source) plot.setScale("x", { min, max });
  }
  const zoomed = !isWhole(source);
  for (const button of document.querySelectorAll(".reset")) button.hidden = !zoomed;
  moving = false;
}

function showTip(u, rows) {
  const tip = u.tip, { left, idx } = u.cursor;
  if (!tip || !u.hovered || idx === null || idx === undefined || left < 0) {
    if (tip) tip.style.display = "none";
    return;
  }
  tip.replaceChildren();
  const head = document.createElement("b");
  head.textContent = "step " + whole(u.data[0][idx]);
  tip.append(head);
  for (const [label, text] of rows(u.data.map((column) => column[idx]))) {
    const row = document.createElement("span"), name = document.createElement("i");
    name.textContent = label;
    row.append(name, text);
    tip.append(row);
  }
  tip.style.display = "block";
  const room = u.over.clientWidth - tip.offsetWidth;
  const beside = left + 14 <= room ? left + 14 : left - tip.offsetWidth - 14;
  tip.style.left = Math.max(Math.min(beside, room), 0) + "px";
  tip.style.top = "6px";
}

// Marks on the canvas.
const inside = (u, y) => y >= u.scales.y.min && y <= u.scales.y.max;

function drawTruth(u, labelled) {
  if (run.measured === null || !inside(u, run.measured)) return;
  const { ctx, bbox } = u, r = uPlot.pxRatio, y = u.valToPos(run.measured, "y", true);
  ctx.save();
  ctx.strokeStyle = ink.truth;
  ctx.lineWidth = 1.5 * r;
  ctx.setLineDash([6 * r, 4 * r]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
  if (labelled) beside(u, y, run.measured_text, ["measured", "at the end"], "truth");
}

function beside(u, y, text, under, colour) {
  if (small()) return;
  const { ctx, bbox } = u, r = uPlot.pxRatio, x = bbox.left + bbox.width + 14 * r;
  const size = text.length <= 8 ? 19 : 13, floor = bbox.top + bbox.height - (14 + 15 * (under.length - 1)) * r;
  y = Math.min(Math.max(y, bbox.top + size * r), floor);
  ctx.save();
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.fillStyle = ink[colour];
  ctx.font = `700 ${size * r}px system-ui, sans-serif`;
  ctx.fillText(text, x, y - 1 * r);
  ctx.font = `${11.5 * r}px system-ui, sans-serif`;
  under.forEach((words, i) => ctx.fillText(words, x, y + (13 + 15 * i) * r));
  ctx.restore();
}

function drawEnd(u) {
  drawTruth(u, false);
  const told = run.forecast;
  if (!told || u.scales.x.max < run.horizon || u.scales.x.min > run.horizon) return;
  const [value, low, high] = told.ends;
  if (!inside(u, value)) return;
  const { ctx } = u, r = uPlot.pxRatio, x = u.valToPos(run.horizon, "x", true);
  const at = (v) => u.valToPos(v, "y", true);
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = ink.value;
  ctx.lineWidth = 2.5 * r;
  ctx.beginPath();
  ctx.moveTo(x, at(low));
  ctx.lineTo(x, at(high));
  for (const v of [low, high]) {
    ctx.moveTo(x - 4 * r, at(v));
    ctx.lineTo(x + 4 * r, at(v));
  }
  ctx.stroke();
  ctx.beginPath();
  ctx.arc(x, at(value), 4.5 * r, 0, 2 * Math.PI);
  ctx.fill();
  ctx.restore();
  const [text, lowText, highText] = told.texts;
  const span = `${lowText} to ${highText}`;
  const under = span.length <= 15 ? [span, `${told.level} interval`] : [`${lowText} to`, highText, `${told.level} interval`];
  beside(u, at(value), text, under, "value");
}

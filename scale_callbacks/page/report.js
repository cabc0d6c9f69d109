// The four charts of the report, and what changes them: size, colours, print. Follows charts.js in one scope.
const span = (low, high) => `${fine(low)} to ${fine(high)}`;
const some = (rows) => rows.filter(([, value]) => value !== null && value !== undefined).map(([label, value]) => [label, String(value)]);
const number = (x) => (x === null || x === undefined ? null : fine(x));

function drawAll() {
  const { loss, rate, past, residual } = run;
  const few = loss && loss.single.filter((x) => x !== null).length <= 40;
  const told = run.forecast ? run.forecast.ends : [];
  make("loss", 400, loss, ["steps", "fitted", "under", "over", "mean", "value", "low", "high", "single"], [
    line("fitted", "value", { width: 1.25, dash: [5, 4] }), edge(), edge(),
    line("seen", "seen", { width: 1.5 }), line("forecast", "value", { width: 2.5 }), edge(), edge(),
    few ? dots("seen", "seen", false, 5) : edge(),
  ], {
    bands: [{ series: [3, 2], fill: () => faded("seen", 0.16) }, { series: [7, 6], fill: () => faded("value", 0.18) }],
    scales: { y: { range: ranged(loss && ends([...limitsOf(loss, ["under", "over"], run.last / 10),
      ...limitsOf(loss, loss.low ? ["low", "high"] : ["mean"], run.last), ...told])) } },
    draw: drawEnd,
    tip: ([, fitted, , over, mean, value, low, high]) => some([
      ["seen", number(mean)],
      ["spread", mean === null || over === null || over - mean <= 0 ? null : "\u00b1 " + fine(over - mean)],
      ["path", value === null ? number(fitted) : null], ["forecast", number(value)],
      ["interval", low === null ? null : span(low, high)]]),
  });
  make("rate", 190, rate, ["steps", "past", "plan", "area", "annealing"], [
    line("rate", "rate", { scale: "y", width: 2, fill: () => faded("rate", 0.16) }),
    line("plan", "rate", { scale: "y", width: 2, dash: [5, 4], fill: () => faded("rate", 0.06) }),
    line("area", "area", { scale: "%", width: 1.5 }),
    line("annealing", "annealing", { scale: "%", width: 1.5, dash: [2, 3] }),
  ], {
    padding: () => [10, small() ? 0 : margin() - 56, 0, 0],
    scales: { y: { range: (_, low, high) => [0, 1.1 * (high || 1)] }, "%": { range: () => [0, 110] } },
    axes: [xAxis(), yAxis(), axis({ scale: "%", side: 1, size: small() ? 40 : 56, gap: 6, grid: { show: false },
      splits: () => [0, 50, 100], values: (_, splits) => splits.map((x) => x + "%") })],
    tip: ([, seen, plan, area, annealing]) => some([
      ["rate", number(seen === null ? plan : seen)],
      ["S1", area === null ? null : area.toFixed(1) + "%"],
      ["S2", annealing === null ? null : annealing.toFixed(1) + "%"]]),
  });
  make("past", 230, past, ["steps", "value", "low", "high", "doubtful"], [
    line("forecast", "value", { points: { show: true, size: 5, fill: () => ink.value, stroke: () => ink.value } }),
    edge(), edge(), dots("doubtful", "value", true, 6),
  ], {
    bands: [{ series: [3, 2], fill: () => faded("value", 0.18) }],
    scales: { y: { range: ranged(past && pastLimits(past)) } },
    draw: (u) => drawTruth(u, true),
    tip: ([, value, low, high]) => some([
      ["forecast", number(value)], ["interval", value === null ? null : span(low, high)],
      ["off by", value === null || !run.measured ? null : (100 * (value - run.measured) / Math.abs(run.measured)).toFixed(1) + "%"]]),
  });
  make("residual", 170, residual, ["steps", "off", "under", "over"], [
    few ? dots("off", "seen", false, 5) : line("off", "seen", { width: 1.25 }), edge(), edge(),
  ], {
    bands: [{ series: [3, 2], fill: () => faded("seen", 0.16) }],
    scales: { y: { range: ranged(residual && limitsOf(residual, ["off", "under", "over"], run.last / 10)) } },
    draw: drawZero,
    tip: ([, off, , error]) => some([["seen less path", number(off)], ["standard error", error ? fine(error) : null]]),
  });
}

function drawZero(u) {
  if (!inside(u, 0)) return;
  const { ctx, bbox } = u, r = uPlot.pxRatio, y = u.valToPos(0, "y", true);
  ctx.save();
  ctx.strokeStyle = ink.value;
  ctx.lineWidth = r;
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

// Fit the forecasts, but neither those of the first steps nor an interval far wider than the others.
function pastLimits(past) {
  const made = past.steps.map((_, i) => i).filter((i) => past.value[i] !== null);
  const late = made.filter((i) => past.steps[i] >= 0.1 * past.steps[made[made.length - 1]]);
  const width = (i) => past.high[i] - past.low[i];
  const median = late.map(width).sort((a, b) => a - b)[late.length >> 1];
  const usual = late.filter((i) => width(i) <= 4 * median);
  const shown = usual.flatMap((i) => [past.low[i], past.high[i], past.value[i]]);
  return ends([...shown, run.measured]);
}

// Size, colours, print.
function fit() {
  for (const plot of plots) {
    plot.setSize({ width: plot.box.clientWidth, height: small() ? Math.round(plot.tall * 0.82) : plot.tall });
  }
}
function recolour() {
  readInk();
  for (const plot of plots) plot.redraw(false);
}
function rebuild() {
  for (const plot of plots.splice(0)) plot.destroy();
  readInk();
  drawAll();
}

readInk();
drawAll();
let wasSmall = small(), width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  if (small() === wasSmall) fit();
  else rebuild();
  wasSmall = small();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
window.addEventListener("beforeprint", () => {
  root.dataset.paper = "";
  for (const part of document.querySelectorAll("details")) part.open = true;
  for (const plot of plots) plot.box.style.width = "600px";
  recolour();
  fit();
});
window.addEventListener("afterprint", () => {
  delete root.dataset.paper;
  for (const part of document.querySelectorAll("details")) part.open = false;
  for (const plot of plots) plot.box.style.width = "";
  recolour();
  fit();
});
for (const button of document.querySelectorAll(".reset")) {
  button.addEventListener("click", () => plots[0].setScale("x", { min: 0, max: run.horizon }));
}
window.scaleCallbacks = { plots, run };

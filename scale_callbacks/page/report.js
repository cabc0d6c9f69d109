"use strict";
(() => {
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

  // ---- one chart ------------------------------------------------------------------------------------------
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

  // ---- marks on the canvas --------------------------------------------------------------------------------
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

  // ---- the four charts ------------------------------------------------------------------------------------
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

  // ---- size, colours, print -------------------------------------------------------------------------------
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
})();

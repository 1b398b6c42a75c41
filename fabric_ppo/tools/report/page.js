"use strict";
// Draws the curves of a report, and redraws them when a control changes.
(() => {
  const groups = JSON.parse(document.getElementById("data").textContent).groups;
  const root = document.documentElement;
  const state = { axis: "transitions", smooth: 1, singles: true, hidden: new Set() };
  const charts = new Map(); // element -> what is drawn in it
  const AXIS_LABELS = { transitions: "transitions", "wall-time": "time of training" };
  const PRINT_WIDTHS = { main: 660, small: 300 };
  let isPrinting = false;

  // ---- numbers

  const isNumber = (value) => typeof value === "number";

  function trailingMean(values, count) {
    return values.map((_, i) => {
      const part = values.slice(Math.max(0, i - count + 1), i + 1);
      return part.reduce((sum, value) => sum + value, 0) / part.length;
    });
  }

  /** Means of the values whose x lies in the last `width` before each point. */
  function meanOver(x, values, width) {
    let start = 0;
    return values.map((_, i) => {
      while (x[start] <= x[i] - width && start < i) start += 1;
      const part = values.slice(start, i + 1);
      return part.reduce((sum, value) => sum + value, 0) / part.length;
    });
  }

  function pointsOf(run, tag) {
    const x = run.x[state.axis];
    const values = run.metrics[tag] || [];
    const kept = values.map((value, i) => [x[i], value]).filter((point) => point.every(isNumber));
    return { x: kept.map((point) => point[0]), y: kept.map((point) => point[1]) };
  }

  /** Mean distance of a group's points, which a band is smoothed by. */
  function stepOf(group, tag) {
    const all = group.runs.map((run) => pointsOf(run, tag).x).filter((x) => x.length > 1);
    const steps = all.map((x) => (x[x.length - 1] - x[0]) / (x.length - 1));
    return steps.length ? steps.reduce((sum, step) => sum + step, 0) / steps.length : 0;
  }

  // ---- what is drawn

  function seriesOf(tag) {
    const found = [];
    groups.forEach((group, g) => {
      if (state.hidden.has(g)) return;
      const band = (group.bands[tag] || {})[state.axis];
      for (const run of group.runs) {
        const { x, y } = pointsOf(run, tag);
        if (!x.length || (band && !state.singles)) continue;
        if (!band && state.smooth > 1) found.push({ kind: "raw", name: run.name, group: g, x, y });
        const kind = band ? "single" : "run";
        found.push({ kind, name: run.name, group: g, x, y: trailingMean(y, state.smooth) });
      }
      if (!band) return;
      const width = state.smooth > 1 ? stepOf(group, tag) * state.smooth : 0;
      for (const kind of ["high", "low", "middle"]) {
        found.push({ kind, name: group.label, group: g, x: band.x, y: meanOver(band.x, band[kind], width) });
      }
    });
    return found;
  }

  // ---- how it is drawn

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colorOf = (group) => css(`--g${group % 8}`);

  function withAlpha(color, alpha) {
    return color + Math.round(255 * alpha).toString(16).padStart(2, "0");
  }

  function optionsOfSeries(series) {
    const color = colorOf(series.group);
    const [width, alpha] = { run: [2, 1], middle: [2.5, 1], single: [1, 0.35], raw: [1, 0.3], high: [0, 0], low: [0, 0] }[series.kind];
    const isLone = series.x.length === 1;
    return {
      label: series.name, stroke: withAlpha(color, alpha), width, spanGaps: true,
      points: { show: isLone && series.kind !== "low" && series.kind !== "high", size: 7, fill: color },
    };
  }

  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

  function formatNumber(value) {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size < 1e-3 || size >= 1e15) return value.toExponential(1).replace("e+", "e");
    return size >= 1e4 ? compact.format(value) : String(Number(value.toPrecision(4)));
  }

  function formatSeconds(value) {
    if (value < 120) return `${Number(value.toPrecision(3))} s`;
    return value < 7200 ? `${Number((value / 60).toPrecision(3))} min` : `${Number((value / 3600).toPrecision(3))} h`;
  }

  const formatX = (value) => (state.axis === "transitions" ? formatNumber(value) : formatSeconds(value));

  function axisOptions(format) {
    const line = { stroke: css("--line"), width: 1 };
    return {
      stroke: css("--muted"), grid: line, ticks: line, font: "12px system-ui, sans-serif",
      values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))),
    };
  }

  function sizeOf(element) {
    const isMain = element.closest(".main-chart") !== null;
    const width = isPrinting ? PRINT_WIDTHS[isMain ? "main" : "small"] : element.clientWidth;
    return { width, height: element.clientHeight };
  }

  function optionsOf(element, series) {
    const bands = series.flatMap((each, i) =>
      each.kind === "high" ? [{ series: [i + 1, i + 2], fill: withAlpha(colorOf(each.group), 0.18) }] : []);
    const isMain = element.closest(".main-chart") !== null;
    return {
      ...sizeOf(element), bands, legend: { show: false }, padding: [10, 12, 0, 0],
      scales: { x: { time: false } },
      axes: [
        { ...axisOptions(formatX), space: 70, size: 30, ...(isMain && { label: AXIS_LABELS[state.axis], labelSize: 22, labelFont: "12px system-ui, sans-serif" }) },
        { ...axisOptions(formatNumber), size: 56, space: 34 },
      ],
      series: [{}, ...series.map(optionsOfSeries)],
      cursor: { y: false, sync: { key: "report", scales: ["x", null] }, drag: { x: true, y: false }, points: { show: false } },
      hooks: { setCursor: [(plot) => readOut(element, plot)] },
    };
  }

  function draw(element) {
    const old = charts.get(element);
    if (old) old.plot.destroy();
    charts.delete(element);
    const series = seriesOf(element.dataset.tag);
    element.classList.toggle("empty", !series.length);
    element.textContent = series.length ? "" : "No values.";
    if (!series.length || !element.clientWidth) return;
    const table = uPlot.join(series.map((each) => [each.x, each.y]));
    charts.set(element, { series, plot: new uPlot(optionsOf(element, series), table, element) });
  }

  function drawAll() {
    document.querySelectorAll(".chart").forEach(draw);
  }

  // ---- values below the cursor, by mouse and by keys

  const nearest = (x, place) =>
    x.reduce((best, value, i) => (Math.abs(value - place) < Math.abs(x[best] - place) ? i : best), 0);

  function readOut(element, plot) {
    const chart = charts.get(element);
    const output = element.parentElement.querySelector(".readout");
    if (!chart || plot.cursor.idx === null || plot.cursor.left < 0) {
      output.textContent = "";
      return;
    }
    const place = plot.posToVal(plot.cursor.left, "x");
    const shown = chart.series.filter((each) => each.kind === "run" || each.kind === "middle");
    const unit = state.axis === "transitions" ? "transitions" : "of training";
    const where = shown.length ? shown[0].x[nearest(shown[0].x, place)] : place;
    const text = state.axis === "transitions" ? plain.format(Math.round(where)) : formatSeconds(where);
    const values = shown.map((each) => {
      const value = plain.format(each.y[nearest(each.x, place)]);
      return shown.length > 1 ? `${each.name}: ${value}` : value;
    });
    output.textContent = `${text} ${unit}: ${values.join(" · ")}`;
  }

  function moveAlong(event) {
    const chart = charts.get(event.currentTarget);
    if (!chart) return;
    const { plot, series } = chart;
    const x = (series.find((each) => each.kind === "middle" || each.kind === "run") || series[0]).x;
    const idx = plot.cursor.left >= 0 ? nearest(x, plot.posToVal(plot.cursor.left, "x")) : -1;
    const moves = { ArrowRight: idx + 1, ArrowLeft: Math.max(idx, 0) - 1, Home: 0, End: x.length - 1 };
    if (event.key === "Escape") {
      plot.setCursor({ left: -10, top: -10 });
    } else if (event.key in moves) {
      const next = Math.min(Math.max(moves[event.key], 0), x.length - 1);
      plot.setCursor({ left: plot.valToPos(x[next], "x"), top: 1 });
      event.preventDefault();
    }
  }

  // ---- controls

  function mostSmoothing() {
    const longest = Math.max(1, ...groups.flatMap((group) => group.runs.map((run) => run.x.transitions.length)));
    return Math.min(200, Math.max(1, Math.floor(longest / 3)));
  }

  function setUpControls() {
    const slider = document.getElementById("smooth");
    const text = document.getElementById("smooth-text");
    slider.max = String(mostSmoothing());
    slider.value = "1";
    slider.disabled = slider.max === "1";
    const describe = () => {
      state.smooth = Number(slider.value);
      text.textContent = state.smooth === 1 ? "none" : `${state.smooth} points`;
      slider.setAttribute("aria-valuetext", text.textContent);
    };
    describe();
    slider.addEventListener("input", () => { describe(); drawAll(); });
    document.querySelectorAll("input[name=axis]").forEach((radio) => {
      radio.checked = radio.value === state.axis;
      radio.addEventListener("change", () => { state.axis = radio.value; drawAll(); });
    });
    const singles = document.getElementById("singles");
    if (singles) {
      singles.checked = true;
      singles.addEventListener("change", () => { state.singles = singles.checked; drawAll(); });
    }
    document.querySelectorAll(".chip").forEach((chip) => chip.addEventListener("click", () => {
      const group = Number(chip.dataset.group);
      if (!state.hidden.delete(group)) state.hidden.add(group);
      chip.setAttribute("aria-pressed", String(!state.hidden.has(group)));
      drawAll();
    }));
    document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  }

  // ---- theme, copying, printing, sizes

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";

  function setUpTheme() {
    const button = document.getElementById("theme");
    const show = () => { button.setAttribute("aria-pressed", String(isDark())); drawAll(); };
    button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; show(); });
    dark.addEventListener("change", show);
    button.setAttribute("aria-pressed", String(isDark()));
  }

  function copyFrom(button) {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    getSelection().removeAllRanges();
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  function setUpPrinting() {
    let theme;
    addEventListener("beforeprint", () => {
      theme = root.dataset.theme;
      root.dataset.theme = "light";
      isPrinting = true;
      drawAll();
    });
    addEventListener("afterprint", () => {
      if (theme === undefined) delete root.dataset.theme;
      else root.dataset.theme = theme;
      isPrinting = false;
      drawAll();
    });
  }

  function setUpSizes() {
    const observer = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const chart = charts.get(target);
        if (isPrinting) continue;
        if (!chart) { if (target.clientWidth && !target.classList.contains("empty")) draw(target); continue; }
        const size = sizeOf(target);
        if (size.width && (size.width !== chart.plot.width || size.height !== chart.plot.height)) chart.plot.setSize(size);
      }
    });
    document.querySelectorAll(".chart").forEach((element) => {
      element.addEventListener("keydown", moveAlong);
      observer.observe(element);
    });
  }

  setUpControls();
  setUpTheme();
  setUpPrinting();
  setUpSizes();
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copyFrom(button)));
  drawAll();

  /** The series that a chart shows, as the library has them: [{kind, name, x, y}]. */
  window.drawnSeries = (tag) => {
    const element = [...document.querySelectorAll(".chart")].find((each) => each.dataset.tag === tag);
    const chart = charts.get(element);
    if (!chart) return [];
    const [x, ...columns] = chart.plot.data;
    return chart.series.map(({ kind, name }, i) => {
      const kept = columns[i].map((value, k) => [x[k], value]).filter((point) => isNumber(point[1]));
      return { kind, name, x: kept.map((point) => point[0]), y: kept.map((point) => point[1]) };
    });
  };
})();

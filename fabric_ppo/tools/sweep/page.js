"use strict";
// Draws the history of a sweep: values of trials, pruned ones, the best so far.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const element = document.getElementById("history");
  const output = element.parentElement.querySelector(".readout");
  let plot = null;

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const format = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
    return String(Number(value.toPrecision(5)));
  };

  function axis(more) {
    const line = { stroke: css("--line"), width: 1 };
    const values = (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick)));
    return { stroke: css("--muted"), grid: line, ticks: line, font: "12px system-ui, sans-serif", values, ...more };
  }

  function dots(color, fill) {
    return { paths: () => null, stroke: color, points: { show: true, size: 7, width: 1.5, stroke: color, fill } };
  }

  function readOut() {
    const at = plot.cursor.idx;
    if (at === null || at === undefined || plot.cursor.left < 0) {
      output.textContent = "";
      return;
    }
    const words = [];
    if (data.value[at] !== null) words.push(format(data.value[at]));
    else words.push(data.pruned[at] === null ? "no value" : `pruned at ${format(data.pruned[at])}`);
    if (data.best[at] !== null) words.push(`best so far ${format(data.best[at])}`);
    output.textContent = `trial ${data.number[at]}: ${words.join(", ")}`;
  }

  function options() {
    const steps = uPlot.paths.stepped({ align: 1 });
    return {
      width: element.clientWidth, height: element.clientHeight, legend: { show: false }, padding: [10, 12, 0, 0],
      scales: { x: { time: false } },
      axes: [
        axis({ space: 60, size: 30, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000], label: "trial", labelSize: 22, labelFont: "12px system-ui, sans-serif" }),
        axis({ size: 62, space: 34 }),
      ],
      series: [
        {}, dots(css("--g6"), css("--card")), dots(css("--g0"), css("--g0")),
        { stroke: css("--g1"), width: 2, paths: steps, points: { show: data.number.length === 1 }, spanGaps: true },
      ],
      cursor: { y: false, drag: { x: true, y: false }, points: { show: false } },
      hooks: { setCursor: [readOut] },
    };
  }

  function draw() {
    if (plot) plot.destroy();
    plot = null;
    const isEmpty = data.value.concat(data.pruned).every((value) => value === null);
    element.classList.toggle("empty", isEmpty);
    element.textContent = isEmpty ? "No trial has a value yet." : "";
    if (isEmpty || !element.clientWidth) return;
    plot = new uPlot(options(), [data.number, data.pruned, data.value, data.best], element);
  }

  function moveAlong(event) {
    if (!plot) return;
    const last = data.number.length - 1;
    const at = plot.cursor.left >= 0 ? plot.cursor.idx : -1;
    const moves = { ArrowRight: at + 1, ArrowLeft: Math.max(at, 0) - 1, Home: 0, End: last };
    if (event.key === "Escape") {
      plot.setCursor({ left: -10, top: -10 });
    } else if (event.key in moves) {
      const next = Math.min(Math.max(moves[event.key], 0), last);
      plot.setCursor({ left: plot.valToPos(data.number[next], "x"), top: 1 });
      event.preventDefault();
    }
  }

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const button = document.getElementById("theme");
  const show = () => { button.setAttribute("aria-pressed", String(isDark())); draw(); };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; show(); });
  dark.addEventListener("change", show);

  document.querySelectorAll(".copy").forEach((each) => each.addEventListener("click", () => {
    getSelection().selectAllChildren(each.parentElement.querySelector("code"));
    each.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    getSelection().removeAllRanges();
    setTimeout(() => { each.textContent = "Copy"; }, 1500);
  }));

  element.addEventListener("keydown", moveAlong);
  new ResizeObserver(() => {
    const { clientWidth: width, clientHeight: height } = element;
    if (plot && width && (width !== plot.width || height !== plot.height)) plot.setSize({ width, height });
  }).observe(element);
  show();

  /** What the history shows, as the library has it. */
  window.drawnHistory = () => (plot ? plot.data.map((column) => [...column]) : []);
})();

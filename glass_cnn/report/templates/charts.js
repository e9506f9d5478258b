// Charts of report.html: curves of runs side by side, and what all charts share; estimates.js has
// the others. Plotly draws; colours are the variables of the style sheet, so that they follow the
// screen's light or dark.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const safe = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const color = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const tone = (arm) => color(data.arms[arm].color);
const faint = (arm) => `${tone(arm)}24`;
const isNarrow = () => innerWidth < 600;

// --- plots ----------------------------------------------------------------------------------
const plots = new Map(); // element -> function that gives its traces and layout, of those drawn
const figures = []; // elements that are to be drawn, and what draws each
const PAPER = 680; // width of a plot on paper, px
const MANY = 8; // arms from which on legends stand at the side, and bands are left out

const config = {
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["lasso2d", "select2d"],
  toImageButtonOptions: { format: "svg" },
};

const LEGEND_ABOVE = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };

const layout = (x, y) => {
  const axis = {
    gridcolor: color("grid"),
    linecolor: color("axis"),
    tickcolor: color("axis"),
    ticks: "outside",
    zeroline: false,
  };
  return {
    margin: { l: 62, r: isNarrow() ? 8 : 24, t: 12, b: 48 },
    font: { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12, color: color("ink") },
    paper_bgcolor: color("paper"),
    plot_bgcolor: color("paper"),
    hovermode: "closest",
    xaxis: { ...axis, title: { text: x }, rangemode: "tozero" },
    yaxis: { ...axis, title: { text: y } },
    showlegend: data.arms.length <= MANY || !isNarrow(), // the table of arms has their colours
    legend: {
      traceorder: "normal",
      ...(data.arms.length <= MANY ? LEGEND_ABOVE : { font: { size: 9 } }),
    },
  };
};

const draw = (element) => {
  const { traces, shape } = plots.get(element)();
  return Plotly.react(element, traces, shape, config);
};

// --- curves ---------------------------------------------------------------------------------
const chart = byId("curves-plot");
const drawnArms = data.with_curves;
const canSplit = drawnArms.length > 1 && drawnArms.length <= 24;
const view = {
  quantity: "validation_accuracy",
  x: "iteration",
  mode: canSplit ? "panels" : "runs",
  isolated: null,
};

const AXES = { iteration: "iteration", samples: "samples seen", epochs: "epochs" };
const epochsOf = (curve) => curve.iteration.map((iteration) => iteration * curve.epochs);
const hasEpochs = data.runs.every((run) => run.epochs !== null);

const placesOf = (run) => {
  if (view.x === "iteration") return run.iteration;
  return view.x === "epochs" ? epochsOf(run) : run.step.map((step) => step * run.batch);
};

const opacityOf = (run) => {
  if (view.isolated === null) return 0.75;
  return run.name === view.isolated ? 1 : 0.07;
};
const widthOf = (run) => (run.name === view.isolated ? 2.2 : 1.2);

const runTraces = () => {
  const seen = new Set();
  return data.runs.map((run) => {
    const arm = data.arms[run.arm];
    const isFirst = !seen.has(run.arm);
    seen.add(run.arm);
    return {
      x: placesOf(run),
      y: run.series[view.quantity],
      meta: run.name,
      mode: "lines",
      type: "scatter",
      name: safe(arm.label),
      legendgroup: arm.label,
      showlegend: isFirst && view.mode === "runs",
      connectgaps: false,
      ...(view.mode === "panels" ? axesOf(drawnArms.indexOf(run.arm)) : {}),
      line: { color: tone(run.arm), width: widthOf(run) },
      opacity: opacityOf(run),
      hovertemplate: `<b>${safe(run.name)}</b><br>seed ${run.seed} · ${safe(run.outcome)}<br>` +
        `${view.x} %{x}<br>${safe(data.quantities[view.quantity])} %{y:.5g}<extra></extra>`,
    };
  });
};

const bandTraces = () =>
  data.bands.flatMap((band) => {
    const arm = data.arms[band.arm];
    const [low, middle, high] = band.series[view.quantity];
    const x = view.x === "epochs" ? epochsOf(band) : band[view.x];
    const common = { x, mode: "lines", type: "scatter", legendgroup: arm.label };
    const edge = { ...common, line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    return [
      { ...edge, y: low },
      { ...edge, y: high, fill: "tonexty", fillcolor: faint(band.arm) },
      {
        ...common,
        y: middle,
        name: safe(arm.label),
        line: { color: tone(band.arm), dash: arm.dash, width: 2.2 },
        hovertemplate: `<b>${safe(arm.label)}</b>, median of ${band.runs} runs<br>` +
          `${view.x} %{x}<br>%{y:.5g}<extra></extra>`,
      },
    ];
  });

// Panels side by side or in rows, with the same axes; each has a title in a colour.
const across = (element, count) => {
  const most = element.clientWidth < 480 ? 2 : element.clientWidth < 800 ? 3 : 4;
  return Math.min(count, most);
};
const rowsOf = (element, count) => Math.ceil(count / across(element, count));
const axesOf = (i) => ({ xaxis: i ? `x${i + 1}` : "x", yaxis: i ? `y${i + 1}` : "y" });
const fitting = (text, most) =>
  text.length <= most ? text : `${text.slice(0, most / 2)}…${text.slice(1 - most / 2)}`;

const panels = (shape, element, titles) => {
  const count = titles.length;
  const columns = across(element, count);
  const rows = Math.ceil(count / columns);
  const gap = 24 / Math.min(element.clientWidth, PAPER);
  const width = (element.clientWidth - 100) / columns;
  const { xaxis, yaxis } = shape;
  shape.annotations = [];
  titles.forEach((title, i) => {
    const column = i % columns;
    const row = rows - 1 - Math.floor(i / columns);
    const left = column / columns + (column ? gap / 2 : 0);
    const right = (column + 1) / columns - (column < columns - 1 ? gap / 2 : 0);
    const bottom = row / rows + (row ? 0.03 : 0);
    const top = (row + 1) / rows - 0.1 / rows;
    const key = i ? String(i + 1) : "";
    const x = { ...xaxis, domain: [left, right], anchor: `y${key}` };
    const y = { ...yaxis, domain: [bottom, top], anchor: `x${key}` };
    if (i) Object.assign(x, { matches: "x" });
    if (i) Object.assign(y, { matches: "y" });
    if (rows > 1 && i !== columns * Math.floor(rows / 2)) y.title = undefined;
    if (column) Object.assign(y, { title: undefined, showticklabels: false, ticks: "" });
    if (i + columns < count) {
      Object.assign(x, { title: undefined, showticklabels: false });
    }
    shape[`xaxis${key}`] = x;
    shape[`yaxis${key}`] = y;
    const label = fitting(title.text, width / 5);
    const size = Math.min(rows > 1 ? 11 : 12.5, width / (0.7 * label.length));
    shape.annotations.push({
      text: `<b>${safe(label)}</b>`,
      font: { color: title.color, size },
      showarrow: false,
      xref: "paper",
      yref: "paper",
      x: left,
      y: top,
      xanchor: "left",
      yanchor: "bottom",
    });
  });
  return shape;
};

const curveLayout = () => {
  const unit = /loss/.test(view.quantity) ? " (nats)" : "";
  const name = data.quantities[view.quantity] + unit;
  const shape = layout(AXES[view.x], name);
  if (/loss|rate/.test(view.quantity)) shape.yaxis.type = "log";
  shape.uirevision = view.x + view.quantity + view.mode;
  if (view.mode !== "panels") return shape;
  const titles = drawnArms.map((arm) => ({ text: data.arms[arm].label, color: tone(arm) }));
  return panels(shape, chart, titles);
};

const curves = () => ({
  traces: view.mode === "bands" ? bandTraces() : runTraces(),
  shape: curveLayout(),
});

const redraw = () => {
  const rows = view.mode === "panels" ? rowsOf(chart, drawnArms.length) : 1;
  chart.style.height = `${Math.max(460, 150 * rows)}px`;
  chart.dataset.isolated = view.isolated ?? "";
  byId("isolated").textContent = hint();
  return draw(chart);
};

const hint = () => {
  const run = data.runs.find((r) => r.name === view.isolated);
  if (run) return `${run.name} alone · ${run.outcome} · choose it again to see all.`;
  if (view.mode !== "bands") {
    return "Click a curve to see that run alone; click it again to see all.";
  }
  const runs = data.bands.reduce((sum, band) => sum + band.runs, 0);
  return `Median, and the band from the 10 % to the 90 % quantile, over the seeds of each arm (${runs} runs).`;
};

const isolate = (name) => {
  if (view.mode === "bands") view.mode = "runs";
  view.isolated = view.isolated === name ? null : name;
  controls();
  return redraw();
};

// Runs that are not drawn travel compressed, and join the others when one is asked for.
let others = null;
const include = async (name) => {
  if (data.runs.some((run) => run.name === name)) return;
  others ??= unpack("others").then(JSON.parse);
  const run = (await others).find((r) => r.name === name);
  if (run && !data.runs.includes(run)) data.runs.push(run);
};

const choice = (key, label, options) => {
  const group = document.createElement("span");
  group.className = "choice";
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", label);
  for (const [value, title] of Object.entries(options)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.dataset.value = value;
    button.setAttribute("aria-pressed", String(view[key] === value));
    button.addEventListener("click", () => {
      view[key] = value;
      view.isolated = null;
      controls();
      byId("controls").querySelector(`[data-value="${value}"]`).focus();
      redraw();
    });
    group.append(button);
  }
  return group;
};

const controls = () =>
  byId("controls").replaceChildren(
    choice("quantity", "Quantity", data.quantities),
    choice("x", "Against", {
      iteration: "Iterations",
      samples: "Samples",
      ...(hasEpochs ? { epochs: "Epochs" } : {}),
    }),
    choice("mode", "Arrangement", {
      ...(canSplit ? { panels: "By arm" } : {}),
      runs: "Together",
      bands: "Median and band",
    }),
  );

const showCurves = async () => {
  plots.set(chart, curves);
  controls();
  await redraw();
  chart.on("plotly_click", (event) => {
    if (event.points[0].data.meta) isolate(event.points[0].data.meta);
  });
  document.addEventListener("isolate", async (event) => {
    await include(event.detail);
    if (view.isolated !== event.detail) isolate(event.detail);
  });
};
if (chart) figures.push([chart, showCurves]);

// --- the page -------------------------------------------------------------------------------
const unpack = (id) => {
  const packed = Uint8Array.from(atob(byId(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};

const pause = () => new Promise((go) => setTimeout(go));
const isInSight = ([element]) => {
  const { top, bottom } = element.getBoundingClientRect();
  return top < innerHeight && bottom > 0;
};

const start = async () => {
  await pause(); // words first
  const library = document.createElement("script");
  library.textContent = await unpack("plotly");
  document.head.append(library);
  const redrawAll = () => [...plots.keys()].forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  // Paper is white, and everything has its width.
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.paper = "";
    for (const plot of plots.keys()) {
      const { traces, shape } = plots.get(plot)();
      const size = { width: PAPER, height: 0.8 * plot.clientHeight };
      Plotly.react(plot, traces, { ...shape, ...size }, config);
    }
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.paper;
    redrawAll();
  });
  // What is in sight, and then the rest; the page answers a scroll or a key in between.
  while (figures.length > 0) {
    const [[, show]] = figures.splice(Math.max(0, figures.findIndex(isInSight)), 1);
    await show();
    await pause();
  }
  document.documentElement.dataset.ready = "true";
};
addEventListener("DOMContentLoaded", start);

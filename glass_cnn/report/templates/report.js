"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const safe = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const faint = (color) => color + "24";
  const plots = [];
  const PAGE = 680; // width of a plot on paper

  const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"], toImageButtonOptions: { format: "svg" } };
  const layout = (x, y, more = {}) => ({
    margin: { l: 62, r: 24, t: 12, b: 48 },
    font: { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12, color: "#1c1f23" },
    paper_bgcolor: "#fff", plot_bgcolor: "#fff", hovermode: "closest",
    xaxis: { title: { text: x }, gridcolor: "#eceef1", linecolor: "#9aa2ab", ticks: "outside", zeroline: false, rangemode: "tozero" },
    yaxis: { title: { text: y }, gridcolor: "#eceef1", linecolor: "#9aa2ab", ticks: "outside", zeroline: false },
    legend: { traceorder: "normal", ...(data.arms.length <= 8 ? { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 } : { font: { size: 9 } }) },
    ...more,
  });
  const draw = (element, traces, shape) => {
    plots.push(element);
    return Plotly.newPlot(element, traces, shape, config);
  };

  // --- curves -------------------------------------------------------------------------------
  const drawnArms = [...new Set(data.runs.map((run) => run.arm))];
  const canSplit = drawnArms.length > 1 && drawnArms.length <= 24;
  const view = { quantity: "validation_accuracy", x: "iteration", mode: canSplit ? "panels" : "runs", isolated: null };
  const chart = byId("curves-plot");
  const xs = (run) => (view.x === "iteration" ? run.iteration : run.step.map((s) => s * run.batch));

  // One panel for each arm, side by side or in rows, with the same axes.
  const fitting = (text, most) => (text.length <= most ? text : text.slice(0, most / 2) + "…" + text.slice(1 - most / 2));
  const acrossOf = () => Math.min(drawnArms.length, chart.clientWidth < 800 ? 3 : 4);
  const axesOf = (i) => ({ xaxis: i ? `x${i + 1}` : "x", yaxis: i ? `y${i + 1}` : "y" });
  const panels = (shape) => {
    const across = acrossOf();
    const down = Math.ceil(drawnArms.length / across);
    const gap = 24 / Math.min(chart.clientWidth, PAGE);
    const { xaxis, yaxis } = shape;
    const wide = (chart.clientWidth - 100) / across;
    shape.annotations = [];
    drawnArms.forEach((arm, i) => {
      const column = i % across, row = down - 1 - Math.floor(i / across);
      const [left, right] = [column / across + (column ? gap / 2 : 0), (column + 1) / across - (column < across - 1 ? gap / 2 : 0)];
      const [bottom, top] = [row / down + (row ? 0.03 : 0), (row + 1) / down - 0.1 / down];
      const key = i ? String(i + 1) : "";
      shape[`xaxis${key}`] = { ...xaxis, domain: [left, right], anchor: `y${key}`, ...(i ? { matches: "x" } : {}) };
      shape[`yaxis${key}`] = { ...yaxis, domain: [bottom, top], anchor: `x${key}`, ...(i ? { matches: "y" } : {}) };
      if (down > 1) shape[`yaxis${key}`].title = i === across * Math.floor(down / 2) ? yaxis.title : undefined;
      if (column) Object.assign(shape[`yaxis${key}`], { title: undefined, showticklabels: false, ticks: "" });
      if (i + across < drawnArms.length) Object.assign(shape[`xaxis${key}`], { title: undefined, showticklabels: false });
      const label = fitting(data.arms[arm].label, wide / 5);
      const size = Math.min(down > 1 ? 11 : 12.5, wide / (0.7 * label.length));
      shape.annotations.push({ text: `<b>${safe(label)}</b>`, font: { color: data.arms[arm].color, size }, showarrow: false, xref: "paper", yref: "paper", x: left, y: top, xanchor: "left", yanchor: "bottom" });
    });
    return shape;
  };

  const runTraces = () => {
    const seen = new Set();
    return data.runs.map((run) => {
      const arm = data.arms[run.arm];
      const first = !seen.has(run.arm);
      seen.add(run.arm);
      return {
        x: xs(run), y: run.series[view.quantity], meta: run.name, mode: "lines", type: "scatter",
        name: safe(arm.label), legendgroup: arm.label, showlegend: first && view.mode === "runs", connectgaps: false,
        ...(view.mode === "panels" ? axesOf(drawnArms.indexOf(run.arm)) : {}),
        line: { color: arm.color, width: 1.2 }, opacity: 0.75,
        hovertemplate: `<b>${safe(run.name)}</b><br>seed ${run.seed} · ${safe(run.outcome)}<br>${view.x} %{x}<br>${safe(data.quantities[view.quantity])} %{y:.5g}<extra></extra>`,
      };
    });
  };
  const bandTraces = () => data.bands.flatMap((band) => {
    const arm = data.arms[band.arm];
    const [low, middle, high] = band.series[view.quantity];
    const x = view.x === "iteration" ? band.iteration : band.samples;
    const edge = { x, mode: "lines", type: "scatter", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: arm.label };
    return [
      { ...edge, y: low },
      { ...edge, y: high, fill: "tonexty", fillcolor: faint(arm.color) },
      { x, y: middle, mode: "lines", type: "scatter", name: safe(arm.label), legendgroup: arm.label, line: { color: arm.color, dash: arm.dash, width: 2.2 },
        hovertemplate: `<b>${safe(arm.label)}</b>, median of ${band.runs} runs<br>${view.x} %{x}<br>%{y:.5g}<extra></extra>` },
    ];
  });
  const curveLayout = () => {
    const unit = /loss/.test(view.quantity) ? " (nats)" : "";
    const shape = layout(view.x === "iteration" ? "iteration" : "samples seen", data.quantities[view.quantity] + unit);
    if (/loss|rate/.test(view.quantity)) shape.yaxis.type = "log";
    else shape.yaxis.rangemode = "normal";
    shape.uirevision = view.x + view.quantity + view.mode;
    return view.mode === "panels" ? panels(shape) : shape;
  };
  const resize = () => {
    const rows = view.mode === "panels" ? Math.ceil(drawnArms.length / acrossOf()) : 1;
    chart.style.height = `${Math.max(460, 150 * rows)}px`;
  };
  const redraw = () => {
    view.isolated = null;
    resize();
    tell();
    return Plotly.react(chart, view.mode === "bands" ? bandTraces() : runTraces(), curveLayout(), config);
  };
  const tell = () => {
    const run = data.runs.find((r) => r.name === view.isolated);
    chart.dataset.isolated = view.isolated ?? "";
    byId("isolated").textContent = run
      ? `${run.name} alone · ${run.outcome} · click it again to see all.`
      : view.mode === "bands" ? "Median, and the band from the 10 % to the 90 % quantile, over the seeds of each arm." : "Click a curve to see that run alone; click it again to see all.";
  };
  const isolate = (name) => {
    if (view.mode === "bands") { view.mode = "runs"; controls(); redraw(); }
    view.isolated = view.isolated === name ? null : name;
    const alone = view.isolated;
    Plotly.restyle(chart, {
      opacity: data.runs.map((r) => (alone === null ? 0.75 : r.name === alone ? 1 : 0.07)),
      "line.width": data.runs.map((r) => (r.name === alone ? 2.2 : 1.2)),
    });
    tell();
  };
  const choice = (key, options) => {
    const group = make("span", { class: "choice", role: "group" });
    for (const [value, title] of Object.entries(options)) {
      const button = make("button", { type: "button", "aria-pressed": String(view[key] === value), "data-value": value }, title);
      button.addEventListener("click", () => { view[key] = value; controls(); redraw(); });
      group.append(button);
    }
    return group;
  };
  const controls = () => byId("controls").replaceChildren(
    choice("quantity", data.quantities),
    choice("x", { iteration: "Iterations", samples: "Samples" }),
    choice("mode", { ...(canSplit ? { panels: "By arm" } : {}), runs: "Together", bands: "Median and band" }),
  );
  if (chart) {
    controls();
    resize();
    draw(chart, runTraces(), curveLayout()).then(() => {
      chart.on("plotly_click", (event) => {
        if (event.points[0].data.meta) isolate(event.points[0].data.meta);
      });
    });
  }

  // --- survival, profiles, grid -------------------------------------------------------------
  const band = (x, low, high, color, shape) => data.arms.length > 8 ? [] : [
    { x, y: low, mode: "lines", line: { width: 0, shape }, hoverinfo: "skip", showlegend: false },
    { x, y: high, mode: "lines", line: { width: 0, shape }, fill: "tonexty", fillcolor: faint(color), hoverinfo: "skip", showlegend: false },
  ];
  if (byId("survival-plot")) {
    const traces = data.survival.flatMap((s) => {
      const arm = data.arms[s.arm];
      const line = { color: arm.color, dash: arm.dash, width: 2, shape: "hv" };
      return [
        ...band(s.time, s.low, s.high, arm.color, "hv"),
        { x: s.time, y: s.survival, customdata: s.risk.map((n, i) => [n, s.low[i], s.high[i]]), mode: "lines", name: safe(arm.label), line,
          hovertemplate: `<b>${safe(arm.label)}</b><br>%{y:.0%} (%{customdata[1]:.0%}–%{customdata[2]:.0%}) not collapsed after %{x} steps<br>%{customdata[0]} at risk<extra></extra>` },
        { x: s.censored, y: s.censored_at, mode: "markers", marker: { symbol: "line-ns-open", size: 9, color: arm.color }, hoverinfo: "skip", showlegend: false },
      ];
    });
    draw(byId("survival-plot"), traces, layout("steps since learned", "share not collapsed", { yaxis: { title: { text: "share not collapsed" }, range: [0, 1.04], tickformat: ".0%", gridcolor: "#eceef1", linecolor: "#9aa2ab", zeroline: false } }));
  }
  if (byId("profiles-plot")) {
    const traces = data.profiles.flatMap((p) => {
      const arm = data.arms[p.arm];
      const line = { color: arm.color, width: 2 };
      return [
        ...band(data.tau, p.low, p.high, arm.color, "linear"),
        { x: data.tau, y: p.final, mode: "lines", name: safe(arm.label), legendgroup: arm.label, line,
          hovertemplate: `<b>${safe(arm.label)}</b><br>final above %{x:.1%}: %{y:.0%} of runs<extra></extra>` },
        { x: data.tau, y: p.optimal, mode: "lines", showlegend: false, legendgroup: arm.label, line: { ...line, dash: "dot", width: 1.5 },
          hovertemplate: `<b>${safe(arm.label)}</b><br>optimal above %{x:.1%}: %{y:.0%} of runs<extra></extra>` },
      ];
    });
    const shape = layout("validation accuracy τ", "share of runs above τ");
    Object.assign(shape.yaxis, { range: [-0.02, 1.04], tickformat: ".0%" });
    Object.assign(shape.xaxis, { tickformat: ".0%", rangemode: "normal" });
    draw(byId("profiles-plot"), traces, shape);
  }
  document.querySelectorAll("[data-map]").forEach((element) => {
    const map = data.heatmaps[Number(element.dataset.map)];
    const shape = layout(map.x_name, map.y_name);
    element.style.height = `${110 + 52 * map.y.length}px`;
    Object.assign(shape.xaxis, { type: "category", showgrid: false });
    Object.assign(shape.yaxis, { type: "category", showgrid: false, automargin: true });
    draw(element, [{
      type: "heatmap", x: map.x, y: map.y, z: map.z, text: map.text, texttemplate: "%{text}", zmin: 0, zmax: 1, xgap: 2, ygap: 2,
      colorscale: [[0, "#f2f6fa"], [0.5, "#6aaed6"], [1, "#08306b"]], colorbar: { tickformat: ".0%", thickness: 12, outlinewidth: 0 },
      hovertemplate: `${safe(map.x_name)} %{x}<br>${safe(map.y_name)} %{y}<br>%{text}<extra></extra>`,
    }], shape);
  });

  // --- gallery: small vector figures of the same data ---------------------------------------
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const ticks = (low, high) => {
    const rough = (high - low) / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const marks = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) marks.push(Number(value.toPrecision(6)));
    return marks;
  };
  const W = 236, H = 160, L = 34, R = 12, T = 20, B = 32;
  const panel = (run, what, left) => {
    const group = svg("g", { transform: `translate(${left} 0)` });
    const lines = [["train_", "#E69F00", "training"], ["validation_", "#0072B2", "validation"]];
    const values = lines.flatMap(([side]) => run.series[side + what]).filter((v) => v !== null);
    const largest = values.reduce((a, b) => Math.max(a, b), 0);
    const smallest = values.reduce((a, b) => Math.min(a, b), Infinity);
    const [low, high] = what === "accuracy" ? [Math.min(0.4, smallest), 1] : [0, largest || 1];
    const end = run.iteration.at(-1);
    const x = (v) => L + ((W - L - R) * v) / end;
    const y = (v) => H - B - ((H - B - T) * (v - low)) / (high - low);
    for (const mark of ticks(low, high)) {
      group.append(svg("line", { x1: L, x2: W - R, y1: y(mark), y2: y(mark), stroke: "#eceef1" }));
      group.append(svg("text", { x: L - 4, y: y(mark) + 3, "text-anchor": "end", fill: "#5b636d" }, mark));
    }
    for (const mark of ticks(0, end)) group.append(svg("text", { x: x(mark), y: H - B + 13, "text-anchor": "middle", fill: "#5b636d" }, mark));
    group.append(svg("line", { x1: L, x2: W - R, y1: H - B, y2: H - B, stroke: "#9aa2ab" }));
    group.append(svg("text", { x: (L + W - R) / 2, y: H - 3, "text-anchor": "middle", fill: "#1c1f23" }, `${what} against iterations`));
    if (run.onset !== null) group.append(svg("line", { x1: x(run.onset), x2: x(run.onset), y1: T, y2: H - B, stroke: "#D55E00", "stroke-dasharray": "2 2" }));
    lines.forEach(([side, color, name], index) => {
      let path = "", pen = "M";
      run.series[side + what].forEach((v, i) => {
        if (v === null) { pen = "M"; return; }
        path += `${pen}${x(run.iteration[i]).toFixed(1)} ${y(v).toFixed(1)}`;
        pen = "L";
      });
      group.append(svg("path", { d: path, fill: "none", stroke: color, "stroke-width": 1.1 }));
      if (what === "loss") group.append(svg("text", { x: L + 56 * index, y: 11, fill: color === "#E69F00" ? "#9a6a00" : color }, name));
    });
    return group;
  };
  const drawFigure = (figure) => {
    const place = figure.querySelector(".panels");
    if (place.firstChild) return;
    const run = data.runs[Number(figure.dataset.figure)];
    const image = svg("svg", { viewBox: `0 0 ${2 * W + 8} ${H}`, role: "img", "aria-label": `Loss and accuracy of ${run.name}` });
    image.append(panel(run, "loss", 0), panel(run, "accuracy", W + 8));
    place.append(image);
  };
  const figures = [...document.querySelectorAll("figure[data-figure]")];
  const watcher = new IntersectionObserver((entries) => entries.forEach((e) => { if (e.isIntersecting) drawFigure(e.target); }), { rootMargin: "600px" });
  figures.forEach((figure) => watcher.observe(figure));
  const drawRest = (deadline) => {
    while (deadline.timeRemaining() > 5) {
      const next = figures.find((figure) => !figure.querySelector("svg"));
      if (!next) return;
      drawFigure(next);
    }
    requestIdleCallback(drawRest);
  };
  requestIdleCallback(drawRest);

  // --- tables -------------------------------------------------------------------------------
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const key = cell.dataset.key ?? cell.textContent.trim();
    const number = Number(key.replace("−", "-").replace("<", ""));
    return key === "" || key === "–" ? null : Number.isNaN(number) ? key : number;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === typeof b ? (a < b ? -1 : Number(a > b)) : typeof a === "number" ? -1 : 1;
  };
  const sortBy = (table, heading) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    const column = heading.cellIndex;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
    rows.sort(([a], [b]) => (a === null || b === null || !down ? compare(a, b) : compare(b, a)));
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.map(([, row]) => row));
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    for (const heading of table.tHead.rows[0].cells) {
      heading.tabIndex = 0;
      heading.addEventListener("click", () => sortBy(table, heading));
      heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sortBy(table, heading); });
    }
  });
  const table = byId("runs-table");
  const filter = byId("filter");
  const applyFilter = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += Number(!row.hidden);
    }
    byId("filter-count").textContent = `${shown} of ${table.tBodies[0].rows.length}`;
  };
  filter.addEventListener("input", applyFilter);
  applyFilter();
  table.tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-run]");
    if (!row || event.target.cellIndex !== 0 || !data.runs.some((r) => r.name === row.dataset.run)) return;
    view.isolated = null;
    isolate(row.dataset.run);
    byId("curves").scrollIntoView();
  });

  // --- print: everything drawn, at the width of the page ------------------------------------
  addEventListener("beforeprint", () => {
    figures.forEach(drawFigure);
    plots.forEach((plot) => Plotly.relayout(plot, { width: PAGE, height: 0.8 * plot.clientHeight }));
  });
  addEventListener("afterprint", () => plots.forEach((plot) => Plotly.relayout(plot, { width: null, height: null, autosize: true })));
  document.documentElement.dataset.ready = "true";
})();

// Estimates of report.html: time to collapse, performance profiles, maps of a grid. They stand in
// panels as curves do, and are drawn by what charts.js has.

const bandOf = (x, low, high, arm, shape) => {
  if (data.arms.length > MANY) return [];
  const edge = {
    x,
    mode: "lines",
    line: { width: 0, shape },
    hoverinfo: "skip",
    showlegend: false,
  };
  return [{ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: faint(arm) }];
};

// Of a grid a panel for each choice of all factors but the first, which the colours tell.
const grid = data.panels;
const lineOf = (arm, seen) => {
  const name = grid ? grid.lines[arm] : data.arms[arm].label;
  const showlegend = !seen.has(name);
  seen.add(name);
  return { name, showlegend, place: grid ? axesOf(grid.of[arm]) : {} };
};
const inPanels = (element, shape) => {
  if (!grid) return shape;
  const legend = { ...shape.legend, ...LEGEND_ABOVE, title: { text: grid.factor } };
  Object.assign(shape, { showlegend: true, legend });
  shape.margin.t = 56;
  return panels(shape, element, grid.titles.map((text) => ({ text, color: color("ink") })));
};

const survival = () => {
  const seen = new Set();
  const traces = data.survival.flatMap((s) => {
    const { label, dash } = data.arms[s.arm];
    const { name, showlegend, place } = lineOf(s.arm, seen);
    const band = grid ? [] : bandOf(s.time, s.low, s.high, s.arm, "hv");
    return [
      ...band,
      {
        ...place,
        x: s.time,
        y: s.survival,
        customdata: s.risk.map((count, i) => [count, s.low[i], s.high[i]]),
        mode: "lines",
        name: safe(name),
        legendgroup: name,
        showlegend,
        line: { color: tone(s.arm), dash, width: 2, shape: "hv" },
        hovertemplate: `<b>${safe(label)}</b><br>%{y:.0%} (%{customdata[1]:.0%}–` +
          "%{customdata[2]:.0%}) not collapsed after %{x} steps<br>" +
          "%{customdata[0]} at risk<extra></extra>",
      },
      {
        ...place,
        x: s.censored,
        y: s.censored_at,
        mode: "markers",
        legendgroup: name,
        marker: { symbol: "line-ns-open", size: 9, color: tone(s.arm) },
        hoverinfo: "skip",
        showlegend: false,
      },
    ];
  });
  const shape = layout("steps since learned", "share not collapsed");
  Object.assign(shape.yaxis, { range: [0, 1.04], tickformat: ".0%", ticks: "" });
  return { traces, shape: inPanels(byId("survival-plot"), shape) };
};

const profiles = () => {
  const seen = new Set();
  const traces = data.profiles.flatMap((p) => {
    const { label } = data.arms[p.arm];
    const { name, showlegend, place } = lineOf(p.arm, seen);
    const common = { ...place, x: data.tau, mode: "lines", legendgroup: name };
    const line = { color: tone(p.arm), width: 2 };
    const hover = (which) =>
      `<b>${safe(label)}</b><br>${which} above %{x:.1%}: %{y:.0%} of runs<extra></extra>`;
    return [
      ...(grid ? [] : bandOf(data.tau, p.low, p.high, p.arm, "linear")),
      {
        ...common,
        y: p.final,
        name: safe(name),
        showlegend,
        line,
        hovertemplate: hover("final"),
      },
      {
        ...common,
        y: p.optimal,
        showlegend: false,
        line: { ...line, dash: "dot", width: 1.5 },
        hovertemplate: hover("optimal"),
      },
    ];
  });
  const shape = layout("validation accuracy τ", "share of runs above τ");
  Object.assign(shape.yaxis, { range: [-0.02, 1.04], tickformat: ".0%" });
  Object.assign(shape.xaxis, { tickformat: ".0%", rangemode: "normal" });
  if (grid) shape.xaxis.dtick = 0.25; // none at the left end, beside the other panel's right one
  if (grid && isNarrow()) shape.xaxis.title.text = "accuracy τ";
  return { traces, shape: inPanels(byId("profiles-plot"), shape) };
};

const heatmap = (map) => () => {
  const trace = {
    type: "heatmap",
    x: map.x,
    y: map.y,
    z: map.z,
    text: isNarrow() ? map.short : map.text,
    hovertext: map.text,
    texttemplate: "%{text}",
    zmin: 0,
    zmax: map.highest,
    xgap: 2,
    ygap: 2,
    colorscale: [[0, color("map-low")], [0.5, color("map-middle")], [1, color("map-high")]],
    colorbar: { tickformat: ".0%", thickness: 12, outlinewidth: 0 },
    hovertemplate: `${safe(map.x_name)} %{x}<br>${safe(map.y_name)} %{y}<br>` +
      "%{hovertext}<extra></extra>",
  };
  const shape = layout(map.x_name, map.y_name);
  Object.assign(shape.xaxis, { type: "category", showgrid: false });
  Object.assign(shape.yaxis, { type: "category", showgrid: false, automargin: true });
  return { traces: [trace], shape };
};

// Of a grid there are several panels; heights are set at once, so that nothing moves later.
const add = (element, make) => {
  plots.set(element, make);
  return draw(element);
};

for (const [id, make] of [["survival-plot", survival], ["profiles-plot", profiles]]) {
  const plot = byId(id);
  if (plot) figures.push([plot, () => add(plot, make)]);
  if (plot && grid) {
    plot.style.height = `${Math.max(380, 190 * rowsOf(plot, grid.titles.length))}px`;
  }
}
for (const element of document.querySelectorAll("[data-map]")) {
  const map = data.heatmaps[Number(element.dataset.map)];
  element.style.height = `${110 + 52 * map.y.length}px`;
  figures.push([element, () => add(element, heatmap(map))]);
}

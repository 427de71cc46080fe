// Draws the three charts from the data in the page, and again when a button or the colour scheme asks for it.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const view = {
  // The clock's own axis where there is one, since that is what was held equal.
  axis: data.axes.find((axis) => axis.key === data.first_axis && !axis.missing) ?? data.axes.find((axis) => !axis.missing) ?? data.axes[0],
  scale: "linear",
  group: 0, // losses of different objectives are never in one chart
  shown: new Set(data.arms.keys()),
};

// Plotly reads tags and entities in every text that it draws; names are to appear as they are.
const literal = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const number = (value, digits = 4) =>
  value.toLocaleString("en", { maximumSignificantDigits: digits, notation: value < 1e6 ? "standard" : "compact" });
const nats = (value) => value.toFixed(4).replace("-", "−");
const along = (value, axis) => `${number(value)} ${axis.unit || axis.name.replace("Tokens", "tokens")}`;
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shape = (more) => ({ type: "line", line: { color: style("--ink"), width: 1.2 }, ...more });

const MARGIN = { l: 48, r: 16, t: 28, b: 48 };

function layout(more) {
  const axis = {
    color: style("--ink"), gridcolor: style("--rule"), linecolor: style("--rule"), zeroline: false, automargin: true,
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: style("--ink") },
    hoverlabel: { bgcolor: style("--raised"), bordercolor: style("--rule"), font: { color: style("--ink") }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--soft"), activecolor: style("--ink") },
    margin: MARGIN,
    ...more,
    xaxis: { ...axis, ...more.xaxis },
    yaxis: { ...axis, ...more.yaxis },
  };
}

// The traces of all arms: `of(arm)` gives an arm's own; a hidden arm keeps its traces, so that zoom and order last.
function traces(of) {
  return data.arms.flatMap((arm, index) =>
    of(arm).map((trace) => ({
      type: "scatter", hoverinfo: "text", legendgroup: String(index), name: literal(arm.name),
      visible: view.shown.has(index), ...trace,
    })),
  );
}

const isNarrow = () => innerWidth < 700;
// Arms of which a chart shows losses; of many only the means are drawn.
const inChart = () => data.arms.filter((arm, index) => arm.group === view.group && view.shown.has(index));
const isFew = () => inChart().length <= data.few_arms;

// Names at the right ends of lines, `ends` of {arm, y}, in a chart `height` high; and the margin that they need.
// Where there is no room for names, they are numbers, which the legend has of many arms.
function labels(ends, height) {
  if (ends.length === 0 || (isNarrow() && data.arms.length <= data.few_arms)) return { annotations: [], right: 16 };
  const text = (arm) => (isNarrow() ? String(data.arms.indexOf(arm) + 1) : arm.name);
  const every = inChart().flatMap((arm) => [...(arm.mean?.loss ?? []), ...arm.ends.map((end) => end.loss)]);
  const [low, high] = [Math.min(...every), Math.max(...every)];
  const drawn = height - 76; // without the margins above and below
  const step = 15; // of a line of text
  const placed = ends
    .map((end) => ({ ...end, own: drawn * (0.05 + (0.9 * (high - end.y)) / (high - low || 1)) }))
    .sort((a, b) => a.own - b.own);
  // Each label stands below the one before; then those that would be below the chart move up.
  placed.forEach((one, i) => (one.at = Math.max(one.own, i ? placed[i - 1].at + step : 0)));
  placed.reverse().forEach((one, i) => (one.at = Math.min(one.at, i ? placed[i - 1].at - step : drawn)));
  const longest = Math.max(...placed.map(({ arm }) => text(arm).length));
  return {
    right: 36 + 6.6 * longest,
    annotations: placed.map(({ arm, y, at, own }) => ({
      // From the edge of the chart: a label at a point would be within it, and make room for itself there.
      xref: "paper", x: 1, y, text: literal(text(arm)), xanchor: "left", showarrow: true, arrowhead: 0,
      arrowwidth: 1, arrowcolor: arm.colour, ax: 22, ay: at - own,
      font: { size: 12, color: style("--ink") },
    })),
  };
}

function draw(id, list, options) {
  Plotly.react(id, list, layout(options), {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
}

function drawLosses() {
  const { axis } = view;
  const group = data.groups[view.group];
  const few = isFew();
  for (const [name, shown] of [[".few", few], [".many", !few], [".shorter", severalBudgets]]) {
    document.querySelector(name).hidden = !shown;
  }
  const list = traces((arm) => {
    if (arm.group !== view.group) return [];
    const found = [];
    const band = few && arm.mean?.x[axis.key] && arm.mean.low;
    if (band) {
      const x = arm.mean.x[axis.key];
      found.push({
        x: [...x, ...[...x].reverse()], y: [...arm.mean.high, ...[...arm.mean.low].reverse()], mode: "lines",
        fill: "toself", fillcolor: arm.colour, opacity: 0.18, line: { width: 0 }, hoverinfo: "skip",
      });
    }
    for (const curve of arm.curves.filter((curve) => few && curve.x[axis.key])) {
      const state = curve.state === "finished" ? "" : `, ${literal(curve.state)}`;
      found.push({
        x: curve.x[axis.key], y: curve.loss, mode: "lines", line: { color: arm.colour, width: 1 }, opacity: 0.55,
        hovertext: curve.loss.map((loss, i) =>
          `${literal(arm.name)}, seed ${curve.seed}${state}<br>${nats(loss)} nats at ${along(curve.x[axis.key][i], axis)}`),
      });
    }
    if (arm.mean?.x[axis.key]) {
      found.push({
        x: arm.mean.x[axis.key], y: arm.mean.loss, mode: "lines", line: { color: arm.colour, width: few ? 3 : 2, dash: arm.dash },
        hovertext: arm.mean.loss.map((loss, i) =>
          `${literal(arm.name)}, mean of ${arm.mean.n}<br>${nats(loss)} nats at ${along(arm.mean.x[axis.key][i], axis)}` +
          (band ? `<br>95 % interval ${nats(arm.mean.low[i])} to ${nats(arm.mean.high[i])}` : "")),
      });
    }
    const ends = arm.ends.filter((end) => end.x[axis.key] !== null);
    found.push({
      x: ends.map((end) => end.x[axis.key]), y: ends.map((end) => end.loss), mode: "markers",
      marker: {
        color: arm.colour, size: few ? 8 : 6, line: { width: 2, color: arm.colour },
        symbol: ends.map((end) => (end.fraction === 1 ? "circle" : "diamond-open")),
      },
      hovertext: ends.map((end) =>
        `${literal(arm.name)}, seed ${end.seed}, end of ${end.fraction === 1 ? "the whole" : `${number(end.fraction)} of the`} budget` +
        `<br>${nats(end.loss)} nats at ${along(end.x[axis.key], axis)}` +
        (end.learning_rate === null ? "" : `<br>learning rate ${end.learning_rate.toExponential(1)}`)),
    });
    return found;
  });
  const floors = {
    shapes: group.floors.map((floor) =>
      shape({ xref: "paper", x0: 0, x1: 1, y0: floor, y1: floor, line: { color: style("--ink"), width: 1.2, dash: "dash" } })),
    annotations: group.floors.map((floor) => ({
      xref: "paper", x: 1, xanchor: "right", y: floor, yanchor: "bottom", showarrow: false,
      text: `${literal(group.floor_name)} ${floor.toFixed(floor < 1 ? 4 : 2)}`, font: { color: style("--soft"), size: 12 },
    })),
  };
  const last = inChart()
    .filter((arm) => arm.mean?.x[axis.key])
    .map((arm) => ({ arm, y: arm.mean.loss.at(-1) }));
  const height = few ? 460 : 560;
  const named = labels(last, height);
  draw("losses", list, {
    height, uirevision: axis.key + view.scale + view.group, shapes: floors.shapes,
    annotations: [...floors.annotations, ...named.annotations], margin: { ...MARGIN, r: named.right },
    xaxis: { title: { text: axis.title }, type: view.scale },
    yaxis: { title: { text: `Held-out loss, nats<br>(${literal(group.loss_of)})` } },
  });
}

function drawDifferences() {
  const others = data.arms.filter((arm) => !arm.baseline);
  document.getElementById("paired_section").hidden = others.length === 0;
  if (others.length === 0) return;
  const list = traces((arm) => {
    if (arm.baseline) return [];
    const row = others.indexOf(arm);
    const found = [{
      x: arm.pairs.map((pair) => pair.value), y: arm.pairs.map(() => row - 0.2), mode: "markers",
      marker: { color: arm.colour, size: 9, opacity: 0.65 },
      hovertext: arm.pairs.map((pair) => `${literal(arm.name)}, seed ${pair.seed}<br>${nats(pair.value)} nats`),
    }];
    const mean = arm.difference;
    if (mean !== null) {
      const bounds = mean.low !== null && mean.high !== null;
      found.push({
        x: [mean.mean], y: [row], mode: "markers", marker: { color: arm.colour, size: 12, symbol: "diamond" },
        error_x: {
          visible: bounds, symmetric: false, array: [mean.high - mean.mean], arrayminus: [mean.mean - mean.low],
          color: arm.colour, thickness: 3, width: 7,
        },
        hovertext: [`${literal(arm.name)}, mean of ${mean.n} pairs<br>${nats(mean.mean)} nats` +
          (bounds ? `<br>95 % interval ${nats(mean.low)} to ${nats(mean.high)}` : "<br>no interval from so few pairs")],
      });
    }
    return found;
  });
  const unpaired = others.filter((arm) => arm.difference === null);
  // Long names would leave no room for the chart on a phone, and stand above their rows there.
  const above = isNarrow() && others.some((arm) => arm.name.length > 18);
  const names = others.map((arm, row) => ({
    xref: "paper", x: 0, xanchor: "left", y: row, yshift: 22, showarrow: false, text: literal(arm.name), font: { size: 12 },
  }));
  draw("differences", list, {
    height: 130 + (others.length > data.few_arms && !above ? 34 : 56) * others.length,
    shapes: [shape({ x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1 })],
    annotations: [...(above ? names : []), ...unpaired.map((arm) => ({
      xref: "paper", x: 0, xanchor: "left", y: others.indexOf(arm), showarrow: false, bgcolor: style("--ground"),
      text: literal(arm.no_difference), font: { color: style("--soft"), size: 12 },
    }))],
    xaxis: { title: { text: "Nats (negative is better)" }, tickformat: ".3~f", nticks: innerWidth < 600 ? 4 : 9, tickangle: 0 },
    yaxis: {
      tickvals: [...others.keys()], ticktext: others.map((arm) => (above ? "" : literal(arm.name))),
      range: [others.length - 0.4, -0.6], showgrid: false,
    },
  });
}

const severalBudgets = new Set(data.arms.flatMap((arm) => arm.by_budget.x)).size > 1;

function drawBudgets() {
  document.getElementById("budgets_section").hidden = !severalBudgets;
  if (!severalBudgets) return;
  const list = traces((arm) => {
    if (arm.group !== view.group) return [];
    const symbol = arm.baseline ? "circle" : "diamond";
    const found = [
      {
        x: arm.by_budget.x, y: arm.by_budget.loss, mode: "lines+markers",
        line: { color: arm.colour, width: isFew() ? 2.5 : 2, dash: arm.dash },
        marker: { size: isFew() ? 9 : 7, symbol },
        hovertext: arm.by_budget.x.map((x, i) =>
          `${literal(arm.name)}, mean of ${arm.by_budget.n[i]}<br>${nats(arm.by_budget.loss[i])} nats at a budget of ${number(x)}`),
      },
      {
        x: arm.ends.map((end) => end.fraction * data.budget), y: arm.ends.map((end) => end.loss), mode: "markers",
        marker: { color: arm.colour, size: 5, opacity: 0.6 },
        hovertext: arm.ends.map((end) => `${literal(arm.name)}, seed ${end.seed}<br>${nats(end.loss)} nats`),
      },
    ];
    if (arm.crossing) {
      found.push({
        x: [arm.crossing.x], y: [arm.crossing.loss], mode: "markers",
        marker: { color: arm.colour, size: 16, symbol: "star", line: { color: style("--ground"), width: 1 } },
        hovertext: [`${literal(arm.name)} reaches the baseline's final loss at ${literal(arm.crossing.text)}`],
      });
    }
    return found;
  });
  const target = data.target === null || view.group !== 0 ? [] : [
    shape({ xref: "paper", x0: 0, x1: 1, y0: data.target, y1: data.target, line: { color: style("--soft"), width: 1.5, dash: "dot" } }),
  ];
  // Few budgets are compared, so they are the ticks: a logarithmic axis has none of its own between 60 and 120.
  const budgets = [...new Set(data.arms.flatMap((arm) => arm.by_budget.x))].sort((a, b) => a - b);
  const last = inChart()
    .filter((arm) => arm.by_budget.x.length > 0)
    .map((arm) => ({ arm, y: arm.by_budget.loss.at(-1) }));
  const height = isFew() ? 380 : 520;
  const named = labels(last, height);
  draw("by_budget", list, {
    height, shapes: target, annotations: named.annotations, margin: { ...MARGIN, r: named.right },
    xaxis: { title: { text: data.budget_title }, type: "log", tickvals: budgets, ticktext: budgets.map((x) => number(x)) },
    yaxis: { title: { text: `Final held-out loss, nats<br>(${literal(data.groups[view.group].loss_of)})` } },
  });
}

function drawAll() {
  drawLosses();
  drawDifferences();
  drawBudgets();
}

function button(group, text, press, more = {}) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, ...more });
  made.addEventListener("click", () => press(made));
  document.querySelector(group).append(made);
  return made;
}

// Buttons of which one is pressed at a time.
function choice(group, options, chosen, choose) {
  const made = options.map(({ text, value, ...more }) => {
    const press = (pressed) => {
      made.forEach((other) => other.setAttribute("aria-pressed", String(other === pressed)));
      choose(value);
      drawLosses();
      drawBudgets();
    };
    const one = button(group, text, press, more);
    one.setAttribute("aria-pressed", String(value === chosen));
    return one;
  });
}

if (data.groups.length > 1) {
  choice(
    ".groups",
    data.groups.map((group, index) => ({ text: group.loss_of, value: index, title: "Draw the arms with this loss" })),
    view.group,
    (group) => (view.group = group),
  );
}
choice(
  ".axes",
  data.axes
    .filter((axis) => axis.key !== "reference_seconds" || !axis.missing)
    .map((axis) => ({ text: axis.key === "kwh" ? axis.unit : axis.name, value: axis, disabled: axis.missing !== null, title: axis.missing ?? axis.title })),
  view.axis,
  (axis) => (view.axis = axis),
);
choice(
  ".scale",
  [{ text: "Linear", value: "linear" }, { text: "Log", value: "log" }],
  view.scale,
  (scale) => (view.scale = scale),
);
data.arms.forEach((arm, index) => {
  const toggle = (pressed) => {
    const hidden = view.shown.delete(index);
    if (!hidden) view.shown.add(index);
    pressed.setAttribute("aria-pressed", String(!hidden));
    drawAll();
  };
  const text = data.arms.length > data.few_arms ? `${index + 1} ${arm.name}` : arm.name;
  const entry = button(".legend", text, toggle, { title: "Hide or show this arm" });
  entry.setAttribute("aria-pressed", "true");
  const svg = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
  };
  const swatch = svg("svg", { class: "swatch", viewBox: "0 0 32 8", "aria-hidden": "true" });
  const dashes = { solid: "none", dash: "9 4", dot: "3 3", dashdot: "9 3 3 3" };
  swatch.append(svg("line", { x1: 0, y1: 4, x2: 32, y2: 4, stroke: arm.colour, "stroke-width": 4, "stroke-dasharray": dashes[arm.dash] }));
  entry.prepend(swatch);
});

for (const query of ["(prefers-color-scheme: dark)", "(max-width: 699px)"]) matchMedia(query).addEventListener("change", drawAll);
for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => {
    document.documentElement.classList.toggle("printing", printing);
    drawAll();
  });
}
drawAll();

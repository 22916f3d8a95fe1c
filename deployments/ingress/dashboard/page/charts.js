// Curves over time. The library is large and comes after the first paint.

let library = null;

function load() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/plotly/plotly.min.js";
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => { library = null; reject(new Error("the charts did not load")); };
    document.head.append(script);
  });
  return library;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * Draw or update a chart in `node`.
 * curves: [{name, colour, values, dash, stacked}], values beside `at` (Unix seconds).
 */
export async function draw(node, { at, curves, unit, share = false }) {
  const Plotly = await load();
  if (!node.isConnected) return;
  const axis = { color: colour("soft"), gridcolor: colour("line"), zeroline: false, fixedrange: true };
  const x = at.map((s) => new Date(1000 * s));
  Plotly.react(node, curves.map((c) => ({
    x, y: c.values, name: c.name, type: "scatter", connectgaps: false,
    // A value between two gaps has no line.
    mode: c.gap ? "lines+markers" : "lines", marker: { size: 4, color: colour(c.colour) },
    stackgroup: c.stacked ? "one" : undefined,
    line: { color: colour(c.colour), width: 2, dash: c.dash ?? "solid" },
    hovertemplate: `%{y:.3~g} ${unit}`,
  })), {
    height: 200, margin: { l: 48, r: 8, t: 8, b: 40 }, hovermode: "x unified",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("ink"), size: 12 }, legend: { orientation: "h", y: 1.15, x: 0 },
    hoverlabel: { bgcolor: colour("paper"), font: { color: colour("ink") } },
    xaxis: axis, yaxis: { ...axis, rangemode: "tozero", ticksuffix: share ? " %" : "", range: share ? [0, 104] : undefined },
  }, { displayModeBar: false, responsive: true });
}

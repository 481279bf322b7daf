// Draws every chart of the page: the JSON behind its place, with the page's colours, once more when light and dark change.
(() => {
  "use strict";
  const axis = {
    gridcolor: "var(--line)", linecolor: "var(--line)", zerolinecolor: "var(--line)", automargin: true,
    separatethousands: true, exponentformat: "none", title: { standoff: 8, font: { size: 13 } },
  };
  const look = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: "var(--muted)" },
    margin: { l: 56, r: 12, t: 8, b: 28 }, hovermode: "x unified", uirevision: "page",
    dragmode: matchMedia("(hover: none)").matches ? false : "zoom", // a finger scrolls the page
    hoverlabel: { bgcolor: "var(--surface)", bordercolor: "var(--line)", font: { color: "var(--ink)" }, align: "left" },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", maxheight: 1, font: { color: "var(--ink)" }, bgcolor: "rgba(0,0,0,0)" },
    xaxis: { ...axis, showgrid: false, zeroline: false, hoverformat: ",.13~g" }, yaxis: axis,
  };
  // Among the buttons of the bar is one that would send the chart away.
  const config = { displayModeBar: false, showSendToCloud: false, plotlyServerURL: "", responsive: true };
  const style = getComputedStyle(document.documentElement);
  const colour = (key, value) =>
    key.endsWith("color") && typeof value === "string" && value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;

  function draw() {
    const template = { layout: JSON.parse(JSON.stringify(look), colour) };
    for (const place of document.querySelectorAll("div.chart")) {
      const { data, layout } = JSON.parse(place.nextElementSibling.textContent, colour);
      place.style.height = `${layout.height}px`;
      Plotly.react(place, data, { ...layout, template }, config);
    }
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();

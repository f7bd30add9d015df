"use strict";
// Draws every chart of the page in the colours that the reader's screen asks for.
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
const narrow = matchMedia("(max-width: 560px)");
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const palette = read("palette");
const config = { displayModeBar: false, responsive: true, displaylogo: false };

function themed(value) {
  if (typeof value === "string") return dark.matches ? palette[value] ?? value : value;
  if (Array.isArray(value)) return value.map(themed);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
}

function draw() {
  for (const place of document.querySelectorAll("[data-figure]")) {
    const { data, layout } = themed(read(place.dataset.figure));
    layout.dragmode = touch ? false : "zoom"; // a finger must still scroll the page
    if (narrow.matches) {
      layout.font.size = layout.xaxis.title.font.size = layout.yaxis.title.font.size = 11;
    }
    Plotly.react(place, data, layout, config);
  }
}

dark.addEventListener("change", draw);
draw();

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

function draw(place) {
  const { data, layout } = themed(read(place.dataset.figure));
  layout.uirevision = place.dataset.figure; // what the reader zoomed and hid stays
  layout.dragmode = touch ? false : "zoom"; // a finger must still scroll the page
  if (narrow.matches) {
    layout.font.size = layout.xaxis.title.font.size = layout.yaxis.title.font.size = 11;
  }
  const fresh = !place.classList.contains("js-plotly-plot");
  Plotly.react(place, data, layout, config);
  if (fresh) place.on("plotly_click", ({ points }) => offer(place, points[0].x));
}

// Offered, and not done at once: a click may be the first of two, or a finger asking for a number.
function offer(place, iteration) {
  if (!document.getElementById("episodes")) return;
  const button = place.parentElement.querySelector("button.offer") ?? document.createElement("button");
  button.className = "offer";
  button.textContent = `Episodes of iteration ${iteration}`;
  button.onclick = () =>
    document.dispatchEvent(new CustomEvent("iteration", { detail: iteration }));
  place.after(button);
}

// A chart is drawn when it comes near the screen: a page of thirty opens at once.
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting) {
      seen.unobserve(target);
      draw(target);
    }
  }
}, { rootMargin: "600px" });

function watch(place) {
  if (place.classList.contains("js-plotly-plot")) draw(place);
  else seen.observe(place);
}

const all = (function_) => document.querySelectorAll("[data-figure]").forEach(function_);
dark.addEventListener("change", () => all(watch));
addEventListener("beforeprint", () => all(draw));
all(watch);

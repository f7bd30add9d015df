"use strict";
// Keeps the page of a run that is training up to date: its words, its charts, its episodes.
(() => {
  const connection = document.getElementById("connection");
  let stamp = connection.dataset.stamp;

  const titles = (page) => [...page.querySelectorAll("figure h3")].map((h) => h.textContent).join();

  function renewChart(figure, fresh) {
    for (const part of ["figcaption", "table", "script"]) {
      figure.querySelector(part).replaceWith(fresh.querySelector(part));
    }
    const plot = figure.querySelector(".plot");
    plot.setAttribute("aria-label", fresh.querySelector(".plot").getAttribute("aria-label"));
    watch(plot);
  }

  async function renew() {
    const answer = await fetch("parts");
    if (!answer.ok) throw new Error("no answer");
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-part]")) {
      const fresh = page.querySelector(`[data-part="${part.dataset.part}"]`);
      if (part.dataset.part === "charts" && titles(part) === titles(fresh)) {
        const figures = fresh.querySelectorAll("figure");
        part.querySelectorAll("figure").forEach((figure, i) => renewChart(figure, figures[i]));
      } else {
        part.replaceChildren(...fresh.childNodes);
        part.querySelectorAll("[data-figure]").forEach(watch);
      }
    }
    document.dispatchEvent(new CustomEvent("renewed"));
  }

  async function look() {
    try {
      const answer = await fetch("stamp");
      const now = await answer.text();
      if (answer.ok && now !== stamp) {
        await renew();
        stamp = now;
      }
      connection.textContent = "Live: this page follows the run.";
    } catch {
      connection.textContent = "Not live any more: `isentrope view` has ended.";
    }
    setTimeout(look, 2000);
  }

  look();
})();

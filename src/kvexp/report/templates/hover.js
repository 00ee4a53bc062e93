"use strict";
// Pointing at a figure names every line at the nearest num_tokens, fastest first.
for (const figure of document.querySelectorAll("figure[data-hover]")) {
  const svg = figure.querySelector("svg");
  const sizes = JSON.parse(figure.dataset.hover);
  const box = svg.viewBox.baseVal;
  const cross = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cross.setAttribute("class", "cross");
  cross.setAttribute("y1", box.height * 0.12);
  cross.setAttribute("y2", box.height * 0.87);
  const tip = document.createElement("div");
  tip.className = "tip";
  const leave = () => { cross.remove(); tip.remove(); };
  const point = (event) => {
    const area = svg.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width * box.width;
    const nearest = sizes.reduce((a, b) => Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a);
    cross.setAttribute("x1", nearest.x);
    cross.setAttribute("x2", nearest.x);
    svg.append(cross);
    const head = document.createElement("b");
    head.textContent = `${nearest.size} token${nearest.size === "1" ? "" : "s"}`;
    const table = document.createElement("table");
    for (const [name, colour, text] of nearest.lines) {
      const row = table.insertRow();
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = `var(--c${colour})`;
      row.insertCell().append(swatch, name);
      row.insertCell().textContent = text;
    }
    tip.replaceChildren(head, table);
    figure.append(tip);
    const here = nearest.x / box.width * area.width;
    const left = here + 14 + tip.offsetWidth > figure.clientWidth ? here - tip.offsetWidth - 14 : here + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.max(30, event.clientY - figure.getBoundingClientRect().top - tip.offsetHeight / 2)}px`;
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", leave);
}
// One heat map is shown at a time; without this script all are.
for (const group of document.querySelectorAll(".contrasts")) {
  const choice = group.querySelector("select");
  const maps = [...group.querySelectorAll(".contrast")];
  const show = () => maps.forEach((map, index) => { map.hidden = index !== Number(choice.value); });
  choice.hidden = maps.length < 2;
  choice.addEventListener("change", show);
  show();
}

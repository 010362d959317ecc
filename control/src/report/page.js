(() => {
  "use strict";
  const tip = document.getElementById("tip");
  document.addEventListener("mousemove", event => {
    const at = event.target.closest ? event.target.closest("[data-t]") : null;
    tip.style.display = at ? "block" : "none";
    if (!at) return;
    tip.textContent = at.dataset.t;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
  });
  const chart = document.querySelector("svg.gantt");
  if (!chart) return;
  for (const box of document.querySelectorAll("input[data-hide]")) {
    box.addEventListener("change", () => chart.classList.toggle("no-" + box.dataset.hide, !box.checked));
  }
  const plot = chart.querySelector(".plot"), axis = chart.querySelector(".axis");
  const left = +chart.dataset.left, width = +chart.dataset.width, span = +chart.dataset.us;
  const height = chart.viewBox.baseVal.height;
  let from = 0, shown = span;
  const text = us => us >= 1e6 ? +(us / 1e6).toPrecision(6) + " s" : us >= 1e3 ? +(us / 1e3).toPrecision(6) + " ms" : us + " us";
  const make = (name, attributes, content) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (content !== undefined) element.textContent = content;
    axis.append(element);
  };
  const draw = () => {
    shown = Math.min(Math.max(shown, 20), span);
    from = Math.min(Math.max(from, 0), span - shown);
    const scale = width / shown;
    plot.setAttribute("transform", `translate(${left - from * scale} 0) scale(${scale} 1)`);
    axis.replaceChildren();
    const raw = shown / 8, power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(1, [1, 2, 5, 10].find(m => m * power >= raw) * power);
    for (let us = Math.ceil(from / step) * step; us <= from + shown; us += step) {
      const x = left + (us - from) * scale;
      make("line", { class: "grid", x1: x, x2: x, y1: 20, y2: height });
      make("text", { class: "small", x: x + 3, y: 14 }, text(Math.round(us)));
    }
  };
  const zoom = (factor, share) => {
    const fixed = from + shown * share;
    shown = Math.min(Math.max(shown * factor, 20), span);
    from = fixed - shown * share;
    draw();
  };
  const share = event => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    return Math.min(Math.max((x - left) / width, 0), 1);
  };
  chart.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    zoom((event.deltaY || event.deltaX) > 0 ? 1.25 : 0.8, share(event));
  }, { passive: false });
  let held = null;
  chart.addEventListener("pointerdown", event => { held = { at: share(event), from }; });
  addEventListener("pointerup", () => { held = null; });
  chart.addEventListener("pointermove", event => {
    if (!held || shown >= span) return;
    from = held.from + (held.at - share(event)) * shown;
    draw();
  });
  for (const button of document.querySelectorAll("button[data-zoom]")) {
    button.addEventListener("click", () => {
      const factor = +button.dataset.zoom;
      if (factor) zoom(factor, 0.5); else { from = 0; shown = span; draw(); }
    });
  }
  draw();
})();

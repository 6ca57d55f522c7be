(function () {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  function look() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    const axis = { labelColor: of("--soft"), titleColor: of("--ink"), gridColor: of("--line"), domainColor: of("--line"),
      tickColor: of("--line"), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, labelLimit: 220 };
    return { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, axis: axis,
      legend: { labelColor: of("--soft"), titleColor: of("--ink"), titleFontWeight: 500 },
      mark: { color: of("--mark") }, text: { color: of("--ink") },
      line: { color: of("--mark") }, bar: { color: of("--mark") }, area: { color: of("--mark") } };
  }
  function draw() {
    for (const place of document.querySelectorAll("[data-chart]")) {
      vegaEmbed(place, specs[place.dataset.chart], { actions: false, renderer: "svg", config: look() })
        .catch(function (error) { place.textContent = String(error); });
    }
  }
  draw();
  dark.addEventListener("change", draw);
})();

"use strict";
(() => {
  const page = document.documentElement;
  window.addEventListener("error", (event) => { page.dataset.error = event.message; });
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const grid = document.getElementById("charts");
  const state = { x: "iteration", all: false };
  const colour = (name) => getComputedStyle(page).getPropertyValue(name).trim();
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const element = (kind, name, text) => {
    const made = document.createElement(kind);
    if (name) made.className = name;
    if (text) made.textContent = text;
    return made;
  };
  const number = (value) => Math.abs(value) >= 100 ? value.toFixed(1) : value.toPrecision(3);
  const many = report.models.length > 1;

  function traces(chart) {
    return chart.series.map((series) => {
      const own = colour("--c" + (series.model % 8));
      const order = series[state.x].map((x, index) => [x, index]).filter((pair) => pair[0] !== null);
      order.sort((a, b) => a[0] - b[0]);
      const pick = (values) => order.map((pair) => values[pair[1]]);
      const y = pick(series.value);
      const low = pick(series.low), high = pick(series.high), n = pick(series.n), at = pick(series.iteration);
      return {
        type: "scatter", mode: "lines+markers", name: plain(report.models[series.model]), x: order.map((pair) => pair[0]), y,
        line: { color: own, width: 2 }, marker: { color: own, size: order.length > 60 ? 4 : 7 },
        error_y: { type: "data", symmetric: false, color: own, thickness: 1.2, width: order.length > 40 ? 0 : 3,
          array: y.map((v, i) => high[i] === null ? 0 : Math.max(0, high[i] - v)),
          arrayminus: y.map((v, i) => low[i] === null ? 0 : Math.max(0, v - low[i])) },
        text: y.map((v, i) => "iteration " + at[i].toLocaleString("en") + "<br><b>" + number(v) + "</b>"
          + (low[i] === null ? "" : " (95 %: " + number(low[i]) + " to " + number(high[i]) + ")")
          + (n[i] ? "<br>n = " + n[i].toLocaleString("en") : "")),
        hovertemplate: "%{text}<extra>" + (many ? plain(report.models[series.model]) : "") + "</extra>",
      };
    });
  }

  const MARGIN = { l: 48, t: 12, b: 40 }, LABEL = 13;  // pixels; the height of a label

  // Baselines and chance: a line each, named in the right margin, where no curve is; names are moved apart.
  function levels(chart, low, high, height) {
    const lines = chart.baselines.map((b) => ({ value: b.value, name: b.name, dash: "dash", tint: colour("--dash") }));
    if (chart.chance !== null) lines.push({ value: chart.chance, name: "chance", dash: "dot", tint: colour("--quiet") });
    lines.sort((a, b) => a.value - b.value);
    const place = (value) => (value - low) / (high - low) * height;
    let bottom = -Infinity;
    for (const line of lines) bottom = line.at = Math.max(place(line.value), bottom + LABEL);
    let top = height;
    for (const line of [...lines].reverse()) top = line.at = Math.min(line.at, top - LABEL);
    const short = (name) => name.length > 18 ? name.slice(0, 17) + "…" : name;
    return {
      shapes: lines.map((line) => ({
        type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: line.value, y1: line.value, layer: "below",
        line: { color: line.tint, width: 1.4, dash: line.dash },
      })),
      annotations: lines.filter((line) => line.at > -LABEL).map((line) => ({
        text: plain(short(line.name)), hovertext: plain(line.name) + ": " + number(line.value), showarrow: false,
        xref: "paper", x: 1, xanchor: "left", xshift: 3, yref: "paper", y: line.at / height, yanchor: "middle",
        font: { size: 11, color: colour("--quiet") },
      })),
      room: Math.max(14, ...lines.map((line) => 14 + 6.3 * short(line.name).length)),
    };
  }

  function layout(chart, plot) {
    const all = chart.series.flatMap((s) => s.value.concat(s.low, s.high))
      .concat(chart.baselines.map((b) => b.value), chart.chance).filter((v) => v !== null);
    const low = Math.min(...all), high = Math.max(...all), span = high - low || Math.abs(high) || 1, room = span * 0.06;
    const legend = many && (chart.wide || !report.charts.some((one) => one.wide));
    const above = legend ? (plot.clientWidth < 600 ? 19 * report.models.length : 24) : 0;  // about what the legend takes
    const named = levels(chart, low - room, high + room, plot.clientHeight - MARGIN.t - MARGIN.b - above);
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, automargin: true, tickfont: { size: 11 } };
    const title = (text) => ({ text, font: { size: 11 }, standoff: 6 });
    return {
      margin: { ...MARGIN, r: named.room }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: colour("--ink"), size: 12 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      xaxis: { ...axis, nticks: 6, title: title(state.x === "tokens" ? "tokens (billions)" : "iteration") },
      yaxis: { ...axis, range: [low - room, high + room], nticks: 6, title: title(chart.unit) },
      showlegend: legend, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      shapes: named.shapes, annotations: named.annotations, dragmode: false,
    };
  }

  const config = { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false };
  const cards = report.charts.map((chart) => {
    const card = element("article", "card chart" + (chart.wide ? " wide" : ""));
    card.append(element("h3", "", chart.title));
    if (chart.note) card.append(element("p", "", chart.note));
    const plot = element("div", "plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", chart.summary);
    card.append(plot);
    grid.append(card);
    return { chart, card, plot, seen: false, stale: true };
  });

  function draw(entry) {
    if (!entry.stale || entry.card.hidden) return;
    entry.stale = false;
    Plotly.react(entry.plot, traces(entry.chart), layout(entry.chart, entry.plot), config);
  }
  const watcher = new IntersectionObserver((found) => {
    for (const one of found) {
      if (!one.isIntersecting) continue;
      const entry = cards.find((card) => card.card === one.target);
      entry.seen = true;
      draw(entry);
    }
  }, { rootMargin: "400px" });

  function refresh() {
    let shown = 0;
    for (const entry of cards) entry.card.hidden = !(entry.chart.main || state.all);
    const small = cards.filter((entry) => !entry.card.hidden && !entry.chart.wide).length;
    grid.classList.toggle("pairs", small === 2 || small === 4);  // no gap beside a last one
    for (const entry of cards) {
      entry.stale = true;
      if (!entry.card.hidden && (entry.seen || shown++ < 24)) { entry.seen = true; draw(entry); }
    }
    page.dataset.drawn = document.querySelectorAll(".plot.js-plotly-plot").length;
    page.dataset.x = state.x;
  }

  const controls = document.getElementById("controls");
  controls.hidden = report.charts.length === 0;
  if (!report.has_tokens) controls.querySelector("[value=tokens]").disabled = true;
  controls.querySelectorAll("[name=x]").forEach((input) => input.addEventListener("change", () => { state.x = input.value; refresh(); }));
  const more = document.getElementById("more");
  more.hidden = report.charts.every((chart) => chart.main);
  more.firstElementChild.addEventListener("change", (event) => { state.all = event.target.checked; refresh(); });
  if (!report.charts.length) grid.append(element("p", "quiet", "No score yet: curves appear with the first evaluated checkpoint."));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  window.addEventListener("beforeprint", () => cards.forEach((entry) => { entry.seen = true; draw(entry); }));
  cards.forEach((entry) => watcher.observe(entry.card));

  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("thead th").forEach((head, column) => {
      if (!head.textContent) return;
      const button = element("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.v;
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return down ? -order : order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  });
  refresh();
})();

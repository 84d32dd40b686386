// Curves: one card a metric, drawn when it comes near the window.
(() => {
  const grid = document.getElementById("charts");
  const colour = (name) => getComputedStyle(page).getPropertyValue(name).trim();
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const faded = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;
  const number = (value) => Math.abs(value) >= 100 ? value.toFixed(1) : Math.abs(value) < 10 ? value.toFixed(3) : value.toPrecision(4);
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon"];
  const many = report.models.length > 1;
  // Tokens are in billions; a small run is drawn in millions.
  const most = Math.max(0, ...report.charts.flatMap((chart) => chart.series.flatMap((series) => series.tokens)).filter((x) => x !== null));
  const TOKENS = most > 0 && most < 0.1 ? { size: 1e-3, name: "millions" } : most >= 3000 ? { size: 1e3, name: "trillions" } : { size: 1, name: "billions" };
  const along = (one, x) => x === "tokens" ? one.tokens.map((value) => value === null ? null : value / TOKENS.size) : one.iteration;

  function band(x, low, high, tint, alpha, line) {
    const known = x.map((_, i) => i).filter((i) => low[i] !== null && high[i] !== null);
    if (known.length < 2) return [];
    const back = [...known].reverse();
    return [{
      type: "scatter", mode: "lines", x: [...known.map((i) => x[i]), ...back.map((i) => x[i])],
      y: [...known.map((i) => high[i]), ...back.map((i) => low[i])], fill: "toself", fillcolor: faded(tint, alpha),
      line: { width: 0, color: tint }, hoverinfo: "skip", showlegend: false, name: line,
    }];
  }

  function traces(chart, now) {
    return chart.series.filter((series) => now.model(report.models[series.model])).flatMap((series) => {
      const tint = colour("--c" + (series.model % 8)), name = plain(report.models[series.model]);
      const order = along(series, now.x).map((x, index) => [x, index]).filter((pair) => pair[0] !== null && !(now.log && pair[0] <= 0));
      order.sort((a, b) => a[0] - b[0]);
      const pick = (values) => order.map((pair) => values[pair[1]]);
      const x = order.map((pair) => pair[0]), y = pick(series.value);
      const low = pick(series.low), high = pick(series.high), n = Array.isArray(series.n) ? pick(series.n) : y.map(() => series.n), at = pick(series.iteration);
      const made = band(x, low, high, tint, 0.17, "interval");
      if (series.ahead) {
        const ahead = series.ahead;
        made.push(...band(along(ahead, now.x), ahead.low, ahead.high, tint, 0.08, "expected"));
        made.push({
          type: "scatter", mode: "lines", x: along(ahead, now.x), y: ahead.value, name: name + ", expected", showlegend: false,
          line: { color: tint, width: 1.6, dash: "dot" }, hovertemplate: "expected<br><b>%{y:.3f}</b><extra></extra>",
        });
      }
      made.push({
        type: "scatter", mode: "lines+markers", name, x, y, line: { color: tint, width: 2 },
        marker: { color: tint, size: order.length > 60 ? 3 : order.length > 25 ? 5 : 7, symbol: SYMBOLS[series.model % 8] },
        text: y.map((v, i) => "iteration " + at[i].toLocaleString("en") + "<br><b>" + number(v) + "</b>"
          + (low[i] === null ? "" : " (95 %: " + number(low[i]) + " to " + number(high[i]) + ")")
          + (n[i] ? "<br>n = " + n[i].toLocaleString("en") : "")),
        hovertemplate: "%{text}<extra>" + (many ? name : "") + "</extra>",
      });
      return made;
    });
  }

  const MARGIN = { l: 44, t: 10, b: 40 }, LABEL = 13;  // pixels; the height of a label

  // Baselines and chance: a line each, named in the right margin, where no curve is; names are moved apart.
  function levels(chart, low, high, height) {
    const lines = chart.baselines.map((b) => ({ value: b.value, name: b.name, dash: "6px,4px", tint: colour("--dash") }));
    if (chart.chance !== null) lines.push({ value: chart.chance, name: "chance", dash: "2px,3px", tint: colour("--quiet") });
    lines.sort((a, b) => a.value - b.value);
    const place = (value) => (value - low) / (high - low) * height;
    const most = Math.max(1, Math.floor(height / LABEL));
    const named = lines.length <= most ? lines : lines.filter((_, i) => i % Math.ceil(lines.length / most) === 0);
    let bottom = -Infinity;
    for (const line of named) bottom = line.at = Math.max(place(line.value), bottom + LABEL);
    let top = height + LABEL;
    for (const line of [...named].reverse()) top = line.at = Math.min(line.at, top - LABEL);
    const short = (name) => name.length > 16 ? name.slice(0, 15) + "…" : name;
    return {
      shapes: lines.map((line) => ({
        type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: line.value, y1: line.value, layer: "below",
        line: { color: line.tint, width: 1.2, dash: line.dash },
      })),
      annotations: named.map((line) => ({
        text: plain(short(line.name)), hovertext: plain(line.name) + ": " + number(line.value), showarrow: false,
        xref: "paper", x: 1, xanchor: "left", xshift: 3, yref: "paper", y: line.at / height, yanchor: "middle",
        font: { size: 11, color: colour("--quiet") },
      })),
      room: Math.max(14, ...named.map((line) => 12 + 6.2 * short(line.name).length)),
    };
  }

  function layout(chart, plot, now) {
    const shown = chart.series.filter((s) => now.model(report.models[s.model]));
    const all = shown.flatMap((s) => s.value.concat(s.low, s.high, s.ahead ? s.ahead.value : []))
      .concat(chart.baselines.map((b) => b.value), chart.chance).filter((v) => v !== null);
    let low = Math.min(...all), high = Math.max(...all);
    if (!all.length) [low, high] = [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    [low, high] = [low - room, high + room];
    if (chart.share && !chart.wide) [low, high] = [Math.max(low, -0.03), Math.min(high, 1.03)];
    const legend = shown.length > 1 && (chart.wide || !report.charts.some((one) => one.wide));
    const above = legend ? (plot.clientWidth < 600 ? 19 * shown.length : 24 * Math.ceil(shown.length / 6)) : 0;  // about what it takes
    const named = levels(chart, low, high, plot.clientHeight - MARGIN.t - MARGIN.b - above);
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, automargin: true, tickfont: { size: 11, color: colour("--quiet") }, fixedrange: true };
    const title = (text) => ({ text, font: { size: 11, color: colour("--quiet") }, standoff: 6 });
    return {
      margin: { ...MARGIN, r: named.room }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: colour("--ink"), size: 12 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      xaxis: { ...axis, nticks: plot.clientWidth < 500 ? 5 : 8, type: now.log ? "log" : "linear", showgrid: false, title: title(now.x === "tokens" ? `tokens (${TOKENS.name})` : "iteration"),
        ...(now.log ? { dtick: 1 } : { separatethousands: true }) },
      yaxis: { ...axis, range: [low, high], nticks: 6 },
      showlegend: legend, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
      shapes: named.shapes, annotations: named.annotations, dragmode: false,
    };
  }

  const config = { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false };
  const cards = report.charts.map((chart) => {
    const card = element("article", "card chart" + (chart.wide ? " wide" : ""));
    const title = element("h3");
    const cut = chart.wide ? -1 : chart.title.lastIndexOf(".");
    title.append(cut < 0 ? chart.title : chart.title.slice(0, cut), " ");
    if (cut >= 0) title.append(element("span", "pm", chart.title.slice(cut + 1)));
    if (chart.note) title.append(element("span", "pm", (cut < 0 ? "" : ", ") + chart.note));
    const plot = element("div", "plot");
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", chart.summary);
    card.append(title, plot);
    grid.append(card);
    return { chart, card, plot, seen: false, stale: true };
  });
  const nothing = element("p", "quiet");
  nothing.id = "nothing";
  grid.after(nothing);

  function draw(entry) {
    if (!entry.stale || entry.card.hidden) return;
    entry.stale = false;
    const now = filters.current();
    Plotly.react(entry.plot, traces(entry.chart, now), layout(entry.chart, entry.plot, now), config);
  }
  const watcher = new IntersectionObserver((found) => {
    for (const one of found) {
      if (!one.isIntersecting) continue;
      const entry = cards.find((card) => card.card === one.target);
      entry.seen = true;
      draw(entry);
    }
  }, { rootMargin: "400px" });

  function refresh(now) {
    let shown = 0;
    for (const entry of cards) {
      const { chart } = entry;
      const models = chart.series.some((series) => now.model(report.models[series.model]));
      entry.card.hidden = !(now.found && (chart.main || now.all) && models && (chart.wide ? now.found : now.task(chart.task)));
    }
    const visible = cards.filter((entry) => !entry.card.hidden);
    const small = visible.filter((entry) => !entry.chart.wide).length;
    grid.classList.toggle("pairs", small === 2 || small === 4);  // no gap beside a last one
    for (const entry of cards) {
      entry.stale = true;
      if (!entry.card.hidden && (entry.seen || shown++ < 12)) { entry.seen = true; draw(entry); }
    }
    page.dataset.drawn = visible.filter((entry) => entry.plot.classList.contains("js-plotly-plot")).length;
    page.dataset.charts = visible.length;
    nothing.textContent = !report.charts.length ? "No score yet: curves appear with the first evaluated checkpoint."
      : visible.length ? "" : "Nothing matches the filters.";
    const main = cards.filter((entry) => entry.chart.main || now.all).length;
    document.getElementById("shown").textContent = visible.length < main ? `${visible.length} of ${main} curves` : "";
  }

  window.addEventListener("beforeprint", () => cards.forEach((entry) => { entry.seen = true; draw(entry); }));
  cards.forEach((entry) => watcher.observe(entry.card));
  filters.listen(refresh);
})();

"use strict";
// The page: what is filtered, which colours, which order. Drawing is in charts.js, single items in items.js.
const report = JSON.parse(document.getElementById("report-data").textContent);
const page = document.documentElement;
window.addEventListener("error", (event) => { page.dataset.error = event.message; });

const element = (kind, name, text) => {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
};

const store = {  // a browser may refuse storage; the page works without
  read(area, key) { try { return window[area].getItem(key); } catch { return null; } },
  write(area, key, value) { try { window[area].setItem(key, value); } catch { /* as above */ } },
};

// Filters: a word of the search narrows the models if it is in a model's name, the tasks if it is in a task's.
const filters = (() => {
  const form = document.getElementById("filters");
  const tasks = [...new Set(report.charts.map((chart) => chart.task).filter(Boolean))].sort();
  const listeners = [];
  const fill = (select, values) => {
    for (const value of values) select.add(new Option(value, value));
    select.closest("label").hidden = values.length < 2;
  };
  fill(form.elements.model, report.models);
  fill(form.elements.task, tasks);
  form.hidden = report.charts.length === 0;
  document.getElementById("more").hidden = report.charts.every((chart) => chart.main);
  if (!report.has_tokens) form.querySelector("[value=tokens]").disabled = true;

  function current() {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let models = report.models, kinds = tasks, found = true;
    for (const word of words) {
      const inModels = models.filter((name) => name.toLowerCase().includes(word));
      const inTasks = kinds.filter((name) => name.toLowerCase().includes(word));
      found = found && (inModels.length > 0 || inTasks.length > 0);
      if (inModels.length) models = inModels;
      if (inTasks.length) kinds = inTasks;
    }
    if (form.elements.model.value) models = models.filter((name) => name === form.elements.model.value);
    if (form.elements.task.value) kinds = kinds.filter((name) => name === form.elements.task.value);
    const all = { model: models.length === report.models.length, task: kinds.length === tasks.length };
    return {
      model: (name) => found && (all.model || models.includes(name)),
      task: (name) => found && (all.task || kinds.includes(name) || (!name && all.task)),
      x: form.elements.x.value, log: form.elements.log.checked, all: form.elements.all.checked, found,
    };
  }

  function apply() {
    const now = current();
    for (const one of document.querySelectorAll("[data-model], [data-task]")) {
      const { model, task } = one.dataset;
      const baseline = one.classList.contains("baseline");
      one.hidden = !now.found || (!baseline && model !== undefined && !now.model(model)) || (task !== undefined && !now.task(task));
    }
    for (const table of document.querySelectorAll("table:has(thead th[data-task])")) {
      const heads = [...table.tHead.rows[0].cells];
      const columns = heads.map((head, at) => [at, head.hidden]).filter(([at]) => heads[at].dataset.task !== undefined);
      for (const row of table.tBodies[0].rows) for (const [at, hidden] of columns) row.cells[at].hidden = hidden;
    }
    page.dataset.x = now.x;
    for (const listener of listeners) listener(now);
    const kept = new URLSearchParams(new FormData(form));
    store.write("sessionStorage", "autoeval-filters" + location.pathname, kept.toString());
  }

  function restore() {
    const kept = new URLSearchParams(store.read("sessionStorage", "autoeval-filters" + location.pathname) || "");
    for (const [name, value] of kept) {
      const field = form.elements[name];
      if (!field) continue;
      if (field.type === "checkbox") field.checked = true;
      else if (name === "x") { const choice = form.querySelector(`[name=x][value="${value === "tokens" ? "tokens" : "iteration"}"]`); choice.checked = !choice.disabled; }
      else field.value = value;
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
    }
    if (!form.elements.x.value) form.querySelector("[value=iteration]").checked = true;
  }

  let due = 0;
  const soon = () => { clearTimeout(due); due = setTimeout(apply, 60); };  // not at each key of a word
  form.addEventListener("input", (event) => (event.target.type === "search" ? soon() : apply()));
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    form.elements.search.focus();
  });
  return { current, apply, restore, listen: (listener) => listeners.push(listener) };
})();

// Colours: as the system has them, or as the reader chose.
(() => {
  const group = document.getElementById("theme");
  const show = () => {
    for (const button of group.children) button.setAttribute("aria-pressed", String((page.dataset.theme || "auto") === button.value));
  };
  group.hidden = false;
  group.addEventListener("click", (event) => {
    const chosen = event.target.value;
    if (!chosen) return;
    if (chosen === "auto") delete page.dataset.theme; else page.dataset.theme = chosen;
    store.write("localStorage", "autoeval-theme", chosen === "auto" ? "" : chosen);
    show();
    filters.apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => filters.apply());
  show();
})();

// Tables: a click on a heading sorts by it, a second one the other way; what is unknown stays below.
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = element("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
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

// Checkpoints: only those with an error, on request.
document.querySelectorAll("table.states").forEach((table) => {
  const wrong = table.querySelectorAll("tr[data-wrong]").length;
  if (!wrong || wrong === table.tBodies[0].rows.length) return;
  const label = element("label", "check");
  const box = element("input");
  box.type = "checkbox";
  label.append(box, ` only the ${wrong} with errors`);
  table.closest(".scroll").before(label);
  box.addEventListener("change", () => table.classList.toggle("only-wrong", box.checked));
});

// When it was written, as a person says it.
document.querySelectorAll("time[data-at]").forEach((time) => {
  const exact = time.textContent;
  const tell = () => {
    const minutes = Math.floor((Date.now() / 1000 - Number(time.dataset.at)) / 60);
    const ago = minutes < 1 ? "just now" : minutes < 60 ? `${minutes} min ago` : minutes < 2880 ? `${Math.floor(minutes / 60)} h ago` : `${Math.floor(minutes / 1440)} days ago`;
    time.textContent = `${exact}, ${ago}`;
  };
  tell();
  setInterval(tell, 30000);
});

// Single items: which turned right or wrong, and how they went over the last checkpoints.
(() => {
  const place = document.getElementById("browser");
  if (!place || !report.items.length) { filters.restore(); filters.apply(); return; }
  const STEP = 25;
  const KINDS = {
    "lost": ["turned wrong in the last step", (item) => item[2] < 0],
    "gained": ["turned right in the last step", (item) => item[2] > 0],
    "lost-best": ["turned wrong since the best", (item) => item[3] < 0],
    "forgotten": ["learned, then forgotten", (item) => item[5] !== null],
    "restless": ["changed most often", (item) => item[4] > 1],
  };
  const form = element("form", "filters items");
  const field = (label, control) => { const made = element("label"); made.append(element("span", "", label), control); form.append(made); };
  const kind = element("select"), search = element("input");
  for (const [value, [text]] of Object.entries(KINDS)) kind.add(new Option(text, value));
  search.type = "search";
  search.placeholder = "item";
  field("show items that", kind);
  field("named", search);
  const list = element("div", "cards"), more = element("button", "plain", "show more");
  more.type = "button";
  place.append(form, list, more);
  let limit = STEP;

  function strip(item, of) {
    const made = element("span", "strip");
    const text = [...item[1]];
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", text.map((one, i) => `${of.iterations[i]} ${one === "1" ? "right" : one === "0" ? "wrong" : "not asked"}`).join(", "));
    text.forEach((one, i) => {
      const box = element("i", one === "1" ? "right" : one === "0" ? "wrong" : "");
      box.title = `iteration ${of.iterations[i].toLocaleString("en")}: ${one === "1" ? "right" : one === "0" ? "wrong" : "not asked"}`;
      made.append(box);
    });
    return made;
  }

  function show(now) {
    const wanted = KINDS[kind.value][1], named = search.value.toLowerCase();
    list.replaceChildren();
    let total = 0, shown = 0;
    for (const of of report.items) {
      if (!now.model(of.model) || !now.task(of.task)) continue;
      const found = of.items.filter((item) => wanted(item) && item[0].toLowerCase().includes(named));
      total += found.length;
      const here = found.slice(0, Math.max(0, limit - shown));
      if (!here.length) continue;
      shown += here.length;
      const block = element("div", "card of-items"), title = element("h3", "", of.metric + " ");
      title.append(element("span", "pm", (report.models.length > 1 ? of.model + ", " : "") + `${found.length.toLocaleString("en")} item${found.length === 1 ? "" : "s"}`));
      for (const answer of of.answers) {
        const link = element("a", "", `answers at ${answer.iteration.toLocaleString("en")}`);
        link.href = answer.href;
        title.append(" ", link);
      }
      const table = element("table"), body = table.createTBody();
      for (const item of here) {
        const row = body.insertRow();
        const head = element("th", "name", item[0]);
        head.scope = "row";
        row.append(head);
        const course = row.insertCell();
        course.className = "t";
        course.append(strip(item, of));
        row.insertCell().textContent = item[4] === 1 ? "1 change" : `${item[4]} changes`;
      }
      block.append(title, table);
      list.append(block);
    }
    if (!total) list.append(element("p", "quiet", "No item did."));
    more.hidden = shown >= total;
    more.textContent = `show more (${(total - shown).toLocaleString("en")} left)`;
    page.dataset.items = shown;
  }
  const again = () => show(filters.current());
  form.addEventListener("input", () => { limit = STEP; again(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += 4 * STEP; again(); });
  filters.listen(show);
  filters.restore();
  filters.apply();
})();

"use strict";
(() => {
  // Without this script every table is there; it sorts, filters, compares, copies and keeps the
  // state in the address, so that a link shows what its sender sees.
  const $ = (query, from = document) => [...from.querySelectorAll(query)];
  const make = (tag, props = {}, ...inside) => {
    const made = Object.assign(document.createElement(tag), props);
    made.append(...inside);
    return made;
  };
  const text = (cell) => [...cell.childNodes]
    .filter((node) => !(node.matches && node.matches("svg, .pin, [aria-hidden]")))
    .map((node) => (node.nodeType === 1 ? text(node) : node.nodeValue)).join(" ")
    .replace(/\s+/g, " ").trim();

  const state = { q: "", verdicts: new Set(), family: "", norm: "", sort: {}, budget: {}, hidden: new Set(), pins: [], open: [] };
  const tables = $("table.sortable");
  const norms = $("section.norm");
  tables.forEach((table, at) => { table.id ||= table.closest("[id]").id + "-t" + at; });

  const budget = (place) => {
    const norm = place.closest(".norm");
    if (!norm) return 0;
    return Number(norm.querySelector(".budgets input:checked")?.className.slice(5) || 0);
  };
  const row = (body) => body.querySelector("tr.b-" + budget(body)) || body.rows[0];

  // Sorting: groups of rows move together; what has no value comes last either way.
  const value = (body, column) => {
    const cell = row(body).cells[column];
    if (!cell) return null;
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const told = text(cell), figure = parseFloat(told.replace("−", "-").replace(/,/g, ""));
    if (told === "" || told === "–") return null;
    return cell.tagName === "TD" && !Number.isNaN(figure) ? figure : told;
  };
  const collator = new Intl.Collator("en", { numeric: true });
  const first = new Map(tables.map((table) => [table, [...table.tBodies]]));
  const sort = (table) => {
    const [key, down] = (state.sort[table.id] || "").split(":");
    const heads = [...table.tHead.rows[0].cells];
    const column = heads.findIndex((head) => head.dataset.key === key);
    heads.forEach((head, at) => (at === column
      ? head.setAttribute("aria-sort", down ? "descending" : "ascending")
      : head.removeAttribute("aria-sort")));
    let bodies = [...first.get(table)];
    if (column >= 0) {
      const sign = down ? -1 : 1;
      const keyed = bodies.map((body) => [value(body, column), body]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" && typeof b === "number"
          ? a - b : collator.compare(String(a), String(b)));
      });
      bodies = keyed.map(([, body]) => body);
    }
    const all = document.createDocumentFragment();
    all.append(...bodies);
    table.append(all);
  };

  // Filters
  const filter = () => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const body of $("table.sortable tbody")) {
      const verdict = row(body).dataset.verdict;
      const told = (body.dataset.name || body.textContent).toLowerCase();
      body.hidden = !(words.every((word) => told.includes(word))
        && (!state.verdicts.size || !verdict || state.verdicts.has(verdict))
        && (!state.family || !body.dataset.family || body.dataset.family === state.family));
      shown += !body.hidden && Boolean(verdict || body.closest(".runs"));
    }
    for (const norm of norms) norm.hidden = Boolean(state.norm) && norm.dataset.norm !== state.norm;
    status.textContent = words.length || state.verdicts.size || state.family ? shown + " rows" : "";
  };

  const columns = () => {
    for (const table of $("table.verdicts")) {
      const heads = [...table.tHead.rows[0].cells];
      const away = heads.map((head) => state.hidden.has(head.dataset.key));
      for (const line of $("thead tr, tr.b", table)) {
        [...line.cells].forEach((cell, at) => { cell.hidden = away[at]; });
      }
    }
  };

  // The state in the address: `#q=…`; a plain `#id` stays an anchor.
  let ready = false;
  const save = () => {
    if (!ready) return;
    const kept = new URLSearchParams();
    if (state.q) kept.set("q", state.q);
    if (state.verdicts.size) kept.set("verdict", [...state.verdicts].join(","));
    if (state.family) kept.set("family", state.family);
    if (state.norm) kept.set("norm", state.norm);
    if (state.hidden.size) kept.set("hide", [...state.hidden].join(","));
    if (state.pins.length) kept.set("pin", state.pins.join(","));
    for (const [id, sorted] of Object.entries(state.sort)) kept.set("sort." + id, sorted);
    for (const [id, place] of Object.entries(state.budget)) kept.set("budget." + id, place);
    const open = $("tr.more details[open]").map((one) => one.closest("tbody").id).filter(Boolean);
    if (open.length) kept.set("open", open.join(","));
    const told = kept.toString();
    history.replaceState(null, "", told ? "#" + told : location.pathname + location.search);
  };
  const load = () => {
    const told = location.hash.slice(1);
    if (!told.includes("=")) return;
    const kept = new URLSearchParams(told);
    const list = (name) => (kept.get(name) || "").split(",").filter(Boolean);
    state.q = kept.get("q") || "";
    state.verdicts = new Set(list("verdict"));
    state.family = kept.get("family") || "";
    state.norm = kept.get("norm") || "";
    state.hidden = new Set(list("hide"));
    state.pins = list("pin").filter((id) => document.getElementById(id)?.closest(".verdicts")).slice(0, 4);
    state.sort = {};
    state.open = list("open");
    for (const [name, kind] of kept) {
      if (name.startsWith("sort.")) state.sort[name.slice(5)] = kind;
      if (name.startsWith("budget.")) {
        state.budget[name.slice(7)] = kind;
        const box = document.getElementById(name.slice(7))?.querySelector(".pick-" + Number(kind));
        if (box) box.checked = true;
      }
    }
    for (const id of state.open) {
      const more = document.getElementById(id)?.querySelector("tr.more details");
      if (more) more.open = true;
    }
  };

  // Copying
  const grid = (table) => {
    const heads = [...table.tHead.rows[0].cells].filter((cell) => !cell.hidden);
    const lines = [...table.tBodies].filter((body) => !body.hidden)
      .flatMap((body) => (body.querySelector("tr.b") ? [row(body)] : [body.rows[0]]));
    return [heads.map(text), ...lines.map((line) => [...line.cells].filter((cell) => !cell.hidden).map(text))];
  };
  const csv = (table) => grid(table).map((line) => line
    .map((told) => (/[",\n]/.test(told) ? '"' + told.replace(/"/g, '""') + '"' : told)).join(",")).join("\n") + "\n";
  const signs = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "Δ": "$\\Delta$", "−": "$-$", "–": "--", "∞": "$\\infty$", "ε": "$\\varepsilon$", "≤": "$\\leq$", "×": "$\\times$", "σ": "$\\sigma$" };
  const tex = (told) => told.replace(/[\\~^Δ−–∞ε≤×σ]|[&%$#_{}]/g, (sign) => signs[sign] || "\\" + sign);
  const latex = (table) => {
    const [heads, ...lines] = grid(table).map((line) => "  " + line.map(tex).join(" & ") + " \\\\");
    return ["% \\usepackage{booktabs}", "\\begin{tabular}{l" + "r".repeat(grid(table)[0].length - 1) + "}", "  \\toprule", heads, "  \\midrule", ...lines, "  \\bottomrule", "\\end{tabular}", ""].join("\n");
  };
  const copy = async (button, told) => {
    try {
      await navigator.clipboard.writeText(told);
      const was = button.textContent;
      button.textContent = "copied";
      setTimeout(() => { button.textContent = was; }, 1200);
    } catch {
      // A page from a file may not write to the clipboard everywhere: there it is taken by hand.
      const area = make("textarea", { value: told, readOnly: true, ariaLabel: "to copy" });
      const box = make("dialog", {}, area, make("form", { method: "dialog" }, make("button", { textContent: "close" })));
      box.lastChild.onsubmit = (event) => { event.preventDefault(); box.close(); };
      box.onclose = () => box.remove();
      document.body.append(box);
      box.showModal();
      area.select();
    }
  };
  const button = (words, act, props = {}) => {
    const made = make("button", { type: "button", textContent: words, ...props });
    made.onclick = () => act(made);
    return made;
  };
  for (const table of tables) {
    (table.closest(".scroll") || table).after(make("div", { className: "copy" },
      button("CSV", (me) => copy(me, csv(table)), { title: "copy what is shown as CSV" }),
      button("LaTeX", (me) => copy(me, latex(table)), { title: "copy what is shown as a booktabs table" })));
    for (const head of table.tHead.rows[0].cells) {
      if (!head.dataset.key) continue;
      const inner = button("", () => {
        const was = state.sort[table.id] || "";
        const key = head.dataset.key, number = first.get(table).slice(0, 9).some((body) => typeof value(body, head.cellIndex) === "number");
        const order = number ? [key + ":down", key] : [key, key + ":down"];
        const next = was === order[0] ? order[1] : was === order[1] ? undefined : order[0];
        if (next) state.sort[table.id] = next; else delete state.sort[table.id];
        sort(table); save();
      });
      inner.append(...head.childNodes);
      head.append(inner);
    }
  }
  for (const bib of $("pre.bibtex")) bib.before(make("div", { className: "copy" }, button("BibTeX", (me) => copy(me, bib.textContent.trim() + "\n"))));

  // Comparing up to four
  const panel = make("section", { id: "compare", hidden: true, ariaLabel: "Comparison" });
  const compare = () => {
    for (const pin of $(".pin")) pin.setAttribute("aria-pressed", String(state.pins.includes(pin.closest("tbody").id)));
    const bodies = state.pins.map((id) => document.getElementById(id)).filter(Boolean);
    panel.hidden = !bodies.length;
    const table = make("table"), head = table.createTHead().insertRow();
    head.append(make("th", { scope: "col" }));
    for (const body of bodies) head.append(make("th", { scope: "col", textContent: body.dataset.name + ", " + body.closest(".norm").dataset.norm }));
    const inside = table.createTBody();
    const keys = bodies.length ? [...bodies[0].closest("table").tHead.rows[0].cells] : [];
    keys.slice(1).forEach((key, at) => {
      const line = inside.insertRow();
      line.append(make("th", { scope: "row", textContent: text(key) }));
      for (const body of bodies) line.insertCell().append(...[...row(body).cells[at + 1].childNodes].map((node) => node.cloneNode(true)));
    });
    const line = inside.insertRow();
    line.append(make("th", { scope: "row", textContent: "why" }));
    for (const body of bodies) line.insertCell().textContent = body.querySelector("summary .b-" + budget(body))?.textContent || "";
    panel.replaceChildren(make("h2", { textContent: "Compared " }), button("clear", () => { state.pins = []; compare(); save(); }), make("div", { className: "scroll" }, table));
  };
  for (const body of $(".verdicts tbody")) {
    for (const head of $("tr.b > th", body)) {
      head.prepend(button("☆", () => {
        const at = state.pins.indexOf(body.id);
        if (at >= 0) state.pins.splice(at, 1);
        else { state.pins.push(body.id); state.pins.splice(0, state.pins.length - 4); }
        compare(); save();
      }, { className: "pin", ariaLabel: "compare " + body.dataset.name, title: "compare, up to four" }));
    }
    for (const line of $("tr.b", body)) {
      [...line.cells].slice(1).forEach((cell, at) => { cell.dataset.label = text(body.closest("table").tHead.rows[0].cells[at + 1]); });
    }
  }

  // The bar of tools
  const status = make("span", { role: "status" });
  const search = make("input", { type: "search", placeholder: "search", ariaLabel: "search defenses" });
  const tick = (words, on, act) => {
    const box = make("input", { type: "checkbox", checked: on });
    box.onchange = () => act(box.checked);
    return make("label", {}, box, " " + words);
  };
  const choose = (label, words, has, act) => {
    const box = make("select", { ariaLabel: label }, make("option", { value: "", textContent: label }), ...words.map((word) => make("option", { value: word, textContent: word.length > 40 ? word.slice(0, 40) + "…" : word })));
    box.value = has;
    box.onchange = () => act(box.value);
    return box;
  };
  const tools = make("div", { className: "tools", role: "search", ariaLabel: "Filter the tables" });
  const different = (list) => [...new Set(list)].filter(Boolean);
  const build = () => {
    search.value = state.q;
    const words = different($("tr.b").map((line) => line.dataset.verdict));
    const families = different($("tbody[data-family]").map((body) => body.dataset.family));
    const kinds = different(norms.map((norm) => norm.dataset.norm));
    const parts = [search];
    const changed = () => { filter(); save(); };
    if (words.length) {
      parts.push(make("fieldset", {}, make("legend", { className: "sr", textContent: "Verdicts" }), ...words.map((word) => tick(word, state.verdicts.has(word), (on) => { state.verdicts[on ? "add" : "delete"](word); changed(); }))));
    }
    if (families.length > 1) parts.push(choose("every family", families, state.family, (to) => { state.family = to; changed(); }));
    if (kinds.length > 1) parts.push(choose("every norm", kinds, state.norm, (to) => { state.norm = to; changed(); }));
    const heads = $("table.verdicts").slice(0, 1).flatMap((table) => [...table.tHead.rows[0].cells].slice(1));
    if (heads.length) {
      parts.push(make("details", {}, make("summary", { textContent: "columns" }), make("div", {}, ...heads.map((head) => tick(text(head), !state.hidden.has(head.dataset.key), (on) => { state.hidden[on ? "delete" : "add"](head.dataset.key); columns(); save(); })))));
    }
    parts.push(button("light / dark", () => {
      const root = document.documentElement;
      const dark = (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
      root.dataset.theme = dark ? "light" : "dark";
    }), status);
    tools.replaceChildren(...parts);
  };
  search.oninput = () => { state.q = search.value; filter(); save(); };
  document.getElementById("main").prepend(tools);
  document.getElementById("main").append(panel);
  for (const box of $(".budgets input")) {
    box.addEventListener("change", () => {
      state.budget[box.closest(".norm").id] = box.className.slice(5);
      box.closest(".norm").querySelectorAll("table.sortable").forEach(sort);
      filter(); compare(); save();
    });
  }
  for (const more of $("tr.more details")) more.addEventListener("toggle", save);

  // What a cell of a map is
  document.addEventListener("pointermove", (event) => {
    const drawn = event.target.closest?.(".strip");
    if (!drawn) return;
    const table = drawn.closest("table"), told = table.closest(".behind").querySelector(".pointed");
    const order = (table.dataset.sources || "").split(" ");
    const box = drawn.getBoundingClientRect();
    const at = Math.min(order.length - 1, Math.floor(order.length * (event.clientX - box.left) / box.width));
    const [sample, label] = order[at].split(":");
    if (told && drawn === drawn.parentNode.firstElementChild) told.textContent = "source " + sample + ", class " + label + ", under " + text(drawn.closest("tr").cells[0]);
  });

  const show = () => { build(); tables.filter((table) => state.sort[table.id]).forEach(sort); columns(); filter(); compare(); };
  load();
  show();
  ready = true;
  addEventListener("hashchange", () => { ready = false; load(); show(); ready = true; });
  document.documentElement.dataset.ready = "yes";
})();

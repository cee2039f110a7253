"use strict";
// Draws the figures and fills the tables of a report. All that it shows is in the element `data`.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const ROWS = 25;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function save(name, address) {
    element("a", { href: address, download: name }).click();
  }

  async function draw(place) {
    const name = place.dataset.figure;
    const title = place.parentElement.querySelector("h3").textContent;
    const theme = dark.matches ? "dark" : "light";
    const spec = JSON.parse(JSON.stringify(data.figures[name]), (_, value) =>
      theme === "dark" && Object.hasOwn(data.in_the_dark, value) ? data.in_the_dark[value] : value);
    const result = await window.vegaEmbed(place, { ...spec, description: title }, {
      actions: false, config: data.themes[theme], renderer: "svg", tooltip: { theme },
    });
    place.dataset.drawn = theme;
    if (place.nextElementSibling) place.nextElementSibling.remove();
    const buttons = ["png", "svg"].map((kind) => {
      const button = element("button", { type: "button" }, kind.toUpperCase());
      button.setAttribute("aria-label", `Save ${title} as ${kind.toUpperCase()}`);
      button.addEventListener("click", async () =>
        save(`${name}.${kind}`, await result.view.toImageURL(kind, 2)));
      return button;
    });
    place.after(element("div", { class: "save" }, ...buttons));
  }

  async function drawAll() {
    for (const place of document.querySelectorAll("[data-figure]")) await draw(place);
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  function before(a, b) {
    // What has no value comes last, whichever way round.
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function csv(table) {
    const cell = (value) => {
      const text = value === null ? "" : String(value);
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [table.columns, ...table.rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }

  function shown(value) {
    if (value === null) return "";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 4);
  }

  function fill(place) {
    const table = data.tables[place.dataset.table];
    const numbers = table.columns.map((_, at) =>
      table.rows.every((row) => row[at] === null || typeof row[at] === "number"));
    const body = element("tbody");
    const told = element("span", { class: "quiet", "aria-live": "polite" });
    let rows = [...table.rows], by = null, down = false, from = 0;

    function show() {
      body.replaceChildren(...rows.slice(from, from + ROWS).map((row) =>
        element("tr", {}, ...row.map((value, at) =>
          element("td", numbers[at] ? { class: "number" } : {}, shown(value))))));
      const to = Math.min(from + ROWS, rows.length);
      told.textContent = `${from + 1} to ${to} of ${rows.length}`;
      back.disabled = from === 0;
      next.disabled = to === rows.length;
    }

    const heads = table.columns.map((title, at) => {
      const head = element("th", { scope: "col", class: numbers[at] ? "number" : "text" });
      const button = element("button", { type: "button" }, title);
      button.addEventListener("click", () => {
        down = by === at ? !down : false;
        by = at;
        from = 0;
        const order = (a, b) => down && a[at] !== null && b[at] !== null
          ? before(b[at], a[at]) : before(a[at], b[at]);
        rows = [...table.rows].sort(order);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        show();
      });
      head.append(button);
      return head;
    });

    function turn(by) {
      from += by;
      show();
    }
    const back = element("button", { type: "button" }, "Back");
    const next = element("button", { type: "button" }, "Next");
    back.addEventListener("click", () => turn(-ROWS));
    next.addEventListener("click", () => turn(ROWS));
    const download = element("button", { type: "button" }, "CSV");
    download.setAttribute("aria-label", `Save ${table.title} as CSV`);
    download.addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
      save(`${table.name}.csv`, address);
      URL.revokeObjectURL(address);
    });
    const scroll = element("div", { class: "scroll", tabindex: "0", role: "region" },
      element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body));
    scroll.setAttribute("aria-label", table.title);
    const pages = rows.length > ROWS ? [back, next, told] : [];
    place.append(scroll, element("div", { class: "below" }, ...pages, download));
    show();
  }

  for (const place of document.querySelectorAll("[data-table]")) fill(place);
  dark.addEventListener("change", drawAll);
  drawAll();
})();

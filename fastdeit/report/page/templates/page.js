"use strict";
// plots, their shared axis, sorting and filters; all else on the page works without a script

const root = document.documentElement;
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot")];
const timed = plots.filter((plot) => figures[plot.dataset.figure].is_timed);
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)");
root.classList.remove("no-script");

// a copy of a figure in which names of the style, as "--c0", are its colours
function paint(value, style) {
  if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  if (Array.isArray(value)) return value.map((item) => (typeof item === "object" ? paint(item, style) : item));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, paint(item, style)]));
}

function draw(plot) {
  const style = getComputedStyle(root);
  const figure = figures[plot.dataset.figure];
  const { data, layout } = paint({ data: figure.data, layout: figure.layout }, style);
  const text = style.getPropertyValue("--text").trim();
  const common = {
    showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 60, r: 16, t: layout.xaxis2 ? 44 : 12, b: 44 },
    dragmode: coarse.matches || !figure.is_timed ? false : "zoom",
    hoverlabel: { align: "left" },
    autosize: true,
  };
  return Plotly.react(plot, data, { ...common, ...layout }, { responsive: true, displayModeBar: false });
}

function redraw() {
  plots.forEach(draw);
}

// what a reader hides or zooms is written into the figures, so that a redraw has it
function show(figure, trace, isShown) {
  figure.data[trace].visible = isShown ? true : "legendonly";
}

function zoom(from, to) {
  for (const plot of timed) {
    const figure = figures[plot.dataset.figure];
    figure.layout.xaxis.range = [from, to];
    if (figure.layout.xaxis2) {
      figure.layout.xaxis2.range = [from / figure.steps_per_epoch, to / figure.steps_per_epoch];
    }
    draw(plot);
  }
  const form = document.querySelector(".axis");
  form.elements.from.value = Math.round(from);
  form.elements.to.value = Math.round(to);
}

function connectAxis() {
  const form = document.querySelector(".axis");
  if (!form || !timed.length) return;
  const whole = [...figures[timed[0].dataset.figure].layout.xaxis.range];
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const [from, to] = [form.elements.from, form.elements.to].map((field) => Number(field.value));
    if (to > from) zoom(from, to);
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    zoom(...whole);
  });
  for (const plot of timed) {
    plot.on("plotly_relayout", (change) => {
      if ("xaxis.range[0]" in change) zoom(Math.max(change["xaxis.range[0]"], 0), change["xaxis.range[1]"]);
      else if (change["xaxis.autorange"]) zoom(...whole);
    });
  }
}

function press(button) {
  const isPressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", isPressed);
  return isPressed;
}

function connectKeys() {
  for (const button of document.querySelectorAll(".keys button[data-trace]")) {
    const plot = plots.find((one) => one.dataset.figure === button.dataset.of);
    button.addEventListener("click", () => {
      show(figures[plot.dataset.figure], Number(button.dataset.trace), press(button));
      draw(plot);
    });
  }
  for (const button of document.querySelectorAll(".keys button[data-kind]")) {
    button.addEventListener("click", () => {
      const isShown = press(button);
      for (const plot of timed) {
        const figure = figures[plot.dataset.figure];
        figure.data.forEach((trace, place) => {
          if (trace.meta === button.dataset.kind) show(figure, place, isShown);
        });
        draw(plot);
      }
    });
  }
}

function read(row, column, isNumber) {
  const text = row.cells[column].textContent.trim();
  if (!isNumber) return text;
  return text === "" ? -Infinity : Number(text.replaceAll(",", ""));
}

function sort(table, header) {
  const column = header.cellIndex;
  const isNumber = header.classList.contains("number");
  const isUp = header.getAttribute("aria-sort") !== "ascending";
  const order = new Intl.Collator(undefined, { numeric: true });
  const rows = [...table.tBodies[0].rows].map((row) => [read(row, column, isNumber), row]);
  rows.sort(([one], [other]) => (isNumber ? one - other : order.compare(one, other)));
  if (!isUp) rows.reverse();
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isUp ? "ascending" : "descending");
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

// a header's text becomes a button where a script can sort
function connectTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, header));
    }
  }
  for (const field of document.querySelectorAll(".filter input")) {
    const table = document.getElementById(field.dataset.table);
    const status = field.closest(".filter").querySelector("[role=status]");
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    });
  }
}

redraw();
connectAxis();
connectKeys();
connectTables();
dark.addEventListener("change", redraw);
// paper is light
addEventListener("beforeprint", () => { root.classList.add("print"); redraw(); });
addEventListener("afterprint", () => { root.classList.remove("print"); redraw(); });
root.dataset.drawn = String(plots.length);

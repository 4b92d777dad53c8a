"use strict";
// A report to browse: every number leads to its cells. Nothing is fetched; all data stands in this page.

const one = (selector, from = document) => from.querySelector(selector);
const every = (selector, from = document) => [...from.querySelectorAll(selector)];
const STEP = 200; // rows of the table of cells that are added at a time

function make(name, text = "", attributes = {}, ...children) {
  const element = document.createElement(name);
  if (text !== "") element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob(one(`#${id}`).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const loaded = {};
async function data() {
  loaded.data ??= unpack("data").then((buffer) => JSON.parse(new TextDecoder().decode(buffer)));
  return loaded.data;
}
async function curves() {
  loaded.curves ??= unpack("curves").then((buffer) => new Uint16Array(buffer));
  return loaded.curves;
}

// A curve is kept as differences of 16-bit steps between its smallest and largest value; 65535 stands for no value.
function curve(raw, spec) {
  const values = [];
  let step = 0;
  for (let at = spec.at; at < spec.at + spec.n; at += 1) {
    if (raw[at] === 65535) { values.push(null); continue; }
    step = (step + raw[at]) % 65535;
    values.push(spec.low + (spec.high - spec.low) * (step / 65534));
  }
  return values;
}

function label(all, n, axis) { return all.axes[axis].values[all.axes[axis].at[n]]; }
function shown(value) { return value === null || value === undefined ? "–" : typeof value === "number" ? String(+value.toPrecision(6)) : Array.isArray(value) || typeof value === "object" ? JSON.stringify(value) : String(value); }

function facts(title, pairs) {
  const list = make("dl");
  for (const [key, value] of pairs) list.append(make("dt", key), make("dd", shown(value)));
  return make("section", "", {}, make("h3", title), list);
}

const SVG = "http://www.w3.org/2000/svg";
function drawn(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function picture(title, lines, ghosts) {
  const wide = 520, high = 200, left = 48, below = 24;
  const all = lines.flatMap((line) => line.values).filter((v) => v !== null);
  if (!all.length) return make("p", `${title}: nothing was measured`);
  const low = Math.min(...all), high_ = Math.max(...all), n = Math.max(...lines.map((line) => line.values.length));
  const x = (i) => left + ((wide - left - 8) * i) / Math.max(1, n - 1);
  const y = (v) => 8 + (high - below - 8) * (1 - (v - low) / (high_ - low || 1));
  const svg = drawn("svg", { viewBox: `0 0 ${wide} ${high}`, class: "curve", role: "img", "aria-label": title });
  if (ghosts) svg.append(drawn("rect", { class: "ghosts", x: left, y: 8, width: x(ghosts - 1) - left, height: high - below - 8 }));
  svg.append(drawn("path", { class: "frame", d: `M${left},8V${high - below}H${wide - 8}` }));
  lines.forEach((line, number) => {
    let d = "", pen = "M";
    line.values.forEach((v, i) => { if (v === null) { pen = "M"; } else { d += `${pen}${x(i).toFixed(1)},${y(v).toFixed(1)}`; pen = "L"; } });
    svg.append(drawn("path", { d, class: number ? "second" : "first" }));
    svg.append(drawn("text", { x: left + 8 + 130 * number, y: 18 }, (number ? "- - " : "— ") + line.name));
  });
  const short = (v) => String(+v.toPrecision(3));
  svg.append(drawn("text", { x: 2, y: 14 }, short(high_)), drawn("text", { x: 2, y: high - below }, short(low)));
  svg.append(drawn("text", { x: left, y: high - 6 }, "epoch 1"), drawn("text", { x: wide - 30, y: high - 6 }, String(n)));
  return make("figure", "", {}, svg, make("figcaption", title + (ghosts ? `; shaded: ghosts live until epoch ${ghosts}` : "")));
}

async function showCell(n) {
  const all = await data(), raw = await curves(), cell = all.cells[n], place = one("#panel-cell");
  const axes = Object.keys(all.axes);
  const parts = make("div", "", { class: "parts" });
  parts.append(facts("Cell", [...axes.map((axis) => [axis, label(all, n, axis)]), ["sweep", cell.sweep], ["key", cell.key], ["state", cell.reason || "done"]]));
  const numbers = Object.entries(all.metrics).map(([name, values]) => [name, values[n]]).filter(([, value]) => value !== null);
  if (numbers.length) parts.append(facts("Numbers", numbers));
  parts.append(facts("Ticket and data, by hash", Object.entries(cell.identity)));
  parts.append(facts("Protocol", Object.entries(all.shared[cell.protocol])));
  if (cell.stamp !== null) parts.append(facts("Stamp", Object.entries(all.shared[cell.stamp])));
  if (cell.provenance !== null) parts.append(facts("Provenance", [...Object.entries(all.shared[cell.provenance]), ...Object.entries(cell.own)]));
  const wanted = all.commands.filter((c) => !cell.reason.endsWith("diverged") || !c.includes("--retry"));  // it is a result
  const commands = make("section", "", {}, make("h3", "Commands"), make("pre", wanted.map((c) => c.replaceAll("{store}", all.store).replaceAll("{only}", cell.only).replaceAll("{key}", cell.key).replaceAll("{sweep}", cell.sweep).replaceAll("{file}", all.files[cell.sweep])).join("\n")));
  const failure = cell.cause ? [make("h3", "Failure"), make("p", `${cell.reason}: ${cell.cause}`, { class: "hole" })] : [];
  if (cell.log !== null) failure.push(make("h3", "End of the log"), make("pre", all.logs[cell.log], { class: "log" }));
  const drawnCurves = [];
  const lines = Object.entries(cell.curves).map(([name, spec]) => ({ name, values: curve(raw, spec) }));
  const accuracy = lines.filter((line) => line.name.endsWith("accuracy")), loss = lines.filter((line) => line.name.endsWith("loss"));
  if (accuracy.length) drawnCurves.push(picture("Accuracy (%)", accuracy, cell.ghosts));
  if (loss.length) drawnCurves.push(picture("Loss", loss, cell.ghosts));
  const title = make("h3", cell.name);
  place.replaceChildren(title, ...failure, make("div", "", { class: "parts" }, ...drawnCurves), parts, commands);
  every("#panel-cells [data-cell]").forEach((b) => b.closest("tr").setAttribute("aria-current", String(b.dataset.cell === String(n))));
}

async function showCells(title, numbers) {
  const all = await data();
  const twin = numbers.every((n) => label(all, n, "ticket_seed") === label(all, n, "seed"));
  const axes = Object.keys(all.axes).filter((axis) => new Set(numbers.map((n) => label(all, n, axis))).size > 1 && !(twin && axis === "ticket_seed"));
  const body = make("tbody");
  for (const n of numbers) {
    const row = make("tr");
    const name = axes.length ? axes.map((axis) => `${axis} ${label(all, n, axis)}`).join(", ") : "cell";
    row.append(make("td", "", {}, make("button", name, { type: "button", class: "number", "data-cell": n })));
    row.append(make("td", shown(all.value[n])), make("td", all.cells[n].reason || "done", all.cells[n].reason ? { class: "hole" } : {}));
    row.append(make("td", all.cells[n].own.seconds === undefined ? "" : `${shown(all.cells[n].own.seconds)} s`));
    body.append(row);
  }
  one("#panel-title").textContent = title;
  one("#panel-cells").replaceChildren(make("table", "", {}, body));
  one("#panel-cell").replaceChildren();
  const panel = one("#panel");
  if (!panel.open) panel.showModal();
  if (numbers.length) await showCell(numbers[0]);
  panel.scrollTop = 0;
}

// Sorting: by the first number of a text where both have one, else as words; holes stand last.
function rank(text) {
  const found = text.trim().match(/^([+-]?\d[\d.]*(?:e[+-]?\d+)?)([kMGTP])?/);
  return found ? parseFloat(found[1]) * ({ k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15 }[found[2]] ?? 1) : NaN;
}
const hole = (text) => text.trim() === "" || text.trim().startsWith("–");
function compare(a, b, way) {
  if (hole(a) !== hole(b)) return hole(a) ? 1 : -1;
  const [x, y] = [rank(a), rank(b)];
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return way * (Number.isNaN(x) ? a.localeCompare(b) : x - y || a.localeCompare(b));
}
function direction(button) {
  const way = button.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  every(".sort", button.closest("thead")).forEach((b) => b.removeAttribute("aria-sort"));
  button.setAttribute("aria-sort", way);
  return way === "ascending" ? 1 : -1;
}
function sortTable(button) {
  const table = button.closest("table"), at = [...button.closest("tr").children].indexOf(button.closest("th")), way = direction(button);
  const rows = every("tbody tr", table).sort((a, b) => compare(a.children[at].textContent, b.children[at].textContent, way));
  one("tbody", table).append(...rows);
}

const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
function filterRows() {
  const wanted = words(one("#filter").value);
  for (const row of every("table[data-table] tbody tr")) {
    const heads = every("thead th", row.closest("table")).map((th) => th.textContent).join(" ");
    const text = `${row.textContent} ${heads} ${row.closest("section").querySelector("h2").textContent}`.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
  }
}

const cells = { order: [], shown: 0 };
async function listCells(more = false) {
  const all = await data(), axes = Object.keys(all.axes), wanted = words(one("#cell-filter").value);
  const text = (n) => [...axes.flatMap((axis) => [label(all, n, axis), `${axis}=${label(all, n, axis)}`]), all.cells[n].reason || "done", all.cells[n].key, all.cells[n].cause].join(" ").toLowerCase();
  const found = cells.order.filter((n) => wanted.every((word) => text(n).includes(word)));
  cells.shown = more ? cells.shown + STEP : STEP;
  const rows = found.slice(0, cells.shown).map((n) => make("tr", "", {},
    make("td", "", {}, make("button", shown(all.value[n]), { type: "button", class: "number", "data-cell": n })),
    make("td", all.cells[n].reason || "done", all.cells[n].reason ? { class: "hole" } : {}), ...axes.map((axis) => make("td", label(all, n, axis)))));
  one("#cell-table tbody").replaceChildren(...rows);
  one("#cell-count").textContent = `${found.length} of ${all.cells.length} cells`;
  one("#more").hidden = found.length <= cells.shown;
}
async function sortCells(button) {
  const all = await data(), way = direction(button), name = button.dataset.axis;
  const text = (n) => (name === "value" ? shown(all.value[n]) : name === "state" ? all.cells[n].reason || "done" : label(all, n, name));
  cells.order.sort((a, b) => compare(text(a), text(b), way));
  await listCells();
}
async function begin() {
  const all = await data();
  cells.order = all.cells.map((_, n) => n);
  const heads = ["value", "state", ...Object.keys(all.axes)].map((axis) => make("th", "", { scope: "col" }, make("button", axis, { type: "button", class: "sort", "data-axis": axis })));
  one("#cell-table thead").append(make("tr", "", {}, ...heads));
  await listCells();
  document.documentElement.dataset.ready = "true";
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.entry) {
    const [table, row, column] = button.dataset.entry.split(" ").map(Number), all = await data(), entry = all.tables[table].entries[row][column];
    const labels = [...button.closest("tr").querySelectorAll("th")].map((th) => th.textContent);
    await showCells(`${all.tables[table].name}: ${labels.join(" ")}, ${all.tables[table].columns[column]}`, entry);
  } else if (button.dataset.cell) {
    const n = Number(button.dataset.cell);
    await (one("#panel").open ? showCell(n) : showCells("Cell", [n]));
  } else if (button.dataset.axis) await sortCells(button);
  else if (button.classList.contains("sort")) sortTable(button);
  else if (button.id === "more") await listCells(true);
  else if (button.id === "theme") {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  }
});
one("#panel").addEventListener("click", (event) => { if (event.target === one("#panel")) one("#panel").close(); });
one("#filter").addEventListener("input", filterRows);
one("#cell-filter").addEventListener("input", () => listCells());
begin();

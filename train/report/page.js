"use strict";
// A click on a column's head, or Enter or Space on it, sorts the rows; a third click restores the first order.
// A run and the rows under it (p, published) are one tbody, so that they move together.
const OPPOSITE = { ascending: "descending", descending: "ascending" };

function valueOf(body, column) {
  const cell = body.rows[0].cells[column];
  if (cell.dataset.value === undefined || (cell.dataset.value === "" && cell.tagName === "TH")) return cell.textContent.trim();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortTable(table, column, direction) {
  const bodies = Array.from(table.tBodies);
  bodies.forEach((body, i) => { body.dataset.place ??= i; });
  const sign = direction === "descending" ? -1 : 1;
  bodies.sort((x, y) => {
    if (direction === "none") return x.dataset.place - y.dataset.place;
    const a = valueOf(x, column), b = valueOf(y, column);
    if (a === null || b === null) return (a === null) - (b === null); // a row without a value always comes last
    return sign * compare(a, b) || x.dataset.place - y.dataset.place;
  });
  table.append(...bodies);
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), first = button.dataset.first, now = head.getAttribute("aria-sort");
    const next = now === "none" ? first : now === first ? OPPOSITE[first] : "none";
    for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", next);
    sortTable(head.closest("table"), head.cellIndex, next);
  });
}

for (const link of document.querySelectorAll("a.download")) {
  link.href = link.closest("figure").querySelector("img").src;
}

// Nothing can be clicked on paper: what is collapsed is opened before printing and closed after it.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = Array.from(document.querySelectorAll("details:not([open])"));
  for (const box of opened) box.open = true;
});
window.addEventListener("afterprint", () => { for (const box of opened) box.open = false; });

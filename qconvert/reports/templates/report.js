// Without this script tables are in their first order, and nothing else is missing.
"use strict";
function key(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return {text, number};
}
function sort(table, column, direction) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, row => ({row, ...key(row, column)}));
  const numeric = rows.every(({text, number}) => !text || !Number.isNaN(number));
  rows.sort((a, b) => {
    if (!a.text || !b.text) return Boolean(b.text) - Boolean(a.text);
    return direction * (numeric ? a.number - b.number : a.text.localeCompare(b.text));
  });
  body.append(...rows.map(({row}) => row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(table, column, up ? 1 : -1);
    });
  });
}

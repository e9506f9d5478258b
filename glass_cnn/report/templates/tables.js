// Tables of report.html: sorted by a click on a heading, filtered by words, names lead to curves.
const table = document.getElementById("runs-table");
const filter = document.getElementById("filter");

const keyOf = (row, column) => {
  const cell = row.cells[column];
  const key = cell.dataset.key ?? cell.textContent.trim();
  const number = Number(key.replace("−", "-").replace("<", ""));
  if (key === "" || key === "–") return null;
  return Number.isNaN(number) ? key : number;
};

// Numbers before words, what is not known last.
const compare = (a, b) => {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a < b ? -1 : Number(a > b);
};

const sortBy = (sorted, heading) => {
  const isDown = heading.getAttribute("aria-sort") === "ascending";
  const body = sorted.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row, heading.cellIndex), row]);
  rows.sort(([a], [b]) => (a === null || b === null || !isDown ? compare(a, b) : compare(b, a)));
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  body.append(...rows.map(([, row]) => row));
};

const makeSortable = (sorted) => {
  for (const heading of sorted.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(sorted, heading));
    heading.append(button);
  }
};

const applyFilter = () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += Number(!row.hidden);
  }
  document.getElementById("filter-count").textContent = `${shown} of ${rows.length}`;
};

document.querySelectorAll("table.sortable").forEach(makeSortable);
filter.addEventListener("input", applyFilter);
applyFilter();
table.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-run]"); // the link itself leads to the curves
  if (link) document.dispatchEvent(new CustomEvent("isolate", { detail: link.dataset.run }));
});

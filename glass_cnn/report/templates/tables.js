// Finding things in report.html: tables are sorted by a click on a heading and filtered by words,
// names lead to curves; so does the list of runs above the curves.
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

const hasAll = (typed) => {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  return (element) => words.every((word) => element.textContent.toLowerCase().includes(word));
};

const applyFilter = () => {
  const isWanted = hasAll(filter.value);
  const rows = [...table.tBodies[0].rows];
  let shown = 0;
  for (const row of rows) {
    row.hidden = !isWanted(row);
    shown += Number(!row.hidden);
  }
  document.getElementById("filter-count").textContent = `${shown} of ${rows.length}`;
};

const showRun = (name) => document.dispatchEvent(new CustomEvent("isolate", { detail: name }));

// The list opens with the first word; an arrow key leads into it, and through it from run to run.
const makeFinder = (field, list) => {
  const all = [...list.options];
  const choose = (place) => {
    if (place !== undefined) list.selectedIndex = place;
    if (list.value) showRun(list.value);
  };
  field.addEventListener("input", () => {
    const isAsked = field.value.trim() !== "";
    const found = isAsked ? all.filter(hasAll(field.value)) : [];
    list.replaceChildren(...found);
    list.selectedIndex = -1;
    list.hidden = found.length === 0;
    document.getElementById("found-count").textContent = isAsked
      ? `${found.length} of ${all.length}`
      : "";
  });
  field.addEventListener("keydown", (event) => {
    if (list.hidden || !["Enter", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "ArrowDown") list.focus();
    choose(0);
  });
  list.addEventListener("change", () => choose());
};

document.querySelectorAll("table.sortable").forEach(makeSortable);
filter.addEventListener("input", applyFilter);
applyFilter();
table.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-run]"); // the link itself leads to the curves
  if (link) showRun(link.dataset.run);
});
const field = document.getElementById("find");
if (field) makeFinder(field, document.getElementById("found"));

"use strict";
// Tables: a click, or Enter or Space, on a column's head sorts by it; again, the other way round.
// Cells without a value stay at the end both ways.
(function () {
  function value(row, column, numeric) {
    var text = row.cells[column].getAttribute("data-sort");
    if (text === null) return null;
    return numeric ? Number(text) : text;
  }

  function compare(a, b, numeric) {
    return numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
  }

  function sort(button) {
    var head = button.closest("th");
    var table = head.closest("table");
    var column = head.cellIndex;
    var numeric = head.hasAttribute("data-numeric");
    var now = head.getAttribute("aria-sort");
    var down = now ? now === "ascending" : numeric;
    var rows = Array.from(table.tBodies[0].rows);
    rows.forEach(function (row, place) { row.place = place; });
    rows.sort(function (a, b) {
      var x = value(a, column, numeric), y = value(b, column, numeric);
      if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place;
      return (down ? -1 : 1) * compare(x, y, numeric) || a.place - b.place;
    });
    table.querySelectorAll("th[aria-sort]").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
  }

  document.querySelectorAll("table.sortable th button").forEach(function (button) {
    button.disabled = false;
    button.addEventListener("click", function () { sort(button); });
  });
})();

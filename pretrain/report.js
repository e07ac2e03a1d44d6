"use strict";
// Puts drawings that can be zoomed, smoothed and switched in the place of the page's static ones,
// and sorts its tables. Without it the page is whole, only still.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const WIDTH = 480, HEIGHT = 290, LEFT = 54, RIGHT = 20, TOP = 22, BOTTOM = 36;
  const LOOKS = {
    train: { width: 1.1, opacity: 0.8 },
    valid: { width: 1.4, dots: 2.6 },
    constant: { width: 1.4, dash: "6 4", opacity: 0.85 },
    copy: { width: 1.4, dash: "2 3", opacity: 0.9 },
    band: { width: 0.8, opacity: 0.6 },
    layers: { width: 1.4, dots: 3 },
  };
  const hidden = new Set();
  const view = { axis: data.switch[0], smooth: 0, lit: null };
  const charts = [];

  function element(name, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function words(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-3) return String(Number(value.toPrecision(4)).toExponential());
    return Number(value.toPrecision(4)).toLocaleString("en");
  }

  // As many decimals as it takes to tell neighbours apart.
  function marks(values) {
    const largest = Math.max(...values.map(Math.abs)), step = values[1] - values[0];
    if (values.length < 2 || largest >= 1e6 || largest < 1e-3) return values.map(words);
    const decimals = Math.min(9, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));
    return values.map((value) => value.toLocaleString("en", { maximumFractionDigits: decimals }));
  }

  // What the horizontal axis is called, and what its values are divided by.
  function horizontal(chart, longest) {
    if (chart.over === "layers") return ["layer (0: input of the first)", 1];
    if (view.axis === "updates") return ["update", 1];
    if (view.axis === "hours") return ["audio heard (hours)", 1];
    if (longest > 7200) return ["wall-clock (hours)", 3600];
    return longest > 180 ? ["wall-clock (minutes)", 60] : ["wall-clock (seconds)", 1];
  }

  function ticks(low, high, wanted) {
    const raw = (high - low) / wanted, unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw * 0.999);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step + 0); // no -0
    return found;
  }

  function logTicks(low, high) {
    const found = [], factors = Math.log10(high / low) > 3 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of factors) found.push(factor * 10 ** power);
    return found.filter((value) => value >= low && value <= high);
  }

  // An exponential mean without the pull of a start at zero; what is not finite stays a gap.
  function smoothed(values, weight) {
    let mean = 0, total = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return mean / total;
    });
  }

  // The curves to be seen: with their points on the axis that is chosen.
  function visible(chart) {
    const axis = chart.over === "layers" ? "layers" : view.axis;
    return chart.curves
      .filter((curve) => !hidden.has(curve.run) && data.axes[curve.x][axis])
      .map((curve) => {
        const soft = view.smooth > 0 && curve.style === "train";
        const y = soft ? smoothed(curve.y, view.smooth) : curve.y;
        return { ...curve, x: data.axes[curve.x][axis], y, raw: soft ? curve.y : null };
      });
  }

  function span(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  }

  // By more than rounding: a mean of equal values is not always that value.
  function apart(low, high) {
    return high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high));
  }

  function bounds(chart, curves) {
    const drawable = (value) => value !== null && (!chart.log || value > 0);
    let [left, right] = chart.zoom || span(curves.flatMap((curve) => curve.x));
    if (left > right) [left, right] = [0, 1];
    if (left === right) [left, right] = [left - Math.max(1, Math.abs(left)) / 2, right + Math.max(1, Math.abs(right)) / 2];
    const inside = [], all = [];
    for (const curve of curves) {
      const level = curve.x.length === 1 && (curve.style === "constant" || curve.style === "copy");
      for (const values of [curve.y, curve.raw, ...(curve.ends || [])])
        (values || []).forEach((value, n) => {
          if (!drawable(value)) return;
          all.push(value);
          if (level || (curve.x[n] >= left && curve.x[n] <= right)) inside.push(value);
        });
    }
    let [bottom, top] = span(inside.length ? inside : all);
    if (bottom > top) [bottom, top] = chart.log ? [0.1, 10] : [0, 1];
    if (chart.log) return { left, right, bottom: bottom / 1.15, top: top * 1.15 };
    const room = apart(bottom, top) ? 0.05 * (top - bottom) : Math.abs(top) / 2 || 0.5;
    return { left, right, bottom: bottom - room, top: top + room };
  }

  function scales(chart, box) {
    const along = (x) => LEFT + ((x - box.left) / (box.right - box.left)) * (WIDTH - LEFT - RIGHT);
    const share = chart.log
      ? (y) => Math.log(y / box.bottom) / Math.log(box.top / box.bottom)
      : (y) => (y - box.bottom) / (box.top - box.bottom);
    return [along, (y) => HEIGHT - BOTTOM - share(y) * (HEIGHT - TOP - BOTTOM)];
  }

  function line(xs, ys, X, Y, log) {
    const good = (n) => n < ys.length && ys[n] !== null && (!log || ys[n] > 0);
    let path = "", down = false;
    for (let n = 0; n < ys.length; n++) {
      if (good(n)) path += `${down ? "L" : "M"}${X(xs[n]).toFixed(1)} ${Y(ys[n]).toFixed(1)}`;
      if (good(n) && !down && !good(n + 1)) path += "h0"; // a point alone: its round end is a dot
      down = good(n);
    }
    return path;
  }

  function band(curve, X, Y, log) {
    const there = curve.x.map((_, n) => n).filter((n) =>
      curve.ends.every((end) => end[n] !== null && (!log || end[n] > 0)));
    const edge = (end, order) => order.map((n) => `${X(curve.x[n]).toFixed(1)} ${Y(end[n]).toFixed(1)}`);
    const points = [...edge(curve.ends[1], there), ...edge(curve.ends[0], [...there].reverse())];
    return points.length ? `M${points.join("L")}Z` : "";
  }

  function paint(curve, chart, box, X, Y) {
    const look = LOOKS[curve.style], run = data.runs[curve.run], lit = view.lit === curve.run;
    const group = element("g", { class: `curve ${curve.style}`, "data-run": curve.run, "data-label": curve.label });
    const stroke = {
      fill: "none", stroke: run.colour, "stroke-linecap": "round", "stroke-linejoin": "round",
      "stroke-width": look.width * (lit ? 2 : 1), "stroke-dasharray": look.dash || "none",
      opacity: view.lit === null || lit ? look.opacity || 1 : 0.25,
    };
    if (curve.ends && curve.style === "layers")
      curve.x.forEach((x, n) => {
        if (curve.ends[0][n] === null) return;
        const at = X(x).toFixed(1);
        group.append(element("path", { ...stroke, class: "interval", opacity: 0.6, "stroke-width": 2, "stroke-dasharray": "none",
          d: `M${at} ${Y(curve.ends[0][n]).toFixed(1)}V${Y(curve.ends[1][n]).toFixed(1)}` }));
      });
    else if (curve.ends)
      group.append(element("path", { class: "area", d: band(curve, X, Y, chart.log), fill: run.colour, opacity: 0.22 }));
    if (curve.raw) group.append(element("path", { ...stroke, class: "raw", opacity: 0.2, d: line(curve.x, curve.raw, X, Y, chart.log) }));
    const level = curve.x.length === 1 && (curve.style === "constant" || curve.style === "copy");
    const path = level
      ? line([box.left, box.right], [curve.y[0], curve.y[0]], X, Y, chart.log)
      : line(curve.x, curve.y, X, Y, chart.log);
    group.append(element("path", { ...stroke, class: "line", d: path }));
    const dots = look.dots || (curve.x.length === 1 && !level && 2.6);
    if (dots && curve.x.length <= 200)
      curve.x.forEach((x, n) => {
        if (curve.y[n] === null || (chart.log && curve.y[n] <= 0)) return;
        group.append(element("circle", { cx: X(x).toFixed(1), cy: Y(curve.y[n]).toFixed(1), r: dots, fill: run.colour }));
      });
    return group;
  }

  // Which line is which, above the drawing; colour tells the run.
  function key(curves) {
    const labels = new Map(curves.map((curve) => [curve.label, curve]));
    if (labels.size < 2) return [];
    const several = new Set(curves.map((curve) => curve.run)).size > 1;
    let right = WIDTH - RIGHT;
    const made = [];
    for (const [label, curve] of [...labels].reverse()) {
      const look = LOOKS[curve.style], colour = several ? "currentColor" : data.runs[curve.run].colour;
      const length = 4.9 * label.length; // about as wide as it is drawn
      made.push(element("text", { x: right - length, y: 11, class: "key" }, label));
      const start = right - length - 22;
      made.push(element("path", { d: `M${start} 8h18`, stroke: colour, "stroke-width": look.width, "stroke-dasharray": look.dash || "none" }));
      if (look.dots) made.push(element("circle", { cx: start + 9, cy: 8, r: look.dots, fill: colour }));
      if (curve.style === "band") made.push(element("path", { d: `M${start} 4h18v8h-18z`, fill: colour, opacity: 0.22 }));
      right = start - 10;
    }
    return made;
  }

  function draw(chart) {
    const curves = visible(chart), box = bounds(chart, curves), [X, Y] = scales(chart, box);
    const longest = span(chart.curves.flatMap((c) => data.axes[c.x][view.axis] || []))[1];
    const [title, divisor] = horizontal(chart, longest);
    Object.assign(chart, { box, shown: curves, divisor });
    const parts = key(curves);
    let along = ticks(box.left / divisor, box.right / divisor, 6);
    if (chart.over === "layers") along = along.filter((x) => Number.isInteger(x));
    const names = marks(along);
    for (const [n, x] of along.entries()) {
      const at = X(x * divisor);
      parts.push(element("path", { class: "grid", d: `M${at.toFixed(1)} ${TOP}V${HEIGHT - BOTTOM}` }));
      parts.push(element("text", { x: at, y: HEIGHT - BOTTOM + 13, "text-anchor": "middle" }, names[n]));
    }
    const up = chart.log ? logTicks(box.bottom, box.top) : ticks(box.bottom, box.top, 5);
    const levels = chart.log ? up.map(words) : marks(up);
    for (const [n, y] of up.entries()) {
      parts.push(element("path", { class: "grid", d: `M${LEFT} ${Y(y).toFixed(1)}H${WIDTH - RIGHT}` }));
      parts.push(element("text", { x: LEFT - 5, y: Y(y) + 3.5, "text-anchor": "end" }, levels[n]));
    }
    parts.push(element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle", class: "axis" }, title));
    if (chart.unit) parts.push(element("text", { transform: `translate(11 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, chart.unit));
    const plot = element("g", { "clip-path": `url(#clip${chart.number})` });
    const order = { band: 0, constant: 1, copy: 1 };
    for (const curve of [...curves].sort((a, b) => (order[a.style] ?? 2) - (order[b.style] ?? 2)))
      plot.append(paint(curve, chart, box, X, Y));
    if (!curves.length) parts.push(element("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" },
      "nothing to draw: not logged on this axis, or switched off in the legend"));
    chart.svg.replaceChildren(chart.clip, ...parts, plot, chart.mark);
  }

  function drawAll() { charts.forEach(draw); }

  function zoom(chart, left, right) {
    if (left !== null && !apart(left, right)) return;
    chart.zoom = left === null ? null : [left, right];
    draw(chart);
  }

  // A pointer's place as a value of the horizontal axis, within the drawing.
  function place(chart, event) {
    const area = chart.svg.getBoundingClientRect();
    const at = ((event.clientX - area.left) / area.width) * WIDTH;
    const share = Math.min(1, Math.max(0, (at - LEFT) / (WIDTH - LEFT - RIGHT)));
    return chart.box.left + share * (chart.box.right - chart.box.left);
  }

  function read(chart, x) {
    const found = [];
    for (const curve of chart.shown) {
      if (curve.style === "constant" || curve.style === "copy") continue;
      let near = 0;
      for (let n = 1; n < curve.x.length; n++)
        if (Math.abs(curve.x[n] - x) < Math.abs(curve.x[near] - x)) near = n;
      const value = curve.y[near] === null ? "not finite" : words(curve.y[near]);
      found.push(`${data.runs[curve.run].name}, ${curve.label}: ${value} at ${words(curve.x[near] / chart.divisor)}`);
    }
    const more = found.length > 6 ? `; and ${found.length - 6} more` : "";
    chart.reading.textContent = found.slice(0, 6).join("; ") + more;
  }

  function listen(chart) {
    const { svg, mark } = chart;
    let from = null;
    const select = (to) => {
      const X = scales(chart, chart.box)[0], [low, high] = [Math.min(from, to), Math.max(from, to)];
      mark.setAttribute("d", `M${X(low)} ${TOP}H${X(high)}V${HEIGHT - BOTTOM}H${X(low)}Z`);
    };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = place(chart, event);
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (from !== null) select(place(chart, event));
      else read(chart, place(chart, event));
    });
    const end = (event) => {
      if (from === null) return;
      const to = place(chart, event), [low, high] = [Math.min(from, to), Math.max(from, to)];
      from = null;
      mark.setAttribute("d", "");
      if (event.type === "pointerup" && high - low > 0.01 * (chart.box.right - chart.box.left)) zoom(chart, low, high);
    };
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", end);
    svg.addEventListener("dblclick", () => zoom(chart, null));
    svg.addEventListener("keydown", (event) => {
      const { left, right } = chart.box, width = right - left;
      const moves = {
        "+": [left + width / 4, right - width / 4], "=": [left + width / 4, right - width / 4],
        "-": [left - width / 2, right + width / 2],
        ArrowLeft: [left - width / 4, right - width / 4], ArrowRight: [left + width / 4, right + width / 4],
        0: [null, null], Escape: [null, null],
      };
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      zoom(chart, ...moves[event.key]);
    });
  }

  function begin() {
    document.querySelectorAll("figure[data-chart]").forEach((figure) => {
      const number = Number(figure.dataset.chart), chart = { ...data.charts[number], number, zoom: null };
      chart.clip = element("clipPath", { id: `clip${number}` },
        element("rect", { x: LEFT - 3, y: TOP - 3, width: WIDTH - LEFT - RIGHT + 6, height: HEIGHT - TOP - BOTTOM + 6 }));
      chart.mark = element("path", { class: "mark" });
      chart.svg = element("svg", {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "live", tabindex: 0, role: "application",
        "aria-roledescription": "zoomable chart",
        "aria-label": `${figure.querySelector("h3").textContent}; plus and minus zoom, arrows move, 0 resets`,
      });
      chart.reading = document.createElement("p");
      chart.reading.className = "reading note";
      const still = figure.querySelector("svg");
      still.before(chart.svg);
      draw(chart);
      still.remove(); // not before the new one stands
      chart.svg.after(chart.reading);
      listen(chart);
      charts.push(chart);
    });
  }

  function control() {
    for (const radio of document.querySelectorAll("input[name=axis]"))
      radio.addEventListener("change", () => {
        view.axis = radio.value;
        for (const chart of charts) if (chart.over !== "layers") chart.zoom = null;
        drawAll();
      });
    const slider = document.getElementById("smoothing"), told = document.getElementById("smoothed");
    slider.addEventListener("input", () => {
      view.smooth = Number(slider.value);
      told.textContent = slider.value;
      drawAll();
    });
    const boxes = [...document.querySelectorAll(".legend input")];
    const apply = () => {
      hidden.clear();
      for (const box of boxes) if (!box.checked) hidden.add(Number(box.value));
      drawAll();
    };
    for (const box of boxes) {
      box.addEventListener("change", apply);
      const light = (run) => () => { view.lit = run; drawAll(); };
      box.parentNode.addEventListener("pointerenter", light(Number(box.value)));
      box.parentNode.addEventListener("pointerleave", light(null));
    }
    for (const button of document.querySelectorAll("button[data-all]"))
      button.addEventListener("click", () => {
        for (const box of boxes) box.checked = button.dataset.all === "on";
        apply();
      });
  }

  // Numbers by size and before words, dashes last whichever the direction.
  function sortable(table) {
    const body = table.tBodies[0], rows = [...body.rows], headings = [...table.tHead.rows[0].cells];
    const text = (row, column) => row.cells[column].textContent.trim();
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        body.append(...[...rows].sort((one, other) => {
          const a = text(one, column), b = text(other, column);
          if ((a === "-") !== (b === "-")) return a === "-" ? 1 : -1;
          const x = parseFloat(a.replaceAll(",", "")), y = parseFloat(b.replaceAll(",", ""));
          if (isNaN(x) !== isNaN(y)) return sign * (isNaN(x) ? 1 : -1);
          return sign * (x - y || a.localeCompare(b, "en", { numeric: true }));
        }));
      });
    });
  }

  begin();
  control();
  document.querySelectorAll("table").forEach(sortable);
  document.documentElement.classList.add("scripted");
})();

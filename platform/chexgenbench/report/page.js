"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const data = JSON.parse(document.getElementById("data").textContent);
  const live = document.getElementById("live");

  // --- theme -----------------------------------------------------------------------------------
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const press = () => theme.setAttribute("aria-pressed", String(dark()));
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; press(); });
  press();

  // --- sorting ---------------------------------------------------------------------------------
  // A cell with data-v is a number, an empty one is missing and comes last either way.
  const worth = (row, place) => {
    const cell = row.cells[place];
    if (!("v" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };
  const sort = (table, head, place) => {
    const first = head.dataset.best === "high" ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const way = head.getAttribute("aria-sort") === first ? second : first;
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row, at) => ({ row, at, key: worth(row, place) }));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.at - b.at;
      const order = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key);
      return sign * order || a.at - b.at;
    });
    table.tBodies[0].append(...rows.map((each) => each.row));
    live.textContent = `sorted by ${head.querySelector("button").firstChild.textContent.trim()}, ${way}`;
  };
  all("table.sortable").forEach((table) => all("thead th", table).forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    const arrow = document.createElement("span");
    arrow.className = "arrow";
    arrow.ariaHidden = "true";
    button.append(...head.childNodes);
    button.firstChild.after(arrow);
    head.append(button);
    button.addEventListener("click", () => sort(table, head, place));
  }));

  // --- the paper's models ----------------------------------------------------------------------
  const published = document.getElementById("show-published");
  const withPaper = () => Boolean(published && published.checked);
  // Without scripts all of the page is there; what is asked for here is hidden by them alone.
  const showPaper = () => all(".published").forEach((each) => { each.hidden = !withPaper(); });
  showPaper();
  if (published) published.addEventListener("change", () => {
    showPaper();
    draws.forEach((draw) => draw());
    live.textContent = published.checked ? "models of the paper are shown" : "models of the paper are hidden";
  });

  // --- cells by keyboard -----------------------------------------------------------------------
  all("table.heat").forEach((table) => {
    const told = table.closest("details").querySelector(".told");
    const cells = [...table.tBodies[0].rows].map((row) => all(".c", row));
    const tell = (cell) => {
      if (!cell) return;
      const row = cell.parentElement;
      const head = table.tHead.rows[0].cells[cell.cellIndex].textContent;
      told.textContent = `${row.cells[0].textContent}, ${head}: ${cell.firstChild.textContent}; ${cell.querySelector(".more").textContent}`;
    };
    const go = (from, row, place) => {
      const to = cells[row] && cells[row][place];
      if (!to) return;
      from.tabIndex = -1; to.tabIndex = 0; to.focus();
    };
    if (cells.length && cells[0].length) cells[0][0].tabIndex = 0;
    table.addEventListener("focusin", (event) => tell(event.target.closest(".c")));
    table.addEventListener("mouseover", (event) => tell(event.target.closest(".c")));
    table.addEventListener("keydown", (event) => {
      const cell = event.target.closest(".c");
      if (!cell) return;
      const row = cells.findIndex((each) => each.includes(cell));
      const place = cells[row].indexOf(cell);
      const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
      const step = steps[event.key];
      if (event.key === "Home") go(cell, row, 0);
      else if (event.key === "End") go(cell, row, cells[row].length - 1);
      else if (step) go(cell, row + step[0], place + step[1]);
      else return;
      event.preventDefault();
    });
    table.addEventListener("click", (event) => {
      const cell = event.target.closest(".c");
      if (!cell) return;
      all('.c[tabindex="0"]', table).forEach((other) => { other.tabIndex = -1; });
      cell.tabIndex = 0; cell.focus();
    });
  });

  // --- filters ---------------------------------------------------------------------------------
  all("select[data-filter]").forEach((select) => {
    const place = document.querySelector(select.dataset.filter);
    const count = select.parentElement.querySelector(".count");
    const rows = all("article", place);
    const choose = () => rows.forEach((row) => {
      const known = row.dataset.of === undefined ? row.dataset.findings : row.dataset.of;
      const wanted = select.value || (row.dataset.of === undefined ? "" : "all");
      row.hidden = wanted !== "" && !known.split("|").includes(wanted);
    });
    choose();
    select.addEventListener("change", () => {
      choose();
      count.textContent = `${rows.filter((row) => !row.hidden).length} shown`;
    });
  });

  // --- CSV -------------------------------------------------------------------------------------
  // A spreadsheet takes a text that begins so for a formula; numbers stay numbers.
  const field = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    let text = String(value);
    if (/^[\s]*[=+\-@\t\r\n]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const save = (name, rows) => {
    const text = rows.map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `${name.replace(/[^A-Za-z0-9._-]+/g, "-")}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const numbers = ["value", "ci_low", "ci_high", "standard_error", "floor", "matched", "n_floor", "excess", "excess_low", "excess_high", "rank", "n_real", "n_fake", "status", "reason", "warning"];
  const cells = data.cells;
  const scoreRows = (scores, wanted) => {
    const rows = [["model", "run_id", "suite", "split", "protocol", "metric", "encoder", "plugin", "subset", "higher_is_better", ...numbers]];
    for (let at = 0; at < cells.score.length; at += 1) {
      const score = data.scores[cells.score[at]];
      if (!scores.has(cells.score[at]) || !wanted(data.subsets[cells.subset[at]], score)) continue;
      const run = data.runs[cells.column[at]];
      rows.push([data.columns[cells.column[at]], run.run_id, run.suite, run.split, run.protocol, score.metric, score.encoder, score.plugin, data.subsets[cells.subset[at]], score.higher, ...numbers.map((name) => cells[name][at])]);
    }
    return rows;
  };
  const apart = "not comparable with these runs";
  const paperRows = (scores) => data.published
    .map((row) => [row, row.scores.find((place) => scores.has(place))])
    .filter(([, place]) => place !== undefined)
    .map(([row, place]) => {
      const known = { value: row.value, warning: row.comparable.includes(place) ? null : apart };
      return [`${row.model} (published)`, "", "", row.split, row.protocol, row.metric, row.encoder, "", "overall", data.scores[place].higher, ...numbers.map((name) => known[name] ?? null)];
    });
  const tableRows = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => {
    if ("v" in cell.dataset) return cell.dataset.v === "" ? null : Number(cell.dataset.v);
    return cell.textContent.replace(/\s+/g, " ").trim();
  }));
  all("[data-csv]").forEach((button) => button.addEventListener("click", () => {
    const kind = button.dataset.csv;
    if (kind === "table") return save(button.dataset.table, tableRows(document.getElementById(button.dataset.table)));
    const scores = new Set(button.dataset.scores.split(",").map(Number));
    const first = data.scores[Math.min(...scores)];
    if (kind === "heat") return save(`${first.metric}-by-finding`, scoreRows(scores, () => true));
    const rows = scoreRows(scores, (subset, score) => subset === score.subset);
    return save(`leaderboard-${first.group}`, withPaper() ? [...rows, ...paperRows(scores)] : rows);
  }));

  // --- charts ----------------------------------------------------------------------------------
  const draws = [];
  const short = (value) => (value === null ? "no value" : String(Number(value.toPrecision(4))));
  const inSuite = (score) => data.columns.map((_, column) => column).filter((column) => data.runs[column].suite === score.suite);
  const several = new Set(data.scores.map((score) => score.encoder).filter(Boolean)).size > 1;
  const title = (score) => (several && score.encoder ? `${score.metric} (${score.encoder})` : score.metric);
  // score -> subset -> column -> place in the cells
  const found = new Map();
  for (let at = 0; at < cells.score.length; at += 1) {
    const subsets = found.get(cells.score[at]) || new Map();
    const columns = subsets.get(data.subsets[cells.subset[at]]) || new Map();
    columns.set(cells.column[at], at);
    subsets.set(data.subsets[cells.subset[at]], columns);
    found.set(cells.score[at], subsets);
  }
  const cell = (score, subset, column) => {
    const at = found.get(score)?.get(subset)?.get(column);
    if (at === undefined) return null;
    return Object.fromEntries(numbers.map((name) => [name, cells[name][at]]));
  };
  const taken = data.scores.map((score, place) => ({ ...score, place })).filter((score) => score.taken && !score.real);
  const option = (text, value) => { const made = document.createElement("option"); made.textContent = text; made.value = value; return made; };
  const grouped = (options) => {
    const groups = new Map();
    options.forEach(([group, made]) => {
      if (!groups.has(group)) { const holder = document.createElement("optgroup"); holder.label = group; groups.set(group, holder); }
      groups.get(group).append(made);
    });
    return [...groups.values()];
  };
  const look = (spec, names, width) => {
    const known = names.map((name) => data.looks[name]);
    const scale = (key) => ({ domain: names, range: known.map((each) => each[key]) });
    const visit = (encoding) => {
      for (const [channel, key] of [["color", "colour"], ["fill", "colour"], ["stroke", "colour"], ["shape", "shape"], ["strokeDash", "dash"]]) {
        if (encoding[channel]?.field === "model") encoding[channel].scale = scale(key);
      }
      if (encoding.strokeDash) encoding.strokeDash.legend = null;
    };
    visit(spec.encoding);
    spec.layer.forEach((layer) => visit(layer.encoding));
    spec.config.legend.columns = Math.max(1, Math.floor(width / 170));
  };
  const titled = (spec, channel, text) => spec.layer.forEach((layer) => {
    if (layer.encoding[channel]) layer.encoding[channel].title = text;
  });
  const show = (place, name, rows, names, said, change = () => {}) => {
    const spec = structuredClone(data.charts[name]);
    spec.data.values = rows;
    spec.description = said;
    look(spec, names, place.clientWidth);
    change(spec);
    delete place.dataset.drawn;
    return vegaEmbed(place, spec, { ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: false })
      .then(() => { place.dataset.drawn = String(Math.round(performance.now())); });
  };
  const paper = (name) => `${name} (paper)`;

  const axisValue = (choice, column) => {
    const [kind, place] = choice.split(":");
    const score = data.scores[Number(place)];
    const from = cell(Number(place), score.subset, column);
    if (!from) return null;
    if (kind === "excess") return { value: from.excess, low: from.excess_low, high: from.excess_high };
    return { value: from.value, low: from.ci_low, high: from.ci_high };
  };
  const paperValue = (choice, model) => {
    const [kind, place] = choice.split(":");
    if (kind === "excess") return null;
    const row = data.published.find((each) => each.model === model && each.scores.includes(Number(place)));
    return row ? { value: row.value, low: null, high: null, apart: !row.comparable.includes(Number(place)) } : null;
  };
  // Names of points that lie on each other stand together, beside the first.
  const label = (rows) => {
    const size = (key) => { const known = rows.map((row) => row[key]); return Math.max(...known) - Math.min(...known) || 1; };
    const [wide, high] = [size("x"), size("y")];
    rows.forEach((row, place) => {
      const near = rows.slice(0, place).find((other) => other.label && Math.abs(other.x - row.x) < 0.1 * wide && Math.abs(other.y - row.y) < 0.06 * high);
      row.label = near ? "" : row.model;
      if (near) near.label += `, ${row.model}`;
    });
  };
  const scatter = (figure) => {
    const [x, y] = ["x", "y"].map((axis) => figure.querySelector(`[data-axis="${axis}"]`));
    const options = () => grouped(taken.flatMap((score) => [
      [score.group, option(title(score), `value:${score.place}`)],
      ...(score.controlled ? [[score.group, option(`${title(score)}, excess over control`, `excess:${score.place}`)]] : []),
    ]));
    const starts = data.start[figure.dataset.start];
    const controlled = taken.filter((score) => score.controlled);
    // A run is of one suite, and so are the scores that a point can have.
    const first = figure.dataset.start === "privacy" ? controlled[0] || taken[0] : taken[0];
    const known = taken.filter((score) => score.suite === first.suite);
    const begin = (select, wanted, fallback) => {
      select.append(...options());
      const hit = wanted.map((name) => known.find((score) => score.metric === name)).find(Boolean) || fallback;
      if (hit) select.value = (figure.dataset.start === "privacy" && hit.controlled ? "excess:" : "value:") + hit.place;
    };
    begin(x, starts[0], known[0]);
    begin(y, starts[1], figure.dataset.start === "privacy" ? first : known[1] || known[0]);
    const axis = (choice) => {
      const [kind, place] = choice.split(":");
      const score = data.scores[Number(place)];
      return { text: title(score) + (kind === "excess" ? ", excess over control" : ""), higher: score.higher };
    };
    const draw = () => {
      if (!x.value || !y.value) return null;
      const [across, up] = [axis(x.value), axis(y.value)];
      const row = (model, a, b, isPaper) => ({
        model, published: isPaper, x: a.value, x_low: a.low, x_high: a.high, y: b.value, y_low: b.low, y_high: b.high,
        text: `${model}: ${across.text} ${short(a.value)}, ${up.text} ${short(b.value)}${a.apart || b.apart ? `, ${apart}` : ""}`,
      });
      const rows = [];
      const add = (model, a, b, isPaper) => { if (a && b && a.value !== null && b.value !== null) rows.push(row(model, a, b, isPaper)); };
      data.columns.forEach((model, column) => add(model, axisValue(x.value, column), axisValue(y.value, column), false));
      figure.querySelector(".lacking").textContent = rows.length ? "" : "No run has both scores.";
      if (withPaper()) new Set(data.published.map((each) => each.model)).forEach((model) => add(paper(model), paperValue(x.value, model), paperValue(y.value, model), true));
      const place = figure.querySelector(".draw");
      if (!rows.length) { // an axis of nothing has no size
        place.replaceChildren();
        ["role", "aria-label", "aria-roledescription"].forEach((name) => place.removeAttribute(name));
        return null;
      }
      label(rows);
      const said = `${across.text} against ${up.text}. ${rows.map((each) => each.text).join(". ")}`;
      return show(place, "scatter", rows, rows.map((each) => each.model), said, (spec) => {
        titled(spec, "x", across.higher ? `${across.text}  →` : `←  ${across.text}`);
        titled(spec, "y", `${up.higher ? "↑" : "↓"}  ${up.text}`);
        if (rows.length > 8) spec.layer.pop(); // names beside so many points cover each other
      });
    };
    [x, y].forEach((select) => select.addEventListener("change", draw));
    return draw;
  };

  const MOST = 24;
  const parallel = (figure) => {
    const select = figure.querySelector("[data-group]");
    select.append(...[...new Set(taken.map((score) => score.group))].map((group) => option(group, group)));
    const draw = () => {
      const group = taken.filter((score) => score.group === select.value);
      const scores = group.slice(0, MOST);
      const columns = inSuite(scores[0]);
      const models = columns.map((column) => data.columns[column]);
      const left = group.length - scores.length;
      figure.querySelector(".left").textContent = left ? `The first ${MOST} of ${group.length} scores: ${left} are left out.` : "";
      const rows = scores.flatMap((score, order) => {
        const values = columns.map((column) => cell(score.place, score.subset, column)?.value ?? null);
        const known = values.filter((value) => value !== null);
        const [low, high] = [Math.min(...known), Math.max(...known)];
        return models.map((model, at) => {
          const value = values[at];
          const part = high > low ? (value - low) / (high - low) : 1;
          const good = value === null ? null : score.higher || high === low ? part : 1 - part;
          return { model, score: title(score), order, good, at: good === null ? -0.15 : good, text: `${model}, ${title(score)}: ${value === null ? "not taken" : short(value)}` };
        });
      });
      const said = `${select.value}: ${scores.length} scores of ${models.length} models, each from the worst to the best of these models`;
      return show(figure.querySelector(".draw"), "parallel", rows, models, said);
    };
    select.addEventListener("change", draw);
    return draw;
  };

  const utility = (figure) => {
    const [curve, subset] = ["[data-curve]", "[data-subset]"].map((query) => figure.querySelector(query));
    curve.append(...data.curves.map((each, place) => option(each.name, place)));
    const ratios = figure.querySelector(".ratios");
    const fill = () => {
      const kept = subset.value;
      const known = new Set(data.curves[curve.value].points.flatMap(([, score]) => [...(found.get(score)?.keys() || [])]));
      const names = data.subsets.filter((name) => known.has(name)).sort((a, b) => (b === "macro") - (a === "macro"));
      subset.replaceChildren(...names.map((name) => option(name === "macro" ? "macro (mean over findings)" : name, name)));
      if (names.includes(kept)) subset.value = kept;
    };
    const draw = async () => {
      const { name, points } = data.curves[curve.value];
      const columns = inSuite(data.scores[points[0][1]]);
      const models = columns.map((column) => data.columns[column]);
      const rows = points.flatMap(([regime, score, ratio]) => columns.flatMap((column) => {
        const model = data.columns[column];
        const from = cell(score, subset.value, column);
        if (!from || from.value === null) return [];
        return [{ model, regime, ratio, value: from.value, low: from.ci_low, high: from.ci_high, text: `${model}, ${regime}: ${short(from.value)}` }];
      }));
      const said = `${name}, ${subset.value}: ${rows.map((row) => row.text).join("; ")}`;
      await show(figure.querySelector(".draw"), "regimes", rows, models, said, (spec) => titled(spec, "y", name));
      // One point a ratio: augmented is ratio 1 where ratio-1 was not taken.
      const exact = new Set(rows.filter((row) => row.regime.startsWith("ratio-")).map((row) => row.ratio));
      const lines = rows.filter((row) => row.ratio !== null && !(row.regime === "augmented" && exact.has(1)));
      const exactly = new Set(lines.map((row) => row.ratio));
      // Beside each other, so that no interval hides another.
      const step = 0.012 * Math.max(...lines.map((row) => row.ratio));
      lines.forEach((row) => { row.ratio += step * (models.indexOf(row.model) - (models.length - 1) / 2); });
      ratios.hidden = exactly.size < 2;
      if (!ratios.hidden) await show(ratios.querySelector(".draw"), "ratios", lines, models, `${name} by ratio: ${lines.map((row) => row.text).join("; ")}`, (spec) => titled(spec, "y", name));
    };
    fill();
    curve.addEventListener("change", () => { fill(); draw(); });
    subset.addEventListener("change", draw);
    return draw;
  };

  const kinds = { scatter, parallel, regimes: utility };
  all("figure.chart").forEach((figure) => {
    if (!taken.length) { figure.hidden = true; return; }
    draws.push(kinds[figure.dataset.chart](figure));
  });
  // One after the other, so that the page answers in between.
  (async () => {
    for (const draw of draws) {
      await draw();
      await new Promise((done) => { setTimeout(done); });
    }
    root.dataset.ready = String(Math.round(performance.now()));
  })();

  // --- print -----------------------------------------------------------------------------------
  let closed = [];
  addEventListener("beforeprint", () => { closed = all("details:not([open])"); closed.forEach((each) => { each.open = true; }); });
  addEventListener("afterprint", () => { closed.forEach((each) => { each.open = false; }); });
})();

// The SQL box: completion of names, a question at a time, its answer as a table or a file.
const box = document.getElementById("statement");
const list = document.getElementById("names");
const state = document.getElementById("state");
const answer = document.getElementById("answer");
const buttons = { run: "run", csv: "csv", cancel: "cancel" };
for (const name in buttons) buttons[name] = document.getElementById(name);

const place = (path) => new URL(`../${path}`, import.meta.url);
const MOST = 12; // names in the list
let names = []; // { name, about, lower }
let columns = new Map(); // table to its columns
let offered = [];
let at = -1;
let asking = null;

const element = (kind, text, attributes = {}) => {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

const quoted = (name) => (/^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`);

fetch(place("schema.json")).then((response) => (response.ok ? response.json() : [])).then((tables) => {
  const found = new Map();
  const schema = document.getElementById("schema");
  for (const table of tables) {
    found.set(table.name, { name: table.name, about: "table", first: 0 });
    columns.set(table.name, table.columns.map((column) => column.name));
    const shown = element("details");
    shown.append(element("summary", table.name));
    const rows = element("dl");
    for (const column of table.columns) {
      rows.append(element("dt", `${column.name} ${column.type}`), element("dd", column.comment));
      const known = found.get(column.name);
      if (!known) found.set(column.name, { name: column.name, about: `column of ${table.name}`, first: 1 });
      else if (known.first === 1 && !known.about.endsWith("others")) known.about += " and others";
    }
    shown.append(rows);
    schema.append(shown);
  }
  names = [...found.values()].map((each) => ({ ...each, lower: each.name.toLowerCase() }));
  names.sort((one, other) => one.first - other.first || one.lower.localeCompare(other.lower));
});

// The word before the cursor, and where it begins; none inside a string.
const word = () => {
  const before = box.value.slice(0, box.selectionStart);
  if ((before.match(/'/g) || []).length % 2) return null;
  const found = before.match(/(?:([A-Za-z_]\w*)\.)?([A-Za-z_]\w*)?$/);
  return { table: found[1], text: (found[2] || "").toLowerCase(), start: before.length - (found[2] || "").length };
};

// Columns of the tables that the statement names come before all others.
const offer = () => {
  const typed = word();
  if (!typed || box.selectionStart !== box.selectionEnd || (typed.text === "" && !typed.table)) return close();
  let from = names;
  if (typed.table && columns.has(typed.table)) {
    const own = new Set(columns.get(typed.table));
    from = names.filter((each) => own.has(each.name));
  } else if (typed.table) return close(); // an alias: nothing is known of it
  const used = new Set([...columns].filter(([table]) => new RegExp(`\\b${table}\\b`, "i").test(box.value)).flatMap(([, own]) => own));
  const fitting = from.filter((each) => each.lower.startsWith(typed.text) && each.lower !== typed.text);
  offered = [...fitting.filter((each) => used.has(each.name)), ...fitting.filter((each) => !used.has(each.name))].slice(0, MOST);
  if (offered.length === 0) return close();
  list.replaceChildren(...offered.map((each, index) => {
    const item = element("li", each.name, { role: "option", id: `name-${index}`, "aria-selected": "false" });
    item.append(element("small", each.about));
    item.addEventListener("mousedown", (event) => { event.preventDefault(); take(index); });
    return item;
  }));
  list.hidden = false;
  box.setAttribute("aria-expanded", "true");
  below();
  choose(0);
};

// The list stands below the line of the cursor.
const below = () => {
  const before = box.value.slice(0, box.selectionStart).split("\n");
  const height = parseFloat(getComputedStyle(box).lineHeight);
  const top = Math.min(box.clientHeight, before.length * height - box.scrollTop + 8);
  const left = Math.min(before.at(-1).length * 8.5, Math.max(0, box.clientWidth - 280));
  list.style.top = `${top}px`;
  list.style.left = `${left}px`;
};

const choose = (index) => {
  at = index;
  [...list.children].forEach((item, place) => item.setAttribute("aria-selected", String(place === at)));
  list.children[at].scrollIntoView({ block: "nearest" });
  box.setAttribute("aria-activedescendant", `name-${at}`);
};

const close = () => {
  list.hidden = true;
  offered = [];
  at = -1;
  box.setAttribute("aria-expanded", "false");
  box.removeAttribute("aria-activedescendant");
};

const take = (index) => {
  const { start } = word();
  box.setRangeText(quoted(offered[index].name), start, box.selectionStart, "end");
  close();
};

box.addEventListener("input", offer);
box.addEventListener("blur", close);
box.addEventListener("click", close);
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    close();
    ask();
  } else if (!list.hidden) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) choose((at + step + offered.length) % offered.length);
    else if (event.key === "Tab" || event.key === "Enter") take(at);
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
  }
});

const send = async (path, use) => {
  if (asking) return;
  asking = new AbortController();
  buttons.run.disabled = buttons.csv.disabled = true;
  buttons.cancel.disabled = false;
  state.textContent = "Asking ...";
  try {
    const response = await fetch(place(path), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sql: box.value }),
      signal: asking.signal,
    });
    state.textContent = "";
    const type = response.headers.get("Content-Type") || "";
    if (response.ok && use) await use(response);
    else if (type.startsWith("text/html")) answer.innerHTML = await response.text(); // escaped by the server's template
    else state.textContent = await response.text();
  } catch (error) {
    state.textContent = error.name === "AbortError" ? "Cancelled." : "The explorer does not answer: was it stopped?";
  } finally {
    asking = null;
    buttons.run.disabled = buttons.csv.disabled = false;
    buttons.cancel.disabled = true;
  }
};

const ask = () => send("sql");

document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
buttons.cancel.addEventListener("click", () => asking && asking.abort());
buttons.csv.addEventListener("click", () => send("sql.csv", async (response) => {
  const link = element("a", "", { href: URL.createObjectURL(await response.blob()), download: "answer.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}));
document.getElementById("saved").addEventListener("change", (event) => {
  const chosen = event.target.selectedOptions[0];
  if (!chosen.value) return;
  box.value = chosen.dataset.sql;
  document.getElementById("note").firstChild.textContent = chosen.dataset.note;
  close();
});

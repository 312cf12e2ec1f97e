// Shared by all components: elements are built node by node, so that text from files is never read as HTML.
window.lm = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const inSvg = new Set(["svg", "path", "line", "rect", "circle", "text", "title", "g"]);

  function h(tag, attributes = {}, ...children) {
    const node = inSvg.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(2)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  }

  function picture(source, alt, cls) {
    // Only what this server made: data URIs of pictures, and its own picture folder.
    const safe = /^data:image\/(webp|jpeg|png);base64,/.test(source || "") || /^pictures\/[\w-]+\.png$/.test(source || "");
    return safe
      ? h("img", { src: source, alt, class: cls, loading: "lazy", draggable: "false" })
      : h("div", { class: `${cls} lm-blank`, "aria-hidden": "true" }, (alt || "?").slice(0, 1).toUpperCase());
  }

  function later(wait, work) {
    let timer = null;
    return (...values) => {
      clearTimeout(timer);
      timer = setTimeout(() => work(...values), wait);
    };
  }

  function empty(title, text, ...more) {
    return h("div", { class: "lm-empty" }, h("strong", {}, title), h("p", {}, text), more);
  }

  // What a click opened somewhere else on the page comes into view.
  function reveal(node) {
    const top = node.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight * 0.6) node.scrollIntoView({ block: "start", behavior: "smooth" });
  }

  // Redraw a part; what had the focus has it again, or what took its place.
  function redraw(root, ...children) {
    const held = root.contains(document.activeElement) ? document.activeElement : null;
    const label = held?.getAttribute("aria-label"), all = held ? [...root.querySelectorAll("button, input, select, textarea, a")] : [];
    const at = all.indexOf(held), kind = label?.split(" ")[0];
    root.replaceChildren(...children.flat(2).filter(Boolean));
    if (!held) return;
    const now = [...root.querySelectorAll("button, input, select, textarea, a")].filter((each) => !each.disabled);
    const same = label && now.find((each) => each.getAttribute("aria-label") === label);
    const alike = now.filter((each) => kind && each.getAttribute("aria-label")?.startsWith(kind));
    const typed = held.selectionStart ?? null, end = held.selectionEnd;
    (same || alike.find((each) => now.indexOf(each) >= at) || alike.at(-1) || now[Math.min(Math.max(at, 0), now.length - 1)])?.focus({ preventScroll: true });
    if (same && typed !== null && same.value === held.value) same.setSelectionRange(typed, end);
  }

  // What stands on a button that turns pages: on phones the arrow alone.
  const turning = (step, back, on) => (step < 0 ? ["← ", h("span", { class: "lm-wide" }, back)] : [h("span", { class: "lm-wide" }, on), " →"]);
  const number = (value, digits = 2) => String(Math.round(value * 10 ** digits) / 10 ** digits);
  const parts = {};

  function start(name, element, api) {
    const root = element.querySelector(".lm-root") || element;
    parts[name](root, api);
  }

  function bytes(count) {
    for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
      if (count >= size) return `${number(count / size, 1)} ${unit}`;
    return `${count} B`;
  }

  // What was done, said in a corner; with a way back where there is one.
  let corner = null;
  function say(text, { undo = null, bad = false } = {}) {
    if (!corner) document.body.append(corner = h("div", { class: "lm-root lm-said", role: "status", "aria-live": "polite" }));
    const note = h("div", { class: `lm-note-box${bad ? " lm-bad" : ""}`, "data-testid": "lm-said" }, h("span", {}, text),
      undo && h("button", { class: "lm-button", onclick: () => { note.remove(); undo(); } }, "Undo"),
      h("button", { class: "lm-icon", "aria-label": "Close this message", onclick: () => note.remove() }, "✕"));
    corner.replaceChildren(note);
    if (undo) { const length = lm.history.length; lm.history.watch((now) => { if (now !== length) note.remove(); }); } // it would take something else back
    setTimeout(() => note.remove(), bad ? 15000 : undo ? 9000 : 5000);
  }

  // Ask the server; an answer with a problem is said, at its field where it has one, and is not an answer.
  let server = {};
  async function ask(name, data = null) {
    try {
      const found = await server[name](data);
      if (found?.problem && name !== "curve" && name !== "described") {
        fault(found.problem, found.field);
        return null;
      }
      return found;
    } catch {
      say("The server does not answer. What you did on this page is kept in the browser.", { bad: true });
      return null;
    }
  }

  // An error at its field: marked, named and told by screen readers; elsewhere in the corner.
  let marked = null;
  function unmark() {
    marked?.querySelector(".lm-fielderror")?.remove();
    marked?.querySelector("input, textarea")?.removeAttribute("aria-invalid");
    marked = null;
  }
  function mark(field, text) {
    unmark();
    const box = field ? document.getElementById(field) : null, input = box?.querySelector("input, textarea");
    if (!input) return false;
    marked = box;
    const folded = box.closest("details");
    if (folded) folded.open = true;
    input.setAttribute("aria-invalid", "true");
    box.append(h("p", { class: "lm-root lm-fielderror" }, text));
    input.addEventListener("input", unmark, { once: true });
    return true;
  }
  function fault(text, field) {
    if (!mark(field, text)) say(text, { bad: true });
  }

  return { h, picture, later, empty, turning, reveal, redraw, number, bytes, parts, start, say, ask, fault, mark, unmark, serve: (given) => { server = { ...server, ...given }; } };
})();

// One way back for everything that a person does here, the latest first.
lm.history = (() => {
  const past = [], watchers = [];
  let going = null; // a way back that waits for the server: the next one begins when it is there
  function run(undo) {
    const found = undo();
    if (!found?.finally) return;
    const mine = found.catch(() => {}).finally(() => { if (going === mine) going = null; });
    going = mine;
  }
  const changed = () => watchers.forEach((each) => each(past.length));
  return {
    push(undo) {
      lm.fields?.settle(); // what was typed before is a step of its own
      past.push(undo);
      if (past.length > 200) past.shift();
      changed();
    },
    back() {
      const undo = past.pop();
      changed();
      if (undo) run(going ? () => going.then(undo) : undo);
      return !!undo;
    },
    watch(each) { watchers.push(each); each(past.length); },
    get length() { return past.length; },
  };
})();

// What is kept in the browser: this tab's own state outlives a reload and a restart of the server; the last state of any tab
// is offered to a new one.
lm.store = (() => {
  const HERE = "lora-mixer-tab", LAST = "lora-mixer-last", TOKEN = "lora-mixer-token";
  const read = (where, key) => { try { return JSON.parse(where.getItem(key)) || null; } catch { return null; } };
  const write = (where, key, value) => { try { where.setItem(key, JSON.stringify(value)); } catch { /* full, or switched off */ } };
  const before = read(sessionStorage, HERE), last = read(localStorage, LAST);
  const now = read(sessionStorage, HERE) || {};
  const copy = lm.later(300, () => { if (now.mix?.rows?.length || now.fields?.prompt) write(localStorage, LAST, { mix: now.mix, fields: now.fields }); });
  let token = sessionStorage.getItem(TOKEN);
  if (!/^browser-[0-9a-f]{32}$/.test(token || "")) {
    token = `browser-${[...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
    try { sessionStorage.setItem(TOKEN, token); } catch { /* then a reload is another person */ }
  }
  return {
    token, before, last,
    get: (part) => now[part],
    put(part, value) {
      now[part] = value;
      write(sessionStorage, HERE, now);
      copy();
    },
  };
})();

// The fields of Gradio's that say what a picture is, by their elements.
lm.fields = (() => {
  const NAMES = ["prompt", "negative", "seed", "seed-lock", "steps", "guidance", "width", "height", "count"];
  const input = (name) => document.querySelector(`#${name} textarea, #${name} input`);
  let was = null; // the field that has the focus, as it was when it got it
  const get = (name) => { const found = input(name); return found && (found.type === "checkbox" ? found.checked : found.value); };
  function set(name, value) {
    const found = input(name);
    if (!found || value === undefined || value === null || get(name) === value) return;
    if (found.type === "checkbox") { found.click(); return; }
    if (was?.name === name) was.value = value; // not what the person typed there
    const kind = found.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(found, value);
    for (const event of ["input", "change", "blur"]) found.dispatchEvent(new Event(event, { bubbles: event !== "blur" }));
  }
  const all = () => Object.fromEntries(NAMES.map((name) => [name, get(name)]).filter(([, value]) => value !== null && value !== undefined));
  const there = () => new Promise((done) => { const look = () => (NAMES.every(input) ? done() : setTimeout(look, 40)); look(); });
  function remember() {
    const found = JSON.stringify(all());
    if (found !== JSON.stringify(lm.store.get("fields"))) lm.store.put("fields", JSON.parse(found));
  }
  // What a person changed in a field is one step of the history: it ends where the field is left, or where something else is done.
  const nameOf = (node) => NAMES.find((name) => input(name) === node);
  function settle() {
    if (!was || get(was.name) === was.value) return;
    const { name, value } = was;
    was.value = get(name);
    lm.history.push(() => set(name, value));
  }
  document.addEventListener("focusin", (event) => { settle(); const name = nameOf(event.target); was = name ? { name, value: get(name) } : null; });
  document.addEventListener("change", (event) => { if (event.isTrusted && was && nameOf(event.target) === was.name) settle(); });
  // Whether Ctrl+Z is the browser's own here: only for text that is being typed.
  const typing = (node) => was && node.type !== "number" && node.type !== "checkbox" && nameOf(node) === was.name && get(was.name) !== was.value;
  function roll() {
    const before = get("seed");
    lm.history.push(() => set("seed", before));
    set("seed", String(crypto.getRandomValues(new Uint32Array(1))[0]));
  }
  // Words go in where the browser has the text, so that nothing that is typed or clicked meanwhile is lost.
  function addWord(word) {
    const text = (get("prompt") || "").replace(/\s+$/, "");
    if (!word || text.toLowerCase().includes(word.toLowerCase())) return;
    set("prompt", text ? `${text.replace(/,$/, "")}, ${word}` : word);
    lm.history.push(() => {
      const here = get("prompt") || "", at = here.lastIndexOf(word);
      if (at >= 0) set("prompt", (here.slice(0, at).replace(/,\s*$/, "") + here.slice(at + word.length)).replace(/^,\s*/, ""));
    });
  }
  // Words leave where they stand as a piece between commas; what is written around them stays.
  function dropWords(words) {
    const text = get("prompt") || "", gone = new Set(words.map((word) => word.toLowerCase()));
    const left = text.split(",").filter((piece) => !gone.has(piece.trim().toLowerCase())).join(",").replace(/^\s+/, "");
    if (left === text) return;
    lm.history.push(() => set("prompt", text));
    set("prompt", left);
  }
  there().then(() => {
    const kept = lm.store.before?.fields;
    if (kept) Object.entries(kept).forEach(([name, value]) => NAMES.includes(name) && set(name, value));
    else set("seed", String(crypto.getRandomValues(new Uint32Array(1))[0]));
    document.addEventListener("input", lm.later(60, remember));
    setInterval(remember, 500);
    addEventListener("pagehide", remember);
  });
  return { get, set, all, there, addWord, dropWords, settle, typing, roll };
})();

// The address carries the tab: a reload, a bookmark and Back come to the same place.
lm.tabs = (() => {
  const buttons = () => [...document.querySelectorAll("#tabs button[role=tab]")];
  const at = () => (location.hash.match(/^#(make|library|compare|gallery|export)\b/) || [])[1];
  const shown = () => buttons().find((each) => each.getAttribute("aria-selected") === "true")?.textContent.trim().toLowerCase();
  const open = (name) => buttons().find((each) => each.textContent.trim().toLowerCase() === name)?.click();
  document.addEventListener("click", (event) => {
    const tab = event.target.closest?.("#tabs button[role=tab]");
    if (tab && event.isTrusted) history.pushState(null, "", `#${tab.textContent.trim().toLowerCase()}`);
  });
  addEventListener("popstate", () => open(at() || "make"));
  lm.fields.there().then(() => { if (at()) open(at()); });
  return { open, shown };
})();

// What the server says of itself in the page's head, every few seconds: which model, how far the library is looked through.
lm.whenChanged = (() => {
  const watched = [];
  const now = (name) => document.querySelector(`#top [data-${name}]`)?.getAttribute(`data-${name}`);
  setInterval(() => watched.forEach((each) => {
    const said = now(each.name);
    if (said === undefined || said === each.last) return;
    const first = each.last === undefined;
    each.last = said;
    if (!first) each.work();
  }), 500);
  return (name, work) => watched.push({ name, work, last: now(name) });
})();

// Dark or light as the person chose before, or as the system has it.
(() => {
  const saved = localStorage.getItem("lora-mixer-theme");
  const wish = new URLSearchParams(location.search).get("__theme") || saved;
  const dark = wish ? wish === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const apply = (on) => document.body.classList.toggle("dark", on);
  document.addEventListener("DOMContentLoaded", () => apply(dark));
  if (document.body) apply(dark);
  window.lm.toggleTheme = () => {
    const on = !document.body.classList.contains("dark");
    apply(on);
    localStorage.setItem("lora-mixer-theme", on ? "dark" : "light");
  };
})();

// Ctrl+Enter presses the main button of what is seen; Ctrl+Z goes back, except where one writes.
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter") {
    event.preventDefault();
    const main = { compare: "#compare-button", export: "#export-button", library: null, gallery: null }[lm.tabs.shown()];
    if (main === undefined) document.querySelector("#make-button")?.click();
    else if (main) document.querySelector(main)?.click();
  } else if (event.key === "z" && !event.shiftKey) {
    const known = ["prompt", "negative", "seed"].some((name) => event.target.closest?.(`#${name}`));
    if (known ? lm.fields.typing(event.target) : event.target.matches("textarea, input[type=text], input[type=search], [contenteditable]")) return;
    event.preventDefault();
    lm.fields.settle();
    lm.history.back();
  }
});

// A picture's settings come from the server into many places at once: all of it is one step back.
lm.snapshot = (() => {
  let kept = null;
  return {
    take() { kept = { fields: lm.fields.all(), more: lm.more.value, mix: JSON.parse(JSON.stringify(lm.mix.value())) }; },
    // Makes it a step of the history; says whether there was one.
    push() {
      if (!kept) return false;
      const { fields, more, mix } = kept;
      kept = null;
      lm.history.push(() => { Object.entries(fields).forEach(([name, value]) => lm.fields.set(name, value)); lm.more.put(more); lm.mix.put(mix); lm.draft?.(); });
      return true;
    },
  };
})();
for (const kind of ["drop", "change"]) document.addEventListener(kind, (event) => { if (event.target.closest?.("#picture-drop")) lm.snapshot.take(); }, true);

// What came into the library, and how it goes out again: into the trash of its folder, as by hand.
lm.arrived = (ids) => {
  const rows = () => { if (lm.mix.rows.length) lm.mix.refresh(lm.mix.rows.map((row) => row.name)); };
  lm.history.push(async () => { for (const id of ids) await lm.ask("trash_adapter", id); lm.cardsFresh?.(); rows(); });
  lm.say(ids.length > 1 ? `The library has ${ids.length} more adapters.` : "The library has one more adapter.", { undo: lm.history.back });
  rows();
};

// Told of each change of the mix, and of the mix as it is.
lm.whenMix = (() => {
  const told = [];
  lm.mixChanged = (rows) => told.forEach((each) => each(rows));
  return (work) => { told.push(work); work(lm.mix?.rows || []); };
})();

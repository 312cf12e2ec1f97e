// The mix: one row for each adapter. The browser keeps it; it goes along with each request.
lm.parts.mix_rows = (root, { props, trigger, server, watch }) => {
  const { h, picture, later, empty } = lm;
  const kit = props.kit;
  let rows = [], method = "", open = new Set(), past = [], gesture = "", gestureAt = 0;

  const value = () => ({ rows: rows.map((row) => ({ ...row })), method });
  const told = later(250, () => trigger("edited", {}));

  function remember(what) {
    // A slider that is dragged is one change, however many values it passes; what redraws the rows is one each time.
    const now = Date.now();
    if (!what || what !== gesture || now - gestureAt > 900) past.push(JSON.stringify(value()));
    if (past.length > 100) past.shift();
    gesture = what;
    gestureAt = now;
  }
  function commit() {
    props.value = value();
    told();
  }
  function change(what, work, redraw = false) {
    remember(redraw ? "" : what);
    work();
    commit();
    if (redraw) draw();
    else undo.disabled = !past.length;
  }
  function take(given, keep) {
    if (keep) remember(`server ${Date.now()}`);
    rows = (given?.rows || []).map((row) => ({ ...row }));
    method = given?.method || "";
    draw();
  }
  function back() {
    if (!past.length) return;
    const last = JSON.parse(past.pop());
    rows = last.rows;
    method = last.method;
    gesture = "";
    commit();
    draw();
  }
  function move(from, to) {
    if (to < 0 || to >= rows.length || from === to) return;
    const name = rows[from].name;
    change("order", () => rows.splice(to, 0, ...rows.splice(from, 1)), true);
    root.querySelector(`[data-name="${CSS.escape(name)}"] .lm-grip`)?.focus();
  }

  const undo = h("button", { class: "lm-button lm-quiet", onclick: back, title: "Undo (Ctrl+Z)", "aria-label": "Undo" }, "↶ Undo");
  const allOff = h("button", { class: "lm-button lm-quiet", "aria-label": "Switch all off or on",
    onclick: () => change("all", () => { const on = !rows.some((row) => row.on); rows.forEach((row) => { row.on = on; }); }, true) }, "All off");
  const count = h("span", { class: "lm-count" });
  const list = h("div", { class: "lm-rows" });
  const methodInput = h("input", { class: "lm-input", list: "lm-methods", placeholder: "sum", "aria-label": "Method of the mix",
    oninput: (e) => change("method", () => { method = e.target.value; }) });
  const foot = h("div", { class: "lm-rows-foot" },
    h("label", { class: "lm-field" }, h("span", {}, "Method"), methodInput),
    h("datalist", { id: "lm-methods" }, kit.methods.map((each) => h("option", { value: each }))));
  root.replaceChildren(
    h("div", { class: "lm-panel-head" }, h("h2", {}, "Mix"), count, h("span", { class: "lm-space" }), allOff, undo), list, foot);
  root.addEventListener("keydown", (e) => {
    if ((e.ctrlKey || e.metaKey) && e.key === "z" && !e.target.matches("input[type=text], textarea")) {
      e.preventDefault();
      back();
    }
  });

  function slider(row, field, label, fallback) {
    const shown = () => (row[field] === null || row[field] === undefined ? fallback(row) : row[field]);
    const range = h("input", { type: "range", min: -1, max: 2, step: 0.05, value: shown(), "aria-label": `${row.title}: ${label} slider` });
    const box = h("input", { type: "number", class: "lm-number", step: 0.05, value: shown(), "aria-label": `${row.title}: ${label}` });
    const set = (text, from) => {
      const next = Number(text);
      if (text === "" || !Number.isFinite(next)) return;
      change(`${row.name} ${field}`, () => { row[field] = next; });
      if (from !== range) range.value = next;
      if (from !== box) box.value = next;
      range.style.setProperty("--at", `${((Math.min(2, Math.max(-1, next)) + 1) / 3) * 100}%`);
      if (field === "unet" && (row.te === null || row.te === undefined)) range.dispatchEvent(new CustomEvent("lm-follow", { bubbles: true, detail: next }));
    };
    range.style.setProperty("--at", `${((Math.min(2, Math.max(-1, shown())) + 1) / 3) * 100}%`);
    range.addEventListener("input", () => set(range.value, range));
    box.addEventListener("input", () => set(box.value, box));
    return { range, box, line: h("div", { class: `lm-slider lm-${field}` }, h("span", {}, label), range, box) };
  }

  function drawRow(row, index) {
    const isOpen = open.has(row.name);
    const unet = slider(row, "unet", "UNet", () => 1);
    const te = slider(row, "te", "Text", (each) => each.unet);
    unet.range.addEventListener("lm-follow", (e) => {
      te.range.value = te.box.value = e.detail;
      te.range.style.setProperty("--at", unet.range.style.getPropertyValue("--at"));
    });
    const words = (row.triggers || []).map((word) =>
      h("button", { class: "lm-chip", title: "Put into the prompt", onclick: () => trigger("word", { word }) }, `+ ${word}`));
    const marks = [row.blocks && "blocks", row.schedule && "schedule", row.mask && "mask"].filter(Boolean);
    const grip = h("button", { class: "lm-grip", draggable: "true", title: "Drag, or Alt+Up and Alt+Down",
      "aria-label": `Move ${row.title}`, onkeydown: (e) => {
        if (e.altKey && e.key === "ArrowUp") { e.preventDefault(); move(index, index - 1); }
        if (e.altKey && e.key === "ArrowDown") { e.preventDefault(); move(index, index + 1); }
      } }, "⠿");
    const node = h("section", { class: `lm-row${isOpen ? " lm-open" : ""}${row.on && !row.problem ? "" : " lm-off"}${row.problem ? " lm-bad" : ""}`, "data-name": row.name, "aria-label": row.title },
      h("div", { class: "lm-row-head" }, grip, picture(row.thumb, row.title, "lm-thumb"),
        h("div", { class: "lm-names" }, h("div", { class: "lm-title", title: row.title }, row.title),
          h("div", { class: "lm-sub" }, row.problem ? "" : row.about, marks.map((mark) => h("span", { class: "lm-mark" }, mark)))),
        h("label", { class: "lm-switch" }, h("input", { type: "checkbox", role: "switch", checked: row.on, "aria-label": `${row.title} on`,
          onchange: (e) => change("on", () => { row.on = e.target.checked; }, true) }), h("span", {})),
        h("button", { class: "lm-icon", "aria-expanded": String(isOpen), "aria-label": `More for ${row.title}`, title: "Blocks, schedule, mask",
          onclick: () => { isOpen ? open.delete(row.name) : open.add(row.name); draw(); } }, isOpen ? "▴" : "▾"),
        h("button", { class: "lm-icon", "aria-label": `Remove ${row.title}`, title: "Remove",
          onclick: () => change("remove", () => rows.splice(rows.indexOf(row), 1), true) }, "✕")),
      row.problem && h("p", { class: "lm-problem", role: "note" }, row.problem),
      unet.line, te.line,
      words.length > 0 && h("div", { class: "lm-chips" }, isOpen ? words : words.slice(0, 3)),
      isOpen && more(row, index));
    grip.addEventListener("dragstart", (e) => { e.dataTransfer.setData("text/lm-row", String(index)); e.dataTransfer.setDragImage(node, 10, 10); });
    node.addEventListener("dragover", (e) => { if (e.dataTransfer.types.includes("text/lm-row")) { e.preventDefault(); node.classList.add("lm-over"); } });
    node.addEventListener("dragleave", () => node.classList.remove("lm-over"));
    node.addEventListener("drop", (e) => { e.preventDefault(); move(Number(e.dataTransfer.getData("text/lm-row")), index); });
    return node;
  }

  function more(row, index) {
    return h("div", { class: "lm-more" }, lm.blocksEditor(row, kit, change), lm.scheduleEditor(row, kit, change, server),
      lm.maskEditor(row, kit, change, trigger),
      h("div", { class: "lm-line" },
        h("button", { class: "lm-button lm-quiet", "aria-label": `Move ${row.title} up`, disabled: index === 0, onclick: () => move(index, index - 1) }, "↑ Up"),
        h("button", { class: "lm-button lm-quiet", "aria-label": `Move ${row.title} down`, disabled: index === rows.length - 1, onclick: () => move(index, index + 1) }, "↓ Down"),
        h("button", { class: "lm-button lm-quiet", "aria-label": `Text weight of ${row.title} as UNet`,
          onclick: () => change("te", () => { row.te = null; }, true) }, "Text = UNet"),
        h("button", { class: "lm-button lm-quiet", "aria-label": `Keep the weights of ${row.title} as its default`,
          onclick: () => trigger("standard", { name: row.name }) }, "Keep as default")));
  }

  function draw() {
    const active = rows.filter((row) => row.on && !row.problem).length;
    count.textContent = rows.length ? `${active} of ${rows.length} on` : "";
    allOff.textContent = rows.some((row) => row.on) || !rows.length ? "All off" : "All on";
    allOff.disabled = !rows.length;
    undo.disabled = !past.length;
    if (document.activeElement !== methodInput) methodInput.value = method;
    foot.hidden = rows.length < 2;
    list.replaceChildren(...(rows.length ? rows.map(drawRow)
      : [empty("No adapters yet", "Add some in the Library, or write <lora:name:0.8> in the prompt. Without any you get the base.")]));
  }

  watch("value", () => { if (JSON.stringify(props.value) !== JSON.stringify(value())) take(props.value, true); });
  take(props.value, false);
};

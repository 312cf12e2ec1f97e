lm.defaults = {}; // weights that were kept since the cards were drawn
// The mix: one line for each adapter. The browser owns it; a copy goes along with each request.
lm.parts.mix_rows = (root, { props, trigger, server, watch }) => {
  const { h, picture, later, empty, redraw, ask } = lm;
  const kit = { ...props.kit };
  const PLAIN = ["name", "on", "unet", "te", "blocks", "schedule", "mask", "feather", "more"];
  let rows = [], method = "", open = new Set(), gesture = "", gestureAt = 0;
  lm.serve(server);

  const value = () => ({ rows: rows.map((row) => ({ ...row })), method });
  const plain = () => ({ rows: rows.map((row) => Object.fromEntries(PLAIN.map((key) => [key, row[key] ?? null]))), method });
  const told = later(250, () => { trigger("edited", {}); lm.share?.describe(); });

  function put(given) {
    release();
    rows = (given?.rows || []).map((row) => ({ on: true, unet: 1, title: row.name, ...row }));
    method = given?.method || "";
    gesture = "";
    commit();
    draw();
  }
  function remember(what) {
    // A slider that is dragged is one change, however many values it passes; what redraws the rows is one each time.
    const now = Date.now();
    if (!what || what !== gesture || now - gestureAt > 900) {
      const before = JSON.stringify(value());
      lm.history.push(() => { put(JSON.parse(before)); lm.draft?.(); });
    }
    gesture = what;
    gestureAt = now;
  }
  function commit() {
    props.value = value();
    lm.store.put("mix", plain());
    told();
  }
  function change(what, work, again = false) {
    remember(again ? "" : what);
    work();
    if (again) hold();
    commit();
    if (again) draw();
  }
  function replaceAll(given) {
    remember("");
    put(given);
  }
  async function refresh(names) {
    const found = (await ask("look_up", names))?.facts;
    if (!found) return;
    rows.forEach((row) => { if (found[row.name]) { delete row.problem; Object.assign(row, found[row.name]); } });
    props.value = value();
    draw();
  }
  function add(card) {
    const there = rows.find((row) => row.name === card.title);
    if (there?.on) return lm.say(`${card.title} is in the mix already.`);
    if (!there && rows.length >= 32) return lm.say("The mix has 32 adapters, the most that fit; take one out first.", { bad: true });
    change("add", () => {
      if (there) there.on = true;
      else rows.push({ name: card.title, title: card.title, on: true, unet: lm.defaults[card.title] ?? card.weight ?? 1, te: null, blocks: null, schedule: "", mask: "", feather: 0, more: null,
        id: card.id, about: card.about, triggers: card.triggers, problem: card.problem, thumb: card.thumb, notes: card.notes });
    }, true);
    if (along && card.triggers?.length) lm.fields.addWord(card.triggers[0]);
    if (innerWidth <= 900) lm.say(`${card.title} is in the mix now.`, { undo: lm.history.back });
    ask("look_up", [card.title]);
  }
  function move(from, to) {
    if (to < 0 || to >= rows.length || from === to) return;
    change("order", () => rows.splice(to, 0, ...rows.splice(from, 1)), true);
  }

  // --- weights drawn from a range, and weights that are held at a sum ---
  const weighing = { low: 0.2, high: 1, sum: 1, ...(lm.store.get("weighing") || {}), held: false };
  const live = () => rows.filter((row) => row.on && !row.problem);
  const shorter = (value) => Math.round(value * 1000) / 1000;
  // The one that is being moved keeps its weight; the others share what is left as they shared it before.
  function hold(moved = null) {
    if (!weighing.held) return;
    const others = live().filter((row) => row !== moved);
    if (moved?.on && !moved.problem && (Math.abs(moved.unet) > weighing.sum || !others.length)) moved.unet = Math.sign(moved.unet || 1) * weighing.sum;
    const rest = weighing.sum - (moved?.on && !moved.problem ? Math.abs(moved.unet) : 0), now = others.reduce((all, row) => all + Math.abs(row.unet), 0);
    others.forEach((row) => { row.unet = shorter(now ? (row.unet * rest) / now : rest / others.length); });
    rows.forEach((row) => shown.get(row.name)?.(row));
  }
  function release() {
    weighing.held = false;
    holdButton?.setAttribute("aria-pressed", "false");
    holdButton?.classList.remove("lm-on");
  }
  function weigh(given) { Object.assign(weighing, given); lm.store.put("weighing", { ...weighing, held: false }); }
  const shown = new Map(); // by name: puts a row's weights into its fields

  const undo = h("button", { class: "lm-button lm-quiet", onclick: () => lm.history.back(), title: "Undo (Ctrl+Z)", "aria-label": "Undo" }, "↶");
  lm.history.watch((count) => { undo.disabled = !count; });
  const tool = (label, title, work) => h("button", { class: "lm-chip", title, onclick: work }, label);
  const allOff = h("button", { class: "lm-button lm-quiet", "aria-label": "Switch all off or on",
    onclick: () => change("all", () => { const on = !rows.some((row) => row.on); rows.forEach((row) => { row.on = on; }); }, true) }, "All off");
  const quick = h("button", { class: "lm-button lm-quiet", "aria-label": "Save this mix", title: "Save this mix under its adapters' names", onclick: () => lm.share.quick() }, "Save");
  const count = h("span", { class: "lm-count" });
  const list = h("div", { class: "lm-rows" });
  const methodInput = h("input", { class: "lm-input", list: "lm-methods", placeholder: "sum", "aria-label": "Method of the mix",
    oninput: (e) => change("method", () => { method = e.target.value; }) });
  const bound = (key, label, title) => h("input", { type: "number", class: "lm-number lm-bound", step: 0.1, value: weighing[key], "aria-label": label, title,
    oninput: (e) => { if (e.target.value !== "" && Number.isFinite(Number(e.target.value))) weigh({ [key]: Number(e.target.value) }); } });
  const holdButton = h("button", { class: "lm-chip", "aria-pressed": "false", title: "Move one weight, and the others make room: their sizes add up to this", onclick: () => {
    if (weighing.held) return release();
    change("hold", () => { if (weighing.sum > 0) { weighing.held = true; } }, true);
    holdButton.setAttribute("aria-pressed", String(weighing.held));
    holdButton.classList.toggle("lm-on", weighing.held);
    lm.draft?.();
  } }, "Hold the sum");
  // Trigger words that come and go with their adapter, for who likes that.
  const ALONG = "lora-mixer-words";
  let along = localStorage.getItem(ALONG) === "on";
  const alongButton = h("button", { class: `lm-chip${along ? " lm-on" : ""}`, "aria-pressed": String(along), title: "Adding an adapter puts its first trigger word into the prompt, removing it takes its words out", onclick: () => {
    along = !along;
    try { localStorage.setItem(ALONG, along ? "on" : "off"); } catch { /* full, or switched off */ }
    alongButton.setAttribute("aria-pressed", String(along));
    alongButton.classList.toggle("lm-on", along);
  } }, "Words come along");
  function remove(row) {
    change("remove", () => rows.splice(rows.indexOf(row), 1), true);
    const others = new Set(rows.flatMap((each) => each.triggers || []));
    if (along) lm.fields.dropWords((row.triggers || []).filter((word) => !others.has(word)));
  }
  const foot = h("div", { class: "lm-rows-foot" },
    h("datalist", { id: "lm-methods" }, kit.methods.map((name) => h("option", { value: name }))),
    h("div", { class: "lm-weighing", role: "group", "aria-label": "Random weights" },
      tool("Random", "Random weights within this range", () => {
        const [low, high] = [weighing.low, weighing.high].sort((one, two) => one - two);
        change("many", () => rows.filter((row) => row.on).forEach((row) => { row.unet = shorter(low + Math.round((Math.random() * (high - low)) / 0.05) * 0.05); row.te = null; }), true);
        lm.draft?.();
      }), bound("low", "Random from", "The least"), h("span", { "aria-hidden": "true" }, "–"), bound("high", "Random to", "The greatest")),
    h("div", { class: "lm-weighing", role: "group", "aria-label": "Sum of the weights" }, holdButton, bound("sum", "The sum", "What the sizes of the weights add up to")), alongButton,
    h("label", { class: "lm-field lm-method", title: "How the adapters come together: their sum, where nothing stands here" }, h("span", {}, "Method"), methodInput));
  const close = h("button", { class: "lm-icon lm-sheetclose", "aria-label": "Close the mix", onclick: () => sheet(false) }, "✕");
  const share = h("div", { class: "lm-share" });
  root.replaceChildren(
    h("div", { class: "lm-panel-head" }, h("h2", {}, "Mix"), count, h("span", { class: "lm-space" }), allOff, quick, undo, close), list, foot, share);

  // On a phone the mix is a sheet over the page, opened from the bar at the bottom.
  const grab = h("button", { class: "lm-button lm-mixbutton", "aria-expanded": "false", onclick: () => sheet(!document.body.classList.contains("lm-sheet")) }, "Mix");
  function sheet(on, focus = true) {
    document.body.classList.toggle("lm-sheet", on);
    grab.setAttribute("aria-expanded", String(on));
    if (on && focus) list.querySelector("input")?.focus({ preventScroll: true });
  }
  lm.fields.there().then(() => {
    document.body.append(h("div", { class: "lm-root lm-phonebar", role: "group", "aria-label": "Mix and Make" }, grab,
      h("button", { class: "lm-button lm-main", "aria-label": "Make the picture", onclick: () => { sheet(false); lm.tabs.open("make"); document.querySelector("#make-button")?.click(); document.querySelector("#stage")?.scrollIntoView({ block: "start" }); } }, "Make")));
  });
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") sheet(false); });
  document.addEventListener("click", (e) => { if (e.isTrusted && e.target.closest?.("#tabs [role=tab]")) sheet(false); });
  root.addEventListener("focusin", () => { if (innerWidth <= 900) sheet(true, false); }); // who comes here by keyboard sees it

  const place = (value) => `${((Math.min(2, Math.max(-1, value)) + 1) / 3) * 100}%`;
  function weights(row) {
    const range = h("input", { type: "range", min: -1, max: 2, step: 0.05, value: row.unet, "aria-label": `${row.title}: ${kit.denoiser} slider`, style: `--at:${place(row.unet)}` });
    const box = h("input", { type: "number", class: "lm-number", step: 0.05, value: row.unet, "aria-label": `${row.title}: ${kit.denoiser}`, title: `${kit.denoiser} weight` });
    const text = h("input", { type: "number", class: "lm-number lm-te", step: 0.05, value: row.te ?? row.unet, "aria-label": `${row.title}: Text`, title: "Text encoders' weight" });
    const as = h("button", { class: "lm-button lm-quiet", "aria-label": `Text weight of ${row.title} as ${kit.denoiser}`, disabled: row.te === null || row.te === undefined, onclick: () => change("te", () => { row.te = null; }, true) }, `as ${kit.denoiser}`);
    shown.set(row.name, (now) => {
      const follows = now.te === null || now.te === undefined;
      for (const [input, value] of [[range, now.unet], [box, now.unet], [text, follows ? now.unet : now.te]])
        if (input !== document.activeElement && Number(input.value) !== value) input.value = value;
      range.style.setProperty("--at", place(now.unet));
      as.disabled = follows;
    });
    const set = (given, from) => {
      const next = Number(given);
      if (given === "" || !Number.isFinite(next)) return;
      change(`${row.name} unet`, () => { row.unet = next; hold(row); });
      if (from !== range) range.value = row.unet;
      if (from !== box) box.value = row.unet;
      shown.get(row.name)(row);
    };
    range.addEventListener("input", () => set(range.value, range));
    box.addEventListener("input", () => set(box.value, box));
    for (const input of [range, box, text]) input.addEventListener("change", () => {
      range.value = box.value = row.unet; // held at a sum it may be less than was asked for
      lm.draft?.();
    });
    text.addEventListener("input", () => {
      const next = Number(text.value);
      if (text.value === "" || !Number.isFinite(next)) return;
      change(`${row.name} te`, () => { row.te = next; });
      as.disabled = false;
    });
    return { range, box, text, as };
  }

  function drawRow(row, index) {
    const isOpen = open.has(row.name), own = row.te !== null && row.te !== undefined && row.te !== row.unet;
    const { range, box, text, as } = weights(row);
    const words = (row.triggers || []).map((word) =>
      h("button", { class: "lm-chip", title: "Put into the prompt", onclick: () => lm.fields.addWord(word) }, `+ ${word}`));
    const marks = [row.blocks && "blocks", row.schedule && "schedule"].filter(Boolean).map((mark) => h("span", { class: "lm-mark" }, mark));
    if (row.mask) marks.push(h("span", { class: "lm-mark lm-maskmark" }, lm.maskThumb(row.mask), "mask"));
    const grip = h("button", { class: "lm-grip", draggable: "true", title: `${row.title}${row.about ? ` · ${row.about}` : ""}\nDrag, or Alt+Up and Alt+Down, to move`,
      "aria-label": `Move ${row.title}`, onkeydown: (e) => {
        if (e.altKey && e.key === "ArrowUp") { e.preventDefault(); move(index, index - 1); }
        if (e.altKey && e.key === "ArrowDown") { e.preventDefault(); move(index, index + 1); }
      } }, picture(row.thumb, row.title, "lm-thumb"));
    const node = h("section", { class: `lm-row${isOpen ? " lm-open" : ""}${row.on && !row.problem ? "" : " lm-off"}${row.problem ? " lm-bad" : ""}`, "data-name": row.name, "aria-label": row.title },
      h("div", { class: `lm-row-head${own && !isOpen ? " lm-two" : ""}` }, grip,
        h("div", { class: "lm-names" }, h("div", { class: "lm-title", title: row.title }, row.title),
          h("div", { class: "lm-under" }, marks.length ? marks : !isOpen && words.slice(0, 1))),
        range, box, own && !isOpen && text,
        h("label", { class: "lm-switch" }, h("input", { type: "checkbox", role: "switch", checked: row.on, "aria-label": `${row.title} on`,
          onchange: (e) => { change("on", () => { row.on = e.target.checked; }, true); lm.draft?.(); } }), h("span", {})),
        h("button", { class: "lm-icon", "aria-expanded": String(isOpen), "aria-label": `More for ${row.title}`, title: "Blocks, schedule, mask",
          onclick: () => { isOpen ? open.delete(row.name) : open.add(row.name); draw(); } }, isOpen ? "▴" : "▾"),
        h("button", { class: "lm-icon", "aria-label": `Remove ${row.title}`, title: "Remove",
          onclick: () => remove(row) }, "✕")),
      row.problem && h("p", { class: "lm-problem", role: "note" }, row.problem),
      isOpen && words.length > 0 && h("div", { class: "lm-chips" }, words),
      isOpen && more(row, index, text, as));
    grip.addEventListener("dragstart", (e) => { e.dataTransfer.setData("text/lm-row", String(index)); e.dataTransfer.setDragImage(node, 10, 10); });
    node.addEventListener("dragover", (e) => { if (e.dataTransfer.types.includes("text/lm-row")) { e.preventDefault(); node.classList.add("lm-over"); } });
    node.addEventListener("dragleave", () => node.classList.remove("lm-over"));
    node.addEventListener("drop", (e) => { e.preventDefault(); move(Number(e.dataTransfer.getData("text/lm-row")), index); });
    return node;
  }

  function more(row, index, text, as) {
    const shown = lm.shownPicture?.().match(/([\w-]+)\.png$/)?.[1];
    return h("div", { class: "lm-more" }, row.about && h("p", { class: "lm-sub" }, row.about), row.notes && h("p", { class: "lm-notes" }, row.notes),
      h("div", { class: "lm-line" }, h("label", { class: "lm-field" }, h("span", {}, "Text encoders"), text), as),
      lm.blocksEditor(row, kit, change), lm.scheduleEditor(row, kit, change, server), lm.maskEditor(row, kit, change),
      h("div", { class: "lm-line" },
        h("button", { class: "lm-button lm-quiet", "aria-label": `Move ${row.title} up`, disabled: index === 0, title: "Up", onclick: () => move(index, index - 1) }, "↑"),
        h("button", { class: "lm-button lm-quiet", "aria-label": `Move ${row.title} down`, disabled: index === rows.length - 1, title: "Down", onclick: () => move(index, index + 1) }, "↓"),
        h("button", { class: "lm-button lm-quiet", "aria-label": `Keep the weights of ${row.title} as its default`,
          onclick: async () => {
            const keep = async (weight) => { const found = await ask("keep_default", { name: row.name, weight }); if (found) lm.defaults[row.name] = weight ?? 1; return found; };
            const found = await keep(row.unet);
            if (!found) return;
            lm.history.push(() => keep(found.before));
            lm.say(found.said, { undo: lm.history.back });
          } }, "Keep the weights"),
        shown && h("button", { class: "lm-button lm-quiet", "aria-label": `Picture as preview of ${row.title}`, title: "The picture that is shown becomes its preview in the library",
          onclick: async () => {
            if (!await ask("set_preview", { name: row.name, picture: shown })) return;
            const back = async () => { await ask("set_preview", { name: row.name, picture: "" }); refresh([row.name]); lm.cardsFresh?.(); };
            lm.history.push(back);
            lm.say(`The picture is the preview of ${row.title} now.`, { undo: lm.history.back });
            refresh([row.name]);
            lm.cardsFresh?.();
          } }, "As preview")));
  }

  function draw() {
    const active = rows.filter((row) => row.on && !row.problem).length;
    count.textContent = rows.length ? `${active} of ${rows.length} on` : "";
    grab.textContent = rows.length ? `Mix · ${active}` : "Mix";
    const some = rows.some((row) => row.on) || !rows.length;
    allOff.textContent = some ? "All off" : "All on";
    allOff.setAttribute("aria-label", some ? "Switch all off or on" : "Switch all on or off");
    allOff.disabled = quick.disabled = !rows.length;
    if (document.activeElement !== methodInput) methodInput.value = method;
    foot.hidden = !rows.length;
    open = new Set(rows.map((row) => row.name).filter((name) => open.has(name))); // what leaves the mix is closed when it comes again
    redraw(list, rows.length ? rows.map(drawRow)
      : [empty("No adapters yet", "Add some in the Library, or write <lora:name:0.8> in the prompt. Without any you get the base.",
        h("button", { class: "lm-button", onclick: () => lm.tabs.open("library") }, "Open the Library"))]);
    lm.mixChanged?.(rows);
  }

  // Another model has other blocks and another size, and other adapters fit.
  function model(found) {
    for (const key of Object.keys(kit)) delete kit[key];
    Object.assign(kit, found);
    if (rows.length) refresh(rows.map((row) => row.name));
  }
  // A file that was renamed keeps its row.
  function rename(before, after) {
    rows.forEach((row) => { if (row.name === before) { row.name = after; row.title = after; } });
    if (open.delete(before)) open.add(after);
    commit();
    refresh([after]);
  }
  lm.mix = { put, model, rename, add, replaceAll, value, plain, change, refresh, get rows() { return rows; }, draw };
  // Only what a handler sent is taken: it has a stamp. Gradio also sets the value that the page began with, and what was put here.
  let stamp = "";
  watch("value", () => {
    const given = props.value;
    if (!given?.stamp || given.stamp === stamp) return;
    stamp = given.stamp;
    if (lm.snapshot.push()) put(given);
    else replaceAll(given);
  });

  const kept = lm.store.before?.mix;
  if (kept?.rows?.length) {
    put(kept);
    refresh(kept.rows.map((row) => row.name));
  } else draw();
  lm.sharePanel(share);
  offer();
  async function offer() {
    const written = location.hash.match(/[#&]mix=([^&]*)/);
    if (written) {
      const found = await ask("from_text", decodeURIComponent(written[1]));
      if (found) replaceAll(found);
      history.replaceState(null, "", location.pathname + location.search);
    } else if (!lm.store.before && lm.store.last?.mix) {
      const last = lm.store.last;
      const bar = h("div", { class: "lm-root lm-offer", role: "note" }, h("span", {}, "Go on with the mix and prompt of last time?"),
        h("button", { class: "lm-button", onclick: () => { bar.remove(); lm.snapshot.take(); put(last.mix); refresh(last.mix.rows.map((row) => row.name)); Object.entries(last.fields || {}).forEach(([name, text]) => lm.fields.set(name, text)); lm.snapshot.push(); } }, "Bring back"),
        h("button", { class: "lm-icon", "aria-label": "No, start anew", onclick: () => bar.remove() }, "✕"));
      root.prepend(bar);
    }
  }
};

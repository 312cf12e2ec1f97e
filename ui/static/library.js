// The library: the browser asks for the cards that it shows, and remembers how one likes to see them.
lm.parts.cards = (root, { props, server, watch }) => {
  const { h, picture, empty, bytes, redraw, ask, later, say } = lm;
  const LIKED = "lora-mixer-library";
  const liked = { sort: "Name", descending: false, fits: false, list: false, show: false, ...(() => { try { return JSON.parse(localStorage.getItem(LIKED)) || {}; } catch { return {}; } })() };
  const where = { text: "", base: "", label: "", favourites: false, root: "", folder: "" };
  let page = 0, found = null, turn = 0, stamp = "", status = "", twins = null, shut = new Set();
  lm.serve(server);
  const like = (given) => { Object.assign(liked, given); try { localStorage.setItem(LIKED, JSON.stringify(liked)); } catch { /* full, or switched off */ } look(0); };
  const ask_for = (given) => { Object.assign(where, given); look(0); };

  async function look(at = page, said = "") {
    const mine = ++turn;
    const { sort, descending, fits } = liked, first = using();
    const answer = await ask("cards", { ...where, sort, descending, fits, first, page: at });
    if (!answer || mine !== turn) return;
    found = answer;
    asked = first.join();
    page = answer.page;
    status = answer.status || said;
    twins = null;
    draw();
  }
  // Cards come when somebody looks at them, and not before.
  const seen = () => root.offsetParent !== null;
  // What is in the mix comes first when one comes back, and not under one's hand.
  const using = () => (lm.mix?.rows || []).map((row) => row.id).filter(Boolean);
  let stale = true, away = true, asked = "";
  const fresh = () => { if (seen()) { stale = false; look(); } else stale = true; };
  new IntersectionObserver(() => {
    if (!seen()) away = true;
    else if (stale || (away && asked !== using().join())) { away = stale = false; look(); }
    else away = false;
  }).observe(root);
  lm.cardsFresh = fresh;
  lm.whenChanged("library", fresh);

  // --- what is asked for ---
  const text = h("input", { type: "search", class: "lm-input", "aria-label": "Search", placeholder: "Search names, words, tags, notes", oninput: later(200, () => ask_for({ text: text.value })) });
  const choose = (label, options, value, onchange) => h("select", { class: "lm-input", "aria-label": label, title: label, onchange: (e) => onchange(e.target.value) },
    options.map(([each, shown]) => h("option", { value: each, selected: each === value }, shown)));
  const toggle = (label, title, on, work) => h("button", { class: `lm-chip${on ? " lm-on" : ""}`, "aria-pressed": String(on), title, onclick: work }, label);
  function tools() {
    const v = found;
    return h("div", { class: "lm-tools" },
      v.bases.length > 1 && choose("Base", [["", "Any base"], ...v.bases.map(([name, base]) => [base, name])], where.base, (base) => ask_for({ base })),
      v.labels.length > 0 && choose("Label", [["", "Any label"], ...v.labels.map((each) => [each, each])], where.label, (label) => ask_for({ label })),
      choose("Sort", props.sorts.map((each) => [each, each]), liked.sort, (sort) => like({ sort })),
      h("button", { class: "lm-icon", "aria-label": liked.descending ? "Sorted downwards" : "Sorted upwards", title: liked.descending ? "The last or greatest first; click for the other way" : "The first or least first; click for the other way", onclick: () => like({ descending: !liked.descending }) }, liked.descending ? "↓" : "↑"),
      toggle("Only what fits", "Those for other models are left out, and counted", liked.fits, () => like({ fits: !liked.fits })),
      toggle("★ Favourites", "Only favourites", where.favourites, () => ask_for({ favourites: !where.favourites })),
      toggle("As a list", "One line for each", liked.list, () => like({ list: !liked.list })),
      (liked.show || v.entries.some((each) => each.explicit)) && toggle("Show all previews", "Those marked as explicit are blurred otherwise", liked.show, () => like({ show: !liked.show })),
      toggle("Doubles", "Files that are the same to the byte", !!twins, async () => {
        if (twins) { twins = null; return draw(); }
        const answer = await ask("duplicates");
        if (answer) { twins = answer.groups; draw(); }
      }));
  }
  function tree() {
    if (found.tree.reduce((all, { folders }) => all + folders.length, 0) < 3) return null;
    const line = (root_, folder, name, count, depth, deeper) => {
      const here = String(where.root) === String(root_) && where.folder === folder, key = `${root_}/${folder}`, open = !shut.has(key);
      return h("li", { style: `--depth:${depth}` },
        deeper ? h("button", { class: "lm-icon lm-twist", "aria-label": `Folders in ${name}`, "aria-expanded": String(open), onclick: () => { open ? shut.add(key) : shut.delete(key); draw(); } }, open ? "▾" : "▸") : h("i", { class: "lm-twist" }),
        h("button", { class: `lm-folder${here ? " lm-here" : ""}`, "aria-current": here ? "true" : null, onclick: () => ask_for(here ? { root: "", folder: "" } : { root: root_, folder }) }, h("span", {}, name), h("small", {}, count)));
    };
    const lines = [h("li", { style: "--depth:0" }, h("i", { class: "lm-twist" }), h("button", { class: `lm-folder${where.root === "" ? " lm-here" : ""}`, "aria-current": where.root === "" ? "true" : null, onclick: () => ask_for({ root: "", folder: "" }) }, h("span", {}, "All folders")))];
    for (const { root: number, name, folders } of found.tree) {
      const all = new Map(); // with what lies below, and folders in between that hold no file themselves
      for (const [folder, count] of folders) {
        const parts = folder ? folder.split("/") : [];
        for (let at = 0; at <= parts.length; at++) { const up = parts.slice(0, at).join("/"); all.set(up, (all.get(up) || 0) + count); }
      }
      for (const folder of [...all.keys()].sort()) {
        const parts = folder ? folder.split("/") : [];
        if (parts.some((_, at) => shut.has(`${number}/${parts.slice(0, at).join("/")}`))) continue;
        const deeper = [...all.keys()].some((each) => each !== folder && each.startsWith(folder ? `${folder}/` : ""));
        lines.push(line(number, folder, parts.at(-1) || name, all.get(folder), parts.length + 1, deeper));
      }
    }
    return h("nav", { class: "lm-tree", "aria-label": "Folders" }, h("ul", {}, lines));
  }

  // --- what is found ---
  const star = (each) => h("button", { class: `lm-icon lm-star${each.favourite ? " lm-on" : ""}`, "aria-pressed": String(each.favourite), "aria-label": `Favourite ${each.title}`,
    onclick: async () => {
      const set = async (favourite) => { const answer = await ask("keep_adapter", { id: each.id, favourite }); if (answer) { Object.assign(each, answer.card); draw(); } return answer; }, before = each.favourite;
      if (await set(!before)) lm.history.push(() => set(before));
    } }, each.favourite ? "★" : "☆");
  const cover = (each, cls) => picture(each.thumb, each.title, `${cls}${each.explicit && !liked.show ? " lm-blurred" : ""}`);
  // What is in the mix says so, however it came there.
  const mixed = (rows) => root.querySelectorAll(".lm-card").forEach((node) => node.classList.toggle("lm-inmix", rows.some((row) => row.id === node.dataset.id)));
  lm.fields.there().then(() => lm.whenMix(mixed));
  const inMix = () => h("span", { class: "lm-mark lm-inmixmark" }, "in the mix");
  const add = (each) => h("button", { class: "lm-button", disabled: !!each.problem, "aria-label": `Add ${each.title} to the mix`, onclick: () => lm.mix.add(each) }, "Add");
  const card = (each) => h("article", { class: `lm-card${each.problem ? " lm-bad" : ""}`, "data-id": each.id, "aria-label": each.title },
    h("button", { class: "lm-cardpic", "aria-label": `Details of ${each.title}`, onclick: () => lm.details(each.id) }, cover(each, "lm-cover")), inMix(), star(each),
    h("div", { class: "lm-cardtext" }, h("div", { class: "lm-title", title: each.title }, each.title), each.called && h("div", { class: "lm-sub", title: each.called }, each.called), h("div", { class: "lm-sub", title: each.about }, each.about),
      h("div", { class: "lm-sub" }, bytes(each.bytes), each.triggers.length > 0 && ` · ${each.triggers.slice(0, 2).join(", ")}`),
      each.labels.length > 0 && h("div", { class: "lm-labels" }, each.labels.map((label) => h("span", { class: "lm-mark" }, label))),
      each.problem && h("p", { class: "lm-problem", role: "note", title: each.problem }, each.problem)),
    h("div", { class: "lm-cardfoot" }, add(each), h("button", { class: "lm-button lm-quiet", "aria-label": `Show details of ${each.title}`, onclick: () => lm.details(each.id) }, "Details")));
  const line = (each) => h("article", { class: `lm-card lm-cardline${each.problem ? " lm-bad" : ""}`, "data-id": each.id, "aria-label": each.title },
    cover(each, "lm-thumb"), star(each), h("button", { class: "lm-linename", "aria-label": `Details of ${each.title}`, onclick: () => lm.details(each.id) }, h("b", {}, each.title), h("span", {}, inMix(), [each.about, bytes(each.bytes), each.folder].filter(Boolean).join(" · "))),
    each.problem ? h("p", { class: "lm-problem", role: "note", title: each.problem }, each.problem) : h("span", { class: "lm-sub" }, each.triggers.slice(0, 2).join(", ")), add(each));

  const body = h("div", {});
  root.replaceChildren(h("div", { class: "lm-searchline" }, text), body);
  function draw() {
    const v = found;
    if (!v) return body.replaceChildren(h("p", { class: "lm-hint", role: "status" }, "The library is being looked at."));
    const next = (step) => h("button", { class: "lm-button lm-quiet", disabled: v.page + step < 0 || v.page + step >= v.pages, onclick: () => look(v.page + step) }, lm.turning(step, "Previous", "Next"));
    const cards = (entries) => h("div", { class: liked.list ? "lm-lines" : "lm-cards" }, entries.map(liked.list ? line : card));
    const shown = twins
      ? twins.length ? twins.map((group) => [h("h3", {}, `${group.length} files are the same`), cards(group)]) : empty("No doubles", "No two files here are the same to the byte.")
      : v.entries.length ? cards(v.entries)
        : empty(v.searched ? "Nothing found" : "No adapters here yet", v.searched ? "No adapter has these words, this base or this mark. Clear the search to see all." : "Drop .safetensors files above, name a Hub repository, or start with --loras FOLDER.");
    const folders = tree();
    redraw(body, tools(),
      h("div", { class: "lm-panel-head" }, h("span", { class: "lm-count", role: "status" }, status || `${v.total} adapter${v.total === 1 ? "" : "s"}`), h("span", { class: "lm-space" }),
        v.pages > 1 && !twins && [next(-1), h("span", { class: "lm-count" }, `${v.page + 1} / ${v.pages}`), next(1)]),
      v.read_as && h("p", { class: "lm-hint", role: "note" }, `Nothing has these words; this is what has “${v.read_as}”.`),
      v.left_out && h("p", { class: "lm-hint", role: "note" }, v.left_out, " ", h("button", { class: "lm-chip", onclick: () => like({ fits: false }) }, "Show them")),
      h("div", { class: folders ? "lm-withtree" : "" }, folders, h("div", {}, shown)));
    mixed(lm.mix?.rows || []);
  }
  watch("value", () => {
    const given = props.value;
    if (!given?.stamp || given.stamp === stamp) return;
    stamp = given.stamp;
    look(0, given.status);
    if (given.ids?.length) {
      lm.forms.adding.clear("upload-name");
      lm.arrived(given.ids);
    }
    if (given.nameless) { say("Its name says nothing: give it one."); lm.details(given.nameless, "name"); }
  });
  draw();
};

// All that is known of one adapter, in a drawer beside the library: what one changes first, what one looks up folded below.
lm.parts.details = (root) => {
  const { h, picture, ask, say } = lm;
  let v = null, last = null, from = null;
  // What is typed and not kept yet, by adapter: it outlives whatever draws the drawer anew, and a reload.
  const typed = lm.store.get("typed") || {};
  function keepTyped(id, field, value) {
    (typed[id] ||= {})[field] = value;
    lm.store.put("typed", typed);
  }
  function forget(id, ...fields) {
    for (const field of fields) delete typed[id]?.[field];
    if (typed[id] && !Object.keys(typed[id]).length) delete typed[id];
    lm.store.put("typed", typed);
  }
  // One bar for each layer, in the file's order; the name is in its tooltip.
  function layerPlot(layers) {
    const high = Math.max(1e-12, ...layers.map(([, size]) => size)), step = 300 / layers.length;
    return h("svg", { class: "lm-layers", viewBox: "0 0 300 64", preserveAspectRatio: "none", role: "img", "aria-label": `Strength of ${layers.length} layers, the highest ${high.toPrecision(3)}` },
      layers.map(([name, size], at) => h("rect", { x: (at * step).toFixed(2), width: Math.max(0.3, step * 0.8).toFixed(2), y: (64 - (size / high) * 62).toFixed(2), height: Math.max(0.5, (size / high) * 62).toFixed(2) },
        h("title", {}, `${name}: ${size.toPrecision(3)}`))));
  }
  const table = (pairs) => h("dl", { class: "lm-facts" }, pairs.map(([key, text]) => [h("dt", {}, key), h("dd", {}, text)]));
  const unfolded = new Set(); // stays so while one goes from adapter to adapter
  const fold = (title, ...inside) => h("details", { class: "lm-foldin", open: unfolded.has(title), ontoggle: (e) => { e.target.open ? unfolded.add(title) : unfolded.delete(title); } }, h("summary", {}, title), inside);
  function close() {
    v = null;
    draw();
    from?.isConnected && from.focus();
  }
  async function open(id, focus = "") {
    const found = await ask("adapter", id);
    if (!found) return;
    v = { ...found, problem: found.reason };
    draw();
    const field = focus && root.querySelector(`#adapter-${focus} input`);
    if (!field) return;
    field.closest("details").open = true;
    field.focus();
    field.select();
  }
  lm.details = open;
  const changed = (id = v?.id) => {
    lm.cardsFresh?.();
    if (lm.mix.rows.length) lm.mix.refresh(lm.mix.rows.map((row) => row.name));
    if (v && id) open(id);
  };
  // What was done, and how it is taken back.
  function done(words, back) {
    const undo = async () => { await back(); changed(); };
    lm.history.push(undo);
    say(words, { undo: lm.history.back });
    changed();
  }
  async function rename(id, name) {
    const found = await ask("rename_adapter", { id, name });
    if (found) lm.mix.rename(found.card.before, found.card.title);
    return found?.card;
  }
  function draw() {
    document.body.classList.toggle("lm-drawer", !!v);
    if (!v) {
      last = null;
      return root.replaceChildren();
    }
    if (v.id !== last) from = document.activeElement;
    const id = v.id, high = Math.max(1e-12, ...(v.strengths || []).map(([, size]) => size));
    const own = typed[id] || {};
    const field = (tag, name, value, options) => h(tag, { ...options, value: own[name] ?? value, oninput: (e) => keepTyped(id, name, e.target.value) });
    const weight = field("input", "weight", v.weight ?? "", { type: "number", class: "lm-number", step: 0.05, placeholder: "1", "aria-label": "Default weight" });
    const notes = field("textarea", "notes", v.notes || "", { class: "lm-input", rows: 3, "aria-label": "Notes", placeholder: "Notes" });
    const labels = field("input", "labels", v.labels.join(", "), { type: "text", class: "lm-input", "aria-label": "Labels", placeholder: "labels, with commas" });
    const explicit = h("input", { type: "checkbox", "aria-label": "Blur its preview", checked: own.explicit ?? v.explicit, onchange: (e) => keepTyped(id, "explicit", e.target.checked) });
    const name = field("input", "name", v.title, { type: "text", class: "lm-input", "aria-label": "New name", maxlength: 120 });
    const folder = field("input", "folder", v.folder, { type: "text", class: "lm-input", "aria-label": "Folder", placeholder: "top" });
    const shown = lm.shownPicture?.().match(/([\w-]+)\.png$/)?.[1];
    lm.redraw(root, h("section", { class: "lm-details", "aria-label": `Details of ${v.title}` },
      h("div", { class: "lm-panel-head" }, h("h2", {}, v.title), h("span", { class: "lm-space" }),
        h("button", { class: "lm-button", disabled: !!v.problem, onclick: () => lm.mix.add(v) }, "Add to mix"),
        h("button", { class: "lm-icon", "aria-label": "Close details", onclick: close }, "✕")),
      v.problem && h("p", { class: "lm-problem", role: "note" }, v.problem),
      picture(v.thumb, v.title, "lm-cover lm-large"),
      h("div", { class: "lm-line" },
        shown && h("button", { class: "lm-button lm-quiet", title: "The picture that the Make page shows", onclick: async () => { if (await ask("set_preview", { id, picture: shown })) done("The picture is its preview now.", () => ask("set_preview", { id, picture: "" })); } }, "Last picture as preview"),
        v.own_preview && h("button", { class: "lm-button lm-quiet", onclick: async () => { if (await ask("set_preview", { id, picture: "" })) changed(); } }, "The file's own preview")),
      v.triggers.length > 0 && h("div", { class: "lm-chips" }, v.triggers.map((word) => h("button", { class: "lm-chip", onclick: () => lm.fields.addWord(word) }, `+ ${word}`))),
      h("h3", {}, "Your notes and weight"),
      notes, labels, h("div", { class: "lm-line lm-keepline" }, h("label", { class: "lm-field" }, h("span", {}, "Weight"), weight), h("label", { class: "lm-field" }, explicit, "Blur its preview"),
        h("button", { class: "lm-button", onclick: async () => {
          const before = { id, weight: v.weight ?? "", notes: v.notes || "", labels: v.labels.join(", "), explicit: v.explicit };
          const found = await ask("keep_adapter", { id, weight: weight.value, notes: notes.value, labels: labels.value, explicit: explicit.checked });
          if (!found) return;
          forget(id, "weight", "notes", "labels", "explicit");
          const told = (card) => { lm.defaults[card.title] = card.weight; };
          told(found.card);
          done("Kept.", async () => { const again = await ask("keep_adapter", before); if (again) told(again.card); });
        } }, "Keep defaults")),
      v.changeable && fold("File",
        h("div", { class: "lm-line", id: "adapter-name" }, name, h("button", { class: "lm-button", onclick: async () => { const before = v.title, card = await rename(id, name.value); if (card) forget(id, "name"); if (card) done(`${before} is called ${card.title} now.`, () => rename(id, before)); } }, "Rename")),
        h("div", { class: "lm-line", id: "adapter-folder" }, folder, h("button", { class: "lm-button", onclick: async () => { const found = await ask("move_adapter", { id, folder: folder.value }); if (found) forget(id, "folder"); if (found) done(`${v.title} is in ${found.card.folder || "the top folder"} now.`, () => ask("move_adapter", { id, folder: found.card.before })); } }, "Move")),
        h("div", { class: "lm-line" }, h("button", { class: "lm-button lm-quiet", onclick: async () => {
          const found = await ask("trash_adapter", id);
          if (!found) return;
          close();
          done(`${found.title} is in the trash.${found.heir ? ` Mixes that name it mean the one in ${found.heir} now.` : ""}`, () => ask("restore_adapter", found.token));
        } }, "Put into the trash"))),
      v.layers?.length > 0 && [h("h3", {}, "Strength by layer"), layerPlot(v.layers), h("h3", {}, "Strength by block")],
      v.strengths?.length ? h("div", { class: "lm-bars", tabindex: 0, role: "region", "aria-label": "Strength by block" }, v.strengths.map(([name_, size]) => h("div", { class: "lm-barline", title: `${name_}: ${size.toPrecision(3)}` },
        h("span", {}, name_), h("div", {}, h("i", { style: `width:${(size / high) * 100}%` })), h("b", {}, size.toPrecision(2))))) : h("p", { class: "lm-hint" }, v.strengthNote || "Not known."),
      table(v.facts), v.tags.length > 0 && h("p", { class: "lm-sub" }, `Tags: ${v.tags.join(", ")}`),
      fold("Hashes", table(v.hashes)), fold("Metadata", v.metadata.length ? table(v.metadata) : h("p", { class: "lm-hint" }, "The file has none."))));
    if (v.id !== last) root.querySelector("[aria-label='Close details']").focus({ preventScroll: true });
    last = v.id;
  }
  document.addEventListener("keydown", (e) => { if (e.key === "Escape" && last && !document.querySelector("dialog[open]")) close(); });
};

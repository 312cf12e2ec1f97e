// Cards of adapters, and what is known of one.
lm.parts.cards = (root, { props, trigger, watch }) => {
  const { h, picture, empty, bytes, redraw } = lm;
  function draw() {
    const v = props.value || { entries: [], total: 0, page: 0, pages: 1 };
    const turn = (step) => h("button", { class: "lm-button lm-quiet", disabled: v.page + step < 0 || v.page + step >= v.pages,
      onclick: () => trigger("turn", { page: v.page + step }) }, step < 0 ? "← Previous" : "Next →");
    redraw(root,
      h("div", { class: "lm-panel-head" }, h("span", { class: "lm-count", role: "status" }, v.status || `${v.total} adapter${v.total === 1 ? "" : "s"}`), h("span", { class: "lm-space" }),
        v.pages > 1 && [turn(-1), h("span", { class: "lm-count" }, `${v.page + 1} / ${v.pages}`), turn(1)]),
      v.entries.length ? h("div", { class: "lm-cards" }, v.entries.map((each) =>
        h("article", { class: `lm-card${each.problem ? " lm-bad" : ""}`, "data-id": each.id, "aria-label": each.title },
          h("button", { class: "lm-cardpic", "aria-label": `Details of ${each.title}`, onclick: () => trigger("details", { id: each.id }) }, picture(each.thumb, each.title, "lm-cover")),
          h("div", { class: "lm-cardtext" }, h("div", { class: "lm-title", title: each.title }, each.title), each.called && h("div", { class: "lm-sub", title: each.called }, each.called), h("div", { class: "lm-sub", title: each.about }, each.about),
            h("div", { class: "lm-sub" }, bytes(each.bytes), each.triggers.length > 0 && ` · ${each.triggers.slice(0, 2).join(", ")}`),
            each.problem && h("p", { class: "lm-problem", role: "note", title: each.problem }, each.problem)),
          h("div", { class: "lm-cardfoot" },
            h("button", { class: "lm-button", disabled: !!each.problem, "aria-label": `Add ${each.title} to the mix`, onclick: () => lm.mix.add(each) }, "Add"),
            h("button", { class: "lm-button lm-quiet", "aria-label": `Show details of ${each.title}`, onclick: () => trigger("details", { id: each.id }) }, "Details")))))
        : empty(v.searched ? "Nothing found" : "No adapters here yet",
            v.searched ? "No adapter has these words or this base. Clear the search to see all." : "Drop .safetensors files above, name a Hub repository, or start with --loras FOLDER."));
  }
  watch("value", draw);
  draw();
};

// All that is known of one adapter, in a drawer beside the library: what one changes first, what one looks up folded below.
lm.parts.details = (root, { props, trigger, watch }) => {
  const { h, picture } = lm;
  let last = null, from = null;
  // One bar for each layer, in the file's order; the name is in its tooltip.
  function layerPlot(layers) {
    const high = Math.max(1e-12, ...layers.map(([, size]) => size)), step = 300 / layers.length;
    return h("svg", { class: "lm-layers", viewBox: "0 0 300 64", preserveAspectRatio: "none", role: "img", "aria-label": `Strength of ${layers.length} layers, the highest ${high.toPrecision(3)}` },
      layers.map(([name, size], at) => h("rect", { x: (at * step).toFixed(2), width: Math.max(0.3, step * 0.8).toFixed(2), y: (64 - (size / high) * 62).toFixed(2), height: Math.max(0.5, (size / high) * 62).toFixed(2) },
        h("title", {}, `${name}: ${size.toPrecision(3)}`))));
  }
  const table = (pairs) => h("dl", { class: "lm-facts" }, pairs.map(([key, text]) => [h("dt", {}, key), h("dd", {}, text)]));
  const fold = (title, ...inside) => h("details", { class: "lm-foldin" }, h("summary", {}, title), inside);
  function close() {
    trigger("close", {});
    from?.isConnected && from.focus();
  }
  function draw() {
    const v = props.value;
    document.body.classList.toggle("lm-drawer", !!v?.id);
    if (!v || !v.id) {
      last = null;
      return root.replaceChildren();
    }
    if (v.id !== last) from = document.activeElement;
    const high = Math.max(1e-12, ...(v.strengths || []).map(([, size]) => size));
    const weight = h("input", { type: "number", class: "lm-number", step: 0.05, value: v.weight ?? "", placeholder: "1", "aria-label": "Default weight" });
    const notes = h("textarea", { class: "lm-input", rows: 3, "aria-label": "Notes", placeholder: "Notes", value: v.notes || "" });
    root.replaceChildren(h("section", { class: "lm-details", "aria-label": `Details of ${v.title}` },
      h("div", { class: "lm-panel-head" }, h("h2", {}, v.title), h("span", { class: "lm-space" }),
        h("button", { class: "lm-button", disabled: !!v.problem, onclick: () => lm.mix.add(v) }, "Add to mix"),
        h("button", { class: "lm-icon", "aria-label": "Close details", onclick: close }, "✕")),
      v.problem && h("p", { class: "lm-problem", role: "note" }, v.problem),
      picture(v.thumb, v.title, "lm-cover lm-large"),
      v.triggers.length > 0 && h("div", { class: "lm-chips" }, v.triggers.map((word) => h("button", { class: "lm-chip", onclick: () => lm.fields.addWord(word) }, `+ ${word}`))),
      h("h3", {}, "Your notes and weight"),
      notes, h("div", { class: "lm-line" }, h("label", { class: "lm-field" }, h("span", {}, "Weight"), weight),
        h("button", { class: "lm-button", onclick: () => { lm.defaults[v.title] = weight.value === "" ? null : Number(weight.value); trigger("keep", { id: v.id, weight: weight.value, notes: notes.value }); } }, "Keep defaults")),
      v.layers?.length > 0 && [h("h3", {}, "Strength by layer"), layerPlot(v.layers), h("h3", {}, "Strength by block")],
      v.strengths?.length ? h("div", { class: "lm-bars", tabindex: 0, role: "region", "aria-label": "Strength by block" }, v.strengths.map(([name, size]) => h("div", { class: "lm-barline", title: `${name}: ${size.toPrecision(3)}` },
        h("span", {}, name), h("div", {}, h("i", { style: `width:${(size / high) * 100}%` })), h("b", {}, size.toPrecision(2))))) : h("p", { class: "lm-hint" }, v.strengthNote || "Not known."),
      table(v.facts), v.tags.length > 0 && h("p", { class: "lm-sub" }, `Tags: ${v.tags.join(", ")}`),
      fold("Hashes", table(v.hashes)), fold("Metadata", v.metadata.length ? table(v.metadata) : h("p", { class: "lm-hint" }, "The file has none."))));
    if (v.id !== last) root.querySelector("[aria-label='Close details']").focus({ preventScroll: true });
    last = v.id;
  }
  document.addEventListener("keydown", (e) => { if (e.key === "Escape" && last && !document.querySelector("dialog[open]")) close(); });
  watch("value", draw);
  draw();
};

// Pictures on disk, and how one was made.
lm.parts.gallery = (root, { props, trigger, watch }) => {
  const { h, picture, empty, redraw } = lm;
  function draw() {
    const v = props.value || { pictures: [], page: 0, pages: 1, total: 0 };
    lm.pictures = v.total;
    lm.nothingOpen?.();
    const turn = (step) => h("button", { class: "lm-button lm-quiet", disabled: v.page + step < 0 || v.page + step >= v.pages, onclick: () => trigger("turn", { page: v.page + step }) }, lm.turning(step, "Newer", "Older"));
    redraw(root,
      h("div", { class: "lm-panel-head" }, h("span", { class: "lm-count" }, `${v.total} picture${v.total === 1 ? "" : "s"}`), h("span", { class: "lm-space" }),
        v.pages > 1 && [turn(-1), h("span", { class: "lm-count" }, `${v.page + 1} / ${v.pages}`), turn(1)]),
      v.pictures.length ? h("div", { class: "lm-shots" }, v.pictures.map((each) => h("button", { class: "lm-shot", "data-id": each.id, "aria-label": `Open picture ${each.id}`,
        onclick: () => trigger("open", { id: each.id }) }, picture(each.thumb, each.id, `lm-cover${each.id.endsWith("-sheet") ? " lm-whole" : ""}`))))
        : empty("No pictures yet", "Every picture that you make is kept here, with its mix inside the PNG."));
  }
  root.addEventListener("keydown", (e) => {
    const all = [...root.querySelectorAll(".lm-shot")], at = all.indexOf(document.activeElement);
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (at < 0 || !by) return;
    e.preventDefault();
    all[Math.min(all.length - 1, Math.max(0, at + by))].focus();
  });
  lm.galleryFresh = () => trigger("fresh", { page: props.value?.page || 0 });
  watch("value", draw);
  draw();
};

lm.parts.shot = (root, { props, trigger, server, watch }) => {
  const { h, picture, empty, reveal, bytes } = lm;
  lm.serve(server);
  // What a picture names and is not here: a site is asked by hash, when the person says so and not before.
  function elsewhere(v) {
    const list = h("ul", { class: "lm-slots", "aria-live": "polite" }), token = lm.store.token;
    const button = h("button", { class: "lm-button", onclick: async () => {
      button.disabled = true;
      const answer = await lm.ask("ask_site", { token, adapters: v.missing });
      button.disabled = false;
      if (!answer) return;
      const known = new Map(answer.found.map((each) => [each.name, each]));
      list.replaceChildren(...v.missing.map(({ name }) => line(name, known.get(name))));
    } }, `Ask ${v.site} for what is missing`);
    function line(name, each) {
      if (!each) return h("li", { class: "lm-missing" }, `${name}: not known there`);
      const fetch = h("button", { class: "lm-button", disabled: !each.digits, "aria-label": `Get it: ${name}`, onclick: async () => {
        fetch.disabled = true;
        fetch.textContent = "Coming …";
        const got = await lm.ask("get_from_site", { token, name, digits: each.digits });
        fetch.textContent = got ? "It is here" : "Get it";
        fetch.disabled = !!got;
        if (got) { lm.arrived(got.ids); lm.cardsFresh?.(); }
      } }, "Get it");
      return h("li", {}, h("div", {}, `${name}: ${each.about}`, each.bytes > 0 && ` · ${bytes(each.bytes)}`), each.licence && h("div", { class: "lm-sub" }, each.licence),
        h("div", { class: "lm-line" }, fetch, /^https?:\/\//.test(each.page) && h("a", { class: "lm-button lm-quiet", href: each.page, target: "_blank", rel: "noopener noreferrer" }, "Its page")));
    }
    return h("div", { class: "lm-elsewhere" }, button, h("p", { class: "lm-hint" }, "Only their hashes are sent."), list);
  }
  // Into the trash, and back from there: a click is never the end of a picture.
  async function remove(v) {
    const found = await lm.ask("remove_picture", v.id);
    if (!found) return;
    lm.gone.add(v.id);
    lm.stripDrop?.(v.id);
    props.value = null;
    draw();
    lm.galleryFresh?.();
    const back = async () => {
      const again = await lm.ask("restore_picture", v.id);
      if (!again) return;
      lm.gone.delete(v.id);
      props.value = v;
      draw();
      lm.galleryFresh?.();
    };
    lm.history.push(back);
    lm.say("The picture is in the trash.", { undo: lm.history.back });
  }
  // Where the pictures stand depends on the width, and whether there are any on what was made.
  lm.nothingOpen = () => {
    if (!props.value) root.replaceChildren(empty("No picture open", `${lm.pictures ? "Choose one of the pictures, or drop" : "Drop"} one from here or another program into the field to get its settings back.`));
  };
  function draw() {
    const v = props.value;
    if (!v) return lm.nothingOpen();
    root.replaceChildren(h("section", { class: "lm-shotbox", "aria-label": "Picture and settings" },
      v.url && picture(v.url, v.prompt || "grid", "lm-final"),
      v.title && h("h3", {}, v.title),
      v.prompt && h("p", { class: "lm-prompt" }, v.prompt),
      v.negative && h("p", { class: "lm-sub" }, `Negative: ${v.negative}`),
      (v.facts || []).length > 0 && h("dl", { class: "lm-facts" }, v.facts.map(([key, text]) => [h("dt", {}, key), h("dd", {}, text)]), v.sheet ? null : [h("dt", {}, "Mix"), h("dd", {}, v.mix || "base")]),
      (v.slots || []).length > 0 && h("ul", { class: "lm-slots" }, v.slots.map((slot) => h("li", { class: slot.ok ? "" : "lm-missing" }, slot.text))),
      (v.notes || []).map((note) => h("p", { class: "lm-problem" }, note)),
      v.missing?.length > 0 && elsewhere(v),
      h("div", { class: "lm-line" },
        v.id && !v.sheet && h("button", { class: "lm-button lm-main", onclick: () => { lm.snapshot.take(); trigger("use", { id: v.id }); } }, "Use these settings"),
        v.url && h("a", { class: "lm-button lm-quiet", href: v.url, download: `${v.id}.png` }, "Download"),
        v.id && h("button", { class: "lm-button lm-quiet", onclick: () => remove(v) }, "Delete"))));
    reveal(root);
  }
  watch("value", draw);
  draw();
};

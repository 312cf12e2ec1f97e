// What a picture is made with beside the mix and Gradio's fields: model, sampler, clip skip, and what it starts from. The
// browser owns it, as it owns the mix; a copy goes along with each request.
lm.parts.more = (root, { props, server, watch }) => {
  const { h, ask, say, redraw } = lm;
  const PLAIN = { ...props.plain }; // what nothing is said of
  let now = { ...PLAIN }, facts = { models: [], samplers: {}, schedules: [], defaults: props.built || {} }, start = null, guide = null, stamp = "";
  lm.serve(server);

  function put(given) {
    now = Object.fromEntries(Object.keys(PLAIN).map((key) => [key, given?.[key] ?? PLAIN[key]]));
    commit();
    start = guide = null;
    if (now.start) show(now.start);
    if (now.guide) showGuide(now.guide);
    draw();
  }
  function commit() {
    props.value = { ...now };
    lm.store.put("more", now);
  }
  function change(given, again = true) {
    const before = { ...now };
    lm.history.push(() => put(before));
    Object.assign(now, given);
    commit();
    if (again) draw();
  }
  async function show(digest) {
    const found = await ask("start_shown", digest);
    if (digest !== now.start) return;
    if (!found) { now.start = now.inpaint = ""; commit(); } // gone from the server: it has said so
    start = found;
    draw();
  }
  async function showGuide(digest) {
    const found = await ask("start_shown", digest);
    if (digest !== now.guide) return;
    if (!found) { now.guide = ""; commit(); }
    guide = found;
    draw();
  }
  async function follow(asked) {
    const found = await ask("start_from", asked);
    if (!found) return;
    change({ guide: found.digest });
    guide = found;
    draw();
    lm.draft?.();
  }
  async function startFrom(asked) {
    const found = await ask("start_from", asked);
    if (!found) return;
    lm.snapshot.take();
    start = found;
    Object.assign(now, { start: found.digest, inpaint: "" });
    commit();
    draw();
    // as large as it is, within what models like: another shape would press it together
    const most = Math.max(...(facts.kit?.size || [512, 512])), scale = Math.min(1, most / Math.min(...found.size), 2048 / Math.max(...found.size));
    const [wide, high] = found.size.map((side) => Math.max(props.least_side, Math.round((side * scale) / 8) * 8));
    lm.fields.set("width", String(wide));
    lm.fields.set("height", String(high));
    lm.snapshot.push();
    lm.tabs.open("make");
    say(`The next pictures start from this one, ${wide} × ${high}.`, { undo: lm.history.back });
    root.scrollIntoView({ block: "nearest" });
  }
  // A picture of the person's own: made smaller here, so that a photo does not travel whole.
  function fromFile(file, use = startFrom) {
    const image = new Image();
    image.onerror = () => say("This is not a picture that the browser can read.", { bad: true });
    image.onload = () => {
      const scale = Math.min(1, 1536 / Math.max(image.naturalWidth, image.naturalHeight));
      const canvas = h("canvas", { width: Math.max(8, Math.round(image.naturalWidth * scale)), height: Math.max(8, Math.round(image.naturalHeight * scale)) });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      URL.revokeObjectURL(image.src);
      use({ address: canvas.toDataURL("image/png") });
    };
    image.src = URL.createObjectURL(file);
  }

  const option = (value, label, chosen) => h("option", { value, selected: value === chosen }, label);
  function choice(id, label, value, options, onchange, more = {}) {
    const known = options.some(([each]) => each === value) ? options : [...options, [value, value]];
    return h("label", { class: "lm-setting", id }, h("span", {}, label), h("select", { class: "lm-input", "aria-label": label, onchange: (e) => onchange(e.target.value), ...more }, known.map(([each, text]) => option(each, text, value))));
  }
  function draw() {
    const schedules = facts.samplers[now.sampler] || facts.schedules;
    const share = (id, label, key, least) => {
      const out = h("output", {}, now[key].toFixed(2));
      return h("span", { class: "lm-setting lm-strength", id }, h("span", {}, label),
        h("input", { type: "range", min: least, max: 1, step: 0.05, value: now[key], "aria-label": label, style: `--at:${now[key] * 100}%`,
          oninput: (e) => { e.target.style.setProperty("--at", `${e.target.value * 100}%`); out.textContent = Number(e.target.value).toFixed(2); },
          onchange: (e) => { change({ [key]: Number(e.target.value) }, false); lm.draft?.(); } }), out);
    };
    const chosen = (use) => h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true, onchange: (e) => { if (e.target.files[0]) fromFile(e.target.files[0], use); } });
    const file = chosen(startFrom), guideFile = chosen(follow);
    redraw(root,
      h("div", { class: "lm-settingsrow" },
        choice("model", "Model", facts.loading ? "" : facts.key || "", facts.loading ? [["", `${facts.loading} is being loaded`]] : facts.models, (key) => changeModel(key), { disabled: !!facts.loading || facts.models.length < 2, title: facts.models.length < 2 ? "Start with --models FOLDER to choose among others" : "For everybody who has this page open" }),
        choice("sampler", "Sampler", now.sampler, [["", "the model's own"], ...Object.keys(facts.samplers).filter(Boolean).map((name) => [name, name])],
          (sampler) => { change({ sampler, schedule: !now.schedule || (facts.samplers[sampler] || []).includes(now.schedule) ? now.schedule : "" }); lm.draft?.(); }),
        choice("schedule", "Schedule", now.schedule, [["", "the sampler's own"], ...schedules.map((word) => [word, word.replace(/_/g, " ")])], (schedule) => { change({ schedule }); lm.draft?.(); }),
        choice("clip-skip", "Clip skip", String(now.clip_skip), [[String(PLAIN.clip_skip), `${PLAIN.clip_skip} (none)`], ...[1, 2, 3].map((n) => String(PLAIN.clip_skip + n)).map((n) => [n, n])], (n) => { change({ clip_skip: Number(n) }); lm.draft?.(); })),
      facts.broken && h("p", { class: "lm-problem", role: "alert" }, facts.broken),
      h("div", { class: "lm-startrow", role: "group", "aria-label": "What it starts from" },
        now.start ? [start && lm.picture(start.png, "What it starts from", "lm-startpic"), share("strength", "Change", "strength", 0.05),
          h("button", { class: "lm-button lm-quiet", onclick: paint, disabled: !start }, now.inpaint ? "Paint again what changes" : "Only a part"),
          now.inpaint && h("button", { class: "lm-button lm-quiet", onclick: () => change({ inpaint: "" }) }, "All of it"),
          h("button", { class: "lm-button lm-quiet", onclick: () => { change({ start: "", inpaint: "" }); start = null; } }, "Start from noise")]
          : [h("span", { class: "lm-hint" }, "Starts from noise."), h("button", { class: "lm-button lm-quiet", onclick: () => file.click() }, "Start from a picture"), file]),
      (facts.guided || now.guide) && h("div", { class: "lm-startrow", id: "guide", role: "group", "aria-label": "What it follows" },
        now.guide ? [guide && lm.picture(guide.png, "What it follows", "lm-startpic"), share("guide-scale", "How closely", "guide_scale", 0),
          h("button", { class: "lm-button lm-quiet", onclick: () => { change({ guide: "" }); guide = null; lm.draft?.(); } }, "Follow none")]
          : [h("span", { class: "lm-hint" }, "Follows no picture."), h("button", { class: "lm-button lm-quiet", title: "Its style or its subject, by the model's IP-Adapter", onclick: () => guideFile.click() }, "Follow a picture"),
            h("button", { class: "lm-button lm-quiet", onclick: () => { const shown = lm.shownPicture?.().match(/([\w-]+)\.png$/); shown ? follow({ picture: shown[1] }) : say("No picture is shown yet."); } }, "Follow the one shown"), guideFile]));
    root.ondragover = (e) => { if (e.dataTransfer.types.includes("Files")) e.preventDefault(); };
    root.ondrop = (e) => { const [given] = e.dataTransfer.files; if (given) { e.preventDefault(); fromFile(given); } };
  }
  function paint() {
    lm.paint({ key: `start ${now.start}`, title: "What is made anew", mask: now.inpaint, size: start.size, behind: start.png,
      hint: "Paint what is made anew; the rest of the picture stays.", use: (digest) => { change({ inpaint: digest }); lm.draft?.(); } });
  }

  // --- what somebody who is new here can click ---
  function begin(prompt, mix = null) {
    lm.snapshot.take();
    if (mix) lm.mix.put(mix);
    lm.fields.set("prompt", prompt);
    lm.snapshot.push();
    document.querySelector("#make-button")?.click();
  }
  lm.firstScreen = () => {
    const { subjects, mixes } = facts.first || {};
    if (!subjects) return null;
    return h("div", { class: "lm-first" },
      h("h2", {}, "What shall it be?"),
      h("div", { class: "lm-chips" }, subjects.map((each) => h("button", { class: "lm-chip", onclick: () => begin(each) }, each))),
      mixes.length > 0 && [h("h3", {}, "Or a mix of styles"),
        h("div", { class: "lm-line" }, mixes.map((each) => h("button", { class: "lm-button", title: `${each.mix} · ${each.prompt}`, onclick: async () => {
          const found = await ask("from_text", each.mix);
          if (found) begin(each.prompt, found);
        } }, each.title)))],
      h("h3", {}, "Your own model"),
      h("ol", {}, h("li", {}, facts.models.length > 1 ? "Choose it under Model, below." : ["Start with ", h("code", {}, "lora-mixer ui --model FILE_OR_FOLDER"), " (a checkpoint, a diffusers folder or a Hub repository)."]),
        h("li", {}, h("button", { class: "lm-button lm-quiet", onclick: () => { lm.tabs.open("library"); document.querySelector("#library-add [aria-expanded=false]")?.click(); } }, "Drop your LoRAs into the Library"))));
  };

  // --- the model: one for all sessions ---
  let wish = null; // what this person asked for: a step of the history once it is so
  async function changeModel(key, undone = false) {
    const before = facts.key;
    const found = await ask("change_model", { token: lm.store.token, key });
    if (!found) return draw();
    wish = undone ? null : { before, key };
    facts = { ...facts, broken: "", loading: facts.models.find(([each]) => each === key)?.[1] || "The model" };
    draw();
    setTimeout(look, 400);
  }
  async function look() {
    const found = await ask("model");
    if (!found) return;
    const before = facts;
    facts = found;
    for (const [name, value] of Object.entries(found.defaults)) // what nobody changed follows the model
      if (before.defaults[name] !== value && Number(lm.fields.get(name)) === before.defaults[name]) lm.fields.set(name, String(value));
    if (!before.number || before.number !== found.number || before.loading !== found.loading) lm.mix?.model(found.kit);
    if (before.number && before.number !== found.number) {
      lm.cardsFresh?.();
      if (wish?.key === found.key) { const { before: former } = wish; lm.history.push(() => changeModel(former, true)); }
      say(`Pictures are made with ${found.title} now.`);
    }
    draw();
    lm.drawStage?.();
    if (found.loading) setTimeout(look, 700);
    else wish = null;
  }
  lm.fields.there().then(() => {
    lm.whenChanged("model", look);
    look();
  });

  watch("value", () => {
    const given = props.value;
    if (!given?.stamp || given.stamp === stamp) return;
    stamp = given.stamp;
    put(given);
  });
  lm.more = { startFrom, put, get value() { return { ...now }; } };
  const kept = lm.store.before?.more;
  if (kept) put(kept);
  else draw();
};

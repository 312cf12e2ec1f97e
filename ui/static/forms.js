// Fields of Compare and Export: kept in the browser as those of the Make page are, and with a way back.
lm.parts.form = (root, { props }) => {
  const { h } = lm, key = `form ${props.kept_as}`, inputs = new Map(), labels = new Map();
  const kept = lm.store.get(key);
  const now = Object.fromEntries(props.fields.map((field) => [field.id, kept && field.id in kept ? kept[field.id] : field.value ?? ""]));
  // some fields belong to one choice of another, and are seen beside it alone
  function show() {
    for (const { id, only } of props.fields) if (only) labels.get(id).style.display = [only.value].flat().includes(now[only.field]) ? "" : "none";
  }
  function put(id, value) {
    now[id] = value;
    props.value = { ...now };
    lm.store.put(key, now);
    show();
  }
  function take(id, value) {
    const before = now[id];
    if (value === before) return;
    lm.history.push(() => { put(id, before); inputs.get(id).value = before; });
    put(id, value);
  }
  // Emptied by who used it.
  (lm.forms ||= {})[props.kept_as] = { clear(id) { put(id, ""); inputs.get(id).value = ""; } };
  const option = (value, label = value) => h("option", { value }, label);
  function draw(field) {
    const options = { class: "lm-input", "aria-label": field.label, placeholder: field.placeholder };
    const input = field.kind === "select" || field.kind === "adapter" ? h("select", options, (field.choices || []).map((each) => option(each)))
      : field.kind === "number" ? h("input", { ...options, type: "number", min: field.min, max: field.max, step: field.step || 1 })
        : field.kind === "lines" ? h("textarea", { ...options, rows: 1 }) : h("input", { ...options, type: "text", maxlength: field.longest });
    // typing is one step, which ends where the field is left; what is asked for meanwhile has the newest value
    let before = null;
    input.addEventListener("input", () => { before ??= now[field.id]; put(field.id, input.value); });
    input.addEventListener("change", () => {
      const value = input.value;
      if (before !== null) now[field.id] = before;
      before = null;
      take(field.id, value);
    });
    inputs.set(field.id, input);
    input.value = now[field.id];
    const label = h("label", { class: "lm-setting", id: field.id, title: field.hint, style: `flex:${field.wide || 1} 1 ${field.least || 110}px` }, h("span", {}, field.label), input, field.told && h("small", { class: "lm-sub" }, field.hint));
    labels.set(field.id, label);
    return label;
  }
  const rows = [...new Set(props.fields.map((field) => field.row || 0))];
  root.replaceChildren(...rows.map((row) => {
    const inside = props.fields.filter((field) => (field.row || 0) === row), line = h("div", { class: "lm-formrow" }, inside.map(draw)), { fold } = inside[0];
    // what was put into a fold is seen when one comes back
    return fold ? h("details", { class: "lm-foldin lm-formfold", open: inside.some((field) => now[field.id] !== (field.value ?? "")) }, h("summary", {}, fold), line) : line;
  }));
  show();
  // Adapters to choose from are those of the mix.
  lm.whenMix((mixed) => props.fields.filter((field) => field.kind === "adapter").forEach((field) => {
    const input = inputs.get(field.id), names = mixed.map((row) => row.name);
    if (!names.includes(now[field.id]) && (now[field.id] || names.length)) put(field.id, names[0] || "");
    if (names.join("\n") !== [...input.options].map((each) => each.value).join("\n")) input.replaceChildren(...names.map((name) => option(name)));
    input.value = now[field.id];
  }));
  props.value = { ...now };
};

// What was not taken, in the words of the server.
lm.parts.refusals = (root, { props, watch }) => {
  const draw = () => root.replaceChildren(...(props.value ? [lm.h("div", { class: "lm-error", role: "alert" }, `Not added:\n${props.value}`)] : []));
  watch("value", draw);
  draw();
};

// What handlers say of what they did, and what could not be: one voice, at the field where it stands.
lm.parts.voice = (root, { props, watch }) => {
  let stamp = "";
  watch("value", () => {
    const given = props.value;
    if (!given?.stamp || given.stamp === stamp) return;
    stamp = given.stamp;
    given.message ? lm.fault(given.message, given.field) : lm.say(given.said);
  });
};

// A head whose column is open or shut.
lm.parts.fold = (root, { props }) => {
  const { h } = lm, column = root.closest(".column");
  const button = h("button", { class: "lm-foldhead", "aria-expanded": "false", onclick: () => {
    const open = column.classList.toggle("lm-unfolded");
    button.setAttribute("aria-expanded", String(open));
  } }, props.words);
  column.classList.add("lm-folding");
  root.replaceChildren(button);
};

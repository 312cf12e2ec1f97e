// Depth and time of one row: block weights as sliders, the schedule as a curve that the server computes.
lm.blocksEditor = (row, kit, change) => {
  const { h } = lm;
  const body = h("div", {});
  const tree = kit.tree; // [["down 0", ["down", "block_0"]], ["mid", ["mid"]], ...]
  const sides = [...new Set(tree.map(([, [side]]) => side))]; // down, mid and up of a UNet, double and single of a transformer
  const isTree = (blocks) => blocks && typeof blocks === "object" && !Array.isArray(blocks) && Object.keys(blocks).every((key) => sides.includes(key));
  const get = (blocks, path) => path.reduce((at, key) => (typeof at === "number" ? at : at?.[key]), blocks);
  const grown = (value) => { const found = {}; tree.forEach(([, path], at) => { const [side, block] = path; if (block) (found[side] ||= {})[block] = value(path, at); else found[side] = value(path, at); }); return found; };
  const flat = (blocks) => tree.map(([, path]) => { const value = get(blocks, path); return typeof value === "number" ? value : 1; });
  const name = () => Array.isArray(row.blocks) ? `sliders ${row.blocks.length}` : isTree(row.blocks) ? "tree" : row.blocks && typeof row.blocks === "object" ? "custom" : row.blocks || "";
  const pick = h("select", { class: "lm-input", "aria-label": `${row.title}: blocks`, onchange: (e) => {
    const chosen = e.target.value, from = row.blocks;
    change("blocks", () => {
      if (chosen.startsWith("sliders ")) {
        const length = Number(chosen.slice(8)), known = typeof from === "string" ? kit.presets[from] : from;
        row.blocks = Array.isArray(known) && known.length === length ? [...known] : Array(length).fill(1);
      } else if (chosen === "tree") row.blocks = grown(() => 1);
      else if (chosen.startsWith("only ")) row.blocks = grown(([side]) => (side === chosen.slice(5) ? 1 : 0));
      else if (chosen !== "custom") row.blocks = chosen || null;
    });
    draw();
    lm.draft?.();
  } },
    h("option", { value: "" }, "all layers alike"),
    tree.length > 0 && [h("option", { value: "tree" }, `${tree.length} sliders by block`), sides.map((side) => h("option", { value: `only ${side}` }, `${side} blocks only`))],
    kit.counts.map((count) => h("option", { value: `sliders ${count}` }, `${count} LBW sliders`)),
    Object.keys(kit.presets).map((preset) => h("option", { value: preset }, preset)),
    kit.forms.map((form) => h("option", { value: form }, form)),
    row.blocks && typeof row.blocks === "object" && !Array.isArray(row.blocks) && !isTree(row.blocks) && h("option", { value: "custom" }, "custom"));

  function sliders(values, ids, set) {
    body.replaceChildren(h("div", { class: "lm-blocks" }, values.map((value, at) => {
      const shown = h("output", {}, lm.number(value));
      return h("label", { class: "lm-block" }, shown, h("input", { type: "range", class: "lm-tall", min: -1, max: 2, step: 0.05, value, "aria-label": `${row.title}: ${ids[at]}`,
        oninput: (e) => {
          const next = Number(e.target.value);
          change(`${row.name} blocks`, () => set(at, next));
          pick.value = name();
          shown.textContent = lm.number(next);
        }, onchange: () => lm.draft?.() }), h("span", {}, ids[at]));
    })));
  }
  function draw() {
    pick.value = name();
    const values = Array.isArray(row.blocks) ? row.blocks : kit.presets[row.blocks];
    if (values) return sliders(values, kit.ids[values.length], (at, next) => { if (!Array.isArray(row.blocks)) row.blocks = [...values]; row.blocks[at] = next; });
    if (!isTree(row.blocks) || !tree.length) return body.replaceChildren();
    const now = flat(row.blocks);
    sliders(now, tree.map(([label]) => label), (at, next) => { now[at] = next; row.blocks = grown((_, index) => now[index]); });
  }
  draw();
  return h("fieldset", {}, h("legend", {}, "Blocks"), pick, body);
};

lm.scheduleEditor = (row, kit, change, server) => {
  const { h, later } = lm;
  const curve = h("div", { class: "lm-curve" });
  const input = h("input", { type: "text", class: "lm-input", placeholder: "constant, or 0@0, 1@0.5", value: row.schedule || "", "aria-label": `${row.title}: schedule`,
    oninput: (e) => set(e.target.value) });
  const shapes = h("select", { class: "lm-input", "aria-label": `${row.title}: shape of the schedule`, onchange: (e) => { input.value = e.target.value; set(e.target.value); } },
    kit.shapes.map(([label, text]) => h("option", { value: text }, label)), h("option", { value: "?" , hidden: true }, "own"));
  const ask = later(150, async () => {
    const text = row.schedule || "";
    const found = await lm.ask("curve", text);
    if (!found || text !== (row.schedule || "")) return;
    curve.replaceChildren(found.problem ? h("p", { class: "lm-problem" }, found.problem) : plot(found.points));
  });
  function set(text) {
    change(`${row.name} schedule`, () => { row.schedule = text; });
    show();
  }
  function show() {
    shapes.value = kit.shapes.some(([, text]) => text === (row.schedule || "")) ? row.schedule || "" : "?";
    ask();
  }
  function plot(points) {
    const high = Math.max(1, ...points), low = Math.min(0, ...points);
    const x = (at) => 6 + (at / Math.max(1, points.length - 1)) * 288, y = (value) => 66 - ((value - low) / (high - low)) * 56;
    const path = points.map((value, at) => `${at ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join(" ");
    return h("svg", { viewBox: "0 0 300 76", role: "img", "aria-label": `Schedule: from ${lm.number(points[0])} to ${lm.number(points.at(-1))}` },
      h("line", { x1: 6, x2: 294, y1: y(0), y2: y(0), class: "lm-axis" }), h("line", { x1: 6, x2: 294, y1: y(1), y2: y(1), class: "lm-axis lm-dash" }),
      h("path", { d: `${path} L${x(points.length - 1)} ${y(0)} L${x(0)} ${y(0)} Z`, class: "lm-fill" }), h("path", { d: path, class: "lm-stroke" }));
  }
  show();
  return h("fieldset", {}, h("legend", {}, "Schedule"), h("div", { class: "lm-line" }, shapes, input), curve);
};

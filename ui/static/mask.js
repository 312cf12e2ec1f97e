// A mask painted over the last picture, inside the row that it is for.
lm.maskEditor = (row, kit, change, trigger) => {
  const { h } = lm;
  const [wide, high] = kit.size;
  const scale = Math.min(1, 512 / Math.max(wide, high));
  const canvas = h("canvas", { width: Math.max(8, Math.round(wide * scale)), height: Math.max(8, Math.round(high * scale)), class: "lm-paint", "aria-label": `${row.title}: mask` });
  const pen = canvas.getContext("2d");
  const size = h("input", { type: "range", min: 2, max: 100, value: 24, "aria-label": `${row.title}: brush size`, style: "--at:24%",
    oninput: (e) => e.target.style.setProperty("--at", `${e.target.value}%`) });
  const erase = h("input", { type: "checkbox", "aria-label": `${row.title}: erase` });
  let last = null;

  function dab(event) {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * canvas.width, y = ((event.clientY - box.top) / box.height) * canvas.height;
    pen.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = "#fff";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = (Number(size.value) / 100) * Math.max(canvas.width, canvas.height);
    pen.beginPath();
    pen.moveTo(...(last || [x, y]));
    pen.lineTo(x, y + 0.01);
    pen.stroke();
    last = [x, y];
  }
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); last = null; dab(event); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) dab(event); });
  canvas.addEventListener("pointerup", () => { last = null; });

  function fill(work) {
    pen.globalCompositeOperation = "source-over";
    pen.fillStyle = "#fff";
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (work) pen.fillRect(...work);
  }
  const half = [["Left", [0, 0, canvas.width / 2, canvas.height]], ["Right", [canvas.width / 2, 0, canvas.width / 2, canvas.height]],
    ["Top", [0, 0, canvas.width, canvas.height / 2]], ["Bottom", [0, canvas.height / 2, canvas.width, canvas.height / 2]]];

  function use() {
    const flat = document.createElement("canvas");
    flat.width = canvas.width;
    flat.height = canvas.height;
    const to = flat.getContext("2d");
    to.fillStyle = "#000";
    to.fillRect(0, 0, flat.width, flat.height);
    to.drawImage(canvas, 0, 0);
    trigger("mask", { name: row.name, png: flat.toDataURL("image/png") });
  }

  const shown = document.querySelector("#job .lm-final")?.getAttribute("src");
  const behind = shown ? lm.picture(shown, "", "lm-behind") : null;
  const surface = h("div", { class: "lm-surface", style: `aspect-ratio:${wide}/${high}` }, behind, canvas);
  const tools = h("div", { class: "lm-masktools", hidden: true }, h("p", { class: "lm-hint" }, "Paint where the adapter works, over the last picture."), surface,
    h("div", { class: "lm-slider" }, h("span", {}, "Brush"), size, h("label", { class: "lm-field" }, erase, "erase")),
    h("div", { class: "lm-line" }, half.map(([label, box]) => h("button", { class: "lm-chip", "aria-label": `${row.title}: ${label.toLowerCase()} half`, onclick: () => fill(box) }, label)),
      h("button", { class: "lm-chip", "aria-label": `${row.title}: clear the mask`, onclick: () => fill(null) }, "Clear")),
    h("button", { class: "lm-button lm-main", onclick: use }, "Use this mask"));
  const open = h("button", { class: "lm-button", onclick: () => { tools.hidden = !tools.hidden; } }, row.mask ? "Paint again" : "Paint a mask");
  return h("fieldset", {}, h("legend", {}, "Mask"),
    row.mask
      ? h("div", { class: "lm-line" }, h("span", { class: "lm-mark" }, `painted ${row.mask.slice(0, 6)}`),
          h("label", { class: "lm-field" }, h("span", {}, "feather"), h("input", { type: "number", class: "lm-number", min: 0, step: 1, value: row.feather || 0,
            "aria-label": `${row.title}: feather`, oninput: (e) => change(`${row.name} feather`, () => { row.feather = Number(e.target.value) || 0; }) })),
          h("button", { class: "lm-button lm-quiet", onclick: () => change("mask", () => { row.mask = ""; }, true) }, "Remove mask"), open)
      : h("div", { class: "lm-line" }, h("span", { class: "lm-hint" }, "Works everywhere."), open),
    tools);
};

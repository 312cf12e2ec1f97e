// A mask: painted over the picture in a window of its own, which keeps what is painted until it is used.
// A small picture of a mask, which never changes under its digest.
lm.maskThumb = (() => {
  const known = new Map();
  return (digest) => {
    const box = lm.h("span", { class: "lm-maskthumb" });
    if (!known.has(digest)) known.set(digest, lm.ask("mask_png", digest).then((found) => found?.png || ""));
    known.get(digest).then((png) => png && box.replaceChildren(lm.picture(png, "The mask", "lm-small")));
    return box;
  };
})();
lm.maskEditor = (row, kit, change) => {
  const { h } = lm;
  const thumb = row.mask && lm.maskThumb(row.mask);
  const open = h("button", { class: "lm-button", onclick: () => lm.paintMask(row.name, kit) }, row.mask ? "Paint again" : "Paint a mask");
  return h("fieldset", {}, h("legend", {}, "Mask"),
    row.mask
      ? h("div", { class: "lm-line" }, thumb, h("span", { class: "lm-mark" }, `painted ${row.mask.slice(0, 6)}`),
          h("label", { class: "lm-field" }, h("span", {}, "feather"), h("input", { type: "number", class: "lm-number", min: 0, step: 1, value: row.feather || 0,
            "aria-label": `${row.title}: feather`, oninput: (e) => change(`${row.name} feather`, () => { row.feather = Number(e.target.value) || 0; }) })),
          h("button", { class: "lm-button lm-quiet", onclick: () => change("mask", () => { row.mask = ""; }, true) }, "Remove mask"), open)
      : h("div", { class: "lm-line" }, h("span", { class: "lm-hint" }, "Works everywhere."), open));
};

// A row's mask; the window itself knows no rows.
lm.paintMask = (name, kit) => {
  const row = lm.mix.rows.find((each) => each.name === name);
  if (!row) return;
  lm.paint({
    key: `row ${name}`, title: row.title, mask: row.mask, size: lm.shownSize?.() || kit.size, behind: lm.shownPicture?.(), feather: row.feather || 0,
    hint: "Paint where the adapter works, over the picture that is shown.", empty: "Paint where the adapter works. Make a picture first to paint over it.",
    use(digest, feather) {
      const now = lm.mix.rows.find((each) => each.name === name);
      if (now) lm.mix.change("mask", () => { now.mask = digest; now.feather = feather; }, true);
      lm.draft?.();
    },
  });
};

lm.paint = (() => {
  const { h } = lm;
  const COLOUR = "#ff2d9b"; // seen on white, on black and on skin
  // Strokes of a window that was closed, or was open when the page was loaded again, by what it is for.
  const KEY = "lora-mixer-strokes";
  const unfinished = new Map((() => { try { return Object.entries(JSON.parse(sessionStorage.getItem(KEY)) || {}); } catch { return []; } })());
  const note = () => { try { sessionStorage.setItem(KEY, JSON.stringify(Object.fromEntries(unfinished))); } catch { /* full, or switched off */ } };
  return ({ key, title, mask, size: [wide, high], behind, feather: softness = null, hint, empty, use: done_with }) => {
    const scale = Math.min(1, 1024 / Math.max(wide, high), Math.max(1, 512 / Math.max(wide, high)));
    const canvas = h("canvas", { width: Math.max(8, Math.round(wide * scale)), height: Math.max(8, Math.round(high * scale)), class: "lm-paint", "aria-label": `${title}: mask`, tabindex: 0 });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    const size = h("input", { type: "range", min: 2, max: 100, value: 24, "aria-label": `${title}: brush size`, style: "--at:24%",
      oninput: (e) => e.target.style.setProperty("--at", `${e.target.value}%`) });
    const erase = h("input", { type: "checkbox", "aria-label": `${title}: erase` });
    const feather = h("input", { type: "number", class: "lm-number", min: 0, step: 1, value: softness || 0, "aria-label": `${title}: feather of the mask`, oninput: soften });
    const past = [];
    let last = null;

    const keep = () => { past.push(pen.getImageData(0, 0, canvas.width, canvas.height)); if (past.length > 30) past.shift(); back.disabled = false; };
    function soften() {
      const pixels = Math.max(0, Number(feather.value) || 0) * (canvas.getBoundingClientRect().width / wide || 1);
      canvas.style.filter = pixels ? `blur(${pixels.toFixed(1)}px)` : "";
    }
    function dab(event) {
      const box = canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * canvas.width, y = ((event.clientY - box.top) / box.height) * canvas.height;
      pen.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
      pen.strokeStyle = COLOUR;
      pen.lineCap = pen.lineJoin = "round";
      pen.lineWidth = (Number(size.value) / 100) * Math.max(canvas.width, canvas.height) * 0.5;
      pen.beginPath();
      pen.moveTo(...(last || [x, y]));
      pen.lineTo(x, y + 0.01);
      pen.stroke();
      last = [x, y];
    }
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); keep(); last = null; dab(event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) dab(event); });
    canvas.addEventListener("pointerup", () => { last = null; });
    const undo = () => { const image = past.pop(); if (image) pen.putImageData(image, 0, 0); back.disabled = !past.length; };
    const back = h("button", { class: "lm-button lm-quiet", "aria-label": "Undo the last stroke", disabled: true, onclick: undo }, "↶ Undo");

    function fill(...box) {
      keep();
      pen.globalCompositeOperation = "source-over";
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.fillStyle = COLOUR;
      if (box.length) pen.fillRect(...box);
    }
    function invert() {
      keep();
      pen.globalCompositeOperation = "source-out";
      pen.fillStyle = COLOUR;
      pen.fillRect(0, 0, canvas.width, canvas.height);
    }
    // A picture's grey values, as they are in the file, as the paint that covers it.
    function load(source) {
      const image = new Image();
      image.onload = () => {
        const flat = h("canvas", { width: canvas.width, height: canvas.height }), to = flat.getContext("2d");
        to.drawImage(image, 0, 0, flat.width, flat.height);
        const data = to.getImageData(0, 0, flat.width, flat.height);
        for (let at = 0; at < data.data.length; at += 4) {
          const grey = 0.299 * data.data[at] + 0.587 * data.data[at + 1] + 0.114 * data.data[at + 2];
          data.data.set([0xff, 0x2d, 0x9b, (grey * data.data[at + 3]) / 255], at);
        }
        pen.putImageData(data, 0, 0);
      };
      image.src = source;
    }
    // White where it is painted, on black, as masks are in files.
    function flat() {
      const made = h("canvas", { width: canvas.width, height: canvas.height }), to = made.getContext("2d");
      const from = pen.getImageData(0, 0, canvas.width, canvas.height), data = to.createImageData(canvas.width, canvas.height);
      for (let at = 0; at < from.data.length; at += 4) {
        const value = from.data[at + 3];
        data.data.set([value, value, value, 255], at);
      }
      to.putImageData(data, 0, 0);
      return made.toDataURL("image/png");
    }
    async function use() {
      const found = await lm.ask("keep_mask", flat());
      if (!found) return;
      done_with(found.digest, Math.max(0, Number(feather.value) || 0));
      unfinished.delete(key);
      note();
      done = true;
      window_.close();
    }
    let done = false;
    const width = canvas.width, height = canvas.height;
    const part = (label, ...box) => h("button", { class: "lm-chip", "aria-label": `${title}: ${label.toLowerCase()} half`, onclick: () => fill(...box) }, label);
    const file = h("input", { type: "file", accept: "image/*", hidden: true, onchange: (e) => { if (e.target.files[0]) { keep(); load(URL.createObjectURL(e.target.files[0])); } } });
    const surface = h("div", { class: "lm-surface", style: `aspect-ratio:${wide}/${high}; --shape:${wide / high}` }, behind ? lm.picture(behind, "The picture below the mask", "lm-behind") : null, canvas);
    const window_ = h("dialog", { class: "lm-root lm-maskdialog", "aria-label": `Mask of ${title}` },
      h("div", { class: "lm-panel-head" }, h("h2", {}, `Mask of ${title}`), h("span", { class: "lm-space" }), h("button", { class: "lm-icon", "aria-label": "Close the mask", onclick: () => window_.close() }, "✕")),
      h("p", { class: "lm-hint" }, behind ? hint : empty || hint), surface,
      h("div", { class: "lm-slider" }, h("span", {}, "Brush"), size, h("label", { class: "lm-field" }, erase, "erase")),
      h("div", { class: "lm-line" }, back, part("Left", 0, 0, width / 2, height), part("Right", width / 2, 0, width / 2, height), part("Top", 0, 0, width, height / 2), part("Bottom", 0, height / 2, width, height / 2),
        h("button", { class: "lm-chip", "aria-label": `${title}: invert the mask`, onclick: invert }, "Invert"), h("button", { class: "lm-chip", "aria-label": `${title}: clear the mask`, onclick: () => fill() }, "Clear"),
        h("button", { class: "lm-chip", onclick: () => file.click() }, "From a picture"), file),
      h("div", { class: "lm-line" }, softness !== null && h("label", { class: "lm-field" }, "Feather", feather), h("span", { class: "lm-space" }), h("button", { class: "lm-button lm-main", onclick: use }, "Use this mask")));
    window_.addEventListener("keydown", (e) => { if ((e.ctrlKey || e.metaKey) && e.key === "z") { e.preventDefault(); undo(); } });
    const leave = () => { if (!done && past.length) { unfinished.set(key, canvas.toDataURL("image/png")); note(); } };
    addEventListener("pagehide", leave);
    window_.addEventListener("close", () => { leave(); removeEventListener("pagehide", leave); window_.remove(); });
    document.body.append(window_);
    window_.showModal();
    canvas.focus();
    const left = unfinished.get(key);
    if (left) {
      const image = new Image();
      image.onload = () => pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      image.src = left;
    } else if (mask) lm.ask("mask_png", mask).then((found) => found?.png && load(found.png));
    soften();
  };
})();

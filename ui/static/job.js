// Where pictures form: the one that is looked at large, this session's below it, what waits, and what is going on above.
lm.parts.job = (root, { props, trigger, watch }) => {
  const { h, picture, empty, number, redraw } = lm;
  const KEPT = 60;
  let strip = (lm.store.get("strip") || []).filter((each) => each && each.id), chosen = null, other = null, picking = false, draft = null, held = false, showing = null, problem = 0, spoken = "";

  const words = (v) => {
    const left = v.left > 0 ? ` · ${v.left < 90 ? `${Math.ceil(v.left)} s` : `${Math.round(v.left / 60)} min`} left` : "";
    if (v.state === "queued" && v.loading) return `${v.loading} is being loaded; your picture begins then`;
    if (v.state === "queued") return v.ahead ? `Waiting: ${v.ahead} ahead of you, ${v.queue} in the queue` : "Starting";
    if (v.state === "running") return `Picture ${v.number} of ${v.count} · step ${v.step} of ${v.steps}${left}`;
    if (v.state === "stopped") return "Stopped; what was finished is kept";
    if (v.state === "done") return (v.count || 1) > 1 ? `${v.count} pictures finished` : "Finished";
    return "";
  };
  // What screen readers are told: that it began, each picture, and the end; not every step.
  const news = (v) => (v.state === "running" ? `Making number ${v.number} of ${v.count}` : { queued: "In the queue", done: "The picture is there", stopped: "It was stopped" }[v.state] || "");
  const busy = (v) => v.state === "running" || v.state === "queued";

  const said = h("div", { class: "lm-hidden", role: "status", "aria-live": "polite" });
  const status = h("div", { class: "lm-status" });
  const bar = h("div", { class: "lm-bar lm-still", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0 }, h("div", {}));
  const alert = h("div", {}), canvas = h("div", { class: "lm-canvas" }), caption = h("div", { class: "lm-captions" });
  const queue = h("div", { class: "lm-queue" }), row = h("div", { class: "lm-strip", role: "group", "aria-label": "Pictures of this session" });
  const stage = h("div", { class: "lm-stage", "data-state": "idle" }, said, status, bar, alert, canvas, caption, queue, row);
  root.replaceChildren(stage);

  const at = (id) => strip.find((each) => each.id === id);
  const current = () => at(chosen) || strip.at(-1) || null;

  function take(v) {
    const fresh = (v.pictures || []).filter((each) => !at(each.id));
    if (!fresh.length) return;
    strip = [...strip, ...fresh.map((each) => ({ ...each }))].slice(-KEPT);
    chosen = null;
    draft = null;
    lm.store.put("strip", strip);
    lm.gone.forEach((id) => drop(id));
  }
  function drop(id) {
    strip = strip.filter((each) => each.id !== id);
    if (chosen === id) chosen = null;
    if (other === id) other = null;
    lm.store.put("strip", strip);
  }
  function step(by) {
    const here = strip.indexOf(current()), next = strip[Math.min(strip.length - 1, Math.max(0, here + by))];
    if (next) { chosen = next.id; draft = null; draw(); }
  }
  function large(each) {
    const box = h("dialog", { class: "lm-root lm-large-view", "aria-label": `Picture with seed ${each.seed}` },
      picture(each.url, `Picture with seed ${each.seed}`, "lm-whole"), h("button", { class: "lm-icon", "aria-label": "Close", onclick: () => box.close() }, "✕"));
    box.addEventListener("click", (e) => { if (e.target === box || e.target.tagName === "IMG") box.close(); });
    box.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!by) return;
      e.preventDefault();
      step(by);
      box.querySelector("img")?.setAttribute("src", current().url);
    });
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
  }

  function drawCanvas(v) {
    const each = current(), going = busy(v);
    const pair = other && each && at(other) && other !== each.id ? at(other) : null;
    let shown;
    if (pair) shown = lm.compareView({ ...pair, label: unlike(pair, each) }, { ...each, label: unlike(each, pair) });
    else if (going && v.preview && !chosen) shown = picture(v.preview, "Preview of the forming picture", "lm-preview");
    else if (draft && !held) shown = picture(draft.preview, "Draft", "lm-preview lm-draftpic");
    else if (each) {
      const image = picture(each.url, `Picture with seed ${each.seed}`, `lm-final${going && !chosen ? " lm-dim" : ""}`);
      shown = h("button", { class: "lm-zoom", "aria-label": "Show it large", onclick: () => large(each) }, image);
    } else if (going) shown = h("div", { class: "lm-waiting" });
    else shown = lm.firstScreen?.() || empty("Nothing made yet", "Write a prompt and press Make (Ctrl+Enter). With no adapters on you get the base picture.");
    const key = `${pair ? `${pair.id}|${each.id}` : shown.querySelector?.("img")?.src || shown.src || shown.className}`;
    if (canvas.dataset.key !== key) {
      canvas.dataset.key = key;
      showing = shown;
      const image = shown.tagName === "IMG" ? shown : shown.querySelector?.("img"), swap = () => { if (canvas.dataset.key === key) canvas.replaceChildren(shown); };
      if (!image || !canvas.querySelector("img")) swap();
      else { image.loading = "eager"; image.decode().then(swap, swap); } // the one before stays until it can be seen
    } else showing?.querySelector?.("img")?.classList.toggle("lm-dim", going && !chosen && !v.preview);
  }
  // Whether a part looks otherwise than it is drawn: what is drawn anew with each step would take clicks away under one's hand.
  function changed(part, now) {
    const key = JSON.stringify(now);
    if (part.dataset.key === key) return false;
    part.dataset.key = key;
    return true;
  }
  // Of two pictures beside each other: in what they differ.
  const unlike = (each, other_) => each.mix === other_.mix && each.seed !== other_.seed ? `seed ${each.seed}` : each.seed === other_.seed && each.mix !== other_.mix ? each.mix || "base" : label(each);
  const label = (each) => `seed ${each.seed} · ${each.mix || "base"}`;

  function drawCaption() {
    const each = current();
    if (!changed(caption, [each?.id, !!draft, picking, !!at(other), strip.length > 1])) return;
    if (!each) return caption.replaceChildren();
    redraw(caption, h("div", { class: "lm-caption" }, h("span", {}, `seed ${each.seed}`), h("span", { class: "lm-mixline", title: each.mix || "base" }, spell(each.mix)),
      draft && h("span", { class: "lm-mark" }, "draft"),
      draft && h("button", { class: "lm-button lm-quiet", title: "Hold to see the picture before", onpointerdown: () => { held = true; drawCanvas(props.value); }, onpointerup: () => { held = false; drawCanvas(props.value); },
        onkeydown: (e) => { if (e.key === " ") { held = true; drawCanvas(props.value); } }, onkeyup: () => { held = false; drawCanvas(props.value); } }, "Before"),
      h("button", { class: `lm-button lm-quiet${picking ? " lm-here" : ""}`, "aria-pressed": String(picking || !!other), disabled: strip.length < 2, title: "Then choose another picture below",
        onclick: () => { picking = !(picking || other); other = null; draw(); } }, other ? "End comparing" : picking ? "Choose the other" : "Compare"),
      other && at(other) && h("button", { class: "lm-button lm-quiet", title: "A mix that is half of each; words and seed stay as they are", onclick: () => blend(at(other), each) }, "Mix the two"),
      h("button", { class: "lm-button lm-quiet", title: "The next pictures begin with this one", onclick: () => lm.more.startFrom({ picture: each.id }) }, "Start from it"),
      h("a", { class: "lm-button lm-quiet", href: each.url, download: `${each.id}.png`, "aria-label": "Download", title: "Download" }, "⤓")));
  }
  // The mix as people say it; text of more than one line (JSON) says what it is.
  const spell = (mix) => (!mix ? "base" : /^[[{]/.test(mix) ? "a mix with masks or blocks; its text is in the picture"
    : mix.replace(/(mask|blocks)=(\{[^}]*\}+|\[[^\]]*\])/g, (_, what) => (what === "mask" ? "painted mask" : "own blocks")));

  async function blend(one, two) {
    const found = await lm.ask("halfway", { first: one.mix || "", second: two.mix || "" });
    if (!found) return;
    other = null;
    picking = false;
    lm.mix.replaceAll(found);
    lm.say(found.said, { undo: lm.history.back });
    draw();
    lm.draft();
  }
  function drawQueue(v) {
    const waiting = v.waiting || [];
    if (!changed(queue, waiting)) return;
    async function place(number, to) {
      const found = await lm.ask("rearrange", { token: lm.store.token, number, to });
      if (found && !found.moved) lm.say("That one is being made or finished already.");
      return found?.moved;
    }
    // the way back is there at once: whoever presses Ctrl+Z may be faster than the server
    function earlier(each, index) {
      lm.history.push(() => place(each.number, index));
      place(each.number, index - 1);
    }
    async function takeOut(each, index) {
      lm.history.push(async () => {
        const found = await lm.ask("put_back", { token: lm.store.token, number: each.number, to: index });
        if (found?.fresh) trigger("hello", { token: lm.store.token }); // nobody follows it yet
      });
      if (await place(each.number, null)) lm.say(`Taken out of the queue: ${each.label}`, { undo: lm.history.back });
    }
    redraw(queue, waiting.length > 0 && h("ol", { "aria-label": "What waits" }, waiting.map((each, index) => h("li", {}, h("span", {}, each.label),
      index > 0 && h("button", { class: "lm-icon", "aria-label": `Earlier: ${each.label}`, title: "Make it earlier", onclick: () => earlier(each, index) }, "↑"),
      h("button", { class: "lm-icon", "aria-label": `Take out: ${each.label}`, title: "Take it out of the queue", onclick: () => takeOut(each, index) }, "✕")))));
  }
  function drawStrip() {
    if (!changed(row, [strip.map((each) => each.id), current()?.id, other])) return;
    redraw(row, strip.length > 1 && strip.map((each) =>
      h("button", { class: `lm-pick${each.id === current().id ? " lm-here" : ""}${each.id === other ? " lm-other" : ""}`, "aria-label": `Show the picture with seed ${each.seed}`, "aria-current": each.id === current().id ? "true" : null, title: label(each),
        onclick: () => {
          if (picking && each.id !== current().id) { other = current().id; picking = false; }
          chosen = each.id;
          draft = null;
          draw();
        } }, picture(each.thumb, each.seed, "lm-small"))));
    row.querySelector(".lm-here")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  function draw() {
    const v = props.value || { state: "idle", pictures: [] };
    take(v);
    stage.dataset.state = v.state;
    status.textContent = words(v);
    if (news(v) !== spoken) said.textContent = spoken = news(v);
    const share = v.total ? v.done / v.total : 0;
    bar.classList.toggle("lm-still", !busy(v));
    bar.setAttribute("aria-valuenow", String(Math.round(share * 100)));
    bar.firstChild.style.width = `${busy(v) ? Math.max(2, share * 100) : 0}%`;
    if (v.message && v.problem_number && v.problem_number !== problem) {
      problem = v.problem_number; // the same words once more are drawn anew, so that they are seen and read again
      alert.replaceChildren(h("div", { class: "lm-error", role: "alert" }, v.message));
      lm.mark(v.field, v.message);
    } else if (!v.message) {
      alert.replaceChildren();
      if (busy(v)) lm.unmark();
    }
    drawCanvas(v);
    drawCaption();
    drawQueue(v);
    drawStrip();
    lm.busy = busy(v);
    lm.stoppable("#stop-button", lm.busy);
  }
  row.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[e.key];
    if (by) { e.preventDefault(); step(by); row.querySelector(".lm-here")?.focus(); }
  });

  lm.drawStage = draw;
  lm.shownPicture = () => current()?.url || "";
  lm.shownSize = () => { const image = canvas.querySelector("img"); return current() && image?.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null; };
  lm.stripDrop = (id) => { drop(id); draw(); };
  lm.stripAdd = (each) => { if (!at(each.id)) { strip = [...strip, each]; lm.store.put("strip", strip); draw(); } };
  // A draft of the mix as it is now, over the picture that is there: only once there is one, and not while pictures are made.
  const ask = lm.later(120, () => { if (strip.length && !lm.busy && lm.drafts) trigger("draft", {}); });
  lm.draft = ask;
  lm.showDraft = (found) => { if (!lm.busy) { draft = found; chosen = null; other = null; draw(); } };

  addEventListener("beforeunload", (event) => { if (lm.busy) event.preventDefault(); });
  watch("value", draw);
  draw();
  lm.fields.there().then(draw); // the button that stops is there by then
  trigger("hello", { token: lm.store.token });
};
lm.gone = new Set();
// A button that stops what is going on can be pressed while something is.
lm.stoppable = (where, on) => { const button = document.querySelector(where); if (button) button.disabled = !on; else lm.fields.there().then(() => setTimeout(() => { const late = document.querySelector(where); if (late) late.disabled = !on; }, 200)); };
lm.drafts = localStorage.getItem("lora-mixer-drafts") !== "off";

lm.parts.draft = (root, { props, watch }) => {
  watch("value", () => { if (props.value?.preview) lm.showDraft?.(props.value); });
};

// Two pictures, one over the other, parted by a slider that the arrow keys move, too.
lm.compareView = (left, right) => {
  const { h, picture } = lm;
  const box = h("div", { class: "lm-pair", style: "--cut:50%" }, picture(left.url, left.label, "lm-pairpic"), picture(right.url, right.label, "lm-pairpic lm-over"),
    h("span", { class: "lm-pairlabel lm-atleft" }, left.label), h("span", { class: "lm-pairlabel lm-atright" }, right.label), h("i", { class: "lm-cutline" }),
    h("input", { type: "range", min: 0, max: 100, step: 1, value: 50, class: "lm-cut", "aria-label": `Left ${left.label}, right ${right.label}`, oninput: (e) => box.style.setProperty("--cut", `${e.target.value}%`) }));
  return box;
};
lm.parts.slider = (root, { props, watch }) => {
  const draw = () => {
    const [base, mix] = props.value || [];
    root.replaceChildren(mix ? lm.compareView({ url: base, label: "base" }, { url: mix, label: "mix" }) : lm.empty("Nothing compared yet", "Base and mix, one over the other, with one seed."));
  };
  watch("value", draw);
  draw();
};
lm.parts.downloads = (root, { props, watch }) => {
  const draw = () => root.replaceChildren(...(props.value || []).map((file) =>
    lm.h("a", { class: "lm-download", href: file.url, download: file.name }, `${file.name} (${lm.bytes(file.bytes)})`)));
  watch("value", draw);
  draw();
};
lm.parts.verdict = (root, { props, watch }) => {
  const draw = () => root.replaceChildren(...(props.value ? [lm.h("p", { class: `lm-verdict lm-${props.value.level}`, role: "status" }, props.value.text)] : []));
  watch("value", draw);
  draw();
};

// What a comparison is doing, above its pictures.
lm.parts.progress = (root, { props, watch }) => {
  const { h } = lm;
  function draw() {
    const v = props.value || { state: "idle" };
    const words = v.state === "queued" ? (v.ahead ? `Waiting: ${v.ahead} ahead of you` : "Starting") : v.state === "running" ? `Picture ${v.number} of ${v.count} · step ${v.step} of ${v.steps}`
      : v.state === "stopped" ? "Stopped" : v.state === "done" ? "Finished" : "";
    root.replaceChildren(h("div", { class: "lm-stage", "data-state": v.state }, h("div", { class: "lm-status", role: "status" }, words),
      v.state === "error" && h("div", { class: "lm-error", role: "alert" }, v.message)));
    if (v.state === "error") lm.mark(v.field, v.message);
    lm.comparing("pair", v);
  }
  watch("value", draw);
  draw();
};
// Pairs and grids have one button that stops them.
lm.comparing = (() => {
  const states = {};
  return (name, v) => { states[name] = v.state; lm.stoppable("#compare-stop", Object.values(states).some((each) => each === "queued" || each === "running")); };
})();

// A grid with labels; a click on a cell shows it large, from where all that made it can be taken.
lm.parts.grid = (root, { props, trigger, watch }) => {
  const { h, picture, empty } = lm;
  function take(cell) {
    lm.snapshot.take();
    trigger("take", { id: cell.id });
  }
  function look(cell, label) {
    const box = h("dialog", { class: "lm-root lm-large-view", "aria-label": label }, picture(cell.url, label, "lm-whole"),
      h("div", { class: "lm-line lm-largefoot" }, h("span", {}, label), h("span", { class: "lm-space" }),
        h("button", { class: "lm-button lm-main", onclick: () => { take(cell); box.close(); } }, "Use its settings"),
        h("button", { class: "lm-button", onclick: () => box.close() }, "Close")));
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
  }
  function draw() {
    const v = props.value || {};
    const words = v.state === "queued" ? (v.ahead ? `Waiting: ${v.ahead} ahead of you` : "Starting")
      : v.state === "running" ? `Step ${v.done} of ${v.total}${v.left ? ` · ${Math.ceil(v.left)} s left` : ""}`
        : v.state === "stopped" ? "Stopped" : v.state === "done" ? "Finished. Click a cell to take its mix, or ⤢ to see it large." : "";
    const cells = v.cells || [];
    const columns = v.columns || [], rows = v.rows || [];
    lm.redraw(root, h("div", { class: "lm-gridbox", "data-state": v.state || "idle" },
      h("div", { class: "lm-status", role: "status" }, words,
        v.sheet && h("a", { class: "lm-button lm-quiet", href: v.sheet, download: "grid.png" }, "Download the sheet")),
      v.state === "error" && h("div", { class: "lm-error", role: "alert" }, v.message),
      columns.length ? h("div", { class: "lm-scroll", tabindex: 0, role: "region", "aria-label": "The grid" }, h("table", { class: "lm-grid" },
        h("thead", {}, h("tr", {}, h("th", {}), columns.map((label) => h("th", { scope: "col" }, label)))),
        h("tbody", {}, rows.map((label, down) => h("tr", {}, h("th", { scope: "row" }, label), columns.map((column, across) => {
          const index = down * columns.length + across, cell = cells[index], name = `${label} ${column}`.trim();
          return h("td", {}, cell && !cell.id ? picture(cell.thumb, column, "lm-cellpic lm-dim") : cell ? h("div", { class: "lm-cellbox" },
            h("button", { class: "lm-cell", "aria-label": `Take the mix of ${name}`, title: cell.mix || "base", onclick: () => take(cell) }, picture(cell.thumb, column, "lm-cellpic")),
            h("button", { class: "lm-icon lm-enlarge", "aria-label": `Enlarge ${name}`, onclick: () => look(cell, name) }, "⤢")) : h("div", { class: "lm-cellpic lm-blank" }));
        }))))))
        : v.state === "error" ? null : empty("No grid yet", "Choose what changes from left to right and from top to bottom, then make the grid.")));
    if (v.state === "error") lm.mark(v.field, v.message);
    lm.comparing("grid", v);
  }
  watch("value", draw);
  draw();
};

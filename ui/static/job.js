// Where pictures form: the newest large, the others of the run below, with what is going on above them.
lm.parts.job = (root, { props, watch }) => {
  const { h, picture, empty } = lm;
  let chosen = null;
  const words = (v) => {
    const left = v.left > 0 ? ` · ${v.left < 90 ? `${Math.ceil(v.left)} s` : `${Math.round(v.left / 60)} min`} left` : "";
    if (v.state === "queued") return v.ahead ? `Waiting: ${v.ahead} ahead of you, ${v.queue} in the queue` : "Starting";
    if (v.state === "running") return `Picture ${v.number} of ${v.count} · step ${v.step} of ${v.steps}${left}`;
    if (v.state === "stopped") return `Stopped${v.pictures?.length ? `; ${v.pictures.length} finished and kept` : ""}`;
    if (v.state === "done") return v.pictures.length > 1 ? `${v.pictures.length} pictures finished` : "Finished";
    return "";
  };
  function draw() {
    const v = props.value || { state: "idle", pictures: [] };
    const made = v.pictures || [];
    if (!made.some((each) => each.id === chosen)) chosen = null;
    const busy = v.state === "running" || v.state === "queued";
    const shown = busy && chosen === null ? null : made.find((each) => each.id === chosen) || made.at(-1);
    const share = v.total ? v.done / v.total : 0;
    root.replaceChildren(h("div", { class: "lm-job", "data-state": v.state },
      h("div", { class: "lm-status", role: "status", "aria-live": "polite" }, words(v)),
      h("div", { class: `lm-bar${busy ? "" : " lm-still"}`, role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(share * 100) },
        h("div", { style: `width:${busy ? Math.max(2, share * 100) : 0}%` })),
      v.state === "error" && h("div", { class: "lm-error", role: "alert" }, v.message),
      h("div", { class: "lm-canvas" },
        v.preview && !shown ? picture(v.preview, "Preview of the forming picture", "lm-preview")
          : shown ? picture(shown.url, `Picture with seed ${shown.seed}`, "lm-final")
            : busy && made.length ? picture(made.at(-1).url, "The last finished picture", "lm-final lm-dim")
              : busy ? h("div", { class: "lm-waiting" })
                : v.state === "error" ? null : empty("Nothing made yet", "Write a prompt and press Make (Ctrl+Enter). With no adapters on you get the base picture.")),
      shown && h("div", { class: "lm-caption" }, h("span", {}, `seed ${shown.seed}`), h("span", { class: "lm-mixline", title: shown.mix }, shown.mix || "base"),
        h("a", { class: "lm-button lm-quiet", href: shown.url, download: `${shown.id}.png` }, "Download")),
      made.length > 1 && h("div", { class: "lm-strip" }, made.map((each) =>
        h("button", { class: `lm-pick${shown && each.id === shown.id ? " lm-here" : ""}`, "aria-label": `Show the picture with seed ${each.seed}`, onclick: () => { chosen = each.id; draw(); } },
          picture(each.thumb, each.seed, "lm-small"))))));
  }
  watch("value", draw);
  draw();
};

// A grid with labels; a click on a cell takes its mix.
lm.parts.grid = (root, { props, trigger, watch }) => {
  const { h, picture, empty } = lm;
  function draw() {
    const v = props.value || {};
    const words = v.state === "queued" ? (v.ahead ? `Waiting: ${v.ahead} ahead of you` : "Starting")
      : v.state === "running" ? `Step ${v.done} of ${v.total}${v.left ? ` · ${Math.ceil(v.left)} s left` : ""}`
        : v.state === "stopped" ? "Stopped" : v.state === "done" ? "Finished. Click a cell to take its mix." : "";
    const cells = v.cells || [];
    const columns = v.columns || [], rows = v.rows || [];
    root.replaceChildren(h("div", { class: "lm-gridbox", "data-state": v.state || "idle" },
      h("div", { class: "lm-status", role: "status" }, words,
        v.sheet && h("a", { class: "lm-button lm-quiet", href: v.sheet, download: "grid.png" }, "Download the sheet")),
      v.state === "error" && h("div", { class: "lm-error", role: "alert" }, v.message),
      columns.length ? h("div", { class: "lm-scroll" }, h("table", { class: "lm-grid" },
        h("thead", {}, h("tr", {}, h("th", {}), columns.map((label) => h("th", { scope: "col" }, label)))),
        h("tbody", {}, rows.map((label, down) => h("tr", {}, h("th", { scope: "row" }, label), columns.map((column, across) => {
          const index = down * columns.length + across, cell = cells[index];
          return h("td", {}, cell && !cell.id ? picture(cell.thumb, column, "lm-cellpic lm-dim") : cell ? h("button", { class: "lm-cell", "aria-label": `Take the mix of ${label} ${column}`.trim(), title: cell.mix || "base",
            onclick: () => trigger("take", { id: cell.id }) }, picture(cell.thumb, column, "lm-cellpic")) : h("div", { class: "lm-cellpic lm-blank" }));
        }))))))
        : v.state === "error" ? null : empty("No grid yet", "Choose what changes from left to right and from top to bottom, then make the grid.")));
  }
  watch("value", draw);
  draw();
};

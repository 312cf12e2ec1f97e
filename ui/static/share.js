// Below the rows: the mix as text and as a link, and mixes saved by name.
lm.sharePanel = (root) => {
  const { h, ask, say } = lm;
  const text = h("textarea", { class: "lm-input", rows: 2, "aria-label": "The mix as text", placeholder: "ink:0.8, neon:0.5,te=0.2,start=0.3" });
  const problem = h("p", { class: "lm-problem", id: "mix-problem" });
  const name = h("input", { class: "lm-input", type: "text", maxlength: 120, "aria-label": "Name of the mix", placeholder: "Name" });
  const saved = h("input", { type: "hidden" });
  const list = h("div", { class: "lm-saved" });
  const question = h("div", { class: "lm-line" });
  let names = [], turn = 0;

  function show(given) {
    names = given || names;
    list.replaceChildren(...(names.length ? names.map((each) => h("div", { class: "lm-savedmix" },
      h("button", { class: "lm-button lm-quiet", "aria-label": `Load the mix ${each}`, onclick: () => load(each) }, each),
      h("button", { class: "lm-icon", "aria-label": `Delete the mix ${each}`, onclick: () => remove(each) }, "✕")))
      : [h("p", { class: "lm-hint" }, "None yet.")]));
  }
  async function load(each) {
    const found = await ask("load", each);
    if (!found) return;
    saved.value = each;
    name.value = each;
    lm.mix.replaceAll(found);
    say(`${each} is the mix now.`, { undo: lm.history.back });
  }
  async function remove(each) {
    const found = await ask("delete", each);
    if (!found) return;
    show(found.names);
    const back = async () => { const again = await ask("undelete"); if (again) { show(again.names); say(again.said); } };
    lm.history.push(back);
    say(found.said, { undo: lm.history.back });
  }
  async function save(replacing = false) {
    question.replaceChildren();
    const found = await ask("save", { name: name.value, rows: lm.mix.plain(), replacing });
    if (!found) return;
    if (found.exists) {
      question.replaceChildren(h("span", { class: "lm-hint" }, `There is a mix ${found.exists} already.`),
        h("button", { class: "lm-button", onclick: () => save(true) }, "Replace it"),
        h("button", { class: "lm-button lm-quiet", onclick: () => question.replaceChildren() }, "Keep it"));
      question.querySelector("button").focus();
      return;
    }
    saved.value = found.name;
    show(found.names);
    const back = async () => { const again = await ask("undelete"); if (again) { show(again.names); say(again.said); } };
    lm.history.push(back);
    say(found.said, { undo: lm.history.back });
  }
  async function apply() {
    const found = await ask("from_text", text.value);
    if (found) lm.mix.replaceAll(found);
  }
  async function link() {
    const found = await ask("described", lm.mix.plain());
    if (!found || found.problem) return say(found?.problem || "There is no text of this mix.", { bad: true });
    const address = `${location.origin}${location.pathname}#mix=${encodeURIComponent(found.text)}`;
    try { await navigator.clipboard.writeText(address); say("The link is copied."); } catch { text.value = address; text.select(); say("The link stands in the text field."); }
  }
  async function describe() {
    const mine = ++turn, found = await ask("described", lm.mix.plain());
    if (!found || mine !== turn || document.activeElement === text) return; // an answer that comes late must not overwrite what somebody writes
    text.value = found.text;
    problem.textContent = found.problem;
  }
  const panel = h("details", { class: "lm-fold", id: "share-panel" }, h("summary", {}, "Save and share"),
    h("div", { class: "lm-line lm-savebar" }, h("div", { id: "mix-name", class: "lm-grow" }, name), h("button", { class: "lm-button", id: "mix-save", onclick: () => save() }, "Save")), question,
    h("h3", {}, "Saved mixes"), h("div", { id: "mix-saved" }, saved, list),
    h("h3", {}, "As text"), h("div", { id: "mix-text" }, text), problem,
    h("div", { class: "lm-line" }, h("button", { class: "lm-button", id: "mix-apply", onclick: apply }, "Take this text"), h("button", { class: "lm-button lm-quiet", id: "mix-link", onclick: link }, "Copy a link")));
  root.replaceChildren(panel);
  panel.addEventListener("toggle", () => { if (panel.open) { ask("saved").then((found) => found && show(found.names)); describe(); } });
  async function quick() {
    const stem = lm.mix.rows.filter((row) => row.on).map((row) => row.name).join(" + ").slice(0, 60) || "mix";
    for (let at = 1; at < 100; at++) {
      const found = await ask("save", { name: at > 1 ? `${stem} ${at}` : stem, rows: lm.mix.plain(), replacing: false });
      if (!found) return;
      if (found.exists) continue;
      saved.value = name.value = found.name;
      show(found.names);
      lm.history.push(async () => { const again = await ask("undelete"); if (again) { show(again.names); say(again.said); } });
      say(`Saved as ${found.name}`, { undo: lm.history.back });
      return;
    }
  }
  lm.share = { quick, describe: () => { if (panel.open) describe(); } };
};

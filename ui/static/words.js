// Words of a prompt: completed as one writes, made stronger by keys, and those of before had back.
lm.words = (() => {
  const { h, ask, later } = lm;
  const KEY = "lora-mixer-prompts", KEPT = 50;
  const read = () => { try { return JSON.parse(localStorage.getItem(KEY)) || []; } catch { return []; } };

  // --- how strong: (word:1.1), as Ctrl+Up and Ctrl+Down change it elsewhere ---
  function stronger(text, from, to, by) {
    if (from === to) { // the word at the cursor, or the brackets around it
      const around = [...text.matchAll(/\(([^()]*):(-?\d*\.?\d+)\)/g)].find((each) => each.index <= from && from <= each.index + each[0].length);
      if (around) { from = around.index; to = from + around[0].length; }
      else {
        while (from > 0 && /[^\s,()]/.test(text[from - 1])) from--;
        while (to < text.length && /[^\s,()]/.test(text[to])) to++;
      }
    }
    const chosen = text.slice(from, to), weighted = chosen.match(/^\((.*):(-?\d*\.?\d+)\)$/s);
    if (!chosen.trim() || /^<|>$/.test(chosen)) return null;
    const weight = Math.round((Number(weighted ? weighted[2] : 1) + by) * 100) / 100, words = weighted ? weighted[1] : chosen;
    if (weight < 0) return null;
    const made = weight === 1 ? words : `(${words}:${weight})`;
    return { text: text.slice(0, from) + made + text.slice(to), from, to: from + made.length };
  }

  // --- completion: a list below the field, as comboboxes are ---
  function word(text, at) {
    const before = text.slice(0, at), tag = before.match(/<l(?:o(?:r(?:a(?::([^<>:]*))?)?)?)?$/i);
    if (tag) return { word: tag[1] || "", tag: true, from: at - tag[0].length };
    const plain = before.match(/(?:^|[,(\n])[ \t]*([^,()<>\n]{2,60})$/);
    return plain ? { word: plain[1], tag: false, from: at - plain[1].length } : null;
  }
  function attach(field, name) {
    const list = h("ul", { class: "lm-root lm-completions", role: "listbox", id: `${name}-words`, "aria-label": "Words that complete it", hidden: true });
    field.closest(".block").append(list);
    for (const [key, value] of Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": `${name}-words` })) field.setAttribute(key, value);
    let found = [], chosen = -1, place = null, turn = 0;
    const close = () => { turn++; list.hidden = true; chosen = -1; field.setAttribute("aria-expanded", "false"); field.removeAttribute("aria-activedescendant"); };
    function mark(index) {
      chosen = index;
      [...list.children].forEach((each, at) => each.setAttribute("aria-selected", String(at === index)));
      if (index >= 0) { field.setAttribute("aria-activedescendant", list.children[index].id); list.children[index].scrollIntoView({ block: "nearest" }); }
      else field.removeAttribute("aria-activedescendant");
    }
    function take(index) {
      const before = field.value, end = before.slice(field.selectionStart), { text } = found[index];
      const start = before.slice(0, place.from) + text;
      lm.history.push(() => lm.fields.set(name, before));
      lm.fields.set(name, start + end);
      field.setSelectionRange(start.length, start.length);
      close();
      field.focus();
    }
    const look = later(150, async () => {
      const mine = ++turn, here = word(field.value, field.selectionStart);
      if (!here || document.activeElement !== field) return close();
      const answer = await ask("complete", here);
      if (mine !== turn || !answer) return;
      const words = answer.words.filter((each) => each.text.toLowerCase() !== here.word.toLowerCase());
      if (!words.length || document.activeElement !== field) return close();
      found = words;
      place = here;
      list.replaceChildren(...words.map((each, index) => h("li", { role: "option", id: `${name}-word-${index}`, "aria-selected": "false", onpointerdown: (e) => { e.preventDefault(); take(index); } },
        h("b", {}, each.label), h("span", {}, each.about))));
      list.hidden = false;
      field.setAttribute("aria-expanded", "true");
      mark(-1);
    });
    field.addEventListener("input", (event) => { if (event.isTrusted) look(); });
    field.addEventListener("blur", close);
    field.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (by && (event.ctrlKey || event.metaKey)) {
        const made = stronger(field.value, field.selectionStart, field.selectionEnd, -by * 0.1);
        event.preventDefault();
        if (!made) return;
        const before = field.value;
        lm.history.push(() => lm.fields.set(name, before));
        lm.fields.set(name, made.text);
        field.setSelectionRange(made.from, made.to);
      } else if (!list.hidden && by) {
        event.preventDefault();
        mark((chosen + by + found.length) % found.length);
      } else if (!list.hidden && (event.key === "Enter" || event.key === "Tab") && chosen >= 0 && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        event.stopPropagation();
        take(chosen);
      } else if (!list.hidden && event.key === "Escape") { event.stopPropagation(); close(); }
    }, true);
  }

  // --- those of before ---
  function keep() {
    const prompt = lm.fields.get("prompt")?.trim(), negative = lm.fields.get("negative")?.trim() || "";
    if (!prompt) return;
    const all = [{ prompt, negative }, ...read().filter((each) => each.prompt !== prompt || each.negative !== negative)].slice(0, KEPT);
    try { localStorage.setItem(KEY, JSON.stringify(all)); } catch { /* full, or switched off */ }
  }
  function show() {
    const all = read(), before = { prompt: lm.fields.get("prompt"), negative: lm.fields.get("negative") };
    const box = h("dialog", { class: "lm-root lm-large-view lm-earlier", "aria-label": "Earlier prompts" },
      h("div", { class: "lm-panel-head" }, h("h2", {}, "Earlier prompts"), h("span", { class: "lm-space" }), h("button", { class: "lm-icon", "aria-label": "Close", onclick: () => box.close() }, "✕")),
      all.length ? h("ul", {}, all.map((each) => h("li", {}, h("button", { class: "lm-button lm-quiet", onclick: () => {
        box.close();
        lm.history.push(() => Object.entries(before).forEach(([name, value]) => lm.fields.set(name, value)));
        lm.fields.set("prompt", each.prompt);
        lm.fields.set("negative", each.negative);
      } }, h("span", {}, each.prompt), each.negative && h("small", {}, `without ${each.negative}`))))) : h("p", { class: "lm-hint" }, "Each prompt that a picture is made of is kept here, in this browser."));
    box.addEventListener("click", (e) => { if (e.target === box) box.close(); });
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
  }
  lm.fields.there().then(() => {
    for (const name of ["prompt", "negative"]) attach(document.querySelector(`#${name} textarea`), name);
    document.addEventListener("click", (event) => { if (event.target.closest?.("#make-button")) keep(); }, true);
    document.querySelector("#prompt .block, #prompt")?.append(h("button", { class: "lm-root lm-earlierbutton lm-icon", title: "Earlier prompts", "aria-label": "Earlier prompts", onclick: show }, "↺"));
  });
  return { stronger, word };
})();

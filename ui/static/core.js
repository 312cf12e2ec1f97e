// Shared by all components: elements are built node by node, so that text from files is never read as HTML.
window.lm = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const inSvg = new Set(["svg", "path", "line", "rect", "circle", "text", "title", "g"]);

  function h(tag, attributes = {}, ...children) {
    const node = inSvg.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(2)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  }

  function picture(source, alt, cls) {
    // Only what this server made: data URIs of pictures, and its own picture folder.
    const safe = /^data:image\/(webp|jpeg|png);base64,/.test(source || "") || /^gradio_api\/file=/.test(source || "");
    return safe
      ? h("img", { src: source, alt, class: cls, loading: "lazy", draggable: "false" })
      : h("div", { class: `${cls} lm-blank`, "aria-hidden": "true" }, (alt || "?").slice(0, 1).toUpperCase());
  }

  function later(wait, work) {
    let timer = null;
    return (...values) => {
      clearTimeout(timer);
      timer = setTimeout(() => work(...values), wait);
    };
  }

  function empty(title, text) {
    return h("div", { class: "lm-empty" }, h("strong", {}, title), h("p", {}, text));
  }

  // What a click opened somewhere else on the page comes into view.
  function reveal(node) {
    const top = node.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight * 0.6) node.scrollIntoView({ block: "start", behavior: "smooth" });
  }

  const number = (value, digits = 2) => String(Math.round(value * 10 ** digits) / 10 ** digits);
  const parts = {};

  function start(name, element, api) {
    const root = element.querySelector(".lm-root") || element;
    parts[name](root, api);
  }

  function bytes(count) {
    for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
      if (count >= size) return `${number(count / size, 1)} ${unit}`;
    return `${count} B`;
  }

  return { h, picture, later, empty, reveal, number, bytes, parts, start };
})();

// Dark or light as the person chose before, or as the system has it.
(() => {
  const saved = localStorage.getItem("lora-mixer-theme");
  const wish = new URLSearchParams(location.search).get("__theme") || saved;
  const dark = wish ? wish === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const apply = (on) => document.body.classList.toggle("dark", on);
  document.addEventListener("DOMContentLoaded", () => apply(dark));
  if (document.body) apply(dark);
  window.lm.toggleTheme = () => {
    const on = !document.body.classList.contains("dark");
    apply(on);
    localStorage.setItem("lora-mixer-theme", on ? "dark" : "light");
  };
  window.lm.dark = () => apply(dark);
})();

// Ctrl+Enter makes, from anywhere.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    document.querySelector("#make-button")?.click();
  }
});

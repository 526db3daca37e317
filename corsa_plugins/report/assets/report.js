(() => {
  "use strict";
  const list = document.getElementById("items");
  const form = document.querySelector("form.search");
  if (!list || !form) return;
  const items = Array.from(list.children);
  const box = form.querySelector("input"), choice = form.querySelector("select.kind");
  const by = form.querySelector("select.by");
  const count = form.querySelector("output"), more = document.getElementById("more");
  const PAGE = 100;
  let limit = PAGE, texts = null, timer = 0;
  const kinds = items.map((item) => new Set(item.dataset.is.split(" ")));
  const judged = () => by ? by.value : list.dataset.judged;
  const holds = (index, kind, column) => kinds[index].has(kind) || kinds[index].has(`${column}.${kind}`);
  const show = () => {
    const kind = choice.value, column = judged();
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !texts) texts = items.map((item) => item.textContent.toLowerCase());
    let found = 0;
    items.forEach((item, index) => {
      const hit = (!kind || holds(index, kind, column)) &&
        words.every((word) => texts[index].includes(word));
      found += hit;
      const hide = !hit || found > limit;
      if (item.hidden !== hide) item.hidden = hide;
    });
    count.textContent = found > limit ? `${limit} of ${found} shown` : `${found} shown`;
    more.hidden = found <= limit;
  };
  const part = (parent, tag, text, kind) => {
    const made = parent.appendChild(document.createElement(tag));
    made.textContent = text;
    if (kind) made.className = kind;
  };
  const KINDS = { "\u2713": "v good", "\u21ba": "v warn", "\u2717": "v bad" };
  const dress = (lines) => {
    const question = document.createElement("div");
    question.className = "q";
    for (const line of lines.textContent.split("\n")) {
      const [first, second, third] = line.split("\t");
      const row = question.appendChild(document.createElement("div"));
      const kind = KINDS[first[0]];
      if (kind || first === "\u00b7") {
        part(row, "span", second, "who");
        part(row, "bdi", third);
        if (kind) part(row, "span", first, kind);
      } else {
        part(row, "i", `${first} `);
        part(row, "bdi", second);
        if (third) part(row, "i", ` ${third}`);
      }
    }
    lines.replaceWith(question);
  };
  list.addEventListener("toggle", (event) => event.target.querySelectorAll("p").forEach(dress), true);
  const restart = () => { limit = PAGE; show(); };
  box.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(restart, 150); });
  choice.addEventListener("change", restart);
  if (by) by.addEventListener("change", () => {
    for (const option of choice.options) {
      if (!option.value) continue;
      const count = items.filter((_, index) => holds(index, option.value, by.value)).length;
      option.textContent = `${option.dataset.title} (${count})`;
    }
    restart();
  });
  more.addEventListener("click", () => { limit += 5 * PAGE; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
})();

"use strict";
(() => {
  const all = (root, what) => [...root.querySelectorAll(what)];
  const make = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const body = document.body;

  // Which sides are shown: both where there is room.
  const show = (side) => {
    body.dataset.show = side;
    document.querySelector(`.sides input[value="${side}"]`).checked = true;
    requestAnimationFrame(() => all(document, ".canvas").forEach((canvas) => canvas.zoomed || fit(canvas)));
  };
  all(document, ".sides input").forEach((input) => input.addEventListener("change", () => show(input.value)));

  // Zoom: a drawing fits its pane as long as its text stays readable.
  const scale = (canvas, factor) => {
    const svg = canvas.firstElementChild;
    canvas.scale = Math.min(2, Math.max(0.3, factor));
    svg.style.width = `${svg.dataset.w * canvas.scale}px`;
  };
  const fit = (canvas, least = 0.8) => {
    const room = canvas.clientWidth - 18;
    if (room <= 0) return;
    scale(canvas, Math.min(1, Math.max(least, room / canvas.firstElementChild.dataset.w)));
    canvas.scrollLeft = (canvas.scrollWidth - canvas.clientWidth) / 2;
  };
  all(document, "[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    const canvas = button.closest(".pane").querySelector(".canvas");
    canvas.zoomed = true;
    if (button.dataset.zoom === "fit") fit(canvas, 0.3);
    else scale(canvas, canvas.scale * (button.dataset.zoom === "+" ? 1.25 : 0.8));
  }));
  addEventListener("resize", () => all(document, ".canvas").forEach((canvas) => canvas.zoomed || fit(canvas)));

  // What belongs together is lit together; `held` is what a click or Enter keeps so.
  let held = null;
  const dark = () => {
    all(document, ".lit").forEach((one) => one.classList.remove("lit"));
    all(document, ".on").forEach((one) => one.classList.remove("on"));
  };
  const light = (pair, chosen) => {
    dark();
    pair.classList.add("lit");
    chosen.forEach((one) => one.classList.add("on"));
  };
  const together = (pair, one) => one.dataset.k ? all(pair, `[data-k="${one.dataset.k}"]`) : [one];
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const into = (one) => {
    const canvas = one.closest(".canvas");
    const there = one.getBoundingClientRect(), here = canvas.getBoundingClientRect();
    const top = there.top - here.top, left = there.left - here.left;
    const high = Math.min(there.height, here.height * 0.6), wide = Math.min(there.width, here.width * 0.9);
    if (top < 0 || top + high > here.height || left < 0 || left + wide > here.width) {
      canvas.scrollTo({ top: canvas.scrollTop + top - (here.height - high) / 3, behavior: calm ? "auto" : "smooth",
        left: canvas.scrollLeft + left + (wide - here.width) / 2 });
    }
  };

  // The panel says of what is held: its line, its kernel, and what it swallowed or what swallowed it.
  const panel = make("aside");
  panel.id = "panel";
  panel.hidden = true;
  panel.setAttribute("aria-live", "polite");
  body.append(panel);
  const line = (section, side, name) => {
    const found = all(section, `.lines[data-side="${side}"] li`).find((one) => one.dataset.n === name);
    return found ? found.textContent : name;
  };
  const told = (word, value) => {
    const made = make("p");
    made.append(make("span", `${word} `, "q"), make("code", value));
    return made;
  };
  const release = () => {
    const back = held;
    held = null;
    panel.hidden = true;
    dark();
    return back;
  };
  const lines = (section, side, nodes) => {
    const list = make("ol");
    nodes.forEach((one) => {
      const item = make("li");
      item.append(make("code", line(section, side, one.dataset.n)));
      list.append(item);
    });
    return list;
  };
  const tell = (pair, title, chosen, from) => {
    const section = pair.closest("section");
    const steps = chosen.filter((one) => one.classList.contains("n"));
    const before = steps.filter((one) => one.closest(".before")), after = steps.filter((one) => one.closest(".after"));
    const close = make("button", "×", "close");
    close.type = "button";
    close.setAttribute("aria-label", "let go");
    close.addEventListener("click", () => { const back = release(); if (back && back.focus) back.focus(); });
    panel.replaceChildren(make("h4", title), close);
    if (from && from.dataset.kernel) panel.append(told("runs", from.dataset.kernel));
    if (from && from.dataset.shape) panel.append(told("makes", from.dataset.shape));
    if (after.length) {
      panel.append(make("p", "after the passes", "q"), lines(section, "after", after));
      if (after[0].dataset.kernel && !(from && from.dataset.kernel)) panel.append(told("runs", after[0].dataset.kernel));
    }
    if (before.length) {
      const many = before.length > 1;
      panel.append(make("p", after.length && !many ? "before the passes" : `${before.length} steps before the passes`, "q"),
        lines(section, "before", before));
    }
    [["before", before], ["after", after]].forEach(([side, nodes]) => {
      if (nodes.length && body.dataset.show !== "both" && body.dataset.show !== side) {
        const button = make("button", `show ${side}`);
        button.type = "button";
        button.addEventListener("click", () => { show(side); requestAnimationFrame(() => into(nodes[0])); });
        panel.append(button);
      }
    });
    panel.hidden = false;
  };
  const hold = (pair, one, chosen, title) => {
    if (held === one) { release(); return; }
    held = one;
    light(pair, chosen);
    tell(pair, title, chosen, one.closest(".canvas") ? one : null);
    const mine = one.getBoundingClientRect(), over = panel.getBoundingClientRect();
    if (one.closest(".canvas") && mine.right > over.left && mine.bottom > over.top - 12) {
      scrollBy({ top: Math.min(mine.bottom - over.top + 24, mine.top - 140), behavior: calm ? "auto" : "smooth" });
    }
    const seen = {};
    chosen.forEach((node) => {
      const side = node.closest(".before") ? "before" : "after";
      if (!seen[side] && node.closest(".canvas") !== one.closest(".canvas")) { seen[side] = true; into(node); }
    });
  };
  const title = (one) => {
    const text = one.querySelector(".o") || one.querySelector("text");
    return text ? text.textContent : one.textContent;
  };

  all(document, ".pair").forEach((pair) => {
    const marked = (event) => event.target.closest("[data-k]");
    pair.addEventListener("pointerover", (event) => {
      const one = marked(event);
      if (one && !held && event.pointerType === "mouse") light(pair, together(pair, one));
    });
    pair.addEventListener("pointerout", (event) => { if (!held && !pair.contains(event.relatedTarget && event.relatedTarget.closest
      ? event.relatedTarget.closest("[data-k]") : null)) dark(); });
    pair.addEventListener("click", (event) => {
      const one = marked(event);
      if (one) hold(pair, one, together(pair, one), title(one));
      else if (held && event.target.closest("svg")) release();
    });
    all(pair, "svg").forEach((svg) => {
      const nodes = all(svg, ".n");
      nodes.forEach((one, at) => { one.setAttribute("role", "button"); one.setAttribute("tabindex", at ? "-1" : "0"); });
      svg.addEventListener("keydown", (event) => {
        const at = nodes.indexOf(event.target);
        const next = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: nodes.length - 1 };
        if (at < 0) return;
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          hold(pair, nodes[at], together(pair, nodes[at]), title(nodes[at]));
        } else if (event.key in next && nodes[next[event.key]]) {
          event.preventDefault();
          focus(nodes[next[event.key]]);
        }
      });
    });
  });
  const focus = (node) => {
    all(node.closest("svg"), '[tabindex="0"]').forEach((one) => one.setAttribute("tabindex", "-1"));
    node.setAttribute("tabindex", "0");
    node.focus({ preventScroll: true });
    into(node);
  };
  all(document, ".go").forEach((button) => button.addEventListener("click", () => {
    const pair = button.closest("section").querySelector(".pair");
    const names = new Set((button.dataset.lines || "").split(" "));
    const chosen = button.dataset.k ? together(pair, button) : all(pair, ".before .n").filter((one) => names.has(one.dataset.n));
    if (!chosen.some((one) => one.closest(`.${body.dataset.show}`)) && body.dataset.show !== "both") show("before");
    if (held !== button) pair.scrollIntoView({ block: "start" });
    hold(pair, button, chosen, button.dataset.k ? button.textContent : `${button.textContent}, refused`);
  }));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") { found.hidden = true; const back = release(); if (back && back.focus) back.focus(); }
  });

  // A layer's number in place of the star of a folded call.
  all(document, ".pick input").forEach((input) => input.addEventListener("input", () => {
    const inside = input.dataset.layers.split(", ").some((run) => {
      const [low, high] = run.split("..").map(Number);
      return input.value !== "" && Number(input.value) >= low && Number(input.value) <= (high === undefined ? low : high);
    });
    input.setAttribute("aria-invalid", String(!inside && input.value !== ""));
    all(input.closest("details"), "[data-p]").forEach((cell) => {
      cell.textContent = inside ? cell.dataset.p.replaceAll("*", input.value) : cell.dataset.p;
    });
  }));

  // Search: every word must be there; "layers.7" finds what is told once for all layers.
  const found = document.getElementById("found"), find = document.getElementById("find");
  let entries = null;
  const heading = (one) => { const section = one.closest("section"); return section ? section.querySelector("h2").textContent : ""; };
  const index = () => {
    const made = all(document, "section h2").map((one) => ({ one, kind: "section", text: one.textContent }));
    all(document, "section tbody tr").forEach((one) => made.push({ one, kind: heading(one),
      text: [...one.cells].map((cell) => cell.textContent).filter(Boolean).join(" · ") }));
    all(document, ".n").forEach((one) => made.push({ one, kind: heading(one),
      text: `${one.closest(".before") ? "before: " : "after: "}${one.getAttribute("aria-label")}${
        one.dataset.kernel ? ` runs ${one.dataset.kernel}` : ""}` }));
    all(document, "#notes ~ ul li").forEach((one) => made.push({ one, kind: "note", text: one.textContent }));
    made.forEach((entry) => { entry.low = entry.text.toLowerCase(); });
    return made;
  };
  const go = (entry) => {
    found.hidden = true;
    for (let box = entry.one.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    all(document, ".hit").forEach((one) => one.classList.remove("hit"));
    entry.one.classList.add("hit");
    const canvas = entry.one.closest(".canvas");
    if (!canvas) {
      entry.one.scrollIntoView({ block: "center" });
      return;
    }
    const side = entry.one.closest(".before") ? "before" : "after";
    if (body.dataset.show !== "both" && body.dataset.show !== side) show(side);
    canvas.closest(".pair").scrollIntoView({ block: "start" });
    requestAnimationFrame(() => focus(entry.one));
  };
  find.addEventListener("input", () => {
    const asked = find.value.trim().toLowerCase().replace(/\b(layers?|blocks?)\.\d+/g, "$1.*");
    found.hidden = !asked;
    if (!asked) return;
    entries = entries || index();
    const words = asked.split(/\s+/);
    const hits = entries.filter((entry) => words.every((word) => entry.low.includes(word)));
    found.replaceChildren(make("p", hits.length ? `${hits.length} found${hits.length > 60 ? ", the first 60:" : ""}` : "nothing found"));
    hits.slice(0, 60).forEach((entry) => {
      const button = make("button");
      button.type = "button";
      button.append(make("span", entry.kind, "in"), make("span", entry.text));
      button.addEventListener("click", () => go(entry));
      found.append(button);
    });
  });
  find.addEventListener("focus", () => { if (find.value.trim()) found.hidden = false; });
  document.addEventListener("click", (event) => { if (!event.target.closest(".find")) found.hidden = true; });

  show(innerWidth > 896 ? "both" : "after");
})();

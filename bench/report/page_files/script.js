"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MOST = 400; // bars that can be told apart
  const LISTED = 5;

  const make = (tag, kind, text) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(1);

  // --- tables ---

  const compared = (text) => (a, b) => {
    if (text) return a.localeCompare(b, "en", { numeric: true });
    return Number(a) - Number(b);
  };

  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    const sort = (place) => {
      const button = heads[place].querySelector("button");
      const now = heads[place].getAttribute("aria-sort");
      const opposite = now === "ascending" ? "descending" : "ascending";
      const order = now === "none" ? button.dataset.first : opposite;
      heads.forEach((head) => head.setAttribute("aria-sort", "none"));
      heads[place].setAttribute("aria-sort", order);
      const by = compared("text" in button.dataset);
      const body = table.tBodies[0];
      const value = (row) => row.cells[place].dataset.value;
      const rows = [...body.rows];
      const known = rows.filter((row) => value(row) !== "");
      known.sort((a, b) => (order === "ascending" ? 1 : -1) * by(value(a), value(b)));
      body.append(...known, ...rows.filter((row) => value(row) === "")); // what has no value stays last
    };
    heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => sort(place)));
  };

  // --- images ---

  const picture = (number, name) => {
    if (number < 0) return make("span", "", name);
    const image = make("img");
    image.src = "data:image/jpeg;base64," + data.thumbnails[number];
    image.alt = name;
    return image;
  };

  const framed = (content) => {
    const frame = make("div", "frame");
    frame.append(content);
    return frame;
  };

  const asked = (section, query, detail) => {
    const figure = make("figure", "asked");
    let content = picture(detail.image, section.queries[query]);
    if (detail.box && detail.image >= 0) {
      const boxed = make("span", "boxed");
      const box = make("i");
      ["left", "top", "width", "height"].forEach((side, at) => {
        box.style[side] = 100 * detail.box[at] + "%";
      });
      boxed.append(content, box);
      content = boxed;
    }
    figure.append(framed(content), make("figcaption", "", detail.box ? "query, its box drawn" : "query"));
    return figure;
  };

  const strip = (section, places, first) => {
    const list = make("ol", "strip");
    places.forEach(([image, kind, before, score], at) => {
      const [name, number] = section.images[image];
      const item = make("li", data.kinds[kind]);
      item.title = name;
      const moved = first ? String(at + 1) : before + " → " + (at + 1);
      const said = make("span", "kind", data.kinds[kind]);
      item.append(framed(picture(number, name)), said, " " + moved, make("br"), score.toPrecision(4));
      item.append(make("span", "name", name));
      list.append(item);
    });
    list.tabIndex = 0;
    list.setAttribute("aria-label", "first images");
    return list;
  };

  // --- differences by query ---

  const differing = (article) => {
    const section = data.sections[Number(article.dataset.section)];
    const one = (name) => article.querySelector(name);
    const ours = one(".ours"), theirs = one(".theirs"), chosen = one(".query"), panel = one(".panel");

    const open = (query) => {
      const detail = section.details[query];
      const heading = make("h4", "", section.queries[query]);
      const close = make("button", "plain", "close");
      const head = make("div", "head");
      close.type = "button";
      heading.tabIndex = -1;
      close.addEventListener("click", () => {
        panel.hidden = true;
        mark("");
        chosen.focus();
      });
      head.append(heading, close);
      panel.replaceChildren(head);
      if (detail) {
        panel.append(asked(section, query, detail));
        const shown = [0, Number(ours.value), Number(theirs.value), ...section.rows.keys()];
        new Set(shown).forEach((row) => {
          const value = section.values[row][query];
          const said = value === null ? "no value" : section.measure + " " + value.toFixed(1);
          panel.append(make("h5", "", section.rows[row] + " (" + said + ")"));
          panel.append(strip(section, detail.rankings[row], row === 0));
        });
        panel.append(make("p", "note", "Under an image: its grade, its place in the first stage → here, its score."));
      } else {
        panel.append(make("p", "note", "The rankings of this query are not in the page."));
      }
      panel.hidden = false;
      mark(String(query));
      heading.focus({ preventScroll: true });
      panel.scrollIntoView({ block: "nearest" });
    };

    const mark = (query) => {
      chosen.value = query;
      article.querySelectorAll(".differences button").forEach((bar) => {
        bar.setAttribute("aria-pressed", String(bar.dataset.query === query));
      });
    };

    const bar = ([query, difference], low, high) => {
      const button = make("button");
      const fill = make("span", difference > 0 ? "gain" : difference < 0 ? "loss" : "");
      button.type = "button";
      button.tabIndex = -1;
      button.dataset.query = query;
      button.title = section.queries[query] + ": " + signed(difference);
      button.setAttribute("aria-label", button.title);
      const zero = 3 + (94 * high) / (high - low || 1); // percent from the top, 3 of which are margin
      fill.style.height = (94 * Math.abs(difference)) / (high - low || 1) + "%";
      fill.style[difference < 0 ? "top" : "bottom"] = (difference < 0 ? zero : 100 - zero) + "%";
      button.append(fill);
      button.addEventListener("click", () => open(query));
      return button;
    };

    const listing = (place, queries) => {
      place.replaceChildren(...queries.map(([query, difference]) => {
        const item = make("li");
        const button = make("button", "", section.queries[query] + " " + signed(difference));
        button.type = "button";
        button.addEventListener("click", () => open(query));
        item.append(button);
        return item;
      }));
      if (!queries.length) place.replaceChildren(make("li", "", "none"));
    };

    const draw = () => {
      const a = section.values[Number(ours.value)], b = section.values[Number(theirs.value)];
      const found = [];
      a.forEach((value, query) => {
        if (value !== null && b[query] !== null) found.push([query, section.better * (value - b[query])]);
      });
      // what four decimals of a percent cannot tell apart is a tie
      found.forEach((pair) => { if (Math.abs(pair[1]) < 1e-4) pair[1] = 0; });
      found.sort((x, y) => x[1] - y[1] || x[0] - y[0]);
      const wins = found.filter((pair) => pair[1] > 0), losses = found.filter((pair) => pair[1] < 0);
      const mean = found.length ? found.reduce((sum, pair) => sum + pair[1], 0) / found.length : 0;
      const ties = found.length - wins.length - losses.length;
      const half = MOST / 2;
      const bars = found.length > MOST ? [...found.slice(0, half), ...found.slice(-half)] : found;
      one(".compared").textContent = section.rows[Number(ours.value)] + " minus " + section.rows[Number(theirs.value)];
      one(".counts").textContent = found.length
        ? wins.length + " wins, " + ties + " ties, " + losses.length + " losses; mean " + signed(mean) + " points" +
          (bars.length < found.length ? "; the " + MOST + " greatest differences are drawn" : "")
        : "No query has a value in both.";
      const low = found.length ? Math.min(0, found[0][1]) : 0;
      const high = found.length ? Math.max(0, found[found.length - 1][1]) : 0;
      const place = one(".differences");
      place.replaceChildren(...bars.map((pair) => bar(pair, low, high)));
      if (place.firstChild) place.firstChild.tabIndex = 0;
      listing(one(".worst"), losses.slice(0, LISTED));
      listing(one(".rescues"), wins.slice(-LISTED).reverse());
      mark(panel.hidden ? "" : chosen.value);
    };

    one(".differences").addEventListener("keydown", (event) => {
      const step = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[event.key];
      const next = step && event.target[step];
      if (!next) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    chosen.addEventListener("change", () => { if (chosen.value !== "") open(Number(chosen.value)); });
    [ours.value, theirs.value] = section.pair;
    const again = () => {
      draw();
      if (!panel.hidden) open(Number(chosen.value));
    };
    ours.addEventListener("change", again);
    theirs.addEventListener("change", again);
    draw();
  };

  // --- print ---

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("article.comparison").forEach(differing);
})();

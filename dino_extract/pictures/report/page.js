"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const n = data.names.length;
  const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0)).buffer;
  const maps = Object.fromEntries(Object.entries(data.maps).map(([name, text]) => [name, new Float32Array(bytes(text))]));
  const neighbours = new Int32Array(bytes(data.neighbours));
  const similarity = new Float32Array(bytes(data.similarity));
  const k = n ? neighbours.length / n : 0;
  const cluster = new Int32Array(bytes(data.cluster));
  const folder = new Int32Array(bytes(data.folder));
  const label = data.labels && new Int32Array(bytes(data.label));
  const isolation = new Float32Array(bytes(data.isolation));
  const norms = new Float32Array(bytes(data.norms));
  const thumbSize = new Uint8Array(bytes(data.thumbSize));
  const groupOf = new Int32Array(n).fill(-1);
  data.duplicates.forEach((group, number) => group.forEach((i) => { groupOf[i] = number; }));
  const members = Array.from({ length: data.numClusters }, () => []);
  for (let i = 0; i < n; i++) members[cluster[i]].push(i);

  const PALETTE = ["#3366cc", "#e8590c", "#2b8a3e", "#c2255c", "#7048e8", "#0c8599", "#a0743c", "#e03131", "#5c940d", "#d6336c",
    "#1098ad", "#f08c00", "#5f3dc4", "#495057", "#74b816", "#862e9c", "#4dabf7", "#ff8787", "#38d9a9", "#b197fc"];
  const PALE = "#b9bfca";
  const ramp = (t) => {  // dark blue over green to yellow
    const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
    const at = Math.min(0.9999, Math.max(0, t)) * 4, low = stops[Math.floor(at)], high = stops[Math.floor(at) + 1];
    return `rgb(${low.map((v, c) => Math.round(v + (high[c] - v) * (at % 1))).join(",")})`;
  };
  const ranked = (values) => {  // share of images with a smaller value
    const order = Array.from(values.keys()).sort((a, b) => values[a] - values[b]);
    const rank = new Float32Array(n);
    order.forEach((i, place) => { rank[i] = place / Math.max(1, n - 1); });
    return rank;
  };
  const byKind = (kind, label) => ({ colour: (i) => (kind[i] < PALETTE.length ? PALETTE[kind[i]] : PALE), legend: label });
  const byRank = (values, low, high) => {
    let rank = null;  // sorted when it is first looked at
    return { colour: (i) => { rank = rank || ranked(values); return ramp(rank[i]); }, legend: () => [[ramp(0), low], [ramp(1), high]] };
  };
  const kinds = (names) => () => names.slice(0, 12).map((name, c) => [PALETTE[c], name]).concat(names.length > 12 ? [[PALE, "..."]] : []);
  const colourings = {
    cluster: byKind(cluster, kinds(members.map((list, c) => `${c} (${list.length})`))),
    folder: byKind(folder, kinds(data.folders)),
    ...(label && { label: byKind(label, kinds(data.labels)) }),
    duplicates: { colour: (i) => (groupOf[i] < 0 ? PALE : PALETTE[groupOf[i] % PALETTE.length]), legend: () => [[PALE, "no duplicate"]] },
    "outliers": byRank(isolation, "like others", "like no other"),
    "vector length": byRank(norms, "short", "long"),
  };
  if (data.folders.length < 2) delete colourings.folder;

  // Thumbnails: sheets are decoded when one of their pictures is first wanted.
  const sheets = new Array(data.sheets.length);
  const perSheet = data.perRow * data.perRow;
  function sheet(number, whenReady) {
    if (!sheets[number]) {
      const image = new Image();
      sheets[number] = { image, ready: false, waiting: [] };
      image.onload = () => { sheets[number].ready = true; sheets[number].waiting.splice(0).forEach((call) => call()); };
      image.src = "data:image/jpeg;base64," + data.sheets[number];
    }
    if (!sheets[number].ready && whenReady) sheets[number].waiting.push(whenReady);
    return sheets[number].ready ? sheets[number].image : null;
  }
  const hasThumb = (i) => thumbSize[2 * i] > 0;
  function drawThumb(context, i, x, y, side, again) {
    if (!hasThumb(i)) return;
    const image = sheet(Math.floor(i / perSheet), again), cell = i % perSheet;
    if (!image) return;
    const w = thumbSize[2 * i], h = thumbSize[2 * i + 1], scale = side / Math.max(w, h);
    const left = (cell % data.perRow) * data.side, top = Math.floor(cell / data.perRow) * data.side;
    context.drawImage(image, left, top, w, h, x + (side - w * scale) / 2, y + (side - h * scale) / 2, w * scale, h * scale);
  }
  function thumbCanvas(i, side, isTrimmed) {  // trimmed to the shape of the image, or square
    const canvas = document.createElement("canvas"), ratio = window.devicePixelRatio || 1;
    const longer = Math.max(thumbSize[2 * i], thumbSize[2 * i + 1]) || 1;
    const [w, h] = [0, 1].map((c) => (isTrimmed ? (side * thumbSize[2 * i + c]) / longer : side));
    canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio);
    canvas.style.width = w + "px"; canvas.style.height = h + "px";
    const draw = () => drawThumb(canvas.getContext("2d"), i, (w - side) * ratio / 2, (h - side) * ratio / 2, side * ratio, draw);
    draw();
    return canvas;
  }
  function tile(i, side, text) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "tile";
    button.title = data.names[i];
    button.dataset.index = i;
    button.append(thumbCanvas(i, side));
    if (text) button.append(text);
    button.onclick = () => select(i, true);
    return button;
  }
  function strip(indices, side, text) {
    const box = document.createElement("div");
    box.className = "strip";
    box.append(...indices.map((i) => tile(i, side, text && text(i))));
    return box;
  }
  const line = (tag, text, name) => { const e = document.createElement(tag); e.textContent = text; if (name) e.className = name; return e; };

  // The map.
  const canvas = document.getElementById("map"), context = canvas.getContext("2d"), tip = document.getElementById("tip");
  const mapChoice = document.getElementById("map-choice"), colourChoice = document.getElementById("colour-choice");
  const showPictures = document.getElementById("show-pictures");
  let points = null, view = { x: 0, y: 0, scale: 1 }, selected = -1, hovered = -1, found = null, asked = false, bins = null;

  function useMap(name) {
    const raw = maps[name], low = [Infinity, Infinity], high = [-Infinity, -Infinity];
    for (let i = 0; i < n; i++) for (const c of [0, 1]) { low[c] = Math.min(low[c], raw[2 * i + c]); high[c] = Math.max(high[c], raw[2 * i + c]); }
    const extent = Math.max(high[0] - low[0], high[1] - low[1]) || 1;
    points = new Float32Array(2 * n);
    for (let i = 0; i < n; i++) for (const c of [0, 1]) points[2 * i + c] = (raw[2 * i + c] - (low[c] + high[c]) / 2) / extent;
    // A grid of lists makes the search for the image under the pointer independent of n.
    bins = new Map();
    for (let i = 0; i < n; i++) {
      const key = binOf(points[2 * i]) * 1000 + binOf(points[2 * i + 1]);
      if (!bins.has(key)) bins.set(key, []);
      bins.get(key).push(i);
    }
    whole();
  }
  const binOf = (v) => Math.min(127, Math.max(0, Math.floor((v + 0.5) * 128)));
  const ratio = () => window.devicePixelRatio || 1;
  function whole() {
    view = { x: 0, y: 0, scale: 0.9 * Math.min(canvas.clientWidth, canvas.clientHeight) };
    draw();
  }
  const toScreen = (i) => [canvas.clientWidth / 2 + (points[2 * i] - view.x) * view.scale, canvas.clientHeight / 2 - (points[2 * i + 1] - view.y) * view.scale];
  function draw() {
    if (!asked) { asked = true; requestAnimationFrame(paint); }
  }
  function paint() {
    asked = false;
    const w = canvas.clientWidth, h = canvas.clientHeight, r = ratio();
    if (canvas.width !== Math.round(w * r) || canvas.height !== Math.round(h * r)) { canvas.width = Math.round(w * r); canvas.height = Math.round(h * r); }
    context.setTransform(r, 0, 0, r, 0, 0);
    context.clearRect(0, 0, w, h);
    const zoom = view.scale / (0.9 * Math.min(w, h));
    const radius = Math.min(7, Math.max(1.6, 26 / Math.sqrt(n)) * Math.sqrt(zoom));
    const { colour } = colourings[colourChoice.value];
    if (showPictures.checked) paintPictures(w, h); else paintDots(w, h, radius, colour);
    if (selected >= 0) {
      context.strokeStyle = "#1d2330";
      for (let j = 0; j < k; j++) {
        const [x0, y0] = toScreen(selected), [x1, y1] = toScreen(neighbours[selected * k + j]);
        context.globalAlpha = 0.35; context.lineWidth = 1;
        context.beginPath(); context.moveTo(x0, y0); context.lineTo(x1, y1); context.stroke();
      }
      context.globalAlpha = 1;
      ring(selected, radius + 5, "#1d2330");
    }
    if (hovered >= 0) ring(hovered, radius + 3, "#d9480f");
  }
  function paintDots(w, h, radius, colour) {
    for (let i = 0; i < n; i++) {
      const [x, y] = toScreen(i);
      if (x < -9 || y < -9 || x > w + 9 || y > h + 9) continue;
      context.fillStyle = colour(i);
      context.globalAlpha = found && !found.has(i) ? 0.12 : 0.8;
      context.beginPath(); context.arc(x, y, found && found.has(i) ? radius + 2 : radius, 0, 7); context.fill();
    }
    context.globalAlpha = 1;
  }
  function paintPictures(w, h) {  // one for each place, so that there are never more than the screen can show
    const side = 46, taken = new Set();
    for (let i = 0; i < n; i++) {
      const [x, y] = toScreen(i), place = Math.floor(x / side) * 4096 + Math.floor(y / side);
      if (x < 0 || y < 0 || x > w || y > h || taken.has(place) || (found && !found.has(i))) continue;
      taken.add(place);
      if (hasThumb(i)) drawThumb(context, i, Math.floor(x / side) * side + 2, Math.floor(y / side) * side + 2, side - 4, draw);
      else { context.fillStyle = PALE; context.fillRect(x - 2, y - 2, 4, 4); }
    }
  }
  function ring(i, radius, colour) {
    const [x, y] = toScreen(i);
    context.strokeStyle = colour; context.lineWidth = 2.5;
    context.beginPath(); context.arc(x, y, radius, 0, 7); context.stroke();
  }
  function nearestTo(px, py, reach) {
    const x = (px - canvas.clientWidth / 2) / view.scale + view.x, y = (canvas.clientHeight / 2 - py) / view.scale + view.y;
    let best = -1, least = (reach / view.scale) ** 2;
    const span = reach / view.scale;
    for (let bx = binOf(x - span); bx <= binOf(x + span); bx++) {
      for (let by = binOf(y - span); by <= binOf(y + span); by++) {
        for (const i of bins.get(bx * 1000 + by) || []) {
          const distance = (points[2 * i] - x) ** 2 + (points[2 * i + 1] - y) ** 2;
          if (distance < least) { least = distance; best = i; }
        }
      }
    }
    return best;
  }
  function hover(i, px, py) {
    if (i !== hovered) {
      hovered = i;
      tip.hidden = i < 0;
      if (i >= 0) {
        tip.dataset.index = i;
        tip.replaceChildren(...(hasThumb(i) ? [thumbCanvas(i, Math.min(data.side, 160), true)] : []), data.names[i]);
      }
      draw();
    }
    if (i >= 0) {
      tip.style.left = Math.max(0, Math.min(px + 14, canvas.clientWidth - tip.offsetWidth - 4)) + "px";
      tip.style.top = Math.max(0, Math.min(py + 14, canvas.clientHeight - tip.offsetHeight - 4)) + "px";
    }
  }

  // The panel beside the map.
  const panel = document.getElementById("panel");
  function select(i, fromTile) {
    selected = i;
    const text = [...(label ? [data.labels[label[i]]] : []), `vector length ${norms[i].toPrecision(4)}`, `cluster ${cluster[i]}`];
    const parts = [...(hasThumb(i) ? [thumbCanvas(i, Math.max(data.side, 160), true)] : [line("p", "The image can no longer be read.", "empty")]),
      line("p", data.names[i], "path"), line("p", text.join(", "), "facts")];
    const near = Array.from({ length: k }, (_, j) => j);
    parts.push(line("h3", "Most similar"), neighbourStrip(i, near));
    if (groupOf[i] >= 0) {
      parts.push(line("h3", "Duplicates"), strip(data.duplicates[groupOf[i]].filter((other) => other !== i).slice(0, 24), 76));
    }
    parts.push(line("h3", `Cluster ${cluster[i]}, ${members[cluster[i]].length} images`), strip(members[cluster[i]].filter((other) => other !== i).slice(0, 16), 76));
    panel.replaceChildren(...parts);
    panel.dataset.index = i;
    panel.scrollTop = 0;
    if (fromTile) bringIntoView(i);
    draw();
  }
  function neighbourStrip(i, near) {
    const box = document.createElement("div");
    box.className = "strip";
    box.id = "neighbours";
    box.append(...near.map((j) => tile(neighbours[i * k + j], 76, similarity[i * k + j].toFixed(3))));
    return box;
  }
  function bringIntoView(i) {
    const [x, y] = toScreen(i);
    if (x < 20 || y < 20 || x > canvas.clientWidth - 20 || y > canvas.clientHeight - 20) { view.x = points[2 * i]; view.y = points[2 * i + 1]; }
    const frame = document.getElementById("explore").getBoundingClientRect();
    if (frame.bottom < 200) document.getElementById("explore").scrollIntoView();
  }
  function legend() {
    const box = document.getElementById("legend");
    box.replaceChildren(...colourings[colourChoice.value].legend().map(([colour, text]) => {
      const item = document.createElement("span"), dot = document.createElement("i");
      dot.style.background = colour;
      item.append(dot, text);
      return item;
    }));
  }

  // Events.
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  let drag = null;
  canvas.onpointerdown = (event) => { drag = { at: at(event), view: { ...view }, moved: false }; canvas.setPointerCapture(event.pointerId); };
  canvas.onpointermove = (event) => {
    const [x, y] = at(event);
    if (drag && Math.hypot(x - drag.at[0], y - drag.at[1]) > 4) drag.moved = true;
    if (drag && drag.moved) {
      view.x = drag.view.x - (x - drag.at[0]) / view.scale;
      view.y = drag.view.y + (y - drag.at[1]) / view.scale;
      hover(-1); draw();
    } else if (!drag) hover(nearestTo(x, y, 14), x, y);
  };
  canvas.onpointerup = (event) => {
    const clicked = drag && !drag.moved ? nearestTo(...at(event), 14) : -1;
    drag = null;
    if (clicked >= 0) select(clicked, false);
  };
  canvas.onpointerleave = () => hover(-1);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [x, y] = at(event), factor = Math.exp(-event.deltaY * 0.0015);
    const dx = (x - canvas.clientWidth / 2) / view.scale, dy = (canvas.clientHeight / 2 - y) / view.scale;
    view.scale *= factor;
    view.x += dx * (1 - 1 / factor); view.y += dy * (1 - 1 / factor);
    draw();
  }, { passive: false });
  canvas.onkeydown = (event) => {
    const step = { ArrowRight: 0, ArrowDown: 0, ArrowLeft: k - 1, ArrowUp: k - 1 }[event.key];
    if (event.key === "Escape") { selected = -1; draw(); }
    else if (step !== undefined && selected >= 0 && k) { event.preventDefault(); select(neighbours[selected * k + step], true); }
  };
  document.getElementById("find").oninput = (event) => {
    const wanted = event.target.value.toLowerCase();
    found = wanted ? new Set(data.names.flatMap((name, i) => (name.toLowerCase().includes(wanted) ? [i] : []))) : null;
    document.getElementById("hint").textContent = found ? `${found.size} found` : "drag to move, wheel to zoom, click an image";
    if (found && found.size) select(found.values().next().value, true);
    draw();
  };
  document.getElementById("reset").onclick = whole;
  showPictures.onchange = () => { document.getElementById("legend").hidden = showPictures.checked; draw(); };
  new ResizeObserver(draw).observe(canvas);

  // Galleries are filled when they come into sight.
  const fill = { outliers: fillOutliers, duplicates: fillDuplicates, clusters: fillClusters };
  const watcher = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
    watcher.unobserve(target);
    fill[target.dataset.gallery](target);
  }), { rootMargin: "400px" });
  function groupBox(text, box) { const group = line("div", "", "group"); group.append(line("p", text), box); return group; }
  function fillOutliers(target) {
    const order = Array.from(isolation.keys()).sort((a, b) => isolation[b] - isolation[a]).slice(0, 18);
    target.append(strip(order, 96, (i) => (1 - isolation[i]).toFixed(3)));
  }
  function fillDuplicates(target) {
    const shown = data.duplicates.slice(0, 60);
    target.className = "groups";
    target.append(...shown.map((group) => groupBox(`${group.length} images`, strip(group.slice(0, 14), 84))));
    if (shown.length < data.duplicates.length) target.append(line("p", `and ${data.duplicates.length - shown.length} more groups`, "note"));
  }
  function fillClusters(target) {
    target.append(...data.clusterShown.map((list, c) => groupBox(`Cluster ${c}, ${members[c].length} images`, strip(list, 84))));
  }

  for (const name of Object.keys(maps).reverse()) mapChoice.append(new Option(name, name));
  for (const name of Object.keys(colourings)) colourChoice.append(new Option(name, name));
  colourChoice.value = ["label", "folder", "cluster"].find((name) => colourings[name]);
  mapChoice.onchange = () => useMap(mapChoice.value);
  colourChoice.onchange = () => { legend(); draw(); };
  if (n) { useMap(mapChoice.value); legend(); }
  document.querySelectorAll("[data-gallery]").forEach((element) => watcher.observe(element));
  document.documentElement.dataset.ready = "yes";
})();

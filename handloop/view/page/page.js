// The report page's table and its one 3D view. Plain script, no network: works from file://.
(function () {
  "use strict";
  const report = window.handloopReport;
  const PAGE = 100;

  // ---- table: sorted and shown a page at a time, so that ten thousand hands stay quick ----
  const columns = report.columns;
  const count = report.rows.length;
  const table = document.getElementById("hands");
  const body = table.tBodies[0];
  const where = document.getElementById("where");
  const filter = document.getElementById("filter");
  const back = document.getElementById("back");
  const next = document.getElementById("next");
  let order = Array.from({ length: count }, (_, i) => i); // Rows come worst first.
  let shown = order;
  let page = 0;
  let sorted = { column: -1, up: true };

  function display(column, value) {
    if (value === null) return column.absent;
    if (column.kind === "number") {
      const options = { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits };
      return value.toLocaleString("en", options);
    }
    return value === true ? "yes" : value === false ? "no" : String(value);
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(page, pages - 1);
    const part = shown.slice(page * PAGE, (page + 1) * PAGE);
    const rows = document.createDocumentFragment();
    for (const at of part) {
      const tr = document.createElement("tr");
      report.rows[at].forEach((value, k) => {
        const td = document.createElement("td");
        const text = display(columns[k], value);
        if (columns[k].kind !== "number") td.className = "text " + columns[k].key;
        if (k === 0) td.title = text;
        if (k === 0 && report.cards[at] !== null) {
          const link = document.createElement("a");
          link.href = "#" + report.cards[at];
          link.textContent = text;
          td.append(link);
        } else {
          td.textContent = text; // Never as HTML: ids come from files.
        }
        tr.append(td);
      });
      rows.append(tr);
    }
    body.replaceChildren(rows);
    const first = shown.length ? page * PAGE + 1 : 0;
    where.textContent = `${first.toLocaleString("en")} to ${(page * PAGE + part.length).toLocaleString("en")} of ` +
      `${shown.length.toLocaleString("en")}`;
    back.disabled = page === 0;
    next.disabled = page >= pages - 1;
  }

  function compare(a, b) {
    if (typeof a === "string" && typeof b === "string") return a.localeCompare(b, "en", { numeric: true });
    return a < b ? -1 : a > b ? 1 : 0;
  }

  function sortBy(k) {
    // Numbers start with the largest, texts with the first.
    const up = sorted.column === k ? !sorted.up : columns[k].kind !== "number";
    sorted = { column: k, up: up };
    const sign = up ? 1 : -1;
    order = Array.from({ length: count }, (_, i) => i).sort((i, j) => {
      const a = report.rows[i][k], b = report.rows[j][k];
      if (a === null || b === null) return (a === null) - (b === null) || i - j; // Absent values last either way.
      return sign * compare(a, b) || i - j;
    });
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      if (i === k) cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
    narrow();
  }

  function narrow() {
    const words = filter.value.trim().toLowerCase();
    shown = words ? order.filter((i) => String(report.rows[i][0]).toLowerCase().includes(words)) : order;
    page = 0;
    draw();
  }

  const head = document.createElement("tr");
  columns.forEach((column, k) => {
    const th = document.createElement("th");
    th.scope = "col";
    if (column.kind !== "number") th.className = "text";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.label;
    button.title = column.help;
    button.addEventListener("click", () => sortBy(k));
    th.append(button);
    head.append(th);
  });
  table.tHead.replaceChildren(head);
  filter.addEventListener("input", narrow);
  back.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  draw();

  // ---- one 3D view, moved to the card that asks for it: browsers allow few of them at a time ----
  const scripts = new Map();
  function load(src) {
    if (!scripts.has(src)) {
      scripts.set(src, new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = src;
        script.onload = done;
        script.onerror = () => failed(new Error(`${src} is missing: keep the folder beside the page.`));
        document.head.append(script);
      }));
    }
    return scripts.get(src);
  }

  function bytes(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  }

  // Data are x right, y up, z towards the viewer, so this looks the way the camera did.
  const VIEWS = {
    "as in the picture": { eye: { x: 0, y: 0, z: 1.7 }, up: { x: 0, y: 1, z: 0 } },
    "from the side": { eye: { x: 1.7, y: 0, z: 0 }, up: { x: 0, y: 1, z: 0 } },
    "from above": { eye: { x: 0, y: 1.7, z: 0 }, up: { x: 0, y: 0, z: -1 } },
  };
  const plot = document.createElement("div");
  plot.className = "plot";
  const turns = document.createElement("div");
  turns.className = "turns";
  for (const [name, view] of Object.entries(VIEWS)) {
    addTurn(name, () => view);
  }
  for (const [sign, factor] of [["+", 0.8], ["\u2212", 1.25]]) {
    addTurn(sign, () => {
      const camera = plot.layout.scene.camera;
      const eye = camera.eye;
      return { ...camera, eye: { x: eye.x * factor, y: eye.y * factor, z: eye.z * factor } };
    });
  }

  const size = document.createElement("span");
  size.className = "size";
  size.textContent = "bar: 5 cm";

  function addTurn(name, camera) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => window.Plotly.relayout(plot, { "scene.camera": camera() }));
    turns.append(button);
  }

  function traces(mesh) {
    const points = new Int16Array(bytes(mesh.points));
    const faces = new Uint16Array(bytes(window.handloopMeshes.faces[mesh.side]));
    const pick = (array, k, factor) => Array.from({ length: array.length / 3 }, (_, i) => array[3 * i + k] * factor);
    const [x, y, z] = [pick(points, 0, 0.1), pick(points, 1, -0.1), pick(points, 2, -0.1)]; // Tenths of mm, y and z turned.
    // A bar below the hand gives the size: a mesh too, as lines in space are drawn differently from browser to browser.
    const low = Math.min(...y) - 10, middle = (Math.min(...x) + Math.max(...x)) / 2;
    const corners = [0, 1, 2, 3, 4, 5, 6, 7];
    const bar = (corner, bit, length) => ((corner >> bit) & 1 ? length : -length) / 2;
    return [
      {
        type: "mesh3d", x, y, z, i: pick(faces, 0, 1), j: pick(faces, 1, 1), k: pick(faces, 2, 1),
        color: mesh.side === "right" ? "#b0c4e2" : "#e8c8a8", hoverinfo: "skip", flatshading: false,
        lighting: { ambient: 0.45, diffuse: 0.8, specular: 0.25, roughness: 0.5, fresnel: 0.1 },
        lightposition: { x: -400, y: 700, z: 1200 },
      },
      {
        type: "mesh3d", x: corners.map((c) => middle + bar(c, 0, 50)), y: corners.map((c) => low + bar(c, 1, 2)),
        z: corners.map((c) => bar(c, 2, 2)), color: "#808890", hoverinfo: "skip", flatshading: true,
        i: [0, 0, 4, 4, 0, 0, 2, 2, 0, 0, 1, 1], j: [1, 3, 5, 7, 1, 5, 3, 7, 2, 6, 3, 7],
        k: [3, 2, 7, 6, 5, 4, 7, 6, 6, 4, 7, 5],
      },
    ];
  }

  let current = null;
  async function show(stage) {
    if (current === stage) return;
    if (current !== null) current.replaceChildren(opener(current));
    current = stage;
    stage.replaceChildren("loading\u2026");
    try {
      await Promise.all([load(report.files + "/plotly.min.js"), load(report.files + "/meshes.js")]);
    } catch (error) {
      stage.replaceChildren(error.message);
      return;
    }
    if (current !== stage) return; // Another card was asked for meanwhile.
    stage.replaceChildren(plot, size, turns);
    const axis = { visible: false, showspikes: false };
    const layout = {
      margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)",
      scene: { xaxis: axis, yaxis: axis, zaxis: axis, aspectmode: "data", dragmode: "orbit",
        camera: VIEWS["as in the picture"] },
    };
    const config = { displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: false };
    await window.Plotly.newPlot(plot, traces(window.handloopMeshes.hands[stage.dataset.hand]), layout, config);
  }

  function opener(stage) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Show the mesh in 3D";
    button.addEventListener("click", () => show(stage));
    return button;
  }

  const stages = [...document.querySelectorAll(".stage[data-hand]")];
  for (const stage of stages) stage.replaceChildren(opener(stage));

  function follow() {
    const card = location.hash.length > 1 ? document.getElementById(location.hash.slice(1)) : null;
    const stage = card && card.querySelector(".stage[data-hand]");
    if (stage) show(stage);
  }
  window.addEventListener("hashchange", follow);
  follow();

  // The first mesh appears by itself once it is scrolled to, to show that meshes can be turned.
  if (stages.length && "IntersectionObserver" in window) {
    const watcher = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        watcher.disconnect();
        if (current === null) show(stages[0]);
      }
    }, { threshold: 0.4 });
    watcher.observe(stages[0]);
  }
})();

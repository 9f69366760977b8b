"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const metricOf = Object.fromEntries(data.metrics.map((m) => [m.name, m]));
const runOf = Object.fromEntries(data.runs.map((r) => [r.name, r]));
const ARROWS = { higher: "↑", lower: "↓", zero: "→0", none: "" };

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// three digits that count, and never 0 for what is not
function number(x, signed = false) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  let text;
  if (size === 0) text = "0";
  else if (size >= 1e5 || size < 1e-3) text = x.toExponential(1);
  else text = x.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
  return (signed && x > 0 ? "+" : "") + text.replace("-", "−");
}

const interval = (s) => (s.low === null ? "" : `[${number(s.low)}, ${number(s.high)}]`);
const better = (metric) => ({ higher: 1, lower: -1, zero: -1, none: 0 })[metricOf[metric].direction];
const badness = (metric, value) => {
  if (metricOf[metric].direction === "zero") return Math.abs(value);
  return better(metric) < 0 ? value : -value;
};
const pairOf = (candidate, baseline, metric) =>
  data.pairs.find((p) => p.candidate === candidate && p.baseline === baseline && p.metric === metric);
const scored = (run) => data.metrics.filter((m) => runOf[run].summary[m.name]?.mean !== null && runOf[run].summary[m.name]);
const fill = (select, options) => {
  select.replaceChildren(...options.map(([value, label]) => el("option", { value }, label)));
  select.closest("label").hidden = options.length < 2;
};

function theme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

// a mean with its whiskers between null and ceiling
function whisker(s) {
  const points = [s.mean, s.low, s.high, s.null?.mean, s.null?.low, s.null?.high, s.ceiling?.mean, s.bounds?.[0], s.bounds?.[1]].filter(
    (x) => x !== null && x !== undefined,
  );
  let low = Math.min(...points), high = Math.max(...points);
  if (high === low) { low -= 1; high += 1; }
  const x = (v) => 8 + ((v - low) / (high - low)) * 224;
  const drawn = svg("svg", { viewBox: "0 0 240 34", role: "img", "aria-label": `${number(s.mean)} ${interval(s)}` });
  drawn.append(svg("line", { x1: 8, x2: 232, y1: 12, y2: 12, stroke: "var(--line)" }));
  if (s.null && s.null.mean !== null) {
    const from = s.null.low ?? s.null.mean, to = s.null.high ?? s.null.mean;
    drawn.append(svg("rect", { x: x(from) - 1.5, width: Math.max(3, x(to) - x(from) + 3), y: 5, height: 14, rx: 2, fill: "var(--even)", opacity: 0.45 }));
    drawn.append(svg("text", { x: Math.min(212, Math.max(14, x(s.null.mean))), y: 31, "text-anchor": "middle" }, "null"));
  }
  if (s.ceiling && s.ceiling.mean !== null) {
    drawn.append(svg("line", { x1: x(s.ceiling.mean), x2: x(s.ceiling.mean), y1: 4, y2: 20, stroke: "var(--good)", "stroke-width": 2 }));
    const near = s.null && s.null.mean !== null && Math.abs(x(s.ceiling.mean) - x(s.null.mean)) < 58;
    if (!near) drawn.append(svg("text", { x: Math.min(212, Math.max(24, x(s.ceiling.mean))), y: 31, "text-anchor": "middle" }, "ceiling"));
  }
  if (s.low !== null) drawn.append(svg("line", { x1: x(s.low), x2: x(s.high), y1: 12, y2: 12, stroke: "var(--strong)", "stroke-width": 3 }));
  drawn.append(svg("circle", { cx: x(s.mean), cy: 12, r: 5, fill: "var(--strong)" }));
  return drawn;
}

function verdict() {
  const run = data.runs[0].name, other = data.runs[1]?.name;
  const named = data.headline.filter((m) => runOf[run].summary[m] && runOf[run].summary[m].mean !== null);
  const counts = { better: 0, worse: 0, indistinguishable: 0 };
  if (other) for (const m of data.metrics) {
    const pair = pairOf(run, other, m.name);
    if (pair && better(m.name)) counts[pair.verdict] += 1;
  }
  const words = by("verdict-words");
  if (other) {
    words.append(el("b", {}, run), " against ", el("b", {}, other), ": ", el("b", { class: "good" }, `${counts.better} better`), ", ",
      el("b", { class: "bad" }, `${counts.worse} worse`), ", ", el("b", { class: "even" }, `${counts.indistinguishable} indistinguishable`),
      " at 95 % after correction.");
  } else {
    const beyond = named.filter((m) => aboveNull(runOf[run].summary[m], m) === true).length;
    const judged = named.filter((m) => aboveNull(runOf[run].summary[m], m) !== null).length;
    words.append(el("b", {}, run), `: ${runOf[run].clips} clips of ${runOf[run].prompts} prompts. `);
    if (judged) words.append(`${beyond} of ${judged} scores lie beyond what chance gives.`);
  }
  by("strip").append(...named.map((name) => {
    const s = runOf[run].summary[name];
    const pair = other && pairOf(run, other, name);
    const kind = { better: "good", worse: "bad", indistinguishable: "even" }[pair?.verdict];
    const chance = aboveNull(s, name) === false ? " · within chance" : "";
    return el("figure", {},
      el("figcaption", { title: metricOf[name].says }, el("span", { class: "name" }, `${name} ${ARROWS[metricOf[name].direction]}`),
        el("b", {}, number(s.mean))),
      whisker(s),
      el("p", { class: "quiet small" }, `n ${s.n}${s.references ? ` / ${s.references} real` : ""}${partial(s) ? `, coverage ${(100 * s.coverage).toFixed(0)} %` : ""}${chance} `,
        pair ? el("span", { class: kind }, pair.verdict) : null));
  }));
}

// no coverage where the metric applied to no clip
function partial(s) {
  return typeof s?.coverage === "number" && s.coverage < 1;
}

// null where there is nothing to compare with
function aboveNull(s, metric) {
  if (!s.null || s.null.mean === null || s.low === null || !better(metric)) return null;
  const low = s.null.low ?? s.null.mean, high = s.null.high ?? s.null.mean;
  if (metricOf[metric].direction === "zero") return Math.abs(s.mean) < Math.abs(s.null.mean) && (s.high < low || s.low > high);
  return better(metric) > 0 ? s.low > high : s.high < low;
}

const sorting = { column: null, down: true };
function table() {
  const wanted = by("metric-filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const rows = data.metrics.filter((m) => {
    const text = `${m.name} ${m.says} ${m.unit}`.toLowerCase();
    return !wanted.length || wanted.some((w) => text.includes(w));
  });
  const nullRun = data.runs[0].name;
  const columns = [["metric", (m) => m.name], ...data.runs.map((r) => [r.name, (m) => r.summary[m.name]?.mean]),
    ["null", (m) => runOf[nullRun].summary[m.name]?.null?.mean], ["ceiling", (m) => runOf[nullRun].summary[m.name]?.ceiling?.mean],
    ["coverage", (m) => runOf[nullRun].summary[m.name]?.coverage]];
  const key = sorting.column === null ? null : columns[sorting.column][1];
  if (key) rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === y) return 0;
    if (x === undefined || x === null) return 1;
    if (y === undefined || y === null) return -1;
    return (x < y ? -1 : 1) * (sorting.down ? 1 : -1);
  });
  const head = el("tr", {}, ...columns.map(([name], i) => el("th", {
    scope: "col", "aria-sort": sorting.column === i ? (sorting.down ? "ascending" : "descending") : "none",
  }, el("button", { type: "button", onclick: () => {
    sorting.down = sorting.column === i ? !sorting.down : true;
    sorting.column = i;
    table();
  } }, name + (sorting.column === i ? (sorting.down ? " ▲" : " ▼") : "")))));
  const body = [];
  let group = null;
  for (const m of rows) {
    const own = m.name.split(".")[0];
    if (!key && own !== group) {
      group = own;
      body.push(el("tr", { class: "group" }, el("td", {}, own), el("td", { colspan: columns.length - 1 })));
    }
    const first = runOf[nullRun].summary[m.name];
    body.push(el("tr", { "data-metric": m.name },
      el("th", { scope: "row", title: `${m.says}\nversion ${m.version}, definition ${m.hash}` },
        `${m.name.slice(own.length + 1) || m.name} ${ARROWS[m.direction]} `, el("span", { class: "quiet small" }, m.unit)),
      ...data.runs.map((r, i) => value(r.summary[m.name], i > 0 || !data.runs[1] || !better(m.name) ? null : pairOf(r.name, data.runs[1].name, m.name))),
      el("td", { class: "quiet" }, first?.null ? `${number(first.null.mean)} ` : "", el("span", { class: "small" }, first?.null?.kind ?? "")),
      el("td", { class: "quiet" }, first?.ceiling ? number(first.ceiling.mean) : ""),
      el("td", { class: partial(first) ? "bad" : "quiet" }, typeof first?.coverage === "number" ? `${(100 * first.coverage).toFixed(0)} %` : "")));
  }
  by("metrics").replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
}

function value(s, pair) {
  if (!s) return el("td", { class: "quiet" }, "–");
  const why = `ok ${s.n}, not applicable ${s.n_not_applicable}, failed ${s.n_failed}, skipped ${s.n_skipped}`;
  if (s.mean === null) return el("td", { class: "quiet", title: why }, s.n_failed ? "failed" : s.n_skipped ? "skipped" : "n/a");
  const mark = pair ? { better: "▲", worse: "▼", indistinguishable: "≈" }[pair.verdict] : "";
  const kind = pair ? { better: "good", worse: "bad", indistinguishable: "even" }[pair.verdict] : "";
  return el("td", { title: why }, el("b", {}, number(s.mean)), " ", el("span", { class: "quiet small" }, interval(s)), " ",
    el("span", { class: kind, title: pair ? `${pair.verdict}, p ${number(pair.p_holm)}` : "" }, mark));
}

function forest() {
  const candidate = by("candidate").value, baseline = by("baseline").value;
  by("forest-same").textContent = "";
  const rows = data.metrics
    .map((m) => [m, pairOf(candidate, baseline, m.name)])
    .filter(([m, p]) => p && p.low !== null && better(m.name));
  if (!rows.length) return by("forest-plot").replaceChildren(el("p", {}, candidate === baseline ? "Choose two runs." : "No metric that both have."));
  const same = rows.filter(([, p]) => p.low === 0 && p.high === 0).map(([m]) => m.name);
  const turned = rows.filter(([, p]) => p.low !== 0 || p.high !== 0).map(([m, p]) => {
    const side = m.direction === "zero" ? -1 : better(m.name), unit = p.spread || 1;
    const ends = [(side * p.low) / unit, (side * p.high) / unit].sort((a, b) => a - b);
    return { m, p, mid: (side * p.value) / unit, low: ends[0], high: ends[1] };
  });
  const reach = Math.max(0.2, ...turned.map((r) => Math.max(Math.abs(r.low), Math.abs(r.high)))) * 1.05;
  // beside its line where there is room, else above it
  const room = by("forest-plot").clientWidth || 860, narrow = room < 640, width = narrow ? room : Math.min(room, 960);
  const height = narrow ? 46 : 24, left = narrow ? 24 : 240, right = narrow ? 24 : 270, bottom = turned.length * height + 24;
  const x = (v) => left + ((v + reach) / (2 * reach)) * (width - left - right);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${bottom + 20}`, width });
  drawn.append(svg("text", { x: x(0) - 8, y: 14, "text-anchor": "end" }, "← worse"), svg("text", { x: x(0) + 8, y: 14 }, "better →"));
  drawn.append(svg("line", { x1: x(0), x2: x(0), y1: 20, y2: bottom, stroke: "var(--quiet)", "stroke-dasharray": "3 3" }));
  turned.forEach((r, i) => {
    const y = 34 + i * height + (narrow ? 20 : 0), words = y + (narrow ? -12 : 4);
    const colour = { better: "var(--good)", worse: "var(--bad)", indistinguishable: "var(--even)" }[r.p.verdict];
    const line = svg("g", { "data-metric": r.m.name }, svg("title", {},
      `${r.m.says}\n${r.p.prompts} prompts; a difference of ${number(r.p.detectable)} would be found 4 times in 5`));
    const chance = `p ${r.p.p_holm < 0.001 ? "<.001" : r.p.p_holm.toFixed(3)}`;
    const ends = narrow ? "" : ` [${number(r.p.low)}, ${number(r.p.high)}]`;
    line.append(svg("text", { x: 0, y: words }, r.m.name));
    line.append(svg("line", { x1: x(r.low), x2: x(r.high), y1: y, y2: y, stroke: colour, "stroke-width": 3 }));
    line.append(svg("circle", { cx: x(r.mid), cy: y, r: 4.5, fill: colour }));
    line.append(svg("text", { x: narrow ? width : width - right + 12, y: words, style: `fill:${colour}`, "text-anchor": narrow ? "end" : "start" },
      `${number(r.p.value, true)}${ends}  ${chance}`));
    drawn.append(line);
  });
  drawn.append(svg("text", { x: x(0), y: bottom + 16, "text-anchor": "middle" }, "0"));
  for (const end of [-1, 1]) {
    drawn.append(svg("text", { x: x((end * reach) / 1.05), y: bottom + 16, "text-anchor": "middle" }, number((end * reach) / 1.05, true)));
  }
  by("forest-plot").replaceChildren(...(turned.length ? [drawn] : []));
  by("forest-same").textContent = same.length ? `No difference in any prompt: ${same.join(", ")}.` : "";
}

function heat() {
  const axis = by("axis").value, run = by("heat-run").value;
  const cells = data.cells.filter((c) => c.run === run && c.axis === axis);
  const names = [...new Set(cells.map((c) => c.category))];
  const rows = data.metrics.filter((m) => better(m.name) && runOf[run].summary[m.name]?.sd && cells.some((c) => c.metric === m.name && c.n));
  const find = new Map(cells.map((c) => [`${c.metric}\n${c.category}`, c]));
  by("heat-map").replaceChildren(
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, axis), ...names.map((n) => el("th", { scope: "col" }, n)))),
    el("tbody", {}, ...rows.map((m) => el("tr", {}, el("th", { scope: "row", title: m.says }, `${m.name} ${ARROWS[m.direction]}`),
      ...names.map((n) => {
        const c = find.get(`${m.name}\n${n}`);
        if (!c || c.mean === null) return el("td", { class: "few" }, "–");
        const said = `${c.n} prompts, ${interval(c)}`;
        if (!c.shown) return el("td", { class: "few", title: `${said}: too few` }, number(c.mean));
        const strength = Math.min(1, Math.abs(c.z) / 1.2) * 0.55;
        return el("td", { title: said, style: `background: rgba(var(--${c.z >= 0 ? "cool" : "warm"}), ${strength.toFixed(2)})` }, number(c.mean));
      })))));
  by("heat-note").textContent =
    `${rows.length ? "" : "No score varies between clips. "}Colour: how far a category lies from the run's mean, in spreads of clips; green is better. Striped cells stand on too few prompts (least=${data.least}).`;
}

let shown = [], at = 0;
function list(keep = false) {
  const run = by("clip-run").value, metric = by("clip-metric").value, order = by("clip-order").value, tag = by("clip-tag").value;
  const words = by("clip-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const score = (c) => {
    const own = c.values[metric];
    if (own === undefined) return null;
    if (order !== "apart") return badness(metric, own);
    const others = data.clips.filter((o) => o.prompt === c.prompt && o !== c && o.values[metric] !== undefined).map((o) => o.values[metric]);
    return others.length ? Math.max(...others.map((o) => Math.abs(o - own))) : null;
  };
  const rows = data.clips
    .filter((c) => c.run === run && (!tag || Object.values(c.tags).some((t) => t.includes(tag))))
    .filter((c) => words.every((w) => `${c.prompt} ${c.text}`.toLowerCase().includes(w)))
    .map((c) => ({ c, s: score(c) }));
  const sign = order === "best" ? -1 : 1;
  rows.sort((a, b) => (a.s === null) - (b.s === null) || sign * (b.s - a.s) || a.c.prompt.localeCompare(b.c.prompt, undefined, { numeric: true }));
  shown = rows.map((r) => r.c);
  by("clip-count").textContent = `${shown.length} of ${data.clips.filter((c) => c.run === run).length} clips.`;
  by("clip-list").replaceChildren(...shown.slice(0, 500).map((c, i) => el("li", { onclick: () => pick(i) },
    el("span", {}, c.text || c.prompt), el("b", {}, number(c.values[metric] ?? null)),
    el("span", { class: "quiet small" }, `${c.prompt}${c.seed ? ` · seed ${c.seed}` : ""}`),
    el("span", { class: "quiet small" }, c.values[metric] === undefined ? (c.faults[metric]?.[0] ?? "").replace("_", " ") : ""))));
  if (!keep) at = 0;
  pick(Math.min(at, shown.length - 1), false);
}

function pick(i, scroll = true) {
  at = i;
  const items = by("clip-list").children;
  for (let k = 0; k < items.length; k += 1) items[k].setAttribute("aria-current", k === i);
  if (i < 0) return by("clip-view").replaceChildren(el("p", { class: "absent" }, "No clip fits."));
  if (scroll) items[i]?.scrollIntoView({ block: "nearest" });
  const c = shown[i];
  const video = c.src ? el("video", { src: c.src, controls: true, loop: true, preload: "auto", playsinline: true }) : null;
  const values = data.metrics.filter((m) => c.values[m.name] !== undefined);
  by("clip-view").replaceChildren(
    video ?? el("p", { class: "absent" }, c.missing || "The clip does not lie beside this page."),
    ...(c.timeline ? timeline(c.timeline, video) : []),
    el("p", {}, c.text), el("p", { class: "quiet small" }, [c.prompt, ...Object.values(c.tags).flat()].join(" · ")),
    el("details", {}, el("summary", {}, `${values.length} scores, ${Object.keys(c.faults).length} without a value`),
      el("dl", {}, ...values.flatMap((m) => [el("dt", {}, m.name), el("dd", {}, `${number(c.values[m.name])} ${m.unit}`)]),
        ...Object.entries(c.faults).flatMap(([name, [status, reason]]) => [el("dt", {}, name), el("dd", { class: "quiet" }, `${status.replace("_", " ")}: ${reason}`)]))));
}

// level of the sound above, motion below, onsets and motion peaks as ticks, a cursor that follows the video
function timeline(t, video) {
  const width = 600, middle = 46, x = (s) => (s / t.duration_s) * width;
  const drawn = svg("svg", { viewBox: `0 0 ${width} 104`, class: "timeline", role: "img", "aria-label": "sound above, motion below, over time" });
  const curve = (values, sign) => {
    const points = values.map((v, i) => `${(((i + 0.5) / values.length) * width).toFixed(1)},${(middle - sign * v * 40).toFixed(1)}`);
    return `M0,${middle} L${points.join(" L")} L${width},${middle} Z`;
  };
  drawn.append(svg("path", { d: curve(t.sound, 1), fill: "var(--sound)", opacity: 0.35 }), svg("path", { d: curve(t.motion, -1), fill: "var(--motion)", opacity: 0.35 }));
  for (const s of t.onsets_s) drawn.append(svg("line", { x1: x(s), x2: x(s), y1: 4, y2: middle, class: "sound", "stroke-width": 2 }));
  for (const s of t.peaks_s) drawn.append(svg("line", { x1: x(s), x2: x(s), y1: middle, y2: 88, class: "motion", "stroke-width": 2 }));
  drawn.append(svg("line", { x1: 0, x2: width, y1: middle, y2: middle, stroke: "var(--line)" }));
  const step = t.duration_s > 8 ? 2 : t.duration_s > 3 ? 1 : 0.5;
  for (let s = 0; s <= t.duration_s - step / 4; s += step) drawn.append(svg("text", { x: x(s) + 2, y: 102 }, `${s} s`));
  const cursor = svg("line", { x1: 0, x2: 0, y1: 0, y2: 90, stroke: "var(--ink)", "stroke-width": 1.5 });
  drawn.append(cursor);
  if (video) {
    const follow = () => {
      cursor.setAttribute("x1", x(video.currentTime));
      cursor.setAttribute("x2", x(video.currentTime));
      if (!video.paused && video.isConnected) requestAnimationFrame(follow);
    };
    for (const event of ["play", "seeked", "timeupdate"]) video.addEventListener(event, follow);
    drawn.addEventListener("click", (e) => {
      const box = drawn.getBoundingClientRect();
      video.currentTime = ((e.clientX - box.left) / box.width) * t.duration_s;
    });
  }
  return [drawn, el("p", { class: "legend quiet small" }, el("span", { class: "sound" }, "sound and its onsets"), el("span", { class: "motion" }, "motion and its peaks"))];
}

function failures() {
  const groups = new Map();
  for (const c of data.clips) for (const [metric, [status, reason]] of Object.entries(c.faults)) {
    const key = `${status}\n${reason}\n${c.run}`;
    if (!groups.has(key)) groups.set(key, { status, reason, run: c.run, metrics: new Set(), clips: new Set(), values: 0 });
    const group = groups.get(key);
    group.metrics.add(metric);
    group.clips.add(c.prompt);
    group.values += 1;
  }
  if (!groups.size) return by("failure-list").append(el("p", {}, "Every metric has a value for every clip."));
  const some = (names, most) => [...names].slice(0, most).join(", ") + (names.size > most ? ` and ${names.size - most} more` : "");
  for (const status of ["failed", "skipped", "not_applicable"]) {
    const rows = [...groups.values()].filter((r) => r.status === status).sort((a, b) => b.values - a.values);
    if (!rows.length) continue;
    by("failure-list").append(el("details", status === "failed" ? { open: true } : {},
      el("summary", { class: status === "failed" ? "bad" : "" }, `${status.replace("_", " ")}: ${rows.reduce((n, r) => n + r.values, 0)} values`),
      el("ul", { class: "plain" }, ...rows.map((r) => el("li", {}, r.reason, el("br"), el("span", { class: "quiet small" },
        `${data.runs.length > 1 ? `${r.run}: ` : ""}${r.clips.size} ${r.clips.size === 1 ? "clip" : "clips"} (${some(r.clips, 3)}); ${some(r.metrics, 6)}`))))));
  }
}

function provenance() {
  const say = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
  for (const run of data.runs) {
    by("provenance-list").append(el("details", { open: data.runs.length === 1 }, el("summary", {}, run.name),
      el("dl", {}, ...Object.entries(run.provenance).flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, say(v))]))));
  }
  by("provenance-list").append(el("details", {}, el("summary", {}, "definitions of the metrics"),
    el("dl", {}, ...data.metrics.flatMap((m) => [el("dt", {}, `${m.name} v${m.version} (${m.hash})`), el("dd", {}, `${m.says}${m.licence ? `. Licence: ${m.licence}` : ""}`)]))));
}

function start() {
  by("title").textContent = data.title;
  by("about").textContent = data.about;
  by("theme").addEventListener("click", theme);
  const runs = data.runs.map((r) => [r.name, r.name]);
  for (const id of ["candidate", "baseline", "heat-run", "clip-run"]) fill(by(id), runs);
  if (data.runs.length > 1) by("baseline").selectedIndex = 1;
  fill(by("axis"), [...new Set(data.cells.map((c) => c.axis))].map((a) => [a, a]));
  fill(by("clip-metric"), scored(data.runs[0].name).filter((m) => better(m.name)).map((m) => [m.name, m.name]));
  if (data.headline.length && metricOf[data.headline[0]]) by("clip-metric").value = data.headline[0];
  const tags = [...new Set(data.clips.flatMap((c) => Object.values(c.tags).flat()))].sort();
  fill(by("clip-tag"), [["", "all"], ...tags.map((t) => [t, t])]);
  for (const [part, there] of [["forest", data.runs.length > 1], ["heat", data.cells.length > 0]]) {
    by(part).hidden = !there;
    by(`to-${part}`).hidden = !there;
  }
  verdict();
  table();
  if (data.runs.length > 1) forest();
  if (data.cells.length) heat();
  list();
  failures();
  provenance();
  addEventListener("resize", () => data.runs.length > 1 && forest());
  by("metric-filter").addEventListener("input", table);
  for (const id of ["candidate", "baseline"]) by(id).addEventListener("change", forest);
  for (const id of ["axis", "heat-run"]) by(id).addEventListener("change", heat);
  for (const id of ["clip-run", "clip-metric", "clip-order", "clip-tag"]) by(id).addEventListener("change", () => list());
  by("clip-filter").addEventListener("input", () => list());
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) {
      if (e.key === "Escape") e.target.blur();
      return;
    }
    const moves = { j: 1, k: -1 };
    const inList = e.target === by("clip-list");
    const step = moves[e.key] ?? (inList ? { ArrowDown: 1, ArrowUp: -1 }[e.key] : undefined);
    if (step && shown.length) pick(Math.max(0, Math.min(shown.length - 1, at + step)));
    else if (e.key === "/") by("clip-filter").focus();
    else if (e.key === "t") theme();
    else if (e.key === " " && !/^(BUTTON|SUMMARY|VIDEO|A)$/.test(e.target.tagName)) {
      const video = by("clip-view").querySelector("video");
      if (!video) return;
      if (video.paused) video.play(); else video.pause();
    } else return;
    e.preventDefault();
  });
}
start();

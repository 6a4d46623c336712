"use strict";
// One node's dashboard. It asks that node for the cluster once a second, and each node for its own traffic, and draws what
// it is told. Whatever comes from a server goes in as text (`append`, `textContent`), never as HTML: anybody may name a key.

const POLL_MS = 1000;
const STATS_POLL_MS = 2000;
const BACKOFF_MS_MAX = 15_000;
const ANSWER_MS_MAX = 5000;
const SLOTS = 16_384;
const COLOURS = 8;
const CHART_MS = 300_000;
const ITEMS_PER_PAGE = 20;
const VALUE_BYTES_SHOWN_MAX = 1 << 20;

/** What is known; `null` and empty until it was asked for. */
const state = {
  cluster: null,
  answeredAt: null,
  failures: 0,
  shard: 0,
  traffic: new Map(), // of each node by name: its samples, or null if it gave no answer
};

// ---------------------------------------------------------------- elements

const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

const makeSvg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const drawn = new Map();

/** Puts what `build` makes of `data` into an element, if the data has changed; whoever had the focus there keeps it. */
function draw(id, data, build) {
  const text = JSON.stringify(data);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  const element = byId(id);
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.name : undefined;
  element.replaceChildren(...build(data));
  if (focused !== undefined) element.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
}

// ---------------------------------------------------------------- words and numbers

function bytesInWords(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  while (bytes >= 1024 && units.length > 1) {
    bytes /= 1024;
    units.shift();
  }
  return `${bytes >= 100 || Number.isInteger(bytes) ? Math.round(bytes) : bytes.toFixed(1)} ${units[0]}`;
}

function timeInWords(ms) {
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

function latencyInWords(micros) {
  if (micros === null) return "–";
  if (micros < 1000) return `${micros} µs`;
  return micros < 1_000_000 ? `${+(micros / 1000).toPrecision(2)} ms` : `${+(micros / 1_000_000).toPrecision(2)} s`;
}

const rateInWords = (rate) => (rate < 10 && rate > 0 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en"));

const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** Each node has the colour of its place in the list; a name always stands beside it. */
const colourOf = (name) => `colour-${state.cluster.nodes.findIndex((node) => node.name === name) % COLOURS}`;

const shardName = (id) => (id === null ? "control group" : `s${id}`);

const isKnownHere = (node) => state.cluster.authoritative || node.name === state.cluster.seen_by;

// ---------------------------------------------------------------- asking

/** The problem that a node answered with, or that there was no answer. */
class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(url, options = {}) {
  const response = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS_MAX), ...options }).catch(() => {
    throw new Failure("the node does not answer");
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Failure(problem.detail ?? `status ${response.status}`, response.status);
}

const askJson = async (url) => (await ask(url)).json();

/** The cluster as the control group's leader sees it, or else as the asked node does by itself. */
async function askCluster() {
  const leaderIsKnown = state.cluster?.control.leader !== null;
  if (leaderIsKnown) {
    try {
      return await askJson("/v1/cluster?timeout=2s");
    } catch (failure) {
      if (![503, 504].includes(failure.status)) throw failure;
    }
  }
  return askJson("/v1/cluster?consistency=stale");
}

/** Asks for the cluster and shows it; says when to ask again. */
async function pollCluster() {
  try {
    state.cluster = await askCluster();
    state.answeredAt = new Date();
    state.failures = 0;
    showCluster();
  } catch (failure) {
    state.failures += 1;
    showFailure(failure);
  }
  return pauseAfter(POLL_MS);
}

/** Twice as long after each time that the node did not answer. */
const pauseAfter = (ms) => Math.min(ms * 2 ** state.failures, BACKOFF_MS_MAX);

/** Asks every node for its traffic. */
async function pollTraffic() {
  const nodes = state.cluster?.nodes.filter((node) => node.state !== "removed") ?? [];
  await Promise.all(nodes.map(async (node) => state.traffic.set(node.name, await askTraffic(node))));
  if (nodes.length > 0) showTraffic(nodes);
  return pauseAfter(nodes.length > 0 ? STATS_POLL_MS : POLL_MS / 4);
}

async function askTraffic(node) {
  const isThis = node.name === state.cluster.seen_by;
  if (!isThis && node.http === null) return null;
  const origin = isThis ? "" : `${location.protocol}//${node.http}`;
  try {
    return (await askJson(`${origin}/v1/stats`)).samples;
  } catch {
    return null;
  }
}

/** Runs `poll` for ever, each time after as long as it says; not while nobody looks. */
async function repeat(poll) {
  for (;;) {
    const pause = await poll();
    await new Promise((resolve) => setTimeout(resolve, pause));
    while (document.hidden) {
      await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
    }
  }
}

// ---------------------------------------------------------------- health

function showCluster() {
  const { cluster } = state;
  byId("connection").hidden = true;
  byId("summary").textContent =
    `cluster ${cluster.cluster_id.slice(0, 8)} · seen by ${cluster.seen_by} · control group led by ${cluster.control.leader ?? "nobody"}`;
  showOwnView();
  showHealth(cluster.health);
  draw("nodes", cluster, drawNodes);
  showShards();
  draw("moves", cluster.moves, drawMoves);
}

function showOwnView() {
  const { cluster } = state;
  const note = byId("own-view");
  note.hidden = cluster.authoritative;
  if (!cluster.authoritative) {
    note.textContent =
      `Only what ${cluster.seen_by} knows by itself is shown: it reaches no leader of the control group. ` +
      "Bytes of other nodes, and scrubs and moves of shards led elsewhere, are not known here.";
  }
}

function showHealth(lines) {
  const isWell = lines.length === 0;
  byId("health").className = `notice ${isWell ? "good" : "warn"}`;
  const words = isWell ? [wellInWords()] : lines;
  const mark = isWell ? "✓" : "!";
  draw("health", words, () => words.map((line) => make("p", null, make("b", { class: "mark", "aria-hidden": "true" }, mark), ` ${line}`)));
  document.title = isWell ? "Flotilla: all is well" : `Flotilla: ${words[0]}`;
  announce(words);
}

function wellInWords() {
  const { nodes, shards_total: shards, replicas_wanted: wanted } = state.cluster;
  const members = nodes.filter((node) => node.state !== "removed").length;
  return `All is well: ${count(members, "node")}, ${count(shards, "shard")} with ${count(Math.min(wanted, members), "replica")} each.`;
}

let announced = "";

/** Reads health out when it changes; that a node is down for a second longer is no change. */
function announce(words) {
  const text = words.join(". ");
  const lasting = text.replace(/ for \d+ (s|min|h|days)/g, "");
  if (lasting === announced) return;
  announced = lasting;
  byId("announcement").textContent = text;
}

function showFailure(failure) {
  const connection = byId("connection");
  const since = state.answeredAt ? ` What is below is from ${state.answeredAt.toLocaleTimeString()}.` : "";
  const text = `${state.cluster?.seen_by ?? location.host}: ${failure.message}.${since} This page goes on asking.`;
  connection.hidden = false;
  // Said again only if there is something new to say.
  if (connection.textContent !== text) connection.textContent = text;
  document.title = "Flotilla: no answer";
}

// ---------------------------------------------------------------- nodes

const STATE_MARKS = { up: "✓", down: "✕", joining: "…", draining: "↓", removed: "–" };

function drawNodes(cluster) {
  const most = (field) => Math.max(1, ...cluster.nodes.map((node) => node[field]));
  const mosts = { replicas: most("replicas"), leaders: most("leaders"), bytes: most("bytes") };
  const zones = [...new Set(cluster.nodes.map((node) => node.zone))].sort();
  return zones.map((zone) => zoneGroup(zone, cluster.nodes.filter((node) => node.zone === zone), mosts));
}

function zoneGroup(zone, nodes, mosts) {
  const cards = make("div", { class: "cards" }, ...nodes.map((node) => nodeCard(node, mosts)));
  const group = make("div", { class: "zone" }, make("h3", null, zone ? `Zone ${zone}` : "No zone given"), cards);
  group.style.flex = `${nodes.length} 1 ${18 * nodes.length}rem`;
  return group;
}

function nodeCard(node, mosts) {
  const leadsControl = state.cluster.control.leader === node.name;
  const isThis = state.cluster.seen_by === node.name;
  return make("article", { class: `card node ${node.state}` },
    make("h4", null,
      make("span", { class: `swatch ${colourOf(node.name)}`, "aria-hidden": "true" }), node.name,
      make("span", { class: "state" }, `${STATE_MARKS[node.state] ?? "?"} ${node.state}`)),
    make("p", { class: "muted" }, nodeLink(node), isThis ? " · this node" : null, leadsControl ? " · leads the control group" : null),
    bar("replicas", node.replicas, node.replicas / mosts.replicas),
    bar("leaders", node.leaders, node.leaders / mosts.leaders),
    isKnownHere(node) ? bar("data", bytesInWords(node.bytes), node.bytes / mosts.bytes) : bar("data", "not known", 0));
}

function nodeLink(node) {
  if (node.http === null) return "no HTTP address";
  return make("a", { href: `${location.protocol}//${node.http}/`, "data-name": node.name }, node.http);
}

/** A number as text, and beside it a bar of that `part` of the longest. */
function bar(name, text, part) {
  const filled = make("span", { class: "filled" });
  filled.style.width = `${100 * part}%`;
  return make("p", { class: "bar" },
    make("span", { class: "muted" }, name), make("span", { class: "number" }, String(text)),
    make("span", { class: "track", "aria-hidden": "true" }, filled));
}

// ---------------------------------------------------------------- shards

function showShards() {
  const { nodes, shards } = state.cluster;
  state.shard = Math.min(state.shard, shards.length - 1);
  byId("shard-number").max = shards.length - 1;
  const leaders = shards.map((shard) => shard.leader);
  const names = nodes.map((node) => node.name);
  draw("ring", [names, leaders], drawRing);
  draw("legend", [names, leaders], drawLegend);
  draw("matrix", [nodes.map((node) => [node.name, node.state]), shards.map((shard) => [shard.leader, shard.replicas])], drawMatrix);
  showShard();
}

function drawLegend([names, leaders]) {
  const led = (name) => leaders.filter((leader) => leader === name).length;
  const item = (colour, text) => make("li", null, make("span", { class: `swatch ${colour}` }), ` ${text}`);
  const items = names.filter(led).map((name) => item(colourOf(name), `${name} leads ${led(name)}`));
  return led(null) > 0 ? [...items, item("leaderless", `no leader: ${led(null)}`)] : items;
}

function drawRing() {
  const { shards } = state.cluster;
  const ring = makeSvg("svg", { viewBox: "-136 -114 272 228", role: "group", "aria-label": "The slots as a ring of shards" });
  ring.append(...shards.map(sector), ...[0, 1, 2, 3].map(slotLabel));
  ring.append(
    makeSvg("text", { class: "large", y: 2 }, String(shards.length)),
    makeSvg("text", { y: 18 }, `shards, ${SLOTS} slots`));
  return [ring];
}

/** The point at this part of the way round, clockwise from the top. */
function onCircle(part, radius) {
  const angle = 2 * Math.PI * (part - 0.25);
  return `${(radius * Math.cos(angle)).toFixed(2)} ${(radius * Math.sin(angle)).toFixed(2)}`;
}

function sector(shard) {
  // A whole circle as one arc would begin where it ends, and be nothing.
  const [from, to] = [shard.slots[0] / SLOTS, Math.min((shard.slots[1] + 1) / SLOTS, shard.slots[0] / SLOTS + 0.9999)];
  const long = to - from > 0.5 ? 1 : 0;
  const path = `M ${onCircle(from, 96)} A 96 96 0 ${long} 1 ${onCircle(to, 96)} L ${onCircle(to, 62)} A 62 62 0 ${long} 0 ${onCircle(from, 62)} Z`;
  return makeSvg("path", {
    d: path,
    class: shard.leader === null ? "leaderless" : colourOf(shard.leader),
    role: "button",
    tabindex: -1,
    "data-name": shard.id,
    "data-shard": shard.id,
    "aria-label": `shard ${shard.id}, ${shard.leader === null ? "no leader" : `led by ${shard.leader}`}`,
  });
}

function slotLabel(quarter) {
  const [x, y] = onCircle(quarter / 4, 107).split(" ");
  const anchor = ["middle", "start", "middle", "end"][quarter];
  return makeSvg("text", { class: "slot", x: quarter % 2 ? 0.96 * x : x, y, "text-anchor": anchor }, String((quarter * SLOTS) / 4));
}

function drawMatrix() {
  const { nodes, shards } = state.cluster;
  const every = 4;
  const heads = shards.filter((shard) => shard.id % every === 0);
  const head = heads.map((shard) => make("th", { scope: "colgroup", colspan: Math.min(every, shards.length - shard.id) }, shardName(shard.id)));
  const row = (node) => make("tr", { class: node.state },
    make("th", { scope: "row" }, node.name, node.state === "up" ? null : ` ${STATE_MARKS[node.state] ?? "?"} ${node.state}`),
    ...shards.map((shard) => matrixCell(node, shard)));
  return [make("table", { class: "matrix" },
    make("thead", null, make("tr", null, make("th", { scope: "col" }, "node"), ...head)),
    make("tbody", null, ...nodes.map(row)))];
}

function matrixCell(node, shard) {
  const role = shard.replicas.find((replica) => replica.node === node.name)?.role;
  const isLeader = shard.leader === node.name;
  const mark = isLeader ? "L" : { voter: "●", learner: "○" }[role] ?? "";
  const words = isLeader ? "leader" : role ?? "no copy";
  return make("td", { class: isLeader ? "mark leader" : "mark", "data-shard": shard.id, title: `${shardName(shard.id)} on ${node.name}: ${words}` }, mark);
}

function selectShard(id) {
  const last = state.cluster.shards.length - 1;
  state.shard = Math.max(0, Math.min(id, last));
  showShard();
}

/** Marks the chosen shard in ring and matrix, and tells all of it. */
function showShard() {
  const shard = state.cluster.shards[state.shard];
  if (!shard) return;
  for (const element of document.querySelectorAll("[data-shard]")) {
    const isChosen = Number(element.dataset.shard) === shard.id;
    element.classList.toggle("chosen", isChosen);
    if (element.hasAttribute("tabindex")) element.setAttribute("tabindex", isChosen ? 0 : -1);
  }
  if (document.activeElement !== byId("shard-number")) byId("shard-number").value = shard.id;
  draw("shard", [shard, state.cluster.nodes.map((node) => node.state)], drawShard);
}

function drawShard([shard]) {
  const stateOf = (name) => state.cluster.nodes.find((node) => node.name === name)?.state ?? "not a member";
  const replica = ({ node, role }) =>
    `${node}: ${node === shard.leader ? "leader" : role}${stateOf(node) === "up" ? "" : `, ${stateOf(node)}`}`;
  const rows = [
    ["slots", `${shard.slots[0]} to ${shard.slots[1]}`],
    ["leader", shard.leader === null ? "none: it answers nothing" : `${shard.leader}, term ${shard.term}`],
    ["replicas", make("ul", null, ...shard.replicas.map((each) => make("li", null, replica(each))))],
    ["scrub", scrubInWords(shard.scrub)],
  ];
  return rows.flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)]);
}

const SCRUB_WORDS = {
  agreed: "all copies agreed",
  incomplete: "a copy did not take part",
  differed: "a copy differed and is made anew",
  undecided: "copies differ and no majority agrees: no writes",
};

function scrubInWords(scrub) {
  if (scrub === null) return "not known here";
  const { last, running } = scrub;
  const now = running ? `being compared, ${bytesInWords(running.bytes_done)} of ${bytesInWords(running.bytes_total)}; ` : "";
  if (last === null) return `${now}none ended since ${state.cluster.authoritative ? "its leader leads" : "this node knows"}`;
  return `${now}${SCRUB_WORDS[last.result] ?? last.result} (of ${last.copies}, ${new Date(last.at_ms).toLocaleString()})`;
}

function listenToShards() {
  const idOf = (event) => event.target.closest("[data-shard]")?.dataset.shard;
  for (const name of ["pointerover", "focusin", "click"]) {
    const choose = (event) => idOf(event) !== undefined && selectShard(Number(idOf(event)));
    byId("ring").addEventListener(name, choose);
    if (name !== "focusin") byId("matrix").addEventListener(name, choose);
  }
  byId("ring").addEventListener("keydown", stepRound);
  byId("shard-number").addEventListener("input", (event) => state.cluster && selectShard(event.target.valueAsNumber || 0));
}

function stepRound(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step === undefined || !state.cluster) return;
  event.preventDefault();
  const { length } = state.cluster.shards;
  selectShard((state.shard + step + length) % length);
  byId("ring").querySelector(`[data-shard="${state.shard}"]`)?.focus();
}

// ---------------------------------------------------------------- moves

function drawMoves(moves) {
  if (moves.length === 0) return [make("p", { class: "muted" }, state.cluster.authoritative ? "None." : "None that is known here.")];
  return [make("ul", { class: "moves" }, ...moves.map(moveItem))];
}

function moveItem(move) {
  const way = [move.from ? `from ${move.from}` : null, move.to ? `to ${move.to}` : null].filter(Boolean).join(" ");
  const words = `${shardName(move.shard)} ${way}: ${move.phase}`;
  const { bytes_done: done, bytes_total: total } = move;
  if (done === null) return make("li", null, make("span", null, words), total > 0 ? make("span", { class: "muted" }, bytesInWords(total)) : null);
  const left = move.eta_ms === null ? "" : `, about ${timeInWords(move.eta_ms)} left`;
  return make("li", null,
    make("span", null, words),
    make("progress", { max: Math.max(total, 1), value: total > 0 ? done : 1, "aria-label": words }),
    make("span", { class: "muted" }, `${bytesInWords(done)} of ${bytesInWords(total)}${left}`));
}

// ---------------------------------------------------------------- traffic

function showTraffic(nodes) {
  const known = nodes.map((node) => [node.name, state.traffic.get(node.name) ?? null]);
  const points = known.flatMap(([, samples]) => ratesOf(samples ?? []));
  const rateMax = niceMax(Math.max(10, ...points.map((point) => Math.max(point.reads, point.writes, point.errors))));
  const decadeMax = Math.ceil(Math.log10(Math.max(10_000, ...points.map((point) => point.p99_us ?? 0))));
  draw("traffic", known, () => known.map(([name, samples]) => nodeTraffic(name, samples, rateMax, decadeMax)));
}

/** The samples with counts made rates: a sample may cover more than its second. */
function ratesOf(samples) {
  return samples.map((sample, at) => {
    const before = samples[at - 1]?.at_ms ?? sample.at_ms - POLL_MS;
    const seconds = Math.max(sample.at_ms - before, POLL_MS / 2) / 1000;
    return { ...sample, reads: sample.reads / seconds, writes: sample.writes / seconds, errors: sample.errors / seconds };
  });
}

/** The next larger of 1, 2 or 5 times a power of ten. */
function niceMax(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function nodeTraffic(name, samples, rateMax, decadeMax) {
  const title = make("h3", null, make("span", { class: `swatch ${colourOf(name)}`, "aria-hidden": "true" }), name);
  if (samples === null) return make("div", { class: "traffic" }, title, make("p", { class: "muted" }, "no answer"));
  const points = ratesOf(samples);
  const last = points.at(-1) ?? { reads: 0, writes: 0, errors: 0, p50_us: null, p99_us: null };
  const rates = `${rateInWords(last.reads)} reads/s, ${rateInWords(last.writes)} writes/s, ${rateInWords(last.errors)} errors/s`;
  const times = `median ${latencyInWords(last.p50_us)}, 99th percentile ${latencyInWords(last.p99_us)}`;
  return make("div", { class: "traffic" }, title, make("div", { class: "charts" },
    chart(rates, points, ["reads", "writes", "errors"], linearScale(rateMax)),
    chart(times, points, ["p50", "p99"], latencyScale(decadeMax))));
}

/** A scale is where a value lies between 0 and 1, what to write beside it, and how a line's values are called in a sample. */
function linearScale(max) {
  const ticks = [0, max / 2, max].map((value) => [value / max, rateInWords(value)]);
  return { place: (value) => value / max, ticks, field: (line) => line };
}

/** Logarithmic from 100 µs on: medians and outliers differ a thousandfold. */
function latencyScale(decadeMax) {
  const decadeMin = 2;
  const place = (micros) => Math.max(0, (Math.log10(Math.max(micros, 1)) - decadeMin) / (decadeMax - decadeMin));
  const decades = Array.from({ length: decadeMax - decadeMin + 1 }, (_, at) => 10 ** (decadeMin + at));
  return { place, ticks: decades.map((micros) => [place(micros), latencyInWords(micros)]), field: (line) => `${line}_us` };
}

function chart(words, points, lines, scale) {
  const svg = makeSvg("svg", { viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img", "aria-label": words });
  svg.append(...scale.ticks.map(([place]) => makeSvg("line", { x1: 0, x2: 300, y1: 100 - 100 * place, y2: 100 - 100 * place })));
  svg.append(...lines.map((line) => makeSvg("path", { class: line, d: linePath(points, scale.field(line), scale.place) })));
  const labels = scale.ticks.map(([place, text]) => {
    const label = make("span", null, text);
    label.style.bottom = `${100 * place}%`;
    return label;
  });
  return make("figure", null,
    make("figcaption", null, words),
    make("div", { class: "plot" }, make("div", { class: "ticks", "aria-hidden": "true" }, ...labels), svg),
    make("p", { class: "times muted", "aria-hidden": "true" }, make("span", null, "5 min ago"), make("span", null, "now")));
}

/** A line through the samples that have the field; where one has not, the line is broken. */
function linePath(points, field, place) {
  const end = points.at(-1)?.at_ms ?? 0;
  let pen = "M";
  return points.map((point) => {
    const value = point[field];
    if (value === null) {
      pen = "M";
      return "";
    }
    const x = 300 * (1 - (end - point.at_ms) / CHART_MS);
    // A lone sample is a dot: a line of no length with round ends.
    const step = `${pen} ${x.toFixed(1)} ${(100 - 100 * place(value)).toFixed(1)}${pen === "M" ? " h 0.01" : ""}`;
    pen = "L";
    return step;
  }).join(" ");
}

// ---------------------------------------------------------------- bytes

const encoder = new TextEncoder();
// It neither guesses nor drops a byte order mark: what is shown as text is exactly that text.
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The bytes as text; `null` if they are not UTF-8. */
function textOf(bytes) {
  try {
    return decoder.decode(bytes);
  } catch {
    return null;
  }
}

const hexOf = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(" ");

function bytesOfHex(hex) {
  const digits = hex.replaceAll(/\s/g, "");
  if (/[^0-9a-f]/i.test(digits) || digits.length % 2) throw new Failure("hex is pairs of 0 to 9 and a to f");
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

const bytesOfBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** A field for text or bytes, and the choice beside it. */
class BytesField {
  constructor(id) {
    this.input = byId(id);
    this.form = byId(`${id}-form-of`);
    this.form.addEventListener("change", () => this.rewrite());
  }

  get bytes() {
    return this.form.value === "hex" ? bytesOfHex(this.input.value) : encoder.encode(this.input.value);
  }

  /** Text only if the field gives exactly it back: fields change line ends, for one. */
  set bytes(bytes) {
    const text = textOf(bytes);
    this.input.value = text ?? "";
    this.form.value = text !== null && this.input.value === text ? "text" : "hex";
    if (this.form.value === "hex") this.input.value = hexOf(bytes);
  }

  /** The same bytes in the form that was just chosen, if they can be written so. */
  rewrite() {
    if (this.form.value === "hex") {
      this.input.value = hexOf(encoder.encode(this.input.value));
      return;
    }
    try {
      this.bytes = bytesOfHex(this.input.value);
      if (this.form.value === "hex") throw new Failure("a text field would change these bytes: they stay hex");
    } catch (failure) {
      this.form.value = "hex";
      sayOfKey(failure.message, "bad");
    }
  }
}

/** The bytes for people: text with what cannot be seen escaped; if it is no text, all but plain letters as `\xff`. */
function shown(bytes, lengthMax = 200) {
  const text = textOf(bytes);
  const escaped = text === null
    ? Array.from(bytes.subarray(0, lengthMax), shownByte)
    : Array.from(text.slice(0, lengthMax), (character) => character.replace(/[\p{C}\u2028\u2029]/u, escapedCharacter));
  return escaped.join("") + ((text ?? bytes).length > lengthMax ? " …" : "");
}

const shownByte = (byte) => (byte > 31 && byte < 127 && byte !== 92 ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`);

const escapedCharacter = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;

// ---------------------------------------------------------------- keys

function sayOfKey(text, className = "") {
  byId("key-result").className = className;
  byId("key-result").textContent = text;
}

/** The key's address; each byte that is not plain is escaped. */
function keyPath(bytes) {
  const text = textOf(bytes);
  // Browsers take these for folders, escaped or not.
  if (text === "." || text === "..") throw new Failure("a browser cannot name this key; the command line can");
  return `/v1/kv/${Array.from(bytes, pathByte).join("")}`;
}

function pathByte(byte) {
  const character = String.fromCharCode(byte);
  return /[A-Za-z0-9_~.-]/.test(character) ? character : `%${byte.toString(16).padStart(2, "0")}`;
}

const versionOf = (response) => (response.headers.get("etag") ?? "").replaceAll('"', "");

async function getKey(fields) {
  const key = fields.key.bytes;
  const response = await ask(keyPath(key));
  const value = new Uint8Array(await response.arrayBuffer());
  const isShown = value.length <= VALUE_BYTES_SHOWN_MAX;
  fields.value.bytes = isShown ? value : new Uint8Array();
  // What is not shown must not be written back as nothing.
  byId("put").disabled = !isShown;
  const note = isShown ? (textOf(value) === null ? ", not UTF-8" : "") : ", too long to show and change here";
  sayOfKey(`${shown(key)}: version ${versionOf(response)}, ${bytesInWords(value.length)}${note}`, "good");
}

async function putKey(fields) {
  const key = fields.key.bytes;
  const response = await ask(keyPath(key), { method: "PUT", body: fields.value.bytes });
  sayOfKey(`${shown(key)}: ${response.status === 201 ? "created" : "replaced"}, version ${versionOf(response)}`, "good");
}

async function deleteKey(fields) {
  const key = fields.key.bytes;
  const path = keyPath(key);
  if (!(await confirmed(`Delete ${shown(key)}?`))) return;
  const { deleted } = await (await ask(path, { method: "DELETE" })).json();
  sayOfKey(`${shown(key)}: ${deleted ? "deleted" : "there was nothing to delete"}`, "good");
}

/** Asks before something is lost. */
function confirmed(question) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

function listenToKeys() {
  const fields = { key: new BytesField("key"), value: new BytesField("value") };
  const run = (action) => async (event) => {
    event.preventDefault();
    if (!byId("key-form").reportValidity()) return;
    sayOfKey("asking …", "muted");
    await action(fields).catch((failure) => sayOfKey(failure.message, "bad"));
    if (byId("key-result").textContent === "asking …") sayOfKey("");
  };
  byId("key-form").addEventListener("submit", run(getKey));
  byId("put").addEventListener("click", run(putKey));
  byId("delete").addEventListener("click", run(deleteKey));
  byId("key").addEventListener("input", () => (byId("put").disabled = false));
  byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
  byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  byId("item-rows").addEventListener("click", (event) => {
    const row = event.target.closest("[data-name]");
    if (!row) return;
    fields.key.bytes = scan.keys[Number(row.dataset.name)];
    run(getKey)(event);
  });
}

// ---------------------------------------------------------------- lists of keys

/** The list that is shown: its prefix, the cursors of the pages up to it, the one behind it, and its keys. */
const scan = { prefix: "", cursors: [], next: null, keys: [] };

async function listPage(cursors) {
  const cursor = cursors.at(-1) ?? "";
  const query = new URLSearchParams({ prefix: scan.prefix, limit: ITEMS_PER_PAGE, cursor });
  byId("scan-result").className = "muted";
  byId("scan-result").textContent = "asking …";
  try {
    const page = await askJson(`/v1/kv?${query}`);
    Object.assign(scan, { cursors, next: page.cursor });
    showItems(page.items);
  } catch (failure) {
    byId("scan-result").className = "bad";
    byId("scan-result").textContent = failure.message;
  }
}

function showItems(items) {
  const bytesOf = (item, name) => (item[name] === undefined ? bytesOfBase64(item[`${name}_b64`]) : encoder.encode(item[name]));
  scan.keys = items.map((item) => bytesOf(item, "key"));
  byId("item-rows").replaceChildren(...items.map((item, at) => itemRow(at, scan.keys[at], bytesOf(item, "value"), item.version)));
  byId("items").hidden = items.length === 0;
  const page = scan.cursors.length + 1;
  byId("scan-result").textContent = items.length === 0 ? "no such keys" : `page ${page}, ${count(items.length, "key")}${scan.next ? "" : ", the last page"}`;
  byId("page-back").disabled = scan.cursors.length === 0;
  byId("page-next").disabled = scan.next === null;
}

function itemRow(at, key, value, version) {
  const note = (bytes) => (textOf(bytes) === null ? make("span", { class: "tag" }, "not UTF-8") : null);
  return make("tr", null,
    make("td", null, make("button", { type: "button", class: "link", "data-name": at }, shown(key)), note(key)),
    make("td", null, shown(value, textOf(value) === null ? 24 : 80), " ", make("span", { class: "size muted" }, bytesInWords(value.length)), note(value)),
    make("td", { class: "number" }, String(version)));
}

function listenToScans() {
  byId("scan-form").addEventListener("submit", (event) => {
    event.preventDefault();
    scan.prefix = byId("prefix").value;
    listPage([]);
  });
  byId("page-next").addEventListener("click", () => listPage([...scan.cursors, scan.next]));
  byId("page-back").addEventListener("click", () => listPage(scan.cursors.slice(0, -1)));
}

listenToShards();
listenToKeys();
listenToScans();
repeat(pollCluster);
repeat(pollTraffic);

// The tab of recovery: which instants can be had, what would be lost, how the last rehearsal went.
"use strict";

const PITR = `${API}/pitr`;
const LINE = { left: 10, right: 990, top: 34, height: 26, foot: 84 };
const TICKS = 5;

const shape = (kind, attributes, title) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (title) {
    const words = document.createElementNS("http://www.w3.org/2000/svg", "title");
    words.textContent = title;
    node.append(words);
  }
  return node;
};

/// From time to place: from the oldest thing that is shown to now.
function scale(window, bases) {
  const starts = [window.earliest, ...bases.map((base) => base.stoppedAt)].filter(Boolean).map((at) => Date.parse(at));
  const to = Date.now();
  const from = Math.min(...starts, to - 60_000);
  return { from, to, x: (at) => LINE.left + ((Math.min(Math.max(at, from), to) - from) / (to - from)) * (LINE.right - LINE.left) };
}

function bar(place, from, to, kind, title) {
  const x = place.x(Date.parse(from));
  const width = Math.max(place.x(Date.parse(to)) - x, 1.5);
  return shape("rect", { x, y: LINE.top, width, height: LINE.height, class: kind }, title);
}

function drawTimeline(window, bases, drills) {
  const place = scale(window, bases);
  const ends = (stretch) => `${when(stretch.from)} – ${when(stretch.to)}`;
  const nodes = [shape("rect", { x: LINE.left, y: LINE.top, width: LINE.right - LINE.left, height: LINE.height, class: "none" }, "cannot be recovered")];
  nodes.push(...window.stretches.map((stretch) => bar(place, stretch.from, stretch.to, "can", `every instant: ${ends(stretch)}`)));
  nodes.push(...window.islands.map((island) => bar(place, island.from, island.to ?? island.from, "can", `pinned, as it was: ${when(island.from)}`)));
  nodes.push(...window.gaps.map((gap) => bar(place, gap.from, gap.to, "gap", `${gap.because}: ${ends(gap)}`)));
  if (window.endsBecause && window.latest) {
    nodes.push(bar(place, window.latest, new Date(place.to).toISOString(), "gap", `nothing later: ${window.endsBecause}`));
  }
  for (const base of bases) {
    const x = place.x(Date.parse(base.stoppedAt));
    nodes.push(shape("path", { d: `M${x} ${LINE.top - 4} l-7 -13 h14 z`, class: "base" }, `base backup of ${when(base.stoppedAt)}, ${size(base.storedBytes)}`));
  }
  for (const drill of drills.filter((drill) => drill.target && Date.parse(drill.target) >= place.from)) {
    const x = place.x(Date.parse(drill.target));
    const words = `${when(drill.target)}, rehearsed ${ago(drill.at)}: ${drill.failure ?? "passed"}`;
    nodes.push(shape("circle", { cx: x, cy: LINE.top + LINE.height / 2, r: 6, class: `drill ${drill.passed ? "" : "bad"}` }, words));
  }
  const span = place.to - place.from;
  for (let tick = 0; tick <= TICKS; tick += 1) {
    const at = place.from + (span * tick) / TICKS;
    const x = place.x(at);
    const anchor = tick === 0 ? "start" : tick === TICKS ? "end" : "middle";
    const text = shape("text", { x, y: LINE.foot + 14, "text-anchor": anchor });
    const style = span > 3 * 86_400_000 ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit", ...(span < 600_000 && { second: "2-digit" }) };
    text.textContent = tick === TICKS ? "now" : new Date(at).toLocaleString("en-GB", { ...style, timeZone: state.zone });
    nodes.push(shape("line", { x1: x, x2: x, y1: LINE.top + LINE.height, y2: LINE.foot }), text);
  }
  $("timeline").replaceChildren(...nodes);
  $("timeline").setAttribute("aria-label", $("window-text").textContent);
}

function windowText(window) {
  if (!window.lookedAt) return "The repository has not been read yet, so nobody knows what can be recovered.";
  return `${reachText(window)} Read from the repository ${ago(window.lookedAt)}.`;
}

function reachText(window) {
  if (!window.earliest) return `Nothing can be recovered yet: ${window.endsBecause ?? "it takes a base backup and its log"}.`;
  const but = window.gaps.length > 0 ? `, but for ${window.gaps.length} gap${window.gaps.length > 1 ? "s" : ""}` : "";
  const end = window.endsBecause ? ` Nothing later: ${window.endsBecause}.` : "";
  return `Every instant from ${when(window.earliest)} to ${when(window.latest)}${but}.${end}`;
}

const UNREAD = ["–", "not read yet"];

/// Without the log there is still the last dump, if there is one.
function lostTile(window, dump) {
  if (!window) return UNREAD;
  const lost = window.recoveryPointSeconds;
  if (lost !== null) return [duration(lost), "RPO: since the last archived commit"];
  if (dump === null) return ["–", "no instant can be recovered, and the list of dumps cannot be read"];
  if (!dump) return ["all", "no instant can be recovered, and no dump is proven"];
  return [duration((Date.now() - Date.parse(dump.at)) / 1000), `no instant can be recovered: all since the last proven dump, of ${when(dump.at)}`];
}

/// The newest proven one, `undefined`: there is none, `null`: nobody knows.
async function lastDump() {
  try {
    const { what, last } = newestProven((await api(`${BACKUPS}/stats`)).kinds);
    return what === "database" ? last : undefined;
  } catch {
    return null;
  }
}

function drillTile(rehearsed) {
  const drill = rehearsed.drills[0];
  if (!rehearsed.lookedAt) return UNREAD;
  return drill ? [duration(drill.recoveryTimeSeconds), `RTO, ${ago(drill.at)}: ${drill.passed ? "passed" : "failed"}`] : ["none", "nothing was rehearsed yet"];
}

function basesTile(inShort, list) {
  if (!inShort) return UNREAD;
  const broken = list.filter((base) => base.incomplete).length;
  const newest = inShort.newest ? `the newest ${ago(inShort.newest.stoppedAt)}` : "take one";
  return [String(inShort.count), broken > 0 ? `${newest}; ${broken} cannot be used` : newest];
}

function logTile({ archive, lastArchived }) {
  if (!archive) return UNREAD;
  const last = lastArchived?.at ?? archive.newestAt;
  return [size(archive.storedBytes), last ? `last file ${ago(last)}` : "nothing archived yet"];
}

function showRecoveryTiles(stats, dump, list, rehearsed) {
  tile("n-rpo", ...lostTile(stats.window, dump));
  tile("n-rto", ...drillTile(rehearsed));
  tile("n-bases", ...basesTile(stats.baseBackups, list));
  tile("n-log", ...logTile(stats));
}

function baseState(base) {
  if (base.incomplete) return `cannot be used: ${base.incomplete}`;
  return base.deletedAt ? "to be deleted" : "proven";
}

function baseRow(base) {
  const state = stateCell(baseState(base), !base.incomplete && !base.deletedAt);
  state.className = "text";
  return cells(element("tr"), timeCell(base.stoppedAt), base.labels.join(", "), String(base.timeline), size(base.unpackedBytes), size(base.storedBytes), state);
}

function drillRow(drill) {
  const { planSeconds, unpackSeconds, verifySeconds, replaySeconds, promoteSeconds } = drill.phases;
  const phases = [planSeconds, unpackSeconds, verifySeconds, replaySeconds, promoteSeconds].map(duration).join(", ");
  const result = stateCell(drill.passed ? "passed" : drill.failure, drill.passed);
  result.className = "text";
  result.title = drill.findings.map((finding) => `${finding.passed ? "yes" : "NO"}: ${finding.what}: ${finding.found}`).join("\n");
  return cells(element("tr"), timeCell(drill.at), drill.target ? when(drill.target) : "none", duration(drill.recoveryTimeSeconds), phases,
    drill.recoveryPointSeconds === null ? "unknown" : duration(drill.recoveryPointSeconds), result);
}

function runText(what, run) {
  if (run.now) return `${what}: ${run.now.step ?? "begun"}${run.now.bytes ? `, ${size(run.now.bytes)}` : ""}`;
  return run.last?.failure ? `The last ${what}, ${when(run.last.at)}: ${run.last.failure}` : "";
}

async function order(path, words) {
  await act(() => api(`${PITR}/${path}`, { method: "POST" }), (done) => (done.ordered ? words : "One is running already."));
}

function showWindow(window, bases, drills) {
  const isKnown = Boolean(window.lookedAt);
  $("window-text").textContent = windowText(window);
  $("recovery-map").hidden = !isKnown;
  if (isKnown) drawTimeline(window, bases.filter((base) => !base.incomplete), drills);
}

parts.recovery = {
  async refresh() {
    let answers;
    try {
      answers = await Promise.all(["stats", "window", "base-backups", "drills?limit=20"].map((path) => api(`${PITR}/${path}`)));
    } catch (error) {
      if (error.status !== 422) throw error;
      $("recovery-off").hidden = false;
      $("recovery-on").hidden = true;
      return;
    }
    const [stats, window, list, rehearsed] = answers;
    $("recovery-off").hidden = true;
    $("recovery-on").hidden = false;
    showWindow(window, list.baseBackups, rehearsed.drills);
    const dump = stats.window && !stats.window.latest ? await lastDump() : undefined;
    showRecoveryTiles(stats, dump, list.baseBackups, rehearsed);
    $("recovery-runs").textContent = [runText("base backup", list.run), runText("drill", rehearsed.run)].filter(Boolean).join(" · ");
    $("base-now").disabled = list.running || !may("operator");
    $("drill-now").disabled = rehearsed.running || !window.latest || !may("operator");
    rows("bases", list.baseBackups, baseRow, list.lookedAt ? "There is no base backup yet." : "Not read yet.");
    rows("drills", rehearsed.drills, drillRow, rehearsed.lookedAt ? "Nothing was rehearsed yet." : "Not read yet.");
  },
};

$("base-now").addEventListener("click", () => order("base-backup", "The base backup has begun."));
$("drill-now").addEventListener("click", () => order("drill", "A random instant is being recovered into a scratch directory."));

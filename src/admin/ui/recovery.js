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

const when = (text) => new Date(text).toLocaleString();

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
    text.textContent = tick === TICKS ? "now" : new Date(at).toLocaleString(undefined, style);
    nodes.push(shape("line", { x1: x, x2: x, y1: LINE.top + LINE.height, y2: LINE.foot }), text);
  }
  $("timeline").replaceChildren(...nodes);
  $("timeline").setAttribute("aria-label", $("window-text").textContent);
}

function windowText(window) {
  if (!window.earliest) return `Nothing can be recovered yet${window.endsBecause ? `: ${window.endsBecause}` : ": it takes a base backup and its log."}`;
  const but = window.gaps.length > 0 ? `, but for ${window.gaps.length} gap${window.gaps.length > 1 ? "s" : ""}` : "";
  const end = window.endsBecause ? ` Nothing later: ${window.endsBecause}.` : "";
  return `Every instant from ${when(window.earliest)} to ${when(window.latest)}${but}.${end}`;
}

function showRecoveryTiles(stats, bases, drill) {
  const lost = stats.window?.recoveryPointSeconds ?? null;
  tile("n-rpo", lost === null ? "all" : duration(lost), lost === null ? "nothing can be recovered" : "RPO: since the last archived commit");
  tile("n-rto", drill ? duration(drill.recoveryTimeSeconds) : "none", drill ? `RTO, ${ago(drill.at)}: ${drill.passed ? "passed" : "failed"}` : "nothing was rehearsed yet");
  const newest = stats.baseBackups?.newest;
  tile("n-bases", String(bases.length), newest ? `the newest ${ago(newest.stoppedAt)}` : "take one");
  tile("n-log", stats.archive ? size(stats.archive.storedBytes) : "–", stats.lastArchived ? `last file ${ago(stats.lastArchived.at)}` : "nothing archived yet");
}

function baseRow(base) {
  return cells(element("tr"), timeCell(base.stoppedAt), base.labels.join(", "), String(base.timeline), size(base.unpackedBytes), size(base.storedBytes),
    stateCell(base.deletedAt ? "to be deleted" : "proven", !base.deletedAt));
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
  return run.last?.failure ? `The last ${what} of ${when(run.last.at)} failed: ${run.last.failure}` : "";
}

async function order(path, words) {
  try {
    const done = await api(`${PITR}/${path}`, { method: "POST" });
    message(done.ordered ? words : "One is running already.");
    await Promise.all([refresh(), showAudit()]);
  } catch (error) {
    fail(error);
  }
}

parts.recovery = {
  async refresh() {
    let answers;
    try {
      answers = await Promise.all(["stats", "window", "base-backups", "drills"].map((path) => api(`${PITR}/${path}`)));
    } catch (error) {
      if (error.status !== 503) throw error;
      $("recovery-off").textContent = `${error.message}. To have it: [pitr] enabled = true in config.toml.`;
      $("recovery-off").hidden = false;
      $("recovery-on").hidden = true;
      return;
    }
    const [stats, window, list, rehearsed] = answers;
    $("recovery-off").hidden = true;
    $("recovery-on").hidden = false;
    $("window-text").textContent = windowText(window);
    showRecoveryTiles(stats, list.baseBackups, rehearsed.drills[0]);
    drawTimeline(window, list.baseBackups, rehearsed.drills);
    $("recovery-runs").textContent = [runText("base backup", list.run), runText("drill", rehearsed.run)].filter(Boolean).join(" · ");
    $("base-now").disabled = list.running || !may("operator");
    $("drill-now").disabled = rehearsed.running || !window.latest || !may("operator");
    rows("bases", list.baseBackups, baseRow, "There is no base backup yet.", 6);
    rows("drills", rehearsed.drills.slice(0, 20), drillRow, "Nothing was rehearsed yet.", 6);
  },
};

$("base-now").addEventListener("click", () => order("base-backup", "The base backup has begun."));
$("drill-now").addEventListener("click", () => order("drill", "A random instant is being recovered into a scratch directory."));

// The tab of backups: what there is, how a run goes, and the few things that can be asked of them.
"use strict";

const BACKUPS = `${API}/backups`;
const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];

function size(bytes) {
  const power = bytes > 0 ? Math.min(Math.floor(Math.log2(bytes) / 10), SIZES.length - 1) : 0;
  return `${Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format(bytes / 1024 ** power)} ${SIZES[power]}`;
}

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

/** Names are the words of whoever wrote the manifest, and shown as such. */
const subject = (backup) => `${backup.content} ${backup.name}`;

/** Where the repository holds the backups of several clusters, each with the words for its own. */
function withClusters(backups, own) {
  const isAlone = new Set(backups.map((backup) => backup.cluster).filter(Boolean)).size < 2;
  const known = (cluster) => (own ? (cluster === own ? ", this one" : ", another one") : "");
  return backups.map((backup) => ({ ...backup, where: isAlone || !backup.cluster ? "" : `cluster ${backup.cluster}${known(backup.cluster)}` }));
}

function backupRow(backup) {
  const made = when(backup.startedAt);
  const actions = element("td", undefined, "actions");
  if (backup.state !== "to be deleted") {
    actions.append(action("Verify", "operator", `Verify the backup of ${made}`, () => begin(`${backup.id}/verify`, {}, "The backup is being read back.")));
    if (backup.content === "files") actions.append(action("Restore", "viewer", `How to restore the backup of ${made}`, () => restoreFiles(backup)));
    else if (backup.good) actions.append(action("Restore", "admin", `Restore the backup of ${made}`, () => restore(backup), "danger"));
    actions.append(action("Delete", "admin", `Delete the backup of ${made}`, () => remove(backup), "danger"));
  } else actions.append(action("Undelete", "admin", `Take the mark off the backup of ${made}`, () => begin(`${backup.id}/undelete`, {}, "The backup stays.")));
  const what = lines(subject(backup), exact(backup.id), backup.where, backup.encrypted ? "" : "in the clear");
  const state = stateCell(backup.state === "good" ? `proven ${backup.level}` : backup.state, backup.good, backup.problem);
  return cells(element("tr"), timeCell(backup.startedAt), what, state, backup.labels.join(", "),
    lines(element("span", size(backup.storedBytes), "exact"), exact(`took ${duration(backup.durationSeconds)}`)), actions);
}

/** Which backup it is, for whoever is asked about it. */
function about(backup) {
  const version = backup.serverVersion ? `, PostgreSQL ${backup.serverVersion}` : "";
  const rows = backup.rows === null ? "" : `${backup.rows.toLocaleString("en")} rows, `;
  const facts = [
    ["Backup", backup.id, "address"],
    ["Of", `${subject(backup)}${version}`],
    ["Made", `${when(backup.startedAt)}, ${ago(backup.startedAt)}`],
    ["Holds", `${rows}${size(backup.plainBytes)}, stored as ${size(backup.storedBytes)}`],
    ["State", backup.state === "good" ? `proven ${backup.level}` : backup.state],
  ];
  return backup.where ? [...facts, ["In", backup.where]] : facts;
}

function kindRow(kind) {
  const last = kind.lastGood;
  return cells(element("tr"), kind.kind, `${kind.good} of ${kind.count}`, timeCell(last?.at, "none yet"), timeCell(kind.nextRun, "by hand"),
    size(kind.storedBytes), kind.overdue ? stateCell("overdue", false) : element("td"));
}

function runRow(run) {
  const what = [run.act, ...run.subjects].join(" ");
  const isGood = run.state === "succeeded" || run.state === "running";
  const why = run.reason ? `${run.failedStep}: ${run.reason}` : "";
  return cells(element("tr"), timeCell(run.startedAt), element("td", what, "text"), stateCell(run.state, isGood), element("td", why, "text"));
}

async function begin(path, body, words) {
  await act(() => api(`${BACKUPS}/${path}`, { method: "POST", body: JSON.stringify(body) }), () => words);
}

async function restore(backup) {
  message("Looking whether this backup can be restored …");
  let preview;
  try {
    preview = await api(`${BACKUPS}/restore`, { method: "POST", body: JSON.stringify({ id: backup.id, dryRun: true }) });
  } catch (error) {
    return fail(error);
  }
  message("");
  const words = [
    `What was written since ${when(backup.startedAt)} is lost to the app. The present database is kept aside under a dated name.`,
    "The backup is first restored beside it and counted; only then are they swapped, and requests wait for that moment.",
    ...preview.notes,
  ];
  if (!(await sure(`Put this backup in the place of the database ${preview.database}?`, "Restore", { facts: about(backup), words, destroys: true }))) return;
  await begin("restore", { id: backup.id }, "The restore has begun. The present database serves until the new one is proven.");
}

async function restoreFiles(backup) {
  const words = ["On the machine where they are wanted, into an empty directory:", `foregate backup restore ${backup.id} --into DIR`];
  await sure("Files are restored by command", "", { facts: about(backup), words });
}

async function remove(backup) {
  const words = ["It is marked now, and erased by the first clean-up after a day."];
  if (!(await sure("Delete this backup?", "Delete", { facts: about(backup), words, destroys: true }))) return;
  await act(() => api(`${BACKUPS}/${backup.id}`, { method: "DELETE" }), () => `Backup ${backup.id} is marked; the next clean-up after a day deletes it.`);
}

function tile(id, text, unit) {
  $(id).textContent = text;
  if (unit !== undefined) $(`${id}-unit`).textContent = unit;
}

/// How old the data would be that comes back: of the database, whatever was made of files since. Files count where there is
/// nothing else.
function newestProven(kinds) {
  const ofDatabase = kinds.filter((kind) => !kind.kind.startsWith("files:"));
  const what = ofDatabase.length > 0 ? "database" : "files";
  const proven = (ofDatabase.length > 0 ? ofDatabase : kinds).map((kind) => kind.lastGood).filter(Boolean);
  return { what, last: proven.sort((a, b) => Date.parse(b.at) - Date.parse(a.at))[0] };
}

function showBackupTiles(stats) {
  const { what, last } = newestProven(stats.kinds);
  tile("n-newest", last ? ago(last.at) : "none", last ? `${what}, ${when(last.at)}` : `no backup of the ${what} is proven yet`);
  tile("n-next", stats.nextRun ? ago(stats.nextRun) : "none", stats.nextRun ? when(stats.nextRun) : "nothing is scheduled");
  tile("n-proven", String(stats.good), `of ${stats.total} backups`);
  tile("n-stored", size(stats.storedBytes), stats.repository);
  $("backups-warnings").replaceChildren(...stats.warnings.map((text) => element("div", text, "notice warn")));
}

function showRun(run) {
  $("run-card").hidden = !run;
  for (const button of $("backup-buttons").querySelectorAll("button")) button.disabled = Boolean(run) || !may("operator");
  if (!run) return;
  $("run-title").textContent = `Running: ${run.act} ${run.subjects.join(" ")} – ${run.step}`;
  if (run.percent === null) $("run-progress").removeAttribute("value");
  else $("run-progress").value = run.percent;
  $("run-log").textContent = run.log.join("\n");
}

const newestOf = (shown, total) => (total > shown.length ? `The newest ${shown.length} of ${total}.` : "");

/** A button for each file set, built anew when there are others. */
function showSets(names) {
  const box = $("backup-sets");
  if (box.dataset.shown === JSON.stringify(names)) return;
  box.dataset.shown = JSON.stringify(names);
  const button = (name) => action(`Back up files ${name}`, "operator", `Back up the files ${name} now`,
    () => begin("create", { type: "files", name }, `The backup of the files ${name} has begun.`));
  box.replaceChildren(...names.map(button));
}

parts.backups = {
  async refresh() {
    let answers;
    try {
      answers = await Promise.all([api(`${BACKUPS}/stats`), api(`${BACKUPS}?limit=200`), api(`${BACKUPS}/runs?limit=20`)]);
    } catch (error) {
      if (error.status !== 422) throw error;
      $("backups-off").hidden = false;
      $("backups-on").hidden = true;
      return;
    }
    const [stats, list, runs] = answers;
    $("backups-off").hidden = true;
    $("backups-on").hidden = false;
    showBackupTiles(stats);
    showSets(stats.fileSets);
    showRun(list.running);
    rows("backups", withClusters(list.backups, stats.cluster), backupRow, "There is no backup yet.");
    rows("kinds", stats.kinds, kindRow, "Nothing is scheduled.");
    rows("runs", runs.runs, runRow, "Nothing has run yet.");
    $("backups-note").textContent = newestOf(list.backups, list.total);
    $("runs-note").textContent = newestOf(runs.runs, runs.total);
  },
};

$("backup-now").addEventListener("click", () => begin("create", {}, "The backup has begun."));

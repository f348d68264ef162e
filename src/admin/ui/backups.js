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
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function cells(row, ...values) {
  row.append(...values.map((value) => (value instanceof Node ? value : element("td", value))));
  return row;
}

function stateCell(text, isGood) {
  const cell = element("td");
  cell.append(element("span", text, `state ${isGood ? "good" : "bad"}`));
  return cell;
}

/// Rows are built anew only when they changed, so that they keep their focus.
function rows(id, values, build, none, columns) {
  const body = $(id);
  const shown = JSON.stringify([state.role, values, none]);
  if (body.dataset.shown !== shown) {
    body.dataset.shown = shown;
    if (values.length > 0) body.replaceChildren(...values.map(build));
    else {
      const cell = element("td", none, "hint");
      cell.colSpan = columns;
      body.replaceChildren(cells(element("tr"), cell));
    }
  }
  for (const cell of body.querySelectorAll("td.time[title]")) cell.textContent = ago(cell.title);
}

function action(text, role, label, act) {
  const button = element("button", text);
  button.type = "button";
  button.disabled = !may(role);
  button.ariaLabel = label;
  button.addEventListener("click", act);
  return button;
}

function backupRow(backup) {
  const what = backup.content === "database" ? `database ${backup.name}` : `files ${backup.name}`;
  const words = { good: `proven ${backup.level}`, "not proven": "not proven", "to be deleted": "to be deleted" };
  const made = new Date(backup.startedAt).toLocaleString();
  const actions = element("td", undefined, "actions");
  if (backup.state !== "to be deleted") {
    actions.append(action("Verify", "operator", `Verify the backup of ${made}`, () => begin(`${backup.id}/verify`, {}, "The backup is being read back.")));
    if (backup.content === "database" && backup.good) {
      actions.append(action("Restore", "admin", `Restore the backup of ${made}`, () => restore(backup, made)));
    }
    actions.append(action("Delete", "admin", `Delete the backup of ${made}`, () => remove(backup, made)));
  }
  const row = cells(element("tr"), timeCell(backup.startedAt), what, backup.labels.join(", "), size(backup.storedBytes),
    duration(backup.durationSeconds), stateCell(words[backup.state] ?? backup.state, backup.good), actions);
  row.title = `${backup.id}${backup.encrypted ? ", encrypted" : ", in the clear"}`;
  return row;
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

async function restore(backup, made) {
  message("Looking whether this backup can be restored …");
  let preview;
  try {
    preview = await api(`${BACKUPS}/restore`, { method: "POST", body: JSON.stringify({ id: backup.id, dryRun: true }) });
  } catch (error) {
    return fail(error);
  }
  message("");
  const question = `The database "${preview.database}" goes back to ${made}. What was written since is lost to the app; `
    + "the present database is kept aside under a dated name. The backup is first restored beside it and counted; only then are they swapped, "
    + "and requests wait for that moment.";
  if (!(await sure(question, "Restore"))) return;
  await begin("restore", { id: backup.id }, "The restore has begun. The present database serves until the new one is proven.");
}

async function remove(backup, made) {
  if (!(await sure(`The backup of ${made} is deleted after a day of grace.`, "Delete"))) return;
  await act(() => api(`${BACKUPS}/${backup.id}`, { method: "DELETE" }), () => "The backup is marked; the next clean-up after a day deletes it.");
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
  tile("n-newest", last ? ago(last.at) : "none", last ? `${what}, ${new Date(last.at).toLocaleString()}` : `no backup of the ${what} is proven yet`);
  tile("n-next", stats.nextRun ? ago(stats.nextRun) : "none", stats.nextRun ? new Date(stats.nextRun).toLocaleString() : "nothing is scheduled");
  tile("n-proven", String(stats.good), `of ${stats.total} backups`);
  tile("n-stored", size(stats.storedBytes), stats.repository);
  $("backups-warnings").replaceChildren(...stats.warnings.map((text) => element("div", text, "notice")));
}

function showRun(run) {
  $("run-card").hidden = !run;
  $("backup-now").disabled = Boolean(run) || !may("operator");
  if (!run) return;
  $("run-title").textContent = `Running: ${run.act} ${run.subjects.join(" ")} – ${run.step}`;
  if (run.percent === null) $("run-progress").removeAttribute("value");
  else $("run-progress").value = run.percent;
  $("run-log").textContent = run.log.join("\n");
}

parts.backups = {
  async refresh() {
    let answers;
    try {
      answers = await Promise.all([api(`${BACKUPS}/stats`), api(`${BACKUPS}?limit=200`), api(`${BACKUPS}/runs`)]);
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
    showRun(list.running);
    rows("backups", list.backups, backupRow, "There is no backup yet.", 7);
    rows("kinds", stats.kinds, kindRow, "Nothing is scheduled.", 6);
    rows("runs", runs.runs.slice(0, 20), runRow, "Nothing has run yet.", 4);
  },
};

$("backup-now").addEventListener("click", () => begin("create", {}, "The backup has begun."));

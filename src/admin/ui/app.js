// The admin page: asks the API with the token that was typed in, every two seconds. No framework, nothing from elsewhere.
"use strict";

const API = "/api/infrastructure";
const REFRESH_MS = 2000;
const LOOK_MS = 8000;
// Longer than Foregate lets any request wait, so that its own words arrive: a change goes on when nobody waits for it.
const CHANGE_MS = 40000;
const UNANSWERED = "No answer came. It may be done all the same: look at the runs and the audit trail before you ask for it again.";
const HISTORY = 90;                       // points of the small curve
const ROLES = ["viewer", "operator", "admin"];
const $ = (id) => document.getElementById(id);

const state = { part: "gate", token: sessionStorage.getItem("token") ?? "", role: "viewer", zone: "UTC", blocks: [], previous: null, rates: [], refused: [] };

class ApiError extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

async function api(path, options = {}) {
  const headers = { Authorization: `Bearer ${state.token}` };
  if (options.body) headers["Content-Type"] = "application/json";
  const signal = AbortSignal.timeout(options.method ? CHANGE_MS : LOOK_MS);
  let response, text;
  try {
    response = await fetch(path, { ...options, headers, signal });
    text = await response.text();
  } catch {
    throw new ApiError(0, "Foregate does not answer. Is it running?");
  }
  const body = text && response.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : {};
  if (!response.ok && !(path === "/health/db")) throw new ApiError(response.status, body.detail ?? `HTTP ${response.status}`);
  return body;
}

// ---- showing things

function element(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function note(id, text) {
  const box = $(id);
  box.hidden = !text;
  if (box.textContent !== text) box.textContent = text;   // else it is read aloud again and again
}

/** What became of the last act. It stays until the next one. */
function message(text, bad = false) {
  note("message", text);
  $("message").classList.toggle("bad", bad);
}

function fail(error) {
  if (error.status === 401) return signOut(error.message);
  message(error.message, true);
}

/** An act of the user, in words once it is done; then everything is shown anew. */
async function act(ask, words) {
  message("One moment …");
  try {
    message(words(await ask()));
  } catch (error) {
    fail(error.status === 0 ? new ApiError(0, UNANSWERED) : error);
  }
  await Promise.all([show(), showAudit()]);
}

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

function ago(text) {
  const seconds = (new Date(text) - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
  return relative.format(Math.round(seconds / size), unit);
}

/** In the zone of the schedules, and with its name: nobody asks at night whose clock it is. */
function when(text) {
  const at = new Date(text);
  const zone = new Intl.DateTimeFormat("en", { timeZone: state.zone, timeZoneName: "short" }).formatToParts(at);
  return `${at.toLocaleString("sv-SE", { timeZone: state.zone })} ${zone.find((part) => part.type === "timeZoneName").value}`;
}

function useZone(name) {
  try {
    new Intl.DateTimeFormat("en", { timeZone: name });
    state.zone = name;
  } catch {
    state.zone = "UTC";                   // this browser does not know it
  }
}

/** A cell, and in it what is to be known besides, on lines of its own. */
function lines(first, ...more) {
  const cell = element("td");
  cell.append(first, ...more.filter(Boolean).map((line) => (line instanceof Node ? line : element("small", line))));
  return cell;
}

/** What is copied, or read out to somebody, stands on one line. */
const exact = (text) => element("small", text, "exact");

function timeCell(text, none) {
  if (!text) return element("td", none);
  const age = element("time", ago(text));
  age.dateTime = text;
  return lines(age, exact(when(text)));
}

function stateCell(text, isGood, ...more) {
  return lines(element("span", text, `state ${isGood ? "good" : "bad"}`), ...more);
}

function cells(row, ...values) {
  row.append(...values.map((value) => (value instanceof Node ? value : element("td", value))));
  return row;
}

/** Rows are built anew only when they changed, so that they keep their focus. Where there is no room for columns, each cell
 * says itself what it is. */
function rows(id, values, build, none) {
  const body = $(id);
  const shown = JSON.stringify([state.role, state.zone, values, none]);
  if (body.dataset.shown === shown) return;
  body.dataset.shown = shown;
  const heads = [...body.parentElement.tHead.rows[0].cells].map((head) => head.textContent);
  body.replaceChildren(...values.map(build));
  for (const row of body.rows) heads.forEach((head, index) => { row.cells[index].dataset.label = head; });
  if (values.length > 0 || !none) return;
  const cell = element("td", none, "hint");
  cell.colSpan = heads.length;
  body.append(cells(element("tr"), cell));
}

function action(text, role, label, act, kind) {
  const button = element("button", text, kind);
  button.type = "button";
  button.disabled = !may(role);
  button.ariaLabel = label;
  button.addEventListener("click", act);
  return button;
}

function showFacts(id, facts) {
  $(id).replaceChildren(...facts.flatMap(([name, value, kind]) => [element("dt", name), element("dd", value, kind)]));
}

function short(number) {
  return Intl.NumberFormat("en", { notation: number >= 10000 ? "compact" : "standard", maximumFractionDigits: 1 }).format(number);
}

// ---- the parts of the page

function showHealth(health) {
  const isGood = health.status === "healthy";
  $("status").textContent = health.status;
  $("status").className = `status ${isGood ? "good" : "bad"}`;
  const notes = Object.entries(health.parts).filter(([, part]) => part.detail)
    .map(([name, part]) => element("div", `${name}: ${part.detail}`, "notice bad"));
  $("problems").replaceChildren(...notes);
}

function showStats(stats) {
  const now = performance.now() / 1000;
  const refused = stats.limitedRequests + stats.blockedRequests + stats.refusedConnections;
  const total = stats.admittedRequests + refused;
  const before = state.previous;
  state.previous = { now, total, refused };
  if (before && total >= before.total) {
    state.rates.push((total - before.total) / (now - before.now));
    state.refused.push({ now, refused });
    state.rates.splice(0, state.rates.length - HISTORY);
    while (state.refused.length > 1 && now - state.refused[0].now > 60) state.refused.shift();
    $("n-requests").textContent = short(state.rates.at(-1));
    $("n-refused").textContent = short(refused - state.refused[0].refused);
    drawCurve();
  }
  $("n-blocks").textContent = short(stats.blocksInForce);
  $("n-clients").textContent = short(stats.trackedClients);
}

function drawCurve() {
  const most = Math.max(1, ...state.rates);
  const points = state.rates.map((rate, index) => `${(index * 120) / (HISTORY - 1)},${31 - (rate / most) * 29}`).join(" ");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points);
  $("spark").replaceChildren(line);
}

function showBlocks() {
  const wanted = $("filter").value.trim().toLowerCase();
  const matches = state.blocks.filter((block) =>
    `${block.network} ${block.reason} ${block.createdBy} ${block.reference}`.toLowerCase().includes(wanted));
  rows("blocks", matches, blockRow);
  const total = state.total ?? 0;
  $("blocks-note").textContent =
    total === 0 ? "Nobody is blocked."
      : matches.length < total ? `${matches.length} of ${total} blocks${total > state.blocks.length ? " (the newest are searched)" : ""}` : "";
}

function blockRow(block) {
  const reason = element("td", block.reason, "text");
  reason.title = `reference ${block.reference}`;
  const by = block.source === "automatic" ? "Foregate" : block.createdBy;
  const lift = action("Lift", "operator", `Lift the block of ${block.network}`, () => liftBlock(block));
  return cells(element("tr"), element("td", block.network, "address"), reason, by, timeCell(block.createdAt), timeCell(block.expiresAt, "for ever"), lines(lift));
}

/** Asks, with the facts that the answer hangs on. What destroys is told by its colour; without `yes` there is nothing to answer. */
async function sure(question, yes, { facts = [], words = [], destroys = false } = {}) {
  $("question").textContent = question;
  showFacts("facts", facts);
  $("words").replaceChildren(...words.map((text) => element("p", text)));
  $("confirm-no").textContent = yes ? "Cancel" : "Close";
  $("confirm-yes").textContent = yes;
  $("confirm-yes").hidden = !yes;
  $("confirm-yes").className = destroys ? "danger" : "";
  $("confirm").returnValue = "";          // else a dismissed dialog repeats the last answer
  $("confirm").showModal();
  const answer = await new Promise((done) => $("confirm").addEventListener("close", () => done($("confirm").returnValue), { once: true }));
  return answer === "yes";
}

async function liftBlock(block) {
  if (!(await sure(`${block.network} may come back at once.`, "Lift the block"))) return;
  await change(`unblock/${encodeURIComponent(block.network)}`, null, (done) => `${done.block.network} is no longer blocked.`);
}

async function change(path, body, words) {
  const late = (done) => (done.durability === "queued" ? " The store is away: the change waits on disk and is written when it is back." : "");
  await act(() => api(`${API}/ddos/${path}`, { method: "POST", body: body ? JSON.stringify(body) : undefined }), (done) => words(done) + late(done));
}

/** A wider block may cover an address that is never blocked. */
function blockedWords(client) {
  if (client.blocked) return `yes: ${client.block.reason}`;
  const never = client.exempt ? "never (exempt)" : client.block === null ? "no" : "never";
  return client.block === null ? never : `${never}, though ${client.block.network} is`;
}

async function lookUp(event) {
  event.preventDefault();
  try {
    const client = await api(`${API}/ddos/ip/${encodeURIComponent($("look-address").value.trim())}`);
    const left = (number) => (number === null ? "not limited" : `${number} requests left`);
    const facts = [
      ["Client", client.client, "address"],
      ["Blocked", blockedWords(client)],
      ["Strikes", String(client.strikes)],
      ["This minute", left(client.remainingMinute)],
      ["This hour", left(client.remainingHour)],
    ];
    showFacts("client", facts);
    message("");
  } catch (error) {
    fail(error);
  }
}

async function addBlock(event) {
  event.preventDefault();
  const seconds = $("block-duration").value;
  const body = { reason: $("block-reason").value.trim() || undefined, durationSeconds: seconds ? Number(seconds) : undefined };
  await change(`block/${encodeURIComponent($("block-address").value.trim())}`, body, (done) => `${done.block.network} is blocked.`);
}

function auditRow(entry) {
  return cells(element("tr"), timeCell(entry.at), entry.actor, element("td", entry.from, "address"), entry.action,
    element("td", entry.subject, "address"), element("td", entry.result, "text"));
}

/** It lies in the store, which may be away while all else works: what is wrong with it is told beside it. */
async function showAudit() {
  if (!state.token) return;
  state.auditMissing = false;
  try {
    const trail = await api(`${API}/audit?limit=50`);
    rows("audit", trail.entries, auditRow, "Nothing has been changed yet.");
    note("audit-note", "");
  } catch (error) {
    if (error.status === 401) return signOut(error.message);
    state.auditMissing = true;            // until it is there, each tick asks for it again
    note("audit-note", `The audit trail cannot be shown: ${error.message}`);
  }
}

// ---- parts: what is under which tab, and what brings it up to date; other scripts add theirs

const parts = { gate: { refresh: () => refreshGate() } };

function openPart(name) {
  state.part = name in parts ? name : "gate";
  for (const part of Object.keys(parts)) {
    $(`part-${part}`).hidden = part !== state.part;
    $(`tab-${part}`).ariaSelected = String(part === state.part);
    $(`tab-${part}`).tabIndex = part === state.part ? 0 : -1;
  }
  if (location.hash.slice(1) !== state.part) history.replaceState(null, "", `#${state.part}`);
  if (!$("app").hidden) show();
}

document.querySelector("[role=tablist]").addEventListener("click", (event) => {
  if (event.target.id.startsWith("tab-")) openPart(event.target.id.slice(4));
});
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const names = Object.keys(parts);
  const next = names[(names.indexOf(state.part) + step + names.length) % names.length];
  openPart(next);
  $(`tab-${next}`).focus();
});
addEventListener("hashchange", () => openPart(location.hash.slice(1)));

// ---- signing in, and the clock

const may = (role) => ROLES.indexOf(state.role) >= ROLES.indexOf(role);

async function refresh() {
  showHealth(await api("/health/comprehensive"));
  await parts[state.part].refresh();
  for (const age of document.querySelectorAll("time")) age.textContent = ago(age.dateTime);
}

/** Shows anew what is under the open tab. What hinders that is told as long as it does, beside what became of an act. */
async function show() {
  if (!state.token) return;
  try {
    await refresh();
    note("trouble", "");
  } catch (error) {
    if (error.status === 401) return signOut(error.message);
    if (error.status === 0) {
      $("status").textContent = "unreachable";
      $("status").className = "status bad";
    }
    note("trouble", error.status === 0 ? error.message : `This page cannot be brought up to date: ${error.message}`);
  }
}

async function refreshGate() {
  const [stats, blocks] = await Promise.all([api(`${API}/ddos/stats`), api(`${API}/ddos/blocks?limit=500`)]);
  showStats(stats);
  state.blocks = blocks.blocks;
  state.total = blocks.total;
  showBlocks();
}

async function start() {
  try {
    const me = await api(`${API}/me`);
    state.role = me.role;
    useZone(me.timeZone);
    sessionStorage.setItem("token", state.token);
    $("who").textContent = `${me.name} (${me.role})`;
    $("sign-in").hidden = true;
    $("app").hidden = $("sign-out").hidden = false;
    for (const button of document.querySelectorAll("[data-needs]")) button.disabled = !may(button.dataset.needs);
    for (const form of document.querySelectorAll("[data-role]")) {
      for (const control of form.elements) control.disabled = !may(form.dataset.role);
    }
    message("");
  } catch (error) {
    return fail(error);
  }
  await Promise.all([show(), showAudit()]);
}

function signOut(why = "") {
  state.token = "";
  sessionStorage.removeItem("token");
  $("app").hidden = $("sign-out").hidden = true;
  $("sign-in").hidden = false;
  $("who").textContent = "";
  $("status").textContent = "signed out";
  $("status").className = "status";
  note("trouble", "");
  message(why, Boolean(why));
}

async function tick() {
  if (!$("app").hidden && !document.hidden) {
    await show();
    if (state.auditMissing) showAudit();
  }
  setTimeout(tick, REFRESH_MS);
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  $("token").value = "";
  start();
});
$("sign-out").addEventListener("click", () => signOut());
$("filter").addEventListener("input", showBlocks);
$("look-up").addEventListener("submit", lookUp);
$("add-block").addEventListener("submit", addBlock);
$("more-audit").addEventListener("click", showAudit);

// Once all scripts have added their parts.
addEventListener("DOMContentLoaded", () => {
  openPart(location.hash.slice(1));
  if (state.token) start(); else signOut();
  tick();
});

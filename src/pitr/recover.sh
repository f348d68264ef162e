#!/bin/bash
# recover.sh: brings PostgreSQL back to @TARGET@
#
# Plan @PLAN@, made @MADE@ for cluster @CLUSTER@:
# base backup @BASE@ (ended @BASE_END@), then @SEGMENTS@ segments of the log, timeline @TIMELINE@.
# It needs `foregate` and PostgreSQL @MAJOR@ on this machine, and @DISK@ bytes free; no server of Foregate.
#
# Run it as the account that owns the data directory (usually postgres), with the application stopped:
#   ./recover.sh            does everything up to a server that waits, read-only, at the target
#   ./recover.sh promote    makes it writable, once you have looked at it
#   ./recover.sh back       puts the old data directory back
#
# It never deletes anything: the old data directory is moved aside, and `back` moves the new one aside.
set -euo pipefail

# Where things are. Set them in the environment to have them elsewhere.
DATA=${DATA:-@DATA@}                        # the data directory that is replaced
BIN=${BIN:-/usr/lib/postgresql/@MAJOR@/bin}     # PostgreSQL @MAJOR@
REPOSITORY=${REPOSITORY:-@REPOSITORY@}
IDENTITY=${IDENTITY:-@IDENTITY@}            # the file of the age identity that opens it; empty: stored in the clear, or name the file
FOREGATE=${FOREGATE:-$(command -v foregate || true)}
# postgresql.conf, where it does not stand in the data directory. Empty: as the server was started last, or where
# Debian's packages have it.
CONFIG=${CONFIG:-}
# Other ways to stop, to start and to ask, as lines of a shell. Empty: pg_ctl, and psql on the server's own socket.
STOP=${STOP:-}
START=${START:-}
PSQL=${PSQL:-}

OLD="$DATA.before-@PLAN@"
NEW="$DATA.recovered-@PLAN@"
say() { printf '%s\n' "recover: $*"; }
die() { printf '%s\n' "recover: $*" >&2; exit 1; }
# As one word of a shell.
word() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# The postgresql.conf of the data directory $1; nothing where it stands in there.
find_config() {
  local found
  [ -z "$CONFIG" ] || { printf '%s' "$CONFIG"; return; }
  # How it was started last: Debian's pg_ctlcluster names the file.
  found=$(sed -n 's/.*"\(-c\)\{0,1\} \{0,1\}config_file=\([^"]*\)".*/\2/p' "$1/postmaster.opts" 2>/dev/null | head -n 1)
  [ -z "$found" ] || { printf '%s' "$found"; return; }
  [ ! -s "$1/postgresql.conf" ] || return 0
  for found in /etc/postgresql/@MAJOR@/*/postgresql.conf; do
    if grep -qE "^ *data_directory *= *'?$DATA'? *(#.*)?\$" "$found" 2>/dev/null; then printf '%s' "$found"; return; fi
  done
}

# What the server in $1, with the configuration $2, is set to: $3.
setting() {
  LC_ALL=C "$BIN/postgres" -D "$1" ${2:+-c "config_file=$2"} -c "data_directory=$1" -C "$3"
}

stop() {
  if [ -n "$STOP" ]; then eval "$STOP"; else "$BIN/pg_ctl" -D "$DATA" -m fast -w stop; fi
}

start() {
  if [ -n "$START" ]; then eval "$START"; return; fi
  local config
  config=$(find_config "$DATA")
  "$BIN/pg_ctl" -D "$DATA" -l "$DATA.log" -W \
    ${config:+-o "-c $(word "config_file=$config") -c $(word "data_directory=$DATA")"} start
}

sql() {
  if [ -n "$PSQL" ]; then $PSQL "$@"; return; fi
  local config socket
  config=$(find_config "$DATA")
  socket=$(setting "$DATA" "$config" unix_socket_directories)
  "$BIN/psql" -X -d postgres -h "${socket%%,*}" -p "$(setting "$DATA" "$config" port)" "$@"
}

promote() {
  # Ends the recovery: the server takes writes from now on, on a timeline of its own.
  sql -c 'SELECT pg_wal_replay_resume()'
  until [ "$(sql -At -c 'SELECT pg_is_in_recovery()')" = f ]; do sleep 1; done
  # What was for this recovery only must not speak at the next start.
  mv -- "$DATA/postgresql.auto.conf.before-recovery" "$DATA/postgresql.auto.conf"
  say 'promoted. Now: restart the server in your usual way (until then it archives nothing, and its subscriptions rest),'
  say 'start the application, and take a base backup at once: foregate pitr base-backup'
  say "the old data directory stays at $OLD until you delete it"
}

back() {
  [ -d "$OLD" ] || die "there is no $OLD"
  stop || true
  [ ! -e "$NEW" ] || die "$NEW exists already; move it away"
  mv -- "$DATA" "$NEW"
  mv -- "$OLD" "$DATA"
  start
  say "the old server is back; what was recovered stays at $NEW"
}

case "${1:-}" in
  promote) promote; exit ;;
  back) back; exit ;;
  '') ;;
  *) die "unknown argument $1" ;;
esac

# 1. Everything that can be refused is refused before anything is touched.
[ "$(id -u)" != 0 ] || die 'PostgreSQL does not run as root: run this as the account that owns the data directory'
[ -x "$FOREGATE" ] || die 'foregate was not found; set FOREGATE'
[ -x "$BIN/postgres" ] || die "PostgreSQL @MAJOR@ was not found in $BIN; set BIN"
[ ! -e "$OLD" ] || die "$OLD exists already: this script has run before; see the usage above"
OUTSIDE=$(find_config "$DATA")
[ -z "$OUTSIDE" ] || [ -r "$OUTSIDE" ] || die "the configuration $OUTSIDE cannot be read; set CONFIG"
[ ! -d "$DATA" ] || [ -n "$OUTSIDE" ] || [ -s "$DATA/postgresql.conf" ] \
  || die "$DATA has no postgresql.conf, and nothing says where it is; set CONFIG"
free=$(($(stat -f -c '%a * %S' -- "$(dirname -- "$DATA")")))
[ "$free" -ge @DISK@ ] || die "$(dirname -- "$DATA") has $free bytes free, @DISK@ are needed"
IDENTITY_ARGS=()
[ -z "$IDENTITY" ] || IDENTITY_ARGS=(--identity "$IDENTITY")

# 2. The base backup into a new directory, and PostgreSQL's own check of every file. The old server still runs.
say 'unpacking base backup @BASE@'
"$FOREGATE" pitr unpack @BASE@ --of @CLUSTER@ --into "$NEW" --no-config --repository "$REPOSITORY" "${IDENTITY_ARGS[@]}"

# 3. The settings of the recovery: one target, an explicit timeline, archiving off until it is promoted.
RESTORE="$(word "$FOREGATE") wal get %f %p --repository $(word "$REPOSITORY")${IDENTITY:+ --identity $(word "$IDENTITY")}"
RESTORE=${RESTORE//\\/\\\\}
# What the server must allow at least: as it was at the base backup, or was raised to since.
at_least() {
  local had
  had=$(LC_ALL=C "$BIN/pg_controldata" -D "$NEW" | sed -n "s/^$2 setting: *//p")
  [ "${had:-0}" -ge "$3" ] || had=$3
  printf "%s = '%s'\n" "$1" "$had"
}
cp -p -- "$NEW/postgresql.auto.conf" "$NEW/postgresql.auto.conf.before-recovery"
cat >> "$NEW/postgresql.auto.conf" <<SETTINGS
restore_command = '${RESTORE//\'/\'\'}'
archive_mode = 'off'
max_logical_replication_workers = '0'
$(at_least max_connections max_connections @CONNECTIONS@)
$(at_least max_worker_processes max_worker_processes @WORKERS@)
$(at_least max_wal_senders max_wal_senders @SENDERS@)
$(at_least max_prepared_transactions max_prepared_xacts @PREPARED@)
$(at_least max_locks_per_transaction max_locks_per_xact @LOCKS@)
SETTINGS
cat >> "$NEW/postgresql.auto.conf" <<'SETTINGS'
@SETTINGS@
SETTINGS
touch -- "$NEW/recovery.signal"
# The new directory must be one that starts: asked of PostgreSQL itself, while the old server still runs.
HBA=$(setting "$NEW" "$OUTSIDE" hba_file) || die "PostgreSQL does not accept its configuration ${OUTSIDE:-in $NEW}"
[ -r "$HBA" ] || die "$HBA is missing, so the server would not start; set CONFIG to the postgresql.conf to use"

# 4. Stop, move the old directory aside, put the new one in its place, start.
if [ -e "$DATA/postmaster.pid" ]; then
  say 'stopping the server'
  stop
fi
CONFIG=$OUTSIDE
if [ -e "$DATA" ]; then
  # Configuration that stands in the data directory comes with the base backup, as it was then.
  mv -- "$DATA" "$OLD"
  say "the old data directory is now $OLD"
fi
mv -- "$NEW" "$DATA"
say 'starting the recovery'
start

# 5. Watch. A server that gives up is gone; one that waits at the target says that it is paused.
misses=0
while :; do
  paused=$(sql -At -c 'SELECT pg_is_wal_replay_paused()' 2>/dev/null || true)
  [ "$paused" != t ] || break
  # It needs a moment to be there at all.
  if "$BIN/pg_ctl" -D "$DATA" status > /dev/null; then misses=0; else misses=$((misses + 1)); fi
  [ "$misses" -lt 10 ] || die 'the server gave up; its log says why. To go back: ./recover.sh back'
  sleep 1
done
say 'the server waits at the target, read-only. Look at it:'
sql -c 'SELECT pg_last_xact_replay_timestamp() AS "last transaction", pg_last_wal_replay_lsn() AS "position"'
say 'right?  ./recover.sh promote     wrong?  ./recover.sh back'
